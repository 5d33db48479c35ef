//! What other trackers were told, as a shared store gives it: put in among what this one was told itself.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;

use super::{Caller, Registry};
use crate::limits::{MAX_HOLDERS_SCANNED, MAX_SEEDS, STORE_CLOCK_SLACK};
use crate::store::{NodeRecord, StoredHolder, StoredHolders};

/// This moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// On the registry's.
    pub now: Duration,
    /// Since the Unix epoch.
    pub wall: Duration,
}

impl Moment {
    /// When a node was seen, on the registry's clock.
    fn seen(self, record: &NodeRecord) -> Duration {
        self.now.saturating_sub(self.wall.saturating_sub(record.seen))
    }
}

/// How a node stands to this tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It speaks to others only: it holds what the store says.
    Elsewhere,
    /// It spoke to this tracker, but has been silent for longer than a heartbeat: it may speak to others now.
    Silent,
    /// It speaks to this tracker, and the store should know what it told.
    Here,
    /// It told this tracker something that the store may not know yet: it holds what is known here.
    Unsettled,
}

impl Registry {
    /// Takes `told` as who holds `digest`. Returns what nodes of this tracker hold and the store does not know.
    pub fn learn(
        &mut self,
        at: Moment,
        group: &str,
        digest: Digest,
        told: &StoredHolders,
        relation: impl Fn(PeerId) -> Relation,
    ) -> Vec<(PeerId, Holding)> {
        let stored: HashMap<PeerId, Holding> =
            told.holders.iter().map(|holder| (holder.node.peer, holder.holding)).collect();
        let (mut unknown, mut gone, mut known_here) = (Vec::new(), Vec::new(), HashSet::new());
        for (index, peer, holding) in self.some_holders(group, digest) {
            match (relation(peer), stored.get(&peer)) {
                (Relation::Here, Some(other)) if *other != holding => unknown.push((peer, holding)),
                (Relation::Here, None) if !told.truncated => unknown.push((peer, holding)),
                (Relation::Elsewhere, None) => gone.push(index),
                (Relation::Silent, None) if !told.truncated => gone.push(index),
                _ => {}
            }
            if relation(peer) == Relation::Here {
                known_here.insert(peer);
            }
        }
        if let Some(group) = self.groups.get_mut(group) {
            for node in gone {
                // Only additions can be refused.
                let _ = group.announce(&mut self.totals, node, &[(digest, None)]);
            }
        }
        for StoredHolder { node, holding } in &told.holders {
            if relation(node.peer) != Relation::Unsettled && !known_here.contains(&node.peer) {
                self.learn_one(at, group, node, Some((digest, *holding)));
            }
        }
        unknown
    }

    /// Holders that are known here; of too many, a sample.
    fn some_holders(&mut self, group: &str, digest: Digest) -> Vec<(u32, PeerId, Holding)> {
        let Some(group) = self.groups.get(group) else { return Vec::new() };
        let Some(blob) = group.get(digest) else { return Vec::new() };
        let (count, _) = blob.holders.counts();
        let holders: Vec<u32> = if count > MAX_HOLDERS_SCANNED {
            blob.holders.sample(MAX_HOLDERS_SCANNED, &mut self.random)
        } else {
            blob.holders.iter().collect()
        };
        holders
            .into_iter()
            .filter_map(|index| Some((index, group.nodes.get(index)?.peer, blob.holders.get(index)?)))
            .collect()
    }

    /// Takes `told` as the seeds of a group: other nodes that speak to this tracker no more are none.
    pub fn learn_seeds(&mut self, at: Moment, group: &str, told: &[NodeRecord], relation: impl Fn(PeerId) -> Relation) {
        let named: HashSet<PeerId> = told.iter().map(|record| record.peer).collect();
        if let Some(group) = self.groups.get_mut(group).filter(|_| told.len() < MAX_SEEDS) {
            let gone = |index: &u32| {
                let peer = group.nodes.get(*index).map(|node| node.peer);
                peer.is_some_and(|peer| {
                    !named.contains(&peer) && matches!(relation(peer), Relation::Elsewhere | Relation::Silent)
                })
            };
            for index in group.seeds.iter().copied().filter(gone).collect::<Vec<_>>() {
                group.note_seed(index, 0);
            }
        }
        for record in told.iter().filter(|record| relation(record.peer) != Relation::Unsettled) {
            self.learn_one(at, group, record, None);
        }
    }

