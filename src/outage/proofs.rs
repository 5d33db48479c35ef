//! To whom a registry gave what, and when. No I/O, no clock.

use std::num::NonZeroUsize;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{Credential, CredentialKey, Reference, RegistryName, RepositoryName};
use lru::LruCache;

/// Most things remembered; the least recently used go first.
const MAX_PROOFS: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();

/// Whose rights a registry judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    /// Nobody's: what he was given, everybody may have.
    Public,
    /// This node's own.
    Node,
    /// A client's, by its header.
    Client(CredentialKey),
}

impl From<&Credential> for Asker {
    fn from(credential: &Credential) -> Self {
        match credential {
            Credential::Anonymous => Self::Public,
            Credential::Configured => Self::Node,
            other => Self::Client(other.key()),
        }
    }
}

/// A repository and who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub registry: RegistryName,
    pub repo: RepositoryName,
    pub asker: Asker,
}

/// What a reference stands for, or a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    pub digest: Digest,
    /// In bytes.
    pub length: u64,
    /// Of a manifest.
    pub media_type: Option<String>,
}

/// All that is remembered.
#[derive(Debug)]
pub(super) struct Proofs(LruCache<(Place, Reference), (Given, Duration)>);

impl Proofs {
    pub(super) fn new() -> Self {
        Self(LruCache::new(MAX_PROOFS))
    }

    /// The registry gave it, at `at`. A later word replaces an earlier one. When it said the same before, if it did.
    pub(super) fn put(&mut self, place: &Place, reference: Reference, given: Given, at: Duration) -> Option<Duration> {
        let key = (place.clone(), reference);
        let before = self.0.peek(&key).map(|(before, at)| (before.digest, *at));
        let same = before.filter(|(digest, _)| *digest == given.digest).map(|(_, at)| at);
        if before.is_none_or(|(_, before)| before <= at) {
            self.0.put(key, (given, at));
        }
        same
    }

    /// What this asker, or anybody, was given since `since`, and when.
    pub(super) fn get(&mut self, place: &Place, reference: &Reference, since: Duration) -> Option<(Given, Duration)> {
        let public = Place { asker: Asker::Public, ..place.clone() };
        [place.clone(), public]
            .into_iter()
            .filter_map(|place| self.0.get(&(place, reference.clone())).cloned())
            .filter(|(_, at)| *at >= since)
            .max_by_key(|(_, at)| *at)
    }

    /// The tags that stand for this manifest, for exactly this asker.
    pub(super) fn tags_of(&self, place: &Place, manifest: Digest) -> Vec<(Reference, Given)> {
        let tags = self.0.iter().filter(|((at, reference), (given, _))| {
            at == place && matches!(reference, Reference::Tag(_)) && given.digest == manifest
        });
        tags.map(|((_, reference), (given, _))| (reference.clone(), given.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn place(asker: Asker) -> Place {
        Place { registry: RegistryName::docker_hub(), repo: "team/app".parse().unwrap(), asker }
    }

    fn client(token: &'static str) -> Asker {
        Asker::from(&Credential::Header(HeaderValue::from_static(token)))
    }

    fn given(content: &[u8]) -> Given {
        Given { digest: Digest::of(content), length: content.len() as u64, media_type: None }
    }

    const AT: Duration = Duration::from_secs(1000);

    #[test]
    fn what_was_given_to_one_is_given_to_nobody_else() {
        let mut proofs = Proofs::new();
        let tag: Reference = "v1".parse().unwrap();
        proofs.put(&place(client("one")), tag.clone(), given(b"x"), AT);
        let mut found = |asker, since| proofs.get(&place(asker), &tag, since);
        assert_eq!(found(client("one"), AT), Some((given(b"x"), AT)));
        assert_eq!(found(client("one"), AT + Duration::from_nanos(1)), None, "too old");
        for other in [client("two"), Asker::Public, Asker::Node] {
            assert_eq!(found(other, Duration::ZERO), None, "{other:?}");
        }
        let elsewhere = Place { repo: "team/other".parse().unwrap(), ..place(client("one")) };
        assert_eq!(proofs.get(&elsewhere, &tag, Duration::ZERO), None);
    }

    #[test]
    fn what_is_public_is_everybodys_and_the_later_word_counts() {
        let mut proofs = Proofs::new();
        let tag: Reference = "v1".parse().unwrap();
        proofs.put(&place(Asker::Public), tag.clone(), given(b"new"), AT);
        let before = AT - Duration::from_secs(1);
        assert_eq!(proofs.put(&place(Asker::Public), tag.clone(), given(b"old"), before), None, "not the same");
        assert_eq!(proofs.put(&place(Asker::Public), tag.clone(), given(b"new"), before), Some(AT));
        assert_eq!(proofs.get(&place(client("one")), &tag, Duration::ZERO), Some((given(b"new"), AT)));
        let later = AT + Duration::from_secs(9);
        proofs.put(&place(client("one")), tag.clone(), given(b"mine"), later);
        assert_eq!(proofs.get(&place(client("one")), &tag, Duration::ZERO), Some((given(b"mine"), later)));
        assert_eq!(proofs.get(&place(Asker::Node), &tag, Duration::ZERO), Some((given(b"new"), AT)));
    }

    #[test]
    fn tags_of_a_manifest() {
        let mut proofs = Proofs::new();
        let public = place(Asker::Public);
        for (tag, content) in [("v1", b"x"), ("latest", b"x"), ("v2", b"y")] {
            proofs.put(&public, tag.parse().unwrap(), given(content), AT);
        }
        proofs.put(&public, Reference::Digest(Digest::of(b"x")), given(b"x"), AT);
        let mut tags: Vec<String> =
            proofs.tags_of(&public, Digest::of(b"x")).into_iter().map(|(tag, _)| tag.to_string()).collect();
        tags.sort();
        assert_eq!(tags, ["latest", "v1"]);
        assert!(proofs.tags_of(&place(Asker::Node), Digest::of(b"x")).is_empty());
    }
}
