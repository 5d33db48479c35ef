//! Serves one flat directory of read-only data files to the kernel over FUSE: the decompressed tars of lazy layers.
//!
//! EROFS mounts use these files as devices; nothing else reads them. The loop knows the dozen operations that this
//! takes and no more. Two rules bind it (kernels turn a short read of an EROFS device into zeros or EIO):
//!
//! * a READ is answered in full or with an error, never short but at the end of the file;
//! * every request that wants an answer gets one, even when the code that works on it panics.
//!
//! * [`wire`]: the structures of `include/uapi/linux/fuse.h`, parsed and written byte by byte
//! * [`session`]: threads that read requests, tasks that answer reads
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
mod wire;

use std::ops::Range;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use rustix::io::Errno;

pub use keeping::{Former, HolderProgram, Keeping, former};
pub use mount::{is_connected, mount_at, open_device};
pub use record::{Record, RecordError, Terms};
pub use session::{Handshake, Lengths, Session};

/// One data file. Immutable: the same node id always has the same size and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataFile {
    /// The file's number in the FUSE mount; neither 0 nor 1 (the root), and the same in every process.
    pub nodeid: u64,
    /// Size in bytes.
    pub size: u64,
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
}
