//! zTOC, the table that SOCI keeps beside a layer (soci-snapshotter, `ztoc/fbs/ztoc.fbs`, `ztoc/compression/gzip_zinfo.c`).
//!
//! Its device is the layer's tar. For gzip it has zlib's checkpoints with their windows as they are, 32 KiB each, which are compressed
//! here; for each span the SHA-256 of its compressed bytes. The tar's end, of which it knows less, is left out.
//!
//! ```text
//! checkpoints of gzip:  u32 their number N, u64 span size, then N (in version 1: N - 1, the first left out) of
//!                       u64 offset in the layer, u64 in the tar, u8 bits, 32,768 bytes of window
//! of a plain tar:       a FlatBuffer: version, span size, length
//! ```

use lapwing_p2p::digest::Digest;

use crate::index::{Checkpoint, Compression, Recipe, Span};
use crate::inflate::WINDOW_BYTES;
use crate::limits::{MAX_ENTRIES, MAX_SPAN_BYTES, MAX_SPANS, MAX_TABLE_BYTES, MAX_TAR_BYTES, MAX_TAR_META_BYTES};
use crate::tar::table_bytes;
use crate::tree::{Entry, Extent, Kind};

use super::flatbuffer::Table;
use super::listed::Listed;
use super::{TocError, malformed};

/// Length of the first member's header in checkpoints of version 1, which leave it out.
const SHORTEST_HEADER: u64 = 10;
const CHECKPOINT_BYTES: usize = 8 + 8 + 1 + WINDOW_BYTES;
const CHECKPOINTS_HEADER: usize = 4 + 8;
/// Windows are kept compressed; most of one is text or code.
const WINDOW_LEVEL: i32 = 3;
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What a zTOC says of a layer.
pub(super) struct Read {
    pub(super) entries: Vec<Entry>,
    pub(super) spans: Vec<Span>,
    pub(super) compression: Compression,
    pub(super) tar_length: u64,
}

/// Where a span begins.
struct Start {
    layer: u64,
    tar: u64,
    checkpoint: Checkpoint,
}

/// Reads the zTOC of a layer.
pub(super) fn read(ztoc: &[u8], layer_length: u64) -> Result<Read, TocError> {
    let root = Table::root(ztoc)?;
    let tar_length = u64::try_from(root.i64(3)?).ok().filter(|length| (1..=MAX_TAR_BYTES).contains(length));
    let tar_length = tar_length.ok_or_else(|| malformed("a tar of no possible length"))?;
    if u64::try_from(root.i64(2)?) != Ok(layer_length) {
        return Err(malformed("it is of a layer of another length"));
    }
    let compressed = root.table(5)?.ok_or_else(|| malformed("no spans"))?;
    let (compression, starts) = match compressed.byte(0, 1)? {
        1 => (Compression::Gzip, gzip_starts(compressed.bytes(3)?)?),
        2 => (Compression::None, plain_starts(compressed.bytes(3)?, layer_length)?),
        other => return Err(TocError::Unsupported(format!("compression {other}"))),
    };
    let digests = compressed.vector(2)?;
    if digests.len() != starts.len() {
        return Err(malformed(format!("{} digests for {} spans", digests.len(), starts.len())));
    }
    let spans = spans(starts, digests.strings(), layer_length, tar_length)?;
    let contents = root.table(4)?.ok_or_else(|| malformed("no files"))?;
    Ok(Read { entries: entries(&contents, tar_length)?, spans, compression, tar_length })
}

fn gzip_starts(blob: &[u8]) -> Result<Vec<Start>, TocError> {
    let wrong = || malformed("checkpoints of no known version");
    let (header, records) = blob.split_at_checked(CHECKPOINTS_HEADER).ok_or_else(wrong)?;
    let count = header.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
    let (records, rest) = records.as_chunks::<CHECKPOINT_BYTES>();
    if !rest.is_empty() || count > MAX_SPANS {
        return Err(wrong());
    }
    let first = Start { layer: SHORTEST_HEADER, tar: 0, checkpoint: Checkpoint { bits: 0, window: Vec::new() } };
    let mut starts = match count.checked_sub(records.len()) {
        Some(0) => Vec::new(),
        Some(1) => vec![first],
        _ => return Err(wrong()),
    };
    for record in records {
        starts.push(gzip_start(record)?);
    }
    Ok(starts)
}

fn gzip_start(record: &[u8; CHECKPOINT_BYTES]) -> Result<Start, TocError> {
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| record[at + byte]));
    let (layer, tar, bits) = (number(0), number(8), record[16]);
    let layer = layer.checked_sub(u64::from(bits > 0)).filter(|_| bits < 8);
    let layer = layer.ok_or_else(|| malformed("a checkpoint with impossible numbers"))?;
    // At the start of the tar nothing comes before.
    let window = match tar {
        0 => Vec::new(),
        _ => zstd::bulk::compress(&record[17..], WINDOW_LEVEL).map_err(|error| malformed(error.to_string()))?,
    };
    Ok(Start { layer, tar, checkpoint: Checkpoint { bits, window } })
}

fn plain_starts(blob: &[u8], layer_length: u64) -> Result<Vec<Start>, TocError> {
    let plain = Table::root(blob)?;
    let span = u64::try_from(plain.i64(1)?).ok().filter(|span| (1..=MAX_SPAN_BYTES).contains(span));
    let span = span.ok_or_else(|| malformed("spans of no possible length"))?;
    if u64::try_from(plain.i64(2)?) != Ok(layer_length) || layer_length.div_ceil(span) > MAX_SPANS as u64 {
        return Err(malformed("spans that do not fit the layer"));
    }
    let start = |at| Start { layer: at, tar: at, checkpoint: Checkpoint { bits: 0, window: Vec::new() } };
    Ok((0..layer_length).step_by(span as usize).map(start).collect())
}

