//! The contract with whoever brings a layer's compressed bytes.

use std::ops::Range;

use bytes::Bytes;
use futures_core::future::BoxFuture;

/// How urgent a read is, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A process waits for these bytes.
    Fault,
    /// A process will probably want them soon.
    ReadAhead,
    /// Known to be used at start-up.
    Prefetch,
    /// Nobody waits.
    Background,
}

/// The bytes could not be had before the deadline; the message names blob, range and cause.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// The compressed bytes of one layer, wherever they are now.
///
/// Contract: `read` gives exactly the bytes of `range`, verified, or an error before its own deadline; it may be called
/// from many tasks at once, and dropping the future gives the wish up.
pub trait LayerSource: Send + Sync + 'static {
    /// Reads `range` (not empty; within the layer).
    fn read(&self, range: Range<u64>, urgency: Urgency) -> BoxFuture<'_, Result<Bytes, SourceError>>;
}
