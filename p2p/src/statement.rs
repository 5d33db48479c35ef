//! "Piece i of this blob hashes to h": said and signed by a peer that fetched it from the origin.
//!
//! Before any node has verified the whole digest there is no [`Metainfo`](crate::verify::Metainfo) that a piece could
//! be checked against. Until then a piece carries the statement of the peer that holds, or held, the origin lease of
//! it; it is passed on with the piece, so that a lie can be traced to its author. What is signed is
//! `"lapwing-piece-v1" || digest || length || piece || BLAKE3 hash`, integers big-endian.

use crate::digest::Digest;
use crate::identity::{Identity, PeerId, SIGNATURE_LENGTH};
use crate::layout::PieceIndex;

const CONTEXT: &[u8; 16] = b"lapwing-piece-v1";
const MESSAGE_LENGTH: usize = CONTEXT.len() + 32 + 8 + 4 + 32;

/// Bytes of an encoded statement.
pub const STATEMENT_LENGTH: usize = 32 + 32 + SIGNATURE_LENGTH;

/// A signed hash of one piece. Which piece of which blob stands in the frame that carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceStatement {
    /// Who says so.
    pub signer: PeerId,
    /// BLAKE3 of the piece.
    pub hash: [u8; 32],
    signature: [u8; SIGNATURE_LENGTH],
}

impl PieceStatement {
    /// States a hash in this node's name.
    pub fn sign(identity: &Identity, digest: &Digest, length: u64, piece: PieceIndex, hash: [u8; 32]) -> Self {
        let signature = identity.sign(&message(digest, length, piece, &hash));
        Self { signer: identity.id(), hash, signature }
    }

    /// Whether its signer really said this of that piece.
    pub fn is_genuine(&self, digest: &Digest, length: u64, piece: PieceIndex) -> bool {
        self.signer.verify(&message(digest, length, piece, &self.hash), &self.signature)
    }

    /// The bytes on the wire: signer, hash, signature.
    pub fn encode(&self) -> [u8; STATEMENT_LENGTH] {
        let mut bytes = [0; STATEMENT_LENGTH];
        bytes[..32].copy_from_slice(self.signer.as_bytes());
        bytes[32..64].copy_from_slice(&self.hash);
        bytes[64..].copy_from_slice(&self.signature);
        bytes
    }

    /// Reads what [`Self::encode`] wrote; says nothing about whether it is genuine.
    pub fn decode(bytes: &[u8; STATEMENT_LENGTH]) -> Self {
        let (mut signer, mut hash, mut signature) = ([0; 32], [0; 32], [0; SIGNATURE_LENGTH]);
        signer.copy_from_slice(&bytes[..32]);
        hash.copy_from_slice(&bytes[32..64]);
        signature.copy_from_slice(&bytes[64..]);
        Self { signer: PeerId::from_bytes(signer), hash, signature }
    }
}

fn message(digest: &Digest, length: u64, piece: PieceIndex, hash: &[u8; 32]) -> [u8; MESSAGE_LENGTH] {
    let mut message = [0; MESSAGE_LENGTH];
    let parts: [&[u8]; 5] = [CONTEXT, digest.as_bytes(), &length.to_be_bytes(), &piece.0.to_be_bytes(), hash];
    let mut at = 0;
    for part in parts {
        message[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_for_exactly_one_piece_of_one_blob() {
        let identity = Identity::generate().unwrap();
        let digest = Digest::of(b"blob");
        let statement = PieceStatement::sign(&identity, &digest, 10, PieceIndex(3), [7; 32]);
        assert!(statement.is_genuine(&digest, 10, PieceIndex(3)));
        assert!(!statement.is_genuine(&digest, 11, PieceIndex(3)));
        assert!(!statement.is_genuine(&digest, 10, PieceIndex(4)));
        assert!(!statement.is_genuine(&Digest::of(b"other"), 10, PieceIndex(3)));
        assert!(!PieceStatement { hash: [8; 32], ..statement }.is_genuine(&digest, 10, PieceIndex(3)));
        assert_eq!(PieceStatement::decode(&statement.encode()), statement);
    }
}
