//! Looking up what other trackers were told.

use std::time::Duration;

use lapwing_p2p::digest::Digest;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{Question, Shared};
use crate::limits::{
    MAX_SEEDS, MAX_STORED_COPIES, MAX_STORED_HOLDERS, NODE_TTL, STORE_ANSWER_AGE, STORE_FIND_TIMEOUT, STORE_PATIENCE,
};
use crate::registry::Moment;
use crate::server::Tracker;
use crate::store::{StoreError, StoredHolders};

/// A question that was put to the store.
pub(super) enum Asked {
    /// Under way; the sender is dropped when that ends.
    Now(watch::Receiver<()>),
    /// The registry has known the answer since then.
    At(Instant),
}

impl Shared {
    /// Waits until `question` is answered, if it was asked already; or says that the caller is to ask it.
    fn claim(&self, group: &str, question: Question) -> Claim {
        let mut state = self.state();
        let key = (group.to_owned(), question);
        match state.asked.get(&key) {
            // The sender of a question that came to nothing is gone.
            Some(Asked::Now(answered)) if answered.has_changed().is_ok() => return Claim::Wait(answered.clone()),
            Some(Asked::At(at)) if at.elapsed() < STORE_ANSWER_AGE => return Claim::Known,
            _ => {}
        }
        let (sender, receiver) = watch::channel(());
        state.asked.insert(key, Asked::Now(receiver.clone()));
        Claim::Ask(sender, receiver)
    }

    fn note(&self, group: &str, question: Question, known: bool) {
        let (mut state, key) = (self.state(), (group.to_owned(), question));
        if known {
            state.asked.insert(key, Asked::At(Instant::now()));
        } else {
            state.asked.remove(&key);
        }
    }

    /// Forgets what is too old to be used. To be called about once a second.
    pub(in crate::server) fn tick(&self) {
        let mut state = self.state();
        state.asked.retain(|_, asked| match asked {
            Asked::Now(_) => true,
            Asked::At(at) => at.elapsed() < STORE_ANSWER_AGE,
        });
        state.outbox.tick((self.wall)());
    }
}

enum Claim {
    Known,
    Wait(watch::Receiver<()>),
    Ask(watch::Sender<()>, watch::Receiver<()>),
}

impl Tracker {
    /// Brings what other trackers know of `digest` into the registry, unless that takes too long.
    pub(in crate::server) async fn learn_holders(&self, group: &str, digest: Digest) {
        self.learn(group, Question::Holders(digest)).await;
    }

    /// The same for the seeds of a group.
    pub(in crate::server) async fn learn_seeds(&self, group: &str) {
        self.learn(group, Question::Seeds).await;
    }

    /// The same for some holders of each of `digests`: enough to count copies.
    pub(in crate::server) async fn learn_copies(&self, group: &str, digests: &[Digest]) {
        let Some(shared) = self.shared.as_ref().filter(|shared| !shared.is_down() && !digests.is_empty()) else {
            return;
        };
        let Ok(_permit) = shared.questions.try_acquire() else { return shared.metrics.count("find", "busy") };
        let _ = timeout(STORE_PATIENCE, self.ask_holders(shared, group, digests, MAX_STORED_COPIES)).await;
    }

    async fn learn(&self, group: &str, question: Question) {
        let Some(shared) = self.shared.as_ref().filter(|shared| !shared.is_down()) else { return };
        let mut answered = match shared.claim(group, question) {
            Claim::Known => return,
            Claim::Wait(answered) => answered,
            Claim::Ask(sender, answered) => {
                let Ok(permit) = shared.questions.clone().try_acquire_owned() else {
                    shared.metrics.count("find", "busy");
                    return shared.note(group, question, false);
                };
                let (tracker, group) = (self.clone(), group.to_owned());
                // Goes on when the caller's patience ends, so that the next one has the answer.
                tokio::spawn(async move {
                    tracker.ask(&group, question).await;
                    drop((sender, permit));
                });
                answered
            }
        };
        // An error is the sender's end, and all that is waited for.
        let _ = timeout(STORE_PATIENCE, answered.changed()).await;
    }

    async fn ask(&self, group: &str, question: Question) {
        let Some(shared) = &self.shared else { return };
        let known = match question {
            Question::Holders(digest) => self.ask_holders(shared, group, &[digest], MAX_STORED_HOLDERS).await,
            Question::Seeds => self.ask_seeds(shared, group).await,
        };
        shared.note(group, question, known);
    }

    /// Puts the answers into the registry; false if there are none.
    async fn ask_holders(&self, shared: &Shared, group: &str, digests: &[Digest], limit: usize) -> bool {
        let asked = (shared.wall)();
        let asking = shared.store.find(group, digests, limit, alive_since(asked));
        let Some(answers) = shared.judge("find", timeout(STORE_FIND_TIMEOUT, asking).await) else { return false };
        for (digest, told) in digests.iter().zip(&answers) {
            self.learn_answer(shared, group, *digest, told, asked);
        }
        true
    }

    fn learn_answer(&self, shared: &Shared, group: &str, digest: Digest, told: &StoredHolders, asked: Duration) {
        let mut registry = self.registry();
        let at = Moment { now: (self.clock)(), wall: (shared.wall)() };
        let mut state = shared.state();
        let unknown = registry.learn(at, group, digest, told, |peer| state.outbox.relation(group, peer, asked));
        state.outbox.missing(group, digest, &unknown);
    }

    async fn ask_seeds(&self, shared: &Shared, group: &str) -> bool {
        let asked = (shared.wall)();
        let asking = shared.store.seeds(group, MAX_SEEDS, alive_since(asked));
        let Some(seeds) = shared.judge("seeds", timeout(STORE_FIND_TIMEOUT, asking).await) else { return false };
        let mut registry = self.registry();
        let at = Moment { now: (self.clock)(), wall: (shared.wall)() };
        let state = shared.state();
        registry.learn_seeds(at, group, &seeds, |peer| state.outbox.relation(group, peer, asked));
        true
    }
}

/// A node that was not seen since then is gone.
pub(super) const fn alive_since(wall: Duration) -> Duration {
    wall.saturating_sub(NODE_TTL)
}

impl Shared {
    /// Counts how a call of the store ended, and notes what that says of the store.
    pub(super) fn judge<T>(
        &self,
        method: &'static str,
        outcome: Result<Result<T, StoreError>, tokio::time::error::Elapsed>,
    ) -> Option<T> {
        let (outcome, error) = match outcome {
            Ok(Ok(answer)) => {
                self.metrics.count(method, "ok");
                return Some(answer);
            }
            Ok(Err(error @ StoreError::Lost { .. })) => {
                self.metrics.count(method, "lost");
                tracing::warn!(%error);
                self.state().outbox.rewrite(Vec::new());
                self.work.notify_one();
                return None;
            }
            Ok(Err(error)) => ("failed", error),
            Err(_) => ("late", StoreError::Late),
        };
        self.metrics.count(method, outcome);
        self.failed(&error);
        None
    }
}
