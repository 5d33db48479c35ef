//! Reads an image back, for tests: strict where the kernel is lenient.

use std::collections::BTreeMap;

use super::image::{METADATA, SUPERBLOCK, superblock_checksum};
use crate::tree::Extent;

/// What the image says of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) nid: u64,
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) size: u64,
    pub(super) device: u32,
    /// A symlink's target.
    pub(super) target: Vec<u8>,
    /// A file's stretches in the tar, neighbours joined.
    pub(super) extents: Vec<Extent>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Every path of the image; the root is the empty one.
pub(super) fn read(image: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    let reader = Reader(image);
    assert_eq!(reader.u32(SUPERBLOCK), 0xE0F5_E1E2);
    assert_eq!(reader.u32(SUPERBLOCK + 4), superblock_checksum(image));
    assert_eq!((image[SUPERBLOCK + 0xC], reader.u32(SUPERBLOCK + 0x50)), (9, 0xC));
    assert_eq!(u64::from(reader.u32(SUPERBLOCK + 0x28)) * 512, METADATA);
    assert_eq!((reader.u16(SUPERBLOCK + 0x56), reader.u16(SUPERBLOCK + 0x58)), (1, 9));
    assert_eq!(reader.u32(SUPERBLOCK + 0x24) as usize * 512, image.len());
    let root = u64::from(reader.u16(SUPERBLOCK + 0xE));
    let mut found = BTreeMap::new();
    reader.walk(b"", root, root, &mut found);
    let inodes: std::collections::BTreeSet<u64> = found.values().map(|found| found.nid).collect();
    assert_eq!(reader.u64(SUPERBLOCK + 0x10), inodes.len() as u64);
    found
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn walk(&self, path: &[u8], nid: u64, parent: u64, found: &mut BTreeMap<Vec<u8>, Found>) {
        let inode = self.inode(nid);
        let (mode, size) = (inode.mode, inode.size);
        found.insert(path.to_vec(), inode);
        if mode & 0o170_000 != 0o040_000 {
            return;
        }
        let names = self.names(&self.data(nid, size));
        assert!(names.is_sorted_by(|a, b| a.0 < b.0), "names out of order");
        for (name, child, file_type) in names {
            match name.as_slice() {
                b"." => assert_eq!(child, nid),
                b".." => assert_eq!(child, parent),
                _ => {
                    let kinds = [0, 0o100_000, 0o040_000, 0o020_000, 0o060_000, 0o010_000, 0, 0o120_000];
                    assert_eq!(self.inode(child).mode & 0o170_000, kinds[usize::from(file_type)]);
                    let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    self.walk(&[path, separator, &name].concat(), child, nid, found);
                }
            }
        }
    }

    fn names(&self, content: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut names = Vec::new();
        for block in content.chunks(512) {
            let count = usize::from(Reader(block).u16(8)) / 12;
            for i in 0..count {
                let start = usize::from(Reader(block).u16(i * 12 + 8));
                let end = if i + 1 < count { usize::from(Reader(block).u16(i * 12 + 20)) } else { block.len() };
                let name: Vec<u8> = block[start..end].iter().copied().take_while(|&byte| byte != 0).collect();
                names.push((name, Reader(block).u64(i * 12), block[i * 12 + 10]));
            }
        }
        names
    }

    fn inode(&self, nid: u64) -> Found {
        let at = (METADATA + nid * 32) as usize;
        let (mode, size) = (self.u16(at + 4), self.u64(at + 8));
        assert_eq!(self.u16(at) & 1, 1, "only extended inodes are written");
        let device_like = matches!(mode & 0o170_000, 0o020_000 | 0o060_000);
        Found {
            nid,
            mode,
            links: self.u32(at + 0x2C),
            uid: self.u32(at + 0x18),
            gid: self.u32(at + 0x1C),
            mtime: (self.u64(at + 0x20) as i64, self.u32(at + 0x28)),
            size,
            device: if device_like { self.u32(at + 0x10) } else { 0 },
            target: if mode & 0o170_000 == 0o120_000 { self.data(nid, size) } else { Vec::new() },
            extents: if mode & 0o170_000 == 0o100_000 { self.extents(at, size) } else { Vec::new() },
            xattrs: self.xattrs(at),
        }
    }

    fn xattr_length(&self, at: usize) -> usize {
        match usize::from(self.u16(at + 2)) {
            0 => 0,
            count => 12 + (count - 1) * 4,
        }
    }

    fn xattrs(&self, at: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let (mut xattrs, end) = (BTreeMap::new(), at + 64 + self.xattr_length(at));
        let mut entry = at + 64 + 12;
        while entry < end {
            let (name, value) = (usize::from(self.0[entry]), usize::from(self.u16(entry + 2)));
            let prefix: &[u8] = match self.0[entry + 1] {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => panic!("prefix {other}"),
            };
            let bytes = &self.0[entry + 4..];
            xattrs.insert([prefix, &bytes[..name]].concat(), bytes[name..name + value].to_vec());
            entry += (4 + name + value).next_multiple_of(4);
        }
        assert!(self.xattr_length(at) == 0 || entry == end);
        xattrs
    }

    /// The content of a directory or symlink.
    fn data(&self, nid: u64, size: u64) -> Vec<u8> {
        let at = (METADATA + nid * 32) as usize;
        let (first, size) = (self.u32(at + 0x10) as usize * 512, size as usize);
        match self.u16(at) >> 1 {
            0 => self.0[first..first + size].to_vec(),
            2 => {
                let (full, tail) = (size / 512 * 512, at + 64 + self.xattr_length(at));
                assert!(tail % 512 + size % 512 <= 512, "a tail crosses a block");
                [&self.0[first..first + full], &self.0[tail..tail + size % 512]].concat()
            }
            other => panic!("layout {other}"),
        }
    }

    fn extents(&self, at: usize, size: u64) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        if size == 0 {
            assert_eq!((self.u16(at) >> 1, self.u32(at + 0x10)), (0, 0));
            return extents;
        }
        assert_eq!((self.u16(at) >> 1, self.u32(at + 0x10) & !0x1F), (4, 0x20));
        let chunk = 512u64 << (self.u32(at + 0x10) & 0x1F);
        let index = (at + 64 + self.xattr_length(at)).next_multiple_of(8);
        for number in 0..size.div_ceil(chunk) {
            let entry = index + number as usize * 8;
            let block = self.u32(entry + 4);
            if block == u32::MAX {
                continue;
            }
            assert_eq!((self.u16(entry), self.u16(entry + 2)), (0, 1));
            let (file_offset, tar_offset) = (number * chunk, u64::from(block) * 512);
            let length = chunk.min(size - file_offset);
            match extents.last_mut() {
                Some(last)
                    if last.file_offset + last.length == file_offset && last.tar_offset + last.length == tar_offset =>
                {
                    last.length += length;
                }
                _ => extents.push(Extent { file_offset, tar_offset, length }),
            }
        }
        extents
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }
}
