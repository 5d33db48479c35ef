//! The contract with somebody else on this machine who keeps blobs in files: a container runtime's content store.
//!
//! The node ([`crate::node::Node::follow_foreign`]) learns here what there is; it reads and verifies the files by itself.

use std::collections::HashSet;
use std::path::PathBuf;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;

use crate::digest::Digest;

/// Somebody else's blobs.
///
/// Contract:
/// * A blob that is listed, or [`News::Added`], is complete: its file is renamed into the directory when it is, and not
///   changed afterwards. Removing the file is how a blob goes.
/// * What is added or changed after `follow` returned is told, or the stream ends with an error. So who follows first and
///   lists then misses nothing.
/// * Both may fail at any time, and are tried again.
pub trait ForeignStore: Send + Sync + 'static {
    /// Everything that is there.
    fn list(&self) -> BoxFuture<'_, Result<Listing, ForeignError>>;

    /// What changes from now on.
    fn follow(&self) -> BoxFuture<'_, Result<NewsStream, ForeignError>>;
}

/// What [`ForeignStore::follow`] gives.
pub type NewsStream = BoxStream<'static, Result<News, ForeignError>>;

/// What is in a foreign store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Where the files are, each named by the hexadecimal digits of its digest.
    pub directory: PathBuf,
    /// The blobs.
    pub blobs: HashSet<Digest>,
}

/// What happened in a foreign store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A blob is there.
    Added(Digest),
    /// Something changed, and only a listing tells what.
    Changed,
}

/// Why a foreign store did not answer. The node goes on with what it knows, and asks again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{store}: {reason}")]
pub struct ForeignError {
    /// Which store.
    pub store: String,
    /// What it said, and what to do.
    pub reason: String,
}
