//! The daemon's side: questions that block until they are answered.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags};

use super::request::{Reader, Request};
use super::{answer, link};
use crate::erofs::Attributes;
use crate::graph::Usage;
use crate::limits::{MAX_INHERIT_ASKED, MAX_PRIVILEGED_ANSWER, MAX_PRIVILEGED_FILE, MAX_PRIVILEGED_REQUEST};

/// What may take long goes beside what must not wait for it.
#[derive(Debug)]
struct Lane(Mutex<OwnedFd>);

/// The mounter, as the daemon has it.
#[derive(Debug)]
pub struct Mounter {
    root: PathBuf,
    watched: OwnedFd,
    mounts: Lane,
    counting: Lane,
    deleting: Lane,
}

impl Mounter {
    /// The mounter at the other end of `socket`, which serves the same `root` (as the kernel names it).
    ///
    /// # Errors
    ///
    /// When it does not answer, or descriptors run out.
    pub fn new(root: &Path, socket: OwnedFd) -> io::Result<Self> {
        let watched = socket.try_clone()?;
        let mounts = Lane(Mutex::new(socket));
        let another = || {
            let (ours, theirs) = link::pair()?;
            mounts.ask(&Request::Lane, &[theirs.as_fd()])?;
            io::Result::Ok(Lane(Mutex::new(ours)))
        };
        let (counting, deleting) = (another()?, another()?);
        Ok(Self { root: root.to_owned(), watched, mounts, counting, deleting })
    }

    /// Returns when the mounter is gone.
    pub fn wait_for_end(&self) {
        let mut fds = [PollFd::from_borrowed_fd(self.watched.as_fd(), PollFlags::RDHUP)];
        while rustix::event::poll(&mut fds, None).is_err_and(|error| error == rustix::io::Errno::INTR) {}
    }

    pub(crate) fn mount_connection(&self, device: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
        self.mounts.ask(&Request::MountConnection { at: self.below(at)? }, &[device]).map(drop)
    }

    /// Gives the kernel's name of the mount's backing device.
    pub(crate) fn mount_image(&self, image: &Path, device: &Path, at: &Path) -> io::Result<Option<String>> {
        let (image, device, at) = (self.below(image)?, self.below(device)?, self.below(at)?);
        let said = self.mounts.ask(&Request::MountImage { image, device, at }, &[])?;
        Ok(String::from_utf8(said.bytes).ok().filter(|name| !name.is_empty()))
    }

    pub(crate) fn mount_tree(&self, tree: &Path, at: &Path) -> io::Result<()> {
        self.mounts.ask(&Request::MountTree { tree: self.below(tree)?, at: self.below(at)? }, &[]).map(drop)
    }

    pub(crate) fn detach(&self, at: &Path) -> io::Result<()> {
        self.mounts.ask(&Request::Detach { at: self.below(at)? }, &[]).map(drop)
    }

    pub(crate) fn release(&self, at: &Path) -> io::Result<bool> {
        let said = self.mounts.ask(&Request::Release { at: self.below(at)? }, &[])?;
        Ok(said.bytes == [1])
    }

    pub(crate) fn detach_all(&self, root: &Path) -> io::Result<usize> {
        if root != self.root {
            return Err(self.not_below(root));
        }
        let said = self.mounts.ask(&Request::DetachAll, &[])?;
        let count = Reader(&said.bytes).u64().map_err(io::Error::other)?;
        usize::try_from(count).map_err(io::Error::other)
    }

    pub(crate) fn read_ahead_as(&self, bdi: &str, tar: &Path) -> io::Result<()> {
        self.mounts.ask(&Request::ReadAhead { bdi: bdi.to_owned(), tar: self.below(tar)? }, &[]).map(drop)
    }

    pub(crate) fn own(&self, files: &Path, uid: u32, gid: u32) -> io::Result<()> {
        self.mounts.ask(&Request::Own { files: self.below(files)?, uid, gid }, &[]).map(drop)
    }

    pub(crate) fn usage(&self, files: &Path) -> io::Result<Usage> {
        let said = self.counting.ask(&Request::Usage { files: self.below(files)? }, &[])?;
        let mut rest = Reader(&said.bytes);
        let mut number = || rest.u64().map_err(io::Error::other);
        Ok(Usage { inodes: number()?, size_bytes: number()? })
    }

    pub(crate) fn delete(&self, removed: &Path) -> io::Result<()> {
        self.deleting.ask(&Request::Delete { removed: self.below(removed)? }, &[]).map(drop)
    }

