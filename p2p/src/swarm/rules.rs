//! The policy, rule by rule: one scheduler, to which things happen at set times.

use super::*;
use crate::bitfield::Bitfield;
use crate::discovery::{Holder, Lease, LeaseKind, LeaseReply, LeaseRequest};
use crate::layout::PieceLayout;

const MIB: u64 = 1 << 20;

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

/// A scheduler with a blob of 512 pieces of 512 KiB, and its clock.
struct Lone {
    swarm: Swarm,
    digest: Digest,
    pieces: u32,
    now: Duration,
}

impl Lone {
    fn new() -> Self {
        Self::with(256 * MIB, |_| false)
    }

    fn with(length: u64, have: impl Fn(u32) -> bool) -> Self {
        let (digest, layout) = (Digest::of(b"blob"), PieceLayout::new(length).unwrap());
        let (pieces, now) = (layout.piece_count(), Duration::from_secs(100));
        let mut lone = Self { swarm: Swarm::new(peer(0), SwarmConfig::default()), digest, pieces, now };
        let have = lone.bits(have);
        lone.happen(Event::Opened { digest, layout, have, verified: false });
        lone.happen(Event::Verifiable { digest, verifiable: true });
        lone
    }

    fn bits(&self, has: impl Fn(u32) -> bool) -> Bitfield {
        let mut bits = Bitfield::empty(self.pieces);
        (0..self.pieces).filter(|piece| has(*piece)).for_each(|piece| assert!(bits.set(PieceIndex(piece))));
        bits
    }

    fn happen(&mut self, event: Event) -> Vec<Action> {
        self.swarm.on_event(self.now, event)
    }

    /// A peer connects and says what it has.
    fn peer(&mut self, n: u8, has: impl Fn(u32) -> bool) -> Vec<Action> {
        let mut actions = self.happen(Event::PeerUp(peer(n)));
        let have = self.bits(has);
        actions.extend(self.happen(Event::Hello { peer: peer(n), digest: self.digest, have }));
        actions
    }

    fn want(&mut self, id: u64, pieces: Range<u32>, priority: Priority) -> Vec<Action> {
        self.happen(Event::Want { digest: self.digest, id: WantId(id), pieces, priority })
    }

    fn stored(&mut self, piece: u32, source: PieceSource) -> Vec<Action> {
        self.happen(Event::Stored { digest: self.digest, piece: PieceIndex(piece), source })
    }

    /// Lets so many milliseconds pass, with ticks.
    fn pass(&mut self, ms: u64) -> Vec<Action> {
        let end = self.now + Duration::from_millis(ms);
        let mut actions = Vec::new();
        while self.now < end {
            self.now = end.min(self.now + Duration::from_millis(10));
            actions.extend(self.happen(Event::Tick));
        }
        actions
    }

    fn found(&mut self, holders: std::ops::RangeInclusive<u8>) -> Vec<Action> {
        let address = "10.0.0.1:7000".parse().unwrap();
        let holders = holders.map(|n| Holder::new(peer(n), address, Holding::Partial)).collect();
        let found = FoundPeers { holders, verifiable: true, metainfo_pending: false };
        self.happen(Event::Found { digest: self.digest, found: Some(found) })
    }
}

/// Of whom which piece is asked, in that order.
fn asked(actions: &[Action]) -> Vec<(u8, u32)> {
    let request = |action: &Action| match action {
        Action::Request { peer, piece, .. } => Some((peer.as_bytes()[0], piece.0)),
        _ => None,
    };
    actions.iter().filter_map(request).collect()
}

/// The messages about new pieces to a peer.
fn told(actions: &[Action], n: u8) -> Vec<Vec<u32>> {
    let message = |action: &Action| match action {
        Action::SayHave { peer: to, pieces, .. } if *to == peer(n) => {
            Some(pieces.iter().map(|piece| piece.0).collect())
        }
        _ => None,
    };
    actions.iter().filter_map(message).collect()
}

fn leases(actions: &[Action]) -> Vec<LeaseRequest> {
    let request = |action: &Action| match action {
        Action::Lease(request) => Some(request.clone()),
        _ => None,
    };
    actions.iter().filter_map(request).collect()
}

