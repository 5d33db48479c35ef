//! Puts the bytes of an image down, in the places that [`Layout`] decided.

use super::chunks::WIDE_INDEXES;
use super::directory::{self, Name};
use super::layout::{Form, INODE, Layout, Placed, names_of};
use super::tree::{Attributes, Inherit, InodeIndex, Node, ROOT, Tree};
use super::view::ID_BYTES;
use super::{BLOCK, ErofsError, WRITER, device_length, xattr};
use crate::limits::MAX_IMAGE_BYTES;
use crate::tree::Entry;

pub(super) const SUPERBLOCK: usize = 1024;
const DEVICE_SLOT: usize = 1152;
pub(super) const METADATA: u64 = 1536;
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
/// `SB_CHKSUM` and `MTIME`.
const COMPAT: u32 = 0x3;
/// `CHUNKED_FILE` and `DEVICE_TABLE`.
const INCOMPAT: u32 = 0xC;
/// The tar is the one extra device.
const TAR: u16 = 1;

/// Writes the image of a layer.
///
/// `seed` (the layer's digest) gives the device's tag; `inherit` the attributes of directories that only
/// lower layers describe. Equal input gives equal bytes.
///
/// # Errors
///
/// When the entries cannot be applied or do not fit into the format.
pub fn write_image(
    entries: &[Entry],
    tar_length: u64,
    seed: &[u8; 32],
    inherit: Inherit<'_>,
) -> Result<Vec<u8>, ErofsError> {
    let device_blocks = device_length(tar_length) / BLOCK;
    // The last block number means a hole.
    if device_blocks >= u64::from(u32::MAX) {
        return Err(ErofsError::TooLarge { what: "the tar", size: tar_length, limit: u64::from(u32::MAX) * BLOCK });
    }
    let tree = Tree::apply(entries, inherit)?;
    let layout = Layout::of(&tree, tar_length)?;
    let data = (METADATA + layout.metadata_length).next_multiple_of(BLOCK);
    let length = data + layout.data_blocks * BLOCK;
    if length > MAX_IMAGE_BYTES {
        return Err(ErofsError::TooLarge { what: "the image", size: length, limit: MAX_IMAGE_BYTES });
    }
    let mut image = Image { bytes: vec![0; length as usize], data_block: data / BLOCK };
    for (serial, placed) in layout.placed.iter().enumerate() {
        image.put_inode(&tree, &layout, placed, serial as u32 + 1)?;
    }
    image.put_device_slot(seed, device_blocks as u32);
    // 16 bits are enough: the root is placed first, and moves by less than a block to keep its names together.
    image.put_superblock(layout.placed.len() as u64, layout.nids[&ROOT] as u16);
    Ok(image.bytes)
}

struct Image {
    bytes: Vec<u8>,
    /// First block of the data area.
    data_block: u64,
}

impl Image {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_superblock(&mut self, inodes: u64, root_nid: u16) {
        let at = SUPERBLOCK;
        let blocks = (self.bytes.len() as u64 / BLOCK) as u32;
        self.put(at, &MAGIC.to_le_bytes());
        self.put(at + 0x08, &COMPAT.to_le_bytes());
        self.put(at + 0x0C, &[BLOCK.trailing_zeros() as u8]);
        self.put(at + 0x0E, &root_nid.to_le_bytes());
        self.put(at + 0x10, &inodes.to_le_bytes());
        self.put(at + 0x24, &blocks.to_le_bytes());
        self.put(at + 0x28, &((METADATA / BLOCK) as u32).to_le_bytes());
        self.put(at + 0x40, WRITER);
        self.put(at + 0x50, &INCOMPAT.to_le_bytes());
        self.put(at + 0x56, &1u16.to_le_bytes());
        self.put(at + 0x58, &((DEVICE_SLOT / 128) as u16).to_le_bytes());
        // The UUID names the image by all that is in it: two that have the same one show the same.
        let id = blake3::hash(&self.bytes);
        self.put(at + 0x30, &id.as_bytes()[..ID_BYTES]);
        let sum = superblock_checksum(&self.bytes);
        self.put(at + 0x04, &sum.to_le_bytes());
    }

    fn put_device_slot(&mut self, seed: &[u8; 32], blocks: u32) {
        let own_blocks = (self.bytes.len() as u64 / BLOCK) as u32;
        let tag: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        self.put(DEVICE_SLOT, tag.as_bytes());
        self.put(DEVICE_SLOT + 0x40, &blocks.to_le_bytes());
        self.put(DEVICE_SLOT + 0x44, &own_blocks.to_le_bytes());
    }

