//! Files and directories of the store: made, found again after a crash, replaced in one step, removed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, Rlimit};

use super::bitmap::Bitmap;
use super::error::StoreError;
use super::journal::{self, JOURNAL};
use crate::bitfield::Bitfield;
use crate::changes;
use crate::digest::Digest;
use crate::failpoint;
use crate::limits::{MAX_BITMAP_FILE_LENGTH, MAX_MEMORY_BLOBS};

pub(super) const DATA: &str = "data";
pub(super) const PIECES: &str = "pieces";
pub(super) const METAINFO: &str = "metainfo";
/// What is older than this the kernel has written by itself (`vm.dirty_expire_centisecs`, the journal's commits), many times over.
const WRITTEN_BY_NOW: Duration = Duration::from_secs(600);
const TEMPORARY: &str = "tmp";
const LOCK: &str = "lock";

/// The directory of all blobs, held by this process alone, and the bytes it has in it. In memory it is only a name.
#[derive(Debug)]
pub(super) struct BlobRoot {
    /// `<root>/blobs/sha256`
    pub(super) path: PathBuf,
    /// Bytes of pieces that are there or being written.
    pub(super) used: AtomicU64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The file is locked as long as this value lives.
    Disk {
        lock: File,
    },
    Memory {
        max_blobs: usize,
    },
    /// There is no room.
    Nowhere,
}

impl Drop for BlobRoot {
    fn drop(&mut self) {
        // Closing is not enough: a child process that has not yet called exec has the descriptor too. When unlocking
        // fails, the lock goes with the last of them.
        if let Place::Disk { lock } = &self.place {
            let _ = lock.unlock();
        }
    }
}

