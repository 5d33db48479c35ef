//! Which pieces of a blob somebody has.

use std::ops::Range;

use crate::layout::PieceIndex;

/// A set of piece indexes below a fixed count, one bit each (most significant bit first, as BEP 3 draws it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitfield {
    bits: Vec<u8>,
    len: u32,
    ones: u32,
}

/// Bytes that are not a bitfield of the expected number of pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are no bitfield of {pieces} pieces (wrong size, or a bit set past the end)")]
pub struct InvalidBitfield {
    bytes: usize,
    pieces: u32,
}

impl Bitfield {
    /// No piece of `len`.
    pub fn empty(len: u32) -> Self {
        Self { bits: vec![0; len.div_ceil(8) as usize], len, ones: 0 }
    }

    /// Every piece of `len`.
    pub fn full(len: u32) -> Self {
        let mut field = Self { bits: vec![0xff; len.div_ceil(8) as usize], len, ones: len };
        if let (Some(last), rest @ 1..) = (field.bits.last_mut(), len % 8) {
            *last = !(0xff_u8 >> rest);
        }
        field
    }

    /// Reads what [`Self::as_bytes`] wrote; exact size, no bit past the end.
    pub fn from_bytes(len: u32, bytes: &[u8]) -> Result<Self, InvalidBitfield> {
        let invalid = InvalidBitfield { bytes: bytes.len(), pieces: len };
        if bytes.len() != len.div_ceil(8) as usize {
            return Err(invalid);
        }
        if let (Some(last), rest @ 1..) = (bytes.last(), len % 8)
            && last & (0xff_u8 >> rest) != 0
        {
            return Err(invalid);
        }
        let ones = bytes.iter().map(|byte| byte.count_ones()).sum();
        Ok(Self { bits: bytes.to_vec(), len, ones })
    }

    /// The bits, eight to a byte.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Number of pieces of the blob, set or not.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether no piece is set.
    pub const fn is_empty(&self) -> bool {
        self.ones == 0
    }

    /// Whether every piece is set.
    pub const fn is_full(&self) -> bool {
        self.ones == self.len
    }

    /// Number of pieces set.
    pub const fn count(&self) -> u32 {
        self.ones
    }

    /// Whether `piece` is set; false past the end.
    pub fn get(&self, piece: PieceIndex) -> bool {
        piece.0 < self.len && self.bits[(piece.0 / 8) as usize] & mask(piece) != 0
    }

    /// Sets `piece`; true if it was not set before. Past the end nothing happens.
    pub fn set(&mut self, piece: PieceIndex) -> bool {
        if piece.0 >= self.len || self.get(piece) {
            return false;
        }
        self.bits[(piece.0 / 8) as usize] |= mask(piece);
        self.ones += 1;
        true
    }

    /// Clears `piece`; true if it was set before.
    pub fn clear(&mut self, piece: PieceIndex) -> bool {
        if !self.get(piece) {
            return false;
        }
        self.bits[(piece.0 / 8) as usize] &= !mask(piece);
        self.ones -= 1;
        true
    }

    /// The pieces that are set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        (0..self.len.div_ceil(64)).flat_map(|index| pieces_of(index, self.word(index)))
    }

    /// The first piece at or after `from` that is not set.
    pub fn first_missing(&self, from: PieceIndex) -> Option<PieceIndex> {
        (from.0 / 64..self.len.div_ceil(64)).find_map(|index| {
            let missing = !self.word(index) & mask_of(index, &(from.0..self.len));
            pieces_of(index, missing).next()
        })
    }

    /// The 64 pieces from number `64 * index` on, the first in the most significant bit; no bit past the end is set.
    pub fn word(&self, index: u32) -> u64 {
        let rest = self.bits.get(index as usize * 8..).unwrap_or_default();
        match rest.first_chunk() {
            Some(bytes) => u64::from_be_bytes(*bytes),
            None => rest.iter().zip([56, 48, 40, 32, 24, 16, 8]).map(|(&byte, shift)| u64::from(byte) << shift).sum(),
        }
    }
}

/// The bits of word `index` that stand for pieces of `range`, as [`Bitfield::word`] numbers them.
pub fn mask_of(index: u32, range: &Range<u32>) -> u64 {
    let first = index.saturating_mul(64);
    let below = |end: u32| match end.saturating_sub(first) {
        0 => 0,
        count @ 1..64 => !(u64::MAX >> count),
        _ => u64::MAX,
    };
    below(range.end) & !below(range.start)
}

/// The pieces whose bits are set in word `index`, ascending.
pub fn pieces_of(index: u32, mut word: u64) -> impl Iterator<Item = PieceIndex> {
    std::iter::from_fn(move || {
        let bit = word.leading_zeros();
        (bit < 64).then(|| {
            word &= !(1 << 63 >> bit);
            PieceIndex(index * 64 + bit)
        })
    })
}

const fn mask(piece: PieceIndex) -> u8 {
    0x80 >> (piece.0 % 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn full_has_no_stray_bits() {
        for len in 0..40 {
            let full = Bitfield::full(len);
            assert_eq!(Bitfield::from_bytes(len, full.as_bytes()), Ok(full.clone()));
            assert!(full.is_full());
            assert_eq!(full.count(), len);
        }
    }

    #[test]
    fn refuses_wrong_sizes_and_stray_bits() {
        assert!(Bitfield::from_bytes(9, &[0]).is_err());
        assert!(Bitfield::from_bytes(9, &[0, 0, 0]).is_err());
        assert!(Bitfield::from_bytes(9, &[0xff, 0x40]).is_err());
        assert!(Bitfield::from_bytes(9, &[0xff, 0x80]).is_ok());
    }

    #[test]
    fn words_number_pieces_from_the_most_significant_bit() {
        let mut field = Bitfield::empty(70);
        [0, 63, 64, 69].map(PieceIndex).iter().for_each(|&piece| assert!(field.set(piece)));
        assert_eq!((field.word(0), field.word(1), field.word(2)), (1 << 63 | 1, 1 << 63 | 1 << 58, 0));
        assert_eq!(mask_of(1, &(66..68)), 0b0011 << 60);
        assert_eq!(mask_of(0, &(60..128)), 0b1111);
        assert_eq!(mask_of(1, &(0..64)), 0);
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(len in 1u32..300, steps in prop::collection::vec((any::<bool>(), 0u32..320), 0..200)) {
            let mut field = Bitfield::empty(len);
            let mut model = std::collections::BTreeSet::new();
            for (set, piece) in steps {
                let piece = PieceIndex(piece);
                if set {
                    prop_assert_eq!(field.set(piece), piece.0 < len && model.insert(piece));
                } else {
                    prop_assert_eq!(field.clear(piece), model.remove(&piece));
                }
            }
            prop_assert_eq!(field.count() as usize, model.len());
            prop_assert_eq!(field.iter().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(Bitfield::from_bytes(len, field.as_bytes()), Ok(field));
        }
    }
}
