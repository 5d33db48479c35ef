//! Layers as directory trees in the FUSE mount, for kernels that mount no EROFS over files. What is in a tree is read from
//! the image that EROFS would have mounted, so that nothing of it need be in memory, and both ways of mounting show the same.
//!
//! ```text
//! node id: TREE (1 bit) | first bits of the image's name (36) | number of the inode in the image (27)
//! ```
//!
//! Which image a number belongs to is kept in `<root>/trees`, a symbolic link for each: whoever came first has it, also after a
//! restart, and an image whose name begins with the same bits is not shown.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use rustix::io::Errno;

use super::LazyLayer;
use super::files::Layers;
use super::mounts::{MountError, system};
use crate::erofs::view::{Inode, Stretch, Superblock, View};
use crate::fuse::{Attributes, Listed, Node, TREE, Trees};

/// Bits of an inode's number: images are at most 4 GiB long, and inodes lie in units of 32 bytes.
const INODE_BITS: u32 = 27;
const _: () = assert!(crate::limits::MAX_IMAGE_BYTES / 32 <= 1 << INODE_BITS);

/// An image that is shown as a tree.
#[derive(Debug)]
struct Image {
    layer: Digest,
    path: PathBuf,
    /// Among the files that are open.
    number: u64,
    superblock: Superblock,
}

/// The images that are shown, by the part of their names that is in node ids.
#[derive(Debug, Default)]
pub(super) struct Images {
    known: RwLock<HashMap<u64, Arc<Image>>>,
}

/// The part of an image's name that is in its node ids.
fn part_of(superblock: &Superblock) -> u64 {
    let name = superblock.id.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    name >> (1 + INODE_BITS)
}

/// The directory's name in the FUSE mount.
fn name_of(part: u64) -> String {
    format!("{part:09x}")
}

const fn part_in(id: u64) -> u64 {
    (id & !TREE) >> INODE_BITS
}

impl Image {
    const fn id(part: u64, nid: u64) -> u64 {
        TREE | part << INODE_BITS | nid
    }

    fn node(&self, inode: &Inode) -> Node {
        Node {
            id: Self::id(part_of(&self.superblock), inode.nid),
            mode: inode.mode,
            links: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            mtime: inode.mtime,
            mtime_nanos: inode.mtime_nanos,
            device: inode.device,
        }
    }
}

impl Layers {
    /// Shows the image at `path` as a tree from now on; gives its name in the FUSE mount.
    pub(super) fn show(&self, layer: &Digest, path: &Path) -> Result<String, MountError> {
        let superblock = superblock_at(path).map_err(system("read", path))?;
        let part = part_of(&superblock);
        let mut known = self.images.known.write().unwrap_or_else(PoisonError::into_inner);
        match known.get(&part) {
            Some(shown) if shown.superblock == superblock && shown.layer == *layer => {}
            Some(_) => return Err(MountError::Collision(*layer)),
            None => {
                self.claim(layer, &superblock, path)?;
                let number = self.common().files.number();
                let image = Image { layer: *layer, path: path.to_owned(), number, superblock };
                known.insert(part, Arc::new(image));
            }
        }
        Ok(name_of(part))
    }

