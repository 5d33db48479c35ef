//! What a piece must hash to, and how a whole blob proves it.
//!
//! SHA-256 names a blob but can only be checked once every byte is there. [`Metainfo`] carries the BLAKE3 hash of every
//! piece, so that a single piece can be checked the moment it arrives. Only a node that has hashed the complete blob
//! makes one ([`StreamVerifier`]); whether somebody else's is believed is decided by who gave it, not here.
//!
//! # Encoding of a metainfo, version 1
//!
//! Deterministic: equal metainfo gives equal bytes, and every accepted byte string is the encoding of what was read
//! from it. So its own SHA-256 ([`Metainfo::id`]) names it, and independent nodes can be compared. Big-endian.
//!
//! ```text
//! offset  bytes  content
//!      0      4  magic "LWMI"
//!      4      4  version, 1
//!      8      8  length of the blob in bytes
//!     16      8  length of a piece in bytes; must be what PieceLayout derives from the blob's length
//!     24     32  SHA-256 of the blob
//!     56   32*n  BLAKE3 of each of the n pieces, in order
//! ```
//!
//! Nothing may follow. There is no checksum: a changed byte gives another id.

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::layout::{PieceIndex, PieceLayout, TooLong};
use crate::limits::MAX_METAINFO_LENGTH;

/// Bytes of an encoded metainfo before the hashes.
pub(crate) const METAINFO_HEADER_LENGTH: usize = 56;

const MAGIC: [u8; 4] = *b"LWMI";
const VERSION: u32 = 1;
const HASH_LENGTH: usize = 32;

/// The BLAKE3 hash of a piece's bytes.
pub fn piece_hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// A blob's digest and length, and the hash of each of its pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metainfo {
    digest: Digest,
    layout: PieceLayout,
    hashes: Vec<[u8; 32]>,
}

/// Bytes or values that are no metainfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// Shorter than the header, or longer than any blob needs.
    #[error(
        "metainfo of {0} bytes: expected {METAINFO_HEADER_LENGTH} to {MAX_METAINFO_LENGTH}; ask another peer for it"
    )]
    Size(usize),
    /// The bytes do not begin like a metainfo.
    #[error("metainfo does not begin with \"LWMI\"; ask another peer for it")]
    Magic,
    /// A version that this program does not know.
    #[error("metainfo version {0} is unknown (expected {VERSION}); its maker is newer or older than this node")]
    Version(u32),
    /// The blob's length is above the limit.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The pieces are cut in another way than the blob's length demands.
    #[error("metainfo of a blob of {length} bytes has pieces of {found} bytes, expected {expected}")]
    PieceLength {
        /// Length of the blob.
        length: u64,
        /// What was stated.
        found: u64,
        /// What follows from the length.
        expected: u64,
    },
    /// Not one hash for each piece.
    #[error("metainfo of a blob of {length} bytes has {found} bytes of piece hashes, expected {expected}")]
    Hashes {
        /// Length of the blob.
        length: u64,
        /// Bytes of hashes found.
        found: usize,
        /// Bytes of hashes that its pieces need.
        expected: usize,
    },
}

impl Metainfo {
    /// The metainfo of a blob of `length` bytes with one hash for each piece.
    pub fn new(digest: Digest, length: u64, hashes: Vec<[u8; 32]>) -> Result<Self, MetainfoError> {
        let layout = PieceLayout::new(length)?;
        if hashes.len() != layout.piece_count() as usize {
            let (found, expected) = (hashes.len() * HASH_LENGTH, layout.piece_count() as usize * HASH_LENGTH);
            return Err(MetainfoError::Hashes { length, found, expected });
        }
        Ok(Self { digest, layout, hashes })
    }

