//! All changes that this crate makes to its files, each a call here: so that a test can write down what would reach a disk and in which
//! order, and have the disk refuse any of them.
//! Only this crate's own tests do, each for its thread (`watched`); in other builds nothing is asked.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::Path;

/// What is about to be done, or was.
#[derive(Debug, Clone)]
#[cfg_attr(not(test), allow(dead_code, reason = "only a test looks into it"))]
pub(crate) enum Change<'a> {
    MakeDirectory(&'a Path),
    /// Made unless it is there.
    Open {
        path: &'a Path,
        emptied: bool,
    },
    Write {
        file: &'a File,
        offset: u64,
        bytes: &'a [u8],
    },
    Resize {
        file: &'a File,
        length: u64,
    },
    /// Zeros from now on.
    Punch {
        file: &'a File,
        range: Range<u64>,
    },
    Sync(&'a File),
    SyncDirectory(&'a Path),
    /// Within one directory.
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    Remove(&'a Path),
    RemoveDirectory(&'a Path),
}

/// One that others cannot look into.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    pass(&Change::MakeDirectory(path), || DirBuilder::new().mode(0o700).create(path))
}

/// Opens a file that may come into being thereby. `emptied` says whether `options` cut it to nothing.
pub(crate) fn open(path: &Path, options: &OpenOptions, emptied: bool) -> io::Result<File> {
    pass(&Change::Open { path, emptied }, || options.open(path))
}

pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let write = Change::Write { file, offset, bytes };
    pass(&write, || file.write_all_at(bytes, offset)).inspect_err(|_| {
        // Of what a test refuses half is written, as a disk that runs full may do.
        if cfg!(test) {
            let _ = file.write_all_at(&bytes[..bytes.len() / 2], offset);
        }
    })
}

/// At the end of a file that was opened for that.
pub(crate) fn append(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    let offset = file.seek(io::SeekFrom::End(0))?;
    pass(&Change::Write { file, offset, bytes }, || file.write_all(bytes)).inspect_err(|_| {
        // Of what a test refuses half is written, as a disk that runs full may do.
        if cfg!(test) {
            let _ = file.write_all(&bytes[..bytes.len() / 2]);
        }
    })
}

/// A file to whose end things are added.
#[derive(Debug)]
pub(crate) struct Appending(pub(crate) File);

impl io::Write for Appending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        append(&self.0, bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn resize(file: &File, length: u64) -> io::Result<()> {
    pass(&Change::Resize { file, length }, || file.set_len(length))
}

pub(crate) fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let (offset, length) = (range.start, range.end - range.start);
    pass(&Change::Punch { file, range }, || Ok(fallocate(file, flags, offset, length)?))
}

/// Bytes and length, and not the time of the last change.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    pass(&Change::Sync(file), || file.sync_data())
}

pub(crate) fn sync_all(file: &File) -> io::Result<()> {
    pass(&Change::Sync(file), || file.sync_all())
}

/// The names in it.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    pass(&Change::SyncDirectory(path), || File::open(path)?.sync_all())
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    pass(&Change::Rename { from, to }, || fs::rename(from, to))
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    pass(&Change::Remove(path), || fs::remove_file(path))
}

/// With all that is in it.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    pass(&Change::RemoveDirectory(path), || fs::remove_dir_all(path))
}

#[cfg(not(test))]
#[inline(always)]
fn pass<T>(_change: &Change<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    work()
}

#[cfg(test)]
fn pass<T>(change: &Change<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    watched::before(change)?;
    let outcome = work()?;
    watched::after(change);
    Ok(outcome)
}

/// A disk of a test's own, for its thread.
#[cfg(test)]
pub(crate) mod watched {
    use std::cell::RefCell;
    use std::io;
    use std::rc::Rc;

    use super::Change;

    /// Hears of each change.
    pub(crate) trait Disk {
        /// An error refuses it.
        fn before(&mut self, change: &Change<'_>) -> io::Result<()>;
        /// It was done.
        fn after(&mut self, change: &Change<'_>);
    }

    type Shared = Rc<RefCell<dyn Disk>>;

    thread_local! {
        static DISK: RefCell<Option<Shared>> = const { RefCell::new(None) };
    }

    /// From now on, on this thread; none for no more.
    pub(crate) fn watch(disk: Option<Shared>) {
        DISK.set(disk);
    }

    fn disk() -> Option<Shared> {
        DISK.with_borrow(Clone::clone)
    }

    pub(super) fn before(change: &Change<'_>) -> io::Result<()> {
        disk().map_or(Ok(()), |disk| disk.borrow_mut().before(change))
    }

    pub(super) fn after(change: &Change<'_>) {
        if let Some(disk) = disk() {
            disk.borrow_mut().after(change);
        }
    }
}
