//! How a blob is cut into pieces.

use std::ops::Range;

use crate::limits::{MAX_BLOB_LENGTH, MAX_PIECE_LENGTH};

const SMALL_BLOB: u64 = 256 * 1024;
const MIN_PIECE: u64 = 64 * 1024;

/// The position of a piece in its blob, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(pub u32);

/// A blob's length and the piece length that follows from it.
///
/// The piece length depends on the blob's length alone, so that every node cuts alike: `length / 512` rounded to a
/// power of two, between 64 KiB and 1 MiB. A blob of at most 256 KiB is a single piece. The loss of a swarm against
/// its bound is linear in the piece length; `ARCHITECTURE.md` has the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceLayout {
    length: u64,
    piece_length: u64,
}

/// A blob longer than [`MAX_BLOB_LENGTH`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("blob of {0} bytes is longer than the limit of {MAX_BLOB_LENGTH} bytes")]
pub struct TooLong(pub u64);

impl PieceLayout {
    /// The layout of a blob of `length` bytes.
    pub fn new(length: u64) -> Result<Self, TooLong> {
        if length > MAX_BLOB_LENGTH {
            return Err(TooLong(length));
        }
        let piece_length = if length <= SMALL_BLOB {
            SMALL_BLOB
        } else {
            nearest_power_of_two(length / 512).clamp(MIN_PIECE, MAX_PIECE_LENGTH)
        };
        Ok(Self { length, piece_length })
    }

    /// Length of the blob in bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Length in bytes of every piece but the last, which may be shorter.
    pub const fn piece_length(&self) -> u64 {
        self.piece_length
    }

    /// Number of pieces; an empty blob has none.
    pub const fn piece_count(&self) -> u32 {
        // At most MAX_BLOB_LENGTH / MAX_PIECE_LENGTH pieces: fits.
        self.length.div_ceil(self.piece_length) as u32
    }

    /// The bytes of the blob that `piece` holds; empty for a piece past the end.
    pub fn range(&self, piece: PieceIndex) -> Range<u64> {
        let start = (u64::from(piece.0) * self.piece_length).min(self.length);
        start..(start + self.piece_length).min(self.length)
    }

    /// The pieces that hold the given bytes of the blob, clipped to its end.
    pub fn pieces(&self, bytes: Range<u64>) -> Range<u32> {
        let end = bytes.end.min(self.length);
        if bytes.start >= end {
            return 0..0;
        }
        (bytes.start / self.piece_length) as u32..end.div_ceil(self.piece_length) as u32
    }
}

fn nearest_power_of_two(value: u64) -> u64 {
    let above = value.max(1).next_power_of_two();
    let below = above / 2;
    if above - value.max(1) <= value.max(1) - below { above } else { below }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piece_lengths_follow_the_blob_length() {
        let cases = [
            (0, SMALL_BLOB),
            (1, SMALL_BLOB),
            (SMALL_BLOB, SMALL_BLOB),
            (SMALL_BLOB + 1, MIN_PIECE),
            (32 << 20, MIN_PIECE),
            (64 << 20, 128 << 10),
            (100 << 20, 256 << 10),
            (256 << 20, 512 << 10),
            (10 << 30, MAX_PIECE_LENGTH),
        ];
        for (length, piece_length) in cases {
            assert_eq!(PieceLayout::new(length).unwrap().piece_length(), piece_length, "{length}");
        }
    }

    #[test]
    fn ranges_tile_the_blob() {
        for length in [0, 1, 255 << 10, 256 << 10, (256 << 10) + 1, (3 << 20) + 17] {
            let layout = PieceLayout::new(length).unwrap();
            let mut end = 0;
            for piece in 0..layout.piece_count() {
                let range = layout.range(PieceIndex(piece));
                assert_eq!(range.start, end);
                assert!(!range.is_empty());
                assert_eq!(layout.pieces(range.clone()), piece..piece + 1);
                end = range.end;
            }
            assert_eq!(end, length);
            assert_eq!(layout.pieces(0..u64::MAX), 0..layout.piece_count());
        }
    }

    #[test]
    fn refuses_absurd_lengths() {
        assert_eq!(PieceLayout::new(u64::MAX), Err(TooLong(u64::MAX)));
    }
}
