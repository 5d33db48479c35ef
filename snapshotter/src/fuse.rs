//! Serves read-only files to the kernel over FUSE: the decompressed tars of lazy layers as one flat directory, for EROFS
//! mounts to use as devices; and whole directory trees, for kernels that mount no EROFS over files.
//!
//! The loop knows the operations that this takes and no more. Two rules bind it (kernels turn a short read of an EROFS
//! device into zeros or EIO):
//!
//! * a READ is answered in full or with an error, never short but at the end of the file;
//! * every request that wants an answer gets one, even when the code that works on it panics.
//!
//! * [`wire`]: the structures of `include/uapi/linux/fuse.h`, parsed and written byte by byte
//! * [`session`]: threads that read requests, tasks that answer reads
//! * [`trees`]: what is asked of a tree
//! * [`mount`]: makes and removes the mount
//! * [`record`]: what the next process must know of a connection
//! * [`holder`], [`systemd`]: who keeps the descriptor while no process serves it
//! * [`keeping`]: sees to it that somebody does
//!
//! Nothing is kept between requests: opens carry no state and node ids derive from the layer, so a descriptor that
//! outlives its process can be served by the next one ([`Handshake::Done`]). The kernel ends the connection, for good,
//! when nobody has the descriptor any more.

pub mod holder;
mod keeping;
mod mount;
mod record;
mod session;
mod systemd;
mod trees;
mod wire;

use std::ops::Range;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use rustix::io::Errno;

pub use keeping::{Former, HolderProgram, Keeping, former};
pub use mount::{KIND, is_connected, mount_at, mount_tree, open_device};
pub(crate) use mount::{mount_here, mount_tree_here};
pub use record::{Record, RecordError, Terms};
pub use session::{Handshake, Lengths, Session};

/// One data file. Immutable: the same node id always has the same size and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataFile {
    /// The file's number in the FUSE mount; neither 0 nor 1 (the root), without [`TREE`], and the same in every process.
    pub nodeid: u64,
    /// Size in bytes.
    pub size: u64,
}

/// What a new connection is for: it decides what is agreed on with the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Data files that EROFS mounts read.
    Devices,
    /// Trees that processes read. Files are opened without asking.
    Trees,
}

/// The bit that node ids of trees have and those of data files have not.
pub const TREE: u64 = 1 << 63;

/// Something in a tree. Immutable: the same node id always means the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its number in the FUSE mount, with [`TREE`]; the same in every process.
    pub id: u64,
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
    /// Device number in the kernel's 32-bit form (`new_encode_dev`).
    pub device: u32,
}

/// Extended attributes, full names and values.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// One name in a directory of a tree.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Node id.
    pub id: u64,
    /// Type, as in `d_type` of readdir(3).
    pub kind: u8,
    /// Where a listing goes on behind it.
    pub next: u64,
}

/// Directory trees beside the data files: each is a name in the mount's directory, and is mounted elsewhere from there.
///
/// Called on the threads that read requests, but for [`Trees::read`]: answers come from memory or local disk.
pub trait Trees: Send + Sync + 'static {
    /// The root of the tree of this name.
    fn root(&self, name: &[u8]) -> Result<Node, Errno>;

    /// What has this name in a directory.
    fn lookup(&self, directory: u64, name: &[u8]) -> Result<Option<Node>, Errno>;

    /// What has this number.
    fn node(&self, id: u64) -> Result<Node, Errno>;

    /// Gives the names of a directory to `each`, `.` and `..` among them, from where [`Listed::next`] says (0: all), until
    /// it says no.
    fn list(&self, directory: u64, from: u64, each: &mut dyn FnMut(Listed<'_>) -> bool) -> Result<(), Errno>;

    /// Where a symbolic link points to.
    fn target(&self, link: u64) -> Result<Vec<u8>, Errno>;

    /// Extended attributes.
    fn attributes(&self, id: u64) -> Result<Attributes, Errno>;

    /// The bytes of `range` of a file if they are at hand; `None` to be asked again by [`Trees::read`].
    fn read_cached(&self, file: u64, range: Range<u64>) -> Option<Bytes>;

    /// All bytes of `range` (not empty, within the file), or the error that the reader gets.
    fn read(&self, file: u64, range: Range<u64>) -> BoxFuture<'static, Result<Bytes, Errno>>;
}

/// The files behind a [`Session`].
///
/// `lookup`, `get`, `list` and `read_cached` are called on the threads that read requests: they answer from memory or
/// local disk and never wait for a network.
pub trait DataFiles: Send + Sync + 'static {
    /// The file of this name.
    fn lookup(&self, name: &[u8]) -> Option<DataFile>;

    /// The file with this node id.
    fn get(&self, nodeid: u64) -> Option<DataFile>;

    /// Every file with its name, in a stable order.
    fn list(&self) -> Vec<(Vec<u8>, DataFile)>;

    /// The bytes of `range` if they are at hand; `None` to be asked again by [`DataFiles::read`].
    fn read_cached(&self, nodeid: u64, range: Range<u64>) -> Option<Bytes>;

    /// All bytes of `range` (not empty, within the file), or the error that the reader gets.
    fn read(&self, nodeid: u64, range: Range<u64>) -> BoxFuture<'static, Result<Bytes, Errno>>;

    /// The trees beside them.
    fn trees(&self) -> Option<&dyn Trees> {
        None
    }
}
