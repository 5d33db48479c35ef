//! FUSE's structures, protocol 7.38 (`include/uapi/linux/fuse.h`), in the byte order of the machine.

use super::{DataFile, Node, Purpose, Terms};

pub(super) const IN_HEADER: usize = 40;
pub(super) const OUT_HEADER: usize = 16;
pub(super) const ROOT: u64 = 1;

pub(super) const LOOKUP: u32 = 1;
pub(super) const FORGET: u32 = 2;
pub(super) const GETATTR: u32 = 3;
pub(super) const READLINK: u32 = 5;
pub(super) const OPEN: u32 = 14;
pub(super) const READ: u32 = 15;
pub(super) const STATFS: u32 = 17;
pub(super) const RELEASE: u32 = 18;
pub(super) const GETXATTR: u32 = 22;
pub(super) const LISTXATTR: u32 = 23;
pub(super) const FLUSH: u32 = 25;
pub(super) const INIT: u32 = 26;
pub(super) const OPENDIR: u32 = 27;
pub(super) const READDIR: u32 = 28;
pub(super) const RELEASEDIR: u32 = 29;
pub(super) const INTERRUPT: u32 = 36;
pub(super) const DESTROY: u32 = 38;
pub(super) const BATCH_FORGET: u32 = 42;
pub(super) const READDIRPLUS: u32 = 44;

/// Seconds for which the kernel may keep a name or attributes.
const VALID_SECONDS: u64 = 60;
/// The same within a tree, which never changes: 68 years.
const TREE_VALID_SECONDS: u64 = 1 << 31;
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
const FOPEN_CACHE_DIR: u32 = 1 << 3;
const FOPEN_DIRECT_IO: u32 = 1;
const ENTRY_OUT: usize = 128;
const MAJOR: u32 = 7;
const MINOR: u32 = 38;
/// `ASYNC_READ`, `MAX_PAGES`, `PARALLEL_DIROPS`, `ASYNC_DIO`, `EXPLICIT_INVAL_DATA`, `INIT_EXT`, `HAS_RESEND`.
const FLAGS: u64 = 0x80_4244_8001;
/// Also for trees: `DO_READDIRPLUS`, `READDIRPLUS_AUTO`, `NO_OPEN_SUPPORT`, `POSIX_ACL`, `CACHE_SYMLINKS`, `NO_OPENDIR_SUPPORT`,
/// `ALLOW_IDMAP`.
const TREE_FLAGS: u64 = 0x100_0192_6000;
const NO_OPEN_SUPPORT: u64 = 1 << 17;
const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
const HAS_RESEND: u64 = 1 << 39;
const INIT_EXT: u64 = 1 << 30;
/// Smaller than a page: nothing is ever written.
const MAX_WRITE: u32 = 4096;
const MAX_BACKGROUND: u16 = 64;

/// A request as the kernel sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) body: &'a [u8],
}

impl<'a> Request<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let length = u32_at(bytes, 0)? as usize;
        if length != bytes.len() || length < IN_HEADER {
            return None;
        }
        Some(Self {
            opcode: u32_at(bytes, 4)?,
            unique: u64_at(bytes, 8)?,
            nodeid: u64_at(bytes, 16)?,
            body: &bytes[IN_HEADER..],
        })
    }

    /// The name in a LOOKUP.
    pub(super) fn name(&self) -> Option<&'a [u8]> {
        self.body.split(|&byte| byte == 0).next()
    }

    /// How long an answer to GETXATTR or LISTXATTR may be, 0 to be told its length; the name asked for, if it is the former.
    pub(super) fn attribute(&self) -> Option<(u32, &'a [u8])> {
        Some((u32_at(self.body, 0)?, self.body.get(8..)?.split(|&byte| byte == 0).next()?))
    }

    /// Offset and length in a READ or READDIR.
    pub(super) fn extent(&self) -> Option<(u64, u32)> {
        Some((u64_at(self.body, 8)?, u32_at(self.body, 16)?))
    }

    /// The flags in an OPEN.
    pub(super) fn open_flags(&self) -> Option<u32> {
        u32_at(self.body, 0)
    }
}