impl BlobRoot {
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let blobs = root.join("blobs");
        let path = blobs.join("sha256");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|error| StoreError::io("make directory", root, error))?;
        // The root itself may be a link to a larger disk; nothing below it may.
        let real = fs::canonicalize(root).map_err(|error| StoreError::io("examine", root, error))?;
        for directory in [&real, &blobs, &path] {
            make_private(directory)?;
        }
        for directory in [&real, &blobs] {
            sync_directory(directory)?;
        }
        Ok(Self { place: Place::Disk { lock: lock(&blobs.join(LOCK))? }, used: AtomicU64::new(0), path })
    }

    /// Nothing on disk. Half of the descriptors that the process may have are for blobs.
    pub(super) fn in_memory(root: &Path) -> Self {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        if let Some(most) = limit.maximum {
            // Best effort: with less there are fewer blobs.
            let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) });
        }
        let descriptors = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let max_blobs = usize::try_from(descriptors / 2).unwrap_or(usize::MAX).min(MAX_MEMORY_BLOBS);
        Self { place: Place::Memory { max_blobs }, used: AtomicU64::new(0), path: root.join("blobs/sha256") }
    }

    /// For blobs that cannot be written.
    pub(super) fn nowhere(path: &Path) -> Self {
        Self { place: Place::Nowhere, used: AtomicU64::new(0), path: path.to_owned() }
    }

    /// Whether nothing is on disk.
    pub(super) const fn is_memory(&self) -> bool {
        matches!(self.place, Place::Memory { .. } | Place::Nowhere)
    }

    pub(super) const fn is_nowhere(&self) -> bool {
        matches!(self.place, Place::Nowhere)
    }

    /// Most blobs that may have their descriptor for good.
    pub(super) const fn max_blobs(&self) -> usize {
        match self.place {
            Place::Disk { .. } | Place::Nowhere => usize::MAX,
            Place::Memory { max_blobs } => max_blobs,
        }
    }

    /// An empty data file for a blob of `length` bytes.
    pub(super) fn create(&self, digest: &Digest, length: u64) -> Result<File, StoreError> {
        match self.place {
            Place::Disk { .. } => create(&self.blob(digest), length),
            Place::Memory { .. } | Place::Nowhere => {
                memory_file(length).map_err(|error| StoreError::io("make", &self.blob(digest), error))
            }
        }
    }

    /// Removes what is on disk of a blob.
    pub(super) fn discard(&self, digest: &Digest) -> Result<(), StoreError> {
        match self.place {
            Place::Disk { .. } => discard(&self.blob(digest)),
            Place::Memory { .. } | Place::Nowhere => Ok(()),
        }
    }

    /// The directory of one blob.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.path.join(&hex[..2]).join(hex)
    }

    /// Bytes that may still be written to its filesystem.
    pub(super) fn free_bytes(&self) -> Result<u64, StoreError> {
        if self.is_memory() {
            return Ok(u64::MAX);
        }
        let examined = rustix::fs::statvfs(&self.path);
        let stat = examined.map_err(|error| StoreError::io("examine", &self.path, error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn memory_file(length: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("lapwing-blob", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.set_len(length)?;
    Ok(file)
}

/// Makes `directory` unless it is there; refuses one in which others could have put something.
fn make_private(directory: &Path) -> Result<(), StoreError> {
    make_directory(directory)?;
    let failed = |error| StoreError::io("examine", directory, error);
    let insecure = |reason: String| StoreError::Insecure { path: directory.display().to_string(), reason };
    let metadata = fs::symlink_metadata(directory).map_err(failed)?;
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if !metadata.is_dir() {
        return Err(insecure("it is not a directory; move it away".to_owned()));
    }
    if owner != own {
        return Err(insecure(format!("it belongs to user {owner}, expected {own}; move it away or chown it")));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(insecure(format!(
            "others may write to it (mode {mode:03o}); move it away, or chmod 0700 if you trust it"
        )));
    }
    if mode & 0o077 != 0 {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

fn make_directory(directory: &Path) -> Result<(), StoreError> {
    match changes::make_directory(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(StoreError::io("make directory", directory, error))
        }
        _ => Ok(()),
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let failed = |error| StoreError::io("lock", path, error);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.display().to_string())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// A blob as it was found on disk.
pub(super) struct Found {
    pub(super) data: File,
    pub(super) bitmap: Bitmap,
    pub(super) last_use: SystemTime,
}

/// Reads a blob's directory. What cannot be believed is removed from disk and from the answer; an error means that the
/// disk refused, not that the blob is damaged.
pub(super) fn recover(directory: &Path, digest: &Digest) -> Result<Option<Found>, StoreError> {
    let bitmap = read_bitmap(directory, digest)?.or_else(|reason| {
        let layout = journal::layout(directory, digest).ok_or(reason)?;
        Ok::<_, String>(Bitmap { layout, have: Bitfield::empty(layout.piece_count()), verified: false })
    });
    let found = match bitmap {
        Ok(bitmap) => open_data(directory, digest, bitmap)?,
        Err(reason) => Err(reason),
    };
    match found {
        Ok(mut found) => {
            replay_journal(directory, digest, &mut found);
            Ok(Some(found))
        }
        Err(reason) => {
            tracing::warn!(%digest, reason, "stored pieces are not usable and will be fetched again");
            discard(directory)?;
            Ok(None)
        }
    }
}

/// Takes up what a killed process had written and not flushed; a bitmap file then speaks of it.
fn replay_journal(directory: &Path, digest: &Digest, found: &mut Found) {
    let mut bitmap = found.bitmap.clone();
    if !journal::replay(directory, digest, bitmap.layout, &found.data, &mut bitmap.have) {
        return;
    }
    let synced = changes::sync_data(&found.data).map_err(|error| StoreError::io("sync", &directory.join(DATA), error));
    failpoint::reach("replayed.synced");
    let ancestors = || directory.ancestors().skip(1).take(2).try_for_each(sync_directory);
    match synced.and_then(|()| ancestors()).and_then(|()| replace(directory, PIECES, &bitmap.encode(digest))) {
        Ok(()) => {
            tracing::debug!(%digest, pieces = bitmap.have.count() - found.bitmap.have.count(), "taken up from the journal");
            found.bitmap = bitmap;
        }
        // They stay in the journal, and are fetched again for now.
        Err(error) => tracing::warn!(%digest, %error, "pieces of a killed process cannot be taken up"),
    }
}

/// The bitmap file, or the reason not to believe it.
fn read_bitmap(directory: &Path, digest: &Digest) -> Result<Result<Bitmap, String>, StoreError> {
    let path = directory.join(PIECES);
    match read(&path, MAX_BITMAP_FILE_LENGTH) {
        Ok(bytes) => Ok(Bitmap::decode(digest, &bytes).map_err(|reason| format!("{}: {reason}", path.display()))),
        Err(error) if is_foreign(&error) => Ok(Err(format!("{}: {error}", path.display()))),
        Err(error) => Err(StoreError::io("read", &path, error)),
    }
}

/// The data file with the pieces that lie within it, or the reason not to believe any.
fn open_data(directory: &Path, digest: &Digest, mut bitmap: Bitmap) -> Result<Result<Found, String>, StoreError> {
    let path = directory.join(DATA);
    let failed = |error| StoreError::io("open", &path, error);
    let data = match open_plain(&path, OpenOptions::new().read(true).write(true)) {
        Ok(data) => data,
        Err(error) if is_foreign(&error) => return Ok(Err(format!("{}: {error}", path.display()))),
        Err(error) => return Err(failed(error)),
    };
    let metadata = data.metadata().map_err(failed)?;
    let expected = bitmap.layout.length();
    if !metadata.is_file() || metadata.len() > expected {
        return Ok(Err(format!("{}: expected a file of {expected} bytes", path.display())));
    }
    if metadata.len() < expected {
        tracing::warn!(%digest, found_bytes = metadata.len(), expected, "stored blob was cut short");
        let lost: Vec<_> =
            bitmap.have.iter().filter(|&piece| bitmap.layout.range(piece).end > metadata.len()).collect();
        for piece in lost {
            bitmap.have.clear(piece);
        }
        bitmap.verified = false;
        // The bits go before the hole comes that would read as zeros.
        replace(directory, PIECES, &bitmap.encode(digest))?;
        changes::resize(&data, expected).map_err(failed)?;
        failpoint::reach("data.lengthened");
    }
    Ok(Ok(Found { data, bitmap, last_use: metadata.modified().map_err(failed)? }))
}

/// The bytes of a file; of one longer than `limit` only so many that they are one too many.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path, OpenOptions::new().read(true))?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open_plain(path: &Path, options: &OpenOptions) -> io::Result<File> {
    // Not blocking, so that a named pipe put there does not hang the start; no effect on a regular file.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    options.clone().custom_flags(flags.bits() as i32).open(path)
}

/// Whether the file is missing or of another kind, rather than the disk failing.
fn is_foreign(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    // A symbolic link, given O_NOFOLLOW; its ErrorKind is not stable.
    let link = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    link || matches!(error.kind(), NotFound | IsADirectory | NotADirectory)
}

/// Makes the directory of a blob of `length` bytes with an empty sparse data file. Without a bitmap file it counts for
/// nothing after a crash.
fn create(directory: &Path, length: u64) -> Result<File, StoreError> {
    if let Some(shard) = directory.parent() {
        make_directory(shard)?;
    }
    discard(directory)?;
    make_directory(directory)?;
    failpoint::reach("blob.created");
    let path = directory.join(DATA);
    let failed = |error| StoreError::io("make", &path, error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let data = changes::open(&path, &options, false).map_err(failed)?;
    failpoint::reach("data.created");
    changes::resize(&data, length).map_err(failed)?;
    failpoint::reach("data.sized");
    Ok(data)
}

/// Removes a blob's directory; the bitmap first, so that a crash in between leaves nothing that could be believed.
fn discard(directory: &Path) -> Result<(), StoreError> {
    for name in [PIECES, JOURNAL, TEMPORARY, METAINFO, DATA] {
        remove(&directory.join(name))?;
        failpoint::reach_step("discarded", name);
    }
    // Also what somebody else put there: the directory is the store's own.
    let removed = match changes::remove_directory(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", directory, error)),
        _ => Ok(()),
    };
    failpoint::reach_step("discarded", "directory");
    removed
}

/// Removes a file; a directory in its place, or nothing, is left to [`discard`].
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match changes::remove(path) {
        Err(error) if !is_foreign(&error) && !path.is_dir() => Err(StoreError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Gives `directory/name` these bytes in one step: after a crash it has the old or the new ones, after return the new.
pub(super) fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = directory.join(TEMPORARY);
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = changes::open(&temporary, &options, true)?;
        failpoint::reach_step(name, "opened");
        failpoint::reach_half(name, || drop(changes::write_at(&file, &bytes[..bytes.len() / 2], 0)));
        changes::write_at(&file, bytes, 0)?;
        failpoint::reach_step(name, "written");
        changes::sync_all(&file)?;
        failpoint::reach_step(name, "synced");
        changes::rename(&temporary, &directory.join(name))
    };
    if let Err(error) = write() {
        // Best effort: on a full disk even the fragment counts. What stays is overwritten by the next attempt.
        let _ = changes::remove(&temporary);
        return Err(StoreError::io("write", &directory.join(name), error));
    }
    failpoint::reach_step(name, "renamed");
    sync_directory(directory)?;
    failpoint::reach_step(name, "durable");
    Ok(())
}

/// Has the names in a directory on disk, if one came so lately that only the kernel may know of it: it writes by itself within a minute. A disk
/// takes a good part of a millisecond for each, and there may be tens of thousands.
pub(super) fn sync_what_is_new(directory: &Path) -> Result<(), StoreError> {
    let changed = fs::metadata(directory).and_then(|found| found.modified());
    let changed = changed.map_err(|error| StoreError::io("examine", directory, error))?;
    // In the future, as a clock that was set back has it: nobody knows.
    if changed.elapsed().is_ok_and(|age| age > WRITTEN_BY_NOW) { Ok(()) } else { sync_directory(directory) }
}

/// Makes the entries of `directory` durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    changes::sync_directory(directory).map_err(|error| StoreError::io("sync", directory, error))
}

/// The blobs that have a directory below `root`. Other names are left alone.
pub(super) fn scan(root: &Path) -> Result<Vec<Digest>, StoreError> {
    let mut digests = Vec::new();
    for shard in entries(root)? {
        if !is_directory(&shard) {
            tracing::warn!(path = %shard.display(), "not a directory of the chunk store, left alone");
            continue;
        }
        for blob in entries(&shard)? {
            let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match Digest::from_own_hex(&name) {
                Some(digest) if shard.ends_with(&name[..2]) && is_directory(&blob) => digests.push(digest),
                _ => tracing::warn!(path = %blob.display(), "not a blob of the chunk store, left alone"),
            }
        }
    }
    Ok(digests)
}

/// Whether it is a directory itself, not a link to one.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|error| StoreError::io("list", directory, error))
}
