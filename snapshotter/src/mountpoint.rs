//! Questions about mount points, and detaching them.

use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::privileged;
use crate::privileged::spot::Spot;

mod namespaces;

pub(crate) use namespaces::{mounts_of_all, tables_of_all};

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
    match privileged::mounter() {
        Some(mounter) => mounter.detach(path),
        None => detach_here(path),
    }
}

/// [`detach`] with the rights of this process.
pub(crate) fn detach_here(path: &Path) -> io::Result<()> {
    match Spot::at(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        spot => spot?.detach(),
    }
}

/// Takes the mount off `path` unless something uses it; whether it is gone.
pub(crate) fn release(path: &Path) -> bool {
    match privileged::mounter() {
        Some(mounter) => mounter.release(path).unwrap_or(false),
        None => Spot::at(path).is_ok_and(|spot| spot.release()),
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where.
    pub(crate) at: PathBuf,
    /// Which of the filesystem's directories is to be seen there.
    pub(crate) root: PathBuf,
    /// Device number of the filesystem, major and minor.
    pub(crate) device: (u32, u32),
    /// The filesystem's type.
    pub(crate) kind: Vec<u8>,
    /// What was mounted: for an image, its file.
    pub(crate) source: PathBuf,
    /// The filesystem's own options, as they were given, separated by commas; escaped.
    pub(crate) options: Vec<u8>,
}

/// All mounts, in the order in which they were made: of those at one directory the last is to be seen.
pub(crate) fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount points at and below the directory `path`, deepest first.
pub(crate) fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let below = mounts()?.into_iter().map(|mount| mount.at).filter(|point| point.starts_with(path));
    let mut found: Vec<_> = below.collect();
    found.reverse();
    Ok(found)
}

/// `proc_pid_mountinfo(5)`; optional fields end with a hyphen.
fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(|line| parse_line(&line.split(|byte| *byte == b' ').collect::<Vec<_>>())).collect()
}

fn parse_line(fields: &[&[u8]]) -> Option<Mount> {
    let end = fields.iter().position(|field| *field == b"-")?;
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    Some(Mount {
        at: unescape(fields.get(4)?),
        root: unescape(fields.get(3)?),
        device: (major.parse().ok()?, minor.parse().ok()?),
        kind: fields.get(end + 1)?.to_vec(),
        source: unescape(fields.get(end + 2)?),
        options: fields.get(end + 3).map(|options| options.to_vec()).unwrap_or_default(),
    })
}

/// A path as `/proc` writes it.
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
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
    fn understands_the_table_of_mounts() {
        let mountinfo = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 22 0:30 / /srv/a\\040b/7/fs ro shared:1 master:2 - erofs /srv/a\\040b/erofs ro\n\
            31 30 0:31 / /srv/a\\040b/7/fs/proc rw - proc none rw\n\
            32 22 0:32 / /srv/a\\040bc rw - tmpfs none rw\n";
        let found = parse(mountinfo);
        let points: Vec<_> = found.iter().map(|mount| mount.at.to_str().unwrap()).collect();
        assert_eq!(points, ["/", "/srv/a b/7/fs", "/srv/a b/7/fs/proc", "/srv/a bc"]);
        let (at, root, source) = ("/srv/a b/7/fs".into(), "/".into(), "/srv/a b/erofs".into());
        let (kind, options) = (b"erofs".to_vec(), b"ro".to_vec());
        assert_eq!(found[1], Mount { at, root, device: (0, 30), kind, source, options });
    }

    #[test]
    fn knows_mount_roots() {
        assert!(matches!(state(Path::new("/proc")), MountState::Mounted));
        assert!(matches!(state(Path::new("/proc/self")), MountState::NotMounted));
        assert!(matches!(state(Path::new("/nonexistent")), MountState::NotMounted));
    }
}
