//! A place where something is mounted: the directory that it lies in, by a descriptor, and its name there.
//!
//! What is mounted is not held open: it could not be taken away then.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// Mounts that may be stacked on one directory before [`Spot::detach`] gives up.
const MAX_STACKED: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Spot {
    parent: OwnedFd,
    name: OsString,
}

impl Spot {
    /// The one at `path`, wherever that leads.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let (parent, name) = split(path)?;
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent =
            rustix::fs::openat(CWD, parent, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self { parent, name })
    }

    /// The one at `path` below the directory `root`; without links.
    pub(crate) fn beneath(root: impl AsFd, path: &Path) -> io::Result<Self> {
        let (parent, name) = split(path)?;
        let parent = match parent.as_os_str().is_empty() {
            true => root.as_fd().try_clone_to_owned()?,
            false => open_beneath(root, parent, OFlags::DIRECTORY)?,
        };
        Ok(Self { parent, name })
    }

    /// The directory that is to be seen there now.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.parent, &self.name, flags, Mode::empty())?)
    }

    /// A path by which the kernel finds it, as long as this is there.
    pub(crate) fn path(&self) -> PathBuf {
        path_of(&self.parent).join(&self.name)
    }

    /// Takes every mount off it, lazily: what still uses one keeps it. Nothing mounted is success.
    pub(crate) fn detach(&self) -> io::Result<()> {
        for _ in 0..MAX_STACKED {
            match rustix::mount::unmount(self.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other(format!("more than {MAX_STACKED} mounts on {}", Path::new(&self.name).display())))
    }

    /// Takes the mount off it unless something uses it; whether it is gone.
    pub(crate) fn release(&self) -> bool {
        rustix::mount::unmount(self.path(), UnmountFlags::NOFOLLOW).is_ok()
    }
}

/// What is at `path` below the directory `root`; without links.
pub(crate) fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// The path of what a descriptor is of.
pub(crate) fn path_of(descriptor: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

fn split(path: &Path) -> io::Result<(&Path, OsString)> {
    let parts = (path.parent(), path.file_name().map(OsStr::to_owned));
    let (Some(parent), Some(name)) = parts else { return Err(io::ErrorKind::InvalidInput.into()) };
    Ok((parent, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_beneath_a_directory_leads_out_of_it() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        std::fs::create_dir_all(root.join("data")).unwrap();
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        std::os::unix::fs::symlink("data", root.join("inner")).unwrap();
        let top = std::fs::File::open(&root).unwrap();
        let open = |path: &str| Spot::beneath(&top, Path::new(path)).and_then(|spot| spot.open());
        assert!(open("data").is_ok());
        for path in ["link", "link/etc", "inner", "inner/x", "../root/data", "/etc", ".."] {
            assert!(open(path).is_err(), "{path}");
        }
        // What is not below at all, but is there.
        assert!(Spot::at(Path::new("/etc")).unwrap().open().is_ok());
    }
}
