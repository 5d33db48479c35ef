//! The secret by which a registry shows that a notification is its own. Never shown, never logged.

use std::path::{Path, PathBuf};

use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use super::limits::SECRET_BYTES;

/// A secret in a file, read at each use, so that it can be exchanged.
#[derive(Debug)]
pub(super) struct Secret {
    path: PathBuf,
}

impl Secret {
    /// Checks the file as well.
    pub(super) fn new(path: &Path) -> Result<Self, String> {
        let secret = Self { path: path.to_owned() };
        secret.read().map(|_| secret)
    }

    fn read(&self) -> Result<Vec<u8>, String> {
        let path = self.path.display();
        let failed = |reason: String| format!("{path}: {reason}");
        let length = std::fs::metadata(&self.path).map_err(|error| failed(error.to_string()))?.len();
        let bounds = SECRET_BYTES;
        let wrong = || failed(format!("a secret has {} to {} bytes, on one line", bounds.start(), bounds.end()));
        // One more for the newline at its end.
        if length > *bounds.end() as u64 + 1 {
            return Err(wrong());
        }
        let mut secret = std::fs::read(&self.path).map_err(|error| failed(error.to_string()))?;
        if secret.last() == Some(&b'\n') {
            secret.pop();
        }
        let good = bounds.contains(&secret.len()) && secret.iter().all(|byte| (b' '..=b'~').contains(byte));
        if good { Ok(secret) } else { Err(wrong()) }
    }

    /// Whether an `Authorization` header is the secret, as it is or behind `Bearer`.
    pub(super) fn is_shown_by(&self, header: Option<&HeaderValue>) -> Result<bool, String> {
        let secret = self.read()?;
        let Some(header) = header.map(HeaderValue::as_bytes) else { return Ok(false) };
        let bearer = header.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"bearer ")).map(|_| &header[7..]);
        let (whole, behind) = (same(header, &secret), same(bearer.unwrap_or_default(), &secret));
        Ok(whole | behind)
    }
}

/// In a time that tells nothing of where the two differ: their hashes are compared, of which nobody can guess the beginning.
fn same(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (Sha256::digest(one), Sha256::digest(other));
    let differing = one.iter().zip(other.iter()).fold(0, |differing, (one, other)| differing | (one ^ other));
    std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_shown_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "correct horse battery\n").unwrap();
        let secret = Secret::new(&file).unwrap();
        let shown = |text: &'static str| secret.is_shown_by(Some(&HeaderValue::from_static(text))).unwrap();
        assert!(shown("correct horse battery") && shown("Bearer correct horse battery"));
        for wrong in
            ["", "correct horse batter", "correct horse battery!", "Bearer ", "Basic correct horse battery", "Bearer x"]
        {
            assert!(!shown(wrong), "{wrong:?}");
        }
        assert!(!secret.is_shown_by(None).unwrap());
        std::fs::write(&file, "another one, exchanged").unwrap();
        assert!(shown("another one, exchanged") && !shown("correct horse battery"));
        for bad in ["", "\n", "too short", "two lines of it\nand the second", &"x".repeat(2000)] {
            std::fs::write(&file, bad).unwrap();
            assert!(Secret::new(&file).is_err(), "{bad:?}");
            assert!(secret.is_shown_by(Some(&HeaderValue::from_static(""))).is_err());
        }
    }
}