    fn learn_one(&mut self, at: Moment, group: &str, record: &NodeRecord, holding: Option<(Digest, Holding)>) {
        let seen = at.seen(record);
        let known = self.groups.get(group).and_then(|group| {
            let index = *group.by_peer.get(&record.peer)?;
            group.nodes.get(index).map(|node| (index, node))
        });
        let index = match known {
            // Its own calls come back from the store; only what is later by more than clocks drift is news of it.
            Some((index, node)) if node.instance == record.instance => {
                let hearsay = node.hearsay;
                if seen > node.last_seen + STORE_CLOCK_SLACK {
                    self.hear_of(seen, &record.caller(group), hearsay).unwrap_or(index)
                } else {
                    index
                }
            }
            Some((_, node)) if seen <= node.last_seen => return,
            _ => match self.hear_of(seen, &record.caller(group), true) {
                Some(index) => index,
                // Full: what the store knows waits until there is room.
                None => return,
            },
        };
        if let (Some(group), Some((digest, holding))) = (self.groups.get_mut(group), holding) {
            let _ = group.announce(&mut self.totals, index, &[(digest, Some(holding))]);
        }
    }

    /// Registers a node as if it had called, which it has not if that is `hearsay`.
    fn hear_of(&mut self, seen: Duration, caller: &Caller, hearsay: bool) -> Option<u32> {
        let call = self.enter(seen, caller).ok()?;
        if hearsay {
            call.group.note_hearsay(call.node);
        }
        Some(call.node)
    }

