//! GNU's sparse files: the old `S` header and PAX formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").

use crate::limits::{MAX_EXTENTS, MAX_FILE_BYTES};
use crate::tree::Extent;

use super::header::{BLOCK, Block, number};
use super::pax::{Pax, integer};

/// File offset and length of each stretch of data, in the order of the tar.
pub(super) type Map = Vec<(u64, u64)>;

/// How a file says that it is sparse.
pub(super) enum Sparse {
    /// It does not.
    No,
    /// The map is known.
    Known(Map),
    /// The map stands in the first blocks of the data (1.0).
    InData,
}

/// Reads the `GNU.sparse.*` records; versions that nobody defined are taken for ordinary files, as Go takes them.
pub(super) fn from_pax(pax: &Pax) -> Result<Sparse, String> {
    let get = |key: &str| pax.sparse.get(key.as_bytes()).map_or(&b""[..], Vec::as_slice);
    match (get("major"), get("minor")) {
        (b"1", b"0") => Ok(Sparse::InData),
        (b"0", b"0" | b"1") => list(get("map"), get("numblocks")).map(Sparse::Known),
        (b"", b"") if !get("map").is_empty() => list(get("map"), get("numblocks")).map(Sparse::Known),
        _ => Ok(Sparse::No),
    }
}

/// The name of a sparse file by its PAX records, if they give one; the header has a made-up one.
pub(super) fn name_from_pax(pax: &Pax) -> Option<Vec<u8>> {
    let is_sparse = !matches!(from_pax(pax), Ok(Sparse::No));
    pax.sparse.get(&b"name"[..]).filter(|name| is_sparse && !name.is_empty()).cloned()
}

/// The size of the whole file by its PAX records, if they give one.
pub(super) fn size_from_pax(pax: &Pax) -> Result<Option<i64>, String> {
    let get = |key: &str| pax.sparse.get(key.as_bytes()).filter(|value| !value.is_empty());
    get("size").or_else(|| get("realsize")).map(|value| integer(value)).transpose()
}

fn list(map: &[u8], count: &[u8]) -> Result<Map, String> {
    let count = natural(count)?;
    if count == 0 && map.is_empty() {
        return Ok(Map::new());
    }
    let numbers: Vec<u64> = map.split(|byte| *byte == b',').map(natural).collect::<Result<_, _>>()?;
    let (pairs, []) = numbers.as_chunks::<2>() else { return Err("sparse map with an odd end".to_owned()) };
    if pairs.len() as u64 != count {
        return Err(format!("sparse map of {} stretches says it has {count}", pairs.len()));
    }
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

fn natural(text: &[u8]) -> Result<u64, String> {
    u64::try_from(integer(text)?).map_err(|_| "negative number in a sparse map".to_owned())
}

/// The map of PAX format 1.0: decimal numbers, one a line, filling whole blocks.
#[derive(Default)]
pub(super) struct MapReader {
    line: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl MapReader {
    /// Takes the next block; gives the map once it is whole.
    pub(super) fn push(&mut self, block: &Block) -> Result<Option<Map>, String> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err("sparse map is not a list of numbers".to_owned());
                }
                continue;
            }
            let value = natural(&std::mem::take(&mut self.line))?;
            match self.count {
                None if value > MAX_EXTENTS as u64 => return Err(format!("sparse map of {value} stretches")),
                None => self.count = Some(value),
                Some(_) => self.numbers.push(value),
            }
            if self.count.is_some_and(|count| self.numbers.len() as u64 == count * 2) {
                return Ok(Some(self.numbers.as_chunks::<2>().0.iter().map(|[a, b]| (*a, *b)).collect()));
            }
        }
        Ok(None)
    }
}

/// The part of an old GNU map in a header (four stretches at 386) or extension block (21 at 0), and whether more follows.
pub(super) fn old_map(block: &Block, is_header: bool, map: &mut Map) -> Result<bool, String> {
    let (start, slots, more) = if is_header { (386, 4, 482) } else { (0, 21, 504) };
    for slot in 0..slots {
        let at = start + slot * 24;
        if block[at] == 0 {
            break;
        }
        let field =
            |range: &[u8]| u64::try_from(number(range)?).map_err(|_| "negative number in a sparse map".to_owned());
        map.push((field(&block[at..at + 12])?, field(&block[at + 12..at + 24])?));
        if map.len() > MAX_EXTENTS {
            return Err("sparse map with too many stretches".to_owned());
        }
    }
    Ok(block[more] != 0)
}

/// The size of the whole file in an old GNU header.
pub(super) fn old_size(block: &Block) -> Result<i64, String> {
    number(&block[483..495])
}

/// Lays a map over data that starts at `tar_offset` and must be exactly `physical` bytes.
pub(super) fn extents(map: &Map, size: u64, tar_offset: u64, physical: u64) -> Result<Vec<Extent>, String> {
    let mut extents = Vec::new();
    let (mut file_end, mut used) = (0, 0u64);
    for (file_offset, length) in map.iter().copied() {
        let end = file_offset.checked_add(length).filter(|end| *end <= size && *end <= MAX_FILE_BYTES);
        let Some(end) = end.filter(|_| file_offset >= file_end) else {
            return Err("sparse map overlaps itself or the end of the file".to_owned());
        };
        file_end = end;
        if length > 0 {
            extents.push(Extent { file_offset, tar_offset: tar_offset + used, length });
        }
        used += length;
    }
    if used == physical {
        Ok(extents)
    } else {
        Err(format!("sparse map covers {used} bytes, but the entry has {physical}"))
    }
}

/// Bytes that fill the last block of `length` bytes.
pub(super) fn padding(length: u64) -> u64 {
    length.wrapping_neg() % BLOCK as u64
}
