//! Writes a layer's EROFS metadata image: the whole file tree, with the files' bytes left in the decompressed tar.
//!
//! The image has 512-byte blocks, the incompatible features `CHUNKED_FILE` and `DEVICE_TABLE` and one extra device, the
//! tar; the kernel (6.12.2 or newer) mounts it with `device=` naming that file.
//!
//! * [`tree`]: applies the entries of the tar as containerd does, into inodes
//! * [`layout`]: decides where each inode, directory block and long symlink goes
//! * [`xattr`], [`directory`], [`chunks`]: the variable parts of an inode
//! * [`image`]: puts the bytes down
//! * [`view`]: reads an image a piece at a time, for the FUSE tree
//! * [`reader`] (tests): reads an image back, strictly
//!
//! The format is that of the kernel's `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`. The kernel
//! mounts nearly anything and fails late, so everything it does not check is checked here: order of names, address
//! limits, device length, attribute names. Equal input gives equal bytes.
//!
//! ```text
//! 0     zeros
//! 1024  superblock (128 bytes)
//! 1152  device slot of the tar (128 bytes)
//! 1536  metadata: inodes with their xattrs, chunk indexes and inline tails; the root first
//! ...   full directory blocks and long symlinks, block by block
//! ```

mod chunks;
mod directory;
mod image;
mod layout;
#[cfg(test)]
mod reader;
#[cfg(test)]
mod tests;

mod tree;
pub mod view;
mod xattr;

pub use image::write_image;
pub use tree::{Attributes, Inherit, implicit_directories};

/// Bytes in a block of the image and of its device.
pub const BLOCK: u64 = 512;

/// Name of this version of the writer, in the volume name of every image.
pub const WRITER: &[u8; 16] = b"lapwing-erofs-2\0";

/// Why a layer cannot be mounted from an EROFS image; the remedy is always to pull it whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErofsError {
    /// containerd would refuse this entry too, or its meaning depends on other layers.
    #[error("entry {path:?} of the layer cannot be applied: {reason}; the layer must be pulled whole")]
    Apply {
        /// Path of the entry.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// EROFS has no form for this entry.
    #[error("entry {path:?} of the layer does not fit into EROFS: {reason}; the layer must be pulled whole")]
    Unfit {
        /// Path of the entry.
        path: String,
        /// What does not fit.
        reason: &'static str,
    },
    /// The layer as a whole is too large.
    #[error(
        "the layer does not fit into EROFS: {what} is {size}, the limit is {limit}; the layer must be pulled whole"
    )]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

impl ErofsError {
    fn apply(path: &[u8], reason: &'static str) -> Self {
        Self::Apply { path: String::from_utf8_lossy(path).into_owned(), reason }
    }

    fn unfit(path: &[u8], reason: &'static str) -> Self {
        Self::Unfit { path: String::from_utf8_lossy(path).into_owned(), reason }
    }
}

/// The length of the device for a tar of `tar_length` bytes: rounded up to whole blocks.
pub const fn device_length(tar_length: u64) -> u64 {
    tar_length.next_multiple_of(BLOCK)
}
