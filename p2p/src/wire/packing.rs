//! Pieces that travel compressed: a zstd frame (RFC 8878) of level 1, of a blob that a sample shows to be worth it.
//!
//! Layers are compressed already and never packed. What is: uncompressed tars, indexes, whatever else is text. Who
//! receives knows how long the piece is, and takes exactly that: what unpacks to more or less is a wrong piece.

use zstd::bulk::{Compressor, Decompressor};

/// Feature bit of the handshake: takes packed pieces.
pub const TAKES_PACKED: u16 = 1;

/// Bytes of a piece that are packed on trial.
pub const SAMPLE_LENGTH: usize = 64 << 10;

const LEVEL: i32 = 1;
/// A sample that shrinks less than to this share, in percent, is not worth the CPU.
const WORTH_PERCENT: usize = 75;
/// How compressed files begin: gzip, zstd, xz, bzip2, and zstd's skippable frames as in eStargz's kin.
const COMPRESSED: [&[u8]; 5] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", b"\x50\x2a\x4d\x18"];

/// Whether a blob that begins like this is compressed already. False says nothing.
pub fn is_compressed(beginning: &[u8]) -> bool {
    COMPRESSED.iter().any(|magic| beginning.starts_with(magic))
}

/// Whether pieces like this sample should travel packed.
pub fn is_worth_it(sample: &[u8]) -> bool {
    pack(sample).is_some_and(|packed| packed.len() * 100 <= sample.len() * WORTH_PERCENT)
}

/// Packs a piece; none if that does not make it shorter.
pub fn pack(piece: &[u8]) -> Option<Vec<u8>> {
    let packed = Compressor::new(LEVEL).and_then(|mut compressor| compressor.compress(piece)).ok()?;
    (packed.len() < piece.len()).then_some(packed)
}

/// Unpacks exactly `piece.len()` bytes; false if there are more or less, or it is no zstd frame. Memory is bounded by
/// the piece, whatever the frame claims of itself.
pub fn unpack(packed: &[u8], piece: &mut [u8]) -> bool {
    let unpacked = Decompressor::new().and_then(|mut decompressor| decompressor.decompress_to_buffer(packed, piece));
    unpacked.is_ok_and(|length| length == piece.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_shrinks_is_worth_it() {
        let text = b"the same words again and again, ".repeat(2048);
        let mut noise = vec![0; SAMPLE_LENGTH];
        fastrand::Rng::with_seed(3).fill(&mut noise);
        assert!(is_worth_it(&text) && !is_worth_it(&noise) && !is_worth_it(b""));
        assert_eq!(pack(&noise), None);
        assert!(is_compressed(b"\x1f\x8b\x08\0") && is_compressed(b"\x28\xb5\x2f\xfd\0") && !is_compressed(&text));
    }

    /// A few hundred bytes that unpack to a hundred megabytes must not.
    #[test]
    fn a_bomb_is_refused() {
        let bomb = pack(&vec![0; 100 << 20]).unwrap();
        assert!(bomb.len() < 20_000);
        let mut piece = vec![0; 1 << 20];
        assert!(!unpack(&bomb, &mut piece));
        let short = pack(&vec![7; (1 << 20) - 1]).unwrap();
        assert!(!unpack(&short, &mut piece));
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks_to_itself(unit in prop::collection::vec(any::<u8>(), 1..40), times in 20_usize..400) {
            let piece = unit.repeat(times);
            if let Some(packed) = pack(&piece) {
                let mut unpacked = vec![0; piece.len()];
                prop_assert!(unpack(&packed, &mut unpacked));
                prop_assert_eq!(unpacked, piece);
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_fill_the_piece(packed: Vec<u8>, length in 0_usize..1000) {
            let mut piece = vec![0; length];
            let _ = unpack(&packed, &mut piece);
            prop_assert_eq!(piece.len(), length);
        }
    }
}
