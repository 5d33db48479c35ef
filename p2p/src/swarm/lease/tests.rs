//! One scheduler against a discovery and an origin that say what the test wants.

use std::net::SocketAddr;

use super::silence::SILENCE;
use super::unleased::RUN_BYTES;
use super::*;
use crate::bitfield::Bitfield;
use crate::discovery::{Holder, LeaseRequest};
use crate::layout::PieceLayout;
use crate::swarm::{Event, PieceSource, Priority, SwarmConfig, WantId};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

/// One node that wants all of a blob of 512 pieces of 128 KiB.
struct Rig {
    swarm: Swarm,
    now: Duration,
    digest: Digest,
    layout: PieceLayout,
    /// What discovery says to a request for a lease.
    reply: Option<LeaseReply>,
    finds: bool,
    requests: Vec<LeaseRequest>,
    transfers: Vec<(Duration, TransferId, Range<u32>, bool)>,
    settled: Vec<Settlement>,
    /// Whom discovery names, and who was asked for which piece.
    holders: Vec<Holder>,
    asked: Vec<(PeerId, u32)>,
}

impl Rig {
    fn new(seed: u64, reply: Option<LeaseReply>) -> Self {
        Self::of(peer(0), seed, reply)
    }

    fn of(me: PeerId, seed: u64, reply: Option<LeaseReply>) -> Self {
        let (digest, layout) = (Digest::of(b"layer"), PieceLayout::new(64 << 20).unwrap());
        let mut rig = Self {
            swarm: Swarm::new(me, SwarmConfig { seed, ..SwarmConfig::default() }),
            now: S,
            digest,
            layout,
            finds: reply.is_some(),
            reply,
            requests: Vec::new(),
            transfers: Vec::new(),
            settled: Vec::new(),
            holders: Vec::new(),
            asked: Vec::new(),
        };
        let have = Bitfield::empty(layout.piece_count());
        rig.happen(Event::Opened { digest, layout, have, verified: false });
        rig.happen(Event::OriginKnown(digest));
        rig
    }

    fn pull(&mut self) {
        let pieces = 0..self.layout.piece_count();
        self.happen(Event::Want { digest: self.digest, id: WantId(1), pieces, priority: Priority::Bulk });
    }

    fn meet(&mut self, n: u8, have: Bitfield) {
        self.happen(Event::PeerUp(peer(n)));
        self.happen(Event::Hello { peer: peer(n), digest: self.digest, have });
    }

    fn happen(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.swarm.on_event(self.now, event) {
                let digest = self.digest;
                match action {
                    Action::Find(_) => {
                        let found =
                            FoundPeers { holders: self.holders.clone(), verifiable: true, metainfo_pending: false };
                        events.push(Event::Found { digest, found: self.finds.then_some(found) });
                    }
                    Action::Lease(request) => {
                        self.requests.push(request);
                        events.push(Event::Leased { digest, reply: self.reply.clone() });
                    }
                    Action::Transfer { transfer, pieces, delay, leased, .. } => {
                        // One lease at a time.
                        self.reply = self.reply.take().map(|_| LeaseReply::Wait(S));
                        self.transfers.push((self.now + delay, transfer, pieces, leased));
                    }
                    Action::Request { peer, piece, .. } => {
                        self.reply = self.reply.take().map(|_| LeaseReply::Wait(S));
                        self.asked.push((peer, piece.0));
                    }
                    Action::Settle(settlement) => self.settled.push(settlement),
                    _ => {}
                }
            }
        }
    }

    /// Ticks until then.
    fn pass(&mut self, until: Duration) {
        while self.now < until {
            self.now += 20 * MS;
            self.happen(Event::Tick);
        }
    }

    fn arrive(&mut self, pieces: Range<u32>, source: PieceSource) {
        for piece in pieces.map(PieceIndex) {
            self.happen(Event::Stored { digest: self.digest, piece, source });
        }
    }
}

fn lease(first: u32, count: u32) -> Option<LeaseReply> {
    Some(LeaseReply::Granted(Lease::new(7, PieceIndex(first), count, 5 * S)))
}

#[test]
fn a_dead_tracker_is_waited_for_and_then_a_little_is_fetched_without_it() {
    let mut rig = Rig::new(1, None);
    rig.pull();
    rig.pass(S + SILENCE - 100 * MS);
    assert!(rig.transfers.is_empty(), "it may be restarting");
    rig.pass(S + SILENCE + S);
    assert!(!rig.transfers.is_empty() && rig.transfers.len() <= 2, "{:?}", rig.transfers);
    for (_, _, pieces, leased) in &rig.transfers {
        let bytes = u64::from(pieces.end - pieces.start) * rig.layout.piece_length();
        assert!(!leased && bytes <= RUN_BYTES);
    }
}

