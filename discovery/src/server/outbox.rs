//! What nodes told this tracker and the shared store does not know yet. Pure: no sockets, no clock.
//!
//! Changes are kept by node, so that the latest of a blob is the only one. When more wait than
//! [`MAX_STORE_PENDING`], or the store was out of reach, a node is written whole from the registry instead: then only
//! withdrawals are kept one by one, and when there are too many of these as well, the store keeps the holdings until the
//! node falls silent, withdraws them again, or lists all that it has ([`Outbox::synced`]).
//!
//! Times are since the Unix epoch.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;

use crate::limits::{MAX_STORE_BATCH, MAX_STORE_LACKING, MAX_STORE_PENDING, NODE_TTL, STORE_BEAT, SUSPECT_SILENCE};
use crate::registry::{Caller, Relation};
use crate::store::NodeRecord;

type Changes = HashMap<Digest, Option<Holding>>;

/// A node that speaks to this tracker.
#[derive(Debug)]
struct Told {
    record: NodeRecord,
    changes: Changes,
    /// What the store lacks although it was written: written again when the node calls again. Until then it may as well have
    /// gone to another tracker and withdrawn it there.
    lacking: Changes,
    /// All that the registry knows of it is to be written.
    all: bool,
    /// What it last listed was all that it holds.
    whole: bool,
    queued: bool,
    /// When it was last seen, as the store knows it.
    written: Duration,
    /// Since when the store knows all that it told.
    settled: Option<Duration>,
}

/// News of one node, on its way to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) group: String,
    pub(super) node: NodeRecord,
    pub(super) changes: Changes,
    /// To be completed with all that the registry knows.
    pub(super) all: bool,
    /// That is all that it holds.
    pub(super) whole: bool,
}

/// A node that left: its group, its key, its instance.
pub(super) type Departed = (String, PeerId, u64);

/// A node that left.
#[derive(Debug)]
struct Leaving {
    instance: u64,
    since: Duration,
    /// When the store had forgotten it.
    forgotten: Option<Duration>,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    groups: HashMap<String, HashMap<PeerId, Told>>,
    queue: VecDeque<(String, PeerId)>,
    leaving: HashMap<(String, PeerId), Leaving>,
    changes: usize,
}

impl Outbox {
    /// A call came from a node.
    pub(super) fn heard(&mut self, caller: &Caller, at: Duration) {
        self.recover(caller, at);
        let told = self.told(caller, at);
        let beats = at.saturating_sub(told.written) >= STORE_BEAT;
        let is_news = beats || told.all || !told.changes.is_empty() || !same_but_time(&told.record, caller);
        told.record = NodeRecord::new(caller, at);
        if is_news {
            self.enqueue(&caller.group, caller.node);
        }
    }

    /// It told what changed.
    pub(super) fn announced(&mut self, caller: &Caller, at: Duration, changes: &[(Digest, Option<Holding>)]) {
        self.recover(caller, at);
        let told = self.told(caller, at);
        told.record = NodeRecord::new(caller, at);
        told.settled = None;
        let before = told.changes.len();
        let all = told.all;
        // What is held stands in the registry, from where a whole node is written.
        told.changes.extend(changes.iter().copied().filter(|(_, holding)| !all || holding.is_none()));
        for (digest, _) in changes.iter().filter(|(_, holding)| all && holding.is_some()) {
            told.changes.remove(digest);
        }
        let after = told.changes.len();
        self.changes = self.changes + after - before;
        self.enqueue(&caller.group, caller.node);
        self.bound(&caller.group, caller.node);
    }

    /// It listed what it holds; `whole` if it holds nothing else.
    pub(super) fn synced(&mut self, caller: &Caller, at: Duration, whole: bool) {
        let told = self.told(caller, at);
        told.record = NodeRecord::new(caller, at);
        told.lacking.clear();
        (told.all, told.whole, told.settled) = (true, whole, None);
        let before = told.changes.len();
        told.changes.retain(|_, holding| holding.is_none() && !whole);
        let after = told.changes.len();
        self.changes = self.changes + after - before;
        self.enqueue(&caller.group, caller.node);
    }

