//! The stored form of a snapshot.
//!
//! Protobuf, so that fields can be added; times are nanoseconds since the Unix epoch.

use std::time::{Duration, SystemTime};

use lapwing_p2p::digest::Digest;
use prost::Message as _;

use super::{GraphError, Info, Kind, Labels, Usage};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Record {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    /// 1 view, 2 active, 3 committed, as in containerd's own enumeration.
    #[prost(uint32, tag = "2")]
    pub(super) kind_number: u32,
    #[prost(string, tag = "3")]
    pub(super) parent: String,
    /// Zero when there is no parent.
    #[prost(uint64, tag = "4")]
    pub(super) parent_id: u64,
    #[prost(map = "string, string", tag = "5")]
    pub(super) labels: Labels,
    #[prost(uint64, tag = "6")]
    pub(super) created_ns: u64,
    #[prost(uint64, tag = "7")]
    pub(super) updated_ns: u64,
    #[prost(uint64, tag = "8")]
    pub(super) size_bytes: u64,
    #[prost(uint64, tag = "9")]
    pub(super) inodes: u64,
    /// Raw SHA-256 of the layer, or empty for a snapshot with its own files.
    #[prost(bytes = "vec", tag = "10")]
    pub(super) layer_digest: Vec<u8>,
}

impl Record {
    pub(super) fn decode_stored(name: &str, bytes: &[u8]) -> Result<Self, GraphError> {
        Self::decode(bytes).map_err(|error| GraphError::Damaged(format!("record of {name:?}: {error}")))
    }

    pub(super) fn stored_kind(&self) -> Result<Kind, GraphError> {
        match self.kind_number {
            1 => Ok(Kind::View),
            2 => Ok(Kind::Active),
            3 => Ok(Kind::Committed),
            other => Err(GraphError::Damaged(format!("snapshot {} has kind {other}", self.id))),
        }
    }

    pub(super) fn layer(&self) -> Result<Option<Digest>, GraphError> {
        if self.layer_digest.is_empty() {
            return Ok(None);
        }
        let bytes: [u8; 32] = self.layer_digest.as_slice().try_into().map_err(|_| {
            GraphError::Damaged(format!("snapshot {} names a layer by {} bytes", self.id, self.layer_digest.len()))
        })?;
        Ok(Some(Digest::from_bytes(bytes)))
    }

    pub(super) fn info(&self, name: &str) -> Result<Info, GraphError> {
        Ok(Info {
            name: name.to_owned(),
            parent: self.parent.clone(),
            kind: self.stored_kind()?,
            labels: self.labels.clone(),
            created: time(self.created_ns),
            updated: time(self.updated_ns),
        })
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { size_bytes: self.size_bytes, inodes: self.inodes }
    }
}

pub(super) const fn kind_number(kind: Kind) -> u32 {
    match kind {
        Kind::View => 1,
        Kind::Active => 2,
        Kind::Committed => 3,
    }
}

pub(super) fn nanoseconds(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

fn time(nanoseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_record_is_an_error_and_not_a_panic() {
        assert!(matches!(Record::decode_stored("x", b"\xff\xff"), Err(GraphError::Damaged(_))));
        let record = Record { id: 7, kind_number: 9, layer_digest: vec![1; 31], ..Record::default() };
        assert!(matches!(record.stored_kind(), Err(GraphError::Damaged(_))));
        assert!(matches!(record.layer(), Err(GraphError::Damaged(_))));
    }

    #[test]
    fn time_survives_to_the_nanosecond() {
        let now = SystemTime::UNIX_EPOCH + Duration::new(1_800_000_000, 123_456_789);
        assert_eq!(time(nanoseconds(now)), now);
    }
}