#[test]
fn a_tracker_that_comes_back_is_asked() {
    let mut rig = Rig::new(2, None);
    rig.pull();
    rig.pass(S + SILENCE / 2);
    (rig.reply, rig.finds) = (lease(0, 2), true);
    rig.pass(S + 2 * SILENCE);
    assert!(rig.transfers.iter().all(|(_, _, _, leased)| *leased), "{:?}", rig.transfers);
    assert_eq!(rig.transfers.len(), 1);
}

#[test]
fn nodes_that_lost_their_tracker_together_fetch_different_pieces() {
    // How many transfers, and of how many runs, where other pieces come meanwhile, or none.
    let count = |comes: bool| {
        let mut runs = std::collections::BTreeSet::new();
        let mut transfers = 0;
        for me in 1..=16 {
            let mut rig = Rig::of(peer(me), u64::from(me), Some(LeaseReply::Wait(S)));
            (1..=16).filter(|n| *n != me).for_each(|n| rig.meet(n, Bitfield::empty(512)));
            rig.pull();
            (rig.reply, rig.finds) = (None, false);
            for tick in 1..=12 {
                rig.pass(S + tick * S / 2);
                if comes {
                    rig.arrive(512 - tick..513 - tick, PieceSource::Peer(peer(me % 16 + 1)));
                }
            }
            transfers += rig.transfers.len();
            runs.extend(rig.transfers.iter().map(|(_, _, pieces, _)| pieces.start));
        }
        (transfers, runs.len())
    };
    let (transfers, runs) = count(true);
    assert!(runs == transfers && (6..=10).contains(&runs), "{transfers} transfers, of {runs} runs");
    let (transfers, runs) = count(false);
    assert!(transfers == 32 && runs >= 24, "nothing came: {transfers} transfers, of {runs} runs");
}

/// The tracker says that others fetch, for ever, and nobody does.
#[test]
fn nodes_that_wait_in_vain_fetch_different_pieces() {
    let mut runs = std::collections::BTreeSet::new();
    for me in 1..=16 {
        let mut rig = Rig::of(peer(me), u64::from(me), Some(LeaseReply::Wait(S)));
        (1..=16).filter(|n| *n != me).for_each(|n| rig.meet(n, Bitfield::empty(512)));
        rig.pull();
        rig.pass(S + PATIENCE + 5 * S);
        assert!(!rig.transfers.is_empty(), "it waits for ever");
        runs.extend(rig.transfers.iter().map(|(_, _, pieces, _)| pieces.start));
    }
    assert!(runs.len() >= 16, "{runs:?}");
}

/// It kept to its own share and left the rest to peers whose bytes it does not take: each run then waited for the stall clock.
#[track_caller]
fn leaves_nothing_to_its_peers(mut rig: Rig) {
    let (mut expected, end) = (0, rig.now + STALL);
    while expected < 512 && rig.now < end {
        rig.pass(rig.now + 20 * MS);
        for (_, transfer, pieces, leased) in std::mem::take(&mut rig.transfers) {
            assert!(!leased && pieces.start == expected, "{pieces:?}");
            expected = pieces.end;
            rig.arrive(pieces, PieceSource::Origin);
            rig.happen(Event::TransferEnded { digest: rig.digest, transfer, outcome: Ok(()) });
        }
    }
    assert_eq!(expected, 512, "all of it at once, in order");
}

#[test]
fn a_node_that_trusts_the_origin_alone_leaves_nothing_to_its_peers() {
    let mut rig = Rig::of(peer(1), 3, Some(LeaseReply::Wait(S)));
    (2..=16).for_each(|n| rig.meet(n, Bitfield::empty(512)));
    rig.pull();
    let pieces: Vec<_> = (0..512).map(PieceIndex).collect();
    rig.happen(Event::Dropped { digest: rig.digest, pieces, origin_only: true });
    leaves_nothing_to_its_peers(rig);
}

/// Every tracker was dead when the pull began: nobody said who may vouch for pieces.
#[test]
fn a_node_for_whose_pieces_nobody_vouches_leaves_nothing_to_its_peers() {
    let mut rig = Rig::of(peer(1), 3, None);
    (2..=16).for_each(|n| rig.meet(n, Bitfield::empty(512)));
    rig.pull();
    leaves_nothing_to_its_peers(rig);
}