pub(super) fn out_header(length: usize, errno: i32, unique: u64) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&((OUT_HEADER + length) as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// The notification (`FUSE_NOTIFY_RESEND`) that makes the kernel send again what a former process had read and not answered.
pub(super) fn resend() -> [u8; OUT_HEADER] {
    const NOTIFY_RESEND: i32 = 7;
    out_header(0, -NOTIFY_RESEND, 0)
}

/// The answer to INIT and what it agrees on; `None` when the kernel's protocol is not 7.
pub(super) fn init_out(body: &[u8], purpose: Purpose) -> Option<([u8; 64], Terms)> {
    let (major, minor, max_readahead) = (u32_at(body, 0)?, u32_at(body, 4)?, u32_at(body, 8)?);
    let mut offered = u64::from(u32_at(body, 12)?);
    if offered & INIT_EXT != 0 {
        offered |= u64::from(u32_at(body, 16)?) << 32;
    }
    if major != MAJOR {
        return None;
    }
    let wanted = match purpose {
        Purpose::Devices => FLAGS,
        Purpose::Trees => FLAGS | TREE_FLAGS,
    };
    let flags = wanted & offered;
    let mut out = [0; 64];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAJOR.to_ne_bytes());
    put(4, &MINOR.to_ne_bytes());
    put(8, &max_readahead.to_ne_bytes());
    put(12, &(flags as u32).to_ne_bytes());
    put(16, &MAX_BACKGROUND.to_ne_bytes());
    put(18, &(MAX_BACKGROUND / 4 * 3).to_ne_bytes());
    put(20, &MAX_WRITE.to_ne_bytes());
    put(24, &1u32.to_ne_bytes());
    put(28, &((crate::limits::MAX_READ_BYTES / 4096) as u16).to_ne_bytes());
    put(32, &((flags >> 32) as u32).to_ne_bytes());
    Some((out, Terms { protocol: (major, minor), flags, max_read_bytes: crate::limits::MAX_READ_BYTES }))
}

fn attr(file: Option<DataFile>) -> [u8; 88] {
    let (ino, size, mode, links) = match file {
        Some(file) => (file.nodeid, file.size, 0o100_400u32, 1u32),
        None => (ROOT, 0, 0o040_500, 2),
    };
    let mut out = [0; 88];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &ino.to_ne_bytes());
    put(8, &size.to_ne_bytes());
    put(16, &size.div_ceil(512).to_ne_bytes());
    put(60, &mode.to_ne_bytes());
    put(64, &links.to_ne_bytes());
    put(80, &4096u32.to_ne_bytes());
    out
}

/// The answer to LOOKUP.
pub(super) fn entry_out(file: DataFile) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend(file.nodeid.to_ne_bytes());
    out.extend(0u64.to_ne_bytes());
    out.extend(VALID_SECONDS.to_ne_bytes());
    out.extend(VALID_SECONDS.to_ne_bytes());
    out.extend(0u64.to_ne_bytes());
    out.extend(attr(Some(file)));
    out
}

/// The answer to GETATTR; `None` for the root.
pub(super) fn attr_out(file: Option<DataFile>) -> Vec<u8> {
    let mut out = Vec::with_capacity(104);
    out.extend(VALID_SECONDS.to_ne_bytes());
    out.extend(0u64.to_ne_bytes());
    out.extend(attr(file));
    out
}

impl Terms {
    /// Whether the kernel does without OPEN, for good, once it was told that there is no such thing.
    pub(super) const fn spares_open(&self) -> bool {
        self.flags & NO_OPEN_SUPPORT != 0
    }

    /// Whether the kernel sends again what a process had taken and not answered (Linux 6.9).
    pub(super) const fn resends(&self) -> bool {
        self.flags & HAS_RESEND != 0
    }

    /// The same for OPENDIR.
    pub(super) const fn spares_opendir(&self) -> bool {
        self.flags & NO_OPENDIR_SUPPORT != 0
    }
}

