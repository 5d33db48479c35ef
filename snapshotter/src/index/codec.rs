//! The encoded form of an index; see the module documentation of [`index`](super) for the layout.

use lapwing_p2p::digest::Digest;

use crate::limits::{
    MAX_ENTRIES, MAX_INDEX_BYTES, MAX_SPAN_BYTES, MAX_SPANS, MAX_TABLE_BYTES, MAX_TAR_BYTES, MAX_ZSTD_SPAN_BYTES,
};

use super::ledger::SPAN_BYTES;
use super::{Checkpoint, Compression, Form, Index, IndexError, Recipe, Span, table};

const MAGIC: &[u8; 8] = b"LAPWINDX";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 120;
const SPAN_RECORD_BYTES: usize = 88;
/// Part of the format version: another level gives another index for the same layer.
const ZSTD_LEVEL: i32 = 12;

/// The bytes not yet decoded.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], IndexError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        self.take(N).map(|bytes| bytes.try_into().expect("take gives as many bytes as asked for"))
    }

    fn u16(&mut self) -> Result<u16, IndexError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, IndexError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, IndexError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count or length below its limit.
    fn bounded(&mut self, limit: usize, name: &str) -> Result<usize, IndexError> {
        let value = self.u32()? as usize;
        if value > limit { Err(malformed(&format!("{name} {value} beyond {limit}"))) } else { Ok(value) }
    }
}

fn malformed(problem: &str) -> IndexError {
    IndexError::Malformed(problem.to_owned())
}

impl Index {
    /// The bytes that are shared; always the same for the same layer.
    ///
    /// # Panics
    ///
    /// Where the index was not built from the layer ([`Form::Built`]): of others the table that they came from is kept.
    pub fn encode(&self) -> Vec<u8> {
        let table = table::encode(&self.entries);
        let stored =
            zstd::bulk::compress(&table, ZSTD_LEVEL).expect("zstd compresses bytes in memory into a new vector");
        let recipes: Vec<_> = self.spans.iter().map(built).collect();
        let windows: usize = recipes.iter().map(|(checkpoint, ..)| checkpoint.window.len()).sum();
        let mut bytes =
            Vec::with_capacity(HEADER_BYTES + self.spans.len() * SPAN_RECORD_BYTES + windows + stored.len());
        let compression: u32 = match self.compression {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        };
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&compression.to_le_bytes());
        bytes.extend_from_slice(self.layer.as_bytes());
        bytes.extend_from_slice(&self.layer_length.to_le_bytes());
        bytes.extend_from_slice(self.diff_id.as_bytes());
        bytes.extend_from_slice(&self.tar_length.to_le_bytes());
        bytes.extend_from_slice(&(self.spans.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(windows as u64).to_le_bytes());
        bytes.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(table.len() as u32).to_le_bytes());
        for span in &self.spans {
            encode_span(span, &mut bytes);
        }
        for (checkpoint, ..) in recipes {
            bytes.extend_from_slice(&checkpoint.window);
        }
        bytes.extend_from_slice(&stored);
        bytes
    }

    /// Reads an encoded index from anywhere: everything is bounded and checked except what only inflating can tell.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        if bytes.len() > MAX_INDEX_BYTES {
            return Err(malformed(&format!("{} bytes, beyond {MAX_INDEX_BYTES}", bytes.len())));
        }
        let mut bytes = Bytes(bytes);
        if &bytes.array::<8>()? != MAGIC {
            return Err(malformed("it does not begin with LAPWINDX"));
        }
        let version = bytes.u32()?;
        if version != VERSION {
            return Err(malformed(&format!("version {version}, only {VERSION} is known")));
        }
        let (compression, longest) = match bytes.u32()? {
            0 => (Compression::None, SPAN_BYTES),
            1 => (Compression::Gzip, MAX_SPAN_BYTES),
            2 => (Compression::Zstd, MAX_ZSTD_SPAN_BYTES),
            other => return Err(malformed(&format!("compression {other}"))),
        };
        let layer = Digest::from_bytes(bytes.array()?);
        let layer_length = bytes.u64()?;
        let diff_id = Digest::from_bytes(bytes.array()?);
        let tar_length = bytes.u64()?;
        if tar_length > MAX_TAR_BYTES {
            return Err(malformed(&format!("tar of {tar_length} bytes")));
        }
        let span_count = bytes.bounded(MAX_SPANS, "number of spans")?;
        let entry_count = bytes.bounded(MAX_ENTRIES, "number of entries")?;
        let window_bytes = bytes.u64()?;
        let stored_bytes = bytes.u32()? as usize;
        let table_bytes = bytes.bounded(MAX_TABLE_BYTES, "length of the file table")?;
        let mut records = Bytes(bytes.take(span_count * SPAN_RECORD_BYTES)?);
        let window_bytes = usize::try_from(window_bytes).map_err(|_| malformed("windows longer than memory"))?;
        let mut windows = Bytes(bytes.take(window_bytes)?);
        let stored = bytes.take(stored_bytes)?;
        if !bytes.0.is_empty() {
            return Err(malformed("bytes after its end"));
        }
        let mut spans: Vec<Span> = Vec::with_capacity(span_count);
        for _ in 0..span_count {
            let span = decode_span(&mut records, &mut windows, spans.last(), longest)?;
            check_span(&span, compression, layer_length)?;
            spans.push(span);
        }
        if !windows.0.is_empty() || spans.last().map_or(0, |span| span.output.end) != tar_length {
            return Err(malformed("spans do not make up the tar or the windows"));
        }
        let table = zstd::bulk::decompress(stored, table_bytes).map_err(|error| malformed(&error.to_string()))?;
        if table.len() != table_bytes {
            return Err(malformed("file table is shorter than it says"));
        }
        let entries = table::decode(&table, entry_count, tar_length).map_err(IndexError::Malformed)?;
        let form = Form::Built;
        Ok(Self { form, layer, layer_length, diff_id, tar_length, compression, spans, entries, prefetch: 0 })
    }
}

