//! The lazy layers of a machine: one FUSE mount that serves their tars, and an EROFS mount per use; or, where the kernel
//! cannot do that ([`Backend::Fuse`]), one FUSE mount that serves their trees, and a bind mount per use.
//!
//! ```text
//! <root>/data                      the FUSE mount: one file per layer, <digest>.tar; a directory per tree
//! <root>/layers/<digest>/erofs     metadata image, written here from the index
//!                        erofs-*   the same with attributes inherited from a certain stack of lower layers
//!                        tar       decompressed bytes, sparse
//!                        spans     which of them are there
//! ```
//!
//! The mounts outlive the process where somebody keeps the FUSE connection ([`crate::fuse::Keeping`]): reads wait, and
//! [`LazyMounts::take_up`] of the next process goes on with all of them, those too that no snapshot has any more. Where
//! nobody kept it, mounts over FUSE give EIO for what the page cache does not hold; [`LazyMounts::start`] of the next
//! process takes the dead mounts away, so that new containers work. Layers that were complete when mounted are not
//! affected: their device is the local file.
//!
//! So every EROFS mount of an image below `layers`, and every mount of a tree, that a process finds once it has started, is
//! in working order.

use std::collections::{HashMap, HashSet};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapwing_p2p::digest::Digest;

use super::bdi::Bdi;
use super::cache::replace_file;
use super::files::{KeptLayers, Layers, file_name};
use super::former;
use super::inherit::{self, Inherited};
use super::layer::{LazyLayer, Proof};
use super::recorder::Recorder;
use super::whole::{TarWriter, WholeTar};
use super::{Backend, LazyError, Options, erofs_mount};
use crate::erofs::{self, ErofsError};
use crate::fuse::{self, Handshake, HolderProgram, Keeping, Lengths, Purpose, Record, RecordError, Session};
use crate::index::Index;
use crate::mountpoint::{self, Mount, MountState};
use crate::source::LayerSource;

/// How long the kernel may take to end a FUSE connection whose last mount was detached.
const RELEASE: Duration = Duration::from_secs(1);

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
    /// What is kept of a layer that was mounted before cannot be used.
    #[error("layer {layer} cannot be opened again: {message}; remove the image and pull it again")]
    Lost {
        /// The layer.
        layer: Digest,
        /// What is wrong.
        message: String,
    },
    /// Another version's mounts are in use.
    #[error(
        "the lazy mounts at {at} live and cannot be taken up: {cause}. Reads of them wait: start the former version of \
         Lapwing again, or run `lapwing detach` once no container needs them"
    )]
    Former {
        /// Where.
        at: String,
        /// Why.
        cause: RecordError,
    },
    /// Somebody took the FUSE mount away under containers that use it.
    #[error(
        "{0} is not mounted any more: start Lapwing anew once no container uses layers of before, or restart the machine"
    )]
    Detached(String),
    /// A descriptor of living mounts is somewhere else.
    #[error(
        "the lazy mounts at {0} live, and who keeps their connection does not give it to this process; reads of them wait. \
         Start Lapwing the way it was started before (systemd's descriptor store is for its unit alone), or run \
         `lapwing detach` once no container needs them"
    )]
    Unreachable(String),
    /// Another process serves the mounts.
    #[error("the lazy mounts of {0} are served by another process: stop it first")]
    Served(String),
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

pub(super) fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MountError + use<> {
    let path = path.display().to_string();
    move |cause| MountError::System { what, path, cause }
}

/// The lazy layers of this machine and their mounts.
#[derive(Debug)]
pub struct LazyMounts {
    root: PathBuf,
    backend: Backend,
    layers: Arc<Layers>,
    connection: Mutex<Connection>,
    /// Whether the FUSE mount is where it should be; not when somebody detached it under a living connection.
    attached: bool,
    mounted: Mutex<HashMap<PathBuf, Digest>>,
    /// What the kernel has of the EROFS mounts that this process made.
    bdis: Mutex<HashMap<PathBuf, Bdi>>,
    /// Images that this process has compared with their index. Held while a layer's files are made: two that made the
    /// same at once would take them from under each other.
    images: Mutex<HashSet<PathBuf>>,
}

/// The FUSE connection in the course of this process; all empty once it has let go.
#[derive(Debug, Default)]
struct Connection {
    /// Taken up, and not served yet.
    former: Option<(OwnedFd, Record)>,
    session: Option<Session>,
    keeping: Option<Keeping>,
    /// Tells the next process when this one reads the connection no more. The last field, thus dropped last.
    lock: Option<File>,
}

