//! Speed limits as they stand in the configuration, in `/api/v1/limits` and in `lapwing limits`.

use lapwing_p2p::rate::{Limits, Rates};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ByteSize;

/// A piece of the longest kind then takes 16 s: slower than that peers give a request up.
const SLOWEST: u64 = 64 << 10;

/// The table `[limits]`; every size is per second, "0" for none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsTable {
    pub upload: PeerRates,
    pub download: PeerRates,
    pub origin: OriginRates,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PeerRates {
    pub node: ByteSize,
    pub per_blob: ByteSize,
    pub per_peer: ByteSize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OriginRates {
    pub node: ByteSize,
    pub per_blob: ByteSize,
}

impl Default for PeerRates {
    fn default() -> Self {
        Self { node: ByteSize(0), per_blob: ByteSize(0), per_peer: ByteSize(0) }
    }
}

impl Default for OriginRates {
    fn default() -> Self {
        Self { node: ByteSize(0), per_blob: ByteSize(0) }
    }
}

impl LimitsTable {
    /// Each limit with its key.
    fn named(&self) -> [(&'static str, ByteSize); 8] {
        let Self { upload, download, origin } = self;
        [
            ("limits.upload.node", upload.node),
            ("limits.upload.per_blob", upload.per_blob),
            ("limits.upload.per_peer", upload.per_peer),
            ("limits.download.node", download.node),
            ("limits.download.per_blob", download.per_blob),
            ("limits.download.per_peer", download.per_peer),
            ("limits.origin.node", origin.node),
            ("limits.origin.per_blob", origin.per_blob),
        ]
    }

    /// The first limit that cannot work: its key, and what is wrong with it.
    pub(crate) fn invalid(&self) -> Option<(&'static str, String)> {
        let named = self.named().into_iter();
        let (key, size) = named.into_iter().find(|(_, size)| (1..SLOWEST).contains(&size.0))?;
        let slowest = ByteSize(SLOWEST);
        Some((
            key,
            format!(
                "{size} a second is too slow for pieces to arrive in time; give at least {slowest}, or \"0\" for no limit"
            ),
        ))
    }
}

impl From<&LimitsTable> for Limits {
    fn from(table: &LimitsTable) -> Self {
        let of_peers =
            |rates: &PeerRates| Rates { node: rates.node.0, per_blob: rates.per_blob.0, per_peer: rates.per_peer.0 };
        let origin = Rates { node: table.origin.node.0, per_blob: table.origin.per_blob.0, per_peer: 0 };
        Self { upload: of_peers(&table.upload), download: of_peers(&table.download), origin }
    }
}

impl From<Limits> for LimitsTable {
    fn from(limits: Limits) -> Self {
        let of_peers = |rates: Rates| PeerRates {
            node: ByteSize(rates.node),
            per_blob: ByteSize(rates.per_blob),
            per_peer: ByteSize(rates.per_peer),
        };
        let origin = OriginRates { node: ByteSize(limits.origin.node), per_blob: ByteSize(limits.origin.per_blob) };
        Self { upload: of_peers(limits.upload), download: of_peers(limits.download), origin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_way_to_the_node_and_back() {
        let text = r#"{"upload":{"node":"3MiB","per_blob":"2MiB","per_peer":"1MiB"},
            "download":{"node":"6MiB","per_blob":"5MiB","per_peer":"4MiB"},"origin":{"node":"8MiB","per_blob":"7MiB"}}"#;
        let table: LimitsTable = serde_json::from_str(text).unwrap();
        assert_eq!(LimitsTable::from(Limits::from(&table)), table);
        assert_eq!(table.invalid(), None);
        assert!(table.named().iter().all(|(_, size)| size.0 > 0), "a key is missing");
    }

    #[test]
    fn a_crawl_is_refused_by_its_key() {
        let table: LimitsTable = serde_json::from_str(r#"{"download":{"per_peer":"63KiB"}}"#).unwrap();
        let (key, reason) = table.invalid().unwrap();
        assert_eq!(key, "limits.download.per_peer");
        assert!(reason.contains("63KiB") && reason.contains("64KiB"), "{reason}");
    }
}