#[test]
fn a_pull_has_four_requests_under_way_at_different_peers() {
    let mut lone = Lone::new();
    (1..=8).for_each(|n| drop(lone.peer(n, |_| true)));
    let first = asked(&lone.want(1, 0..512, Priority::Bulk));
    let peers: BTreeSet<u8> = first.iter().map(|(n, _)| *n).collect();
    assert_eq!((first.len(), peers.len()), (4, 4), "{first:?}");
    assert_eq!(asked(&lone.pass(100)), [], "the budget is spent");
    let (n, piece) = first[0];
    assert_eq!(asked(&lone.stored(piece, PieceSource::Peer(peer(n)))).len(), 1);
}

#[test]
fn of_the_next_pieces_the_rarest_comes_first_and_what_is_far_ahead_when_nothing_else_is_there() {
    let mut lone = Lone::new();
    lone.peer(1, |piece| piece < 128);
    lone.peer(2, |piece| piece < 64 && piece != 17);
    lone.peer(3, |piece| piece < 64 && piece != 17);
    let first = asked(&lone.want(1, 0..512, Priority::Bulk));
    assert!(first.contains(&(1, 17)), "{first:?}");
    assert!(first.iter().all(|(_, piece)| *piece < 64), "{first:?}");
    let mut lone = Lone::new();
    lone.peer(1, |piece| piece >= 300);
    assert_eq!(asked(&lone.want(1, 0..512, Priority::Bulk)), [(1, 300), (1, 301)]);
}

#[test]
fn a_peer_that_has_given_nothing_yet_is_asked_for_two_pieces() {
    let mut lone = Lone::new();
    lone.peer(1, |_| true);
    let first = asked(&lone.want(1, 0..512, Priority::Bulk));
    assert_eq!(first.len(), 2);
    let then = asked(&lone.stored(first[0].1, PieceSource::Peer(peer(1))));
    assert_eq!(then.len(), 3, "it has proven itself: the whole budget");
}

#[test]
fn what_is_most_urgent_is_asked_for_first_and_a_read_even_when_the_budget_is_spent() {
    let mut lone = Lone::new();
    let wants = [Priority::Background, Priority::Bulk, Priority::Prefetch, Priority::ReadAhead, Priority::Fault];
    for (piece, priority) in (0..).zip(wants) {
        lone.want(u64::from(piece), piece..piece + 1, priority);
    }
    assert_eq!(asked(&lone.peer(1, |_| true)), [(1, 4), (1, 3)]);
    assert_eq!(asked(&lone.peer(2, |_| true)), [(2, 2), (2, 1)]);
    assert_eq!(asked(&lone.peer(3, |_| true)), [], "the budget is spent");
    lone.want(10, 20..21, Priority::Bulk);
    let read = lone.want(11, 30..31, Priority::Fault);
    assert_eq!(asked(&read), [(3, 30)]);
    assert!(matches!(read.last(), Some(Action::Request { urgent: true, hedge: false, .. })), "{read:?}");
}

#[test]
fn of_two_reads_the_one_that_waits_longer_goes_first() {
    let mut lone = Lone::new();
    lone.want(2, 50..51, Priority::Fault);
    lone.pass(10);
    lone.want(1, 10..11, Priority::Fault);
    assert_eq!(asked(&lone.peer(1, |_| true)), [(1, 50), (1, 10)]);
}

#[test]
fn news_of_one_peer_is_asked_of_that_peer_and_only_what_is_missing() {
    let mut lone = Lone::new();
    lone.peer(1, |_| false);
    lone.peer(2, |_| false);
    lone.want(1, 0..512, Priority::Bulk);
    let have = |pieces: &[u32]| {
        let pieces = pieces.iter().copied().map(PieceIndex).collect();
        Event::Have { peer: peer(2), digest: Digest::of(b"blob"), pieces }
    };
    assert_eq!(asked(&lone.happen(have(&[7]))), [(2, 7)]);
    assert_eq!(asked(&lone.happen(have(&[7]))), [], "it is asked for already");
    lone.stored(9, PieceSource::Origin);
    assert_eq!(asked(&lone.happen(have(&[9]))), [], "it is here");
}

#[test]
fn a_piece_that_takes_three_times_the_mean_is_asked_of_another_and_the_first_to_come_wins() {
    let mut lone = Lone::new();
    lone.peer(1, |_| true);
    lone.peer(2, |_| true);
    // The mean is 300 ms until pieces have come.
    let first = asked(&lone.want(1, 5..6, Priority::Bulk));
    let ([(late, 5)], other) = (first.as_slice(), 3 - first[0].0) else { panic!("{first:?}") };
    assert_eq!(asked(&lone.pass(880)), []);
    let hedge = lone.pass(30);
    assert_eq!(asked(&hedge), [(other, 5)]);
    assert!(hedge.iter().any(|action| matches!(action, Action::Request { hedge: true, .. })));
    assert_eq!(asked(&lone.pass(2000)), [], "two are enough");
    let cancel = Action::Cancel { peer: peer(*late), digest: lone.digest, piece: PieceIndex(5) };
    assert!(lone.stored(5, PieceSource::Peer(peer(other))).contains(&cancel));
}

