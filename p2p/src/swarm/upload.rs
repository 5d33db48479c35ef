//! Who is sent pieces, and in which order.
//!
//! Two slots with two pieces each; a free one goes to the requester with the fewest pieces, which keeps the whole swarm
//! moving together. Requesters that are far apart have not started together: they are served in turn, since newcomers
//! would otherwise hold up everybody else. A request that has waited long goes first, so that nobody starves, and reads
//! that block go before everything, in two slots of their own.

use std::collections::VecDeque;
use std::time::Duration;

use super::policy::Policy;
use super::table::Slot;
use crate::digest::Digest;
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::MAX_QUEUED_REQUESTS;

/// Urgent pieces under way beyond the slots.
const URGENT_EXTRA: u32 = 2;
/// Blobs served last that are remembered.
pub(super) const RECENT: usize = 8;
/// A peer of which nothing has left for so long keeps no slot from others any more. Its connection has until its time-out to go on, so that
/// those who take a byte now and then are few at a time.
const SLUGGISH: Duration = Duration::from_secs(5);
/// After this long a request counts as starved.
const STARVED: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Waiting {
    digest: Digest,
    piece: PieceIndex,
    urgent: bool,
    since: Duration,
}

/// One peer that waits or is being sent something.
#[derive(Debug)]
struct Queue {
    slot: Slot,
    peer: PeerId,
    /// Pieces handed to its connection and not yet written.
    active: u32,
    waiting: VecDeque<Waiting>,
    urgent: u32,
    /// Number of the grant that it got last.
    served: u64,
    /// When a piece was granted, or had left, last.
    moved: Duration,
}

impl Queue {
    /// Whether it takes a slot.
    fn takes_slot(&self, now: Duration) -> bool {
        self.active > 0 && now < self.moved + SLUGGISH
    }

    fn starves(&self, now: Duration) -> bool {
        self.active == 0 && self.waiting.front().is_some_and(|first| now >= first.since + STARVED)
    }
}

/// A request whose turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) peer: PeerId,
    pub(super) digest: Digest,
    pub(super) piece: PieceIndex,
}

#[derive(Debug)]
pub(super) struct Uploads {
    slots: u32,
    pipeline: u32,
    spread: u32,
    queues: Vec<Queue>,
    /// Pieces that wait, over all queues.
    waiting: u32,
    grants: u64,
    /// The blobs that pieces were granted of last, the latest first.
    recent: VecDeque<Digest>,
    /// Used by every grant: queue, its first request that may be served, the age of that, pieces of its peer.
    candidates: Vec<(usize, usize, Duration, u32)>,
}

impl Uploads {
    pub(super) const fn new(slots: u32, policy: &Policy) -> Self {
        let (pipeline, spread) = (policy.pipeline, policy.spread);
        Self {
            slots,
            pipeline,
            spread,
            queues: Vec::new(),
            waiting: 0,
            grants: 0,
            recent: VecDeque::new(),
            candidates: Vec::new(),
        }
    }

    fn position(&self, slot: Slot) -> Option<usize> {
        self.queues.iter().position(|queue| queue.slot == slot)
    }

    /// Queues a request; false if the peer has too many already.
    pub(super) fn request(
        &mut self,
        now: Duration,
        (slot, peer): (Slot, PeerId),
        digest: Digest,
        piece: PieceIndex,
        urgent: bool,
    ) -> bool {
        let at = self.position(slot).unwrap_or_else(|| {
            let waiting = VecDeque::new();
            self.queues.push(Queue { slot, peer, active: 0, waiting, urgent: 0, served: self.grants, moved: now });
            self.queues.len() - 1
        });
        let queue = &mut self.queues[at];
        let same = |waiting: &&mut Waiting| (waiting.digest, waiting.piece) == (digest, piece);
        if let Some(waiting) = queue.waiting.iter_mut().find(same) {
            queue.urgent += u32::from(urgent && !waiting.urgent);
            waiting.urgent |= urgent;
            return true;
        }
        if queue.waiting.len() >= MAX_QUEUED_REQUESTS {
            return false;
        }
        queue.waiting.push_back(Waiting { digest, piece, urgent, since: now });
        queue.urgent += u32::from(urgent);
        self.waiting += 1;
        true
    }

