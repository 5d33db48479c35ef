//! Seeds before the origin: whoever first wants a blob lets a seed fetch it, and leaves the origin alone while that goes well.
//!
//! A node asks for a lease of its own only when no seed takes the blob, when the one that took it gives nothing for
//! [`GRACE`] (it is dead, or its origin is slow: then the tracker decides who fetches what), or when a read has waited
//! too long already. A seed that is gone is replaced by the next one that discovery knows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::blob::{BlobState, FAULT_PATIENCE, Known, Want};
use super::{Action, Priority, Swarm, WantId};
use crate::digest::Digest;
use crate::discovery::Holder;
use crate::identity::PeerId;
use crate::limits::MAX_KNOWN_HOLDERS;

/// How long an answer may take before the origin is considered without it.
const PATIENCE: Duration = Duration::from_secs(4);
/// Without any piece for so long the seed is not counted on.
const GRACE: Duration = Duration::from_secs(2);
/// The same when the connection to the seed broke.
const BROKEN_GRACE: Duration = Duration::from_millis(500);
/// After nobody took a blob, it is not offered again for so long.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Seeds asked in one go for one blob.
const MAX_TRIES: u32 = 4;

/// What the scheduler knows of the seed that fetches a blob.
#[derive(Debug, Default)]
pub(super) enum SeedSide {
    /// Not asked yet.
    #[default]
    Unasked,
    /// Asked.
    Asking { since: Duration, tries: u32 },
    /// That one fetches it, and is counted on until then.
    Working { seed: PeerId, until: Duration, tries: u32 },
    /// There is none, or it is no longer counted on.
    Without { since: Duration },
}

impl BlobState {
    /// Whether the origin is left to a seed.
    pub(super) fn is_left_to_seed(&self, now: Duration) -> bool {
        let left = match self.seed {
            SeedSide::Asking { since, .. } => now < since + PATIENCE,
            SeedSide::Working { until, .. } => now < until,
            SeedSide::Unasked | SeedSide::Without { .. } => false,
        };
        let late = |want: &Want| want.priority == Priority::Fault && now >= want.since + FAULT_PATIENCE;
        left && !self.origin_only && self.unserved(now, 1, late).is_empty()
    }

    /// A piece came from a peer: seed and swarm do their work.
    pub(super) fn seed_gave(&mut self, now: Duration) {
        if let SeedSide::Working { until, .. } = &mut self.seed {
            *until = now + GRACE;
        }
    }
}

impl Swarm {
    /// Lets a seed be asked, if that is due.
    pub(super) fn ask_seed_if_due(&mut self, digest: Digest) {
        let now = self.now;
        let Some(blob) = self.blobs.get_mut(&digest).filter(|_| self.config.ask_seeds) else { return };
        let due = match blob.seed {
            SeedSide::Unasked => true,
            SeedSide::Without { since } => now >= since + ASK_AGAIN,
            SeedSide::Asking { .. } | SeedSide::Working { .. } => false,
        };
        if due && blob.origin.known && !blob.origin_only && blob.is_active() {
            blob.seed = SeedSide::Asking { since: now, tries: 1 };
            let urgency = urgency(&blob.wants);
            self.actions.push(Action::AskSeed { digest, urgency, failed: None });
        }
    }

    /// Discovery found a seed that fetches the blob, or none.
    pub(super) fn seed_answered(&mut self, digest: Digest, seed: Option<&Holder>) {
        let now = self.now;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let SeedSide::Asking { tries, .. } = blob.seed else { return };
        let Some(&Holder { peer, address, holding, far, .. }) = seed else {
            blob.seed = SeedSide::Without { since: now };
            return self.consider_origin(digest);
        };
        blob.seed = SeedSide::Working { seed: peer, until: now + GRACE, tries };
        // Its statements of pieces count: discovery names seeds as it names lessees.
        blob.verifiable = true;
        if blob.known.len() < MAX_KNOWN_HOLDERS || blob.known.contains_key(&peer) {
            let known = Known { address, holding, rank: 0, failed: false, far, dial_after: Duration::ZERO };
            blob.known.insert(peer, known);
            blob.connect_next = Duration::ZERO;
        }
        self.connect(digest);
    }

