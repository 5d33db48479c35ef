//! Tables of contents that others wrote: layers that can be mounted lazily before any node has read all of them.
//!
//! * *eStargz* (stargz-snapshotter, `docs/estargz.md`): a gzip layer of many members. A footer tells where the last file
//!   of the tar is, `stargz.index.json`; the manifest's annotation [`ESTARGZ_ANNOTATION`] has the SHA-256 of that JSON.
//! * *zstd:chunked* (containers/storage, `pkg/chunked`): a zstd layer of many frames, with nearly the same JSON in a
//!   skippable frame. Annotations have its place and the SHA-256 of its compressed form. stargz-snapshotter's converter writes
//!   them under an older name.
//!
//! * *SOCI* (soci-snapshotter): an artifact of its own beside the image, with a *zTOC* for each larger layer: checkpoints of an ordinary gzip
//!   stream, a SHA-256 for the compressed bytes of each span, and the entries. Its device is the tar.
//!
//! The first two list entries and, for each file, *chunks*: where its gzip member or zstd frame begins, and the SHA-256 of the
//! contents. Headers of the tar have no digest there. So the device that files are mounted from is not the tar but the
//! contents of the files alone, each at a multiple of 512 bytes ([`layout`]): every byte of it is covered by a digest, and
//! the table's own is in the manifest.
//!
//! What such a table says may still be another thing than what the tar says, which containerd would have unpacked. That
//! is found out when the whole layer is here ([`LayerProof`](crate::index::LayerProof)). [`is_hidden`] and [`agree`] say
//! which differences are meant.
//!
//! A table is parsed only after its digest was checked. All of it is bounded by [`limits`](crate::limits). What cannot be
//! represented (names that are not UTF-8 come as U+FFFD in JSON; chunks of more than 64 MiB, 32 MiB in zstd) is refused, and
//! the layer then goes the way of any other.
//!
//! # Kept form
//!
//! One line of text, then the table as it is stored in the layer:
//!
//! ```text
//! LAPWTOC1 <layer> <length of the layer> <diffID> <start and end of the table in the layer> <announcement>\n
//! estargz <digest>  |  zstd-chunked <digest> <offset> <length> <length of the JSON>  |  soci <digest of the zTOC>
//! ```

use std::ops::Range;

use lapwing_p2p::digest::Digest;

use crate::index::{Compression, Form, Index};
use crate::limits::{MAX_TOC_BYTES, MAX_TOC_DESCRIPTION_BYTES, MAX_TOC_STORED_BYTES, MAX_ZTOC_BYTES};
use crate::shown::brief;
use crate::tree::{Entry, Kind};

mod announced;
mod estargz;
mod flatbuffer;
mod json;
mod layout;
mod listed;
mod rfc3339;
mod zstd_chunked;
mod ztoc;

pub use announced::{Announced, ESTARGZ_ANNOTATION};

/// What a kept table begins with.
const MAGIC: &[u8] = b"LAPWTOC1 ";
/// Names in the root of a layer that its converter put there.
const CONVERTERS_FILES: [&[u8]; 3] = [b"stargz.index.json", PREFETCH_LANDMARK, b".no.prefetch.landmark"];
/// Files before this one are wanted at start-up.
const PREFETCH_LANDMARK: &[u8] = b".prefetch.landmark";

/// Why a table of contents is not used; the layer is then mounted by another index or pulled whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TocError {
    /// The bytes are not those that the manifest names.
    #[error("the table of contents has the digest {actual}, and the manifest says {expected}")]
    Digest {
        /// In the manifest.
        expected: Digest,
        /// Of the bytes.
        actual: Digest,
    },
    /// No table, or one that contradicts itself.
    #[error("the table of contents is malformed: {0}")]
    Malformed(String),
    /// Valid perhaps, but not to be represented, or beyond a limit.
    #[error("the table of contents cannot be used: {0}")]
    Unsupported(String),
}

fn malformed(problem: impl Into<String>) -> TocError {
    TocError::Malformed(brief(problem.into()))
}