    /// It goes.
    pub(super) fn left(&mut self, caller: &Caller, at: Duration) {
        let Some(nodes) = self.groups.get_mut(&caller.group) else { return };
        if nodes.get(&caller.node).is_some_and(|told| told.record.instance == caller.instance)
            && let Some(told) = nodes.remove(&caller.node)
        {
            self.changes -= told.changes.len();
        }
        // While the store is away, it forgets by itself who is silent.
        if self.leaving.len() < MAX_STORE_BATCH {
            let leaving = Leaving { instance: caller.instance, since: at, forgotten: None };
            self.leaving.insert((caller.group.clone(), caller.node), leaving);
        }
    }

    /// How `peer` stands to this tracker, as seen from a question that was put to the store at `asked`.
    pub(super) fn relation(&self, group: &str, peer: PeerId, asked: Duration) -> Relation {
        match self.get(group, peer) {
            None => match self.leaving.get(&(group.to_owned(), peer)) {
                Some(leaving) if leaving.forgotten.is_none_or(|forgotten| forgotten > asked) => Relation::Unsettled,
                _ => Relation::Elsewhere,
            },
            Some(told) if told.settled.is_none_or(|settled| settled > asked) => Relation::Unsettled,
            Some(told) if asked.saturating_sub(told.record.seen) >= SUSPECT_SILENCE => Relation::Silent,
            Some(_) => Relation::Here,
        }
    }

    /// The store does not know what these hold of `digest`, as they told this tracker.
    pub(super) fn missing(&mut self, group: &str, digest: Digest, holders: &[(PeerId, Holding)]) {
        for (peer, holding) in holders {
            let Some(told) = self.get_mut(group, *peer) else { continue };
            if told.lacking.len() < MAX_STORE_LACKING {
                told.lacking.insert(digest, Some(*holding));
            }
        }
    }

    /// A node calls: what the store lacks of it is to be written again, unless it had been silent for so long that others
    /// know better by now.
    fn recover(&mut self, caller: &Caller, at: Duration) {
        let told = self.told(caller, at);
        let lacking = std::mem::take(&mut told.lacking);
        if lacking.is_empty() || told.all || at.saturating_sub(told.record.seen) >= SUSPECT_SILENCE {
            return;
        }
        let before = told.changes.len();
        for (digest, holding) in lacking {
            told.changes.entry(digest).or_insert(holding);
        }
        let after = told.changes.len();
        told.settled = None;
        self.changes += after - before;
        self.enqueue(&caller.group, caller.node);
        self.bound(&caller.group, caller.node);
    }

    /// Changes that wait.
    pub(super) const fn pending(&self) -> usize {
        self.changes
    }

    /// The next to be written: one node, or several of one group or more with at most [`MAX_STORE_BATCH`] changes together,
    /// as far as they are counted here. A node that is silent by now is not written whole: it may have gone to another tracker,
    /// which knows better; that waits until it calls again.
    pub(super) fn take(&mut self, at: Duration) -> Vec<Draft> {
        let (mut drafts, mut size) = (Vec::new(), 0);
        while size < MAX_STORE_BATCH {
            let Some((group, peer)) = self.queue.pop_front() else { break };
            let Some(told) = self.groups.get_mut(&group).and_then(|nodes| nodes.get_mut(&peer)) else { continue };
            told.queued = false;
            if told.all && at.saturating_sub(told.record.seen) >= SUSPECT_SILENCE {
                continue;
            }
            let changes = std::mem::take(&mut told.changes);
            self.changes -= changes.len();
            size += changes.len() + if told.all { MAX_STORE_BATCH / 16 } else { 1 };
            let (all, whole) = (std::mem::take(&mut told.all), told.whole);
            drafts.push(Draft { group, node: told.record.clone(), changes, all, whole: all && whole });
        }
        drafts
    }

    /// Those that left and that the store has not forgotten yet.
    pub(super) fn departed(&self) -> Vec<Departed> {
        let departed = self.leaving.iter().filter(|(_, leaving)| leaving.forgotten.is_none());
        departed.map(|((group, peer), leaving)| (group.clone(), *peer, leaving.instance)).collect()
    }

