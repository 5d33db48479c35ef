//! The indexes of lazily mounted layers on disk, so that a restarted node mounts them without asking anybody.

use std::path::{Path, PathBuf};

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::Index;

/// `<root>/layers/<hex>/index`, beside the rest of a lazy layer.
pub(crate) struct KeptIndexes(PathBuf);

impl KeptIndexes {
    pub(crate) fn new(root: &Path) -> Self {
        Self(root.join("layers"))
    }

    fn path(&self, layer: &Digest) -> PathBuf {
        self.0.join(layer.hex()).join("index")
    }

    /// Writes an index that is believed; atomic, and durable when it returns.
    pub(super) fn keep(&self, layer: &Digest, encoded: &[u8]) -> Result<(), String> {
        let path = self.path(layer);
        let failed = |error: std::io::Error| format!("index of {layer} cannot be kept at {}: {error}", path.display());
        lapwing_snapshotter::lazy::replace_file(&path, encoded).map_err(failed)
    }

    /// The name in the swarm of a layer's index, and its length.
    pub(super) fn object(&self, layer: &Digest) -> Option<(Digest, u64)> {
        let bytes = std::fs::read(self.path(layer)).ok()?;
        Some((Digest::of(&bytes), bytes.len() as u64))
    }

    /// Reads it back, with all the checks that a foreign one gets.
    pub(super) fn load(&self, layer: &Digest) -> Result<Index, String> {
        let path = self.path(layer);
        let bytes = std::fs::read(&path).map_err(|error| format!("index of {layer}: {}: {error}", path.display()))?;
        match Index::decode(&bytes) {
            Ok(index) if index.layer() == *layer => Ok(index),
            Ok(index) => Err(format!("{} is the index of {}, not of {layer}", path.display(), index.layer())),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }
}
