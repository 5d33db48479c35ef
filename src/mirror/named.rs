//! Manifests that the mirror named: a tag's answer carries a digest, which the client asks for next.
//!
//! Registries behind several front ends can answer 404 to a digest whose tag they gave a moment ago. A runtime that was given the tag here takes
//! a 404 for the end of it; the refusal that sends it on to its next host is the right answer then. Lost by a restart, which costs nothing but
//! that.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{RegistryName, RepositoryName};
use lru::LruCache;

/// Most manifests remembered.
const MAX_NAMED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Which manifest of which repository.
type Name = (RegistryName, RepositoryName, Digest);

pub(super) struct Named(Mutex<LruCache<Name, ()>>);

impl Default for Named {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_NAMED)))
    }
}

impl Named {
    /// A tag was answered with this digest.
    pub(super) fn note(&self, registry: &RegistryName, repository: &RepositoryName, digest: Digest) {
        let name = (registry.clone(), repository.clone(), digest);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(name, ());
    }

    pub(super) fn has(&self, registry: &RegistryName, repository: &RepositoryName, digest: Digest) -> bool {
        let name = (registry.clone(), repository.clone(), digest);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&name)
    }
}