    /// Of those directories that one of `lowers` has, the uppermost first.
    pub(crate) fn attributes(
        &self,
        directories: &[Vec<u8>],
        lowers: &[PathBuf],
    ) -> io::Result<BTreeMap<Vec<u8>, Attributes>> {
        let lowers: Vec<_> = lowers.iter().map(|lower| self.below(lower)).collect::<io::Result<_>>()?;
        let room =
            MAX_PRIVILEGED_REQUEST.saturating_sub(lowers.iter().map(|lower| lower.len() + 4).sum::<usize>() + 16);
        let mut found = BTreeMap::new();
        for asked in portions(directories, room) {
            let request = Request::Attributes { lowers: lowers.clone(), directories: asked.to_vec() };
            let bytes = self.mounts.ask(&request, &[])?.file()?;
            for (number, attributes) in answer::decode_attributes(&bytes).map_err(io::Error::other)? {
                let path = asked.get(number as usize).ok_or_else(|| io::Error::other("attributes of nothing"))?;
                found.insert(path.clone(), attributes);
            }
        }
        Ok(found)
    }

    pub(crate) fn tables(&self) -> io::Result<Vec<u8>> {
        self.counting.ask(&Request::Tables, &[])?.file()
    }

    /// Gives the process's number.
    pub(crate) fn hold(&self, device: &OwnedFd, listener: &OwnedFd, record: &OwnedFd) -> io::Result<u32> {
        let said = self.mounts.ask(&Request::Hold, &[device.as_fd(), listener.as_fd(), record.as_fd()])?;
        let pid = Reader(&said.bytes).u64().map_err(io::Error::other)?;
        u32::try_from(pid).map_err(io::Error::other)
    }

    fn below(&self, path: &Path) -> io::Result<Vec<u8>> {
        let inside = path.strip_prefix(&self.root).map_err(|_| self.not_below(path))?;
        Ok(inside.as_os_str().as_bytes().to_vec())
    }

    fn not_below(&self, path: &Path) -> io::Error {
        io::Error::other(format!("{} is not below {}, where the mounter works", path.display(), self.root.display()))
    }
}

/// As many at a time as go into a request with `room` bytes for them.
fn portions(directories: &[Vec<u8>], room: usize) -> impl Iterator<Item = &[Vec<u8>]> {
    let mut rest = directories;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |path: &&Vec<u8>| {
            bytes += path.len() + 4;
            bytes <= room
        };
        // At least one: what is too long alone is refused by name.
        let count = rest.iter().take(MAX_INHERIT_ASKED).take_while(fits).count().max(1).min(rest.len());
        let (now, later) = rest.split_at(count);
        rest = later;
        (!now.is_empty()).then_some(now)
    })
}

/// An answer.
struct Said {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Said {
    /// What is in the memory file that came.
    fn file(self) -> io::Result<Vec<u8>> {
        let file = self.descriptors.into_iter().next().ok_or_else(|| io::Error::other("the mounter sent no file"))?;
        let mut file = File::from(file);
        file.rewind()?;
        let mut bytes = Vec::new();
        file.take(MAX_PRIVILEGED_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_PRIVILEGED_FILE {
            return Err(io::Error::other(format!("an answer of more than {MAX_PRIVILEGED_FILE} bytes")));
        }
        Ok(bytes)
    }
}

impl Lane {
    fn ask(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<Said> {
        let gone = |error: io::Error| {
            io::Error::other(format!("the mounter, which has the rights for that, is gone: {error}"))
        };
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        link::send(&*socket, &request.encode(), descriptors).map_err(gone)?;
        let packet = link::receive(&*socket, MAX_PRIVILEGED_ANSWER).map_err(gone)?;
        if packet.bytes.is_empty() {
            return Err(gone(io::ErrorKind::BrokenPipe.into()));
        }
        let bytes = answer::decode(&packet.bytes)?;
        Ok(Said { bytes, descriptors: packet.descriptors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_cut_to_what_a_request_takes() {
        let directories: Vec<_> = (0..10).map(|number| vec![b'x'; number * 10]).collect();
        let cut: Vec<_> = portions(&directories, 100).collect();
        assert_eq!(cut.concat(), directories);
        assert!(cut.iter().all(|part| part.len() == 1 || part.iter().map(|path| path.len() + 4).sum::<usize>() <= 100));
        assert!(cut.len() > 3 && cut.len() < 10, "{}", cut.len());
        assert_eq!(portions(&[], 100).count(), 0);
        assert_eq!(portions(&vec![vec![b'x']; MAX_INHERIT_ASKED + 1], 1 << 20).count(), 2);
    }
}
