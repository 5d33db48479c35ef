//! The lazy layers of a machine: one FUSE mount that serves their tars, and an EROFS mount per use.
//!
//! ```text
//! <root>/data                      the FUSE mount: one file per layer, <digest>.tar
//! <root>/layers/<digest>/erofs     metadata image, written here from the index
//!                        erofs-*   the same with attributes inherited from a certain stack of lower layers
//!                        tar       decompressed bytes, sparse
//!                        spans     which of them are there
//! ```
//!
//! When the process dies, mounts over FUSE give EIO for what the page cache does not hold; [`LazyMounts::start`] of the
//! next process takes the dead FUSE mount away, and [`LazyMounts::mount`] replaces dead EROFS mounts, so that new
//! containers work. Layers that were complete when mounted are not affected: their device is the local file.

use std::collections::{HashMap, HashSet};
use std::fs::DirBuilder;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::cache::replace_file;
use super::inherit::{self, Inherited};
use super::layer::{LazyLayer, Proof};
use super::{LazyError, Options, erofs_mount};
use crate::erofs::{self, ErofsError};
use crate::fuse::{self, DataFile, DataFiles, Handshake, Lengths, Session};
use crate::index::Index;
use crate::mountpoint::{self, MountState};
use crate::source::LayerSource;

/// Why a layer cannot be added or mounted; the remedy is to pull it whole.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The index or its cache.
    #[error(transparent)]
    Layer(#[from] LazyError),
    /// The file table does not fit into an image.
    #[error("layer {layer}: {cause}")]
    Image {
        /// The layer.
        layer: Digest,
        /// Why.
        cause: ErofsError,
    },
    /// The layer was never added.
    #[error("layer {0} is not a lazy layer here; add its index first")]
    Unknown(Digest),
    /// Two layers share the first 8 bytes of their digests.
    #[error("layer {0} has the same node number as another layer; it must be pulled whole")]
    Collision(Digest),
    /// The layer is mounted.
    #[error("layer {layer} is mounted at {at}; unmount it first")]
    Busy {
        /// The layer.
        layer: Digest,
        /// One of its mounts.
        at: String,
    },
    /// The system refuses.
    #[error("{what} {path}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// With which path.
        path: String,
        /// The system's error.
        cause: io::Error,
    },
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MountError {
    let path = path.display().to_string();
    move |cause| MountError::System { what, path, cause }
}

/// The lazy layers of this machine and their mounts.
#[derive(Debug)]
pub struct LazyMounts {
    root: PathBuf,
    options: Options,
    inflations: Arc<Semaphore>,
    layers: Arc<Layers>,
    session: Mutex<Option<Session>>,
    mounted: Mutex<HashMap<PathBuf, Digest>>,
    /// Images that this process has compared with their index. Held while a layer's files are made: two that made the
    /// same at once would take them from under each other.
    images: Mutex<HashSet<PathBuf>>,
}

