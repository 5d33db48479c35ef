//! Opens and mounts FUSE connections.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use crate::privileged;
use crate::privileged::spot::{Spot, path_of};

/// Opens `/dev/fuse`: one new connection, not yet mounted.
///
/// # Errors
///
/// When the kernel has no FUSE or the caller may not use it.
pub fn open_device() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::open("/dev/fuse", flags, Mode::empty())?)
}

/// The type of these mounts in the kernel's table.
pub const KIND: &str = "fuse.lapwing";

/// Mounts the connection behind `device` at the directory `at`, which is also what the table of mounts names as its source,
/// there and wherever a tree of it is mounted.
///
/// # Errors
///
/// When mount(2) refuses: not root, or `at` is no directory.
pub fn mount_at(device: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    match privileged::mounter() {
        Some(mounter) => mounter.mount_connection(device, at),
        None => mount_here(device, at, &Spot::at(at)?),
    }
}

/// [`mount_at`] with the rights of this process.
pub(crate) fn mount_here(device: BorrowedFd<'_>, at: &Path, spot: &Spot) -> io::Result<()> {
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", device.as_raw_fd());
    let options = CString::new(options).map_err(io::Error::other)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    Ok(rustix::mount::mount(at, path_of(&spot.open()?), KIND, flags, options.as_c_str())?)
}

/// Mounts a tree of a connection, whose root is the directory `tree` in its mount, read-only at the directory `at`, with set-id
/// bits, devices and programs as in any container's root.
///
/// # Errors
///
/// When mount(2) refuses.
pub fn mount_tree(tree: &Path, at: &Path) -> io::Result<()> {
    match privileged::mounter() {
        Some(mounter) => mounter.mount_tree(tree, at),
        None => {
            let tree = rustix::fs::open(tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            mount_tree_here(&tree, &Spot::at(at)?)
        }
    }
}

/// [`mount_tree`] with the rights of this process.
pub(crate) fn mount_tree_here(tree: &OwnedFd, spot: &Spot) -> io::Result<()> {
    rustix::mount::mount_bind(path_of(tree), path_of(&spot.open()?))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOATIME;
    // What is to be seen there now is the new mount.
    let read_only = spot.open().and_then(|mount| Ok(rustix::mount::mount_remount(path_of(&mount), flags, c"")?));
    read_only.inspect_err(|_| {
        // It must not stay as it is.
        let _ = spot.detach();
    })
}

/// Whether the connection behind `device` has a mount that somebody can still reach or uses. Where the kernel does not
/// tell, it does.
pub fn is_connected(device: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(device, PollFlags::empty())];
    let polled = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_err() || !fds[0].revents().intersects(PollFlags::ERR | PollFlags::NVAL)
}
