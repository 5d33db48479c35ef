//! Builds an index in one pass over the compressed layer.

use lapwing_p2p::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::limits::{MAX_SPAN_BYTES, MAX_ZSTD_SPAN_BYTES};

use super::gzip::GzipReader;
use super::ledger::{Ledger, Members, SPAN_BYTES, TarSink};
use super::zstd::ZstdReader;
use super::{Compression, Form, Index, IndexError};

/// Bytes needed to tell the formats apart.
const MAGIC_BYTES: usize = 4;

enum Reader {
    Gzip(Box<GzipReader>),
    Zstd(Box<ZstdReader>),
    Plain,
}

/// What is known of the layer so far.
enum Stage {
    /// Fewer bytes than tell the format.
    Magic(Vec<u8>),
    Reading(Reader, Box<Ledger>),
    Failed(IndexError),
}

/// Takes a layer's compressed bytes in order and makes its [`Index`]: one read, one inflate.
///
/// The portions in which the bytes come do not matter. An error is final: later calls give it again. Each `push` is
/// blocking work on the processor, about the cost of inflating and hashing the bytes.
pub struct IndexBuilder {
    layer: Digest,
    layer_length: u64,
    received: u64,
    hash: Sha256,
    stage: Stage,
    /// Whose beginnings are to be noted, in the place of making spans.
    members: Option<Members>,
    /// Who else takes the tar.
    sink: Option<TarSink>,
    /// How much of the tar's start is to be hashed.
    start: u64,
}

/// What a builder has learnt beside the index.
pub(super) struct Beside {
    pub(super) members: Members,
    /// BLAKE3 of the start of the tar.
    pub(super) start_hash: blake3::Hash,
}

impl IndexBuilder {
    /// For the layer with this digest and length, as its descriptor in the manifest gives them.
    pub fn new(layer: Digest, layer_length: u64) -> Self {
        let (hash, stage) = (Sha256::new(), Stage::Magic(Vec::new()));
        Self { layer, layer_length, received: 0, hash, stage, members: None, sink: None, start: 0 }
    }

    /// The same for who wants to know where these members begin and how the tar begins, and no spans.
    pub(super) fn of_members(layer: Digest, layer_length: u64, members: Members, start: u64) -> Self {
        Self { members: Some(members), start, ..Self::new(layer, layer_length) }
    }

    /// Gives the tar to `sink` as well, portion by portion as it comes out. It is the layer's only if [`Self::finish`] gives an index.
    #[must_use]
    pub fn telling(self, sink: impl FnMut(&[u8]) + Send + 'static) -> Self {
        Self { sink: Some(Box::new(sink)), ..self }
    }

    /// Takes the next bytes of the layer.
    pub fn push(&mut self, compressed: &[u8]) -> Result<(), IndexError> {
        let result = self.try_push(compressed);
        if let Err(error) = &result {
            self.stage = Stage::Failed(error.clone());
        }
        result
    }

    fn try_push(&mut self, compressed: &[u8]) -> Result<(), IndexError> {
        self.received += compressed.len() as u64;
        if self.received > self.layer_length {
            return Err(self.wrong_length());
        }
        self.hash.update(compressed);
        match &mut self.stage {
            Stage::Failed(error) => Err(error.clone()),
            Stage::Reading(reader, ledger) => read(reader, ledger, compressed),
            Stage::Magic(start) => {
                start.extend_from_slice(compressed);
                if start.len() < MAGIC_BYTES { Ok(()) } else { self.begin() }
            }
        }
    }

