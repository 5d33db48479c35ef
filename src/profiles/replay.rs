//! What profiles list is fetched, in their order, before anybody reads it.
//!
//! Its reads of the swarm come after those that somebody waits for and after read-ahead ([`Urgency::Prefetch`](lapwing_snapshotter::source::Urgency::Prefetch)),
//! under the same speed limits. A span that a container wants meanwhile is fetched once.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::lazy::LazyLayer;
use lapwing_snapshotter::profile::merge::once;
use lapwing_snapshotter::profile::plan::{Run, SpanTable, budget, plan};
use lapwing_snapshotter::profile::{EntryPoint, Profile};
use lru::LruCache;
use tokio::sync::Semaphore;

use super::{Profiles, lock};

/// Most replays that are remembered.
const MAX_REPLAYS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Spans of one image that are on their way at once ...
const SPANS_AT_ONCE: usize = 16;
/// ... as long as they have no more than so many bytes, decompressed.
const BYTES_AT_ONCE: u64 = 32 << 20;
/// After so many spans that do not come, one after the other, the rest is left to those who read it.
const FAILURES: usize = 8;
/// How long the layers of an image that is being pulled may take to be mounted.
const MOUNTING: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(50);

/// What was replayed, or is being.
pub(super) struct Replays(LruCache<(Digest, EntryPoint), ()>);

impl Default for Replays {
    fn default() -> Self {
        Self(LruCache::new(MAX_REPLAYS))
    }
}

impl Replays {
    /// Whether there was one of that image, for whichever entry point.
    pub(super) fn knows(&self, chain: &Digest) -> bool {
        self.0.iter().any(|((known, _), ())| known == chain)
    }

    /// False if that was done already.
    fn begin(&mut self, chain: Digest, entry: EntryPoint) -> bool {
        self.0.put((chain, entry), ()).is_none()
    }

    fn forget(&mut self, chain: Digest, entry: EntryPoint) {
        self.0.pop(&(chain, entry));
    }
}

impl Profiles {
    /// Fetches what profiles of an image list, first of all for `entry`. Once in the life of this process for each entry point, if there
    /// is a profile. Returns at once.
    pub(super) fn replay(&self, chain: Digest, layers: Vec<Digest>, entry: EntryPoint) {
        if !self.terms.prefetch || !lock(&self.replays).begin(chain, entry.clone()) {
            return;
        }
        let Some(this) = self.this.upgrade() else { return };
        self.runtime.spawn(async move {
            let (own, theirs) = this.gather(chain).await;
            let profiles: Vec<Profile> = own.into_iter().chain(theirs).collect();
            if profiles.is_empty() {
                lock(&this.replays).forget(chain, entry);
                return;
            }
            let reads: Vec<_> = profiles.iter().flat_map(|profile| profile.in_order(Some(&entry))).collect();
            let layers = this.mounted(&layers).await;
            let tables = layers.iter().map(|(digest, layer)| (*digest, SpanTable::of(layer.index()))).collect();
            let image_bytes = layers.values().map(|layer| layer.index().layer_length()).sum();
            let runs = plan(&once(&reads), &tables, budget(image_bytes));
            let Some((spans, bytes)) = this.fetch(&layers, runs).await else {
                lock(&this.replays).forget(chain, entry);
                return;
            };
            tracing::info!(%chain, program = entry.program, spans, bytes, "fetched what containers of an image read at their start");
        });
    }

    /// Those of the layers that are mounted lazily, once all are or have had the time.
    async fn mounted(&self, layers: &[Digest]) -> HashMap<Digest, Arc<LazyLayer>> {
        let began = tokio::time::Instant::now();
        loop {
            let mounted = layers.iter().filter(|layer| self.mounts.is_mounted(layer));
            let mounted: HashMap<_, _> =
                mounted.filter_map(|layer| Some((*layer, self.mounts.layer(layer)?))).collect();
            if mounted.len() == layers.len() || began.elapsed() > MOUNTING {
                return mounted;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Gives how many spans were fetched, and their compressed bytes; none if it was given up.
    async fn fetch(&self, layers: &HashMap<Digest, Arc<LazyLayer>>, runs: Vec<Run>) -> Option<(usize, u64)> {
        let room = Arc::new(Semaphore::new(mebibytes(BYTES_AT_ONCE) as usize));
        let spans = runs.into_iter().flat_map(|run| run.spans.map(move |span| (run.layer, span)));
        let mut fetched = stream::iter(spans)
            .map(|(digest, span)| {
                let (room, layer) = (Arc::clone(&room), layers[&digest].clone());
                async move {
                    // What was removed meanwhile nobody will read.
                    if !self.mounts.is_mounted(&digest) {
                        return Ok(None);
                    }
                    let output = &layer.index().spans()[span].output;
                    let size = mebibytes((output.end - output.start).min(BYTES_AT_ONCE));
                    let _room = room.acquire_many(size).await;
                    layer.prefetch(span).await
                }
            })
            .buffered(SPANS_AT_ONCE);
        let (mut count, mut bytes, mut failures) = (0, 0, 0);
        while let Some(outcome) = fetched.next().await {
            match outcome {
                Ok(more) => {
                    count += usize::from(more.is_some());
                    bytes += more.unwrap_or(0);
                    failures = 0;
                }
                Err(error) => {
                    tracing::debug!(%error, "a span of a profile does not come");
                    failures += 1;
                    if failures >= FAILURES {
                        tracing::warn!(%error, "what a profile lists does not come: left to those who read it");
                        return None;
                    }
                }
            }
        }
        Some((count, bytes))
    }
}

/// Whole mebibytes, at least one.
const fn mebibytes(bytes: u64) -> u32 {
    let whole = bytes.div_ceil(1 << 20) as u32;
    if whole == 0 { 1 } else { whole }
}