    /// The store has forgotten these by `at`.
    pub(super) fn forgotten(&mut self, group: &str, nodes: &[(PeerId, u64)], at: Duration) {
        for (peer, instance) in nodes {
            let leaving = self.leaving.get_mut(&(group.to_owned(), *peer));
            if let Some(leaving) = leaving.filter(|leaving| leaving.instance == *instance) {
                leaving.forgotten = Some(at);
            }
        }
    }

    /// `drafts` were written by `at`. The store did not know the nodes at the places `unknown`: those that were written before
    /// have been forgotten there, and are written whole.
    pub(super) fn written(&mut self, drafts: &[Draft], unknown: &[usize], at: Duration) {
        for draft in unknown.iter().filter_map(|place| drafts.get(*place)).filter(|draft| !draft.all) {
            let Some(told) = self.get_mut(&draft.group, draft.node.peer) else { continue };
            if told.written > Duration::ZERO && told.record.instance == draft.node.instance {
                (told.all, told.settled) = (true, None);
                self.enqueue(&draft.group, draft.node.peer);
            }
        }
        for draft in drafts {
            let Some(told) = self.get_mut(&draft.group, draft.node.peer) else { continue };
            if told.record.instance == draft.node.instance {
                told.written = told.written.max(draft.node.seen);
            }
            if told.changes.is_empty() && !told.all && told.settled.is_none() {
                told.settled = Some(at);
            }
        }
    }

    /// The store was out of reach, or is empty: every node is to be written whole.
    pub(super) fn rewrite(&mut self, failed: Vec<Draft>) {
        for draft in failed {
            let Some(told) = self.get_mut(&draft.group, draft.node.peer) else { continue };
            if told.record.instance != draft.node.instance {
                continue;
            }
            let before = told.changes.len();
            for (digest, holding) in draft.changes {
                // What came later counts.
                if holding.is_none() {
                    told.changes.entry(digest).or_insert(None);
                }
            }
            let after = told.changes.len();
            self.changes += after - before;
        }
        let Self { groups, queue, .. } = self;
        for (group, nodes) in groups {
            for (peer, told) in nodes {
                (told.all, told.settled) = (true, None);
                if !std::mem::replace(&mut told.queued, true) {
                    queue.push_back((group.clone(), *peer));
                }
            }
        }
    }

    /// Forgets nodes that were silent for too long; the store does so by itself.
    pub(super) fn tick(&mut self, at: Duration) {
        let mut dropped = 0;
        self.leaving.retain(|_, leaving| at.saturating_sub(leaving.since) < NODE_TTL);
        self.groups.retain(|_, nodes| {
            nodes.retain(|_, told| {
                let lives = at.saturating_sub(told.record.seen) < NODE_TTL;
                dropped += if lives { 0 } else { told.changes.len() };
                lives
            });
            !nodes.is_empty()
        });
        self.changes -= dropped;
    }

    fn get(&self, group: &str, peer: PeerId) -> Option<&Told> {
        self.groups.get(group)?.get(&peer)
    }

    fn get_mut(&mut self, group: &str, peer: PeerId) -> Option<&mut Told> {
        self.groups.get_mut(group)?.get_mut(&peer)
    }

    fn told(&mut self, caller: &Caller, at: Duration) -> &mut Told {
        if !self.groups.contains_key(&caller.group) {
            self.groups.insert(caller.group.clone(), HashMap::new());
        }
        let nodes = self.groups.get_mut(&caller.group).expect("it was there or has just been inserted");
        let new = || Told {
            record: NodeRecord::new(caller, at),
            changes: Changes::new(),
            lacking: Changes::new(),
            all: false,
            whole: false,
            queued: false,
            written: Duration::ZERO,
            settled: None,
        };
        let told = nodes.entry(caller.node).or_insert_with(new);
        if told.record.instance != caller.instance {
            self.changes -= told.changes.len();
            let queued = told.queued;
            *told = Told { queued, ..new() };
        }
        told
    }

    fn enqueue(&mut self, group: &str, peer: PeerId) {
        if let Some(told) = self.groups.get_mut(group).and_then(|nodes| nodes.get_mut(&peer))
            && !std::mem::replace(&mut told.queued, true)
        {
            self.queue.push_back((group.to_owned(), peer));
        }
    }

