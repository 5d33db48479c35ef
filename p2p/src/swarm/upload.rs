//! Who is sent pieces, and in which order.
//!
//! Two slots with two pieces each; a free one goes to the requester with the fewest pieces, which keeps the whole swarm
//! moving together. A request that has waited long goes first, so that nobody starves while newcomers arrive, and
//! reads that block go before everything, in two slots of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::digest::Digest;
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::MAX_QUEUED_REQUESTS;

/// Pieces handed to one connection and not yet written.
const PIPELINE: u32 = 2;
/// Urgent pieces under way beyond the slots.
const URGENT_EXTRA: u32 = 2;
/// After this long a request counts as starved.
const STARVED: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Waiting {
    peer: PeerId,
    digest: Digest,
    piece: PieceIndex,
    urgent: bool,
    since: Duration,
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
    waiting: Vec<Waiting>,
    active: BTreeMap<PeerId, u32>,
}

impl Uploads {
    pub(super) const fn new(slots: u32) -> Self {
        Self { slots, waiting: Vec::new(), active: BTreeMap::new() }
    }

    /// Queues a request; false if the peer has too many already.
    pub(super) fn request(
        &mut self,
        now: Duration,
        peer: PeerId,
        digest: Digest,
        piece: PieceIndex,
        urgent: bool,
    ) -> bool {
        let mut mine = 0;
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.peer == peer) {
            if (waiting.digest, waiting.piece) == (digest, piece) {
                waiting.urgent |= urgent;
                return true;
            }
            mine += 1;
        }
        if mine >= MAX_QUEUED_REQUESTS {
            return false;
        }
        self.waiting.push(Waiting { peer, digest, piece, urgent, since: now });
        true
    }

    pub(super) fn cancel(&mut self, peer: PeerId, digest: Digest, piece: PieceIndex) {
        self.waiting.retain(|waiting| (waiting.peer, waiting.digest, waiting.piece) != (peer, digest, piece));
    }

    /// A piece has left.
    pub(super) fn sent(&mut self, peer: PeerId) {
        if let Some(active) = self.active.get_mut(&peer) {
            *active -= 1;
            if *active == 0 {
                self.active.remove(&peer);
            }
        }
    }

    pub(super) fn peer_gone(&mut self, peer: PeerId) {
        self.waiting.retain(|waiting| waiting.peer != peer);
        self.active.remove(&peer);
    }

    /// The next request to serve; `pieces_of` says how much of a blob a peer has, `open` whether its bytes may go to a
    /// peer now.
    pub(super) fn grant(
        &mut self,
        now: Duration,
        rng: &mut fastrand::Rng,
        pieces_of: impl Fn(PeerId, Digest) -> u32,
        open: impl Fn(PeerId, Digest) -> bool,
    ) -> Option<Granted> {
        let total: u32 = self.active.values().sum();
        let active = |peer: &PeerId| self.active.get(peer).copied().unwrap_or(0);
        let salt = rng.u64(..);
        let open = |waiting: &Waiting| open(waiting.peer, waiting.digest);
        let urgent = self
            .waiting
            .iter()
            .position(|waiting| waiting.urgent && active(&waiting.peer) < PIPELINE + URGENT_EXTRA && open(waiting));
        // Who keeps asking must not keep its slot for ever: it gets no more while a peer without one starves.
        let starves = |waiting: &Waiting| active(&waiting.peer) == 0 && now >= waiting.since + STARVED;
        let starving = self.waiting.iter().any(|waiting| starves(waiting) && open(waiting));
        let index = match urgent {
            Some(index) if total < self.slots * PIPELINE + URGENT_EXTRA => Some(index),
            _ => self
                .waiting
                .iter()
                .enumerate()
                .filter(|(_, waiting)| {
                    let mine = active(&waiting.peer);
                    let free =
                        if mine == 0 { (self.active.len() as u32) < self.slots } else { mine < PIPELINE && !starving };
                    free && open(waiting)
                })
                .min_by_key(|(_, waiting)| {
                    let starved = now >= waiting.since + STARVED;
                    // Among the starved the oldest, among the others the one with least; ties by lot between peers,
                    // and in order within a peer.
                    let rank = if starved {
                        waiting.since.as_nanos() as u64
                    } else {
                        u64::from(pieces_of(waiting.peer, waiting.digest))
                    };
                    (!starved, rank, active(&waiting.peer), lot(salt, waiting.peer))
                })
                .map(|(index, _)| index),
        }?;
        let Waiting { peer, digest, piece, .. } = self.waiting.remove(index);
        *self.active.entry(peer).or_default() += 1;
        Some(Granted { peer, digest, piece })
    }
}

