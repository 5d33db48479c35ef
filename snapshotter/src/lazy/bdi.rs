//! How far the kernel reads ahead in an EROFS mount.
//!
//! A mount over files begins with 128 KiB, whatever disk these files are on, and what is read in larger portions lies in larger pages of the page
//! cache, which are quicker to read again. While a layer is not complete this is right: what is read ahead is fetched. Once all of
//! it is here, the kernel is to read as it reads on the layer's own disk.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const ALL: &str = "/sys/class/bdi";

/// The "backing device info" that the kernel has of one EROFS mount (Documentation/ABI/testing/sysfs-class-bdi).
#[derive(Debug, Clone)]
pub(super) struct Bdi(PathBuf);

impl Bdi {
    /// Gives what `create` gives, which makes an EROFS mount, and that mount's information. None where another process made a
    /// mount at the same time: nothing tells whose is whose.
    pub(super) fn of<T>(create: impl FnOnce() -> T) -> (T, Option<Self>) {
        static ONE_BY_ONE: Mutex<()> = Mutex::new(());
        let _turn = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = of_erofs();
        let created = create();
        let mut new = of_erofs().into_iter().filter(|path| !before.contains(path));
        let ours = new.next().filter(|_| new.next().is_none());
        (created, ours.map(Self))
    }

    /// Has the kernel read ahead at least as far as on the disk of `file`. An aid: that it cannot is told in the log.
    pub(super) fn follow_disk_of(&self, file: &Path) {
        if let Err(error) = self.try_follow(file) {
            tracing::debug!(bdi = %self.0.display(), %error, "how far is read ahead in a mount stays as it is");
        }
    }

    fn try_follow(&self, file: &Path) -> io::Result<()> {
        let device = fs::metadata(file)?.dev();
        let disk = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let (theirs, ours) = (read_ahead_kib(&Path::new(ALL).join(disk))?, read_ahead_kib(&self.0)?);
        if theirs > ours {
            fs::write(self.0.join("read_ahead_kb"), theirs.to_string())?;
        }
        Ok(())
    }
}

fn of_erofs() -> HashSet<PathBuf> {
    let entries = fs::read_dir(ALL).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"erofs-"))
        .map(|entry| entry.path())
        .collect()
}

fn read_ahead_kib(bdi: &Path) -> io::Result<u64> {
    fs::read_to_string(bdi.join("read_ahead_kb"))?.trim().parse().map_err(io::Error::other)
}
