//! Lazily fetched layers: decompressed tars of which only the spans that somebody reads are brought here.
//!
//! * [`layer`]: one layer: index, source of compressed bytes, span cache, single flight, background completion
//! * [`cache`]: the spans on disk, and the bitmap that says which
//! * [`common`]: what all layers share: CPU and descriptors
//! * [`whole`]: the tar of a layer that was read as a whole
//! * [`bdi`]: how far the kernel reads ahead in a mount
//! * [`readahead`]: finds sequential readers
//! * [`recorder`]: takes down what is read while containers start
//! * [`ahead`]: counts what was fetched before it was read
//! * [`mounts`]: the FUSE mount that serves the tars, and the EROFS mounts on top
//! * [`files`]: which layer is which file of the FUSE mount; brings those back that a former process had
//! * [`trees`]: layers as directory trees, where the kernel cannot mount them by itself
//! * [`former`]: what a former process left
//! * [`collect`]: takes away what nothing names and nothing uses any more
//! * [`erofs_mount`]: one EROFS mount
//! * [`inherit`]: attributes of directories that only lower layers describe
//! * [`probe`]: whether this kernel can do it
//!
//! A read goes: process -> EROFS -> FUSE -> [`LazyLayer::read`] -> span in the cache, or compressed bytes by the
//! [`LayerSource`](crate::source::LayerSource) -> inflated and checked against the index -> written to the cache ->
//! answered in full, or EIO.
//!
//! After a crash every span whose bit is set is right: data is synced before its bit. A lost bit costs a refetch.

mod ahead;
mod bdi;
mod cache;
mod collect;
mod common;
mod erofs_mount;
mod files;
mod former;
mod inherit;
mod layer;
mod mounts;
mod probe;
mod readahead;
mod recorder;
mod trees;
mod whole;

pub use ahead::LazyMetrics;
pub(crate) use bdi::read_ahead_as;
pub use cache::replace_file;
pub use collect::{Collected, Named};
pub use common::Common;
pub(crate) use erofs_mount::mount_image_here;
pub use files::{KeptLayers, kept_layers};
pub(crate) use former::detach_all_here;
pub(crate) use inherit::inherited_here;
pub use layer::{LazyLayer, Progress, Proof};
pub use mounts::{LazyMounts, MountError};
pub use probe::{Support, Unsupported, load_filesystems, probe, probe_trees};
pub use recorder::Recorder;
pub use whole::{TarWriter, WholeTar};

use std::sync::Arc;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::timeline::Timelines;

use crate::index::SpanError;
use crate::source::SourceError;

/// How layers are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's EROFS reads the metadata, and FUSE serves one data file for each layer.
    Erofs,
    /// FUSE serves whole trees, for kernels whose EROFS cannot.
    Fuse,
}

/// How lazy layers behave.
#[derive(Debug, Clone)]
pub struct Options {
    /// How new mounts are made; those of a former process stay as they are.
    pub backend: Backend,
    /// How long a read may take before its process gets EIO.
    pub deadline: Duration,
    /// Spans inflated at once, all layers together.
    pub inflations: usize,
    /// Spans that background completion of one layer has in work at once.
    pub background_spans: usize,
    /// Whether it is to be seen what the first start of an image reads ([`Recorder`]), though all of it is here.
    pub watch_first_start: bool,
    /// Where it is counted.
    pub metrics: LazyMetrics,
    /// Where it is taken down for how long reads of a layer waited, and its bytes were inflated.
    pub timelines: Arc<Timelines>,
}

impl Default for Options {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let metrics = LazyMetrics::default();
        let (backend, deadline) = (Backend::Erofs, Duration::from_secs(60));
        Self {
            backend,
            deadline,
            inflations: cores,
            background_spans: 4,
            watch_first_start: false,
            metrics,
            timelines: Arc::default(),
        }
    }
}

/// Why bytes of a lazy layer cannot be had. Nothing wrong is ever given instead.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LazyError {
    /// The compressed bytes did not come.
    #[error("layer {layer}, span {span}: {cause}")]
    Source {
        /// The layer.
        layer: Digest,
        /// Number of the span.
        span: usize,
        /// What the source says.
        cause: SourceError,
    },
    /// The compressed bytes did not come in time.
    #[error("layer {layer}, span {span}: no bytes within {} s; are peers and registry reachable?", waited.as_secs())]
    Deadline {
        /// The layer.
        layer: Digest,
        /// Number of the span.
        span: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// The bytes came and are not those that the index names.
    #[error(transparent)]
    Corrupt(#[from] SpanError),
    /// The whole tar came and is not the one that the image names: the index is wrong.
    #[error("layer {0} is quarantined: it is not what its index says; remove the image and pull it again")]
    Quarantined(Digest),
    /// The cache on disk fails.
    #[error("cache of layer {layer} in {path}: {cause}")]
    Cache {
        /// The layer.
        layer: Digest,
        /// Its directory.
        path: String,
        /// The system's error.
        cause: String,
    },
}