fn built(span: &Span) -> (&Checkpoint, &blake3::Hash, &blake3::Hash) {
    match &span.recipe {
        Recipe::Built { checkpoint, compressed_hash, output_hash } => (checkpoint, compressed_hash, output_hash),
        Recipe::Measured { .. } | Recipe::Chunks(_) => {
            panic!("an index that was not built from its layer has no encoded form")
        }
    }
}

fn encode_span(span: &Span, bytes: &mut Vec<u8>) {
    let (checkpoint, compressed_hash, output_hash) = built(span);
    let window = u16::try_from(checkpoint.window.len()).expect("32 KiB grow by less than 32 KiB in zstd");
    bytes.extend_from_slice(&span.compressed.start.to_le_bytes());
    bytes.extend_from_slice(&((span.compressed.end - span.compressed.start) as u32).to_le_bytes());
    bytes.extend_from_slice(&((span.output.end - span.output.start) as u32).to_le_bytes());
    bytes.extend_from_slice(&window.to_le_bytes());
    bytes.extend_from_slice(&[checkpoint.bits, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(compressed_hash.as_bytes());
    bytes.extend_from_slice(output_hash.as_bytes());
}

fn decode_span(
    records: &mut Bytes<'_>,
    windows: &mut Bytes<'_>,
    before: Option<&Span>,
    longest: u64,
) -> Result<Span, IndexError> {
    let start = records.u64()?;
    let compressed_length = records.u32()?;
    let output_length = records.u32()?;
    let window_length = records.u16()?;
    let [bits, zeros @ ..] = records.array::<6>()?;
    let compressed_hash = blake3::Hash::from_bytes(records.array()?);
    let output_hash = blake3::Hash::from_bytes(records.array()?);
    let end = start.checked_add(compressed_length.into()).ok_or_else(|| malformed("span beyond the layer"))?;
    let output_start = before.map_or(0, |span| span.output.end);
    let is_bounded = (1..=longest).contains(&u64::from(output_length))
        && (1..=longest + 2 * SPAN_BYTES).contains(&u64::from(compressed_length));
    if !is_bounded || bits > 7 || zeros != [0; 5] {
        return Err(malformed("span with impossible numbers"));
    }
    if before.is_some_and(|span| start != span.compressed.end - u64::from(bits > 0)) {
        return Err(malformed("spans do not follow each other in the layer"));
    }
    Ok(Span {
        compressed: start..end,
        output: output_start..output_start + u64::from(output_length),
        recipe: Recipe::Built {
            checkpoint: Checkpoint { bits, window: windows.take(window_length.into())?.to_vec() },
            compressed_hash,
            output_hash,
        },
    })
}

fn check_span(span: &Span, compression: Compression, layer_length: u64) -> Result<(), IndexError> {
    if span.compressed.end > layer_length {
        return Err(malformed("span beyond the layer"));
    }
    let (checkpoint, ..) = built(span);
    let is_start = checkpoint.bits == 0 && checkpoint.window.is_empty();
    let fits = match compression {
        Compression::None => is_start && span.compressed == span.output,
        Compression::Gzip => true,
        Compression::Zstd => is_start,
    };
    if fits { Ok(()) } else { Err(malformed("span that its compression cannot have")) }
}