    /// The bytes that the module documentation draws.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(METAINFO_HEADER_LENGTH + self.hashes.len() * HASH_LENGTH);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(self.layout.length().to_be_bytes());
        bytes.extend(self.layout.piece_length().to_be_bytes());
        bytes.extend(self.digest.as_bytes());
        bytes.extend(self.hashes.as_flattened());
        bytes
    }

    /// Reads what [`Self::encode`] wrote, and refuses everything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetainfoError> {
        let size = MetainfoError::Size(bytes.len());
        if bytes.len() > MAX_METAINFO_LENGTH {
            return Err(size);
        }
        let (magic, rest) = bytes.split_first_chunk().ok_or(size)?;
        let (version, rest) = rest.split_first_chunk().ok_or(size)?;
        let (length, rest) = rest.split_first_chunk().ok_or(size)?;
        let (piece_length, rest) = rest.split_first_chunk().ok_or(size)?;
        let (digest, rest) = rest.split_first_chunk().ok_or(size)?;
        if *magic != MAGIC {
            return Err(MetainfoError::Magic);
        }
        if u32::from_be_bytes(*version) != VERSION {
            return Err(MetainfoError::Version(u32::from_be_bytes(*version)));
        }
        let (length, found) = (u64::from_be_bytes(*length), u64::from_be_bytes(*piece_length));
        let layout = PieceLayout::new(length)?;
        if found != layout.piece_length() {
            return Err(MetainfoError::PieceLength { length, found, expected: layout.piece_length() });
        }
        let expected = layout.piece_count() as usize * HASH_LENGTH;
        let (hashes, remainder) = rest.as_chunks::<HASH_LENGTH>();
        if rest.len() != expected || !remainder.is_empty() {
            return Err(MetainfoError::Hashes { length, found: rest.len(), expected });
        }
        Ok(Self { digest: Digest::from_bytes(*digest), layout, hashes: hashes.to_vec() })
    }

    /// The name of this metainfo in the swarm: the digest of its encoding.
    pub fn id(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// The blob's digest.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The blob's length in bytes.
    pub const fn length(&self) -> u64 {
        self.layout.length()
    }

    /// How the blob is cut.
    pub const fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// The hash of `piece`; none past the end.
    pub fn hash(&self, piece: PieceIndex) -> Option<[u8; 32]> {
        self.hashes.get(piece.0 as usize).copied()
    }

    /// Whether `bytes` are exactly that piece.
    pub fn matches(&self, piece: PieceIndex, bytes: &[u8]) -> bool {
        let range = self.layout.range(piece);
        bytes.len() as u64 == range.end - range.start
            && self.hash(piece).is_some_and(|expected| piece_hash(bytes) == expected)
    }
}

/// Checks a blob that arrives in order, piece by piece, and notes the hash of each piece on the way.
#[derive(Debug, Clone)]
pub struct StreamVerifier {
    digest: Digest,
    layout: PieceLayout,
    whole: Sha256,
    hashes: Vec<[u8; 32]>,
    wrong_piece: Option<(u32, usize)>,
}

/// Why a stream is not the blob it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The bytes hash to something else.
    #[error("blob {expected} hashes to {actual}: at least one piece is wrong; drop the pieces and fetch them again")]
    DigestMismatch {
        /// The digest it was asked for by.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// A piece of the wrong length was pushed, or one past the end.
    #[error("blob {digest}: piece {piece} was given {found} bytes, expected {expected}")]
    PieceLength {
        /// The blob.
        digest: Digest,
        /// The first piece of wrong length.
        piece: u32,
        /// The bytes pushed.
        found: usize,
        /// The bytes it has by the blob's layout; zero past its end.
        expected: u64,
    },
    /// The stream ended early.
    #[error("blob {digest}: the stream ended after {found} of {expected} pieces")]
    Short {
        /// The blob.
        digest: Digest,
        /// Pieces pushed.
        found: u32,
        /// Pieces it has.
        expected: u32,
    },
}

impl StreamVerifier {
    /// Begins with the first piece of the blob.
    pub fn new(digest: Digest, layout: PieceLayout) -> Self {
        Self { digest, layout, whole: Sha256::new(), hashes: Vec::new(), wrong_piece: None }
    }

