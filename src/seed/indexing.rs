//! Indexes of the layers that a seed has: built as they come where the configuration says so, and of any layer where somebody asks.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::IndexStand;
use lapwing_p2p::node::{Blob, Priority};
use lru::LruCache;
use tokio::sync::watch;

use crate::layers::build::{Builder, is_layer};

/// Layers of which it is remembered how their indexes stand.
const MAX_REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

type Outcome = watch::Receiver<Option<Result<(), String>>>;

/// See the module's documentation.
pub(super) struct Indexing {
    builder: Arc<Builder>,
    /// Whether nobody need ask.
    always: bool,
    asked: Mutex<LruCache<Digest, Outcome>>,
}

impl Indexing {
    pub(super) fn new(builder: Arc<Builder>, always: bool) -> Self {
        Self { builder, always, asked: Mutex::new(LruCache::new(MAX_REMEMBERED)) }
    }

    /// Has the index of a layer built in the same pass: with a seed at work no node is the first to fetch it.
    pub(super) fn as_it_comes(&self, blob: &Arc<Blob>) {
        if !self.always {
            return;
        }
        let (builder, blob) = (Arc::clone(&self.builder), Arc::clone(blob));
        tokio::spawn(async move {
            let head = blob.read(0..blob.length().min(512), Priority::Bulk).await;
            if head.is_ok_and(|head| is_layer(&head)) {
                builder.layer_pulled(&blob);
            }
        });
    }

    /// Waits until a layer that is here has an index.
    pub(super) async fn ahead(&self, blob: &Arc<Blob>) -> Result<(), String> {
        self.builder.index_ahead(blob).await
    }

    /// How the index of a layer stands that is here; begins with one that is missing. The outcome is told once, and the
    /// next question begins anew: what was there may be gone.
    pub(super) fn stand(&self, blob: &Arc<Blob>) -> IndexStand {
        let mut asked = self.asked();
        let known = asked.get(&blob.digest()).map(|outcome| outcome.borrow().clone());
        if let Some(Some(outcome)) = known {
            asked.pop(&blob.digest());
            return outcome.map_or_else(IndexStand::Impossible, |()| IndexStand::There);
        }
        if known.is_none() {
            let (sender, outcome) = watch::channel(None);
            asked.put(blob.digest(), outcome);
            let (builder, blob) = (Arc::clone(&self.builder), Arc::clone(blob));
            tokio::spawn(async move { sender.send_replace(Some(builder.index_ahead(&blob).await)) });
        }
        IndexStand::Building
    }

    fn asked(&self) -> MutexGuard<'_, LruCache<Digest, Outcome>> {
        // Single insertions and removals: nothing is left half done.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
