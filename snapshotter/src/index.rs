//! The layer index: where every file of a layer lies in its decompressed tar, and how to inflate any part of that tar
//! without what comes before it.
//!
//! [`IndexBuilder`] makes one in a single pass over the compressed layer and checks both digests on the way. An index is
//! a pure function of the layer and of the format version, so independent builders can be compared; its encoded bytes,
//! named by their SHA-256, are an object of the swarm. It holds no state on disk: a crash loses an unfinished build.
//!
//! A *span* is a stretch of the tar, about 1 MiB, with the bytes of the layer that it is inflated from. It starts at a
//! *checkpoint*: for gzip a deflate block boundary (a bit offset and the bytes of the preceding window that are still
//! used, after zlib's `examples/zran.c`), for zstd a frame, for a plain tar anything. BLAKE3 of both sides is in the
//! index, so every span is checked alone, before a byte of it is served.
//!
//! What is taken: gzip with any number of members, empty ones included, and zeros after the last; anything else after it
//! is refused, as containerd refuses it. zstd with frames up to 32 MiB of output, skippable frames included.
//! A checkpoint can only stand between two blocks, so a gzip layer with a block of more than 64 MiB has no index: zlib-ng
//! and zlib-rs make a single block of any length at level 1. The same holds for zstd in one large frame.
//!
//! An index can also be made of a table of contents that somebody else wrote ([`toc`](crate::toc)). Where that names only
//! the contents of files, the "tar" that its spans and extents speak of is a *device* of those contents alone.
//! Such an index is never encoded: the table is kept instead.
//!
//! # Encoded form, version 1
//!
//! All integers little endian. The zstd level, and the zstd release when it changes its output, are part of the version.
//!
//! ```text
//!   0   8  "LAPWINDX"
//!   8   4  version: 1
//!  12   4  compression: 0 none, 1 gzip, 2 zstd
//!  16  32  SHA-256 of the layer
//!  48   8  length of the layer
//!  56  32  SHA-256 of the tar (the diffID)
//!  88   8  length of the tar
//!  96   4  number of spans, S
//! 100   4  number of entries
//! 104   8  length of all windows, W
//! 112   4  length of the file table as stored, T
//! 116   4  length of the file table itself
//! 120      S spans of 88 bytes
//!              0   8  offset in the layer of the first compressed byte: where the span before ends, or on its last byte
//!              8   4  length of the compressed bytes
//!             12   4  length of the output; spans follow each other in the tar without gaps
//!             16   2  length of the window as stored, 0 for none
//!             18   1  bits of the first compressed byte that belong to the span (the high ones), 0 for all eight
//!             19   5  zero
//!             24  32  BLAKE3 of the compressed bytes
//!             56  32  BLAKE3 of the output
//!       W  windows, each a zstd frame of at most 32 KiB of content, unused bytes zero
//!       T  file table, one zstd frame
//! ```
//!
//! The file table is one record for each entry, in the order of the tar. `n` is a number in LEB128 without needless bytes,
//! `s` a number of bytes and the bytes.
//!
//! ```text
//! u8 kind: 0 file, 1 directory, 2 symbolic link, 3 hard link, 4 character device, 5 block device, 6 pipe
//! n  mode    n  uid    n  gid
//! n  seconds of the modification time less those of the entry before, zigzag    n  its nanoseconds
//! n  how many bytes the path shares with that of the entry before    s  the rest of the path
//! file:    n size, n number of extents, each: n bytes between it and the one before in the file, n the same in the tar
//!          (there counted from the last extent of any entry before), n its length
//! links:   s target        devices: n major, n minor
//! n  number of extended attributes, each: s name, s value
//! ```

use std::ops::Range;

use lapwing_p2p::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::tree::Entry;

mod builder;
pub(crate) mod chunk;
mod codec;
mod error;
mod gzip;
mod ledger;
mod proof;
mod table;
mod window;
mod zstd;

pub use builder::IndexBuilder;
pub use error::{IndexError, SpanError};
pub use proof::LayerProof;

pub(crate) use gzip::gunzip_member;
pub(crate) use ledger::SPAN_BYTES;

use chunk::Chunk;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// Gzip, one or more members.
    Gzip,
    /// Zstandard, one or more frames.
    Zstd,
}

/// Who made an index, and what is thus known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A node, in one pass over the whole layer.
    Built,
    /// Taken from the layer's eStargz table of contents.
    EStargz,
    /// Taken from the layer's zstd:chunked table of contents.
    ZstdChunked,
    /// Taken from a SOCI index that stands beside the image.
    Soci,
}

impl Form {
    /// Whether the device is not the layer's tar but the contents of its files alone.
    pub fn is_virtual(self) -> bool {
        matches!(self, Self::EStargz | Self::ZstdChunked)
    }

    /// Its name, for operators.
    pub fn name(self) -> &'static str {
        match self {
            Self::Built => "index",
            Self::EStargz => "eStargz",
            Self::ZstdChunked => "zstd:chunked",
            Self::Soci => "SOCI",
        }
    }
}

/// Where and with what inflating starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) bits: u8,
    /// As stored; empty if nothing before is needed.
    pub(crate) window: Vec<u8>,
}

