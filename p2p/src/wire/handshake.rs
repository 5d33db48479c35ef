//! The first bytes of a connection: who is there and what it can do, proven by a signature.
//!
//! ```text
//! each side:  "LWPW" | version: u16 | features: u16 | peer id: 32 | nonce: 32
//! then:       Ed25519 signature of "lapwing-wire-v2" | own greeting | other's greeting | channel : 64
//! ```
//!
//! It proves that the other side has the key, so that nobody can be blamed for another's pieces. `channel` is keying
//! material of the [TLS](super::tls) connection below, and zeros in plaintext: who sits between two peers cannot carry
//! the proof from one connection to another. In plaintext the bytes that follow are not protected: that is for the
//! hashes above.

use crate::identity::{Identity, PeerId, SIGNATURE_LENGTH};

/// Bytes of a [`Greeting`].
pub const GREETING_LENGTH: usize = 4 + 2 + 2 + 32 + 32;

/// Version of the wire that this program speaks.
pub const VERSION: u16 = 2;

/// Keying material of the connection, the same on both sides.
pub type Channel = [u8; 32];

/// The channel of a connection in plaintext.
pub const PLAINTEXT: Channel = [0; 32];

const MAGIC: &[u8; 4] = b"LWPW";
const CONTEXT: &[u8] = b"lapwing-wire-v2";

/// The first message of each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// What it takes, a bit each; bits that are not known mean nothing.
    pub features: u16,
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
    /// TLS listens there, or dials.
    #[error("the other side speaks TLS and this one does not; set peer.insecure alike on all nodes")]
    Tls,
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
        bytes[6..8].copy_from_slice(&self.features.to_be_bytes());
        bytes[8..40].copy_from_slice(self.peer.as_bytes());
        bytes[40..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8; GREETING_LENGTH]) -> Result<Self, HandshakeError> {
        if !bytes.starts_with(MAGIC) {
            // A record of TLS: an alert or a handshake.
            let tls = matches!(bytes, [21 | 22, 3, ..]);
            return Err(if tls { HandshakeError::Tls } else { HandshakeError::Magic });
        }
        let version = u16::from_be_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(HandshakeError::Version(version));
        }
        let features = u16::from_be_bytes([bytes[6], bytes[7]]);
        let (mut peer, mut nonce) = ([0; 32], [0; 32]);
        peer.copy_from_slice(&bytes[8..40]);
        nonce.copy_from_slice(&bytes[40..]);
        Ok(Self { features, peer: PeerId::from_bytes(peer), nonce })
    }

    /// The proof of `identity`, which sent `sent`, in answer to this greeting.
    pub fn prove(&self, sent: &Self, identity: &Identity, channel: &Channel) -> [u8; SIGNATURE_LENGTH] {
        identity.sign(&message(sent, self, channel))
    }

    /// Checks the proof of who sent this greeting, which answers `sent`, the greeting of this side.
    pub fn check(&self, sent: &Self, proof: &[u8; SIGNATURE_LENGTH], channel: &Channel) -> Result<(), HandshakeError> {
        if self.peer.verify(&message(self, sent, channel), proof) {
            Ok(())
        } else {
            Err(HandshakeError::Signature(self.peer))
        }
    }
}

fn message(prover: &Greeting, verifier: &Greeting, channel: &Channel) -> Vec<u8> {
    [CONTEXT, &prover.encode(), &verifier.encode(), channel].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(identity: &Identity, nonce: u8) -> Greeting {
        Greeting { features: 0, peer: identity.id(), nonce: [nonce; 32] }
    }

    #[test]
    fn only_the_key_proves_the_name() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let (from_one, from_other) = (greeting(&one, 1), greeting(&other, 2));
        assert_eq!(Greeting::decode(&from_one.encode()), Ok(from_one));
        let proof = from_other.prove(&from_one, &one, &PLAINTEXT);
        assert_eq!(from_one.check(&from_other, &proof, &PLAINTEXT), Ok(()));
        let stolen = from_other.prove(&from_one, &other, &PLAINTEXT);
        let refused = Err(HandshakeError::Signature(one.id()));
        assert_eq!(from_one.check(&from_other, &stolen, &PLAINTEXT), refused);
        assert_eq!(from_one.check(&greeting(&other, 4), &proof, &PLAINTEXT), refused, "a proof is good for one nonce");
        assert_eq!(from_one.check(&from_other, &proof, &[7; 32]), refused, "and for one connection");
        let promoted = Greeting { features: 1, ..from_one };
        assert_eq!(promoted.check(&from_other, &proof, &PLAINTEXT), refused, "what is offered is part of it");
    }

    #[test]
    fn other_protocols_and_versions_are_named() {
        let mut bytes = Greeting { features: 3, peer: PeerId::from_bytes([0; 32]), nonce: [0; 32] }.encode();
        bytes[5] = 9;
        assert_eq!(Greeting::decode(&bytes), Err(HandshakeError::Version(9)));
        bytes[0] = b'G';
        assert_eq!(Greeting::decode(&bytes), Err(HandshakeError::Magic));
        bytes[..2].copy_from_slice(&[22, 3]);
        assert_eq!(Greeting::decode(&bytes), Err(HandshakeError::Tls));
    }
}
