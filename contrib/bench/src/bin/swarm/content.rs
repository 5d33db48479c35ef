//! Blobs of bytes that cannot be compressed, the same for the same seed, made while they are read.

use sha2::{Digest as _, Sha256};
use std::io::{self, Read};

const BLOCK: usize = 64 << 10;

/// One blob of a scenario.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) length: u64,
    seed: u64,
}

impl Blob {
    pub(crate) fn new(seed: u64, length: u64) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut content = Content::new(seed, length);
        let mut buffer = vec![0; BLOCK];
        loop {
            match content.read(&mut buffer)? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        Ok(Self { digest: digest(hasher), length, seed })
    }

    pub(crate) fn content(&self) -> Content {
        Content::new(self.seed, self.length)
    }
}

/// The name of what was hashed.
pub(crate) fn digest(hasher: Sha256) -> String {
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The bytes of a blob.
pub(crate) struct Content {
    rng: fastrand::Rng,
    block: Vec<u8>,
    at: usize,
    left: u64,
}

impl Content {
    fn new(seed: u64, length: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), block: vec![0; BLOCK], at: BLOCK, left: length }
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == BLOCK {
            self.rng.fill(&mut self.block);
            self.at = 0;
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = buffer.len().min(BLOCK - self.at).min(left);
        buffer[..length].copy_from_slice(&self.block[self.at..self.at + length]);
        self.at += length;
        self.left -= length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_do_not_depend_on_how_they_are_read() {
        let blob = Blob::new(7, 200_001).unwrap();
        let mut bytes = Vec::new();
        blob.content().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 200_001);
        assert_eq!(digest(Sha256::new_with_prefix(&bytes)), blob.digest);
        assert_ne!(Blob::new(8, 200_001).unwrap().digest, blob.digest);
    }
}
