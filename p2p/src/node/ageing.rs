//! The age of the store's blobs: what nobody uses makes way before a write has to wait for it, and is withdrawn from
//! discovery as soon as it is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::Node;
use crate::digest::Digest;
use crate::discovery::Holding;
use crate::limits::MAX_REPLICA_QUESTIONS;
use crate::store::Removed;

/// How often the store is looked after though nothing was written: pins end, and others fill the filesystem.
const LOOK: Duration = Duration::from_secs(10);

/// How long the answer to how many copies there are may take: evictions wait for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Ages the store when it is crowded.
pub(super) async fn age(node: Arc<Node>) {
    loop {
        node.age().await;
        tokio::select! {
            () = node.store.crowded() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Tells discovery, one by one, what is not here any more.
pub(super) async fn withdraw_removed(node: Arc<Node>, mut removed: UnboundedReceiver<Removed>) {
    while let Some(Removed { digest, bytes, evicted }) = removed.recv().await {
        if evicted {
            node.metrics.evicted_blobs.inc();
            node.metrics.evicted_bytes.inc_by(bytes);
        }
        node.tell_holding(digest).await;
        if evicted {
            node.look_for_foreign(digest);
        }
    }
}

impl Node {
    async fn age(self: &Arc<Self>) {
        if !self.age_store().await {
            // What is only kept open for peers that may come back can be spared, too.
            self.flush_all().await;
            self.close_unused(Duration::ZERO);
            self.age_store().await;
        }
        self.metrics.store_bytes.set(i64::try_from(self.store.used_bytes()).unwrap_or(i64::MAX));
    }

    /// Asks discovery which of the blobs that are next to go are the last copies of their zone, ahead of need: while it is
    /// silent the least recently used go first.
    async fn weigh(&self) {
        let digests = match self.store.unweighed(MAX_REPLICA_QUESTIONS) {
            Ok(digests) if !digests.is_empty() => digests,
            _ => return,
        };
        match timeout(PATIENCE, self.discovery.replicas(&digests)).await {
            Ok(Ok(counts)) => self.store.weigh(digests.into_iter().zip(counts)),
            Ok(Err(error)) => tracing::debug!(%error, "it is not known which blobs others have"),
            Err(_) => tracing::debug!("it is not known which blobs others have: discovery is silent"),
        }
    }

    /// Whether there is room enough now.
    async fn age_store(self: &Arc<Self>) -> bool {
        self.weigh().await;
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || store.age()).await {
            Ok(Ok(enough)) => enough,
            Ok(Err(error)) => {
                tracing::warn!(%error, "old blobs cannot be evicted");
                true
            }
            Err(_) => true,
        }
    }

    /// Tells discovery what is left of a blob.
    pub(super) async fn tell_holding(&self, digest: Digest) {
        loop {
            let holding = self.holding(&digest);
            if let Err(error) = self.discovery.announce(digest, holding).await {
                tracing::debug!(%digest, %error, "discovery is not told that this blob is gone");
            }
            // It may have come back meanwhile, and that been told before this.
            if self.holding(&digest) == holding {
                return;
            }
        }
    }

    /// What this node holds of a blob now: it may have been opened again since it was removed.
    fn holding(&self, digest: &Digest) -> Option<Holding> {
        if self.store.is_verified(digest) {
            return Some(Holding::Complete);
        }
        let blob = self.open_blob(digest).filter(|blob| !blob.stored.is_removed())?;
        if blob.is_verified() {
            return Some(Holding::Complete);
        }
        let partial = self.is_active(digest) || !blob.stored.have().is_empty();
        partial.then_some(Holding::Partial)
    }
}