fn spans<'a>(
    starts: Vec<Start>,
    digests: impl Iterator<Item = Result<&'a [u8], TocError>>,
    layer_length: u64,
    tar_length: u64,
) -> Result<Vec<Span>, TocError> {
    if starts.first().is_none_or(|start| start.tar != 0) {
        return Err(malformed("spans that do not begin with the tar"));
    }
    // A span ends where the next one's first whole byte begins, which may share its first bits with it.
    let ends: Vec<(u64, u64)> =
        starts.iter().skip(1).map(|next| (next.layer + u64::from(next.checkpoint.bits > 0), next.tar)).collect();
    let ends = ends.into_iter().chain([(layer_length, u64::MAX)]);
    let mut spans = Vec::new();
    for ((start, (layer_end, tar_end)), digest) in starts.into_iter().zip(ends).zip(digests) {
        if start.tar >= tar_length {
            break;
        }
        let digest = std::str::from_utf8(digest?).ok().and_then(|digest| digest.parse::<Digest>().ok());
        let digest = digest.ok_or_else(|| malformed("a span without a SHA-256"))?;
        let tar_end = tar_end.min(tar_length);
        let lengths = (layer_end.checked_sub(start.layer), tar_end.checked_sub(start.tar));
        let (Some(compressed), Some(output)) = lengths else { return Err(malformed("spans that go backwards")) };
        if layer_end > layer_length || compressed == 0 || output == 0 {
            return Err(malformed("a span outside of the layer, or without bytes"));
        }
        if output > MAX_SPAN_BYTES || compressed > 2 * MAX_SPAN_BYTES {
            return Err(TocError::Unsupported(format!("a span beyond {MAX_SPAN_BYTES} bytes")));
        }
        spans.push(Span {
            compressed: start.layer..layer_end,
            output: start.tar..tar_end,
            recipe: Recipe::Measured { checkpoint: start.checkpoint, compressed_hash: *digest.as_bytes() },
        });
    }
    if spans.last().map(|span| span.output.end) != Some(tar_length) {
        return Err(malformed("spans that do not reach the end of the tar"));
    }
    Ok(spans)
}

/// What a record costs beside its strings, in bytes.
const RECORD_BYTES: usize = 64;

fn entries(contents: &Table<'_>, tar_length: u64) -> Result<Vec<Entry>, TocError> {
    let files = contents.vector(0)?;
    if files.len() > MAX_ENTRIES {
        return Err(TocError::Unsupported(format!("more than {MAX_ENTRIES} entries")));
    }
    let (mut entries, mut bytes, mut effort) = (Vec::new(), 0, MAX_TABLE_BYTES);
    for file in files.tables() {
        let file = file?;
        let Some(mut entry) = listed(&file, &mut effort)?.entry()? else { continue };
        if let Kind::File { size, extents } = &mut entry.kind
            && *size > 0
        {
            let tar_offset = u64::try_from(file.i64(2)?).ok();
            let end = tar_offset.and_then(|offset| offset.checked_add(*size)).filter(|end| *end <= tar_length);
            let (Some(tar_offset), Some(_)) = (tar_offset, end) else {
                return Err(malformed("a file behind the end of the tar"));
            };
            extents.push(Extent { file_offset: 0, tar_offset, length: *size });
        }
        bytes += table_bytes(&entry);
        if bytes > MAX_TABLE_BYTES {
            return Err(TocError::Unsupported(format!("a file table of more than {MAX_TABLE_BYTES} bytes")));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// `effort`: bytes that may still be looked at, in all. Offsets can point to the same string or table again and again, so a short zTOC may
/// speak of more than there is time for.
fn listed<'a>(file: &Table<'a>, effort: &mut usize) -> Result<Listed<'a>, TocError> {
    let mut spend = |bytes: usize| {
        *effort =
            effort.checked_sub(bytes).ok_or_else(|| TocError::Unsupported("a file table without end".to_owned()))?;
        Ok::<_, TocError>(())
    };
    spend(RECORD_BYTES + file.bytes(0)?.len() + file.bytes(4)?.len())?;
    let text = |field| std::str::from_utf8(file.bytes(field)?).map_err(|_| malformed("a type or time that is no text"));
    let (mut xattrs, mut bytes) = (Vec::new(), 0);
    for record in file.vector(13)?.tables() {
        let record = record?;
        let (key, value) = (record.bytes(0)?, record.bytes(1)?);
        spend(RECORD_BYTES + key.len() + value.len())?;
        if key.starts_with(b"GNU.sparse.") {
            return Err(TocError::Unsupported("a sparse file".to_owned()));
        }
        if let Some(name) = key.strip_prefix(XATTR) {
            // As much as a tar's extended header holds: many records may refer to one string.
            bytes += (name.len() + value.len()) as u64;
            if bytes > MAX_TAR_META_BYTES {
                return Err(TocError::Unsupported("extended attributes without end".to_owned()));
            }
            xattrs.push((name.to_vec(), value.to_vec()));
        }
    }
    Ok(Listed {
        name: file.bytes(0)?,
        kind: text(1)?,
        size: file.i64(3)?,
        link: file.bytes(4)?,
        mode: file.i64(5)?,
        uid: file.u32(6)?.into(),
        gid: file.u32(7)?.into(),
        device: (file.i64(11)?, file.i64(12)?),
        modified: text(10)?,
        xattrs,
    })
}