impl LazyMounts {
    /// Makes the FUSE mount at `<root>/data`, in place of what a dead process left there, or takes up the one that lives.
    /// Nobody keeps it beyond this process. Must be called within a tokio runtime. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the directories cannot be made, FUSE is missing or forbidden, or a living mount cannot be taken up.
    pub fn start(root: &Path, options: Options) -> Result<Arc<Self>, MountError> {
        Self::start_kept(root, options, None)
    }

    /// The same, with the connection kept by a process of this program, and by systemd where it offers that.
    ///
    /// # Errors
    ///
    /// As for [`Self::start`].
    pub fn start_kept(root: &Path, options: Options, holder: Option<HolderProgram>) -> Result<Arc<Self>, MountError> {
        let (root, lock) = locked(root, former::TAKE_OVER)?;
        if let Some(former) = fuse::former(&root) {
            return Self::go_on(root, lock, options, holder, former);
        }
        let data = root.join("data");
        if former::is_alive(&data)? {
            return Err(MountError::Unreachable(data.display().to_string()));
        }
        let dead = former::detach_all(&root)?;
        if dead > 0 {
            tracing::warn!(
                mounts = dead,
                "nobody kept the lazy mounts of the former process: they are dead, and were taken away. Containers that \
                 still run on them get EIO for what is not in memory, until they are started anew"
            );
        }
        for directory in [&data, &root.join("layers")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(system("make directory", directory))?;
        }
        let backend = options.backend;
        let layers = Arc::new(Layers::new(&root, options));
        let device = fuse::open_device().map_err(system("open", Path::new("/dev/fuse")))?;
        fuse::mount_at(device.as_fd(), &data).map_err(system("mount FUSE at", &data))?;
        let kept = device.try_clone().map_err(system("serve the FUSE mount at", &data))?;
        let session = serve(device, Handshake::Pending(purpose_of(backend)), &layers)
            .map_err(system("serve the FUSE mount at", &data))?;
        let record = Record { terms: session.terms(), device: device_number(&data)? };
        let keeping = Keeping::start(&root, holder, &kept, &record).map_err(system("keep the FUSE mount at", &data))?;
        tracing::info!(mount = %data.display(), "serving lazy layers");
        let connection = Connection { former: None, session: Some(session), keeping: Some(keeping), lock: Some(lock) };
        Ok(Self::with(root, backend, layers, connection, true))
    }

    /// Takes up the mounts that a former process left alive, if there are any. [`Self::serve`] begins to answer.
    ///
    /// # Errors
    ///
    /// When they live and cannot be taken up.
    pub fn take_up(
        root: &Path,
        options: Options,
        holder: Option<HolderProgram>,
    ) -> Result<Option<Arc<Self>>, MountError> {
        let (root, lock) = locked(root, former::TAKE_OVER)?;
        fuse::former(&root).map(|former| Self::go_on(root, lock, options, holder, former)).transpose()
    }

    fn go_on(
        root: PathBuf,
        lock: File,
        options: Options,
        holder: Option<HolderProgram>,
        former: fuse::Former,
    ) -> Result<Arc<Self>, MountError> {
        let data = root.join("data");
        let record = former.record.map_err(|cause| MountError::Former { at: data.display().to_string(), cause })?;
        let attached = device_number(&data).is_ok_and(|device| device == record.device);
        let mount = data.display();
        tracing::info!(%mount, keeper = former.keeper, "taking up the lazy mounts of the former process");
        if !attached {
            tracing::error!(%mount, "the FUSE mount was taken away under containers that use it: they are served, and no layer is mounted lazily until they are gone and Lapwing is started anew");
        }
        let keeping =
            Keeping::start(&root, holder, &former.device, &record).map_err(system("keep the FUSE mount at", &data))?;
        let backend = options.backend;
        let layers = Arc::new(Layers::new(&root, options));
        let former = Some((former.device, record));
        let connection = Connection { former, session: None, keeping: Some(keeping), lock: Some(lock) };
        Ok(Self::with(root, backend, layers, connection, attached))
    }

    fn with(root: PathBuf, backend: Backend, layers: Arc<Layers>, connection: Connection, attached: bool) -> Arc<Self> {
        let (connection, mounted, images) = (Mutex::new(connection), Mutex::default(), Mutex::default());
        Arc::new(Self { root, backend, layers, connection, attached, mounted, bdis: Mutex::default(), images })
    }