    /// All that a node holds, as far as is known here.
    pub fn holdings_of(&self, group: &str, peer: PeerId) -> Vec<(Digest, Holding)> {
        let Some(group) = self.groups.get(group) else { return Vec::new() };
        let Some(index) = group.by_peer.get(&peer).copied() else { return Vec::new() };
        let blobs = group.nodes.get(index).into_iter().flat_map(|node| &node.blobs);
        let held = blobs.filter_map(|blob| {
            let blob = group.blobs.get(*blob)?;
            Some((blob.digest, blob.holders.get(index)?))
        });
        held.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::registry::{Caller, Place};
    use crate::store::StoredHolder;

    const AT: Moment = Moment { now: Duration::from_secs(5000), wall: Duration::from_secs(1_000_000) };

    fn record(number: u8, instance: u64, age_s: u64) -> NodeRecord {
        NodeRecord {
            peer: PeerId::from_bytes([number; 32]),
            instance,
            seen: AT.wall - Duration::from_secs(age_s),
            place: Place { zone: "".into(), rack: "".into(), address: IpAddr::from([10, 0, 0, number]) },
            port: 7081,
            seed: false,
            seed_port: 0,
        }
    }

    fn caller(number: u8) -> Caller {
        record(number, 1, 0).caller("g")
    }

    fn told(records: &[NodeRecord], truncated: bool) -> StoredHolders {
        let holder = |node: &NodeRecord| StoredHolder { node: node.clone(), holding: Holding::Complete };
        StoredHolders { holders: records.iter().map(holder).collect(), truncated }
    }

    fn found(registry: &mut Registry, at: Duration) -> Vec<u8> {
        let (_, found) = registry.find(at, &caller(99), Digest::of(b"x")).unwrap();
        let mut peers: Vec<u8> = found.holders.iter().map(|holder| holder.peer.as_bytes()[0]).collect();
        peers.sort_unstable();
        peers
    }

    #[test]
    fn what_is_learned_is_found_until_it_is_not_told_any_more() {
        let mut registry = Registry::new(1);
        let digest = Digest::of(b"x");
        for node in 1..=3 {
            registry.announce(AT.now, &caller(node), &[(digest, Some(Holding::Partial))]).unwrap();
        }
        let relation = |peer: PeerId| match peer.as_bytes()[0] {
            1 => Relation::Unsettled,
            2 => Relation::Here,
            3 => Relation::Silent,
            _ => Relation::Elsewhere,
        };
        let two = (caller(2).node, Holding::Partial);
        let mut learn = |told: StoredHolders| {
            let unknown = registry.learn(AT, "g", digest, &told, relation);
            (found(&mut registry, AT.now), unknown)
        };
        let (four, five) = (record(4, 1, 0), record(5, 1, 0));
        assert_eq!(learn(told(&[four.clone(), five], true)), (vec![1, 2, 3, 4, 5], vec![]));
        let known = learn(told(std::slice::from_ref(&four), true));
        assert_eq!(known, (vec![1, 2, 3, 4], vec![]), "of many, only those that speak to others are dropped");
        assert_eq!(learn(told(&[four, record(2, 1, 0)], true)), (vec![1, 2, 3, 4], vec![two]), "the store is behind");
        assert_eq!(learn(told(&[], false)), (vec![1, 2], vec![two]));
        assert_eq!(registry.holdings_of("g", two.0), [(digest, Holding::Partial)]);
        registry.learn(AT, "other", digest, &told(&[record(5, 1, 0)], false), relation);
        assert_eq!(found(&mut registry, AT.now), [1, 2], "of another group");
    }

    #[test]
    fn a_node_lives_from_when_it_was_seen_and_the_latest_instance_counts() {
        let mut registry = Registry::new(1);
        let digest = Digest::of(b"x");
        let learn = |registry: &mut Registry, record: NodeRecord| {
            registry.learn(AT, "g", digest, &told(&[record], true), |_| Relation::Elsewhere);
        };
        learn(&mut registry, record(3, 1, 50));
        assert_eq!(found(&mut registry, AT.now + Duration::from_secs(4)), [3]);
        assert_eq!(found(&mut registry, AT.now + Duration::from_secs(6)), [0; 0], "55 s after it was seen");
        learn(&mut registry, record(3, 2, 10));
        registry.report(AT.now, &caller(98), record(3, 2, 0).peer).unwrap();
        assert_eq!(found(&mut registry, AT.now), [0; 0], "reported");
        learn(&mut registry, record(3, 2, 10));
        assert_eq!(found(&mut registry, AT.now), [0; 0], "its last word again is no sign of life");
        learn(&mut registry, record(3, 1, 20));
        assert_eq!(registry.holdings_of("g", record(3, 1, 0).peer).len(), 1, "an older instance changes nothing");
        learn(&mut registry, record(3, 2, 5));
        assert_eq!(found(&mut registry, AT.now), [3], "heard from again");
    }

    /// Nodes that come over from another tracker together are to take their turn in telling everything.
    #[test]
    fn a_node_that_was_only_heard_of_is_new_when_it_calls() {
        let mut registry = Registry::new(1);
        let digest = Digest::of(b"x");
        let learn = |registry: &mut Registry, age_s| {
            registry.learn(AT, "g", digest, &told(&[record(4, 1, age_s)], true), |_| Relation::Elsewhere);
        };
        learn(&mut registry, 40);
        learn(&mut registry, 0);
        let before = registry.registrations();
        registry.heartbeat(AT.now, &caller(4)).unwrap();
        assert_eq!(registry.registrations(), before + 1);
        registry.heartbeat(AT.now, &caller(4)).unwrap();
        learn(&mut registry, 0);
        registry.heartbeat(AT.now, &caller(4)).unwrap();
        assert_eq!(registry.registrations(), before + 1);
    }
}
