//! What a lazy layer needs of its index.

use std::ops::Range;

use lapwing_p2p::digest::Digest;

use crate::tree::Entry;

/// A stretch of the decompressed tar, and the compressed bytes that give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Within the layer; neighbours may share a byte.
    pub compressed: Range<u64>,
    /// Within the tar.
    pub output: Range<u64>,
}

/// A layer's index: its file table, and how to inflate any span of it.
pub trait LayerIndex: Send + Sync + 'static {
    /// The layer's digest.
    fn layer(&self) -> Digest;
    /// Length of the layer in bytes.
    fn layer_length(&self) -> u64;
    /// Digest of the decompressed tar.
    fn diff_id(&self) -> Digest;
    /// Length of the decompressed tar in bytes.
    fn tar_length(&self) -> u64;
    /// The spans, without gaps.
    fn spans(&self) -> &[Span];
    /// The file table.
    fn entries(&self) -> &[Entry];
    /// Inflates a span and checks it. Blocks on the CPU.
    ///
    /// # Errors
    ///
    /// When the bytes are not the span's; the message says what differs.
    fn inflate_span(&self, span: usize, compressed: &[u8]) -> Result<Vec<u8>, String>;
}