#[test]
fn a_pull_asks_for_what_is_missing_before_it_asks_twice() {
    let mut lone = Lone::new();
    lone.peer(1, |piece| piece == 5);
    lone.want(1, 0..512, Priority::Bulk);
    // As it has not given anything yet, the other one is asked for two pieces; more are left.
    let others = asked(&lone.peer(2, |_| true));
    assert_eq!(others.len(), 2);
    assert!(others.iter().all(|(n, piece)| *n == 2 && *piece != 5));
    assert_eq!(asked(&lone.pass(2000)), [], "the late piece has another holder, but there is other work for it");
}

#[test]
fn who_lets_a_request_time_out_is_left_alone_and_returns_on_probation() {
    let mut lone = Lone::new();
    lone.peer(1, |_| true);
    assert_eq!(asked(&lone.want(1, 0..512, Priority::Bulk)).len(), 2);
    assert_eq!(asked(&lone.pass(14_900)), []);
    let given_up = lone.pass(200);
    assert_eq!(given_up.iter().filter(|action| matches!(action, Action::Cancel { .. })).count(), 2, "{given_up:?}");
    assert_eq!(asked(&lone.pass(9_800)), [], "isolated for ten seconds, or longer");
    let returned = asked(&lone.pass(10_200));
    assert_eq!(returned.len(), 1, "one request, until it delivers: {returned:?}");
    assert_eq!(asked(&lone.stored(returned[0].1, PieceSource::Peer(peer(1)))).len(), 4, "it has delivered");
}

#[test]
fn what_the_origin_is_sending_is_not_asked_of_peers_unless_it_stops() {
    let mut lone = Lone::new();
    lone.happen(Event::OriginKnown(lone.digest));
    lone.want(1, 0..2, Priority::Bulk);
    lone.found(1..=1);
    let lease = Lease::new(1, PieceIndex(0), 2, Duration::from_secs(60));
    assert_eq!(lease.kind, LeaseKind::Origin);
    let granted = lone.happen(Event::Leased { digest: lone.digest, reply: Some(LeaseReply::Granted(lease)) });
    assert!(granted.iter().any(|action| matches!(action, Action::Transfer { .. })), "{granted:?}");
    assert_eq!(asked(&lone.peer(1, |_| true)), []);
    assert_eq!(asked(&lone.pass(2900)), []);
    assert_eq!(asked(&lone.pass(200)).len(), 2);
}

#[test]
fn leases_are_asked_for_what_no_connected_peer_has() {
    let mut lone = Lone::new();
    lone.peer(1, |piece| piece < 500);
    lone.happen(Event::OriginKnown(lone.digest));
    lone.want(1, 0..512, Priority::Bulk);
    let asked = leases(&lone.found(1..=1));
    assert_eq!(asked.len(), 1);
    let missing: Vec<u32> = asked[0].missing.iter().cloned().flatten().collect();
    assert_eq!(missing, (500..512).collect::<Vec<_>>());
}

#[test]
fn new_pieces_are_told_in_batches_and_in_larger_ones_in_a_large_swarm() {
    // In the middle of a pull, at its beginning and at its end.
    for (holders, most, first) in [(4, 22, 100), (64, 6, 100), (64, 10, 0), (64, 10, 312)] {
        let mut lone = Lone::with(256 * MIB, |piece| piece < first);
        lone.want(1, 0..512, Priority::Bulk);
        lone.found(1..=holders);
        lone.peer(1, |_| false);
        let mut actions = Vec::new();
        for piece in first..first + 200 {
            actions.extend(lone.stored(piece, PieceSource::Origin));
            lone.now += Duration::from_millis(5);
            actions.extend(lone.happen(Event::Tick));
        }
        actions.extend(lone.pass(400));
        let told = told(&actions, 1);
        assert_eq!(told.concat(), (first..first + 200).collect::<Vec<_>>(), "each piece once");
        let messages = told.len();
        assert!((most * 3 / 4..=most).contains(&messages), "{messages} messages for {holders} holders from {first} on");
    }
}

