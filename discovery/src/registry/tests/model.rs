//! A tracker that is as simple as can be, held against the real one.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Announce { node: u32, blob: u32, holding: Option<bool> },
    Sync { node: u32, blobs: BTreeSet<u32>, statement: Option<(u32, u32)> },
    State { node: u32, subject: u32, object: u32 },
    Lease { node: u32, blob: u32 },
    Leave { node: u32 },
    Restart { node: u32 },
    Pass { seconds: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let (node, blob) = (0_u32..8, 0_u32..5);
    prop_oneof![
        4 => (node.clone(), blob.clone(), any::<Option<bool>>())
            .prop_map(|(node, blob, holding)| Op::Announce { node, blob, holding }),
        1 => (node.clone(), prop::collection::btree_set(blob.clone(), 0..5), any::<Option<(u8, u8)>>())
            .prop_map(|(node, blobs, vote)| Op::Sync {
                node, blobs, statement: vote.map(|(subject, object)| (u32::from(subject % 5), u32::from(object % 3))),
            }),
        2 => (node.clone(), blob.clone(), 0_u32..3)
            .prop_map(|(node, subject, object)| Op::State { node, subject, object }),
        2 => (node.clone(), blob).prop_map(|(node, blob)| Op::Lease { node, blob }),
        1 => node.clone().prop_map(|node| Op::Leave { node }),
        1 => node.prop_map(|node| Op::Restart { node }),
        2 => (0_u64..40).prop_map(|seconds| Op::Pass { seconds }),
    ]
}

/// What the test knows of a node.
#[derive(Default)]
struct Known {
    seen: Duration,
    instance: u64,
    holds: BTreeMap<u32, Holding>,
    fetches: BTreeSet<u32>,
    states: BTreeMap<u32, u32>,
}

/// Every other blob is small enough for who fetches it to be named.
const fn is_quick(blob: u32) -> bool {
    blob.is_multiple_of(2)
}

fn group_of(node: u32) -> String {
    format!("group{}", node % 2)
}

/// A tracker that is as simple as can be. Even nodes are of one group, odd ones of another.
struct Model {
    now: Duration,
    known: BTreeMap<u32, Known>,
    instances: BTreeMap<u32, u64>,
}

impl Model {
    fn instance(&self, node: u32) -> u64 {
        self.instances.get(&node).copied().unwrap_or_default()
    }

    fn caller(&self, node: u32) -> Caller {
        Caller { group: group_of(node), instance: self.instance(node), ..caller(node) }
    }

    fn meet(&mut self, node: u32) -> &mut Known {
        let (now, instance) = (self.now, self.instance(node));
        let known = self.known.entry(node).or_default();
        if known.instance != instance || now.saturating_sub(known.seen) >= NODE_TTL {
            *known = Known { instance, ..Known::default() };
        }
        known.seen = now;
        known
    }

    fn apply(&mut self, registry: &mut Registry, op: Op) {
        match op {
            Op::Announce { node, blob, holding } => {
                let holding = holding.map(|all| if all { Holding::Complete } else { Holding::Partial });
                registry.announce(self.now, &self.caller(node), &[(digest(blob), holding)]).unwrap();
                let known = self.meet(node);
                match holding {
                    Some(holding) => {
                        known.holds.insert(blob, holding);
                    }
                    None => {
                        known.holds.remove(&blob);
                        known.fetches.remove(&blob);
                    }
                }
            }
            Op::Sync { node, blobs, statement: vote } => {
                let list: Vec<_> = blobs.iter().map(|blob| (digest(*blob), Holding::Partial)).collect();
                let statements: Vec<_> = vote.iter().map(|(subject, object)| statement(*subject, *object)).collect();
                registry.sync(self.now, &self.caller(node), &list, &statements).unwrap();
                let known = self.meet(node);
                known.holds = blobs.into_iter().map(|blob| (blob, Holding::Partial)).collect();
                known.states = vote.into_iter().collect();
            }
            Op::State { node, subject, object } => {
                registry.state(self.now, &self.caller(node), &[statement(subject, object)]).unwrap();
                self.meet(node).states.insert(subject, object);
            }
            Op::Lease { node, blob } => {
                let length = if is_quick(blob) { QUICK_BLOB_BYTES } else { 2 << 20 };
                let reply = lease(registry, self.now, &self.caller(node), blob, length);
                let known = self.meet(node);
                if matches!(reply, LeaseReply::Granted(_)) {
                    known.fetches.insert(blob);
                }
            }
            Op::Leave { node } => {
                registry.leave(&self.caller(node));
                if self.known.get(&node).is_some_and(|known| known.instance == self.instance(node)) {
                    self.known.remove(&node);
                }
            }
            Op::Restart { node } => *self.instances.entry(node).or_default() += 1,
            Op::Pass { seconds } => {
                self.now += Duration::from_secs(seconds);
                registry.tick(self.now);
                let now = self.now;
                self.known.retain(|_, known| now.saturating_sub(known.seen) < NODE_TTL);
            }
        }
    }

