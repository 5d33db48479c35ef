//! In which order blobs are evicted: a pure function of what is known of them.
//!
//! What lies in a file of somebody else on this machine, too, goes before all else: nothing is lost with the store's own copy.
//! Of the rest the least recently used go first, with one exception (replica-aware eviction): among the least recently used half, by bytes,
//! of what may go, the last copies of a zone go last, and the last copies anywhere last of all. Beyond that half a last
//! copy has no privilege over blobs that were used later: else old blobs that nobody else keeps would in time fill the
//! whole store, and everything new would go at once.

use std::time::SystemTime;

use crate::digest::Digest;
use crate::discovery::Replicas;

/// A blob that may be evicted: nobody needs it now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) digest: Digest,
    pub(super) last_use: SystemTime,
    /// Bytes that its eviction frees.
    pub(super) bytes: u64,
    /// Complete copies at other nodes; none when that is not known, or when there is no complete copy here either.
    pub(super) replicas: Option<Replicas>,
    /// A file of somebody else on this machine has the same bytes.
    pub(super) elsewhere: bool,
}

/// How long a blob is spared; greater is longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Another node of the zone has it, or nothing is known.
    Replaceable,
    /// Only other zones have it.
    LastInZone,
    /// Nobody else has it.
    Last,
}

impl Candidate {
    fn worth(&self) -> Worth {
        match self.replicas {
            Some(Replicas { zone: 0, all: 0 }) => Worth::Last,
            Some(Replicas { zone: 0, .. }) => Worth::LastInZone,
            Some(_) | None => Worth::Replaceable,
        }
    }
}

/// The candidates, first to go first, when `needed` bytes are to be freed.
pub(super) fn eviction_order(mut candidates: Vec<Candidate>, needed: u64) -> Vec<Candidate> {
    candidates.sort_unstable_by_key(|candidate| (!candidate.elsewhere, candidate.last_use, candidate.digest));
    let alone = candidates.partition_point(|candidate| candidate.elsewhere);
    let (twice, rest) = candidates.split_at_mut(alone);
    let freed = twice.iter().map(|candidate| candidate.bytes).sum();
    let old = oldest(rest, needed.saturating_sub(freed));
    // Stable: within the same worth the least recently used stay first.
    rest[..old].sort_by_key(Candidate::worth);
    candidates
}

/// How many of the candidates, which are in the order of their last use, make up half of their bytes, and `needed`.
pub(super) fn oldest(candidates: &[Candidate], needed: u64) -> usize {
    let total: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
    let wanted = needed.max(total / 2);
    let mut sum = 0_u64;
    candidates
        .iter()
        .position(|candidate| {
            sum = sum.saturating_add(candidate.bytes);
            sum >= wanted
        })
        .map_or(candidates.len(), |last| last + 1)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use proptest::prelude::*;

    const UNKNOWN: Option<Replicas> = None;
    const LAST: Option<Replicas> = Some(Replicas { zone: 0, all: 0 });
    const FAR: Option<Replicas> = Some(Replicas { zone: 0, all: 3 });
    const NEAR: Option<Replicas> = Some(Replicas { zone: 1, all: 1 });

    fn order(replicas: &[Option<Replicas>], needed: u64) -> Vec<u64> {
        order_with(replicas, &[], needed)
    }

    /// Blobs of one byte, used one second after the other; named by their place. Those in `twice` lie elsewhere, too.
    fn order_with(replicas: &[Option<Replicas>], twice: &[usize], needed: u64) -> Vec<u64> {
        let candidate = |(age, &replicas): (usize, _)| Candidate {
            digest: Digest::of(&age.to_be_bytes()),
            last_use: UNIX_EPOCH + Duration::from_secs(age as u64),
            bytes: 1,
            replicas,
            elsewhere: twice.contains(&age),
        };
        let candidates = replicas.iter().enumerate().map(candidate).rev().collect();
        let place = |candidate: &Candidate| candidate.last_use.duration_since(UNIX_EPOCH).unwrap().as_secs();
        eviction_order(candidates, needed).iter().map(place).collect()
    }

    #[test]
    fn without_knowledge_the_least_recently_used_go_first() {
        assert_eq!(order(&[UNKNOWN; 5], 2), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn another_copy_in_the_zone_goes_before_the_last_one() {
        assert_eq!(order(&[LAST, FAR, NEAR, UNKNOWN], 4), [2, 3, 1, 0]);
    }

    #[test]
    fn a_last_copy_is_spared_only_within_the_older_half() {
        assert_eq!(order(&[LAST, NEAR, NEAR, LAST, NEAR, NEAR], 1), [1, 2, 0, 3, 4, 5]);
    }

    #[test]
    fn what_is_on_the_machine_twice_goes_before_all_else() {
        assert_eq!(order_with(&[UNKNOWN; 5], &[4, 2], 1), [2, 4, 0, 1, 3]);
        assert_eq!(order_with(&[NEAR, LAST, NEAR, LAST], &[3], 1), [3, 0, 1, 2]);
        assert_eq!(order_with(&[LAST, NEAR, NEAR, LAST], &[3], 3), [3, 1, 0, 2], "two more make the older half");
    }

    #[test]
    fn what_is_needed_beyond_the_half_is_weighed_too() {
        assert_eq!(order(&[LAST, NEAR, NEAR, LAST, NEAR, NEAR], 5), [1, 2, 4, 0, 3, 5]);
    }

    #[test]
    fn last_copies_go_when_nothing_else_is_left() {
        assert_eq!(order(&[LAST; 4], 3), [0, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn nobody_is_lost_and_only_the_older_half_is_reordered(
            kinds in prop::collection::vec(0_usize..4, 0..40), needed in 0_u64..50,
        ) {
            let replicas: Vec<_> = kinds.iter().map(|&kind| [UNKNOWN, LAST, FAR, NEAR][kind]).collect();
            let order = order(&replicas, needed);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..kinds.len() as u64).collect::<Vec<_>>());
            let old = (needed.max(kinds.len() as u64 / 2).max(1) as usize).min(kinds.len());
            prop_assert!(order[old..].iter().copied().eq(old as u64..kinds.len() as u64));
        }
    }
}
