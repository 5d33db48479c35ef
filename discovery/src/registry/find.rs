//! The answer to "who has this blob".

use std::net::IpAddr;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Found, Holder, Holding};

use super::blob::Blob;
use super::group::Group;
use super::nearness::Place;
use super::reachable;
use crate::limits::{
    COMPLETE_SAMPLED, FAR_SHARE, HOLDERS_SAMPLED, MAX_HOLDERS_PER_ANSWER, MAX_HOLDERS_SCANNED, MAX_LESSEES,
    MAX_NEIGHBOURS_SCANNED, NEIGHBOURS, QUICK_BLOB_BYTES,
};

/// A holder that an answer may name. Small: of a popular blob there are thousands to choose from.
#[derive(Clone, Copy)]
struct Candidate {
    distance: u32,
    /// Shuffles equals.
    shuffle: u32,
    node: u32,
    holding: Holding,
    far: bool,
}

impl Group {
    /// What is known of `digest`, for the node of number `asker`, which reached the tracker at `reached_at`.
    pub(super) fn find(
        &self,
        now: Duration,
        asker: u32,
        reached_at: IpAddr,
        digest: Digest,
        random: &mut fastrand::Rng,
    ) -> Found {
        let (Some(blob), Some(asking)) = (self.get(digest), self.nodes.get(asker)) else { return Found::default() };
        let (stand, grudges) = (&self.standings[asker as usize].stand, asking.has_grudges());
        let fetchers = self.unannounced_fetchers(now, blob);
        let candidate = |(index, shuffle): (u32, u32)| {
            let fetches = || fetchers.contains(&index).then_some(Holding::Partial);
            let (holding, standing) = (blob.holders.get(index).or_else(fetches)?, &self.standings[index as usize]);
            let node = || self.nodes.get(index);
            let spared = || grudges && node().is_none_or(|node| asking.has_grudge(now, node));
            let may_be_named = index != asker && standing.serves(now, node) && !spared();
            may_be_named.then(|| Candidate {
                distance: stand.distance(&standing.stand),
                shuffle,
                node: index,
                holding,
                far: stand.is_far(&standing.stand),
            })
        };
        let looked_at = self.holders_around(blob, &asking.place, random);
        let looked_at = looked_at.into_iter().chain(fetchers.iter().copied());
        let candidates = looked_at.map(|index| (index, random.u32(..))).filter_map(candidate).collect();
        let holder = |Candidate { node, holding, far, .. }: Candidate| {
            let node = self.nodes.get(node)?;
            let address = reachable(node.address(), asking.place.address, reached_at);
            Some(Holder { peer: node.peer, address, holding, seed: node.seed, far })
        };
        let lessees = blob.books.iter().flat_map(|book| book.lessees()).copied().filter(|peer| *peer != asking.peer);
        Found {
            holders: choose(candidates).into_iter().filter_map(holder).collect(),
            votes: blob.votes.tally(digest),
            lessees: lessees.take(MAX_LESSEES).collect(),
        }
    }
}

impl Group {
    /// Nodes that fetch a small blob under a lease, or just did, and are not known as holders yet: announcements are collected for longer than
    /// that takes, and who asks next would hear of nobody. Of a large blob, that all begin with whoever fetches first makes a swarm slower
    /// (simulated, 32 nodes: by 0.3 %). Only where few hold it: then each counts.
    fn unannounced_fetchers(&self, now: Duration, blob: &Blob) -> Vec<u32> {
        if blob.holders.counts().0 >= NEIGHBOURS {
            return Vec::new();
        }
        let quick = blob.books.iter().filter(|book| book.layout().length() <= QUICK_BLOB_BYTES);
        let fetchers = quick.flat_map(|book| book.fetchers(now));
        let mut fetchers: Vec<u32> = fetchers.filter_map(|peer| self.by_peer.get(&peer).copied()).collect();
        fetchers.retain(|index| blob.holders.get(*index).is_none());
        fetchers.sort_unstable();
        fetchers.dedup();
        fetchers.truncate(NEIGHBOURS);
        fetchers
    }

