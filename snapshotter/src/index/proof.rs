//! Whether a layer is what a table of contents says of it, found in one pass over the whole layer.
//!
//! A table with the right digest may still lie about the layer: name other files than the tar, or other bytes for a file.
//! So the tar is read as it would be for an index, and compared: its diffID with the image's, its entries with the table's,
//! and for each chunk, whether the member that the table names begins just where the tar has these bytes of the file. The
//! chunk is then right by construction, since its digest was held against the output of that member.
//!
//! A table whose device is the tar itself brings checkpoints with windows, which could make other bytes of the right input. So
//! the start of the tar that it covers is hashed, to be compared with what the spans gave.

use crate::toc;
use crate::tree::{Entry, Extent, Kind};

use super::builder::IndexBuilder;
use super::ledger::Members;
use super::{Index, IndexError};

/// Takes a layer's compressed bytes in order, and says in the end whether an index that was taken from a table of contents
/// tells the truth. Blocking work on the processor, about the cost of inflating and hashing the bytes.
pub struct LayerProof {
    builder: IndexBuilder,
}

impl LayerProof {
    /// For this index, which was not built from the layer.
    pub fn new(index: &Index) -> Self {
        let mut members: Vec<u64> = members(index).map(|member| member.layer_offset).collect();
        members.dedup();
        let start = if index.form().is_virtual() { 0 } else { index.tar_length() };
        Self { builder: IndexBuilder::of_members(index.layer(), index.layer_length(), Members::new(members), start) }
    }

    /// Takes the next bytes of the layer.
    ///
    /// # Errors
    ///
    /// When they are no layer.
    pub fn push(&mut self, compressed: &[u8]) -> Result<(), IndexError> {
        self.builder.push(compressed)
    }

    /// Compares the layer with `index`, which must be the one that [`LayerProof::new`] was given.
    ///
    /// Gives what is not right of the entries and of the places of their bytes, or else the BLAKE3 hash that all of a device that
    /// is the tar must have.
    ///
    /// # Errors
    ///
    /// When the bytes are not those of the layer, or are no layer.
    pub fn finish(self, index: &Index) -> Result<Result<[u8; 32], String>, IndexError> {
        let (truth, beside) = self.builder.finish_beside()?;
        if truth.diff_id() != index.diff_id() {
            return Ok(Err(format!("its tar is {}, not the image's {}", truth.diff_id(), index.diff_id())));
        }
        let is_virtual = index.form().is_virtual();
        let told: Vec<&Entry> = index.entries().iter().collect();
        let seen: Vec<&Entry> =
            truth.entries().iter().filter(|entry| !is_virtual || !toc::is_hidden(&entry.path)).collect();
        if told.len() != seen.len() {
            return Ok(Err(format!("the tar has {} entries, the table {}", seen.len(), told.len())));
        }
        let pieces = pieces(index, &beside.members);
        for (told, seen) in told.into_iter().zip(seen) {
            let path = String::from_utf8_lossy(&seen.path);
            if !toc::agree(told, seen) {
                return Ok(Err(format!("{path:?} is another in the tar than in the table")));
            }
            let same = if is_virtual { same_bytes(&told.kind, &seen.kind, &pieces) } else { told.kind == seen.kind };
            if !same {
                return Ok(Err(format!("the table has other bytes for {path:?} than the tar")));
            }
        }
        Ok(Ok(*beside.start_hash.as_bytes()))
    }
}

/// A chunk by its places.
struct Member {
    layer_offset: u64,
    skip: u64,
    device_offset: u64,
    length: u64,
}

/// All chunks, in the order of the layer, which is that of the device.
fn members(index: &Index) -> impl Iterator<Item = Member> {
    index.spans().iter().flat_map(|span| {
        span.chunks().iter().map(|chunk| Member {
            layer_offset: span.compressed.start + chunk.member,
            skip: chunk.skip,
            device_offset: span.output.start + chunk.at,
            length: chunk.length,
        })
    })
}

/// Where bytes of the device lie in the tar, in the order of the device; left out where no member begins as told.
fn pieces(index: &Index, begins: &Members) -> Vec<Extent> {
    let piece = |member: Member| {
        let tar_offset = begins.tar_offset(member.layer_offset)?.checked_add(member.skip)?;
        Some(Extent { file_offset: member.device_offset, tar_offset, length: member.length })
    };
    members(index).filter_map(piece).collect()
}

/// Whether a file of the table has the bytes of the tar's. Others have none.
fn same_bytes(told: &Kind, seen: &Kind, pieces: &[Extent]) -> bool {
    let (Kind::File { size, extents: told }, Kind::File { extents: seen, .. }) = (told, seen) else { return true };
    let [on_device] = told.as_slice() else { return told.is_empty() && *size == 0 };
    let mut offset = 0;
    let first = pieces.partition_point(|piece| piece.file_offset < on_device.tar_offset);
    for piece in &pieces[first..] {
        if offset == on_device.length {
            break;
        }
        let follows = piece.file_offset == on_device.tar_offset + offset;
        let extent = seen.partition_point(|extent| extent.file_offset + extent.length <= offset);
        let holds = seen.get(extent).is_some_and(|extent| {
            extent.file_offset <= offset
                && offset + piece.length <= extent.file_offset + extent.length
                && extent.tar_offset + (offset - extent.file_offset) == piece.tar_offset
        });
        if !follows || !holds {
            return false;
        }
        offset += piece.length;
    }
    offset == on_device.length && on_device.length == *size
}
