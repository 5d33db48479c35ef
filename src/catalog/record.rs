//! One layer of the catalog, and how it is written.

use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{RegistryName, RepositoryName};
use lapwing_snapshotter::toc::Announced;
use serde::{Deserialize, Serialize};

/// A layer in the place it has in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerRecord {
    /// Chain id of the image up to and with this layer.
    pub chain_id: String,
    /// Chain id of the layers below; none for the base layer.
    pub parent_chain: Option<String>,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Digest of the blob.
    pub layer: Digest,
    /// Length of the blob in bytes.
    pub length: u64,
    /// Media type of the blob.
    pub media_type: String,
    /// Registry it was seen at, by the name that images carry.
    pub registry: RegistryName,
    /// Repository it was seen in.
    pub repo: RepositoryName,
    /// Manifest it was seen in.
    pub manifest: Option<Digest>,
    /// The layer's own table of contents, if the manifest announces one.
    pub toc: Option<Announced>,
    /// The SOCI index that the image's manifest names.
    pub soci: Option<Digest>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    chain: String,
    parent: Option<String>,
    diff: String,
    layer: String,
    length: u64,
    #[serde(rename = "type")]
    media_type: String,
    registry: String,
    repo: String,
    manifest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    toc: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    soci: Option<String>,
}

impl LayerRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let written = Written {
            chain: self.chain_id.clone(),
            parent: self.parent_chain.clone(),
            diff: self.diff_id.to_string(),
            layer: self.layer.to_string(),
            length: self.length,
            media_type: self.media_type.clone(),
            registry: self.registry.to_string(),
            repo: self.repo.to_string(),
            manifest: self.manifest.map(|digest| digest.to_string()),
            toc: self.toc.map(|toc| toc.to_string()),
            soci: self.soci.map(|digest| digest.to_string()),
        };
        serde_json::to_vec(&written).expect("strings and numbers have a JSON form")
    }

    /// `None` if a later version wrote it otherwise.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let written: Written = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            chain_id: written.chain,
            parent_chain: written.parent,
            diff_id: written.diff.parse().ok()?,
            layer: written.layer.parse().ok()?,
            length: written.length,
            media_type: written.media_type,
            registry: written.registry.parse().ok()?,
            repo: written.repo.parse().ok()?,
            manifest: written.manifest.and_then(|digest| digest.parse().ok()),
            toc: written.toc.and_then(|toc| toc.parse().ok()),
            soci: written.soci.and_then(|digest| digest.parse().ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_former_versions_are_read_and_new_ones_come_back() {
        let digest = Digest::of(b"layer");
        let former = format!(
            r#"{{"chain":"c","parent":null,"diff":"{digest}","layer":"{digest}","length":7,"type":"t","registry":"docker.io","repo":"a/b","manifest":null}}"#
        );
        let record = LayerRecord::decode(former.as_bytes()).unwrap();
        assert_eq!((record.length, record.toc), (7, None));
        assert_eq!(record.encode(), former.as_bytes(), "and former versions read what has no table");
        let record = LayerRecord { toc: Some(Announced::EStargz { digest }), soci: Some(digest), ..record };
        assert_eq!(LayerRecord::decode(&record.encode()), Some(record));
    }
}