#[test]
fn patience_that_discovery_asks_for_has_an_end() {
    let mut rig = Rig::new(3, Some(LeaseReply::Wait(S)));
    rig.pull();
    rig.pass(S + PATIENCE - S);
    assert!(rig.transfers.is_empty(), "others fetch, over a slow link");
    rig.pass(S + PATIENCE + S);
    assert!(!rig.transfers.is_empty() && !rig.transfers[0].3);
}

#[test]
fn what_discovery_does_not_speak_of_stalls_sooner() {
    let mut rig = Rig::new(4, Some(LeaseReply::Exhausted));
    rig.pull();
    rig.pass(S + STALL - S);
    assert!(rig.transfers.is_empty());
    rig.pass(S + STALL + 2 * S);
    assert!(!rig.transfers.is_empty());
}

#[test]
fn a_pause_that_the_origin_asked_for_is_kept_by_who_did_not_hear_it_himself() {
    let pause = 200 * S;
    let mut rig = Rig::new(5, Some(LeaseReply::Wait(pause)));
    rig.pull();
    while rig.now < S + pause {
        // The tracker counts down.
        rig.reply = Some(LeaseReply::Wait(S + pause - rig.now));
        let next = rig.now + S;
        rig.pass(next);
    }
    assert!(rig.transfers.is_empty());
    rig.reply = lease(0, 2);
    rig.pass(S + pause + WAIT_CEILING);
    assert!(rig.transfers[0].3);
}

#[test]
fn peers_that_give_nothing_are_named_to_discovery() {
    let mut rig = Rig::new(6, Some(LeaseReply::Wait(S)));
    rig.pull();
    rig.meet(1, Bitfield::full(512));
    rig.happen(Event::NotHere { peer: peer(1), digest: rig.digest, piece: None });
    let address: SocketAddr = "10.0.0.2:7081".parse().unwrap();
    let holders = vec![Holder::new(peer(2), address, Holding::Complete)];
    let found = FoundPeers { holders, verifiable: true, metainfo_pending: false };
    rig.happen(Event::Found { digest: rig.digest, found: Some(found) });
    rig.happen(Event::DialFailed(peer(2)));
    let until = rig.now + 5 * S;
    rig.pass(until);
    assert_eq!(rig.requests.last().unwrap().useless, [peer(1), peer(2)]);
}

#[test]
fn a_peer_that_could_not_be_reached_for_one_blob_is_named_for_another_that_it_may_have_fetched() {
    let mut rig = Rig::new(6, Some(LeaseReply::Wait(S)));
    rig.happen(Event::DialFailed(peer(2)));
    rig.pull();
    rig.pass(rig.now + 5 * S);
    assert_eq!(rig.requests.last().unwrap().useless, [peer(2)]);
    // Discovery names it no more, or it is there again.
    rig.pass(rig.now + 60 * S);
    assert_eq!(rig.requests.last().unwrap().useless, []);
    rig.happen(Event::DialFailed(peer(2)));
    rig.happen(Event::PeerUp(peer(2)));
    rig.pass(rig.now + 5 * S);
    assert_eq!(rig.requests.last().unwrap().useless, []);
}

#[test]
fn a_settlement_tells_how_the_origin_behaved() {
    let mut rig = Rig::new(7, lease(4, 2));
    rig.pull();
    let (digest, transfer) = (rig.digest, rig.transfers[0].1);
    rig.now += 300 * MS;
    rig.happen(Event::FirstByte { digest, transfer });
    rig.now += 300 * MS;
    rig.arrive(4..5, PieceSource::Origin);
    let error = OriginError::Busy { origin: "reg.example".into(), retry_after: 9 * S };
    rig.happen(Event::TransferEnded { digest, transfer, outcome: Err(error) });
    let expected =
        Settlement { first_byte: Some(300 * MS), trouble: Some(Trouble::Busy(9 * S)), ..Settlement::new(7, digest, 1) };
    assert_eq!(rig.settled, [expected]);
    let asked = rig.requests.len();
    rig.pass(rig.now + 8 * S);
    assert_eq!(rig.requests.len(), asked, "the node keeps away, too");
}

#[test]
fn a_lease_of_the_whole_is_one_transfer_from_the_start() {
    let whole = Lease { kind: LeaseKind::Whole, ..Lease::new(7, PieceIndex(0), 512, 60 * S) };
    let mut rig = Rig::new(8, Some(LeaseReply::Granted(whole)));
    rig.pull();
    rig.pass(3 * S);
    assert_eq!(rig.transfers.len(), 1);
    assert_eq!(rig.transfers[0].2, 0..512);
}