impl LazyMounts {
    /// Makes the FUSE mount at `<root>/data`, in place of what a dead process left there. Must be called within a tokio
    /// runtime. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the directories cannot be made, or FUSE is missing or forbidden.
    pub fn start(root: &Path, options: Options) -> Result<Arc<Self>, MountError> {
        let data = root.join("data");
        mountpoint::detach(&data).map_err(system("detach the former mount at", &data))?;
        for directory in [&data, &root.join("layers")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(system("make directory", directory))?;
        }
        let layers = Arc::<Layers>::default();
        let device = fuse::open_device().map_err(system("open", Path::new("/dev/fuse")))?;
        fuse::mount_at(device.as_fd(), &data).map_err(system("mount FUSE at", &data))?;
        let runtime = tokio::runtime::Handle::current();
        let session = Session::start(device, Handshake::Pending, Lengths::Exact, layers.clone(), runtime)
            .map_err(system("serve the FUSE mount at", &data))?;
        tracing::info!(mount = %data.display(), "serving lazy layers");
        let inflations = Arc::new(Semaphore::new(options.inflations.max(1)));
        let (session, mounted, images) = (Mutex::new(Some(session)), Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { root: root.to_owned(), options, inflations, layers, session, mounted, images }))
    }

    /// Makes a layer known, with its image; nothing is fetched. Adding it again changes nothing.
    ///
    /// # Errors
    ///
    /// When the file table fits no image, or the disk fails.
    pub async fn add(
        self: &Arc<Self>,
        index: Arc<Index>,
        source: Arc<dyn LayerSource>,
    ) -> Result<Arc<LazyLayer>, MountError> {
        let this = self.clone();
        // Inside spawn_blocking the runtime's context is there, which the layer needs.
        let added = tokio::task::spawn_blocking(move || this.add_blocking(index, source)).await;
        added.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// [`Self::add`] for a thread that may block; within a tokio runtime's context.
    ///
    /// # Errors
    ///
    /// As for [`Self::add`].
    pub fn add_blocking(&self, index: Arc<Index>, source: Arc<dyn LayerSource>) -> Result<Arc<LazyLayer>, MountError> {
        let digest = index.layer();
        let nodeid = nodeid(&digest);
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        match self.layers.get_layer(nodeid) {
            Some(known) if known.digest() == digest => return Ok(known),
            Some(_) => return Err(MountError::Collision(digest)),
            None => {}
        }
        let directory = self.directory(&digest);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(system("make directory", &directory))?;
        write_image(&mut images, &index, &directory.join("erofs"), &Inherited::new())?;
        let layer = LazyLayer::open(&directory, index, source, self.options.clone(), self.inflations.clone())?;
        self.layers.0.write().unwrap_or_else(PoisonError::into_inner).insert(nodeid, layer.clone());
        Ok(layer)
    }

    /// A layer that was added.
    pub fn layer(&self, digest: &Digest) -> Option<Arc<LazyLayer>> {
        self.layers.get_layer(nodeid(digest)).filter(|layer| layer.digest() == *digest)
    }

    /// Mounts a layer read-only at the directory `at`; a mount of a former process there is replaced.
    ///
    /// `lowers` are the roots of the layers below, the uppermost first: a directory that this layer's tar uses and does
    /// not describe gets its owner, mode, time and attributes from there. Blocks on local disk and kernel only.
    ///
    /// # Errors
    ///
    /// When the layer is not known or the kernel refuses.
    pub fn mount(&self, digest: &Digest, at: &Path, lowers: &[PathBuf]) -> Result<(), MountError> {
        let layer = self.layer(digest).ok_or(MountError::Unknown(*digest))?;
        if layer.progress().proof == Proof::Quarantined {
            return Err(LazyError::Quarantined(*digest).into());
        }
        let ours = self.mounted_at(at) == Some(*digest);
        if !matches!(mountpoint::state(at), MountState::NotMounted) {
            if ours {
                return Ok(());
            }
            mountpoint::detach(at).map_err(system("detach the former mount at", at))?;
        }
        let image = self.image(&layer, lowers)?;
        let device = layer.complete().unwrap_or_else(|| self.root.join("data").join(file_name(digest)));
        erofs_mount::mount(&image, &device, at).map_err(system("mount EROFS at", at))?;
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner).insert(at.to_owned(), *digest);
        tracing::debug!(%digest, mount = %at.display(), device = %device.display(), "layer mounted");
        Ok(())
    }

    /// Takes the mount at `at` away, lazily; nothing mounted there is success.
    ///
    /// # Errors
    ///
    /// When umount2(2) fails.
    pub fn unmount(&self, at: &Path) -> Result<(), MountError> {
        mountpoint::detach(at).map_err(system("unmount", at))?;
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner).remove(at);
        Ok(())
    }

    /// Forgets a layer and deletes its files.
    ///
    /// # Errors
    ///
    /// While it is mounted, or when the files cannot be deleted.
    pub fn remove(&self, digest: &Digest) -> Result<(), MountError> {
        {
            let mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, layer)) = mounted.iter().find(|(_, layer)| *layer == digest) {
                return Err(MountError::Busy { layer: *layer, at: at.display().to_string() });
            }
        }
        let directory = self.directory(digest);
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.retain(|image| !image.starts_with(&directory));
        if let Some(layer) = self.layer(digest) {
            layer.retire();
            self.layers.0.write().unwrap_or_else(PoisonError::into_inner).remove(&nodeid(digest));
        }
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system("delete", &directory)(error)),
            _ => Ok(()),
        }
    }

    /// Makes the caches last, stops serving and takes the FUSE mount away. EROFS mounts of incomplete layers that are
    /// left give EIO from then on for what is not in the page cache.
    pub async fn shutdown(self: &Arc<Self>) {
        let this = self.clone();
        let stopped = tokio::task::spawn_blocking(move || this.shutdown_blocking()).await;
        if let Err(error) = stopped {
            tracing::error!(%error, "the lazy mounts were not shut down cleanly");
        }
    }

    fn shutdown_blocking(&self) {
        for layer in self.layers.all() {
            if let Err(error) = layer.commit() {
                tracing::warn!(digest = %layer.digest(), %error, "the span bitmap cannot be written");
            }
        }
        let data = self.root.join("data");
        if let Err(error) = mountpoint::detach(&data) {
            tracing::warn!(mount = %data.display(), %error, "the FUSE mount cannot be detached");
        }
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(session) = session {
            session.stop();
        }
    }

    /// Where everything is that is kept of a layer.
    pub fn directory(&self, digest: &Digest) -> PathBuf {
        self.root.join("layers").join(digest.hex())
    }

    fn mounted_at(&self, at: &Path) -> Option<Digest> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner).get(at).copied()
    }

    fn image(&self, layer: &LazyLayer, lowers: &[PathBuf]) -> Result<PathBuf, MountError> {
        let directory = self.directory(&layer.digest());
        let image = directory.join("erofs");
        if lowers.is_empty() {
            return Ok(image);
        }
        let digest = layer.digest();
        let implicit = erofs::implicit_directories(layer.index().entries())
            .map_err(|cause| MountError::Image { layer: digest, cause })?;
        let inherited = inherit::inherited(&implicit, lowers);
        let Some(variant) = inherit::variant(&inherited) else { return Ok(image) };
        let image = directory.join(format!("erofs-{variant}"));
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        write_image(&mut images, layer.index(), &image, &inherited)?;
        Ok(image)
    }
}