/// A number for a peer that is equal within one grant and differs between grants.
fn lot(salt: u64, peer: PeerId) -> u64 {
    let name = u64::from_be_bytes(*peer.as_bytes().first_chunk().unwrap_or(&[0; 8]));
    fastrand::Rng::with_seed(salt ^ name).u64(..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    fn fill(uploads: &mut Uploads, pieces: impl Fn(PeerId) -> u32) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(7);
        std::iter::from_fn(|| uploads.grant(Duration::ZERO, &mut rng, |peer, _| pieces(peer), |_, _| true))
            .map(|granted| granted.peer.as_bytes()[0])
            .collect()
    }

    #[test]
    fn a_free_slot_goes_to_the_peer_with_fewest_pieces() {
        let mut uploads = Uploads::new(2);
        let digest = Digest::of(b"x");
        for n in 1..=3 {
            for piece in 0..4 {
                assert!(uploads.request(Duration::ZERO, peer(n), digest, PieceIndex(piece), false));
            }
        }
        let pieces = |peer: PeerId| 10 - u32::from(peer.as_bytes()[0]);
        let mut granted = fill(&mut uploads, pieces);
        granted.sort_unstable();
        assert_eq!(granted, [2, 2, 3, 3]);
        uploads.sent(peer(2));
        assert_eq!(fill(&mut uploads, pieces), [2], "two peers are served at a time");
    }

    #[test]
    fn a_blocked_read_goes_before_everything() {
        let mut uploads = Uploads::new(2);
        let digest = Digest::of(b"x");
        for n in 1..=4 {
            uploads.request(Duration::ZERO, peer(n), digest, PieceIndex(0), false);
            uploads.request(Duration::ZERO, peer(n), digest, PieceIndex(1), false);
        }
        assert_eq!(fill(&mut uploads, |_| 0).len(), 4);
        uploads.request(Duration::ZERO, peer(9), digest, PieceIndex(5), true);
        assert_eq!(fill(&mut uploads, |peer| u32::from(peer.as_bytes()[0])), [9]);
    }

    #[test]
    fn nobody_starves() {
        let mut uploads = Uploads::new(1);
        let digest = Digest::of(b"x");
        let mut rng = fastrand::Rng::with_seed(1);
        uploads.request(Duration::ZERO, peer(1), digest, PieceIndex(0), false);
        for second in 0..5u8 {
            let now = Duration::from_secs(u64::from(second));
            uploads.request(now, peer(10 + second), digest, PieceIndex(0), false);
            let granted = uploads
                .grant(now, &mut rng, |peer, _| if peer.as_bytes()[0] == 1 { 100 } else { 0 }, |_, _| true)
                .unwrap();
            if granted.peer == peer(1) {
                return;
            }
            uploads.sent(granted.peer);
        }
        panic!("the peer with most pieces was never served");
    }

    #[test]
    fn two_peers_that_keep_asking_do_not_keep_both_slots() {
        let mut uploads = Uploads::new(2);
        let digest = Digest::of(b"x");
        let mut rng = fastrand::Rng::with_seed(3);
        let mut under_way = std::collections::VecDeque::new();
        uploads.request(Duration::ZERO, peer(9), digest, PieceIndex(0), false);
        for second in 0..20u32 {
            let now = Duration::from_secs(u64::from(second));
            for n in 1..=2 {
                uploads.request(now, peer(n), digest, PieceIndex(2 * second), false);
                uploads.request(now, peer(n), digest, PieceIndex(2 * second + 1), false);
            }
            let pieces = |peer: PeerId, _| u32::from(peer.as_bytes()[0]);
            under_way.extend(
                std::iter::from_fn(|| uploads.grant(now, &mut rng, pieces, |_, _| true)).map(|granted| granted.peer),
            );
            if under_way.contains(&peer(9)) {
                return;
            }
            uploads.sent(under_way.pop_front().unwrap());
        }
        panic!("a third peer was never served");
    }

    #[test]
    fn one_peer_does_not_take_all_by_calling_everything_urgent() {
        let mut uploads = Uploads::new(2);
        let digest = Digest::of(b"x");
        for piece in 0..20 {
            uploads.request(Duration::ZERO, peer(1), digest, PieceIndex(piece), true);
        }
        assert_eq!(fill(&mut uploads, |_| 0), [1; 4]);
        uploads.request(Duration::ZERO, peer(2), digest, PieceIndex(0), true);
        assert_eq!(fill(&mut uploads, |_| 0), [2]);
    }

    #[test]
    fn one_peer_cannot_queue_without_bound() {
        let mut uploads = Uploads::new(1);
        let accepted = (0..10_000)
            .filter(|&piece| uploads.request(Duration::ZERO, peer(1), Digest::of(b"x"), PieceIndex(piece), false))
            .count();
        assert_eq!(accepted, MAX_QUEUED_REQUESTS);
    }
}