    /// Sees to it that the number stands for the image at `path`, for as long as the layer is here.
    fn claim(&self, layer: &Digest, superblock: &Superblock, path: &Path) -> Result<(), MountError> {
        let (links, part) = (self.links(), part_of(superblock));
        std::fs::create_dir_all(&links).map_err(system("make directory", &links))?;
        let link = links.join(name_of(part));
        for _ in 0..2 {
            match std::os::unix::fs::symlink(path, &link) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map_err(system("make link", &link)),
            }
            let known = std::fs::read_link(&link).map_err(system("read link", &link))?;
            match superblock_at(&known) {
                // This one, or the same under another name: what a stack gives a layer may be what it has without.
                Ok(shown) if shown == *superblock => return Ok(()),
                Ok(shown) if part_of(&shown) == part => break,
                // Of a layer that is gone, or was written anew.
                _ => std::fs::remove_file(&link).map_err(system("delete", &link))?,
            }
        }
        Err(MountError::Collision(*layer))
    }

    /// The names under which images of a layer can be shown.
    pub(super) fn tree_names(&self, layer: &Digest) -> Vec<String> {
        let images = images_in(&self.directory(layer));
        let parts = images.filter_map(|path| Some(part_of(&superblock_at(&path).ok()?)));
        parts.map(name_of).collect()
    }

    /// Forgets the trees of a layer.
    pub(super) fn hide(&self, layer: &Digest) {
        self.images.known.write().unwrap_or_else(PoisonError::into_inner).retain(|_, image| {
            let keep = image.layer != *layer;
            if !keep {
                self.common().files.close(image.number);
                // What is left of it would be replaced.
                let _ = std::fs::remove_file(self.links().join(name_of(part_of(&image.superblock))));
            }
            keep
        });
    }

    fn image(&self, part: u64) -> Result<Arc<Image>, Errno> {
        let known = || self.images.known.read().unwrap_or_else(PoisonError::into_inner).get(&part).cloned();
        if let Some(image) = known() {
            return Ok(image);
        }
        self.show_again(part)?;
        known().ok_or(Errno::STALE)
    }

    /// Shows the image that a former process showed under this number.
    fn show_again(&self, part: u64) -> Result<(), Errno> {
        let target = std::fs::read_link(self.links().join(name_of(part))).map_err(|_| Errno::STALE)?;
        let layer = target.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let layer: Option<Digest> = layer.and_then(|hex| format!("sha256:{hex}").parse().ok());
        let (Some(layer), Some(name)) = (layer, target.file_name()) else { return Err(Errno::STALE) };
        let path = self.directory(&layer).join(name);
        let shown = self.show(&layer, &path).is_ok_and(|shown| shown == name_of(part));
        if shown { Ok(()) } else { Err(Errno::STALE) }
    }

    /// Does something with the image and the inode that a node id means.
    fn with<T>(&self, id: u64, act: impl FnOnce(&Image, View<'_>, &Inode) -> io::Result<T>) -> Result<T, Errno> {
        let image = self.image(part_in(id))?;
        self.with_image(&image, id & ((1 << INODE_BITS) - 1), act)
    }

    fn with_image<T>(
        &self,
        image: &Image,
        nid: u64,
        act: impl FnOnce(&Image, View<'_>, &Inode) -> io::Result<T>,
    ) -> Result<T, Errno> {
        let done = self.common().files.get(image.number, &image.path).and_then(|file| {
            let view = View(&file);
            act(image, view, &view.inode(nid)?)
        });
        done.map_err(|error| match error.kind() {
            io::ErrorKind::NotADirectory => Errno::NOTDIR,
            io::ErrorKind::NotFound => Errno::STALE,
            _ => {
                tracing::error!(layer = %image.layer, image = %image.path.display(), %error, "a layer's image cannot be read");
                Errno::IO
            }
        })
    }

    /// The layer behind a file, and where the bytes of `range` are in it.
    fn stretches(&self, file: u64, range: Range<u64>) -> Result<(Arc<LazyLayer>, Vec<Stretch>), Errno> {
        let (digest, stretches) =
            self.with(file, |image, view, inode| Ok((image.layer, view.stretches(inode, range)?)))?;
        Ok((self.find_layer(&digest).ok_or(Errno::STALE)?, stretches))
    }
}

fn superblock_at(path: &Path) -> io::Result<Superblock> {
    View(&File::open(path)?).superblock()
}

/// The images of the layer in this directory, of whichever stack.
fn images_in(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let is_image = |name: &str| name == "erofs" || name.starts_with("erofs-");
    entries.filter(move |entry| entry.file_name().to_str().is_some_and(is_image)).map(|entry| entry.path())
}

impl Trees for Layers {
    fn root(&self, name: &[u8]) -> Result<Node, Errno> {
        let part = std::str::from_utf8(name).ok().and_then(|name| u64::from_str_radix(name, 16).ok());
        let part = part.filter(|part| name_of(*part).as_bytes() == name).ok_or(Errno::NOENT)?;
        let image = self.image(part).map_err(|_| Errno::NOENT)?;
        self.with_image(&image, image.superblock.root, |image, _, root| Ok(image.node(root)))
    }

    fn lookup(&self, directory: u64, name: &[u8]) -> Result<Option<Node>, Errno> {
        self.with(directory, |image, view, inode| {
            let found = view.lookup(inode, name)?;
            found.map(|nid| Ok(image.node(&view.inode(nid)?))).transpose()
        })
    }

    fn node(&self, id: u64) -> Result<Node, Errno> {
        self.with(id, |image, _, inode| Ok(image.node(inode)))
    }

    fn list(&self, directory: u64, from: u64, each: &mut dyn FnMut(Listed<'_>) -> bool) -> Result<(), Errno> {
        self.with(directory, |image, view, inode| {
            let part = part_of(&image.superblock);
            view.list(inode, from, |name| {
                each(Listed { name: name.name, id: Image::id(part, name.nid), kind: name.kind, next: name.next })
            })
        })
    }

    fn target(&self, link: u64) -> Result<Vec<u8>, Errno> {
        self.with(link, |_, view, inode| view.target(inode))
    }

    fn attributes(&self, id: u64) -> Result<Attributes, Errno> {
        self.with(id, |_, view, inode| view.xattrs(inode))
    }

    fn read_cached(&self, file: u64, range: Range<u64>) -> Option<Bytes> {
        let length = (range.end - range.start) as usize;
        let (layer, stretches) = self.stretches(file, range).ok()?;
        if let [Stretch { tar: Some(at), length }] = stretches[..] {
            return layer.read_cached(at..at + length);
        }
        let mut bytes = BytesMut::with_capacity(length);
        for stretch in stretches {
            match stretch.tar {
                Some(at) => bytes.extend_from_slice(&layer.read_cached(at..at + stretch.length)?),
                None => bytes.resize(bytes.len() + stretch.length as usize, 0),
            }
        }
        Some(bytes.freeze())
    }

    fn read(&self, file: u64, range: Range<u64>) -> BoxFuture<'static, Result<Bytes, Errno>> {
        let length = (range.end - range.start) as usize;
        let found = self.stretches(file, range);
        Box::pin(async move {
            let (layer, stretches) = found?;
            if let [Stretch { tar: Some(at), length }] = stretches[..] {
                return layer.read(at..at + length).await.map_err(|_| Errno::IO);
            }
            // One after the other, and copied: a read gives a part of a whole span, and a sparse file may be of thousands.
            let mut bytes = BytesMut::with_capacity(length);
            for stretch in stretches {
                let part = stretch.tar.map(|at| at..at + stretch.length);
                match part.as_ref().map(|part| layer.read_cached(part.clone())) {
                    None => bytes.resize(bytes.len() + stretch.length as usize, 0),
                    Some(Some(cached)) => bytes.extend_from_slice(&cached),
                    Some(None) => {
                        let read = layer.read(part.unwrap_or_default()).await.map_err(|_| Errno::IO)?;
                        bytes.extend_from_slice(&read);
                    }
                }
            }
            Ok(bytes.freeze())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;
    use crate::erofs::write_image;

    /// An image at `name` in the directory of a layer, with its superblock.
    fn image(layers: &Layers, layer: &Digest, name: &str) -> (PathBuf, Superblock) {
        let path = layers.directory(layer).join(name);
        std::fs::create_dir_all(layers.directory(layer)).unwrap();
        std::fs::write(&path, write_image(&[], 0, layer.as_bytes(), &|_| None).unwrap()).unwrap();
        let superblock = superblock_at(&path).unwrap();
        (path, superblock)
    }

    #[tokio::test]
    async fn a_number_stays_with_the_image_that_had_it_first() {
        let root = tempfile::tempdir().unwrap();
        let layers = || Layers::new(root.path(), Options::default());
        let [one, two] = [b"one", b"two"].map(|name| Digest::of(name));
        let (first, superblock) = image(&layers(), &one, "erofs");
        let name = layers().show(&one, &first).unwrap();
        // Another process, which is asked for the same image in the place of a stack.
        let (same, _) = image(&layers(), &one, "erofs-stack");
        assert_eq!(layers().show(&one, &same).unwrap(), name);
        let again = layers();
        assert_eq!(again.root(name.as_bytes()).unwrap().id, Image::id(part_of(&superblock), superblock.root));

        // One whose name begins with the same bits, as somebody may have sought it.
        let (second, other) = image(&layers(), &two, "erofs");
        let mut id = superblock.id;
        id[15] ^= 1;
        let met = Superblock { id, ..other };
        assert_eq!(part_of(&met), part_of(&superblock));
        assert!(matches!(layers().claim(&two, &met, &second), Err(MountError::Collision(layer)) if layer == two));
        std::fs::remove_dir_all(layers().directory(&one)).unwrap();
        layers().claim(&two, &met, &second).unwrap();
    }
}