    pub(super) fn cancel(&mut self, slot: Slot, digest: Digest, piece: PieceIndex) {
        let Some(at) = self.position(slot) else { return };
        let same = |waiting: &Waiting| (waiting.digest, waiting.piece) == (digest, piece);
        if let Some(index) = self.queues[at].waiting.iter().position(same) {
            self.remove(at, index);
            self.forget_if_idle(at);
        }
    }

    /// A piece has left.
    pub(super) fn sent(&mut self, now: Duration, slot: Slot) {
        let Some(at) = self.position(slot) else { return };
        self.queues[at].moved = now;
        self.queues[at].active = self.queues[at].active.saturating_sub(1);
        self.forget_if_idle(at);
    }

    pub(super) fn peer_gone(&mut self, slot: Slot) {
        if let Some(at) = self.position(slot) {
            self.waiting -= self.queues.swap_remove(at).waiting.len() as u32;
        }
    }

    /// Whether nothing of that blob waits.
    pub(super) fn is_quiet(&self, digest: &Digest) -> bool {
        !self.queues.iter().flat_map(|queue| &queue.waiting).any(|waiting| waiting.digest == *digest)
    }

    /// Pieces that could be sent now if somebody asked.
    pub(super) fn free(&self) -> u32 {
        let total: u32 = self.queues.iter().map(|queue| queue.active).sum();
        if self.waiting > 0 { 0 } else { (self.slots * self.pipeline).saturating_sub(total) }
    }

    /// Whether a request of that peer would be granted at once.
    pub(super) fn has_room_for(&self, slot: Slot) -> bool {
        match self.position(slot) {
            Some(at) => self.queues[at].active < self.pipeline,
            None => self.queues.iter().filter(|queue| queue.active > 0).count() < self.slots as usize,
        }
    }

    fn remove(&mut self, at: usize, index: usize) -> Option<Waiting> {
        let removed = self.queues[at].waiting.remove(index)?;
        self.queues[at].urgent -= u32::from(removed.urgent);
        self.waiting -= 1;
        Some(removed)
    }

    fn forget_if_idle(&mut self, at: usize) {
        if self.queues[at].active == 0 && self.queues[at].waiting.is_empty() {
            self.queues.swap_remove(at);
        }
    }

    /// The next request to serve; `pieces_of` says how much of a blob a peer has, `open` whether its bytes may go to a
    /// peer now.
    pub(super) fn grant(
        &mut self,
        now: Duration,
        rng: &mut fastrand::Rng,
        pieces_of: impl Fn(Slot, Digest) -> u32,
        open: impl Fn(PeerId, Digest) -> bool,
    ) -> Option<Granted> {
        if self.waiting == 0 {
            return None;
        }
        let moving = self.queues.iter().filter(|queue| queue.takes_slot(now));
        let total: u32 = moving.map(|queue| queue.active).sum();
        let (at, index) = self.urgent(total, &open).or_else(|| self.next(now, rng, pieces_of, &open))?;
        let Waiting { digest, piece, .. } = self.remove(at, index)?;
        self.grants += 1;
        self.note_grant(digest);
        let queue = &mut self.queues[at];
        queue.active += 1;
        queue.served = self.grants;
        queue.moved = now;
        Some(Granted { peer: queue.peer, digest, piece })
    }

    fn note_grant(&mut self, digest: Digest) {
        if self.recent.front() != Some(&digest) {
            self.recent.retain(|recent| *recent != digest);
            self.recent.push_front(digest);
            self.recent.truncate(RECENT);
        }
    }

    /// The blobs that pieces were granted of last, the latest first.
    pub(super) fn recent(&self, at: usize) -> Option<Digest> {
        self.recent.get(at).copied()
    }

    /// The oldest of the reads that wait, if one more may be served.
    fn urgent(&self, total: u32, open: impl Fn(PeerId, Digest) -> bool) -> Option<(usize, usize)> {
        if total >= self.slots * self.pipeline + URGENT_EXTRA {
            return None;
        }
        let free = |queue: &&Queue| queue.urgent > 0 && queue.active < self.pipeline + URGENT_EXTRA;
        let urgent = self.queues.iter().zip(0..).filter(|(queue, _)| free(queue)).filter_map(|(queue, at)| {
            let may_go = |waiting: &Waiting| waiting.urgent && open(queue.peer, waiting.digest);
            let index = queue.waiting.iter().position(may_go)?;
            Some((queue.waiting[index].since, at, index))
        });
        urgent.min().map(|(_, at, index)| (at, index))
    }