    /// Answers requests for the layers that a former process mounted, from now on; `kept` brings each of them back when it
    /// is asked for. Until then reads of them wait.
    ///
    /// # Errors
    ///
    /// When threads or descriptors run out.
    pub fn serve(&self, kept: Arc<dyn KeptLayers>) -> Result<(), MountError> {
        self.layers.keep_by(kept);
        let mut connection = self.connection();
        if let Some((device, record)) = connection.former.take() {
            let data = self.root.join("data");
            let session = serve(device, Handshake::Done(record.terms), &self.layers);
            connection.session = Some(session.map_err(system("serve the FUSE mount at", &data))?);
        }
        Ok(())
    }

    /// Whether the mounts would survive this process.
    pub fn is_kept(&self) -> bool {
        self.connection().keeping.as_ref().is_some_and(Keeping::is_kept)
    }

    /// Takes all lazy mounts of `root` away, for good, while no process serves them: lazily, so that a container that
    /// still uses one keeps it, and waits. Gives how many, and whether something still uses them.
    ///
    /// # Errors
    ///
    /// While a process serves them, or when the system refuses.
    pub fn detach(root: &Path) -> Result<(usize, bool), MountError> {
        let (root, _lock) = locked(root, RELEASE)?;
        let device = device_number(&root.join("data"));
        let detached = former::detach_all(&root)?;
        // The kernel lets go of them a moment later. Who keeps the connection need not tell this process, but the kernel
        // lists all that are in use.
        let listed = device.map(|(_, minor)| PathBuf::from(format!("/sys/fs/fuse/connections/{minor}")));
        let start = Instant::now();
        while listed.as_ref().is_ok_and(|path| path.exists()) || fuse::former(&root).is_some() {
            if start.elapsed() > RELEASE {
                return Ok((detached, true));
            }
            std::thread::sleep(RELEASE / 50);
        }
        Ok((detached, false))
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
        self.add_with(index, source, None).await
    }

