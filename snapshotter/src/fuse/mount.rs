//! Opens and mounts FUSE connections.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

/// Opens `/dev/fuse`: one new connection, not yet mounted.
///
/// # Errors
///
/// When the kernel has no FUSE or the caller may not use it.
pub fn open_device() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::open("/dev/fuse", flags, Mode::empty())?)
}

/// Mounts the connection behind `device` at the directory `at`.
///
/// # Errors
///
/// When mount(2) refuses: not root, or `at` is no directory.
pub fn mount_at(device: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", device.as_raw_fd());
    let options = CString::new(options).map_err(io::Error::other)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    Ok(rustix::mount::mount("lapwing", at, "fuse.lapwing", flags, options.as_c_str())?)
}

/// Whether the connection behind `device` has a mount that somebody can still reach or uses. Where the kernel does not
/// tell, it does.
pub fn is_connected(device: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(device, PollFlags::empty())];
    let polled = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_err() || !fds[0].revents().intersects(PollFlags::ERR | PollFlags::NVAL)
}