    /// What a node of number `asker`, which holds nothing, is told of `blob` is what the model knows.
    fn check(&self, registry: &mut Registry, asker: u32, blob: u32) {
        let asker = self.caller(asker);
        let (_, found) = registry.find(self.now, &asker, digest(blob)).unwrap();
        registry.leave(&asker);
        let group = || self.known.iter().filter(|(node, _)| group_of(**node) == asker.group);

        let holds = |(node, known): (&u32, &Known)| Some((peer(*node), *known.holds.get(&blob)? == Holding::Complete));
        let expected: BTreeSet<(PeerId, bool)> = group().filter_map(holds).collect();
        let holders = found.holders.iter().map(|holder| (holder.peer, holder.holding == Holding::Complete));
        let holders: BTreeSet<(PeerId, bool)> = holders.collect();
        assert!(holders.is_superset(&expected), "{holders:?} without some of {expected:?}");
        // Besides, of small blobs, those who were given a lease and may not have announced yet.
        let fetches = |known: &Known| is_quick(blob) && known.fetches.contains(&blob);
        let fetches: BTreeSet<(PeerId, bool)> =
            group().filter(|(_, known)| fetches(known)).map(|(node, _)| (peer(*node), false)).collect();
        let others: BTreeSet<_> = holders.difference(&expected).copied().collect();
        assert!(others.is_subset(&fetches), "{others:?} are not all among {fetches:?}");

        let mut expected = BTreeMap::<Digest, u32>::new();
        for object in group().filter_map(|(_, known)| known.states.get(&blob)) {
            *expected.entry(statement(blob, *object).object).or_default() += 1;
        }
        let said = found.votes.iter().map(|vote| (vote.statement.object, vote.nodes));
        assert_eq!(said.collect::<BTreeMap<_, _>>(), expected);
        assert!(found.votes.len() <= MAX_OBJECTS_PER_SUBJECT);
        assert!(found.votes.is_sorted_by_key(|vote| std::cmp::Reverse(vote.nodes)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// What is found is what the model knows, and besides only who was given a lease of a small blob; groups never mix; and when all are gone, nothing is
    /// left.
    #[test]
    fn agrees_with_a_naive_tracker(ops in prop::collection::vec(op(), 1..80)) {
        let mut registry = registry();
        let mut model = Model { now: NOW, known: BTreeMap::new(), instances: BTreeMap::new() };
        for op in ops {
            model.apply(&mut registry, op);
            let holders: usize = model.known.values().map(|known| known.holds.len()).sum();
            prop_assert_eq!((registry.counts().nodes, registry.counts().holders), (model.known.len(), holders));
            for (asker, blob) in [(20, 0), (21, 1), (22, 2), (23, 3)] {
                model.check(&mut registry, asker, blob);
            }
        }
        registry.tick(model.now + NODE_TTL);
        let counts = registry.counts();
        prop_assert_eq!((counts.nodes, counts.blobs, counts.holders, counts.groups), (0, 0, 0, 0));
        prop_assert_eq!((registry.totals.books, registry.totals.holdings), (0, 0));
    }
}
