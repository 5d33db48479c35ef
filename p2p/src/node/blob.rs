//! One blob as its readers see it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_core::Stream;

use super::error::ReadError;
use crate::digest::Digest;
use crate::swarm::Priority;

/// Where the bytes of a blob came from, since this process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sources {
    /// Bytes of pieces from other nodes.
    pub bytes_from_peers: u64,
    /// Bytes of pieces from the origin.
    pub bytes_from_origin: u64,
}

/// A blob that can be read while it arrives.
pub struct Blob {
    digest: Digest,
    length: u64,
}

impl Blob {
    /// Its name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether all of it is here and matched the digest.
    pub fn is_verified(&self) -> bool {
        todo!()
    }

    /// Bytes of the blob; waits until their pieces are here, each checked.
    pub async fn read(self: &Arc<Self>, range: Range<u64>, priority: Priority) -> Result<Bytes, ReadError> {
        let _ = (range, priority);
        todo!()
    }

    /// The bytes in order, in chunks of at most one piece, as they arrive. When the range is the whole blob, the last
    /// piece is only given after the digest matched: wrong bytes cut the stream instead of completing it.
    pub fn stream(
        self: &Arc<Self>,
        range: Range<u64>,
        priority: Priority,
    ) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + use<> + 'static {
        let _ = (range, priority);
        futures_util::stream::empty()
    }

    /// Lets all of it come; returns at once.
    pub fn want_all(self: &Arc<Self>, priority: Priority) {
        let _ = priority;
        todo!()
    }

    /// Lets all of it come and waits until the digest matched.
    pub async fn verified(self: &Arc<Self>) -> Result<(), ReadError> {
        todo!()
    }

    /// Whether this node was granted the lease of piece 0: by convention it builds what derives from the blob.
    pub fn was_first_lessee(&self) -> bool {
        todo!()
    }

    /// Where its bytes came from.
    pub fn sources(&self) -> Sources {
        todo!()
    }
}
