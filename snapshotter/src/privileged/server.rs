//! The mounter: does what it is asked, if that is among what it is for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags};

use super::place::{self, Use, as_path};
use super::request::{Request, Writer};
use super::spot::{Spot, open_beneath, path_of};
use super::{answer, link};
use crate::fuse::HolderProgram;
use crate::limits::{MAX_PRIVILEGED_LANES, MAX_PRIVILEGED_REQUEST};

/// Takes requests from `socket` until the other side is gone, on behalf of the daemon that has its files below `root`. `holder` is what is
/// started to keep descriptors.
///
/// # Errors
///
/// When the root cannot be opened, or the socket fails.
pub fn serve(root: &Path, holder: Option<HolderProgram>, socket: &OwnedFd) -> io::Result<()> {
    let top = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let server = Server { top, root: root.to_owned(), holder, lanes: AtomicUsize::new(1) };
    Arc::new(server).take_from(socket)
}

struct Server {
    root: PathBuf,
    top: OwnedFd,
    holder: Option<HolderProgram>,
    lanes: AtomicUsize,
}

/// What is said back: in the packet, or in a memory file.
enum Said {
    Here(Vec<u8>),
    InFile(OwnedFd),
}

/// A request for what the mounter is not for.
fn refused(what: &str, path: &[u8]) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the mounter does not {what} {:?}: it is no place of Lapwing's for that", as_path(path)),
    )
}

impl Server {
    fn take_from(self: &Arc<Self>, socket: &OwnedFd) -> io::Result<()> {
        loop {
            let packet = link::receive(socket, MAX_PRIVILEGED_REQUEST)?;
            if packet.bytes.is_empty() {
                return Ok(());
            }
            let said = if packet.is_cut {
                Err(io::Error::other(format!("a request may have {MAX_PRIVILEGED_REQUEST} bytes, and 3 descriptors")))
            } else {
                self.perform(&packet.bytes, packet.descriptors)
            };
            reap();
            match said {
                Ok(Said::InFile(file)) => link::send(socket, &answer::encode(&Ok(Vec::new())), &[file.as_fd()])?,
                Ok(Said::Here(said)) => link::send(socket, &answer::encode(&Ok(said)), &[])?,
                Err(error) => link::send(socket, &answer::encode(&Err(error)), &[])?,
            }
        }
    }

    fn perform(self: &Arc<Self>, packet: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<Said> {
        let request = Request::decode(packet).map_err(io::Error::other)?;
        if descriptors.len() != request.descriptors() {
            return Err(io::Error::other(format!("{} descriptors do not belong to this", descriptors.len())));
        }
        let nothing = |()| Said::Here(Vec::new());
        match request {
            Request::MountConnection { at } => self.mount_connection(&at, &descriptors[0]).map(nothing),
            Request::MountImage { image, device, at } => self.mount_image(&image, &device, &at).map(Said::Here),
            Request::MountTree { tree, at } => self.mount_tree(&tree, &at).map(nothing),
            Request::Detach { at } => match self.spot(Use::Detach, "take mounts off", &at) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(nothing(())),
                spot => spot?.detach().map(nothing),
            },
            Request::Release { at } => {
                let gone = self.spot(Use::Detach, "take mounts off", &at)?.release();
                Ok(Said::Here(vec![u8::from(gone)]))
            }
            Request::DetachAll => {
                let count = crate::lazy::detach_all_here(&self.root)?;
                Ok(Said::Here((count as u64).to_le_bytes().to_vec()))
            }
            Request::ReadAhead { bdi, tar } => self.read_ahead(&bdi, &tar).map(nothing),
            Request::Own { files, uid, gid } => self.own(&files, uid, gid).map(nothing),
            Request::Usage { files } => self.usage(&files).map(Said::Here),
            Request::Delete { removed } => self.delete(&removed).map(nothing),
            Request::Attributes { lowers, directories } => self.attributes(&lowers, &directories).map(Said::InFile),
            Request::Tables => in_file(&crate::mountpoint::tables_of_all()?).map(Said::InFile),
            Request::Hold => self.hold(descriptors).map(Said::Here),
            Request::Lane => self.lane(descriptors).map(nothing),
        }
    }

    fn check(what: Use, doing: &str, path: &[u8]) -> io::Result<()> {
        if place::is_for(what, path) { Ok(()) } else { Err(refused(doing, path)) }
    }

    fn spot(&self, what: Use, doing: &str, path: &[u8]) -> io::Result<Spot> {
        Self::check(what, doing, path)?;
        Spot::beneath(&self.top, as_path(path))
    }

    fn mount_connection(&self, at: &[u8], device: &OwnedFd) -> io::Result<()> {
        let spot = self.spot(Use::Connection, "mount the connection at", at)?;
        let found = rustix::fs::fstat(device)?;
        // Documentation/admin-guide/devices.txt: 10, 229 is /dev/fuse.
        let number = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
        if rustix::fs::FileType::from_raw_mode(found.st_mode) != rustix::fs::FileType::CharacterDevice
            || number != (10, 229)
        {
            return Err(io::Error::other("the descriptor is not of /dev/fuse"));
        }
        crate::fuse::mount_here(device.as_fd(), &self.root.join(as_path(at)), &spot)
    }

