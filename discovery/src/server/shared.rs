//! A tracker's side of the store that it shares with others.
//!
//! What nodes tell goes into the [`Outbox`] in the same breath as into the registry, and from there to the store in the
//! background ([`Tracker::keep_store`]), so that the store's pace is not the callers'. What other trackers were told is
//! looked up when somebody asks for a blob, at most once in [`STORE_ANSWER_AGE`](crate::limits::STORE_ANSWER_AGE), and put
//! into the registry, which then answers as ever; the asker waits for that no longer than
//! [`STORE_PATIENCE`](crate::limits::STORE_PATIENCE).
//!
//! While the store is out of reach the tracker goes on with what it knows, and writes all of that when it is back.

mod ask;
mod keep;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use self::ask::Asked;
use super::Clock;
use super::outbox::Outbox;
use crate::limits::{MAX_STORE_QUESTIONS, STORE_BACKOFF_MAX, STORE_BACKOFF_MIN};
use crate::metrics::StoreMetrics;
use crate::registry::Caller;
use crate::store::{HolderStore, StoreError};

/// What a tracker needs to share a store.
pub(super) struct Shared {
    store: Arc<dyn HolderStore>,
    /// Since the Unix epoch.
    wall: Clock,
    state: Mutex<State>,
    work: Notify,
    /// Held by the one task that writes: changes reach the store in their order.
    writing: tokio::sync::Mutex<()>,
    questions: Arc<Semaphore>,
    metrics: StoreMetrics,
}

#[derive(Default)]
struct State {
    outbox: Outbox,
    asked: HashMap<(String, Question), Asked>,
    link: Link,
}

/// What the store is asked, of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Question {
    Holders(Digest),
    Seeds,
}

/// Whether the store answers.
#[derive(Debug, Clone, Copy, Default)]
enum Link {
    /// Nobody knows yet.
    #[default]
    New,
    Up,
    Down {
        failures: u32,
        retry: Instant,
    },
}

impl Shared {
    pub(super) fn new(store: Arc<dyn HolderStore>, wall: Clock, metrics: StoreMetrics) -> Self {
        let questions = Arc::new(Semaphore::new(MAX_STORE_QUESTIONS));
        let (state, work, writing) = (Mutex::default(), Notify::new(), tokio::sync::Mutex::default());
        Self { store, wall, state, work, writing, questions, metrics }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic left half done is at worst written or asked once more.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called under the registry's lock, so that both know the same.
    pub(super) fn heard(&self, caller: &Caller) {
        self.state().outbox.heard(caller, (self.wall)());
    }

    /// The same for changes.
    pub(super) fn announced(&self, caller: &Caller, changes: &[(Digest, Option<Holding>)]) {
        self.state().outbox.announced(caller, (self.wall)(), changes);
        self.work.notify_one();
    }

    /// The same for a listing.
    pub(super) fn synced(&self, caller: &Caller, whole: bool) {
        self.state().outbox.synced(caller, (self.wall)(), whole);
        self.work.notify_one();
    }

    /// The same for a departure.
    pub(super) fn left(&self, caller: &Caller) {
        self.state().outbox.left(caller, (self.wall)());
        self.work.notify_one();
    }

    fn is_down(&self) -> bool {
        matches!(self.state().link, Link::Down { .. })
    }

    /// The store answered. True if it had been out of reach; at the start nothing has been kept from it.
    fn answered(&self) -> bool {
        let before = std::mem::replace(&mut self.state().link, Link::Up);
        self.metrics.up.set(1);
        let was_down = matches!(before, Link::Down { .. });
        if was_down {
            tracing::info!("the tracker's store answers again; what this tracker knows is written to it");
        }
        was_down
    }

    /// It did not. It is left alone for a while, longer each time, and not for as long as other trackers leave it.
    fn failed(&self, error: &StoreError) {
        let mut state = self.state();
        let failures = match state.link {
            // Of many calls that fail together, the first counts.
            Link::Down { retry, .. } if retry > Instant::now() => return,
            Link::Down { failures, .. } => failures.saturating_add(1),
            Link::New | Link::Up => 0,
        };
        state.link = Link::Down { failures, retry: Instant::now() + pause(failures) };
        drop(state);
        self.metrics.up.set(0);
        if failures == 0 {
            tracing::warn!(%error, "trackers do not share what they know; this one goes on with what nodes tell it");
        } else {
            tracing::debug!(%error, failures, "the tracker's store is still out of reach");
        }
    }
}

/// Between half of and all of a pause that doubles each time.
fn pause(failures: u32) -> Duration {
    let pause = STORE_BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(STORE_BACKOFF_MAX);
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        for failures in 0..40 {
            let longest = (STORE_BACKOFF_MIN * 2u32.saturating_pow(failures.min(20))).min(STORE_BACKOFF_MAX);
            let pauses: Vec<_> = (0..50).map(|_| pause(failures)).collect();
            assert!(pauses.iter().all(|pause| (longest / 2..=longest).contains(pause)), "{failures}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]));
        }
    }
}
