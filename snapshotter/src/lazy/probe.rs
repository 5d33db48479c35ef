//! Finds out whether this kernel mounts lazily and fails safely, by doing it.
//!
//! A tiny image is mounted over a FUSE device, read, and read again while the device answers short: a kernel that makes
//! zeros of that (Linux before 7.0 without commit eade54040384) must not be trusted with a layer.

use std::fs::DirBuilder;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::cache::replace_file;
use super::erofs_mount;
use crate::erofs;
use crate::fuse::{self, DataFile, DataFiles, Handshake, Lengths, Purpose, Session};
use crate::mountpoint;
use crate::tree::{Entry, Extent, Kind};

/// The first kernel whose file-backed EROFS mounts are sound with blocks of 512 bytes.
const FIRST_KERNEL: (u32, u32, u32) = (6, 12, 2);

/// What was found to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Support {
    /// The kernel's release.
    pub kernel: String,
}

/// Why layers cannot be mounted lazily on this machine.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// The kernel is too old.
    #[error("kernel {0} mounts no EROFS over files; 6.12.2 or newer is needed")]
    Kernel(String),
    /// The kernel is too old for FUSE trees, too.
    #[error("kernel {0} has no openat2; 5.6 or newer is needed")]
    Old(String),
    /// A filesystem is not there.
    #[error("the kernel has no {0}; load the module of that name")]
    Filesystem(&'static str),
    /// The directory is on tmpfs or another filesystem whose files EROFS does not mount.
    #[error(
        "EROFS mounts no files on the filesystem of {0}; choose a directory on ext4, xfs or btrfs, not tmpfs or overlayfs"
    )]
    Place(PathBuf),
    /// A step of the trial failed.
    #[error("the trial mount failed: {what}: {cause}")]
    Trial {
        /// The step.
        what: &'static str,
        /// The system's error.
        cause: io::Error,
    },
    /// The kernel takes a short answer for the truth.
    #[error("kernel {0} turns short reads of an EROFS device into zeros; a kernel with commit eade54040384 is needed")]
    ShortReads(String),
}

/// Tries everything that lazy mounts rely on, with files under `directory` (on the filesystem that will hold the
/// images), which it removes again. Must be called within a tokio runtime; blocks for some milliseconds.
///
/// # Errors
///
/// With the reason why layers must be pulled whole on this machine.
pub fn probe(directory: &Path) -> Result<Support, Unsupported> {
    let directory =
        &directory.canonicalize().map_err(|cause| Unsupported::Trial { what: "find the directory", cause })?;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    if version(&kernel).is_none_or(|version| version < FIRST_KERNEL) {
        return Err(Unsupported::Kernel(kernel));
    }
    for filesystem in ["erofs", "fuse"] {
        if !has_filesystem(filesystem) {
            return Err(Unsupported::Filesystem(filesystem));
        }
    }
    let trial = directory.join(format!("probe-{}", std::process::id()));
    let outcome = run(&trial, &kernel);
    for mount in ["mount", "data"] {
        // Most often nothing is left there.
        let _ = mountpoint::detach(&trial.join(mount));
    }
    let _ = std::fs::remove_dir_all(&trial);
    match outcome {
        Err(Unsupported::Trial { cause, .. }) if Errno::from_io_error(&cause) == Some(Errno::NOTBLK) => {
            Err(Unsupported::Place(directory.to_owned()))
        }
        outcome => outcome.map(|()| Support { kernel }),
    }
}

/// Whether layers can be mounted as FUSE trees, with [`Backend::Fuse`](super::Backend::Fuse).
///
/// # Errors
///
/// When the kernel has no FUSE, or the caller may not use it.
pub fn probe_trees() -> Result<(), Unsupported> {
    if !has_filesystem("fuse") {
        return Err(Unsupported::Filesystem("fuse"));
    }
    // Linux 5.6: what a layer inherits from those below is looked up by it.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    if rustix::fs::openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::IN_ROOT).err() == Some(Errno::NOSYS) {
        return Err(Unsupported::Old(rustix::system::uname().release().to_string_lossy().into_owned()));
    }
    fuse::open_device().map(drop).map_err(|cause| Unsupported::Trial { what: "open /dev/fuse", cause })
}

fn version(release: &str) -> Option<(u32, u32, u32)> {
    let numbers = release.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    let mut numbers = numbers.split('.').map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or(0)))
}