    /// The piece that [`Self::push_piece`] expects next.
    pub fn next_piece(&self) -> PieceIndex {
        // Never more than piece_count, a u32: push_piece stops there.
        PieceIndex(self.hashes.len() as u32)
    }

    /// The hashes of the pieces pushed so far.
    pub fn hashes(&self) -> &[[u8; 32]] {
        &self.hashes
    }

    /// Takes the next piece, whole. One of wrong length makes [`Self::finish`] fail.
    pub fn push_piece(&mut self, bytes: &[u8]) {
        if self.wrong_piece.is_some() {
            return;
        }
        let range = self.layout.range(self.next_piece());
        if range.is_empty() || bytes.len() as u64 != range.end - range.start {
            self.wrong_piece = Some((self.next_piece().0, bytes.len()));
            return;
        }
        self.whole.update(bytes);
        self.hashes.push(piece_hash(bytes));
    }

    /// The metainfo, if everything came and matches the digest. Of a blob that has a name instead, it is the metainfo of
    /// the pieces pushed.
    pub fn finish(self) -> Result<Metainfo, VerifyError> {
        let digest = self.digest;
        if let Some((piece, found)) = self.wrong_piece {
            let range = self.layout.range(PieceIndex(piece));
            return Err(VerifyError::PieceLength { digest, piece, found, expected: range.end - range.start });
        }
        let (found, expected) = (self.next_piece().0, self.layout.piece_count());
        if found != expected {
            return Err(VerifyError::Short { digest, found, expected });
        }
        let actual = Digest::from_bytes(self.whole.finalize().into());
        // A name says nothing of the bytes: each of the pieces was believed on its own.
        if actual != digest && !digest.is_name() {
            return Err(VerifyError::DigestMismatch { expected: digest, actual });
        }
        Ok(Metainfo { digest, layout: self.layout, hashes: self.hashes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metainfo_of(bytes: &[u8]) -> Result<Metainfo, VerifyError> {
        let layout = PieceLayout::new(bytes.len() as u64).unwrap();
        let mut verifier = StreamVerifier::new(Digest::of(bytes), layout);
        for piece in bytes.chunks(layout.piece_length() as usize) {
            verifier.push_piece(piece);
        }
        verifier.finish()
    }

    #[test]
    fn a_stream_gives_the_hash_of_each_piece() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i / 977) as u8).collect();
        let metainfo = metainfo_of(&bytes).unwrap();
        let layout = metainfo.layout();
        assert_eq!(layout.piece_count(), 5);
        for piece in (0..5).map(PieceIndex) {
            let range = layout.range(piece);
            let right = &bytes[range.start as usize..range.end as usize];
            assert_eq!(metainfo.hash(piece), Some(*blake3::hash(right).as_bytes()));
            assert!(metainfo.matches(piece, right));
            assert!(!metainfo.matches(PieceIndex((piece.0 + 1) % 5), right));
            assert!(!metainfo.matches(piece, &right[1..]));
        }
        assert_eq!(metainfo.hash(PieceIndex(5)), None);
        assert!(!metainfo.matches(PieceIndex(5), &[]));
    }

