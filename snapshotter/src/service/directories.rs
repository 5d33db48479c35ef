//! The directories of snapshots: `<root>/snapshots/<id>/{fs,work}`.
//!
//! Ids are short on purpose: the options of an overlay mount must fit into one page. A removed snapshot's directory is
//! renamed to `removed-<id>` at once and deleted by a thread of its own, which starts over after a crash. What is
//! mounted below a directory is never deleted: it is detached first, or the directory stays.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};

use super::SnapshotError;
use crate::graph::Kind;
use crate::mountpoint;
use crate::privileged;

const REMOVED: &str = "removed-";

/// Owner of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

pub(crate) struct Directories {
    /// `<root>/snapshots`.
    top: PathBuf,
    /// Wakes the thread that deletes; it ends when this is dropped.
    reaper: SyncSender<()>,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError + '_ {
    move |source| SnapshotError::Directory { path: path.to_owned(), source }
}

impl Directories {
    /// Makes `<root>/snapshots` if need be and starts the thread that deletes removed snapshots.
    pub(crate) fn open(root: &Path) -> Result<Self, SnapshotError> {
        fs::create_dir_all(root).map_err(at(root))?;
        let root = fs::canonicalize(root).map_err(at(root))?;
        let top = root.join("snapshots");
        if !mountpoint::fits_mount_options(&top) || top.to_str().is_none() {
            return Err(SnapshotError::Root(top));
        }
        match DirBuilder::new().mode(0o700).create(&top) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(&top)(error)),
            _ => {}
        }
        let (reaper, wake) = mpsc::sync_channel(1);
        let reaped = top.clone();
        let thread = std::thread::Builder::new().name("snapshot-reaper".to_owned());
        thread.spawn(move || reap_whenever(&wake, &reaped)).map_err(at(&top))?;
        Ok(Self { top, reaper })
    }

    pub(crate) fn top(&self) -> &Path {
        &self.top
    }

    /// Where a snapshot's files are: an overlay's upper directory, or where its layer is mounted.
    pub(crate) fn files(&self, id: u64) -> PathBuf {
        self.top.join(id.to_string()).join("fs")
    }

    /// Overlay's work directory.
    pub(crate) fn work(&self, id: u64) -> PathBuf {
        self.top.join(id.to_string()).join("work")
    }

    /// Makes the directories of a new snapshot, durably.
    pub(crate) fn create(&self, id: u64, kind: Kind, owner: Option<Owner>) -> Result<(), SnapshotError> {
        let directory = self.top.join(id.to_string());
        let made = self.fill(&directory, kind, owner);
        if made.is_err() {
            self.retire(id);
        }
        made.map_err(at(&directory))
    }

    fn fill(&self, directory: &Path, kind: Kind, owner: Option<Owner>) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(directory)?;
        let files = directory.join("fs");
        fs::create_dir(&files)?;
        fs::set_permissions(&files, Permissions::from_mode(0o755))?;
        if kind == Kind::Active {
            let work = directory.join("work");
            fs::create_dir(&work)?;
            fs::set_permissions(&work, Permissions::from_mode(0o711))?;
        }
        if let Some(owner) = owner {
            give(&files, owner)?;
        }
        File::open(directory)?.sync_all()?;
        File::open(&self.top)?.sync_all()
    }

    /// Who owns the root of a snapshot's files.
    pub(crate) fn owner(&self, id: u64) -> Result<Owner, SnapshotError> {
        let files = self.files(id);
        let found = fs::symlink_metadata(&files).map_err(at(&files))?;
        Ok(Owner { uid: found.uid(), gid: found.gid() })
    }

    /// Puts a snapshot's directory out of the way and has it deleted. Failures are logged; the next start repeats it.
    pub(crate) fn retire(&self, id: u64) {
        let directory = self.top.join(id.to_string());
        let retired = (0..16).map(|attempt| match attempt {
            0 => self.top.join(format!("{REMOVED}{id}")),
            _ => self.top.join(format!("{REMOVED}{id}-{attempt}")),
        });
        match retired.into_iter().find(|path| !path.exists()).map(|path| fs::rename(&directory, path)) {
            Some(Ok(())) => self.reap(),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            failed => {
                tracing::warn!(snapshot = id, ?failed, "cannot put a removed snapshot's directory out of the way");
            }
        }
    }

    /// Has removed snapshots deleted, without waiting.
    pub(crate) fn reap(&self) {
        // A full channel means that a round is pending anyway.
        let _ = self.reaper.try_send(());
    }

    /// Retires the directories that no snapshot in the graph has: leftovers of a crash.
    pub(crate) fn collect(&self, known: &HashSet<u64>) -> Result<(), SnapshotError> {
        for entry in fs::read_dir(&self.top).map_err(at(&self.top))? {
            let name = entry.map_err(at(&self.top))?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
            if !known.contains(&id) {
                tracing::info!(snapshot = id, "removing a directory that no snapshot has");
                self.retire(id);
            }
        }
        self.reap();
        Ok(())
    }
}

/// Most often it is root's, and root's already.
fn give(files: &Path, owner: Owner) -> io::Result<()> {
    let found = fs::symlink_metadata(files)?;
    let has = Owner { uid: found.uid(), gid: found.gid() };
    match privileged::mounter().filter(|_| has != owner) {
        Some(mounter) => mounter.own(files, owner.uid, owner.gid),
        None => std::os::unix::fs::lchown(files, Some(owner.uid), Some(owner.gid)),
    }
}

fn reap_whenever(wake: &Receiver<()>, top: &Path) {
    while wake.recv().is_ok() {
        if let Err(error) = reap_all(top) {
            tracing::warn!(path = %top.display(), %error, "cannot delete removed snapshots");
        }
    }
}

fn reap_all(top: &Path) -> io::Result<()> {
    for entry in fs::read_dir(top)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(REMOVED.as_bytes()) {
            continue;
        }
        if let Err(error) = reap_one(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "cannot delete a removed snapshot");
        }
    }
    Ok(())
}

fn reap_one(directory: &Path) -> io::Result<()> {
    match privileged::mounter() {
        Some(mounter) => mounter.delete(directory),
        None => delete_here(directory, directory),
    }
}

/// Deletes `directory`, which the process may reach by `way`, with the rights of this process; never anything that is mounted below it.
pub(crate) fn delete_here(directory: &Path, way: &Path) -> io::Result<()> {
    for mount in mountpoint::mounts_below(directory)? {
        mountpoint::detach_here(&mount)?;
    }
    let left = mountpoint::mounts_below(directory)?;
    if let Some(mount) = left.first() {
        return Err(io::Error::other(format!("{} is still mounted", mount.display())));
    }
    fs::remove_dir_all(way)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_have_the_modes_and_the_owner_that_overlayfs_needs() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        let owner = directories.owner_of(root.path());
        directories.create(3, Kind::Active, Some(owner)).unwrap();
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(directories.top()), 0o700);
        assert_eq!(mode(&directories.files(3)), 0o755);
        assert_eq!(mode(&directories.work(3)), 0o711);
        assert_eq!(directories.owner(3).unwrap(), owner);
        directories.create(4, Kind::View, None).unwrap();
        assert!(!directories.work(4).exists());
        assert!(directories.create(4, Kind::View, None).is_err());
    }

    #[test]
    fn refuses_a_root_that_overlayfs_cannot_name() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(Directories::open(&root.path().join("a:b")), Err(SnapshotError::Root(_))));
    }

    impl Directories {
        fn owner_of(&self, path: &Path) -> Owner {
            let found = fs::symlink_metadata(path).unwrap();
            Owner { uid: found.uid(), gid: found.gid() }
        }
    }
}