fn node_attr(node: &Node) -> [u8; 88] {
    let mut out = [0; 88];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &node.id.to_ne_bytes());
    put(8, &node.size.to_ne_bytes());
    put(16, &node.size.div_ceil(512).to_ne_bytes());
    // Access, modification and change: an image has one time, and EROFS shows it as all three.
    for (seconds, nanoseconds) in [(24, 48), (32, 52), (40, 56)] {
        put(seconds, &node.mtime.to_ne_bytes());
        put(nanoseconds, &node.mtime_nanos.to_ne_bytes());
    }
    put(60, &node.mode.to_ne_bytes());
    put(64, &node.links.to_ne_bytes());
    put(68, &node.uid.to_ne_bytes());
    put(72, &node.gid.to_ne_bytes());
    put(76, &node.device.to_ne_bytes());
    put(80, &4096u32.to_ne_bytes());
    out
}

/// The answer to LOOKUP of something in a tree; `None`: there is none, which the kernel may remember.
pub(super) fn node_out(node: Option<&Node>) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENTRY_OUT);
    out.extend(node.map_or(0, |node| node.id).to_ne_bytes());
    out.extend(0u64.to_ne_bytes());
    out.extend(TREE_VALID_SECONDS.to_ne_bytes());
    out.extend(TREE_VALID_SECONDS.to_ne_bytes());
    out.extend(0u64.to_ne_bytes());
    out.extend(node.map_or([0; 88], node_attr));
    out
}

/// The answer to GETATTR of something in a tree.
pub(super) fn node_attr_out(node: &Node) -> Vec<u8> {
    let mut out = Vec::with_capacity(104);
    out.extend(TREE_VALID_SECONDS.to_ne_bytes());
    out.extend(0u64.to_ne_bytes());
    out.extend(node_attr(node));
    out
}

/// The answer to OPEN of a file of a tree: the page cache stays right for good.
pub(super) fn tree_open_out() -> [u8; 16] {
    let mut out = [0; 16];
    out[8..12].copy_from_slice(&FOPEN_KEEP_CACHE.to_ne_bytes());
    out
}

/// The answer to OPENDIR of a directory of a tree: so does a listing.
pub(super) fn tree_opendir_out() -> [u8; 16] {
    let mut out = [0; 16];
    out[8..12].copy_from_slice(&(FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR).to_ne_bytes());
    out
}

/// The answer to GETXATTR and LISTXATTR that may be `limit` bytes long; `None` when it is longer.
pub(super) fn attribute_out(limit: u32, value: Vec<u8>) -> Option<Vec<u8>> {
    if limit == 0 {
        return Some([(value.len() as u32).to_ne_bytes(), [0; 4]].concat());
    }
    (value.len() <= limit as usize).then_some(value)
}

/// The answer to OPEN and OPENDIR.
pub(super) fn open_out(direct_io: bool) -> [u8; 16] {
    let mut out = [0; 16];
    let flags = if direct_io { FOPEN_DIRECT_IO } else { 0 };
    out[8..12].copy_from_slice(&flags.to_ne_bytes());
    out
}

/// The answer to STATFS: an empty, full filesystem.
pub(super) fn statfs_out() -> [u8; 80] {
    let mut out = [0; 80];
    out[40..44].copy_from_slice(&512u32.to_ne_bytes());
    out[44..48].copy_from_slice(&255u32.to_ne_bytes());
    out[48..52].copy_from_slice(&512u32.to_ne_bytes());
    out
}

/// A name in an answer to READDIR or READDIRPLUS.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) ino: u64,
    /// The offset behind it.
    pub(super) next: u64,
    /// As in `d_type`.
    pub(super) kind: u8,
}

impl Dirent<'_> {
    const fn length(&self) -> usize {
        (24 + self.name.len()).next_multiple_of(8)
    }

    /// Appends it unless that would exceed `limit`.
    pub(super) fn push(&self, out: &mut Vec<u8>, limit: usize) -> bool {
        let end = out.len() + self.length();
        if end > limit {
            return false;
        }
        out.extend(self.ino.to_ne_bytes());
        out.extend(self.next.to_ne_bytes());
        out.extend((self.name.len() as u32).to_ne_bytes());
        out.extend(u32::from(self.kind).to_ne_bytes());
        out.extend(self.name);
        out.resize(end, 0);
        true
    }

    /// The same with the attributes before it; `None` gives none.
    pub(super) fn push_plus(&self, out: &mut Vec<u8>, limit: usize, node: Option<&Node>) -> bool {
        if out.len() + ENTRY_OUT + self.length() > limit {
            return false;
        }
        out.extend(node_out(node));
        self.push(out, limit)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
