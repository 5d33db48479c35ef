//! What a former process left: its lock, until it is really gone, and mounts that live on or are dead.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::mounts::{MountError, system};
use crate::mountpoint::{self, Mount};
use crate::privileged;

/// How long a process that was killed may take to be gone: its threads end what they are doing in the kernel first.
pub(super) const TAKE_OVER: Duration = Duration::from_secs(20);
/// How soon the kernel refuses what concerns a dead FUSE connection.
const ANSWER: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// Waits until this process alone serves the lazy mounts of `root`.
///
/// The lock goes with the last thread that had the former process's descriptors, so nothing reads the FUSE connection any
/// more when it is had, and what was read and not answered can be asked for again without losing any.
pub(super) fn lock(root: &Path, patience: Duration) -> Result<File, MountError> {
    let path = root.join("lazy.lock");
    let failed = || system("lock", &path);
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(failed())?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if start.elapsed() < patience => std::thread::sleep(LOOK),
            Err(std::fs::TryLockError::WouldBlock) => return Err(MountError::Served(root.display().to_string())),
            Err(std::fs::TryLockError::Error(error)) => return Err(failed()(error)),
        }
    }
}

/// Whether a FUSE mount is at `data` that is not dead: it does not answer, but neither does it refuse.
pub(super) fn is_alive(data: &Path) -> Result<bool, MountError> {
    let table = mountpoint::mounts().map_err(system("read", Path::new("/proc/self/mountinfo")))?;
    if !table.iter().any(|mount| mount.at == data) {
        return Ok(false);
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let asked = data.to_owned();
    // Of all questions only this one is never answered from the kernel's memory. The thread may wait for good.
    std::thread::spawn(move || sender.send(rustix::fs::statfs(&asked).is_ok()));
    Ok(receiver.recv_timeout(ANSWER).is_err())
}

/// Detaches every mount that a process made for the lazy layers of `root`, and gives their number.
pub(super) fn detach_all(root: &Path) -> Result<usize, MountError> {
    let detached = match privileged::mounter() {
        Some(mounter) => mounter.detach_all(root),
        None => detach_all_here(root),
    };
    detached.map_err(system("detach the former mounts of", root))
}

/// [`detach_all`] with the rights of this process.
pub(crate) fn detach_all_here(root: &Path) -> io::Result<usize> {
    let (data, layers) = (root.join("data"), root.join("layers"));
    let table = mountpoint::mounts()?;
    let is_ours = |mount: &Mount| mount.at == data || is_erofs_of(mount, &layers) || is_tree_in(mount, &data);
    let mut detached = 0;
    for mount in table.iter().rev().filter(|mount| is_ours(mount)) {
        let named = |error| io::Error::other(format!("{}: {error}", mount.at.display()));
        mountpoint::detach_here(&mount.at).map_err(named)?;
        detached += 1;
    }
    Ok(detached)
}

/// Whether a mount shows an image that lies in or below `directory`.
pub(super) fn is_erofs_of(mount: &Mount, directory: &Path) -> bool {
    mount.kind == b"erofs" && mount.source.starts_with(directory)
}

/// Whether a mount shows the FUSE mount at `data`, or a tree of it.
pub(super) fn is_tree_in(mount: &Mount, data: &Path) -> bool {
    mount.kind == crate::fuse::KIND.as_bytes() && mount.source == data
}