    /// The queue whose turn it is, and which of its requests.
    fn next(
        &mut self,
        now: Duration,
        rng: &mut fastrand::Rng,
        pieces_of: impl Fn(Slot, Digest) -> u32,
        may_go: impl Fn(PeerId, Digest) -> bool,
    ) -> Option<(usize, usize)> {
        let serving = self.queues.iter().filter(|queue| queue.takes_slot(now)).count() as u32;
        let free = serving < self.slots;
        // Who keeps asking must not keep its slot for ever: it gets no more while a peer without one starves.
        // The first of its requests that no limit holds back.
        let first = |queue: &Queue| queue.waiting.iter().position(|waiting| may_go(queue.peer, waiting.digest));
        let starving = self.queues.iter().any(|queue| queue.starves(now) && first(queue).is_some());
        let open = |queue: &Queue| match queue.active {
            0 => free,
            active => active < self.pipeline && !starving,
        };
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        for (at, queue) in self.queues.iter().enumerate().filter(|(_, queue)| open(queue)) {
            if let Some(index) = first(queue) {
                let Waiting { digest, since, .. } = queue.waiting[index];
                candidates.push((at, index, since, pieces_of(queue.slot, digest)));
            }
        }
        let pieces = candidates.iter().map(|(.., pieces)| *pieces);
        let apart = pieces.clone().max().unwrap_or_default() - pieces.min().unwrap_or_default();
        let mut lot = rng.u32(..) | 1;
        let next = candidates.iter().min_by_key(|&&(at, _, since, pieces)| {
            let queue = &self.queues[at];
            lot = lot.wrapping_mul(0x9e37_79b1);
            // Among the starved the oldest; among the others the one with least, or the one that was served longest ago.
            let (starved, in_turn) = (now >= since + STARVED, apart > self.spread);
            let rank = match (starved, in_turn) {
                (true, _) => since.as_nanos() as u64,
                (false, true) => queue.served,
                (false, false) => u64::from(pieces),
            };
            (!starved, rank, queue.active, lot)
        });
        let next = next.map(|&(at, index, ..)| (at, index));
        self.candidates = candidates;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    fn ask(uploads: &mut Uploads, now: Duration, n: u8, piece: u32, urgent: bool) -> bool {
        uploads.request(now, (Slot(n.into()), peer(n)), Digest::of(b"x"), PieceIndex(piece), urgent)
    }

    fn sent(uploads: &mut Uploads, peer: PeerId) {
        uploads.sent(Duration::ZERO, Slot(peer.as_bytes()[0].into()));
    }

    fn fill(uploads: &mut Uploads, pieces: impl Fn(u32) -> u32) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(7);
        std::iter::from_fn(|| uploads.grant(Duration::ZERO, &mut rng, |slot, _| pieces(slot.0), |_, _| true))
            .map(|granted| granted.peer.as_bytes()[0])
            .collect()
    }

    #[test]
    fn peers_that_take_nothing_keep_no_slot_from_others() {
        let mut uploads = Uploads::new(2, &Policy::default());
        let mut rng = fastrand::Rng::with_seed(7);
        for stalled in [1, 2] {
            ask(&mut uploads, Duration::ZERO, stalled, 0, false);
        }
        assert_eq!(fill(&mut uploads, |_| 0).len(), 2);
        ask(&mut uploads, Duration::ZERO, 3, 0, false);
        let mut at = |now| uploads.grant(now, &mut rng, |_, _| 0, |_, _| true).map(|granted| granted.peer);
        assert_eq!(at(SLUGGISH - Duration::from_millis(1)), None, "they may only be slow");
        assert_eq!(at(SLUGGISH), Some(peer(3)));
    }

    #[test]
    fn a_free_slot_goes_to_the_peer_with_fewest_pieces() {
        let mut uploads = Uploads::new(2, &Policy::default());
        for n in 1..=3 {
            for piece in 0..4 {
                assert!(ask(&mut uploads, Duration::ZERO, n, piece, false));
            }
        }
        let pieces = |n: u32| 10 - n;
        let mut granted = fill(&mut uploads, pieces);
        granted.sort_unstable();
        assert_eq!(granted, [2, 2, 3, 3]);
        sent(&mut uploads, peer(2));
        assert_eq!(fill(&mut uploads, pieces), [2], "two peers are served at a time");
    }

