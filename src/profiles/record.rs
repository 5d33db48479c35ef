//! One start taken down.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::profile::{EntryPoint, Start};
use lapwing_snapshotter::remote::Started;

use super::{Profiles, lock};

/// A start is over when nothing was read for so long.
const QUIET: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(500);
/// When containerd is asked for the container, after its snapshot was made: clients make the snapshot first.
const ASK: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3)];

impl Profiles {
    /// Records a start, unless one of that image is being recorded: then it is a part of that.
    pub(super) fn record(self: Arc<Self>, started: Started) {
        let chain = started.chain;
        let is_recorded = !self.terms.record_for.is_zero();
        let begun = is_recorded && self.mounts.recorder().begin(chain, started.layers.clone(), Instant::now());
        if begun {
            lock(&self.recording).insert(chain, Default::default());
            let this = Arc::clone(&self);
            self.runtime.spawn(async move { this.end(chain).await });
        }
        let this = Arc::clone(&self);
        self.runtime.spawn(async move {
            if let Some(entry) = this.entry_point(&started).await {
                if let Some(entries) = lock(&this.recording).get_mut(&chain) {
                    entries.insert(entry.clone());
                }
                this.replay(chain, started.layers, entry);
            }
        });
    }

    /// Waits until a start is over, and learns from it.
    async fn end(&self, chain: Digest) {
        let began = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            let quiet = self.mounts.recorder().quiet(&chain, Instant::now()).unwrap_or(QUIET);
            if quiet >= QUIET || began.elapsed() >= self.terms.record_for {
                break;
            }
        }
        let reads = self.mounts.recorder().end(&chain).unwrap_or_default();
        let entries = lock(&self.recording).remove(&chain).unwrap_or_default();
        if reads.is_empty() {
            return;
        }
        // What several read at once belongs to none of them alone.
        let entry = if entries.len() == 1 { entries.into_iter().next() } else { None }.unwrap_or_default();
        let recorded = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let start = Start { entry, recorded, recordings: 1, reads };
        tracing::info!(%chain, program = start.entry.program, reads = start.reads.len(), "recorded what a container read at its start");
        if let Err(error) = self.learn(chain, vec![start]).await {
            tracing::warn!(%chain, error = %format!("{error:#}"), "a profile is not kept");
        }
    }

    /// What the container is started with whose snapshot was made, if containerd tells soon.
    async fn entry_point(&self, started: &Started) -> Option<EntryPoint> {
        for pause in ASK {
            tokio::time::sleep(pause).await;
            // Clients name the snapshot after the container.
            match self.containerd.arguments(&started.namespace, &started.key, &started.key).await {
                Ok(Some(arguments)) => return Some(EntryPoint::of(&arguments)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(container = started.key, %error, "what a container is started with is not known");
                    return None;
                }
            }
        }
        None
    }
}
