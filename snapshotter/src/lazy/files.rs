//! The layers behind the FUSE mount, by node number: those in memory, and those that only their directory tells of.
//!
//! After a restart nothing is in memory. The kernel goes on asking by number for layers that containers have mounted; each
//! is brought back from its directory at the first request for it, before that is answered, whether or not the snapshots
//! still name it. One that cannot be brought back fails alone.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::common::Common;
use super::mounts::MountError;
use super::trees::Images;
use super::whole::WholeTar;
use super::{LazyLayer, Options};
use crate::fuse::{DataFile, DataFiles, TREE, Trees};
use crate::index::Index;
use crate::source::LayerSource;

/// For so long a layer that could not be brought back is not tried again: the kernel repeats a failed read page by page.
const FAILURE_MEMORY: Duration = Duration::from_secs(5);

/// Begins the names of directories that are being deleted.
const REMOVED: &str = "removed-";

/// Who keeps what it takes to open a layer again.
///
/// Contract: answers from this machine alone, without waiting for peers, registries or the tracker. Called on threads
/// that block, within a tokio runtime's context.
pub trait KeptLayers: Send + Sync + 'static {
    /// The index of a layer that was mounted before, and where its bytes come from; or what is wrong with it.
    fn reload(&self, layer: &Digest) -> Result<(Arc<Index>, Arc<dyn LayerSource>), String>;
}

/// See the module's documentation.
pub(super) struct Layers {
    /// `<root>/layers`.
    directory: PathBuf,
    options: Options,
    common: Arc<Common>,
    runtime: Handle,
    kept: OnceLock<Arc<dyn KeptLayers>>,
    known: RwLock<HashMap<u64, Arc<LazyLayer>>>,
    /// The layers that are shown as trees.
    pub(super) images: Images,
    /// Held while a layer is opened or its files deleted, since two caches in one directory would spoil each other. Holds
    /// when a layer could last not be brought back.
    opening: Mutex<HashMap<u64, Instant>>,
}

impl std::fmt::Debug for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layers").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Layers {
    pub(super) fn new(root: &Path, options: Options) -> Self {
        Self {
            directory: root.join("layers"),
            common: Arc::new(Common::new(options.inflations)),
            options,
            runtime: Handle::current(),
            kept: OnceLock::new(),
            known: RwLock::default(),
            images: Images::default(),
            opening: Mutex::default(),
        }
    }

    /// Whom to ask for layers that are not in memory; the first one counts.
    pub(super) fn keep_by(&self, kept: Arc<dyn KeptLayers>) {
        // Said once, at the start.
        let _ = self.kept.set(kept);
    }

    pub(super) const fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    /// `<root>/trees`.
    pub(super) fn links(&self) -> PathBuf {
        self.directory.with_file_name("trees")
    }

    pub(super) fn directory(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// Where a layer's directory goes before it is deleted; who finds one there deletes it.
    pub(super) fn aside(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{REMOVED}{}", digest.hex()))
    }

    /// Deletes what a process that was killed had put aside.
    pub(super) fn delete_aside(&self) {
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(REMOVED.as_bytes())
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "what is left of a layer cannot be deleted");
            }
        }
    }

    /// A layer in memory.
    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<LazyLayer>> {
        self.by_number(nodeid(digest)).filter(|layer| layer.digest() == *digest)
    }

    pub(super) fn all(&self) -> Vec<Arc<LazyLayer>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut layers: Vec<_> = known.values().cloned().collect();
        layers.sort_by_key(|layer| layer.digest());
        layers
    }

    /// Opens a layer, or gives the one that is open. Its directory must be there. `whole`: its tar, from the builder of that index.
    pub(super) fn open(
        &self,
        index: Arc<Index>,
        source: Arc<dyn LayerSource>,
        whole: Option<&WholeTar>,
    ) -> Result<Arc<LazyLayer>, MountError> {
        let digest = index.layer();
        let mut failures = self.opening();
        match self.by_number(nodeid(&digest)) {
            Some(known) if known.digest() == digest => return Ok(known),
            Some(_) => return Err(MountError::Collision(digest)),
            None => {}
        }
        let (options, common) = (self.options.clone(), Arc::clone(&self.common));
        let layer = LazyLayer::open_with(&self.directory(&digest), index, source, options, common, whole)?;
        failures.remove(&nodeid(&digest));
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(nodeid(&digest), layer.clone());
        Ok(layer)
    }

    /// A layer in memory, or brought back.
    pub(super) fn reopen(&self, digest: &Digest) -> Result<Arc<LazyLayer>, MountError> {
        if let Some(known) = self.get(digest) {
            return Ok(known);
        }
        let kept = self.kept.get().ok_or(MountError::Unknown(*digest))?;
        let _context = self.runtime.enter();
        let reloaded = kept.reload(digest);
        let (index, source) = reloaded.map_err(|message| MountError::Lost { layer: *digest, message })?;
        self.open(index, source, None)
    }

    /// Forgets a layer, then has `put_aside` take its files away.
    pub(super) fn remove<T>(&self, digest: &Digest, put_aside: impl FnOnce() -> T) -> T {
        let _no_other = self.opening();
        if let Some(layer) = self.get(digest) {
            layer.retire();
            self.hide(digest);
            self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&nodeid(digest));
        }
        put_aside()
    }

    /// A layer that the kernel asks for by an image of it: in memory, or brought back.
    pub(super) fn find_layer(&self, digest: &Digest) -> Option<Arc<LazyLayer>> {
        self.find(nodeid(digest)).filter(|layer| layer.digest() == *digest)
    }

    fn opening(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn by_number(&self, nodeid: u64) -> Option<Arc<LazyLayer>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&nodeid).cloned()
    }

    /// The layer that the kernel asks for.
    fn find(&self, number: u64) -> Option<Arc<LazyLayer>> {
        if let Some(known) = self.by_number(number) {
            return Some(known);
        }
        if self.opening().get(&number).is_some_and(|failed| failed.elapsed() < FAILURE_MEMORY) {
            return None;
        }
        let digest = self.on_disk().find(|digest| nodeid(digest) == number)?;
        match self.reopen(&digest) {
            Ok(layer) => {
                tracing::debug!(%digest, "a layer that containers have mounted is served again");
                Some(layer)
            }
            Err(error) => {
                tracing::error!(%digest, %error, "a mounted layer cannot be served: reads of it fail with EIO");
                self.opening().insert(number, Instant::now());
                None
            }
        }
    }

    /// The layers that have a directory.
    pub(super) fn on_disk(&self) -> impl Iterator<Item = Digest> + use<> {
        layers_in(&self.directory)
    }
}

