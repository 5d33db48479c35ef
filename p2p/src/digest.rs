//! Content digests as OCI writes them: `sha256:<64 lowercase hex digits>`.
//!
//! Some content is known by what it is called before anybody knows its digest: one version of a URL. It gets a *name* in
//! the place of a digest: [`Digest::name`]. A name ends with fixed bytes, so that no node mistakes it for the hash of the
//! content; digests from outside that end like one are refused by the parser.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// The SHA-256 of a blob, its name everywhere in Lapwing.
///
/// Parsed once at the edge (OCI image spec, section "Digests"); a value of this type is always well formed, so it may
/// be used to name files. Other algorithms are refused at parse time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A digest that is not `sha256:` followed by 64 lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: {0:?} (expected sha256: and 64 lowercase hexadecimal digits)")]
pub struct InvalidDigest(String);

/// How every name ends; its first bytes stay spread, since they choose directories. That a hash ends so has odds of one
/// in 2^64.
const NAME: [u8; 8] = *b"lapwing\x01";

impl Digest {
    /// The name of content that is not known by its digest. `of` must tell it from all other content, byte for byte:
    /// nothing but the word of those who fetched it says what its bytes are.
    pub fn name(of: &[u8]) -> Self {
        let mut bytes: [u8; 32] = Sha256::digest(of).into();
        bytes[32 - NAME.len()..].copy_from_slice(&NAME);
        Self(bytes)
    }

    /// Whether this is a name, and no hash of the content.
    pub fn is_name(&self) -> bool {
        self.0.ends_with(&NAME)
    }

    /// Reads 64 hexadecimal digits that this program wrote: a digest or a name.
    pub(crate) fn from_own_hex(digits: &str) -> Option<Self> {
        let digits = digits.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0]).zip(nibble(pair[1])).map(|(high, low)| high << 4 | low)?;
        }
        Some(Self(bytes))
    }

    /// The digest with these raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Computes the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the algorithm, as used in paths.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(text.chars().take(100).collect());
        let digest = text.strip_prefix("sha256:").and_then(Self::from_own_hex);
        digest.filter(|digest| !digest.is_name()).ok_or_else(invalid)
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Lowercase hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints() {
        let digest = Digest::of(b"lapwing");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
    }

    #[test]
    fn names_are_told_from_digests() {
        let name = Digest::name(b"a version");
        assert!(name.is_name() && !Digest::of(b"a version").is_name());
        assert_ne!(name, Digest::name(b"another version"));
        assert!(name.to_string().parse::<Digest>().is_err(), "nobody outside can ask for one as a digest");
        assert_eq!(Digest::from_own_hex(&name.hex()), Some(name));
    }

    #[test]
    fn refuses_everything_else() {
        let hex = Digest::of(b"x").hex();
        for bad in [
            "".to_owned(),
            "sha256:".to_owned(),
            format!("sha512:{hex}"),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:../{}", &hex[3..]),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