#[test]
fn further_copies_are_asked_for_by_the_rarest_pieces_once_peers_have_everything() {
    let mut rig = Rig::new(9, Some(LeaseReply::Exhausted));
    rig.pull();
    rig.meet(1, Bitfield::full(512));
    let mut most = Bitfield::full(512);
    assert!((300..303).all(|piece| most.clear(PieceIndex(piece))));
    rig.meet(2, most);
    let copies = |rig: &Rig| rig.requests.iter().filter(|request| !request.rare.is_empty()).count();
    for piece in 0..50 {
        let next = rig.now + 100 * MS;
        rig.pass(next);
        rig.arrive(piece..piece + 1, PieceSource::Peer(peer(1)));
    }
    let request = rig.requests.iter().rfind(|request| !request.rare.is_empty()).unwrap();
    assert!(request.missing.is_empty());
    assert_eq!(request.rare[..3], [PieceIndex(300), PieceIndex(301), PieceIndex(302)]);
    let remaining = request.remaining.unwrap();
    assert!(remaining > 30 * S && remaining < 60 * S, "{remaining:?} at ten pieces a second");
    assert!(copies(&rig) <= 4, "no more than one question in some seconds: {}", copies(&rig));
}

#[test]
fn what_came_from_the_origin_is_unshared_until_a_peer_has_it() {
    let mut rig = Rig::new(10, Some(LeaseReply::Wait(50 * MS)));
    rig.pull();
    rig.meet(1, Bitfield::empty(512));
    rig.arrive(0..5, PieceSource::Origin);
    let told = |rig: &mut Rig| {
        let until = rig.now + S;
        rig.pass(until);
        rig.requests.last().unwrap().unshared
    };
    assert_eq!(told(&mut rig), 5);
    let pieces = vec![PieceIndex(1), PieceIndex(2)];
    rig.happen(Event::Have { peer: peer(1), digest: rig.digest, pieces });
    assert_eq!(told(&mut rig), 3);
}

#[test]
fn another_zone_is_asked_under_an_import_lease_only_and_for_reads_at_once() {
    let mut rig = Rig::new(11, Some(LeaseReply::Wait(S)));
    let address: SocketAddr = "10.0.0.2:7081".parse().unwrap();
    let far = Holder { far: true, ..Holder::new(peer(1), address, Holding::Complete) };
    rig.holders = vec![far, Holder::new(peer(2), address, Holding::Partial)];
    rig.pull();
    rig.meet(1, Bitfield::full(512));
    rig.meet(2, Bitfield::empty(512));
    rig.meet(3, Bitfield::full(512));
    let until = rig.now + 5 * S;
    rig.pass(until);
    assert_eq!(rig.asked, [], "nobody knows on which side 3 is, so that it counts as far");
    let all: Vec<Range<u32>> = std::iter::once(0..512).collect();
    assert_eq!((&rig.requests.last().unwrap().missing, &rig.requests.last().unwrap().importable), (&all, &all));

    rig.reply = Some(LeaseReply::Granted(Lease { kind: LeaseKind::Import, ..Lease::new(7, PieceIndex(5), 1, 9 * S) }));
    let until = rig.now + 2 * S;
    rig.pass(until);
    let [(importer, 5)] = rig.asked[..] else { panic!("{:?}", rig.asked) };
    rig.arrive(5..6, PieceSource::Peer(importer));
    assert_eq!(rig.settled, [Settlement::new(7, rig.digest, 1)]);

    let want = Event::Want { digest: rig.digest, id: WantId(2), pieces: 9..10, priority: Priority::Fault };
    rig.happen(want);
    assert_eq!(rig.asked[1].1, 9, "a read does not wait for a lease");
    rig.happen(Event::Have { peer: peer(2), digest: rig.digest, pieces: vec![PieceIndex(20)] });
    assert_eq!(rig.asked.last(), Some(&(peer(2), 20)), "who is near is asked as ever");
}

#[test]
fn an_import_that_takes_too_long_is_given_back() {
    let mut rig = Rig::new(12, Some(LeaseReply::Wait(S)));
    let address: SocketAddr = "10.0.0.2:7081".parse().unwrap();
    rig.holders = vec![Holder { far: true, ..Holder::new(peer(1), address, Holding::Complete) }];
    rig.pull();
    rig.meet(1, Bitfield::full(512));
    rig.reply = Some(LeaseReply::Granted(Lease { kind: LeaseKind::Import, ..Lease::new(7, PieceIndex(5), 1, 4 * S) }));
    let until = rig.now + 3 * S;
    rig.pass(until);
    assert_eq!((rig.asked.len(), rig.settled.len()), (1, 0));
    let until = rig.now + 3 * S;
    rig.pass(until);
    assert_eq!(rig.settled, [Settlement::new(7, rig.digest, 0)]);
}
