//! containerd's snapshots service (`containerd.services.snapshots.v1`) on a unix socket, and the half of its diff service
//! (`containerd.services.diff.v1`) that unpacks.
//!
//! Used for ordinary snapshots it behaves like containerd's own overlayfs snapshotter; layers that need no unpacking
//! come in through [`crate::remote`].
//!
//! * [`Snapshotter`]: opens the root, restores mounts after a restart; the requests themselves are in `rpc`
//! * `directories`, `mounts`, `mountpoint`, `usage`, `idmap`: what is on disk, and how it is mounted
//! * [`Diffs`]: layers that containerd has fetched, mounted where they would be unpacked (`adopt`)
//! * [`Socket::serve`]: the socket
//!
//! containerd holds locks during most requests and sets no deadline, so each is answered from local state. A request
//! runs to its end on a blocking thread, also when the caller goes away meanwhile: there is no half-made snapshot, but
//! after a crash, see [`crate::graph`].
//!
//! Order of changes: directories, then mount, then the graph's transaction; on removal the other way round.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::trace;

use crate::filter::FilterError;
use crate::graph::{Ancestor, Graph, GraphError, RemoteSnapshot};
use crate::lazy::Named;
use crate::remote::{MountedLayers, RemoteLayers};

mod adopt;
mod convert;
mod diff;
mod directories;
mod idmap;
mod metrics;
mod mounts;
mod operations;
pub mod proto;
mod rpc;
mod socket;
mod usage;

pub use diff::{Diffs, Unpacker};
pub(crate) use directories::delete_here;
pub use metrics::SnapshotMetrics;
pub use socket::{ServeError, Socket};
pub(crate) use usage::usage_here;

use directories::Directories;
use mounts::OverlayOptions;

/// How the snapshotter is set up.
#[derive(Debug, Clone)]
pub struct SnapshotterConfig {
    /// Directory for `snapshots/`: a local filesystem that overlayfs takes for its upper directories. Its path must not
    /// hold colons, commas, quotes or backslashes.
    pub root: PathBuf,
    /// How long a Prepare waits for the decision whether a layer can be mounted on demand. containerd holds a lock for
    /// so long.
    pub resolve_timeout: Duration,
}

impl SnapshotterConfig {
    /// The defaults, on `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), resolve_timeout: Duration::from_secs(1) }
    }
}

/// Why a request, or the start, failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Refused by the graph, or the graph failed.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A filter that is none.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A request out of bounds.
    #[error("{0}: invalid argument")]
    Request(String),
    /// A directory cannot be made, read or removed.
    #[error("snapshot directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A root that overlayfs cannot take.
    #[error("snapshot root {0} must be UTF-8 without colons, commas, quotes and backslashes: choose another")]
    Root(PathBuf),
    /// A layer cannot be mounted now.
    #[error("layer {layer} cannot be mounted on {at}: {message}")]
    Mount {
        /// The layer.
        layer: Digest,
        /// Where.
        at: PathBuf,
        /// Why, and what would help.
        message: String,
    },
    /// A request was given up because the process is ending.
    #[error("the snapshotter is shutting down")]
    Ending,
}

/// The snapshotter. Clones share everything.
#[derive(Clone)]
pub struct Snapshotter(Arc<Shared>);

impl fmt::Debug for Snapshotter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Snapshotter").field(&self.0.config).finish()
    }
}

pub(crate) struct Shared {
    pub(crate) config: SnapshotterConfig,
    pub(crate) graph: Graph,
    pub(crate) directories: Directories,
    pub(crate) layers: MountedLayers,
    /// Held while an active snapshot gets its layer.
    adopting: Mutex<()>,
    overlay: OverlayOptions,
    metrics: SnapshotMetrics,
}

impl Snapshotter {
    /// Opens the root, or makes it, and clears leftovers of a crash away. Without `layers` all snapshots are ordinary.
    ///
    /// Blocks on the disk.
    pub fn open(
        config: SnapshotterConfig,
        layers: Option<Arc<dyn RemoteLayers>>,
        metrics: SnapshotMetrics,
    ) -> Result<Self, SnapshotError> {
        let directories = Directories::open(&config.root)?;
        let graph = Graph::open(&directories.top().join("graph.redb"))?;
        directories.collect(&graph.ids()?)?;
        let (layers, overlay) = (MountedLayers::new(layers), OverlayOptions::detect());
        let adopting = Mutex::default();
        Ok(Self(Arc::new(Shared { config, graph, directories, layers, adopting, overlay, metrics })))
    }

    /// Mounts the layers of all remote snapshots that are not mounted, and gives the number of those that could not be.
    ///
    /// To be called once, before [`Socket::serve`]. What fails here is logged, and tried again when a container needs it.
    pub async fn restore(&self) -> Result<usize, SnapshotError> {
        blocking(&self.0, Shared::restore).await
    }

    /// Everything that snapshots name, active ones too: it must be kept.
    pub async fn named(&self) -> Result<Named, SnapshotError> {
        blocking(&self.0, |shared| Ok(shared.graph.named()?)).await
    }

    /// The remote snapshots: their layers must stay mountable.
    pub fn remote_snapshots(&self) -> Result<Vec<RemoteSnapshot>, SnapshotError> {
        Ok(self.0.graph.remotes()?)
    }
}

impl Shared {
    fn restore(&self) -> Result<usize, SnapshotError> {
        let mut failed = 0;
        for remote in self.graph.remotes()? {
            let chain = self.graph.parent_chain(&remote.name)?;
            if let Err(error) = self.ensure_chain(&chain) {
                tracing::warn!(snapshot = remote.id, digest = %remote.layer, %error, "layer not mounted yet");
                failed += 1;
            }
        }
        Ok(failed)
    }

    /// Mounts a remote snapshot's layer over `ancestors` unless this process did.
    pub(crate) fn ensure_mounted(&self, id: u64, layer: &Digest, ancestors: &[Ancestor]) -> Result<(), SnapshotError> {
        let at = self.directories.files(id);
        let lowers = || ancestors.iter().map(|ancestor| self.directories.files(ancestor.id)).collect();
        let mounted = self.layers.ensure(id, layer, &at, lowers);
        mounted.map_err(|message| SnapshotError::Mount { layer: *layer, at, message })
    }

    /// Mounts the remote snapshots of a chain (uppermost first) that are not mounted, from the lowest up.
    pub(crate) fn ensure_chain(&self, chain: &[Ancestor]) -> Result<(), SnapshotError> {
        for (position, ancestor) in chain.iter().enumerate().rev() {
            if let Some(layer) = &ancestor.layer {
                self.ensure_mounted(ancestor.id, layer, &chain[position + 1..])?;
            }
        }
        Ok(())
    }

    /// Detaches and deletes the directory of a snapshot that is not, or no longer, in the graph.
    pub(crate) fn discard(&self, id: u64, mounted: bool) {
        if mounted {
            self.layers.release(id, &self.directories.files(id));
        }
        self.directories.retire(id);
    }
}

/// Runs `work` to its end on a thread that may block, whether or not the caller waits for it.
pub(crate) async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    let (shared, context) = (Arc::clone(shared), trace::current());
    match tokio::task::spawn_blocking(move || trace::within_blocking(context, || work(&shared))).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(SnapshotError::Ending),
    }
}
