//! Chunk indexes: where a regular file's bytes lie in the tar.

use super::{BLOCK, ErofsError, device_length};
use crate::limits::MAX_CHUNK_INDEXES;
use crate::tree::Extent;

/// The largest exponent that the format's 5 bits hold: chunks of 1 TiB.
const MAX_EXPONENT: u32 = 31;
/// A chunk that reads as zeros.
pub(super) const HOLE: u32 = u32::MAX;
/// Flag of the chunk format: indexes of 8 bytes, with a device number.
pub(super) const WIDE_INDEXES: u16 = 0x20;

/// A file's chunks: each is `512 << exponent` bytes and starts at a block of the device, or is a [`HOLE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunks {
    pub(super) exponent: u32,
    pub(super) blocks: Vec<u32>,
}

/// Finds the largest chunk size with which every chunk lies in one extent or in a hole.
pub(super) fn chunks(path: &[u8], size: u64, extents: &[Extent], tar_length: u64) -> Result<Chunks, ErofsError> {
    if size > i64::MAX as u64 {
        return Err(ErofsError::unfit(path, "a size above 2^63"));
    }
    check(path, size, extents, tar_length)?;
    let exponent = exponent(size, extents);
    let length = BLOCK << exponent;
    let count = size.div_ceil(length);
    if count > MAX_CHUNK_INDEXES {
        return Err(ErofsError::unfit(path, "a sparse file in too many pieces"));
    }
    let mut blocks = vec![HOLE; count as usize];
    for extent in extents {
        let first = extent.file_offset / length;
        let end = (extent.file_offset + extent.length).div_ceil(length);
        for chunk in first..end {
            let tar_offset = extent.tar_offset + (chunk * length - extent.file_offset);
            blocks[chunk as usize] = (tar_offset / BLOCK) as u32;
        }
    }
    Ok(Chunks { exponent, blocks })
}

fn check(path: &[u8], size: u64, extents: &[Extent], tar_length: u64) -> Result<(), ErofsError> {
    let mut end = 0;
    for extent in extents {
        let extent_end = extent.file_offset.checked_add(extent.length);
        if extent.length == 0 || extent.file_offset < end || extent_end.is_none_or(|end| end > size) {
            return Err(ErofsError::unfit(path, "extents that overlap or lie outside the file"));
        }
        end = extent.file_offset + extent.length;
        let whole = end == size || end.is_multiple_of(BLOCK);
        if !extent.file_offset.is_multiple_of(BLOCK) || !extent.tar_offset.is_multiple_of(BLOCK) || !whole {
            return Err(ErofsError::unfit(path, "a sparse file with pieces that are not whole blocks"));
        }
        let tar_end = extent.tar_offset.checked_add(extent.length.next_multiple_of(BLOCK));
        if tar_end.is_none_or(|end| end > device_length(tar_length)) {
            return Err(ErofsError::unfit(path, "bytes behind the end of the tar"));
        }
    }
    Ok(())
}

fn exponent(size: u64, extents: &[Extent]) -> u32 {
    let covering = (BLOCK.trailing_zeros()..).find(|&bits| bits >= 63 || (1u64 << bits) >= size);
    let covering = covering.map_or(0, |bits| bits - BLOCK.trailing_zeros()).min(MAX_EXPONENT);
    let boundaries = extents.iter().flat_map(|extent| [extent.file_offset, extent.file_offset + extent.length]);
    boundaries
        .filter(|&boundary| boundary != 0 && boundary != size)
        .map(|boundary| boundary.trailing_zeros() - BLOCK.trailing_zeros())
        .fold(covering, u32::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(file_offset: u64, tar_offset: u64, length: u64) -> Extent {
        Extent { file_offset, tar_offset, length }
    }

    #[test]
    fn a_contiguous_file_has_one_chunk() {
        for size in [1, 511, 512, 513, 4096, 4097, 1 << 40] {
            let chunks = chunks(b"f", size, &[extent(0, 1024, size)], 2 << 40).unwrap();
            assert_eq!(chunks.blocks, [2], "{size}");
            assert!(BLOCK << chunks.exponent >= size);
        }
    }

    #[test]
    fn beyond_a_tebibyte_chunks_go_on() {
        let chunks = chunks(b"f", (1 << 40) + 1, &[extent(0, 512, (1 << 40) + 1)], 1 << 41).unwrap();
        assert_eq!(chunks, Chunks { exponent: 31, blocks: vec![1, 1 + (1 << 31)] });
    }

    #[test]
    fn holes_and_extents_share_the_largest_chunk_size() {
        let size = 1 << 20;
        let extents = [extent(8192, 512, 4096), extent(size - 4096, 4608, 4096)];
        let chunks = chunks(b"f", size, &extents, 1 << 20).unwrap();
        assert_eq!(chunks.exponent, 3);
        assert_eq!(chunks.blocks.len(), 256);
        assert_eq!((chunks.blocks[1], chunks.blocks[2], chunks.blocks[3]), (HOLE, 1, HOLE));
        assert_eq!(chunks.blocks[255], 9);
    }

    #[test]
    fn what_the_kernel_would_misread_is_refused() {
        for (size, extents) in [
            (100, vec![extent(0, 100, 100)]),
            (2000, vec![extent(0, 512, 700), extent(1024, 2048, 512)]),
            (2000, vec![extent(0, 512, 3000)]),
            (2000, vec![extent(1024, 512, 512), extent(0, 2048, 512)]),
            (4096, vec![extent(0, 1 << 20, 4096)]),
            (u64::MAX, vec![]),
        ] {
            assert!(chunks(b"f", size, &extents, 1 << 20).is_err(), "{size} {extents:?}");
        }
    }
}
