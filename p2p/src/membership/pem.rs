//! PEM files (RFC 7468) of certificates, bounded.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::limits::{MAX_CERTIFICATES, MAX_PEM_BYTES};

/// A file that certificates cannot be read from, or written to.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// It holds something else, or too much.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The certificates of a file, one at least.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let text = read_bounded(path)?;
    let malformed = |reason: String| PemError::Malformed { path: path.display().to_string(), reason };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).take(MAX_CERTIFICATES + 1).collect();
    let read = read.map_err(|error| malformed(format!("not PEM: {error}")))?;
    match read.len() {
        0 => Err(malformed("holds no certificate (\"BEGIN CERTIFICATE\")".to_owned())),
        1..=MAX_CERTIFICATES => Ok(read),
        _ => Err(malformed(format!("holds more than {MAX_CERTIFICATES} certificates"))),
    }
}

/// Puts `certificates` in the place of `path`, all or nothing.
pub fn write_certificates(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<(), PemError> {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = BASE64_STANDARD.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    replace(path, text.as_bytes(), 0o644).map_err(|source| PemError::Io { path: path.display().to_string(), source })
}

/// Reads a file that is no longer than a file of certificates or keys should be.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, PemError> {
    let shown = || path.display().to_string();
    let file = std::fs::File::open(path).map_err(|source| PemError::Io { path: shown(), source })?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_PEM_BYTES + 1), &mut text)
        .map_err(|source| PemError::Io { path: shown(), source })?;
    if text.len() as u64 > MAX_PEM_BYTES {
        return Err(PemError::Malformed { path: shown(), reason: format!("is longer than {MAX_PEM_BYTES} bytes") });
    }
    Ok(text)
}

/// Writes beside `path` and renames: who reads meets the old content or the new.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_other_files_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some.pem");
        let some = [CertificateDer::from(vec![7; 100]), CertificateDer::from(vec![8; 1])];
        write_certificates(&path, &some).unwrap();
        assert_eq!(certificates(&path).unwrap(), some);
        let bad: [(Vec<u8>, &str); 3] = [
            (b"nothing".to_vec(), "holds no certificate"),
            (b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n".to_vec(), "not PEM"),
            (vec![b' '; 1 << 20], "longer"),
        ];
        for (content, hint) in bad {
            std::fs::write(&path, content).unwrap();
            let error = certificates(&path).unwrap_err().to_string();
            assert!(error.contains(hint) && error.contains("some.pem"), "{error}");
        }
        assert!(certificates(&directory.path().join("absent.pem")).is_err());
    }
}
