//! The whole tar of a layer, written down in the pass that makes the layer's index, so that nothing is inflated twice.
//!
//! The file has no name until the layer takes it up, so that nothing of it is left by a process that ends before. It is an
//! aid: whatever goes wrong with it, the layer's spans are inflated when they are read.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// How often it is looked whether the disk has room for more.
const LOOK_EVERY: u64 = 64 << 20;

/// Takes the tar's bytes in order; see the module's documentation.
#[derive(Debug)]
pub struct TarWriter {
    directory: PathBuf,
    file: File,
    length: u64,
    /// Bytes that must stay free on the filesystem.
    floor: u64,
    look_at: u64,
    failed: bool,
}

/// All of a layer's tar.
#[derive(Debug, Clone)]
pub struct WholeTar {
    file: Arc<File>,
    length: u64,
    /// The disk did not take it: the kernel says so once, and then believes that all is well.
    failed: Arc<Mutex<bool>>,
}

impl TarWriter {
    /// One on the filesystem of `directory`, which leaves `floor` bytes free there.
    pub(super) fn new(directory: &Path, floor: u64) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600))?);
        Ok(Self { directory: directory.to_owned(), file, length: 0, floor, look_at: 0, failed: false })
    }

    /// Writes the next bytes. Blocks on the disk. What fails shows at the end.
    pub fn push(&mut self, tar: &[u8]) {
        if self.failed {
            return;
        }
        if let Err(error) = self.try_push(tar) {
            tracing::info!(directory = %self.directory.display(), %error, "a layer's tar is not kept: it will be inflated as it is read");
            self.failed = true;
            // The space is given back now, not at the end of the pass.
            let _ = self.file.set_len(0);
        }
    }

    fn try_push(&mut self, tar: &[u8]) -> io::Result<()> {
        if self.length >= self.look_at {
            self.look_at = self.length + LOOK_EVERY;
            let stat = rustix::fs::fstatvfs(&self.file)?;
            if stat.f_bavail.saturating_mul(stat.f_frsize) < self.floor.saturating_add(LOOK_EVERY) {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        self.file.write_all(tar)?;
        self.length += tar.len() as u64;
        Ok(())
    }

    /// What was written, if all was.
    pub fn finish(self) -> Option<WholeTar> {
        (!self.failed).then(|| WholeTar { file: Arc::new(self.file), length: self.length, failed: Arc::default() })
    }
}

impl WholeTar {
    /// Bytes of the tar.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Brings it to the disk, so that who does it again later waits less. Blocks.
    ///
    /// # Errors
    ///
    /// When the disk fails, now or before: it is of no use any more.
    pub fn sync(&self) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(io::Error::other("the disk failed to write a layer's tar"));
        }
        self.file.sync_data().inspect_err(|_| *failed = true)
    }

    #[cfg(test)]
    pub(super) fn fail(&self) {
        *self.failed.lock().unwrap() = true;
    }

    /// Gives it a name, where nothing may be yet.
    pub(super) fn place(&self, path: &Path) -> io::Result<()> {
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_once_it_has_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = TarWriter::new(directory.path(), 0).unwrap();
        writer.push(b"a t");
        writer.push(b"ar");
        let whole = writer.finish().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(whole.length(), 5);
        let path = directory.path().join("tar");
        whole.place(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"a tar");
        assert_eq!(whole.place(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn it_is_not_kept_where_the_disk_has_no_room_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = TarWriter::new(directory.path(), u64::MAX).unwrap();
        writer.push(b"a tar");
        assert!(writer.finish().is_none());
    }
}
