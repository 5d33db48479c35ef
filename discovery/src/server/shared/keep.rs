//! Writing to the store in the background, finding out when it is back, and forgetting in it who fell silent.

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;
use tokio::time::{Instant, sleep_until, timeout};

use super::ask::alive_since;
use super::{Link, Shared};
use crate::limits::{STORE_FLUSH, STORE_WRITE_TIMEOUT, TICK};
use crate::server::Tracker;
use crate::server::outbox::Draft;
use crate::store::Update;

impl Tracker {
    /// Keeps the shared store up to date, for ever.
    pub(in crate::server) async fn keep_store(&self) {
        let Some(shared) = &self.shared else { return std::future::pending().await };
        let _writing = shared.writing.lock().await;
        let mut tick = Instant::now();
        loop {
            shared.until_due(tick).await;
            if Instant::now() >= tick {
                tick = Instant::now() + TICK.mul_f64(0.75 + fastrand::f64() / 2.0);
                // First what tells that nodes live.
                if !shared.is_down() {
                    self.write_until(shared, tick).await;
                }
                if !shared.expire().await {
                    continue;
                }
            }
            if !shared.is_down() {
                self.write_until(shared, tick).await;
            }
            shared.metrics.unwritten.set(i64::try_from(shared.state().outbox.pending()).unwrap_or(i64::MAX));
        }
    }

    /// Writes what waits, until nothing does, the store fails, or after `end`.
    async fn write_until(&self, shared: &Shared, end: Instant) {
        loop {
            let (drafts, departed) = {
                let mut state = shared.state();
                (state.outbox.take((shared.wall)()), state.outbox.departed())
            };
            if drafts.is_empty() && departed.is_empty() {
                return;
            }
            let updates: Vec<Update> = drafts.iter().map(|draft| self.complete(draft)).collect();
            let writing = timeout(STORE_WRITE_TIMEOUT, shared.store.write(&updates)).await;
            let Some(unknown) = shared.judge("write", writing) else {
                return shared.state().outbox.rewrite(drafts);
            };
            shared.state().outbox.written(&drafts, &unknown, (shared.wall)());
            for (group, nodes) in by_group(departed) {
                let forgetting = timeout(STORE_WRITE_TIMEOUT, shared.store.forget(&group, &nodes)).await;
                if shared.judge("forget", forgetting).is_none() {
                    return;
                }
                shared.state().outbox.forgotten(&group, &nodes, (shared.wall)());
            }
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// A draft with all that the registry knows of the node, if it is to have that.
    fn complete(&self, draft: &Draft) -> Update {
        let mut holdings: Vec<(Digest, Option<Holding>)> = Vec::new();
        if draft.all {
            let held = self.registry().holdings_of(&draft.group, draft.node.peer);
            let still_held = held.into_iter().filter(|(digest, _)| !draft.changes.contains_key(digest));
            holdings.extend(still_held.map(|(digest, holding)| (digest, Some(holding))));
        }
        holdings.extend(draft.changes.iter().map(|(digest, holding)| (*digest, *holding)));
        Update { group: draft.group.clone(), node: draft.node.clone(), holdings, whole: draft.whole }
    }
}

impl Shared {
    /// Waits for something to write, or for `tick`; not before the store is to be tried again.
    async fn until_due(&self, tick: Instant) {
        let link = self.state().link;
        match link {
            Link::Down { retry, .. } => sleep_until(retry.max(tick)).await,
            Link::New => sleep_until(tick).await,
            Link::Up => tokio::select! {
                () = sleep_until(tick) => {}
                () = self.work.notified() => tokio::time::sleep(STORE_FLUSH).await,
            },
        }
    }

    /// Forgets silent nodes in the store, which also tells whether it answers.
    async fn expire(&self) -> bool {
        let expiring = self.store.expire(alive_since((self.wall)()));
        let Some(expired) = self.judge("expire", timeout(STORE_WRITE_TIMEOUT, expiring).await) else { return false };
        if expired > 0 {
            tracing::debug!(nodes = expired, "forgotten in the shared store");
        }
        if self.answered() {
            self.state().outbox.rewrite(Vec::new());
        }
        true
    }
}

fn by_group(departed: Vec<(String, PeerId, u64)>) -> Vec<(String, Vec<(PeerId, u64)>)> {
    let mut groups: std::collections::BTreeMap<String, Vec<(PeerId, u64)>> = std::collections::BTreeMap::new();
    for (group, peer, instance) in departed {
        groups.entry(group).or_default().push((peer, instance));
    }
    groups.into_iter().collect()
}
