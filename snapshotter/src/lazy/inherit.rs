//! Attributes of directories that a layer needs and only the layers below describe.
//!
//! Over a merged directory overlayfs shows the attributes of the uppermost layer that has it. So where a tar names
//! `a/b/c` without `a` and `a/b`, containerd copies theirs from the layers below as it extracts (`mkparent`); here they
//! go into an image of the layer's own for that stack.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::erofs::Attributes;
use crate::limits::MAX_EROFS_XATTR_BYTES;
use crate::privileged;

/// Attributes by path.
pub(super) type Inherited = BTreeMap<Vec<u8>, Attributes>;

/// Looks the directories up in the lower layers' roots, the uppermost first.
///
/// # Errors
///
/// When the mounter does not answer.
pub(super) fn inherited(directories: &[Vec<u8>], lowers: &[PathBuf]) -> io::Result<Inherited> {
    match privileged::mounter().filter(|_| !directories.is_empty() && !lowers.is_empty()) {
        Some(mounter) => mounter.attributes(directories, lowers),
        None => Ok(inherited_here(directories, lowers)),
    }
}

/// [`inherited`] with the rights of this process.
pub(crate) fn inherited_here(directories: &[Vec<u8>], lowers: &[PathBuf]) -> Inherited {
    directories.iter().filter_map(|path| Some((path.clone(), lookup(path, lowers)?))).collect()
}

/// A name for the image with these attributes; `None` when there are none.
pub(super) fn variant(inherited: &Inherited) -> Option<String> {
    if inherited.is_empty() {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (path, attributes) in inherited {
        field(path);
        field(&attributes.mode.to_le_bytes());
        field(&attributes.uid.to_le_bytes());
        field(&attributes.gid.to_le_bytes());
        field(&attributes.mtime.to_le_bytes());
        field(&attributes.mtime_nanos.to_le_bytes());
        field(&attributes.xattrs.len().to_le_bytes());
        for (name, value) in &attributes.xattrs {
            field(name);
            field(value);
        }
    }
    Some(hasher.finalize().to_hex()[..32].to_owned())
}

fn lookup(path: &[u8], lowers: &[PathBuf]) -> Option<Attributes> {
    for lower in lowers {
        match open_in(lower, path) {
            Ok(found) => return attributes(&found),
            Err(Errno::NOENT) => {}
            Err(_) => return None,
        }
    }
    None
}

fn open_in(root: &Path, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty())?;
    rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

fn attributes(found: &OwnedFd) -> Option<Attributes> {
    let stat = rustix::fs::fstat(found).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return None;
    }
    // The attribute calls refuse descriptors of O_PATH; through /proc they go.
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let mut xattrs = BTreeMap::new();
    for name in xattr_names(&path) {
        // containerd copies no trusted attributes up.
        if !name.starts_with(b"trusted.")
            && let Some(value) = xattr_value(&path, &name)
        {
            xattrs.insert(name, value);
        }
    }
    Some(Attributes {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_nanos: stat.st_mtime_nsec as u32,
        xattrs,
    })
}

fn xattr_names(path: &str) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let length = rustix::fs::listxattr(path, &mut buffer[..]).unwrap_or(0);
    buffer[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

fn xattr_value(path: &str, name: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = vec![0; MAX_EROFS_XATTR_BYTES];
    let length = rustix::fs::getxattr(path, OsStr::from_bytes(name), &mut buffer[..]).ok()?;
    buffer.truncate(length);
    Some(buffer)
}