/// A table of contents whose place in its layer is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toc {
    layer: Digest,
    layer_length: u64,
    diff_id: Digest,
    table: Table,
    range: Range<u64>,
}

/// Which table it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    /// In the layer.
    Own(Announced),
    /// Beside it; a zTOC with this digest.
    Beside(Digest),
}

impl Toc {
    /// The last bytes of a layer that tell where its table is; empty where the manifest tells.
    pub fn footer(announced: &Announced, layer_length: u64) -> Range<u64> {
        match announced {
            Announced::EStargz { .. } => layer_length.saturating_sub(estargz::FOOTER_BYTES)..layer_length,
            Announced::ZstdChunked { .. } => layer_length..layer_length,
        }
    }

    /// Finds the table of a layer. `diff_id` is the layer's in the image's configuration, and `footer` the bytes that
    /// [`Toc::footer`] names.
    ///
    /// # Errors
    ///
    /// When it would lie outside of the layer, or is too long.
    pub fn locate(
        layer: Digest,
        layer_length: u64,
        diff_id: Digest,
        announced: Announced,
        footer: &[u8],
    ) -> Result<Self, TocError> {
        let range = match announced {
            Announced::EStargz { .. } => estargz::range(footer, layer_length)?,
            Announced::ZstdChunked { offset, length, .. } => {
                let end = offset.checked_add(length).ok_or_else(|| malformed("it ends beyond the layer"))?;
                offset..end
            }
        };
        if range.is_empty() || range.end > layer_length {
            return Err(malformed(format!("bytes {range:?} of a layer of {layer_length}")));
        }
        if range.end - range.start > MAX_TOC_STORED_BYTES {
            return Err(TocError::Unsupported(format!("{} bytes of it in the layer", range.end - range.start)));
        }
        Ok(Self { layer, layer_length, diff_id, table: Table::Own(announced), range })
    }

    /// The zTOC of a layer, which is `length` bytes long.
    ///
    /// # Errors
    ///
    /// When it is too long.
    pub fn ztoc(
        layer: Digest,
        layer_length: u64,
        diff_id: Digest,
        ztoc: Digest,
        length: u64,
    ) -> Result<Self, TocError> {
        if !(1..=MAX_ZTOC_BYTES).contains(&length) {
            return Err(TocError::Unsupported(format!("a zTOC of {length} bytes")));
        }
        Ok(Self { layer, layer_length, diff_id, table: Table::Beside(ztoc), range: 0..length })
    }

    /// Where the table lies in the layer, or in the zTOC: all of it.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Makes an index of the table as it is stored. Blocking work on the processor.
    ///
    /// # Errors
    ///
    /// When it is another than the manifest's, malformed, or beyond what can be mounted.
    pub fn index(&self, stored: &[u8]) -> Result<Index, TocError> {
        let (json, compression, form) = match self.table {
            Table::Beside(digest) => return self.index_of_ztoc(stored, digest),
            Table::Own(Announced::EStargz { digest }) => {
                (estargz::json(stored, digest)?, Compression::Gzip, Form::EStargz)
            }
            Table::Own(Announced::ZstdChunked { digest, json_length, .. }) => {
                let json = zstd_chunked::json(stored, digest, json_length)?;
                (json, Compression::Zstd, Form::ZstdChunked)
            }
        };
        let contents = json::parse(&json)?;
        drop(json);
        let laid = layout::lay(contents, compression, self.range.start)?;
        Ok(Index {
            form,
            layer: self.layer,
            layer_length: self.layer_length,
            diff_id: self.diff_id,
            tar_length: laid.length,
            compression,
            spans: laid.spans,
            entries: laid.entries,
            prefetch: laid.prefetch,
        })
    }

    fn index_of_ztoc(&self, stored: &[u8], expected: Digest) -> Result<Index, TocError> {
        let actual = Digest::of(stored);
        if actual != expected {
            return Err(TocError::Digest { expected, actual });
        }
        let read = ztoc::read(stored, self.layer_length)?;
        Ok(Index {
            form: Form::Soci,
            layer: self.layer,
            layer_length: self.layer_length,
            diff_id: self.diff_id,
            tar_length: read.tar_length,
            compression: read.compression,
            spans: read.spans,
            entries: read.entries,
            prefetch: 0,
        })
    }

