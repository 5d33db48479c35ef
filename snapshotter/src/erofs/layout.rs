//! Places: which slot each inode gets, and which blocks the full blocks of directories and long symlinks.

use std::collections::HashMap;

use super::chunks::{self, Chunks};
use super::tree::{Inode, InodeIndex, Node, ROOT, Tree};
use super::{BLOCK, ErofsError, directory, xattr};

/// Bytes in an inode of the extended form, the only one written: compact ones show wrong times before kernel 6.15.
pub(super) const INODE: u64 = 64;
const SLOT: u64 = 32;

/// How an inode's data is kept (`i_format`, bits 1 to 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// Nothing, or full blocks only, starting at this block of the data area.
    Plain { first_block: u64 },
    /// Full blocks from this block of the data area, the rest behind the inode.
    Inline { first_block: u64 },
    /// Chunk indexes behind the inode.
    Chunked(Chunks),
}

/// One inode with its place.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) index: InodeIndex,
    pub(super) parent: u64,
    /// Slot number: the inode starts at `nid * 32` in the metadata area.
    pub(super) nid: u64,
    pub(super) size: u64,
    pub(super) links: u32,
    /// Length of the extended attributes behind it, in bytes.
    pub(super) xattr_bytes: usize,
    pub(super) form: Form,
}

/// Every reachable inode of a tree in the order of the image, the root first.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) placed: Vec<Placed>,
    /// Slot number by inode.
    pub(super) nids: HashMap<InodeIndex, u64>,
    /// Length of the metadata area in bytes.
    pub(super) metadata_length: u64,
    /// Blocks of the data area behind it.
    pub(super) data_blocks: u64,
}

impl Layout {
    pub(super) fn of(tree: &Tree<'_>, tar_length: u64) -> Result<Self, ErofsError> {
        let mut layout = Self { placed: Vec::new(), nids: HashMap::new(), metadata_length: 0, data_blocks: 0 };
        // Breadth first: the entries of a directory lie close together, as `ls -l` reads them.
        let mut queue = std::collections::VecDeque::from([(ROOT, ROOT)]);
        while let Some((index, parent)) = queue.pop_front() {
            if layout.nids.contains_key(&index) {
                continue;
            }
            layout.place(tree, index, parent, tar_length)?;
            if let Some(children) = tree.children(index) {
                queue.extend(children.values().map(|&child| (child, index)));
            }
        }
        Ok(layout)
    }

    fn place(
        &mut self,
        tree: &Tree<'_>,
        index: InodeIndex,
        parent: InodeIndex,
        tar_length: u64,
    ) -> Result<(), ErofsError> {
        let inode = &tree.inodes[index];
        let xattr_bytes = xattr::body(inode.path, &inode.attributes.xattrs)?.len();
        let size = size_of(inode);
        let head = INODE + xattr_bytes as u64;
        let slot = self.metadata_length.next_multiple_of(SLOT);
        let (start, end, form) = match &inode.node {
            Node::File { size: 1.., extents } => {
                let chunks = chunks::chunks(inode.path, size, extents, tar_length)?;
                let end = (slot + head).next_multiple_of(8) + 8 * chunks.blocks.len() as u64;
                (slot, end, Form::Chunked(chunks))
            }
            Node::Directory(_) => self.place_with_tail(slot, head, size, head % SLOT + size % BLOCK <= BLOCK, false),
            Node::Symlink(_) => self.place_with_tail(slot, head, size, head + size <= BLOCK, true),
            _ => (slot, slot + head, Form::Plain { first_block: 0 }),
        };
        let nid = start / SLOT;
        self.nids.insert(index, nid);
        self.metadata_length = end;
        let links = links_of(tree, inode);
        let parent = self.nids[&parent];
        self.placed.push(Placed { index, parent, nid, size, links, xattr_bytes, form });
        Ok(())
    }

    /// A place for an inode with `size` bytes of data. The tail may not cross a block (kernel: `erofs_map_blocks`); a
    /// symlink must lie in one block altogether, since older kernels look nowhere else for its target.
    fn place_with_tail(&mut self, slot: u64, head: u64, size: u64, fits: bool, whole: bool) -> (u64, u64, Form) {
        let (full, tail) = (size / BLOCK, size % BLOCK);
        let first_block = self.data_blocks;
        if tail == 0 || !fits {
            self.data_blocks += size.div_ceil(BLOCK);
            return (slot, slot + head, Form::Plain { first_block });
        }
        self.data_blocks += full;
        let crosses = |start: u64| {
            let from = if whole { start } else { start + head };
            from % BLOCK + (start + head + tail - from) > BLOCK
        };
        let start = (0..).map(|step| slot + step * SLOT).find(|&start| !crosses(start)).unwrap_or(slot);
        (start, start + head + tail, Form::Inline { first_block })
    }
}

/// The names of a directory as stored: `.` and `..` sorted among the others.
pub(super) fn names_of<'a, T: Copy>(
    children: impl Iterator<Item = (&'a [u8], T)>,
    own: T,
    parent: T,
) -> Vec<(&'a [u8], T)> {
    let mut names: Vec<(&'a [u8], T)> = children.collect();
    for special in [(&b"."[..], own), (&b".."[..], parent)] {
        let at = names.partition_point(|&(name, _)| name < special.0);
        names.insert(at, special);
    }
    names
}

fn size_of(inode: &Inode<'_>) -> u64 {
    match &inode.node {
        Node::File { size, .. } => *size,
        Node::Symlink(target) => target.len() as u64,
        Node::Directory(children) => {
            let names = names_of(children.keys().map(|&name| (name, ())), (), ());
            directory::size(names.into_iter().map(|(name, ())| name))
        }
        _ => 0,
    }
}

fn links_of(tree: &Tree<'_>, inode: &Inode<'_>) -> u32 {
    match &inode.node {
        Node::Directory(children) => {
            2 + children.values().filter(|&&child| tree.children(child).is_some()).count() as u32
        }
        _ => inode.names,
    }
}
