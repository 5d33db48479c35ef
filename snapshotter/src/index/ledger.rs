//! What is learned from the bytes of a layer while they pass, whatever compressed them.

use std::mem;
use std::ops::Range;

use lapwing_p2p::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::limits::{BOMB_FREE_BYTES, MAX_INDEX_BYTES, MAX_RATIO, MAX_SPANS, MAX_TAR_BYTES};
use crate::tar::Scanner;
use crate::tree::Entry;

use super::{Checkpoint, IndexError, Recipe, Span};

/// Output after which a span is ended at the next chance, in bytes.
pub(crate) const SPAN_BYTES: u64 = 1 << 20;

/// A span that bytes are still being added to.
struct Open {
    compressed_start: u64,
    output_start: u64,
    compressed: blake3::Hasher,
    output: blake3::Hasher,
    checkpoint: Checkpoint,
}

/// Where some members begin: in the layer as asked, in the tar as found.
#[derive(Default)]
pub(super) struct Members {
    /// Offsets in the layer, ascending.
    wanted: Vec<u64>,
    /// For each of the first of these the offset in the tar, or that no member begins there.
    found: Vec<Option<u64>>,
}

impl Members {
    /// `wanted` in ascending order.
    pub(super) fn new(wanted: Vec<u64>) -> Self {
        Self { found: Vec::with_capacity(wanted.len()), wanted }
    }

    fn begin(&mut self, layer_offset: u64, tar_offset: u64) {
        while let Some(wanted) = self.wanted.get(self.found.len()).filter(|wanted| **wanted <= layer_offset) {
            self.found.push((*wanted == layer_offset).then_some(tar_offset));
        }
    }

    /// Where the member that begins at this byte of the layer begins in the tar.
    pub(super) fn tar_offset(&self, layer_offset: u64) -> Option<u64> {
        let at = self.wanted.binary_search(&layer_offset).ok()?;
        self.found.get(at).copied().flatten()
    }
}

/// Takes a tar's bytes as they come out, in order.
pub(super) type TarSink = Box<dyn FnMut(&[u8]) + Send>;

/// Counters, hashes, spans and the tar reader.
pub(super) struct Ledger {
    layer: Digest,
    /// Output after which a span is ended at the next chance.
    span_bytes: u64,
    longest_span: u64,
    members: Members,
    /// Hashes the first bytes of the tar, of which so many are still to come.
    start_hash: blake3::Hasher,
    start_left: u64,
    consumed: u64,
    produced: u64,
    tar_hash: Sha256,
    tar: Scanner,
    sink: Option<TarSink>,
    open: Option<Open>,
    spans: Vec<Span>,
    window_bytes: usize,
}

/// All that a finished ledger knows.
pub(super) struct Account {
    pub(super) diff_id: Digest,
    pub(super) tar_length: u64,
    pub(super) spans: Vec<Span>,
    pub(super) entries: Vec<Entry>,
    pub(super) members: Members,
    /// BLAKE3 of the first bytes of the tar that were asked for.
    pub(super) start_hash: blake3::Hash,
}

impl Ledger {
    pub(super) fn new(layer: Digest, longest_span: u64) -> Self {
        Self {
            layer,
            span_bytes: SPAN_BYTES,
            longest_span,
            members: Members::default(),
            start_hash: blake3::Hasher::new(),
            start_left: 0,
            consumed: 0,
            produced: 0,
            tar_hash: Sha256::new(),
            tar: Scanner::default(),
            sink: None,
            open: None,
            spans: Vec::new(),
            window_bytes: 0,
        }
    }

    /// One that makes a single span of the whole layer, however long, notes where these members begin, and hashes the first
    /// `start` bytes of the tar.
    pub(super) fn of_members(layer: Digest, members: Members, start: u64) -> Self {
        Self { span_bytes: u64::MAX, members, start_left: start, ..Self::new(layer, u64::MAX / 2) }
    }

    /// Gives every byte of the tar to `sink` as well.
    pub(super) fn tell(&mut self, sink: Option<TarSink>) {
        self.sink = sink;
    }

    pub(super) fn layer(&self) -> Digest {
        self.layer
    }

    /// A member or frame begins with the next byte of the layer.
    pub(super) fn begin_member(&mut self) {
        self.members.begin(self.consumed, self.produced);
    }