/// Writes the image unless it is there already. What a former process left is compared: it may be of another index of
/// the same layer, or of another version of the writer.
fn write_image(
    images: &mut HashSet<PathBuf>,
    index: &Index,
    path: &Path,
    inherited: &Inherited,
) -> Result<(), MountError> {
    if images.contains(path) {
        return Ok(());
    }
    let layer = index.layer();
    let inherit = |directory: &[u8]| inherited.get(directory).cloned();
    let image = erofs::write_image(index.entries(), index.tar_length(), layer.as_bytes(), &inherit)
        .map_err(|cause| MountError::Image { layer, cause })?;
    if std::fs::read(path).ok().as_ref() != Some(&image) {
        replace_file(path, &image).map_err(system("write image", path))?;
    }
    images.insert(path.to_owned());
    Ok(())
}

/// The layers by node number.
#[derive(Debug, Default)]
struct Layers(RwLock<HashMap<u64, Arc<LazyLayer>>>);

impl Layers {
    fn get_layer(&self, nodeid: u64) -> Option<Arc<LazyLayer>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&nodeid).cloned()
    }

    fn all(&self) -> Vec<Arc<LazyLayer>> {
        let mut layers: Vec<_> = self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        layers.sort_by_key(|layer| layer.digest());
        layers
    }
}

/// The layer's number in the FUSE mount: from its digest, so that it is the same in every process.
fn nodeid(digest: &Digest) -> u64 {
    let number = digest.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // 0 and 1 are taken.
    number.max(2)
}

fn file_name(digest: &Digest) -> String {
    format!("{}.tar", digest.hex())
}

fn file_of(layer: &LazyLayer) -> DataFile {
    DataFile { nodeid: nodeid(&layer.digest()), size: layer.device_length() }
}

impl DataFiles for Layers {
    fn lookup(&self, name: &[u8]) -> Option<DataFile> {
        let hex = std::str::from_utf8(name).ok()?.strip_suffix(".tar")?;
        let digest: Digest = format!("sha256:{hex}").parse().ok()?;
        let layer = self.get_layer(nodeid(&digest)).filter(|layer| layer.digest() == digest)?;
        Some(file_of(&layer))
    }

    fn get(&self, nodeid: u64) -> Option<DataFile> {
        Some(file_of(&*self.get_layer(nodeid)?))
    }

    fn list(&self) -> Vec<(Vec<u8>, DataFile)> {
        self.all().iter().map(|layer| (file_name(&layer.digest()).into_bytes(), file_of(layer))).collect()
    }

    fn read_cached(&self, nodeid: u64, range: Range<u64>) -> Option<Bytes> {
        self.get_layer(nodeid)?.read_cached(range)
    }

    fn read(&self, nodeid: u64, range: Range<u64>) -> BoxFuture<'static, Result<Bytes, Errno>> {
        let layer = self.get_layer(nodeid);
        Box::pin(async move { layer.ok_or(Errno::STALE)?.read(range).await.map_err(|_| Errno::IO) })
    }
}