    /// The bytes that [`Toc::load`] makes the same index of.
    pub fn keep(&self, stored: &[u8]) -> Vec<u8> {
        let Self { layer, layer_length, diff_id, table, range } = self;
        let table = match table {
            Table::Own(announced) => announced.to_string(),
            Table::Beside(ztoc) => format!("soci {ztoc}"),
        };
        let line = format!("{layer} {layer_length} {diff_id} {} {} {table}\n", range.start, range.end);
        [MAGIC, line.as_bytes(), stored].concat()
    }

    /// Whether these bytes were made by [`Toc::keep`].
    pub fn is_kept(kept: &[u8]) -> bool {
        kept.starts_with(MAGIC)
    }

    /// Makes the index anew, with all checks.
    ///
    /// # Errors
    ///
    /// As [`Toc::locate`] and [`Toc::index`]; also when the bytes were not made by [`Toc::keep`].
    pub fn load(kept: &[u8]) -> Result<Index, TocError> {
        let wrong = || malformed("what was kept of it is damaged");
        let rest = kept.strip_prefix(MAGIC).ok_or_else(wrong)?;
        let end = rest.iter().take(MAX_TOC_DESCRIPTION_BYTES).position(|byte| *byte == b'\n').ok_or_else(wrong)?;
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| wrong())?;
        let mut words = line.splitn(6, ' ');
        let mut word = || words.next().ok_or_else(wrong);
        let layer = word()?.parse().map_err(|_| wrong())?;
        let layer_length = word()?.parse().map_err(|_| wrong())?;
        let diff_id = word()?.parse().map_err(|_| wrong())?;
        let range = word()?.parse().map_err(|_| wrong())?..word()?.parse().map_err(|_| wrong())?;
        let table = word()?;
        let table = match table.strip_prefix("soci ") {
            Some(ztoc) => Table::Beside(ztoc.parse().map_err(|_| wrong())?),
            None => Table::Own(table.parse().map_err(|_| wrong())?),
        };
        let stored = &rest[end + 1..];
        let most = if matches!(table, Table::Own(_)) { layer_length } else { MAX_ZTOC_BYTES };
        if range.is_empty() || range.end > most || range.end - range.start != stored.len() as u64 {
            return Err(wrong());
        }
        Self { layer, layer_length, diff_id, table, range }.index(stored)
    }
}

/// Whether a converter put this entry of the tar there for itself: it is not shown.
pub(crate) fn is_hidden(path: &[u8]) -> bool {
    CONVERTERS_FILES.contains(&path)
}

/// Whether a table tells of an entry what the tar says; the places of its bytes are not compared.
///
/// eStargz has whole seconds, rounded from what the tar has, and none for the first second of 1970.
pub(crate) fn agree(told: &Entry, seen: &Entry) -> bool {
    let sorted = |entry: &Entry| {
        let mut xattrs = entry.xattrs.clone();
        xattrs.sort_unstable();
        xattrs
    };
    let same_kind = match (&told.kind, &seen.kind) {
        (Kind::File { size: told, .. }, Kind::File { size: seen, .. }) => told == seen,
        (told, seen) => told == seen,
    };
    let rounded = seen.mtime + i64::from(seen.mtime_nanos >= 500_000_000);
    let same_time = (told.mtime, told.mtime_nanos) == (seen.mtime, seen.mtime_nanos)
        || (told.mtime_nanos == 0 && (told.mtime == rounded || (told.mtime == 0 && seen.mtime == 0)));
    same_kind
        && same_time
        && told.path == seen.path
        && (told.mode, told.uid, told.gid) == (seen.mode, seen.uid, seen.gid)
        && sorted(told) == sorted(seen)
}

/// A bound on what is decompressed to get at a table.
fn bounded_json(length: u64) -> Result<usize, TocError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_TOC_BYTES {
        return Err(TocError::Unsupported(format!("{length} bytes of JSON, beyond {MAX_TOC_BYTES}")));
    }
    Ok(length)
}
