//! The file table of a layer: what its tar says, entry by entry, with offsets instead of bytes.

use std::fmt;

/// A stretch of a regular file's bytes inside the decompressed tar. Gaps between extents read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file, in bytes.
    pub file_offset: u64,
    /// Offset in the decompressed tar, in bytes.
    pub tar_offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of `size` bytes.
    File {
        /// Size in bytes.
        size: u64,
        /// Where its bytes are: ascending, not overlapping; more than one only for sparse files.
        extents: Vec<Extent>,
    },
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Another name of the file with this path (same form as [`Entry::path`]), which came earlier in the tar or lies in
    /// a lower layer.
    Hardlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One entry of a layer's tar, in the order of the tar.
///
/// Nothing is applied yet: a path may come twice (the later wins), parents may be missing, and whiteouts are ordinary
/// files named `.wh.*` (OCI image spec, "Layer Filesystem Changeset").
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path from the root of the layer: no leading or trailing slash, no empty, `.` or `..` component; the root itself
    /// is empty. Any bytes but NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch (may be negative).
    pub mtime: i64,
    /// Nanoseconds of the modification time.
    pub mtime_nanos: u32,
    /// Extended attributes, full names, in the order of the tar.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("path", &String::from_utf8_lossy(&self.path))
            .field("kind", &self.kind)
            .field("mode", &format_args!("{:o}", self.mode))
            .field("owner", &(self.uid, self.gid))
            .field("mtime", &(self.mtime, self.mtime_nanos))
            .field("xattrs", &self.xattrs.len())
            .finish()
    }
}
