//! The answer to "who has this blob".

use std::net::IpAddr;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Found, Holder, Holding};

use super::group::Group;
use super::nearness::{distance, is_far};
use super::reachable;
use crate::limits::{FAR_SHARE, MAX_HOLDERS_PER_ANSWER, MAX_HOLDERS_SCANNED, MAX_LESSEES, NEIGHBOURS};

struct Candidate {
    distance: u32,
    /// Shuffles equals.
    shuffle: u32,
    holder: Holder,
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
        let (count, _) = blob.counts();
        let skip = if count > MAX_HOLDERS_SCANNED { random.usize(..count) } else { 0 };
        let mut candidates = Vec::with_capacity(count.min(MAX_HOLDERS_SCANNED));
        for (index, holding) in blob.holders(skip, MAX_HOLDERS_SCANNED) {
            let Some(node) = self.nodes.get(index) else { continue };
            if index == asker || !node.serves(now) || asking.has_grudge(now, node.peer) {
                continue;
            }
            let address = reachable(node.address(), asking.place.address, reached_at);
            candidates.push(Candidate {
                distance: distance(&asking.place, &node.place),
                shuffle: random.u32(..),
                holder: Holder {
                    peer: node.peer,
                    address,
                    holding,
                    seed: node.seed,
                    far: is_far(&asking.place, &node.place),
                },
            });
        }
        let lessees = blob.books.iter().flat_map(|book| book.lessees()).copied().filter(|peer| *peer != asking.peer);
        Found {
            holders: choose(candidates),
            votes: blob.votes.tally(digest),
            lessees: lessees.take(MAX_LESSEES).collect(),
        }
    }
}

/// The nearest first, and in every fourth place one from elsewhere, so that no neighbourhood is cut off however few an asker
/// takes: one of another zone before others, and those that hold everything before those that hold a part.
fn choose(mut candidates: Vec<Candidate>) -> Vec<Holder> {
    candidates.sort_unstable_by_key(|candidate| (candidate.distance, candidate.shuffle));
    let nearest = candidates.first().map_or(0, |candidate| candidate.distance);
    let beyond = candidates.split_off(candidates.len().min(NEIGHBOURS - NEIGHBOURS / FAR_SHARE));
    let (mut elsewhere, more): (Vec<_>, Vec<_>) = beyond.into_iter().partition(|other| other.distance > nearest);
    elsewhere.sort_unstable_by_key(|other| (other.holder.holding != Holding::Complete, other.shuffle));
    if let Some(at) = elsewhere.iter().position(|other| other.holder.far) {
        elsewhere[..=at].rotate_right(1);
    }
    let mut beyond = elsewhere.split_off(elsewhere.len().min(MAX_HOLDERS_PER_ANSWER / FAR_SHARE));
    beyond.extend(more);
    beyond.sort_unstable_by_key(|candidate| (candidate.distance, candidate.shuffle));
    let (mut near, mut elsewhere) = (candidates.into_iter().chain(beyond), elsewhere.into_iter());
    let place = |place: usize| match place % FAR_SHARE {
        0 => elsewhere.next().or_else(|| near.next()),
        _ => near.next().or_else(|| elsewhere.next()),
    };
    (1..=MAX_HOLDERS_PER_ANSWER).map_while(place).map(|candidate| candidate.holder).collect()
}