    fn put_inode(&mut self, tree: &Tree<'_>, layout: &Layout, placed: &Placed, serial: u32) -> Result<(), ErofsError> {
        let inode = &tree.inodes[placed.index];
        let at = (METADATA + placed.nid * 32) as usize;
        let (form_bits, value) = match &placed.form {
            Form::Plain { first_block } => (0, self.block_number(*first_block)),
            Form::Inline { first_block } => (2, self.block_number(*first_block)),
            Form::Chunked(chunks) => (4, u32::from(WIDE_INDEXES | chunks.exponent as u16)),
        };
        let value = match &inode.node {
            Node::Char { major, minor } | Node::Block { major, minor } => device_number(inode.path, *major, *minor)?,
            Node::File { size: 0, .. } | Node::Fifo => 0,
            _ => value,
        };
        let mode = file_type(&inode.node).0 | inode.attributes.mode;
        let header = Header { format: 1 | form_bits << 1, mode, value, serial };
        self.put_header(at, placed, &inode.attributes, &header);
        self.put(at + INODE as usize, &xattr::body(inode.path, &inode.attributes.xattrs)?);
        let behind = at + INODE as usize + placed.xattr_bytes;
        match &inode.node {
            Node::Directory(_) => self.put_data(behind, &placed.form, &directory_content(tree, layout, placed)),
            Node::Symlink(target) => self.put_data(behind, &placed.form, target),
            _ => self.put_chunks(behind, &placed.form),
        }
        Ok(())
    }

    fn block_number(&self, first_block: u64) -> u32 {
        (self.data_block + first_block) as u32
    }

    fn put_header(&mut self, at: usize, placed: &Placed, attributes: &Attributes, header: &Header) {
        self.put(at, &header.format.to_le_bytes());
        self.put(at + 0x02, &xattr::count(placed.xattr_bytes).to_le_bytes());
        self.put(at + 0x04, &header.mode.to_le_bytes());
        self.put(at + 0x08, &placed.size.to_le_bytes());
        self.put(at + 0x10, &header.value.to_le_bytes());
        self.put(at + 0x14, &header.serial.to_le_bytes());
        self.put(at + 0x18, &attributes.uid.to_le_bytes());
        self.put(at + 0x1C, &attributes.gid.to_le_bytes());
        self.put(at + 0x20, &attributes.mtime.to_le_bytes());
        self.put(at + 0x28, &attributes.mtime_nanos.to_le_bytes());
        self.put(at + 0x2C, &placed.links.to_le_bytes());
    }

    fn put_data(&mut self, behind: usize, form: &Form, data: &[u8]) {
        let block = BLOCK as usize;
        match form {
            Form::Plain { first_block } => {
                self.put((self.data_block + first_block) as usize * block, data);
            }
            Form::Inline { first_block } => {
                let (full, tail) = data.split_at(data.len() / block * block);
                self.put((self.data_block + first_block) as usize * block, full);
                self.put(behind, tail);
            }
            Form::Chunked(_) => unreachable!("only regular files are chunked"),
        }
    }

    fn put_chunks(&mut self, behind: usize, form: &Form) {
        let Form::Chunked(chunks) = form else { return };
        let mut at = behind.next_multiple_of(8);
        for block in &chunks.blocks {
            self.put(at + 2, &TAR.to_le_bytes());
            self.put(at + 4, &block.to_le_bytes());
            at += 8;
        }
    }
}

/// The fields of an inode that depend on its type.
struct Header {
    format: u16,
    mode: u16,
    value: u32,
    serial: u32,
}

fn directory_content(tree: &Tree<'_>, layout: &Layout, placed: &Placed) -> Vec<u8> {
    let children = tree.children(placed.index).into_iter().flatten();
    let children = children.map(|(&name, &child)| (name, (layout.nids[&child], type_of(tree, child))));
    let directory = file_type(&Node::Directory(Default::default())).1;
    let names = names_of(children, (placed.nid, directory), (placed.parent, directory));
    let names: Vec<Name<'_>> =
        names.into_iter().map(|(name, (nid, file_type))| Name { name, nid, file_type }).collect();
    debug_assert!(names.is_sorted_by(|a, b| a.name < b.name));
    directory::content(&names)
}

fn type_of(tree: &Tree<'_>, index: InodeIndex) -> u8 {
    file_type(&tree.inodes[index].node).1
}

/// The type bits of the mode, and the type in a directory entry.
fn file_type(node: &Node<'_>) -> (u16, u8) {
    match node {
        Node::File { .. } => (0o100_000, 1),
        Node::Directory(_) => (0o040_000, 2),
        Node::Char { .. } => (0o020_000, 3),
        Node::Block { .. } => (0o060_000, 4),
        Node::Fifo => (0o010_000, 5),
        Node::Symlink(_) => (0o120_000, 7),
    }
}

/// The kernel's `new_encode_dev`.
fn device_number(path: &[u8], major: u32, minor: u32) -> Result<u32, ErofsError> {
    if major > 0xFFF || minor > 0xF_FFFF {
        return Err(ErofsError::unfit(path, "a device number of more than 12 and 20 bits"));
    }
    Ok((minor & 0xFF) | (major << 8) | ((minor & !0xFF) << 12))
}

/// CRC32C of the block that holds the superblock, without the final inversion; the field itself counts as zero.
pub(super) fn superblock_checksum(image: &[u8]) -> u32 {
    let mut block = [0; BLOCK as usize];
    block.copy_from_slice(&image[SUPERBLOCK..SUPERBLOCK + BLOCK as usize]);
    block[4..8].fill(0);
    !crc32c::crc32c(&block)
}
