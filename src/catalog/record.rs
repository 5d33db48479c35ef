//! One layer of the catalog, and how it is written.

use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{RegistryName, RepositoryName};
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
        })
    }
}