    /// Bytes of the layer that the decoder has used.
    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Whether a span is open.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the open span is long enough to end at the next chance.
    pub(super) fn is_full(&self) -> bool {
        self.open.as_ref().is_none_or(|open| self.produced - open.output_start >= self.span_bytes)
    }

    /// Accounts for bytes that the decoder consumed.
    pub(super) fn consume(&mut self, compressed: &[u8]) -> Result<(), IndexError> {
        self.consumed += compressed.len() as u64;
        if let Some(open) = &mut self.open {
            open.compressed.update(compressed);
            if self.consumed - open.compressed_start > self.longest_span + SPAN_BYTES {
                return Err(self.span_too_long());
            }
        }
        Ok(())
    }

    /// Accounts for bytes that came out; call [`Self::consume`] first for those that they came from.
    pub(super) fn produce(&mut self, output: &[u8]) -> Result<(), IndexError> {
        if output.is_empty() {
            return Ok(());
        }
        self.produced += output.len() as u64;
        let is_bomb = self.produced > BOMB_FREE_BYTES && self.produced / MAX_RATIO > self.consumed;
        if is_bomb || self.produced > MAX_TAR_BYTES {
            return Err(IndexError::Bomb { layer: self.layer, ratio: MAX_RATIO });
        }
        let open = self.open.as_mut().expect("decoders cut before they produce");
        open.output.update(output);
        if self.produced - open.output_start > self.longest_span {
            return Err(self.span_too_long());
        }
        self.tar_hash.update(output);
        if let Some(sink) = &mut self.sink {
            sink(output);
        }
        let start = usize::try_from(self.start_left).map_or(output.len(), |left| left.min(output.len()));
        self.start_hash.update(&output[..start]);
        self.start_left -= start as u64;
        self.tar.push(output).map_err(|error| IndexError::from_tar(self.layer, error))
    }

    /// Ends the open span and begins one here; `shared` is the byte consumed last if it also belongs to the new span.
    pub(super) fn cut(&mut self, bits: u8, shared: Option<u8>) -> Result<(), IndexError> {
        self.close();
        if self.spans.len() >= MAX_SPANS {
            return Err(IndexError::Unsupported { layer: self.layer, what: format!("more than {MAX_SPANS} spans") });
        }
        let mut compressed = blake3::Hasher::new();
        compressed.update(shared.as_slice());
        self.open = Some(Open {
            compressed_start: self.consumed - shared.as_slice().len() as u64,
            output_start: self.produced,
            compressed,
            output: blake3::Hasher::new(),
            checkpoint: Checkpoint { bits, window: Vec::new() },
        });
        Ok(())
    }

    /// Sets the window of the open span.
    pub(super) fn set_window(&mut self, window: Vec<u8>) -> Result<(), IndexError> {
        self.window_bytes += window.len();
        if self.window_bytes > MAX_INDEX_BYTES / 2 {
            return Err(IndexError::Unsupported { layer: self.layer, what: "windows too large to share".to_owned() });
        }
        if let Some(open) = &mut self.open {
            open.checkpoint.window = window;
        }
        Ok(())
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let output = Range { start: open.output_start, end: self.produced };
        if output.is_empty() {
            return;
        }
        self.spans.push(Span {
            compressed: open.compressed_start..self.consumed,
            output,
            recipe: Recipe::Built {
                checkpoint: open.checkpoint,
                compressed_hash: open.compressed.finalize(),
                output_hash: open.output.finalize(),
            },
        });
    }

    fn span_too_long(&self) -> IndexError {
        let what = format!("a compressed block or frame beyond {} MiB", self.longest_span >> 20);
        IndexError::Unsupported { layer: self.layer, what }
    }

    pub(super) fn finish(mut self) -> Result<Account, IndexError> {
        self.close();
        let entries = mem::take(&mut self.tar).finish().map_err(|error| IndexError::from_tar(self.layer, error))?;
        Ok(Account {
            diff_id: Digest::from_bytes(self.tar_hash.finalize().into()),
            tar_length: self.produced,
            spans: self.spans,
            entries,
            members: self.members,
            start_hash: self.start_hash.finalize(),
        })
    }
}