    /// Holders of a blob to choose from for who stands at `place`, each once: all, or of many an even sample, some of those that
    /// hold all of it, and those of the neighbourhood.
    pub(super) fn holders_around(&self, blob: &Blob, place: &Place, random: &mut fastrand::Rng) -> Vec<u32> {
        let (count, _) = blob.holders.counts();
        if count <= MAX_HOLDERS_SCANNED {
            return blob.holders.iter().collect();
        }
        let mut sample = blob.holders.sample(HOLDERS_SAMPLED, random);
        sample.extend(blob.holders.complete(random.f64()).take(COMPLETE_SAMPLED));
        let near = self.neighbours.near(place, MAX_NEIGHBOURS_SCANNED, random);
        sample.extend(near.filter(|index| blob.holders.get(*index).is_some()));
        sample.sort_unstable();
        sample.dedup();
        sample
    }

    /// Nodes that hold all of a blob, each once: all, or of more than `limit` a stretch, after those of the neighbourhood of
    /// who stands at `place`, as far as a look at a fourth of `limit` nodes there finds them.
    pub(super) fn complete_around<'a>(
        &self,
        blob: &'a Blob,
        place: &Place,
        limit: usize,
        random: &mut fastrand::Rng,
    ) -> impl Iterator<Item = u32> + use<'a> {
        let (_, complete) = blob.holders.counts();
        let (mut near, mut from) = (Vec::new(), 0.0);
        if complete as usize > limit {
            from = random.f64();
            let nodes = self.neighbours.near(place, limit / 4, random);
            near.extend(nodes.filter(|index| blob.holders.get(*index) == Some(Holding::Complete)));
            near.sort_unstable();
            near.dedup();
        }
        let first = near.clone();
        let others = blob.holders.complete(from).take(limit).filter(move |index| near.binary_search(index).is_err());
        first.into_iter().chain(others)
    }
}

/// The nearest first, and in every fourth place one from elsewhere, so that no neighbourhood is cut off however few an asker
/// takes: one of another zone before others, and those that hold everything before those that hold a part.
fn choose(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let by_distance = |candidate: &Candidate| (candidate.distance, candidate.shuffle);
    let nearest = candidates.iter().map(|candidate| candidate.distance).min().unwrap_or_default();
    let beyond = split_least(&mut candidates, NEIGHBOURS - NEIGHBOURS / FAR_SHARE, by_distance);
    let (mut elsewhere, more): (Vec<_>, Vec<_>) = beyond.into_iter().partition(|other| other.distance > nearest);
    let far = (0..elsewhere.len()).filter(|&at| elsewhere[at].far);
    let first = far.min_by_key(|&at| by_completeness(&elsewhere[at])).map(|at| elsewhere.swap_remove(at));
    let others = MAX_HOLDERS_PER_ANSWER / FAR_SHARE - usize::from(first.is_some());
    let mut beyond = split_least(&mut elsewhere, others, by_completeness);
    elsewhere.splice(..0, first);
    beyond.extend(more);
    split_least(&mut beyond, MAX_HOLDERS_PER_ANSWER, by_distance);
    let (mut near, mut elsewhere) = (candidates.into_iter().chain(beyond), elsewhere.into_iter());
    let place = |place: usize| match place % FAR_SHARE {
        0 => elsewhere.next().or_else(|| near.next()),
        _ => near.next().or_else(|| elsewhere.next()),
    };
    (1..=MAX_HOLDERS_PER_ANSWER).map_while(place).collect()
}

fn by_completeness(candidate: &Candidate) -> (bool, u32) {
    (candidate.holding != Holding::Complete, candidate.shuffle)
}

/// Leaves the `count` least in `all`, in order, and gives the others in any order.
fn split_least<K: Ord>(all: &mut Vec<Candidate>, count: usize, key: impl Fn(&Candidate) -> K) -> Vec<Candidate> {
    if all.len() > count {
        all.select_nth_unstable_by_key(count, &key);
    }
    let others = all.split_off(all.len().min(count));
    all.sort_unstable_by_key(key);
    others
}
