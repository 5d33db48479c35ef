//! eStargz: the footer, and the JSON in the last file of the tar (stargz-snapshotter, `docs/estargz.md`).

use std::ops::Range;

use lapwing_p2p::digest::Digest;

use crate::index::gunzip_member;
use crate::limits::MAX_TOC_BYTES;
use crate::tar::Scanner;
use crate::tree::Kind;

use super::{TocError, malformed};

/// Length of the footer: an empty gzip member whose extra field says where the table begins.
pub(super) const FOOTER_BYTES: u64 = 51;
/// A gzip header with nothing but an extra field, then the length of that, the subfield's name and its length.
const FOOTER_START: [u8; 16] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
/// Bytes of the header that mean nothing here: a time, flags of the compressor, its system.
const MEANINGLESS: Range<usize> = 4..10;
const MAGIC: &[u8] = b"STARGZ";
const NAME: &[u8] = b"stargz.index.json";
/// Headers and ends of the tar around the JSON, at most.
const AROUND_BYTES: usize = 64 << 10;

/// Where the table's gzip member lies.
pub(super) fn range(footer: &[u8], layer_length: u64) -> Result<Range<u64>, TocError> {
    let wrong = || malformed("the layer does not end with the footer of eStargz");
    let (start, rest) = footer.split_first_chunk::<16>().ok_or_else(wrong)?;
    let (offset, rest) = rest.split_first_chunk::<16>().ok_or_else(wrong)?;
    let meant = |at: &usize| !MEANINGLESS.contains(at);
    let same = (0..16).filter(meant).all(|at| start[at] == FOOTER_START[at]);
    if footer.len() as u64 != FOOTER_BYTES || !same || !rest.starts_with(MAGIC) {
        return Err(wrong());
    }
    let digits = offset.iter().all(u8::is_ascii_hexdigit).then(|| std::str::from_utf8(offset).ok()).flatten();
    let offset = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or_else(wrong)?;
    let end = layer_length.checked_sub(FOOTER_BYTES).ok_or_else(wrong)?;
    Ok(offset..end)
}

/// The JSON out of the table's gzip member, once its digest was checked.
pub(super) fn json(stored: &[u8], expected: Digest) -> Result<Vec<u8>, TocError> {
    let mut tar = gunzip_member(stored, MAX_TOC_BYTES + AROUND_BYTES).map_err(malformed)?;
    let mut scanner = Scanner::default();
    scanner.push(&tar).map_err(|error| malformed(error.to_string()))?;
    let entries = scanner.finish().map_err(|error| malformed(error.to_string()))?;
    let place = match entries.first() {
        Some(entry) if entry.path == NAME => match &entry.kind {
            Kind::File { size, extents } => match extents.as_slice() {
                [whole] if whole.length == *size => Some(whole.tar_offset as usize..(whole.tar_offset + size) as usize),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    let place = place.ok_or_else(|| malformed("its member does not begin with stargz.index.json"))?;
    let json = tar.get(place.clone()).ok_or_else(|| malformed("it ends too early"))?;
    let actual = Digest::of(json);
    if actual != expected {
        return Err(TocError::Digest { expected, actual });
    }
    tar.truncate(place.end);
    tar.drain(..place.start);
    Ok(tar)
}