    /// The connection to a peer broke, or could not be made: if it is a seed that is counted on, not for long any more.
    pub(super) fn seed_lost(&mut self, peer: PeerId) {
        for blob in self.blobs.values_mut() {
            if let SeedSide::Working { seed, until, .. } = &mut blob.seed
                && *seed == peer
            {
                *until = (*until).min(self.now + BROKEN_GRACE);
            }
        }
    }

    /// Gives up a seed that gives nothing: for the next one if it is out of reach, else for leases.
    pub(super) fn watch_seed(&mut self, digest: Digest) {
        let now = self.now;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        match blob.seed {
            SeedSide::Working { seed, until, tries } if now >= until && blob.is_active() => {
                if self.peers.contains_key(&seed) || tries >= MAX_TRIES {
                    blob.seed = SeedSide::Without { since: now };
                } else {
                    blob.seed = SeedSide::Asking { since: now, tries: tries + 1 };
                    let urgency = urgency(&blob.wants);
                    self.actions.push(Action::AskSeed { digest, urgency, failed: Some(seed) });
                }
            }
            SeedSide::Asking { since, .. } if now >= since + PATIENCE => {
                blob.seed = SeedSide::Without { since: now };
            }
            _ => {}
        }
    }
}

/// The most urgent of the wants.
fn urgency(wants: &BTreeMap<WantId, Want>) -> Priority {
    wants.values().map(|want| want.priority).min().unwrap_or(Priority::Background)
}

#[cfg(test)]
mod tests {
    use super::super::{Event, SwarmConfig};
    use super::*;
    use crate::bitfield::Bitfield;
    use crate::discovery::{Holding, LeaseReply};
    use crate::layout::{PieceIndex, PieceLayout};
    use crate::swarm::{FoundPeers, PieceSource};

    const LENGTH: u64 = 1 << 20;

    fn peer(byte: u8) -> PeerId {
        PeerId::from_bytes([byte; 32])
    }

    fn seed() -> Holder {
        Holder::new(peer(9), ([10, 0, 0, 9], 7081).into(), Holding::Partial)
    }

    /// One node that wants all of one blob whose origin it knows, in a cluster with seeds.
    struct Rig {
        swarm: Swarm,
        digest: Digest,
        now: Duration,
    }

    impl Rig {
        fn new(priority: Priority) -> (Self, Vec<Action>) {
            let config = SwarmConfig { ask_seeds: true, ..SwarmConfig::default() };
            let digest = Digest::of(b"blob");
            let mut rig = Self { swarm: Swarm::new(peer(1), config), digest, now: Duration::from_secs(1) };
            let layout = PieceLayout::new(LENGTH).unwrap();
            let have = Bitfield::empty(layout.piece_count());
            rig.tell(Event::Opened { digest, layout, have, verified: false });
            rig.tell(Event::OriginKnown(digest));
            let pieces = 0..layout.piece_count();
            let mut actions = rig.tell(Event::Want { digest, id: WantId(1), pieces, priority });
            let found = FoundPeers { holders: Vec::new(), verifiable: true, metainfo_pending: false };
            actions.extend(rig.tell(Event::Found { digest, found: Some(found) }));
            (rig, actions)
        }

        fn tell(&mut self, event: Event) -> Vec<Action> {
            self.swarm.on_event(self.now, event)
        }

        /// What happens within `time`, tick by tick, and when.
        fn pass(&mut self, time: Duration) -> Vec<(Duration, Action)> {
            let (start, end) = (self.now, self.now + time);
            let mut seen = Vec::new();
            while self.now < end {
                self.now += Duration::from_millis(20);
                for action in self.tell(Event::Tick) {
                    seen.push((self.now - start, action.clone()));
                    let digest = self.digest;
                    let follow = match action {
                        Action::Find(_) => {
                            let found = FoundPeers { holders: vec![], verifiable: true, metainfo_pending: false };
                            Event::Found { digest, found: Some(found) }
                        }
                        Action::Lease(_) => {
                            Event::Leased { digest, reply: Some(LeaseReply::Wait(Duration::from_secs(1))) }
                        }
                        Action::Dial { peer, .. } => Event::DialFailed(peer),
                        _ => continue,
                    };
                    let more = self.tell(follow);
                    seen.extend(more.into_iter().map(|action| (self.now - start, action)));
                }
            }
            seen
        }
    }

    fn asks_lease(action: &Action) -> bool {
        matches!(action, Action::Lease(_))
    }

