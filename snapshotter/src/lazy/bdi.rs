//! How far the kernel reads ahead in an EROFS mount.
//!
//! A mount over files begins with 128 KiB, whatever disk these files are on, and what is read in larger portions lies in larger pages of the page
//! cache, which are quicker to read again. While a layer is not complete this is right: what is read ahead is fetched. Once all of
//! it is here, the kernel is to read as it reads on the layer's own disk.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::privileged;

const ALL: &str = "/sys/class/bdi";

/// The "backing device info" that the kernel has of one EROFS mount (Documentation/ABI/testing/sysfs-class-bdi).
#[derive(Debug, Clone)]
pub(super) struct Bdi(String);

/// Gives what `create` gives, which makes an EROFS mount, and the name of that mount's information. None where another process made a
/// mount at the same time: nothing tells whose is whose.
pub(super) fn made_by<T>(create: impl FnOnce() -> T) -> (T, Option<String>) {
    static ONE_BY_ONE: Mutex<()> = Mutex::new(());
    let _turn = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = of_erofs();
    let created = create();
    let mut new = of_erofs().into_iter().filter(|name| !before.contains(name));
    let ours = new.next().filter(|_| new.next().is_none());
    (created, ours)
}

impl Bdi {
    /// The one of this name.
    pub(super) const fn named(name: String) -> Self {
        Self(name)
    }

    /// Has the kernel read ahead at least as far as on the disk of `file`. An aid: that it cannot is told in the log.
    pub(super) fn follow_disk_of(&self, file: &Path) {
        let followed = match privileged::mounter() {
            Some(mounter) => mounter.read_ahead_as(&self.0, file),
            None => fs::metadata(file).and_then(|file| read_ahead_as(&self.0, file.dev())),
        };
        if let Err(error) = followed {
            tracing::debug!(bdi = self.0, %error, "how far is read ahead in a mount stays as it is");
        }
    }
}

/// Has the kernel read ahead in the mount with this information at least as far as on the disk `device`.
pub(crate) fn read_ahead_as(name: &str, device: u64) -> io::Result<()> {
    let bdi = Path::new(ALL).join(name);
    let disk = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let (theirs, ours) = (read_ahead_kib(&Path::new(ALL).join(disk))?, read_ahead_kib(&bdi)?);
    if theirs > ours {
        fs::write(bdi.join("read_ahead_kb"), theirs.to_string())?;
    }
    Ok(())
}

fn of_erofs() -> HashSet<String> {
    let entries = fs::read_dir(ALL).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("erofs-")).collect()
}

fn read_ahead_kib(bdi: &Path) -> io::Result<u64> {
    fs::read_to_string(bdi.join("read_ahead_kb"))?.trim().parse().map_err(io::Error::other)
}