#[test]
fn new_pieces_of_several_blobs_are_told_together() {
    let mut lone = Lone::new();
    let (one, other, layout) = (lone.digest, Digest::of(b"other"), PieceLayout::new(256 * MIB).unwrap());
    lone.happen(Event::Opened { digest: other, layout, have: Bitfield::empty(512), verified: false });
    lone.peer(1, |_| false);
    lone.happen(Event::Hello { peer: peer(1), digest: other, have: Bitfield::empty(512) });
    lone.want(1, 0..512, Priority::Bulk);
    lone.happen(Event::Want { digest: other, id: WantId(2), pieces: 0..512, priority: Priority::Bulk });
    // When which blobs were spoken of.
    let mut moments: BTreeMap<Duration, BTreeSet<Digest>> = BTreeMap::new();
    for piece in 0..100 {
        for stored in [one, other] {
            let source = PieceSource::Origin;
            for event in [Event::Stored { digest: stored, piece: PieceIndex(piece), source }, Event::Tick] {
                for action in lone.happen(event) {
                    if let Action::SayHave { digest, .. } = action {
                        moments.entry(lone.now).or_default().insert(digest);
                    }
                }
            }
            lone.now += Duration::from_millis(5);
        }
    }
    assert!((14..=21).contains(&moments.len()), "{} moments in a second", moments.len());
    let of_one = moments.values().filter(|blobs| blobs.len() == 1).count();
    assert!(of_one <= 2, "{of_one} of {} were of one blob", moments.len());
}

#[test]
fn who_has_a_piece_is_told_of_it_along_with_what_is_news_or_with_many_others() {
    let mut lone = Lone::new();
    lone.want(1, 0..512, Priority::Bulk);
    lone.peer(1, |piece| piece < 10);
    lone.peer(2, |_| true);
    let mut actions = Vec::new();
    for piece in 0..100 {
        actions.extend(lone.stored(piece, PieceSource::Origin));
        actions.extend(lone.pass(100));
    }
    let (first, second) = (told(&actions, 1), told(&actions, 2));
    assert_eq!(first[0], (0..=10).collect::<Vec<_>>());
    assert_eq!(second.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 32]);
}

#[test]
fn a_peer_is_invited_once_in_a_while_however_many_blobs_there_are() {
    let mut lone = Lone::with(256 * MIB, |piece| piece < 100);
    let (other, layout) = (Digest::of(b"other"), PieceLayout::new(256 * MIB).unwrap());
    lone.happen(Event::Opened { digest: other, layout, have: Bitfield::full(512), verified: true });
    lone.peer(1, |_| false);
    lone.happen(Event::Hello { peer: peer(1), digest: other, have: Bitfield::empty(512) });
    let served = |lone: &mut Lone, digest| {
        let mut actions = lone.happen(Event::Request { peer: peer(1), digest, piece: PieceIndex(0), urgent: false });
        actions.extend(lone.happen(Event::Sent { peer: peer(1) }));
        actions.iter().filter(|action| matches!(action, Action::SayFree { .. })).count()
    };
    let digest = lone.digest;
    assert_eq!(served(&mut lone, digest), 1);
    assert_eq!(served(&mut lone, other), 0, "it has just been invited");
    lone.pass(0);
    lone.now += Duration::from_millis(60);
    assert_eq!(served(&mut lone, other), 1);
}

#[test]
fn who_lacks_nothing_of_the_last_blob_is_invited_for_the_one_before() {
    let mut lone = Lone::with(256 * MIB, |piece| piece < 100);
    let (other, layout) = (Digest::of(b"other"), PieceLayout::new(256 * MIB).unwrap());
    lone.happen(Event::Opened { digest: other, layout, have: Bitfield::full(512), verified: true });
    lone.peer(1, |_| false);
    lone.happen(Event::Hello { peer: peer(1), digest: other, have: Bitfield::full(512) });
    for digest in [lone.digest, other] {
        lone.happen(Event::Request { peer: peer(1), digest, piece: PieceIndex(0), urgent: false });
        lone.happen(Event::Sent { peer: peer(1) });
    }
    let free = Action::SayFree { peer: peer(1), digest: lone.digest };
    assert!(lone.pass(60).contains(&free));
}

