//! Who a node is: an Ed25519 key. Its public half is the peer id; an address is only where the peer was last seen.

use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use crate::digest::hex;

/// Length of a signature in bytes.
pub const SIGNATURE_LENGTH: usize = 64;

/// A node's name: its Ed25519 public key (RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 32]);

/// Text that is not the 64 hexadecimal digits of a peer id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a peer id: expected 64 lowercase hexadecimal digits")]
pub struct InvalidPeerId;

impl PeerId {
    /// The peer with this public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether this peer signed `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }

    /// The first ten digits, for tables and logs.
    pub fn short(&self) -> String {
        hex(&self.0[..5])
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for PeerId {
    type Err = InvalidPeerId;

    fn from_str(text: &str) -> Result<Self, InvalidPeerId> {
        let digest = crate::digest::Digest::from_own_hex(text).ok_or(InvalidPeerId)?;
        Ok(Self(*digest.as_bytes()))
    }
}

/// A node's private key.
pub struct Identity {
    key: Ed25519KeyPair,
    id: PeerId,
}

/// A key file that cannot be read, made or understood.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Reading or writing the file failed.
    #[error("identity key {path}: {source}; check that the directory exists and belongs to root")]
    Io {
        /// The key file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not an Ed25519 key.
    #[error("identity key {0} is not a PKCS#8 Ed25519 key; move it away and a new one will be made")]
    Malformed(String),
    /// The system's random source failed.
    #[error("no key could be made: the random source failed")]
    NoRandomness,
}

impl Identity {
    /// A new random key that is kept nowhere.
    pub fn generate() -> Result<Self, IdentityError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::NoRandomness)?;
        Self::from_pkcs8(document.as_ref()).ok_or(IdentityError::NoRandomness)
    }

    /// Reads the key at `path`, or makes one there with mode 0600.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        let io_error = |source| IdentityError::Io { path: path.display().to_string(), source };
        match std::fs::read(path) {
            Ok(bytes) => Self::from_pkcs8(&bytes).ok_or_else(|| IdentityError::Malformed(path.display().to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let document =
                    Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::NoRandomness)?;
                let mut file = std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(io_error)?;
                file.write_all(document.as_ref()).and_then(|()| file.sync_all()).map_err(io_error)?;
                Self::from_pkcs8(document.as_ref()).ok_or(IdentityError::NoRandomness)
            }
            Err(error) => Err(io_error(error)),
        }
    }

    fn from_pkcs8(bytes: &[u8]) -> Option<Self> {
        let key = Ed25519KeyPair::from_pkcs8(bytes).ok()?;
        let id = PeerId(key.public_key().as_ref().try_into().ok()?);
        Some(Self { key, id })
    }

    /// The public half.
    pub const fn id(&self) -> PeerId {
        self.id
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LENGTH] {
        let mut signature = [0; SIGNATURE_LENGTH];
        signature.copy_from_slice(self.key.sign(message).as_ref());
        signature
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_a_restart_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        let first = Identity::load_or_create(&path).unwrap();
        let second = Identity::load_or_create(&path).unwrap();
        assert_eq!(first.id(), second.id());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(first.id().to_string().parse::<PeerId>(), Ok(first.id()));
    }

    #[test]
    fn a_signature_holds_for_its_message_and_signer_only() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let signature = one.sign(b"piece 7");
        assert!(one.id().verify(b"piece 7", &signature));
        assert!(!one.id().verify(b"piece 8", &signature));
        assert!(!other.id().verify(b"piece 7", &signature));
        assert!(!one.id().verify(b"piece 7", &signature[..63]));
    }

    #[test]
    fn a_broken_key_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        std::fs::write(&path, b"not a key").unwrap();
        let error = Identity::load_or_create(&path).unwrap_err().to_string();
        assert!(error.contains("node.key") && error.contains("move it away"), "{error}");
    }
}
