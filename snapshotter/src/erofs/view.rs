//! Reads an image that [`write_image`](super::write_image) wrote, a piece at a time: where the kernel cannot mount it, the
//! FUSE tree shows what its bytes say, so both ways of mounting show the same.
//!
//! The image was written on this machine. What does not make sense in it is an error all the same, never a panic.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::BLOCK;
use super::chunks::{HOLE, WIDE_INDEXES};
use super::image::{MAGIC, METADATA, SUPERBLOCK, superblock_checksum};
use super::layout::INODE;
use crate::limits::MAX_FILE_BYTES;

/// Entries that fit into a directory block, and more.
const MAX_IN_BLOCK: u64 = 256;
/// What names an image, in bytes.
pub const ID_BYTES: usize = 16;

/// What an image says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The image's name: of all its other bytes.
    pub id: [u8; ID_BYTES],
    /// Number of the root's inode.
    pub root: u64,
}

/// One inode; its number never changes, since the image never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Its number: where it lies in the metadata, in units of 32 bytes.
    pub nid: u64,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, seconds since the epoch.
    pub mtime: i64,
    /// Its nanoseconds.
    pub mtime_nanos: u32,
    /// Device number in the kernel's 32-bit form (`new_encode_dev`); 0 for what is no device.
    pub device: u32,
    form: u16,
    value: u32,
    xattr_bytes: u64,
}

impl Inode {
    const fn is(&self, kind: u32) -> bool {
        self.mode & 0o170_000 == kind
    }

    const fn behind_header(&self) -> u64 {
        METADATA + self.nid * 32 + INODE
    }

    const fn behind_xattrs(&self) -> u64 {
        self.behind_header() + self.xattr_bytes
    }
}

/// One name of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a> {
    /// The name, without its directory.
    pub name: &'a [u8],
    /// The inode's number.
    pub nid: u64,
    /// The type as in `d_type` of readdir(3).
    pub kind: u8,
    /// Where a listing goes on behind it.
    pub next: u64,
}

/// Where a stretch of a file's bytes is; `None` for a hole, which reads as zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// In the tar.
    pub tar: Option<u64>,
    /// In bytes.
    pub length: u64,
}

/// An open image.
#[derive(Debug, Clone, Copy)]
pub struct View<'a>(pub &'a File);