/// The layers of which anything is kept under `root`, whether or not lazy mounts are served from there now.
pub fn kept_layers(root: &Path) -> Vec<Digest> {
    layers_in(&root.join("layers")).collect()
}

fn layers_in(directory: &Path) -> impl Iterator<Item = Digest> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| format!("sha256:{name}").parse().ok())
}

/// The layer's number in the FUSE mount: from its digest, so that it is the same in every process.
fn nodeid(digest: &Digest) -> u64 {
    let number = digest.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // 0 and 1 are taken.
    (number & !TREE).max(2)
}

pub(super) fn file_name(digest: &Digest) -> String {
    format!("{}.tar", digest.hex())
}

fn file_of(layer: &LazyLayer) -> DataFile {
    DataFile { nodeid: nodeid(&layer.digest()), size: layer.device_length() }
}

impl DataFiles for Layers {
    fn lookup(&self, name: &[u8]) -> Option<DataFile> {
        let hex = std::str::from_utf8(name).ok()?.strip_suffix(".tar")?;
        let digest: Digest = format!("sha256:{hex}").parse().ok()?;
        Some(file_of(&*self.find_layer(&digest)?))
    }

    fn get(&self, nodeid: u64) -> Option<DataFile> {
        Some(file_of(&*self.find(nodeid)?))
    }

    fn list(&self) -> Vec<(Vec<u8>, DataFile)> {
        self.all().iter().map(|layer| (file_name(&layer.digest()).into_bytes(), file_of(layer))).collect()
    }

    fn read_cached(&self, nodeid: u64, range: Range<u64>) -> Option<Bytes> {
        self.by_number(nodeid)?.read_cached(range)
    }

    fn read(&self, nodeid: u64, range: Range<u64>) -> BoxFuture<'static, Result<Bytes, Errno>> {
        let layer = self.by_number(nodeid);
        Box::pin(async move { layer.ok_or(Errno::STALE)?.read(range).await.map_err(|_| Errno::IO) })
    }

    fn trees(&self) -> Option<&dyn Trees> {
        Some(self)
    }
}
