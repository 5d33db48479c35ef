//! Lays the contents of files out on a device, and cuts it into spans.
//!
//! ```text
//! layer   [headers|a1][a2|headers|b|headers][c|headers] ... [table]     [ ] a member
//! device   a1 a2 . . . b . . c                                            . padding to a multiple of 512
//! spans    ------------------ ---
//! ```
//!
//! Files come in the order in which their bytes come in the layer, each without gaps. A span is as many whole members, one
//! right after the other, as give about as much as a span of a built index: most files are far smaller, and a request for
//! each would cost more than its bytes.

use crate::index::chunk::Chunk;
use crate::index::{Compression, Recipe, SPAN_BYTES, Span};
use crate::limits::{MAX_SPAN_BYTES, MAX_SPANS, MAX_TAR_BYTES, MAX_ZSTD_SPAN_BYTES};
use crate::tree::{Entry, Extent, Kind};

use super::json::Contents;
use super::{TocError, malformed};

/// What starts at a block of the device. EROFS can refer to nothing smaller.
const BLOCK: u64 = 512;

/// A device, its spans, and the entries with their places on it.
pub(super) struct Laid {
    pub(super) entries: Vec<Entry>,
    pub(super) spans: Vec<Span>,
    pub(super) length: u64,
    pub(super) prefetch: usize,
}

/// A chunk with its places in the layer and on the device.
struct Placed {
    member: u64,
    skip: u64,
    length: u64,
    digest: [u8; 32],
    device: u64,
}

/// Lays out what a table lists; the members of the layer end before `end`.
pub(super) fn lay(contents: Contents, compression: Compression, end: u64) -> Result<Laid, TocError> {
    let Contents { mut entries, mut files, landmark } = contents;
    files.sort_by_key(|(_, parts)| parts.first().map(|part| (part.member, part.skip)));
    let mut placed: Vec<Placed> = Vec::new();
    let mut length = 0u64;
    for (entry, parts) in files {
        let start = length.next_multiple_of(BLOCK);
        length = start;
        for part in parts {
            check_order(placed.last(), part.member, part.skip, end)?;
            placed.push(Placed {
                member: part.member,
                skip: part.skip,
                length: part.length,
                digest: part.digest,
                device: length,
            });
            // Sizes are below 2^63 each, and the sum is checked after each.
            length += part.length;
            if length > MAX_TAR_BYTES {
                return Err(TocError::Unsupported(format!("files of more than {MAX_TAR_BYTES} bytes")));
            }
        }
        let extent = Extent { file_offset: 0, tar_offset: start, length: length - start };
        if let Some(Kind::File { extents, .. }) = entries.get_mut(entry).map(|entry| &mut entry.kind) {
            extents.push(extent);
        }
    }
    let longest = if compression == Compression::Zstd { MAX_ZSTD_SPAN_BYTES } else { MAX_SPAN_BYTES };
    let spans = Cutter { landmark, longest, end, spans: Vec::new() }.cut(&placed, length)?;
    let before = |landmark| spans.partition_point(|span: &Span| span.compressed.start < landmark);
    let prefetch = landmark.map_or(0, before);
    // An empty device would be no device.
    Ok(Laid { entries, spans, length: length.max(BLOCK), prefetch })
}

/// Chunks neither overlap nor go backwards, and lie before the table.
fn check_order(before: Option<&Placed>, member: u64, skip: u64, end: u64) -> Result<(), TocError> {
    let in_order = before.is_none_or(|before| {
        if member == before.member {
            before.skip.checked_add(before.length).is_some_and(|before_end| skip >= before_end)
        } else {
            member > before.member
        }
    });
    match in_order && member < end {
        true => Ok(()),
        false => Err(TocError::Unsupported("chunks that overlap, or files whose chunks are mixed".to_owned())),
    }
}

struct Cutter {
    landmark: Option<u64>,
    longest: u64,
    end: u64,
    spans: Vec<Span>,
}

/// A span to which members are still added.
struct Open {
    start: u64,
    end: u64,
    device: u64,
    chunks: Vec<Chunk>,
}

impl Cutter {
    fn cut(mut self, placed: &[Placed], length: u64) -> Result<Vec<Span>, TocError> {
        let mut open: Option<Open> = None;
        let mut members = placed.chunk_by(|one, next| one.member == next.member).peekable();
        while let Some(member) = members.next() {
            let (Some(first), Some(last)) = (member.first(), member.last()) else { continue };
            let next = members.peek().and_then(|next| next.first());
            let device_end = next.map_or(length, |next| next.device);
            let reach = last.skip.checked_add(last.length).filter(|reach| *reach <= self.longest);
            let reach = reach.ok_or_else(|| TocError::Unsupported(format!("a chunk beyond {}", self.longest)))?;
            // Contents of a member stand further apart in the device than in the member.
            if device_end - first.device > MAX_SPAN_BYTES {
                return Err(TocError::Unsupported(format!("a member for more than {MAX_SPAN_BYTES} bytes")));
            }
            let member_end = next.map_or(self.end, |next| next.member).min(first.member + most_compressed(reach));
            let fits = open.as_ref().is_some_and(|open| {
                let same_side =
                    self.landmark.is_none_or(|landmark| (open.start < landmark) == (first.member < landmark));
                open.end == first.member
                    && same_side
                    && member_end - open.start <= SPAN_BYTES
                    && device_end - open.device <= SPAN_BYTES
            });
            if !fits {
                self.close(open.take(), first.device)?;
            }
            let into = open.get_or_insert_with(|| Open {
                start: first.member,
                end: first.member,
                device: first.device,
                chunks: Vec::new(),
            });
            into.end = member_end;
            let (start, device) = (into.start, into.device);
            into.chunks.extend(member.iter().map(|chunk| Chunk {
                member: chunk.member - start,
                skip: chunk.skip,
                length: chunk.length,
                at: chunk.device - device,
                digest: chunk.digest,
            }));
        }
        self.close(open, length)?;
        Ok(self.spans)
    }

    fn close(&mut self, open: Option<Open>, device_end: u64) -> Result<(), TocError> {
        let Some(open) = open else { return Ok(()) };
        if self.spans.len() >= MAX_SPANS {
            return Err(TocError::Unsupported(format!("more than {MAX_SPANS} spans")));
        }
        if open.end <= open.start || device_end <= open.device {
            return Err(malformed("a chunk without bytes"));
        }
        self.spans.push(Span {
            compressed: open.start..open.end,
            output: open.device..device_end,
            recipe: Recipe::Chunks(open.chunks),
        });
        Ok(())
    }
}

/// Compressed bytes that give that many, at most: more would be a member that wastes them. A stored block of deflate takes 5
/// bytes for up to 64 KiB; compressors end blocks far earlier only where that pays.
fn most_compressed(output: u64) -> u64 {
    output + output / 8 + (64 << 10)
}
