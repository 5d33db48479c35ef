//! Gives the disk back that layers took which no image here has any more.
//!
//! What is kept of a layer (its tar as far as it was read, its image, its index) goes when no snapshot stands for it and nothing uses it
//! ([`LazyMounts::collect`](lapwing_snapshotter::lazy::LazyMounts)): soon after containerd removed an image, and a while after one passed the mirror of which nothing was mounted. The
//! compressed layer stays in the chunk store, where it ages as every blob does.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::service::Snapshotter;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Layers;

/// How long a layer that was asked for, and not mounted, is kept.
const INTEREST: Duration = Duration::from_secs(600);
/// Removals come one after the other: so long after the first they are seen to together.
const SETTLE: Duration = Duration::from_secs(2);
/// When it is looked again for what was still in use: a container's end takes its time.
const AGAIN: Duration = Duration::from_secs(10);
/// How often it is looked though nothing was removed.
const EVERY: Duration = Duration::from_secs(300);

/// Layers that somebody asked for lately, and the word that some were unmounted.
#[derive(Default)]
pub(super) struct Interest {
    asked: Mutex<HashMap<Digest, Instant>>,
    unmounted: Notify,
}

impl Interest {
    /// Somebody will probably have this layer mounted.
    pub(super) fn asked(&self, layer: Digest) {
        self.lock().insert(layer, Instant::now());
    }

    /// Which it is now: from here on its snapshot keeps it.
    pub(super) fn mounted(&self, layer: &Digest) {
        self.lock().remove(layer);
    }

    pub(super) fn unmounted(&self) {
        self.unmounted.notify_one();
    }

    fn recent(&self, now: Instant) -> HashSet<Digest> {
        let mut asked = self.lock();
        asked.retain(|_, at| now.saturating_duration_since(*at) < INTEREST);
        asked.keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Instant>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sweeps until `shutdown`.
pub(crate) async fn run(layers: Arc<Layers>, snapshotter: Snapshotter, shutdown: CancellationToken) {
    loop {
        let in_use = sweep(&layers, &snapshotter).await.unwrap_or_else(|message| {
            tracing::warn!(reason = message, "what is kept of removed images is not deleted");
            false
        });
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(if in_use { AGAIN } else { EVERY }) => {}
            () = layers.interest.unmounted.notified() => tokio::time::sleep(SETTLE).await,
        }
    }
}

/// Gives whether something that is to go is still in use.
async fn sweep(layers: &Arc<Layers>, snapshotter: &Snapshotter) -> Result<bool, String> {
    let Some(mounts) = layers.mounts() else { return Ok(false) };
    // Interest first: what is mounted meanwhile is in one of the two.
    let spared = layers.interest.recent(Instant::now());
    let named = snapshotter.named().await.map_err(|error| error.to_string())?;
    let mounts = Arc::clone(mounts);
    let collecting = tokio::task::spawn_blocking(move || mounts.collect(&named, &spared));
    let collected = collecting.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    for layer in &collected.deleted {
        layers.forget(layer);
        tracing::info!(digest = %layer, "no image here has this layer any more: what was kept of it is deleted");
    }
    Ok(collected.in_use)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interest_ends_when_the_layer_is_mounted_or_with_time() {
        let interest = Interest::default();
        let [mounted, waiting] = [b"one", b"two"].map(|bytes| Digest::of(bytes));
        interest.asked(mounted);
        interest.asked(waiting);
        interest.mounted(&mounted);
        let now = Instant::now();
        assert_eq!(interest.recent(now), HashSet::from([waiting]));
        assert_eq!(interest.recent(now + INTEREST), HashSet::new());
    }
}