    #[test]
    fn a_stream_that_differs_is_refused() {
        let bytes = vec![3; 300_000];
        let layout = PieceLayout::new(300_000).unwrap();
        let digest = Digest::of(&bytes);
        let verify = |pieces: &[&[u8]]| {
            let mut verifier = StreamVerifier::new(digest, layout);
            pieces.iter().for_each(|piece| verifier.push_piece(piece));
            verifier.finish().map(|_| ())
        };
        let pieces: Vec<&[u8]> = bytes.chunks(65_536).collect();
        assert_eq!(verify(&pieces), Ok(()));
        assert_eq!(verify(&pieces[..4]), Err(VerifyError::Short { digest, found: 4, expected: 5 }));
        let wrong = vec![4; 65_536];
        assert!(matches!(
            verify(&[&wrong, pieces[1], pieces[2], pieces[3], pieces[4]]),
            Err(VerifyError::DigestMismatch { expected, .. }) if expected == digest
        ));
        let short = VerifyError::PieceLength { digest, piece: 0, found: 5, expected: 65_536 };
        assert_eq!(verify(&[b"short", pieces[0]]), Err(short));
        let mut longer = pieces.clone();
        longer.push(b"x");
        assert_eq!(verify(&longer), Err(VerifyError::PieceLength { digest, piece: 5, found: 1, expected: 0 }));
    }

    #[test]
    fn an_empty_blob_has_metainfo() {
        let metainfo = metainfo_of(b"").unwrap();
        assert_eq!(Metainfo::decode(&metainfo.encode()), Ok(metainfo.clone()));
        assert_eq!(metainfo.encode().len(), METAINFO_HEADER_LENGTH);
    }

    /// The format is a contract between nodes of different versions: these bytes never change.
    #[test]
    fn the_encoding_is_what_the_documentation_draws() {
        let digest = Digest::of(b"lapwing");
        let bytes = Metainfo::new(digest, 7, vec![piece_hash(b"lapwing")]).unwrap().encode();
        let mut expected = b"LWMI\0\0\0\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\x04\0\0".to_vec();
        expected.extend(digest.as_bytes());
        expected.extend(blake3::hash(b"lapwing").as_bytes());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_number_of_hashes_follows_from_the_length() {
        let digest = Digest::of(b"");
        assert!(matches!(Metainfo::new(digest, 1, vec![]), Err(MetainfoError::Hashes { .. })));
        assert!(matches!(Metainfo::new(digest, u64::MAX, vec![]), Err(MetainfoError::TooLong(_))));
        assert_eq!(
            Metainfo::decode(&vec![0; MAX_METAINFO_LENGTH + 1]),
            Err(MetainfoError::Size(MAX_METAINFO_LENGTH + 1))
        );
    }

    fn any_metainfo() -> impl Strategy<Value = Metainfo> {
        (any::<[u8; 32]>(), 0_u64..3_000_000, any::<u8>()).prop_map(|(digest, length, seed)| {
            let count = PieceLayout::new(length).unwrap().piece_count();
            let hashes = (0..count).map(|piece| piece_hash(&[seed, piece as u8])).collect();
            Metainfo::new(Digest::from_bytes(digest), length, hashes).unwrap()
        })
    }

    proptest! {
        #[test]
        fn metainfo_survives_its_encoding(metainfo in any_metainfo()) {
            prop_assert_eq!(Metainfo::decode(&metainfo.encode()), Ok(metainfo));
        }

        #[test]
        fn a_changed_byte_is_refused_or_gives_another_id(
            metainfo in any_metainfo(), at in any::<prop::sample::Index>(), flip in 1_u8..,
        ) {
            let mut bytes = metainfo.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(other) = Metainfo::decode(&bytes) {
                prop_assert_ne!(other.id(), metainfo.id());
                prop_assert_eq!(other.encode(), bytes);
            } else {
                prop_assert!(at < 24, "hashes and digest may be anything");
            }
        }

        #[test]
        fn a_cut_or_longer_encoding_is_refused(metainfo in any_metainfo(), at in any::<prop::sample::Index>()) {
            let mut bytes = metainfo.encode();
            prop_assert!(Metainfo::decode(&bytes[..at.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert!(Metainfo::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_refused_or_are_their_own_encoding(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(head) = bytes.first_chunk_mut() {
                *head = *b"LWMI\0\0\0\x01\0\0\0\0\0\0";
            }
            if let Ok(metainfo) = Metainfo::decode(&bytes) {
                prop_assert_eq!(metainfo.encode(), bytes);
            }
        }
    }
}