/// Has the kernel load what lazy mounts need, while this process may. Whether that was of use the probes find out.
pub fn load_filesystems() {
    for name in ["erofs", "fuse"] {
        has_filesystem(name);
    }
}

fn has_filesystem(name: &'static str) -> bool {
    let listed = || {
        let list = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        list.lines().any(|line| line.split_whitespace().last() == Some(name))
    };
    // A module that cannot be loaded shows in the list.
    listed() || (std::process::Command::new("modprobe").arg("-q").arg(name).status().is_ok() && listed())
}

const WHOLE: &[u8] = b"whole";
const SHORT: &[u8] = b"short";
const FILE_BYTES: u64 = 8192;

fn run(trial: &Path, kernel: &str) -> Result<(), Unsupported> {
    let step = |what| move |cause| Unsupported::Trial { what, cause };
    let (data, mount, image) = (trial.join("data"), trial.join("mount"), trial.join("erofs"));
    for directory in [trial, &data, &mount] {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(step("make directories"))?;
    }
    let entries = [file(WHOLE, 0), file(SHORT, FILE_BYTES)];
    let written = erofs::write_image(&entries, 2 * FILE_BYTES, &[0; 32], &|_| None).map_err(io::Error::other);
    let written = written.map_err(step("write an image"))?;
    replace_file(&image, &written).map_err(step("write an image"))?;
    let device = fuse::open_device().map_err(step("open /dev/fuse"))?;
    fuse::mount_at(device.as_fd(), &data).map_err(step("mount FUSE"))?;
    let runtime = tokio::runtime::Handle::current();
    let session =
        Session::start(device, Handshake::Pending(Purpose::Devices), Lengths::AsGiven, Arc::new(Trial), runtime)
            .map_err(step("serve FUSE"))?;
    let outcome = read_both(&image, &data.join("trial"), &mount, kernel);
    let _ = mountpoint::detach(&mount);
    let _ = mountpoint::detach(&data);
    session.stop();
    outcome
}

fn read_both(image: &Path, device: &Path, mount: &Path, kernel: &str) -> Result<(), Unsupported> {
    let step = |what| move |cause| Unsupported::Trial { what, cause };
    erofs_mount::mount(image, device, mount).map_err(step("mount EROFS over a file"))?;
    let whole = std::fs::read(mount.join("whole")).map_err(step("read a file through EROFS and FUSE"))?;
    if whole != vec![b'L'; FILE_BYTES as usize] {
        return Err(step("read a file through EROFS and FUSE")(io::Error::other("the bytes differ")));
    }
    match std::fs::read(mount.join("short")) {
        Err(_) => Ok(()),
        Ok(_) => Err(Unsupported::ShortReads(kernel.to_owned())),
    }
}

fn file(name: &[u8], tar_offset: u64) -> Entry {
    let extents = vec![Extent { file_offset: 0, tar_offset, length: FILE_BYTES }];
    Entry {
        path: name.to_vec(),
        kind: Kind::File { size: FILE_BYTES, extents },
        mode: 0o400,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nanos: 0,
        xattrs: Vec::new(),
    }
}

/// A device whose second half always comes up short.
struct Trial;

const TRIAL: DataFile = DataFile { nodeid: 2, size: 2 * FILE_BYTES };

impl DataFiles for Trial {
    fn lookup(&self, name: &[u8]) -> Option<DataFile> {
        (name == b"trial").then_some(TRIAL)
    }

    fn get(&self, nodeid: u64) -> Option<DataFile> {
        (nodeid == TRIAL.nodeid).then_some(TRIAL)
    }

    fn list(&self) -> Vec<(Vec<u8>, DataFile)> {
        vec![(b"trial".to_vec(), TRIAL)]
    }

    fn read_cached(&self, _nodeid: u64, range: Range<u64>) -> Option<Bytes> {
        let length = (range.end - range.start) as usize;
        let given = if range.end > FILE_BYTES { length / 2 } else { length };
        Some(vec![b'L'; given].into())
    }

    fn read(&self, _nodeid: u64, _range: Range<u64>) -> BoxFuture<'static, Result<Bytes, Errno>> {
        Box::pin(async { Err(Errno::IO) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_understood() {
        for (release, expected) in [
            ("6.18.44-fc-v595", Some((6, 18, 44))),
            ("6.12.0", Some((6, 12, 0))),
            ("6.12-rc3", Some((6, 12, 0))),
            ("7.0.0+", Some((7, 0, 0))),
            ("unknown", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