    #[test]
    fn the_origin_is_left_alone_until_no_seed_takes_the_blob() {
        let (mut rig, actions) = Rig::new(Priority::Bulk);
        assert!(actions.iter().any(|action| matches!(action, Action::AskSeed { failed: None, .. })));
        assert!(!actions.iter().any(asks_lease), "no lease before the seeds have answered");
        let actions = rig.tell(Event::SeedAnswered { digest: rig.digest, seed: None });
        assert!(actions.iter().any(asks_lease), "without a seed at once");
    }

    #[test]
    fn without_an_answer_the_origin_is_asked_all_the_same() {
        let (mut rig, _) = Rig::new(Priority::Bulk);
        let seen = rig.pass(PATIENCE + Duration::from_secs(1));
        let at = seen.iter().find(|(_, action)| asks_lease(action)).unwrap().0;
        assert!(at >= PATIENCE && at < PATIENCE + Duration::from_millis(100), "{at:?}");
    }

    #[test]
    fn a_seed_that_gives_is_left_to_work() {
        let (mut rig, _) = Rig::new(Priority::Bulk);
        let digest = rig.digest;
        let actions = rig.tell(Event::SeedAnswered { digest, seed: Some(seed()) });
        assert!(actions.contains(&Action::Dial { peer: seed().peer, address: seed().address }));
        rig.tell(Event::PeerUp(seed().peer));
        for piece in (0..6).map(PieceIndex) {
            let seen = rig.pass(GRACE - Duration::from_millis(100));
            assert!(!seen.iter().any(|(_, action)| asks_lease(action)), "{seen:?}");
            rig.tell(Event::Stored { digest, piece, source: PieceSource::Peer(peer(2)) });
        }
        let seen = rig.pass(GRACE + Duration::from_millis(100));
        assert!(seen.iter().any(|(_, action)| asks_lease(action)), "silent for too long: leases");
        assert!(!seen.iter().any(|(_, action)| matches!(action, Action::AskSeed { .. })), "it is there, if slow");
    }

    #[test]
    fn a_seed_that_is_gone_is_replaced_and_then_done_without() {
        let (mut rig, _) = Rig::new(Priority::Bulk);
        let digest = rig.digest;
        rig.tell(Event::SeedAnswered { digest, seed: Some(seed()) });
        rig.tell(Event::PeerUp(seed().peer));
        rig.tell(Event::PeerDown(seed().peer));
        let seen = rig.pass(BROKEN_GRACE + Duration::from_millis(100));
        let failed = Some(seed().peer);
        let asked =
            seen.iter().any(|(_, action)| matches!(action, Action::AskSeed { failed: gone, .. } if *gone == failed));
        assert!(asked && !seen.iter().any(|(_, action)| asks_lease(action)), "{seen:?}");
        let actions = rig.tell(Event::SeedAnswered { digest, seed: None });
        assert!(actions.iter().any(asks_lease));
    }

    #[test]
    fn a_read_that_waits_for_a_second_does_not_wait_for_seeds() {
        let (mut rig, _) = Rig::new(Priority::Fault);
        let seen = rig.pass(FAULT_PATIENCE + Duration::from_millis(100));
        let at = seen.iter().find(|(_, action)| asks_lease(action)).unwrap().0;
        assert!(at >= FAULT_PATIENCE - Duration::from_millis(20), "{at:?}");
    }

    #[test]
    fn a_seed_does_not_ask_seeds() {
        let mut swarm = Swarm::new(peer(1), SwarmConfig::default());
        let digest = Digest::of(b"blob");
        let layout = PieceLayout::new(LENGTH).unwrap();
        let have = Bitfield::empty(layout.piece_count());
        let now = Duration::from_secs(1);
        let opened = Event::Opened { digest, layout, have, verified: false };
        let want = Event::Want { digest, id: WantId(1), pieces: 0..1, priority: Priority::Bulk };
        let found = FoundPeers { holders: Vec::new(), verifiable: true, metainfo_pending: false };
        let events = [opened, Event::OriginKnown(digest), want, Event::Found { digest, found: Some(found) }];
        let actions: Vec<Action> = events.into_iter().flat_map(|event| swarm.on_event(now, event)).collect();
        assert!(!actions.iter().any(|action| matches!(action, Action::AskSeed { .. })));
        assert!(actions.iter().any(asks_lease));
    }
}
