//! Gives the disk back that layers took which no image here has any more.
//!
//! What is kept of a layer (its tar as far as it was read, its image, its index) goes when no snapshot stands for it and nothing uses it
//! ([`LazyMounts::collect`](lapwing_snapshotter::lazy::LazyMounts)): soon after containerd removed an image, and a while after one passed the mirror of which nothing was mounted. The
//! compressed layer stays in the chunk store, where it ages as every blob does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::store::Hold;
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
/// Most layers whose interest is remembered: more than are mounted in ten minutes.
const MAX_INTEREST: usize = 10_000;
/// How often it is looked though nothing was removed.
const EVERY: Duration = Duration::from_secs(300);

/// Layers that somebody asked for lately, and the word that some were unmounted.
#[derive(Default)]
pub(super) struct Interest {
    asked: Mutex<HashMap<Digest, Asked>>,
    unmounted: Notify,
}

struct Asked {
    at: Instant,
    /// Keeps the blob, where nobody else may have it, until the mount holds it.
    _hold: Option<Hold>,
}

impl Interest {
    /// Somebody will probably have this layer mounted.
    pub(super) fn asked(&self, layer: Digest) {
        let mut asked = self.lock();
        match asked.get_mut(&layer) {
            Some(known) => known.at = Instant::now(),
            None => self.insert(asked, layer, None),
        }
    }

    /// The same of one whose blob must stay until then.
    pub(super) fn promised(&self, layer: Digest, hold: Hold) {
        self.insert(self.lock(), layer, Some(hold));
    }

    fn insert(&self, mut asked: MutexGuard<'_, HashMap<Digest, Asked>>, layer: Digest, hold: Option<Hold>) {
        let at = Instant::now();
        if asked.len() >= MAX_INTEREST {
            asked.retain(|_, asked| at.saturating_duration_since(asked.at) < INTEREST / 10);
        }
        if asked.len() < MAX_INTEREST {
            asked.insert(layer, Asked { at, _hold: hold });
        }
    }

    /// Which it is now: from here on its snapshot keeps it.
    pub(super) fn mounted(&self, layer: &Digest) {
        self.lock().remove(layer);
    }

    pub(super) fn unmounted(&self) {
        self.unmounted.notify_one();
    }

    fn is_recent(&self, layer: &Digest, now: Instant) -> bool {
        self.lock().get(layer).is_some_and(|asked| now.saturating_duration_since(asked.at) < INTEREST)
    }

    fn forget_old(&self, now: Instant) {
        self.lock().retain(|_, asked| now.saturating_duration_since(asked.at) < INTEREST);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Asked>> {
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
    layers.interest.forget_old(Instant::now());
    if let Some(tars) = layers.tars.get() {
        tars.forget_old();
    }
    let Some(mounts) = layers.mounts().cloned() else { return Ok(false) };
    let named = snapshotter.named().await.map_err(|error| error.to_string())?;
    let asked = Arc::clone(layers);
    let may_go = move |layer: &Digest| {
        let recent = asked.interest.is_recent(layer, Instant::now());
        if !recent {
            // Before its files go: who asks from now on searches again.
            asked.forget(layer);
        }
        !recent
    };
    let collecting = tokio::task::spawn_blocking(move || mounts.collect(&named, may_go));
    let collected = collecting.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    for layer in &collected.deleted {
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
        let recent = |now: Instant| [mounted, waiting].map(|layer| interest.is_recent(&layer, now));
        assert_eq!((recent(now), recent(now + INTEREST)), ([false, true], [false, false]));
        interest.forget_old(now + INTEREST);
        assert!(interest.lock().is_empty());
    }
}
