//! The first bytes of a connection: who is there, proven by a signature over the other side's nonce.
//!
//! ```text
//! each side:  "LWPW" | version: u16 | peer id: 32 | nonce: 32
//! then:       Ed25519 signature of "lapwing-wire-v1" | own id | other's id | other's nonce : 64
//! ```
//!
//! It proves that the other side has the key, so that nobody can be blamed for another's pieces. It does not protect
//! the bytes that follow: that is for TLS below, or for the hashes above.

use crate::identity::{Identity, PeerId, SIGNATURE_LENGTH};

/// Bytes of a [`Greeting`].
pub const GREETING_LENGTH: usize = 4 + 2 + 32 + 32;

/// Version of the wire that this program speaks.
pub const VERSION: u16 = 1;

const MAGIC: &[u8; 4] = b"LWPW";
const CONTEXT: &[u8] = b"lapwing-wire-v1";

/// The first message of each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// Who it claims to be.
    pub peer: PeerId,
    /// Random bytes that the other side must sign.
    pub nonce: [u8; 32],
}

/// Why a connection ended before its first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Something else listens there.
    #[error("the other side does not speak the piece wire")]
    Magic,
    /// Another version.
    #[error("the other side speaks version {0} of the piece wire, expected {VERSION}; upgrade the older node")]
    Version(u16),
    /// The signature is wrong.
    #[error("the other side could not prove that it is {0}")]
    Signature(PeerId),
}

impl Greeting {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; GREETING_LENGTH] {
        let mut bytes = [0; GREETING_LENGTH];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_be_bytes());
        bytes[6..38].copy_from_slice(self.peer.as_bytes());
        bytes[38..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8; GREETING_LENGTH]) -> Result<Self, HandshakeError> {
        if !bytes.starts_with(MAGIC) {
            return Err(HandshakeError::Magic);
        }
        let version = u16::from_be_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(HandshakeError::Version(version));
        }
        let (mut peer, mut nonce) = ([0; 32], [0; 32]);
        peer.copy_from_slice(&bytes[6..38]);
        nonce.copy_from_slice(&bytes[38..]);
        Ok(Self { peer: PeerId::from_bytes(peer), nonce })
    }

    /// The proof that answers this greeting.
    pub fn prove(&self, identity: &Identity) -> [u8; SIGNATURE_LENGTH] {
        identity.sign(&message(&identity.id(), &self.peer, &self.nonce))
    }

    /// Checks the other side's proof, which answers `sent`, the greeting of this side.
    pub fn check(&self, sent: &Self, proof: &[u8; SIGNATURE_LENGTH]) -> Result<(), HandshakeError> {
        if self.peer.verify(&message(&self.peer, &sent.peer, &sent.nonce), proof) {
            Ok(())
        } else {
            Err(HandshakeError::Signature(self.peer))
        }
    }
}

fn message(prover: &PeerId, verifier: &PeerId, nonce: &[u8; 32]) -> Vec<u8> {
    [CONTEXT, prover.as_bytes(), verifier.as_bytes(), nonce].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_proves_the_name() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let from_one = Greeting { peer: one.id(), nonce: [1; 32] };
        let from_other = Greeting { peer: other.id(), nonce: [2; 32] };
        assert_eq!(Greeting::decode(&from_one.encode()), Ok(from_one));
        assert_eq!(from_one.check(&from_other, &from_other.prove(&one)), Ok(()));
        let stolen = Greeting { peer: one.id(), nonce: [3; 32] };
        assert_eq!(stolen.check(&from_other, &from_other.prove(&other)), Err(HandshakeError::Signature(one.id())));
        let replayed = Greeting { nonce: [4; 32], ..from_other };
        assert!(from_one.check(&replayed, &from_other.prove(&one)).is_err());
    }

    #[test]
    fn other_protocols_and_versions_are_named() {
        let mut bytes = Greeting { peer: PeerId::from_bytes([0; 32]), nonce: [0; 32] }.encode();
        bytes[5] = 9;
        assert_eq!(Greeting::decode(&bytes), Err(HandshakeError::Version(9)));
        bytes[0] = b'G';
        assert_eq!(Greeting::decode(&bytes), Err(HandshakeError::Magic));
    }
}
