//! The indexes of lazily mounted layers on disk, so that a restarted node mounts them without asking anybody.
//!
//! Of an index that a table of contents in the layer gave, the table is kept, and the index made of it anew.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::Index;
use lapwing_snapshotter::toc::Toc;

/// Enough of a file to tell its kind.
const START_BYTES: u64 = 16;

/// What a kept index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeptKind {
    /// Built by a node; its device is the layer's tar.
    Index,
    /// A table of contents that somebody else made.
    Table,
}

/// `<root>/layers/<hex>/index`, beside the rest of a lazy layer.
#[derive(Clone)]
pub(crate) struct KeptIndexes(PathBuf);

impl KeptIndexes {
    pub(crate) fn new(root: &Path) -> Self {
        Self(root.join("layers"))
    }

    fn path(&self, layer: &Digest) -> PathBuf {
        self.0.join(layer.hex()).join("index")
    }

    /// Writes an index that is believed, or the table that it was made of; atomic, and durable when it returns.
    pub(super) fn keep(&self, layer: &Digest, encoded: &[u8]) -> Result<(), String> {
        let path = self.path(layer);
        let failed = |error: std::io::Error| format!("index of {layer} cannot be kept at {}: {error}", path.display());
        lapwing_snapshotter::lazy::replace_file(&path, encoded).map_err(failed)
    }

    /// The name in the swarm of a layer's index, and its length. None of what is not shared.
    pub(super) fn object(&self, layer: &Digest) -> Option<(Digest, u64)> {
        let bytes = std::fs::read(self.path(layer)).ok().filter(|bytes| !Toc::is_kept(bytes))?;
        Some((Digest::of(&bytes), bytes.len() as u64))
    }

    /// What is kept of a layer, if anything.
    pub(super) fn kind(&self, layer: &Digest) -> Option<KeptKind> {
        let mut start = Vec::new();
        File::open(self.path(layer)).and_then(|file| file.take(START_BYTES).read_to_end(&mut start)).ok()?;
        Some(if Toc::is_kept(&start) { KeptKind::Table } else { KeptKind::Index })
    }

    /// Reads it back, with all the checks that a foreign one gets.
    pub(super) fn load(&self, layer: &Digest) -> Result<Index, String> {
        let path = self.path(layer);
        let bytes = std::fs::read(&path).map_err(|error| format!("index of {layer}: {}: {error}", path.display()))?;
        let index = match Toc::is_kept(&bytes) {
            true => Toc::load(&bytes).map_err(|error| error.to_string()),
            false => Index::decode(&bytes).map_err(|error| error.to_string()),
        };
        match index {
            Ok(index) if index.layer() == *layer => Ok(index),
            Ok(index) => Err(format!("{} is the index of {}, not of {layer}", path.display(), index.layer())),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }
}
