//! The answer to "who has this blob".

use std::net::IpAddr;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Found, Holder, Holding};

use super::group::Group;
use super::nearness::{distance, is_far};
use super::reachable;
use crate::limits::{FAR_SHARE, MAX_HOLDERS_PER_ANSWER, MAX_HOLDERS_SCANNED, MAX_LESSEES};

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

/// The nearest, and where not all fit some from afar, so that no neighbourhood is cut off: those that hold everything
/// first. Ordered by distance.
fn choose(mut candidates: Vec<Candidate>) -> Vec<Holder> {
    candidates.sort_unstable_by_key(|candidate| (candidate.distance, candidate.shuffle));
    if candidates.len() > MAX_HOLDERS_PER_ANSWER {
        let near = MAX_HOLDERS_PER_ANSWER - MAX_HOLDERS_PER_ANSWER / FAR_SHARE;
        let far = &mut candidates[near..];
        far.sort_unstable_by_key(|candidate| (candidate.holder.holding != Holding::Complete, candidate.shuffle));
        candidates.truncate(MAX_HOLDERS_PER_ANSWER);
        candidates[near..].sort_unstable_by_key(|candidate| (candidate.distance, candidate.shuffle));
    }
    candidates.into_iter().map(|candidate| candidate.holder).collect()
}