    /// Keeps to the limit, at the cost of the node that would pass it.
    fn bound(&mut self, group: &str, peer: PeerId) {
        if self.changes <= MAX_STORE_PENDING {
            return;
        }
        let mut changes = self.changes;
        let Some(told) = self.get_mut(group, peer) else { return };
        changes -= told.changes.len();
        told.all = true;
        told.changes.retain(|_, holding| holding.is_none());
        if changes + told.changes.len() > MAX_STORE_PENDING {
            told.changes.clear();
        }
        changes += told.changes.len();
        self.changes = changes;
    }
}

fn same_but_time(record: &NodeRecord, caller: &Caller) -> bool {
    *record == NodeRecord::new(caller, record.seen)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::registry::Place;

    const AT: Duration = Duration::from_secs(1_000_000);

    fn caller(number: u32, instance: u64) -> Caller {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        Caller {
            node: PeerId::from_bytes(key),
            instance,
            group: "g".to_owned(),
            place: Place { zone: "".into(), rack: "".into(), address: IpAddr::from([10, 0, 0, 1]) },
            port: 7081,
            seed: false,
            seed_port: 0,
            reached_at: IpAddr::from([10, 255, 255, 1]),
        }
    }

    fn digest(number: u32) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    fn held(numbers: std::ops::Range<u32>) -> Vec<(Digest, Option<Holding>)> {
        numbers.map(|number| (digest(number), Some(Holding::Complete))).collect()
    }

    #[test]
    fn the_latest_change_of_a_blob_is_written_once() {
        let (mut outbox, node) = (Outbox::default(), caller(1, 1));
        outbox.announced(&node, AT, &held(0..2));
        outbox.announced(&node, AT, &[(digest(1), None)]);
        assert_eq!(outbox.relation("g", node.node, AT), Relation::Unsettled);
        let drafts = outbox.take(AT);
        let [draft] = &drafts[..] else { panic!("{drafts:?}") };
        assert_eq!(draft.changes, HashMap::from([(digest(0), Some(Holding::Complete)), (digest(1), None)]));
        assert_eq!(outbox.take(AT), []);
        let after = AT + Duration::from_secs(1);
        assert_eq!(outbox.relation("g", node.node, after), Relation::Unsettled, "on its way is not there");
        outbox.written(&drafts, &[0], after);
        assert_eq!(outbox.relation("g", node.node, AT), Relation::Unsettled, "a question from before the writing");
        assert_eq!(outbox.relation("g", node.node, after), Relation::Here);
        assert_eq!(outbox.relation("g", node.node, AT + SUSPECT_SILENCE), Relation::Silent);
        assert_eq!(outbox.relation("g", caller(2, 1).node, AT), Relation::Elsewhere);
    }

    #[test]
    fn what_the_store_lacks_is_written_when_the_node_calls_again_and_had_not_been_silent() {
        let written = |calls_after: Duration| {
            let (mut outbox, node) = (Outbox::default(), caller(1, 1));
            outbox.announced(&node, AT, &held(0..8));
            let drafts = outbox.take(AT);
            outbox.written(&drafts, &[], AT);
            let absent = caller(2, 1).node;
            let lacking = [(node.node, Holding::Complete), (absent, Holding::Complete)];
            outbox.missing("g", digest(6), &lacking);
            outbox.missing("g", digest(7), &lacking);
            assert_eq!(outbox.take(AT), [], "it may have withdrawn it at another tracker");
            outbox.announced(&node, AT + calls_after, &[(digest(7), None)]);
            outbox.take(AT + calls_after).swap_remove(0).changes
        };
        let soon = SUSPECT_SILENCE.saturating_sub(Duration::from_secs(1));
        assert_eq!(written(soon), HashMap::from([(digest(6), Some(Holding::Complete)), (digest(7), None)]));
        assert_eq!(written(SUSPECT_SILENCE), HashMap::from([(digest(7), None)]), "others know better");
    }

    #[test]
    fn a_node_that_went_silent_is_not_written_whole_before_it_calls_again() {
        let (mut outbox, node) = (Outbox::default(), caller(1, 1));
        outbox.announced(&node, AT, &held(0..2));
        let drafts = outbox.take(AT);
        outbox.written(&drafts, &[], AT);
        outbox.rewrite(Vec::new());
        let silent = AT + SUSPECT_SILENCE;
        assert_eq!(outbox.take(silent), [], "it may have gone to another tracker and withdrawn all of it there");
        outbox.heard(&node, silent);
        assert!(outbox.take(silent)[0].all);
    }

    #[test]
    fn that_a_node_lives_is_written_now_and_then() {
        let (mut outbox, node) = (Outbox::default(), caller(1, 1));
        outbox.heard(&node, AT);
        let drafts = outbox.take(AT);
        assert_eq!(drafts.len(), 1);
        outbox.written(&drafts, &[0], AT);
        outbox.heard(&node, AT + STORE_BEAT / 2);
        assert_eq!(outbox.take(AT), []);
        outbox.heard(&Caller { port: 1, ..node.clone() }, AT + STORE_BEAT / 2);
        assert_eq!(outbox.take(AT)[0].node.port, 1, "what changed is written at once");
        outbox.heard(&node, AT + STORE_BEAT);
        let drafts = outbox.take(AT + STORE_BEAT);
        assert_eq!((drafts[0].node.seen, drafts[0].all), (AT + STORE_BEAT, false));
        outbox.written(&drafts, &[0], AT + STORE_BEAT);
        assert!(outbox.take(AT)[0].all, "the store had forgotten it, and what it holds");
    }

    #[test]
    fn after_a_failure_nodes_are_written_whole_with_their_withdrawals() {
        let (mut outbox, node) = (Outbox::default(), caller(1, 1));
        outbox.announced(&node, AT, &held(0..2));
        outbox.announced(&node, AT, &[(digest(2), None), (digest(3), None)]);
        let failed = outbox.take(AT);
        outbox.announced(&node, AT, &[(digest(3), Some(Holding::Partial))]);
        outbox.rewrite(failed);
        outbox.announced(&node, AT, &[(digest(4), None), (digest(5), Some(Holding::Partial))]);
        let drafts = outbox.take(AT);
        assert!(drafts[0].all && !drafts[0].whole);
        let withdrawn = |number| drafts[0].changes.get(&digest(number)) == Some(&None);
        assert!(withdrawn(2) && !withdrawn(3) && withdrawn(4) && !withdrawn(5), "{drafts:?}");
    }

    #[test]
    fn another_instance_and_a_departure_void_what_waits() {
        let mut outbox = Outbox::default();
        outbox.announced(&caller(1, 1), AT, &held(0..5));
        outbox.announced(&caller(1, 2), AT, &held(7..8));
        assert_eq!(outbox.pending(), 1);
        outbox.left(&caller(1, 1), AT);
        assert_eq!(outbox.take(AT).len(), 1, "the one that left was another");
        outbox.left(&caller(1, 2), AT);
        let left = caller(1, 2).node;
        assert_eq!(
            (outbox.take(AT), outbox.departed(), outbox.pending()),
            (vec![], vec![("g".to_owned(), left, 2)], 0)
        );
        assert_eq!(outbox.relation("g", left, AT), Relation::Unsettled, "the store may still name it");
        outbox.forgotten("g", &[(left, 2)], AT);
        assert_eq!((outbox.departed(), outbox.relation("g", left, AT)), (vec![], Relation::Elsewhere));
    }

    #[test]
    fn memory_is_bounded_while_the_store_is_away() {
        let mut outbox = Outbox::default();
        for node in 0..40 {
            outbox.announced(&caller(node, 1), AT, &held(0..10_000));
            assert!(outbox.pending() <= MAX_STORE_PENDING);
        }
        let gone: Vec<_> = (0..10_000).map(|number| (digest(number), None)).collect();
        for node in 0..40 {
            outbox.announced(&caller(node, 1), AT, &gone);
            assert!(outbox.pending() <= MAX_STORE_PENDING);
        }
        outbox.tick(AT + NODE_TTL);
        assert_eq!((outbox.pending(), outbox.take(AT).len()), (0, 0));
    }
}