    fn mount_image(&self, image: &[u8], device: &[u8], at: &[u8]) -> io::Result<Vec<u8>> {
        let spot = self.spot(Use::Layer, "mount a layer at", at)?;
        Self::check(Use::Image, "mount the image", image)?;
        Self::check(Use::Device, "mount the device", device)?;
        for file in [image, device] {
            let found = rustix::fs::fstat(open_beneath(&self.top, as_path(file), OFlags::empty())?)?;
            if rustix::fs::FileType::from_raw_mode(found.st_mode) != rustix::fs::FileType::RegularFile {
                return Err(io::Error::other(format!("{:?} is no file", as_path(file))));
            }
        }
        let (image, device) = (self.root.join(as_path(image)), self.root.join(as_path(device)));
        let bdi = crate::lazy::mount_image_here(&image, &device, &spot)?;
        Ok(bdi.unwrap_or_default().into_bytes())
    }

    fn mount_tree(&self, tree: &[u8], at: &[u8]) -> io::Result<()> {
        let spot = self.spot(Use::Layer, "mount a layer at", at)?;
        Self::check(Use::Tree, "mount the tree", tree)?;
        let tree = open_beneath(&self.top, as_path(tree), OFlags::DIRECTORY)?;
        crate::fuse::mount_tree_here(&tree, &spot)
    }

    fn read_ahead(&self, bdi: &str, tar: &[u8]) -> io::Result<()> {
        Self::check(Use::Tar, "look at the disk of", tar)?;
        if !place::is_bdi(bdi) {
            return Err(refused("change the backing device", bdi.as_bytes()));
        }
        let device = rustix::fs::fstat(open_beneath(&self.top, as_path(tar), OFlags::empty())?)?.st_dev;
        crate::lazy::read_ahead_as(bdi, device)
    }

    fn own(&self, files: &[u8], uid: u32, gid: u32) -> io::Result<()> {
        Self::check(Use::Files, "give away", files)?;
        if uid == u32::MAX || gid == u32::MAX {
            return Err(io::Error::other("there is no such owner"));
        }
        let files = open_beneath(&self.top, as_path(files), OFlags::DIRECTORY)?;
        let (uid, gid) = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid));
        Ok(rustix::fs::chownat(&files, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
    }

    fn usage(&self, files: &[u8]) -> io::Result<Vec<u8>> {
        Self::check(Use::Files, "count", files)?;
        let files = open_beneath(&self.top, as_path(files), OFlags::DIRECTORY)?;
        // A descriptor's own path would be counted as a link.
        let usage = crate::service::usage_here(&path_of(&files).join("."))?;
        let mut out = Writer::default();
        out.u64(usage.inodes).u64(usage.size_bytes);
        Ok(out.0)
    }

    fn delete(&self, removed: &[u8]) -> io::Result<()> {
        let spot = self.spot(Use::Removed, "delete", removed)?;
        crate::service::delete_here(&self.root.join(as_path(removed)), &spot.path())
    }

    fn attributes(&self, lowers: &[Vec<u8>], directories: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let mut roots = Vec::with_capacity(lowers.len());
        for lower in lowers {
            Self::check(Use::Files, "look into", lower)?;
            roots.push(open_beneath(&self.top, as_path(lower), OFlags::DIRECTORY)?);
        }
        let roots: Vec<_> = roots.iter().map(path_of).collect();
        let found = crate::lazy::inherited_here(directories, &roots);
        let number = |path: &Vec<u8>| u32::try_from(directories.iter().position(|asked| asked == path)?).ok();
        let numbered: BTreeMap<_, _> =
            found.into_iter().filter_map(|(path, attributes)| Some((number(&path)?, attributes))).collect();
        in_file(&answer::encode_attributes(&numbered))
    }

    fn hold(&self, descriptors: Vec<OwnedFd>) -> io::Result<Vec<u8>> {
        let holder = self.holder.as_ref().ok_or_else(|| io::Error::other("no holder is to be started"))?;
        let [device, listener, record] =
            <[OwnedFd; 3]>::try_from(descriptors).map_err(|_| io::Error::other("three descriptors are needed"))?;
        // It ends by itself; `reap` sees to what is left of it.
        let child = crate::fuse::holder::spawn(holder, device, listener, record)?;
        Ok(u64::from(child.id()).to_le_bytes().to_vec())
    }

    fn lane(self: &Arc<Self>, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        if self.lanes.fetch_add(1, Ordering::Relaxed) >= MAX_PRIVILEGED_LANES {
            return Err(io::Error::other(format!("there are {MAX_PRIVILEGED_LANES} lanes already")));
        }
        let server = Arc::clone(self);
        let socket = descriptors.into_iter().next().ok_or_else(|| io::Error::other("no socket came"))?;
        // Its failure is the daemon's to see: the other end is closed.
        std::thread::Builder::new().name("lane".to_owned()).spawn(move || drop(server.take_from(&socket)))?;
        Ok(())
    }
}

/// Forgets children that have ended.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
}

fn in_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("lapwing-answer", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}
