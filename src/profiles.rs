//! Profiles of images on this node: recorded when containers start, told to the group, replayed when an image is mounted.
//!
//! * [`shelf`]: what this node saw itself, or an operator gave it, on disk
//! * `record`: takes a start down ([`lapwing_snapshotter::lazy::Recorder`]), finds out its entry point from containerd
//! * `share`: says and learns profiles in the swarm
//! * `replay`: fetches what profiles list
//! * [`api`]: what `lapwing profile` asks for
//!
//! A node states what its own containers read, never what it was told. Where the others' profile serves it as well, it states that one
//! too, so that votes gather on profiles that serve many. All of it is best effort: what fails is logged, and costs the hint.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::Node;
use lapwing_plugins::containerd::Containerd;
use lapwing_snapshotter::lazy::LazyMounts;
use lapwing_snapshotter::profile::EntryPoint;
use lapwing_snapshotter::remote::Started;
use lru::LruCache;

pub(crate) mod api;
mod record;
mod replay;
mod share;
mod shelf;
#[cfg(test)]
mod tests_support;

use shelf::Shelf;

/// Most images whose layers and own entry point are remembered.
const MAX_IMAGES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// How long a start is recorded; zero for not at all.
    pub(crate) record_for: Duration,
    /// Whether what profiles list is fetched.
    pub(crate) prefetch: bool,
}

/// An image that passed the mirror.
#[derive(Debug, Clone)]
struct Seen {
    /// Digests of its layers.
    layers: Vec<Digest>,
    /// That of its configuration.
    entry: EntryPoint,
}

/// See the module's documentation.
pub(crate) struct Profiles {
    this: Weak<Self>,
    node: Arc<Node>,
    mounts: Arc<LazyMounts>,
    containerd: Containerd,
    terms: Terms,
    shelf: Arc<Shelf>,
    runtime: tokio::runtime::Handle,
    /// By chain id.
    images: Mutex<LruCache<Digest, Seen>>,
    /// Recordings under way, and the entry points of the containers that started.
    recording: Mutex<HashMap<Digest, HashSet<EntryPoint>>>,
    replays: Mutex<replay::Replays>,
}

impl Profiles {
    pub(crate) fn new(
        root: &Path,
        node: Arc<Node>,
        mounts: Arc<LazyMounts>,
        containerd: Containerd,
        terms: Terms,
    ) -> Arc<Self> {
        let runtime = tokio::runtime::Handle::current();
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            node,
            mounts,
            containerd,
            terms,
            shelf: Arc::new(Shelf::new(root)),
            runtime,
            images: Mutex::new(LruCache::new(MAX_IMAGES)),
            recording: Mutex::default(),
            replays: Mutex::default(),
        })
    }

    /// An image passed the mirror: it will probably be mounted, and started as it says itself.
    pub(crate) fn image_seen(&self, chain: &str, layers: Vec<Digest>, arguments: &[String]) {
        if let Ok(chain) = chain.parse() {
            lock(&self.images).put(chain, Seen { layers, entry: EntryPoint::of(arguments) });
        }
    }

    /// The layer of that chain id is about to be mounted.
    pub(crate) fn claimed(&self, chain: &str) {
        let Ok(chain) = chain.parse() else { return };
        let seen = lock(&self.images).get(&chain).cloned();
        if let Some(Seen { layers, entry }) = seen {
            self.replay(chain, layers, entry);
        }
    }

    /// A container starts on an image, or somebody looks at it. Returns at once.
    pub(crate) fn started(&self, started: Started) {
        if !lock(&self.replays).knows(&started.chain) {
            let entry = lock(&self.images).get(&started.chain).map(|seen| seen.entry.clone());
            self.replay(started.chain, started.layers.clone(), entry.unwrap_or_default());
        }
        if let Some(this) = self.this.upgrade() {
            this.record(started);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
