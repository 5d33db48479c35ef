//! The word of a registry that nobody listed is not enough.
//!
//! Any client can name a registry of its own that claims to have every digest there is. Were that a right to what this
//! node and its peers hold, knowing a digest would be enough to get a private blob. So before bytes are given out on
//! the word of an unlisted registry, it must show that it has the blob: a random stretch of it, equal to what the
//! swarm gives, and not so uniform that it could be guessed. Listed registries let only those say that a repository has
//! a blob who pushed its bytes.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::{Blob, Priority};
use lapwing_p2p::origin::Origin;
use lapwing_plugins::registry::RegistryName;
use lru::LruCache;

use super::answer::Refusal;

/// Bytes compared.
const SAMPLE: u64 = 4096;
/// Stretches tried until one is not uniform.
const ATTEMPTS: usize = 4;
/// Fewest different byte values that a stretch must have, unless the blob is shorter than a stretch.
const FEWEST_VALUES: usize = 64;
/// Proofs remembered.
const MAX_PROOFS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Which unlisted registry has shown which blob.
pub(super) struct Proofs {
    shown: Mutex<LruCache<(RegistryName, Digest), ()>>,
}

impl Proofs {
    pub(super) fn new() -> Self {
        Self { shown: Mutex::new(LruCache::new(MAX_PROOFS)) }
    }

    pub(super) async fn require(
        &self,
        registry: &RegistryName,
        blob: &Arc<Blob>,
        origin: &dyn Origin,
    ) -> Result<(), Refusal> {
        let key = (registry.clone(), blob.digest());
        if self.shown.lock().unwrap_or_else(PoisonError::into_inner).get(&key).is_some() {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            let range = stretch(blob.length());
            let theirs = fetch(origin, range.clone()).await?;
            let ours = blob.read(range.clone(), Priority::Bulk).await?;
            if theirs != ours {
                let (start, end) = (range.start, range.end);
                let shown = origin.describe();
                tracing::warn!(digest = %blob.digest(), registry = %registry, "registry claims a blob that it does not have");
                return Err(Refusal::unavailable(format!(
                    "{shown}: bytes {start}..{end} are not those of this digest"
                )));
            }
            if ours.len() as u64 == blob.length() || is_telling(&ours) {
                self.shown.lock().unwrap_or_else(PoisonError::into_inner).put(key, ());
                return Ok(());
            }
        }
        let shown = origin.describe();
        Err(Refusal::unavailable(format!(
            "{shown} is too uniform to tell whether {registry} has it; list that registry"
        )))
    }
}

fn stretch(length: u64) -> Range<u64> {
    let start = fastrand::u64(0..=length.saturating_sub(SAMPLE));
    start..(start + SAMPLE).min(length)
}

fn is_telling(bytes: &[u8]) -> bool {
    let mut seen = [false; 256];
    bytes.iter().for_each(|&byte| seen[usize::from(byte)] = true);
    seen.iter().filter(|&&seen| seen).count() >= FEWEST_VALUES
}

async fn fetch(origin: &dyn Origin, range: Range<u64>) -> Result<Bytes, Refusal> {
    let mut body = origin.fetch(range).await.map_err(|error| Refusal::unavailable(error.to_string()))?;
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| Refusal::unavailable(error.to_string()))?);
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_lie_within() {
        for length in [1, 100, SAMPLE, SAMPLE + 1, 1 << 30] {
            let range = stretch(length);
            assert!(range.end <= length && range.end - range.start == SAMPLE.min(length), "{length}: {range:?}");
        }
    }

    #[test]
    fn zeros_prove_nothing() {
        assert!(!is_telling(&[0; 4096]));
        assert!(is_telling(&(0..=255).collect::<Vec<u8>>()));
    }
}