impl View<'_> {
    /// Checks that the file is an image of this version's writer.
    ///
    /// # Errors
    ///
    /// When it is none, or the disk fails.
    pub fn superblock(&self) -> io::Result<Superblock> {
        // The checksum covers the block that holds the superblock.
        let mut head = [0; SUPERBLOCK + BLOCK as usize];
        self.0.read_exact_at(&mut head, 0)?;
        let block = &head[SUPERBLOCK..];
        if u32_at(block, 0) != MAGIC
            || u32_at(block, 4) != superblock_checksum(&head)
            || &block[0x40..0x50] != super::WRITER
        {
            return Err(damaged("no image of this version of Lapwing"));
        }
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&block[0x30..0x40]);
        Ok(Superblock { id, root: u16_at(block, 0xE).into() })
    }

    /// The inode with this number.
    ///
    /// # Errors
    ///
    /// When there is none, or the disk fails.
    pub fn inode(&self, nid: u64) -> io::Result<Inode> {
        let mut raw = [0; INODE as usize];
        let at = nid.checked_mul(32).and_then(|offset| offset.checked_add(METADATA));
        self.0.read_exact_at(&mut raw, at.ok_or_else(|| damaged("an inode beyond the image"))?)?;
        let (format, mode) = (u16_at(&raw, 0), u32::from(u16_at(&raw, 4)));
        if format & 1 != 1 {
            return Err(damaged("no inode is at this number"));
        }
        let value = u32_at(&raw, 0x10);
        let device = if matches!(mode & 0o170_000, 0o020_000 | 0o060_000) { value } else { 0 };
        let xattr_bytes = match u64::from(u16_at(&raw, 2)) {
            0 => 0,
            count => 12 + (count - 1) * 4,
        };
        Ok(Inode {
            nid,
            mode,
            links: u32_at(&raw, 0x2C),
            uid: u32_at(&raw, 0x18),
            gid: u32_at(&raw, 0x1C),
            size: u64_at(&raw, 8),
            mtime: u64_at(&raw, 0x20) as i64,
            mtime_nanos: u32_at(&raw, 0x28),
            device,
            form: format >> 1,
            value,
            xattr_bytes,
        })
    }

    /// The inode of `name` in a directory.
    ///
    /// # Errors
    ///
    /// When the image is damaged, or the disk fails.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> io::Result<Option<u64>> {
        // Names are sorted through all blocks: the block is the last whose first name is not greater.
        let (mut from, mut to) = (0, self.blocks(directory)?);
        while to - from > 1 {
            let middle = from + (to - from) / 2;
            let block = self.block(directory, middle)?;
            let first = block.names().next().ok_or_else(|| damaged("an empty directory block"))??;
            if first.name <= name { from = middle } else { to = middle }
        }
        for found in self.block(directory, from)?.names() {
            let found = found?;
            if found.name == name {
                return Ok(Some(found.nid));
            }
        }
        Ok(None)
    }

    /// Gives the names of a directory to `each`, `.` and `..` among them, from where [`Name::next`] says (0: all), until
    /// it says no.
    ///
    /// # Errors
    ///
    /// When the image is damaged, or the disk fails.
    pub fn list(&self, directory: &Inode, from: u64, mut each: impl FnMut(Name<'_>) -> bool) -> io::Result<()> {
        let mut skip = from % MAX_IN_BLOCK;
        for number in from / MAX_IN_BLOCK..self.blocks(directory)? {
            let block = self.block(directory, number)?;
            for name in block.names().skip(skip as usize) {
                if !each(name?) {
                    return Ok(());
                }
            }
            skip = 0;
        }
        Ok(())
    }

    /// Where a symbolic link points to.
    ///
    /// # Errors
    ///
    /// When it is none, the image is damaged, or the disk fails.
    pub fn target(&self, link: &Inode) -> io::Result<Vec<u8>> {
        if !link.is(0o120_000) || link.size > crate::limits::MAX_PATH_BYTES as u64 {
            return Err(damaged("no symbolic link"));
        }
        let at = match link.form {
            0 => u64::from(link.value) * BLOCK,
            2 if link.size < BLOCK => link.behind_xattrs(),
            // Full blocks from the data area, the tail behind the inode.
            2 => {
                return (0..link.size.div_ceil(BLOCK))
                    .map(|number| self.content(link, number))
                    .collect::<io::Result<Vec<_>>>()
                    .map(|blocks| blocks.concat());
            }
            _ => return Err(damaged("a link of an unknown form")),
        };
        let mut target = vec![0; link.size as usize];
        self.0.read_exact_at(&mut target, at)?;
        Ok(target)
    }

    /// The extended attributes, full names and values.
    ///
    /// # Errors
    ///
    /// When the image is damaged, or the disk fails.
    pub fn xattrs(&self, inode: &Inode) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        const HEADER: usize = 12;
        let mut raw = vec![0; inode.xattr_bytes as usize];
        self.0.read_exact_at(&mut raw, inode.behind_header())?;
        let (mut found, mut at) = (Vec::new(), HEADER);
        while at < raw.len() {
            let entry = raw.get(at..at + 4).ok_or_else(|| damaged("an attribute cut off"))?;
            let (name, prefix, value) = (usize::from(entry[0]), entry[1], usize::from(u16_at(entry, 2)));
            let bytes = raw.get(at + 4..at + 4 + name + value).ok_or_else(|| damaged("an attribute cut off"))?;
            let prefix = super::xattr::prefix(prefix).ok_or_else(|| damaged("an attribute of an unknown kind"))?;
            found.push(([prefix, &bytes[..name]].concat(), bytes[name..].to_vec()));
            at += (4 + name + value).next_multiple_of(4);
        }
        Ok(found)
    }

    /// Where the bytes of `range` of a regular file are, which lies within it; neighbours are joined.
    ///
    /// # Errors
    ///
    /// When the image is damaged, or the disk fails.
    pub fn stretches(&self, file: &Inode, range: Range<u64>) -> io::Result<Vec<Stretch>> {
        if !file.is(0o100_000)
            || file.form != 4
            || file.value & u32::from(!0x1F_u16) != u32::from(WIDE_INDEXES)
            || range.end > file.size
            || file.size > MAX_FILE_BYTES
        {
            return Err(damaged("no file with chunks, or a read beyond its end"));
        }
        let chunk = BLOCK << (file.value & 0x1F);
        let chunks = range.start / chunk..range.end.div_ceil(chunk);
        let mut raw = vec![0; (chunks.end - chunks.start) as usize * 8];
        self.0.read_exact_at(&mut raw, file.behind_xattrs().next_multiple_of(8) + chunks.start * 8)?;
        let mut stretches: Vec<Stretch> = Vec::new();
        for (number, index) in chunks.zip(raw.chunks_exact(8)) {
            let (start, end) = (range.start.max(number * chunk), range.end.min((number + 1) * chunk));
            let tar = match u32_at(index, 4) {
                HOLE => None,
                block => Some(u64::from(block) * BLOCK + (start - number * chunk)),
            };
            match stretches.last_mut() {
                Some(last) if last.tar.map(|at| at + last.length) == tar => last.length += end - start,
                _ => stretches.push(Stretch { tar, length: end - start }),
            }
        }
        Ok(stretches)
    }

    fn blocks(&self, directory: &Inode) -> io::Result<u64> {
        if !directory.is(0o040_000) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(directory.size.div_ceil(BLOCK))
    }

    fn block(&self, directory: &Inode, number: u64) -> io::Result<DirectoryBlock> {
        Ok(DirectoryBlock { bytes: self.content(directory, number)?, number })
    }

    /// One block of what a directory or long link holds.
    fn content(&self, inode: &Inode, number: u64) -> io::Result<Vec<u8>> {
        let length = inode.size.saturating_sub(number * BLOCK).min(BLOCK);
        let inline = inode.form == 2 && length < BLOCK;
        let at = match inline {
            true => Some(inode.behind_xattrs()),
            false => u64::from(inode.value).checked_add(number).and_then(|block| block.checked_mul(BLOCK)),
        };
        let at = at.ok_or_else(|| damaged("contents beyond the image"))?;
        let mut block = vec![0; length as usize];
        self.0.read_exact_at(&mut block, at)?;
        Ok(block)
    }
}