#[test]
fn a_slot_goes_to_who_has_least_counting_what_was_sent_to_it() {
    let mut lone = Lone::with(256 * MIB, |_| true);
    lone.peer(1, |piece| piece < 2);
    lone.peer(2, |piece| piece < 3);
    lone.peer(3, |piece| piece < 4);
    lone.peer(4, |piece| piece < 5);
    let request = |lone: &mut Lone, n: u8, piece: u32| {
        lone.happen(Event::Request { peer: peer(n), digest: lone.digest, piece: PieceIndex(piece), urgent: false })
    };
    let uploads = |actions: &[Action]| {
        let to = |action: &Action| match action {
            Action::Upload { peer, .. } => Some(peer.as_bytes()[0]),
            _ => None,
        };
        actions.iter().filter_map(to).collect::<Vec<u8>>()
    };
    // Both slots are taken, by the last two.
    for (n, piece) in [(3, 10), (3, 11), (4, 10), (4, 11), (1, 10), (1, 11), (2, 10)] {
        request(&mut lone, n, piece);
    }
    lone.happen(Event::Sent { peer: peer(3) });
    assert_eq!(uploads(&lone.happen(Event::Sent { peer: peer(3) })), [1, 1], "two pieces for who has least");
    lone.happen(Event::Cancel { peer: peer(2), digest: lone.digest, piece: PieceIndex(10) });
    (0..2).for_each(|_| drop(lone.happen(Event::Sent { peer: peer(1) })));
    for (n, piece) in [(3, 12), (3, 13), (1, 12), (2, 10)] {
        request(&mut lone, n, piece);
    }
    lone.happen(Event::Sent { peer: peer(3) });
    assert_eq!(uploads(&lone.happen(Event::Sent { peer: peer(3) })), [2], "the first one has four of them now");
}

#[test]
fn who_has_peers_enough_counts_on_those_that_it_cannot_reach() {
    for (peers, useless) in [(15, 1), (16, 0)] {
        let mut lone = Lone::new();
        lone.happen(Event::OriginKnown(lone.digest));
        lone.want(1, 0..512, Priority::Bulk);
        (1..=peers).for_each(|n| drop(lone.peer(n, |_| false)));
        lone.happen(Event::PeerUp(peer(40)));
        lone.happen(Event::NotHere { peer: peer(40), digest: lone.digest, piece: None });
        let asked = leases(&lone.found(1..=40));
        assert_eq!(asked.iter().map(|request| request.useless.len()).collect::<Vec<_>>(), [useless], "{peers} peers");
    }
}

#[test]
fn who_has_peers_enough_asks_for_more_of_them_less_often_until_one_is_gone() {
    let finds = |actions: &[Action]| actions.iter().filter(|action| matches!(action, Action::Find(_))).count();
    for (peers, asks) in [(15, true), (16, false)] {
        let mut lone = Lone::new();
        lone.want(1, 0..512, Priority::Bulk);
        (1..=peers).for_each(|n| drop(lone.peer(n, |_| false)));
        for _ in 0..4 {
            lone.found(1..=64);
            lone.pass(4000);
        }
        lone.found(1..=64);
        assert_eq!(finds(&lone.pass(4000)) == 1, asks, "{peers} peers");
        lone.happen(Event::PeerDown(peer(1)));
        assert_eq!(finds(&lone.pass(100)) == 1, !asks);
    }
}

#[test]
fn ticks_come_less_often_in_a_large_swarm_unless_somebody_waits() {
    let mut lone = Lone::new();
    assert_eq!(lone.swarm.tick_pause(), IDLE_TICK);
    lone.want(1, 0..512, Priority::Bulk);
    lone.found(1..=8);
    assert_eq!(lone.swarm.tick_pause(), TICK);
    lone.found(1..=64);
    assert_eq!(lone.swarm.tick_pause(), UNHURRIED_TICK);
    lone.want(2, 0..1, Priority::Fault);
    assert_eq!(lone.swarm.tick_pause(), TICK);
}

#[test]
fn a_blob_has_twice_as_many_peers_as_it_looks_for_at_most() {
    let mut lone = Lone::new();
    (1..=32).for_each(|n| drop(lone.peer(n, |_| false)));
    assert_eq!(lone.swarm.peers_of(&lone.digest), 32);
    let refused = Action::SayNotHere { peer: peer(33), digest: lone.digest, piece: None };
    assert!(lone.peer(33, |_| false).contains(&refused));
    assert_eq!(lone.swarm.peers_of(&lone.digest), 32);
}