    #[test]
    fn a_blocked_read_goes_before_everything() {
        let mut uploads = Uploads::new(2, &Policy::default());
        for n in 1..=4 {
            ask(&mut uploads, Duration::ZERO, n, 0, false);
            ask(&mut uploads, Duration::ZERO, n, 1, false);
        }
        assert_eq!(fill(&mut uploads, |_| 0).len(), 4);
        ask(&mut uploads, Duration::ZERO, 9, 5, true);
        assert_eq!(fill(&mut uploads, |n| n), [9]);
    }

    #[test]
    fn nobody_starves() {
        let mut uploads = Uploads::new(1, &Policy::default());
        let mut rng = fastrand::Rng::with_seed(1);
        ask(&mut uploads, Duration::ZERO, 1, 0, false);
        for second in 0..5u8 {
            let now = Duration::from_secs(u64::from(second));
            ask(&mut uploads, now, 10 + second, 0, false);
            let granted =
                uploads.grant(now, &mut rng, |slot, _| if slot.0 == 1 { 60 } else { 0 }, |_, _| true).unwrap();
            if granted.peer == peer(1) {
                return;
            }
            sent(&mut uploads, granted.peer);
        }
        panic!("the peer with most pieces was never served");
    }

    #[test]
    fn two_peers_that_keep_asking_do_not_keep_both_slots() {
        let mut uploads = Uploads::new(2, &Policy::default());
        let mut rng = fastrand::Rng::with_seed(3);
        let mut under_way = VecDeque::new();
        ask(&mut uploads, Duration::ZERO, 9, 0, false);
        for second in 0..20u32 {
            let now = Duration::from_secs(u64::from(second));
            for n in 1..=2 {
                ask(&mut uploads, now, n, 2 * second, false);
                ask(&mut uploads, now, n, 2 * second + 1, false);
            }
            let pieces = |slot: Slot, _| slot.0;
            under_way.extend(
                std::iter::from_fn(|| uploads.grant(now, &mut rng, pieces, |_, _| true)).map(|granted| granted.peer),
            );
            if under_way.contains(&peer(9)) {
                return;
            }
            sent(&mut uploads, under_way.pop_front().unwrap());
        }
        panic!("a third peer was never served");
    }

    #[test]
    fn one_peer_does_not_take_all_by_calling_everything_urgent() {
        let mut uploads = Uploads::new(2, &Policy::default());
        for piece in 0..20 {
            ask(&mut uploads, Duration::ZERO, 1, piece, true);
        }
        assert_eq!(fill(&mut uploads, |_| 0), [1; 4]);
        ask(&mut uploads, Duration::ZERO, 2, 0, true);
        assert_eq!(fill(&mut uploads, |_| 0), [2]);
    }

    #[test]
    fn one_peer_cannot_queue_without_bound() {
        let mut uploads = Uploads::new(1, &Policy::default());
        let accepted = (0..10_000).filter(|&piece| ask(&mut uploads, Duration::ZERO, 1, piece, false)).count();
        assert_eq!(accepted, MAX_QUEUED_REQUESTS);
    }

    #[test]
    fn peers_that_did_not_start_together_are_served_in_turn() {
        let mut uploads = Uploads::new(1, &Policy::default());
        let mut rng = fastrand::Rng::with_seed(5);
        let mut served = Vec::new();
        for round in 0..12u32 {
            (1..=3).for_each(|n| assert!(ask(&mut uploads, Duration::ZERO, n, round, false)));
            // The first has 100 pieces more than the others, which have few.
            let pieces = |slot: Slot, _| if slot.0 == 1 { 100 } else { slot.0 };
            let granted = uploads.grant(Duration::ZERO, &mut rng, pieces, |_, _| true).unwrap();
            served.push(granted.peer);
            sent(&mut uploads, granted.peer);
        }
        for n in 1..=3 {
            assert_eq!(served.iter().filter(|&&other| other == peer(n)).count(), 4, "{served:?}");
        }
    }
}