struct DirectoryBlock {
    bytes: Vec<u8>,
    number: u64,
}

impl DirectoryBlock {
    /// Entries of 12 bytes, then the names; the first entry's offset tells how many there are.
    fn names(&self) -> impl Iterator<Item = io::Result<Name<'_>>> {
        const ENTRY: usize = 12;
        let start_of =
            |entry: usize| self.bytes.get(entry * ENTRY + 8..entry * ENTRY + 10).map(|raw| usize::from(u16_at(raw, 0)));
        let count = start_of(0).map_or(0, |start| start / ENTRY);
        (0..count).map(move |entry| {
            let cut = || damaged("a directory block cut off");
            let start = start_of(entry).ok_or_else(cut)?;
            let end = if entry + 1 < count { start_of(entry + 1).ok_or_else(cut)? } else { self.bytes.len() };
            let name = self.bytes.get(start..end).ok_or_else(cut)?;
            let raw = self.bytes.get(entry * ENTRY..entry * ENTRY + ENTRY).ok_or_else(cut)?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let next = self.number * MAX_IN_BLOCK + entry as u64 + 1;
            Ok(Name { name, nid: u64_at(raw, 0), kind: d_type(raw[10]), next })
        })
    }
}

/// EROFS's type of an entry as readdir(3) has it.
fn d_type(kind: u8) -> u8 {
    [0, 8, 4, 2, 6, 1, 12, 10].get(usize::from(kind)).copied().unwrap_or(0)
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