    /// Chooses the format by the bytes held back and reads them.
    fn begin(&mut self) -> Result<(), IndexError> {
        let Stage::Magic(start) = &self.stage else { return Ok(()) };
        let (mut reader, longest) = match start.as_slice() {
            [0x1f, 0x8b, ..] => (Reader::Gzip(Box::new(GzipReader::new())), MAX_SPAN_BYTES),
            // A frame, or a skippable frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let zstd = ZstdReader::new().map_err(|error| IndexError::BadZstd {
                    layer: self.layer,
                    offset: 0,
                    problem: error.to_string(),
                })?;
                (Reader::Zstd(Box::new(zstd)), MAX_ZSTD_SPAN_BYTES)
            }
            _ => (Reader::Plain, MAX_SPAN_BYTES),
        };
        let mut ledger = Box::new(match self.members.take() {
            Some(members) => Ledger::of_members(self.layer, members, self.start),
            None => Ledger::new(self.layer, longest),
        });
        ledger.tell(self.sink.take());
        read(&mut reader, &mut ledger, start)?;
        self.stage = Stage::Reading(reader, ledger);
        Ok(())
    }

    /// Checks the length, the digest and the end of the stream and of the tar, and gives the index.
    pub fn finish(self) -> Result<Index, IndexError> {
        self.finish_beside().map(|(index, _)| index)
    }

    pub(super) fn finish_beside(mut self) -> Result<(Index, Beside), IndexError> {
        if let Stage::Failed(error) = self.stage {
            return Err(error);
        }
        if self.received != self.layer_length {
            return Err(self.wrong_length());
        }
        if matches!(self.stage, Stage::Magic(_)) {
            self.begin()?;
        }
        let Self { layer, layer_length, hash, stage, .. } = self;
        let actual = Digest::from_bytes(hash.finalize().into());
        if actual != layer {
            return Err(IndexError::DigestMismatch { layer, actual });
        }
        let (reader, ledger) = match stage {
            Stage::Reading(reader, ledger) => (reader, ledger),
            Stage::Failed(error) => return Err(error),
            Stage::Magic(_) => return Err(IndexError::UnknownFormat { layer }),
        };
        let (compression, is_whole, inside) = match reader {
            Reader::Gzip(gzip) => (Compression::Gzip, gzip.is_whole(), "a gzip member"),
            Reader::Zstd(zstd) => (Compression::Zstd, zstd.is_whole(), "a zstd frame"),
            Reader::Plain => (Compression::None, true, "a tar"),
        };
        if !is_whole {
            return Err(IndexError::Truncated { layer, offset: layer_length, inside });
        }
        let account = ledger.finish()?;
        let index = Index {
            form: Form::Built,
            layer,
            layer_length,
            diff_id: account.diff_id,
            tar_length: account.tar_length,
            compression,
            spans: account.spans,
            entries: account.entries,
            prefetch: 0,
        };
        Ok((index, Beside { members: account.members, start_hash: account.start_hash }))
    }

    fn wrong_length(&self) -> IndexError {
        IndexError::LengthMismatch { layer: self.layer, expected: self.layer_length, actual: self.received }
    }
}

fn read(reader: &mut Reader, ledger: &mut Ledger, compressed: &[u8]) -> Result<(), IndexError> {
    match reader {
        Reader::Gzip(gzip) => gzip.push(compressed, ledger),
        Reader::Zstd(zstd) => zstd.push(compressed, ledger),
        Reader::Plain => read_plain(ledger, compressed),
    }
}

/// A tar as it is: spans of the same length, so that they do not depend on the portions.
fn read_plain(ledger: &mut Ledger, mut tar: &[u8]) -> Result<(), IndexError> {
    while !tar.is_empty() {
        if ledger.is_full() {
            ledger.cut(0, None)?;
        }
        let room = SPAN_BYTES - ledger.consumed() % SPAN_BYTES;
        let (now, later) = tar.split_at(tar.len().min(room as usize));
        ledger.consume(now)?;
        ledger.produce(now).map_err(|error| match error {
            // A tar whose first header is none is no tar.
            IndexError::BadTar { layer, offset: 0, .. } => IndexError::UnknownFormat { layer },
            error => error,
        })?;
        tar = later;
    }
    Ok(())
}
