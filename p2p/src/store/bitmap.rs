//! The file that says which pieces of a blob are there: codec only, no I/O.
//!
//! Version 1, big-endian:
//!
//! ```text
//! offset  bytes  content
//!      0      4  magic "LWPB"
//!      4      1  version, 1
//!      5      1  flags: bit 0 = verified (the whole blob matched its digest; every bit below is set)
//!      6      2  zero
//!      8      8  length of the blob in bytes
//!     16     32  SHA-256 of the blob: a file moved to another blob is not believed
//!     48      n  one bit for each piece, most significant bit first, stray bits zero; n = ceil(pieces / 8)
//!   48+n      4  CRC-32C (RFC 3720) of everything before
//! ```

use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::layout::PieceLayout;

const MAGIC: [u8; 4] = *b"LWPB";
const VERSION: u8 = 1;
const VERIFIED: u8 = 1;
const HEADER_LENGTH: usize = 48;

/// What the bitmap file of a blob says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bitmap {
    pub(super) layout: PieceLayout,
    pub(super) have: Bitfield,
    pub(super) verified: bool,
}

/// Why a bitmap file is not believed. The pieces it spoke of are fetched again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BitmapError {
    #[error("it is not a bitmap file of version {VERSION}")]
    Foreign,
    #[error("it is of the wrong size")]
    Size,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it belongs to blob {0}")]
    OtherBlob(Digest),
    #[error("it contradicts itself")]
    Inconsistent,
}

impl Bitmap {
    /// The bytes of the file.
    pub(super) fn encode(&self, digest: &Digest) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LENGTH + self.have.as_bytes().len() + 4);
        bytes.extend(MAGIC);
        bytes.extend([VERSION, if self.verified { VERIFIED } else { 0 }, 0, 0]);
        bytes.extend(self.layout.length().to_be_bytes());
        bytes.extend(digest.as_bytes());
        bytes.extend(self.have.as_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote for the same blob, and refuses everything else.
    pub(super) fn decode(digest: &Digest, bytes: &[u8]) -> Result<Self, BitmapError> {
        let (body, checksum) = bytes.split_last_chunk().ok_or(BitmapError::Size)?;
        let (magic, rest) = body.split_first_chunk::<4>().ok_or(BitmapError::Size)?;
        let (tags, rest) = rest.split_first_chunk::<4>().ok_or(BitmapError::Size)?;
        let (length, rest) = rest.split_first_chunk().ok_or(BitmapError::Size)?;
        let (name, bits) = rest.split_first_chunk().ok_or(BitmapError::Size)?;
        if *magic != MAGIC || tags[0] != VERSION {
            return Err(BitmapError::Foreign);
        }
        if crc32c::crc32c(body) != u32::from_be_bytes(*checksum) {
            return Err(BitmapError::Checksum);
        }
        if name != digest.as_bytes() {
            return Err(BitmapError::OtherBlob(Digest::from_bytes(*name)));
        }
        let layout = PieceLayout::new(u64::from_be_bytes(*length)).map_err(|_| BitmapError::Inconsistent)?;
        let have = Bitfield::from_bytes(layout.piece_count(), bits).map_err(|_| BitmapError::Size)?;
        let verified = match tags[1..] {
            [0, 0, 0] => false,
            [VERIFIED, 0, 0] if have.is_full() => true,
            _ => return Err(BitmapError::Inconsistent),
        };
        Ok(Self { layout, have, verified })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::PieceIndex;
    use proptest::prelude::*;

    fn any_bitmap() -> impl Strategy<Value = (Digest, Bitmap)> {
        (any::<[u8; 32]>(), 0_u64..3_000_000, any::<u64>(), any::<bool>()).prop_map(
            |(digest, length, bits, verified)| {
                let layout = PieceLayout::new(length).unwrap();
                let mut have = Bitfield::empty(layout.piece_count());
                for piece in (0..layout.piece_count()).filter(|piece| verified || bits >> (piece % 64) & 1 == 1) {
                    have.set(PieceIndex(piece));
                }
                (Digest::from_bytes(digest), Bitmap { layout, have, verified })
            },
        )
    }

    #[test]
    fn the_encoding_is_what_the_documentation_draws() {
        let digest = Digest::of(b"lapwing");
        let layout = PieceLayout::new(300_000).unwrap();
        let mut have = Bitfield::empty(5);
        have.set(PieceIndex(1));
        let bytes = Bitmap { layout, have, verified: false }.encode(&digest);
        let mut expected = b"LWPB\x01\0\0\0\0\0\0\0\0\x04\x93\xe0".to_vec();
        expected.extend(digest.as_bytes());
        expected.push(0b0100_0000);
        expected.extend(crc32c::crc32c(&expected).to_be_bytes());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_longest_file_is_within_its_limit() {
        let layout = PieceLayout::new(crate::limits::MAX_BLOB_LENGTH).unwrap();
        let bitmap = Bitmap { layout, have: Bitfield::full(layout.piece_count()), verified: true };
        let bytes = bitmap.encode(&Digest::of(b""));
        assert_eq!(bytes.len() as u64, crate::limits::MAX_BITMAP_FILE_LENGTH);
    }

    #[test]
    fn verified_with_a_piece_missing_is_refused() {
        let (digest, layout) = (Digest::of(b""), PieceLayout::new(300_000).unwrap());
        let bytes = Bitmap { layout, have: Bitfield::empty(5), verified: true }.encode(&digest);
        assert_eq!(Bitmap::decode(&digest, &bytes), Err(BitmapError::Inconsistent));
    }

    #[test]
    fn the_bitmap_of_another_blob_is_refused() {
        let (digest, layout) = (Digest::of(b"one"), PieceLayout::new(300_000).unwrap());
        let bytes = Bitmap { layout, have: Bitfield::empty(5), verified: false }.encode(&digest);
        assert_eq!(Bitmap::decode(&Digest::of(b"two"), &bytes), Err(BitmapError::OtherBlob(digest)));
    }

    proptest! {
        #[test]
        fn a_bitmap_survives_its_encoding((digest, bitmap) in any_bitmap()) {
            prop_assert_eq!(Bitmap::decode(&digest, &bitmap.encode(&digest)), Ok(bitmap));
        }

        #[test]
        fn a_changed_byte_is_refused(
            (digest, bitmap) in any_bitmap(), at in any::<prop::sample::Index>(), flip in 1_u8..,
        ) {
            let mut bytes = bitmap.encode(&digest);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(Bitmap::decode(&digest, &bytes).is_err());
        }

        #[test]
        fn a_cut_or_longer_file_is_refused((digest, bitmap) in any_bitmap(), at in any::<prop::sample::Index>()) {
            let mut bytes = bitmap.encode(&digest);
            prop_assert!(Bitmap::decode(&digest, &bytes[..at.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert!(Bitmap::decode(&digest, &bytes).is_err());
        }
    }
}
