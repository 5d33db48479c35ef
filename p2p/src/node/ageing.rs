//! The age of the store's blobs: what nobody uses makes way before a write has to wait for it, and is withdrawn from
//! discovery as soon as it is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::Node;
use crate::digest::Digest;
use crate::discovery::Holding;
use crate::store::Removed;

/// How often the store is looked after though nothing was written: pins end, and others fill the filesystem.
const LOOK: Duration = Duration::from_secs(10);

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
        if let Err(error) = node.discovery.announce(digest, node.holding(&digest)).await {
            tracing::debug!(%digest, %error, "discovery is not told that this blob is gone");
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

    /// Whether there is room enough now.
    async fn age_store(self: &Arc<Self>) -> bool {
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

    /// What this node holds of a blob now: it may have been opened again since it was removed.
    fn holding(&self, digest: &Digest) -> Option<Holding> {
        let blob = self.open_blob(digest)?;
        if blob.is_verified() {
            return Some(Holding::Complete);
        }
        let partial = self.is_active(digest) || !blob.stored.have().is_empty();
        partial.then_some(Holding::Partial)
    }
}
