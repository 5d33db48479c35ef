//! Questions about mount points, and detaching them.

use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// Mounts that may be stacked on one directory before [`detach`] gives up.
const MAX_STACKED: usize = 16;

/// What is at a directory that should be a mount point.
#[derive(Debug)]
pub enum MountState {
    /// A mount that answers.
    Mounted,
    /// Nothing is mounted, or there is no such directory.
    NotMounted,
    /// Something is mounted and does not answer, such as a FUSE mount whose server is gone.
    Broken(io::Error),
}

/// What is at `path`.
pub fn state(path: &Path) -> MountState {
    match is_mount_root(path) {
        Ok(true) => MountState::Mounted,
        Ok(false) => MountState::NotMounted,
        Err(error @ (Errno::NOTCONN | Errno::STALE | Errno::IO | Errno::CONNABORTED)) => {
            MountState::Broken(error.into())
        }
        Err(_) => MountState::NotMounted,
    }
}

/// Kernels from 5.8 on tell; before, a mount of another filesystem shows by its device number.
fn is_mount_root(path: &Path) -> Result<bool, Errno> {
    let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    let parent = rustix::fs::statx(CWD, path.join(".."), AtFlags::empty(), StatxFlags::BASIC_STATS)?;
    Ok((found.stx_dev_major, found.stx_dev_minor) != (parent.stx_dev_major, parent.stx_dev_minor))
}

/// Takes every mount off `path`, lazily: what still uses one keeps it. Nothing mounted or no such path is success.
///
/// # Errors
///
/// When umount2(2) fails otherwise, or there are absurdly many.
pub fn detach(path: &Path) -> io::Result<()> {
    for _ in 0..MAX_STACKED {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(format!("more than {MAX_STACKED} mounts on {}", path.display())))
}

/// The mount points at and below the directory `path`, deepest first.
pub(crate) fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = parse(&std::fs::read("/proc/self/mountinfo")?, path);
    found.reverse();
    Ok(found)
}

/// `proc_pid_mountinfo(5)`: the fifth field is the mount point, with octal escapes.
fn parse(mountinfo: &[u8], below: &Path) -> Vec<PathBuf> {
    let points = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(unescape).filter(|point| point.starts_with(below)).collect()
}

fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        let (byte, next) = match octal {
            Some(digits) => {
                (digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')), &tail[3..])
            }
            None => (*first, tail),
        };
        bytes.push(byte);
        rest = next;
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Whether overlayfs can take `path` in its options: its separators cannot be escaped by containerd.
pub(crate) fn fits_mount_options(path: &Path) -> bool {
    !path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b',' | b'\\' | b'"' | b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_mount_points_below_a_directory() {
        let mountinfo = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 22 0:30 / /srv/a\\040b/7/fs ro - erofs none ro\n\
            31 30 0:31 / /srv/a\\040b/7/fs/proc rw - proc none rw\n\
            32 22 0:32 / /srv/a\\040bc rw - tmpfs none rw\n";
        let found = parse(mountinfo, Path::new("/srv/a b"));
        assert_eq!(found, [PathBuf::from("/srv/a b/7/fs"), PathBuf::from("/srv/a b/7/fs/proc")]);
    }

    #[test]
    fn knows_mount_roots() {
        assert!(matches!(state(Path::new("/proc")), MountState::Mounted));
        assert!(matches!(state(Path::new("/proc/self")), MountState::NotMounted));
        assert!(matches!(state(Path::new("/nonexistent")), MountState::NotMounted));
    }
}