/// How the output of a span is had from its compressed bytes, and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recipe {
    /// From a checkpoint; BLAKE3 of both sides is known.
    Built { checkpoint: Checkpoint, compressed_hash: blake3::Hash, output_hash: blake3::Hash },
    /// From a checkpoint that somebody else made; only the SHA-256 of the compressed bytes is known.
    Measured { checkpoint: Checkpoint, compressed_hash: [u8; 32] },
    /// Chunks out of whole members or frames, in the order of these; what lies between them reads as zeros.
    Chunks(Vec<Chunk>),
}

/// A stretch of the tar that can be inflated alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Bytes of the layer that are needed to inflate it. Neighbours may share one byte.
    pub compressed: Range<u64>,
    /// Bytes of the tar that it gives; never empty.
    pub output: Range<u64>,
    pub(crate) recipe: Recipe,
}

impl Span {
    /// BLAKE3 of the output, if it is known before the first inflation.
    pub fn output_hash(&self) -> Option<&[u8; 32]> {
        match &self.recipe {
            Recipe::Built { output_hash, .. } => Some(output_hash.as_bytes()),
            Recipe::Measured { .. } | Recipe::Chunks(_) => None,
        }
    }

    /// Adds what tells this span from another to a hash.
    pub(crate) fn identify(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&self.output.end.to_le_bytes());
        match &self.recipe {
            Recipe::Built { output_hash, .. } => {
                hasher.update(output_hash.as_bytes());
            }
            Recipe::Measured { checkpoint, compressed_hash } => {
                hasher.update(compressed_hash);
                hasher.update(&checkpoint.window);
            }
            Recipe::Chunks(chunks) => {
                for chunk in chunks {
                    hasher.update(&chunk.at.to_le_bytes());
                    hasher.update(&chunk.digest);
                }
            }
        }
    }

    fn chunks(&self) -> &[Chunk] {
        match &self.recipe {
            Recipe::Chunks(chunks) => chunks,
            Recipe::Built { .. } | Recipe::Measured { .. } => &[],
        }
    }
}

/// File table and checkpoints of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub(crate) form: Form,
    pub(crate) layer: Digest,
    pub(crate) layer_length: u64,
    pub(crate) diff_id: Digest,
    pub(crate) tar_length: u64,
    pub(crate) compression: Compression,
    pub(crate) spans: Vec<Span>,
    pub(crate) entries: Vec<Entry>,
    /// The first spans that their maker wants fetched as soon as the layer is mounted.
    pub(crate) prefetch: usize,
}

impl Index {
    /// The index with another file table, as a liar would give it.
    #[cfg(test)]
    pub(crate) fn with_entries(mut self, entries: Vec<Entry>) -> Self {
        self.entries = entries;
        self
    }

    /// Who made it.
    pub fn form(&self) -> Form {
        self.form
    }

    /// How many of the first spans are wanted at start-up, as its maker says.
    pub fn prefetch(&self) -> usize {
        self.prefetch
    }

    /// SHA-256 of the compressed layer, its name in the manifest.
    pub fn layer(&self) -> Digest {
        self.layer
    }

    /// Length of the compressed layer, in bytes.
    pub fn layer_length(&self) -> u64 {
        self.layer_length
    }

    /// SHA-256 of the decompressed tar, its name in the image's configuration.
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }

    /// Length of the decompressed tar, or of the device in its place, in bytes.
    pub fn tar_length(&self) -> u64 {
        self.tar_length
    }

    /// How the layer is compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The spans, in order; together they are the tar, or the device.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// What the tar says, in its order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The span that holds byte `tar_offset` of the tar, if the tar has it.
    pub fn span_at(&self, tar_offset: u64) -> Option<usize> {
        let span = self.spans.partition_point(|span| span.output.end <= tar_offset);
        (span < self.spans.len()).then_some(span)
    }

    /// Inflates one span from exactly its compressed bytes and checks both sides. Blocking work on the processor.
    pub fn inflate_span(&self, span: usize, compressed: &[u8]) -> Result<Vec<u8>, SpanError> {
        let layer = self.layer;
        let spans = self.spans.len();
        let described = self.spans.get(span).ok_or(SpanError::NoSuchSpan { layer, span, spans })?;
        let wrong = |problem| SpanError::WrongIndex { layer, span, problem };
        let length = usize::try_from(described.output.end - described.output.start)
            .map_err(|_| wrong("longer than memory".to_owned()))?;
        let (checkpoint, is_input, output_hash) = match &described.recipe {
            Recipe::Built { checkpoint, compressed_hash, output_hash } => {
                (checkpoint, blake3::hash(compressed) == *compressed_hash, Some(output_hash))
            }
            Recipe::Measured { checkpoint, compressed_hash } => {
                (checkpoint, Sha256::digest(compressed)[..] == *compressed_hash, None)
            }
            Recipe::Chunks(chunks) => {
                return chunk::decode(self.compression, chunks, compressed, length)
                    .map_err(|problem| SpanError::WrongChunk { layer, span, problem });
            }
        };
        if !is_input {
            return Err(SpanError::WrongInput { layer, span });
        }
        let output = match self.compression {
            // A table may end before the layer does, behind whose end nothing is read.
            Compression::None => Ok(compressed.get(..length).unwrap_or(compressed).to_vec()),
            Compression::Gzip => gzip::inflate(checkpoint, compressed, length),
            Compression::Zstd => zstd::decompress(compressed, length),
        };
        let output = output.map_err(wrong)?;
        let is_output = output_hash.is_none_or(|expected| blake3::hash(&output) == *expected);
        if output.len() != length || !is_output {
            return Err(wrong("its output has another digest".to_owned()));
        }
        Ok(output)
    }
}
