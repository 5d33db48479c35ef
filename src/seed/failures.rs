//! Why fetches were given up, for askers that are told by nothing but the answers to their own questions.

use std::num::NonZeroUsize;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lru::LruCache;
use tokio::time::Instant;

/// Blobs of which it is remembered.
const MAX_REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// For how long: several times the pause between two questions of one asker.
const AGE: Duration = Duration::from_secs(30);

/// Each reason is told once: who asks after that wants it tried again.
pub(super) struct Failures(LruCache<Digest, (String, Instant)>);

impl Default for Failures {
    fn default() -> Self {
        Self(LruCache::new(MAX_REMEMBERED))
    }
}

impl Failures {
    pub(super) fn note(&mut self, digest: Digest, reason: String, now: Instant) {
        self.0.put(digest, (reason, now));
    }

    pub(super) fn take(&mut self, digest: &Digest, now: Instant) -> Option<String> {
        let (reason, at) = self.0.pop(digest)?;
        (now.duration_since(at) < AGE).then_some(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_fetch_was_given_up_is_told_once_and_soon() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        failures.note(one, "the disk is full".to_owned(), now);
        assert_eq!(failures.take(&other, now), None);
        assert_eq!(failures.take(&one, now + AGE / 2).as_deref(), Some("the disk is full"));
        assert_eq!(failures.take(&one, now + AGE / 2), None, "it is tried again");
        failures.note(one, "the disk is full".to_owned(), now);
        assert_eq!(failures.take(&one, now + AGE), None, "it was long ago");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let digests: Vec<Digest> = (0..=MAX_REMEMBERED.get()).map(|number| Digest::of(&number.to_le_bytes())).collect();
        for digest in &digests {
            failures.note(*digest, String::new(), now);
        }
        let told = digests.iter().filter(|digest| failures.take(digest, now).is_some()).count();
        assert_eq!(told, MAX_REMEMBERED.get());
    }
}