    /// [`Self::add`] for a layer that may have been read as a whole: `tar` came out of the pass that made this very index.
    ///
    /// # Errors
    ///
    /// As for [`Self::add`].
    pub async fn add_with(
        self: &Arc<Self>,
        index: Arc<Index>,
        source: Arc<dyn LayerSource>,
        tar: Option<WholeTar>,
    ) -> Result<Arc<LazyLayer>, MountError> {
        let this = self.clone();
        // Inside spawn_blocking the runtime's context is there, which the layer needs.
        let added = tokio::task::spawn_blocking(move || this.add_blocking(index, source, tar.as_ref())).await;
        added.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// [`Self::add_with`] for a thread that may block; within a tokio runtime's context.
    ///
    /// # Errors
    ///
    /// As for [`Self::add`].
    pub fn add_blocking(
        &self,
        index: Arc<Index>,
        source: Arc<dyn LayerSource>,
        tar: Option<&WholeTar>,
    ) -> Result<Arc<LazyLayer>, MountError> {
        let digest = index.layer();
        if let Some(known) = self.layers.get(&digest) {
            return Ok(known);
        }
        let directory = self.layers.directory(&digest);
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(system("make directory", &directory))?;
        write_image(&mut images, &index, &directory.join("erofs"), &Inherited::new())?;
        self.layers.open(index, source, tar)
    }

    /// Takes the tar of a layer that is being read as a whole, for [`Self::add_with`]; leaves `floor` bytes free on the disk.
    ///
    /// # Errors
    ///
    /// When the filesystem has no files without names.
    pub fn tar_writer(&self, floor: u64) -> io::Result<TarWriter> {
        TarWriter::new(&self.root.join("layers"), floor)
    }

    /// A layer that was added, by this process or a former one.
    ///
    /// # Errors
    ///
    /// When it is not known, or what is kept of it is damaged.
    pub fn reopen(&self, digest: &Digest) -> Result<Arc<LazyLayer>, MountError> {
        self.layers.reopen(digest)
    }

    /// A layer in memory.
    pub fn layer(&self, digest: &Digest) -> Option<Arc<LazyLayer>> {
        self.layers.get(digest)
    }

    /// Mounts a layer read-only at the directory `at`; what a former process mounted there stays if it is this layer.
    ///
    /// `lowers` are the roots of the layers below, the uppermost first: a directory that this layer's tar uses and does
    /// not describe gets its owner, mode, time and attributes from there. Blocks on local disk and kernel only.
    ///
    /// # Errors
    ///
    /// When the layer is not known or the kernel refuses.
    pub fn mount(&self, digest: &Digest, at: &Path, lowers: &[PathBuf]) -> Result<(), MountError> {
        // From here on nobody removes the layer.
        let before = self.lock_mounted().insert(at.to_owned(), *digest);
        let mounted = self.mount_reserved(digest, at, lowers, before);
        if mounted.is_err() {
            let mut all = self.lock_mounted();
            match before {
                Some(before) => all.insert(at.to_owned(), before),
                None => all.remove(at),
            };
        }
        mounted
    }

    fn mount_reserved(
        &self,
        digest: &Digest,
        at: &Path,
        lowers: &[PathBuf],
        before: Option<Digest>,
    ) -> Result<(), MountError> {
        let layer = self.layer(digest).ok_or(MountError::Unknown(*digest))?;
        if layer.progress().proof == Proof::Quarantined {
            return Err(LazyError::Quarantined(*digest).into());
        }
        let ours = before == Some(*digest);
        if !matches!(mountpoint::state(at), MountState::NotMounted) {
            if ours || self.is_mounted_at(at, digest)? {
                return Ok(());
            }
            tracing::info!(%digest, mount = %at.display(), "replacing a former mount");
            mountpoint::detach(at).map_err(system("detach the former mount at", at))?;
        }
        if !self.attached {
            return Err(MountError::Detached(self.root.join("data").display().to_string()));
        }
        let image = self.image(&layer, lowers)?;
        let data = self.root.join("data");
        let source = match self.backend {
            Backend::Erofs => {
                // What the kernel reads from the file itself nobody sees.
                let watched = layer.is_new() && self.layers.options().watch_first_start;
                let complete = layer.complete().filter(|_| !watched);
                let device = complete.unwrap_or_else(|| data.join(file_name(digest)));
                let bdi = erofs_mount::mount(&image, &device, at).map_err(system("mount EROFS at", at))?;
                if let Some(bdi) = bdi {
                    self.lock_bdis().insert(at.to_owned(), bdi);
                }
                if layer.complete().is_some() {
                    self.completed(digest);
                }
                device
            }
            Backend::Fuse => {
                let tree = data.join(self.layers.show(digest, &image)?);
                fuse::mount_tree(&tree, at).map_err(system("mount FUSE at", at))?;
                tree
            }
        };
        tracing::debug!(%digest, mount = %at.display(), source = %source.display(), "layer mounted");
        Ok(())
    }

    /// Takes the mount at `at` away, lazily; nothing mounted there is success.
    ///
    /// # Errors
    ///
    /// When umount2(2) fails.
    pub fn unmount(&self, at: &Path) -> Result<(), MountError> {
        mountpoint::detach(at).map_err(system("unmount", at))?;
        self.lock_mounted().remove(at);
        self.lock_bdis().remove(at);
        Ok(())
    }

    /// All of a layer has come: it is read as files of its disk are.
    pub fn completed(&self, digest: &Digest) {
        let Some(tar) = self.layer(digest).and_then(|layer| layer.complete()) else { return };
        let mounted = self.lock_mounted();
        let bdis = self.lock_bdis();
        for (at, _) in mounted.iter().filter(|(_, layer)| *layer == digest) {
            if let Some(bdi) = bdis.get(at) {
                bdi.follow_disk_of(&tar);
            }
        }
    }

    fn lock_bdis(&self) -> MutexGuard<'_, HashMap<PathBuf, Bdi>> {
        self.bdis.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a layer and deletes its files.
    ///
    /// # Errors
    ///
    /// While it is mounted, or when the files cannot be deleted.
    pub fn remove(&self, digest: &Digest) -> Result<(), MountError> {
        let directory = self.layers.directory(digest);
        let aside = self.layers.aside(digest);
        {
            // Nothing is deleted under the locks: it may be gigabytes.
            let mounted = self.lock_mounted();
            if let Some((at, layer)) = mounted.iter().find(|(_, layer)| *layer == digest) {
                return Err(MountError::Busy { layer: *layer, at: at.display().to_string() });
            }
            let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
            images.retain(|image| !image.starts_with(&directory));
            match self.layers.remove(digest, || std::fs::rename(&directory, &aside)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(system("rename", &directory)(error));
                }
                _ => {}
            }
        }
        match std::fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system("delete", &aside)(error)),
            _ => Ok(()),
        }
    }

    fn lock_mounted(&self) -> MutexGuard<'_, HashMap<PathBuf, Digest>> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the caches last and stops serving. What is kept and in use stays mounted, and reads of it wait for the next process. What is not
    /// is taken away: EROFS mounts of incomplete layers that are left give EIO from then on for what is not in the page cache.
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
        let Connection { session, keeping, lock: _lock, .. } = std::mem::take(&mut *self.connection());
        let data = self.root.join("data");
        // What nobody uses would only make those wait who happen upon it while no process serves it.
        if keeping.is_some_and(|keeping| keeping.is_kept()) && (shows_trees(&data) || !mountpoint::release(&data)) {
            tracing::info!(mount = %data.display(), "the lazy mounts are left to the next process");
            if let Some(session) = session {
                session.leave();
            }
            return;
        }
        if let Err(error) = mountpoint::detach(&data) {
            tracing::warn!(mount = %data.display(), %error, "the FUSE mount cannot be detached");
        }
        if let Some(session) = session {
            session.stop();
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that layer is to be seen at `at`, by whichever process it was mounted.
    fn is_mounted_at(&self, at: &Path, digest: &Digest) -> Result<bool, MountError> {
        let table = mountpoint::mounts().map_err(system("read", Path::new("/proc/self/mountinfo")))?;
        let seen = table.iter().rev().find(|mount| mount.at == at);
        Ok(seen.is_some_and(|mount| {
            former::is_erofs_of(mount, &self.layers.directory(digest)) || self.is_tree_of(mount, digest)
        }))
    }

    /// Whether a mount shows a tree of the layer, over the connection that is served.
    pub(super) fn is_tree_of(&self, mount: &Mount, digest: &Digest) -> bool {
        let data = self.root.join("data");
        former::is_tree_in(mount, &data)
            && device_number(&data).is_ok_and(|device| device == mount.device)
            && self.layers.tree_names(digest).iter().any(|name| mount.root == Path::new("/").join(name))
    }

    /// Takes down what is read of these layers.
    pub fn recorder(&self) -> &Recorder {
        self.layers.common().recorder()
    }

    /// Whether a layer is mounted anywhere by this process, or was found mounted by it.
    pub fn is_mounted(&self, digest: &Digest) -> bool {
        let mounted = self.lock_mounted();
        mounted.values().any(|layer| layer == digest)
    }

    /// The layers that are mounted anywhere.
    pub fn mounted(&self) -> Vec<Arc<LazyLayer>> {
        let digests: HashSet<_> = self.lock_mounted().values().copied().collect();
        digests.iter().filter_map(|digest| self.layer(digest)).collect()
    }

    /// Where everything is that is kept of a layer.
    pub fn directory(&self, digest: &Digest) -> PathBuf {
        self.layers.directory(digest)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn delete_aside(&self) {
        self.layers.delete_aside();
    }

    /// The layers of which anything is kept.
    pub(super) fn on_disk(&self) -> Vec<Digest> {
        self.layers.on_disk().collect()
    }

    fn image(&self, layer: &LazyLayer, lowers: &[PathBuf]) -> Result<PathBuf, MountError> {
        let digest = layer.digest();
        let implicit = match lowers {
            [] => Vec::new(),
            _ => erofs::implicit_directories(layer.index().entries())
                .map_err(|cause| MountError::Image { layer: digest, cause })?,
        };
        let inherited = inherit::inherited(&implicit, lowers)
            .map_err(system("ask what lower layers say of directories for", &self.layers.directory(&digest)))?;
        let name =
            inherit::variant(&inherited).map_or_else(|| "erofs".to_owned(), |variant| format!("erofs-{variant}"));
        let image = self.layers.directory(&digest).join(name);
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        write_image(&mut images, layer.index(), &image, &inherited)?;
        Ok(image)
    }
}

/// `root` as the kernel names it, with its lock.
fn locked(root: &Path, patience: Duration) -> Result<(PathBuf, File), MountError> {
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(system("make directory", root))?;
    let root = root.canonicalize().map_err(system("find", root))?;
    let lock = former::lock(&root, patience)?;
    Ok((root, lock))
}

const fn purpose_of(backend: Backend) -> Purpose {
    match backend {
        Backend::Erofs => Purpose::Devices,
        Backend::Fuse => Purpose::Trees,
    }
}

/// Whether trees of the FUSE mount at `data` are mounted: they do not keep it from being taken away.
fn shows_trees(data: &Path) -> bool {
    mountpoint::mounts()
        .is_ok_and(|table| table.iter().any(|mount| mount.at != data && former::is_tree_in(mount, data)))
}

fn serve(device: OwnedFd, handshake: Handshake, layers: &Arc<Layers>) -> io::Result<Session> {
    Session::start(device, handshake, Lengths::Exact, layers.clone(), tokio::runtime::Handle::current())
}

/// The device number of what is mounted at `data`, as the table of mounts tells it: asking the filesystem itself could
/// wait for whoever is to serve it.
fn device_number(data: &Path) -> Result<(u32, u32), MountError> {
    let table = mountpoint::mounts().map_err(system("read", Path::new("/proc/self/mountinfo")))?;
    let mount = table.iter().rev().find(|mount| mount.at == data);
    mount.map(|mount| mount.device).ok_or_else(|| MountError::Detached(data.display().to_string()))
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
