//! One scheduler alone, event by event.

use super::*;
use crate::bitfield::Bitfield;
use crate::layout::PieceLayout;

const START: Duration = Duration::from_secs(1);

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

fn swarm() -> Swarm {
    Swarm::new(peer(0), SwarmConfig::default())
}

/// Opens a blob, of whose pieces those in `have` are here, and gives one peer that has `theirs`.
fn open(swarm: &mut Swarm, name: &[u8], have: &[u32], theirs: &[u32]) -> (Digest, Vec<PieceIndex>) {
    let digest = Digest::of(name);
    let layout = PieceLayout::new(300 << 10).unwrap();
    let count = layout.piece_count();
    let bits = |pieces: &[u32]| {
        let mut bits = Bitfield::empty(count);
        pieces.iter().for_each(|&piece| assert!(piece < count && bits.set(PieceIndex(piece))));
        bits
    };
    let _ = swarm.on_event(START, Event::Opened { digest, layout, have: bits(have), verified: false });
    let _ = swarm.on_event(START, Event::PeerUp(peer(1)));
    let _ = swarm.on_event(START, Event::Hello { peer: peer(1), digest, have: bits(theirs) });
    (digest, (0..count).map(PieceIndex).collect())
}

#[test]
fn the_end_of_one_blob_may_set_another_going() {
    let mut swarm = swarm();
    let (digest, pieces) = open(&mut swarm, b"wanted", &[], &[0]);
    let _ = swarm.on_event(START, Event::Verifiable { digest, verifiable: true });
    let _ = swarm.on_event(START, Event::Unusable { peer: peer(1), digest, piece: pieces[0] });
    let want = Event::Want { digest, id: WantId(1), pieces: 0..1, priority: Priority::Bulk };
    let requested = |actions: &[Action]| {
        actions.iter().any(|action| matches!(action, Action::Request { peer: p, .. } if *p == peer(1)))
    };
    assert!(!requested(&swarm.on_event(START, want)), "an unusable peer was asked");
    let later = START + Duration::from_secs(60);
    assert!(requested(&swarm.on_event(later, Event::Closed(Digest::of(b"other")))));
}

/// What they sent could not be judged before the metainfo came: that was not their fault.
#[test]
fn peers_of_pieces_that_could_not_be_judged_are_asked_again_once_the_metainfo_is_there() {
    let mut swarm = swarm();
    let (digest, pieces) = open(&mut swarm, b"judged later", &[], &[0, 1]);
    let found = FoundPeers { holders: Vec::new(), verifiable: true, metainfo_pending: true };
    let _ = swarm.on_event(START, Event::Found { digest, found: Some(found) });
    let _ = swarm.on_event(START, Event::Unusable { peer: peer(1), digest, piece: pieces[0] });
    let want = Event::Want { digest, id: WantId(1), pieces: 0..1, priority: Priority::Bulk };
    let requested = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Request { .. }));
    assert!(!requested(&swarm.on_event(START, want)), "an unusable peer was asked");
    assert!(requested(&swarm.on_event(START, Event::Verifiable { digest, verifiable: true })));
}

/// Haves are not sent to who has the piece: who loses it must learn of them.
#[test]
fn who_loses_pieces_says_hello_again_and_is_told_who_has_them() {
    let mut swarm = swarm();
    let (digest, pieces) = open(&mut swarm, b"shared", &[0, 1, 2, 3], &[0, 1, 2, 3, 4]);
    let mut less = Bitfield::empty(pieces.len() as u32);
    less.set(pieces[1]);
    let told = swarm.on_event(START, Event::Hello { peer: peer(1), digest, have: less });
    let lost = vec![pieces[0], pieces[2], pieces[3]];
    assert!(told.contains(&Action::SayHave { peer: peer(1), digest, pieces: lost }), "{told:?}");
    let dropped = Event::Dropped { digest, pieces: vec![pieces[2]], origin_only: false };
    let mut have = Bitfield::empty(pieces.len() as u32);
    [0, 1, 3].into_iter().for_each(|piece| assert!(have.set(pieces[piece])));
    let said = swarm.on_event(START, dropped);
    assert!(said.contains(&Action::SayHello { peer: peer(1), digest, have }), "{said:?}");
}

#[test]
fn a_quarter_of_the_neighbours_is_far() {
    let mut swarm = swarm();
    let digest = Digest::of(b"popular");
    let layout = PieceLayout::new(300 << 10).unwrap();
    let have = Bitfield::empty(layout.piece_count());
    let _ = swarm.on_event(START, Event::Opened { digest, layout, have, verified: false });
    let _ = swarm.on_event(START, Event::Want { digest, id: WantId(1), pieces: 0..1, priority: Priority::Bulk });
    // Discovery names the nearest first.
    let address = "10.0.0.1:7000".parse().unwrap();
    let holders = (1..=64).map(|n| Holder::new(peer(n), address, Holding::Partial)).collect();
    let found = FoundPeers { holders, verifiable: true, metainfo_pending: false };
    let actions = swarm.on_event(START, Event::Found { digest, found: Some(found) });
    let dialled = actions.iter().filter_map(|action| match action {
        Action::Dial { peer, .. } => Some(peer.as_bytes()[0]),
        _ => None,
    });
    let (near, far): (Vec<u8>, Vec<u8>) = dialled.partition(|&n| n <= 32);
    assert_eq!((near.len(), far.len()), (12, 4), "{near:?} {far:?}");
}

#[test]
fn a_node_asks_an_idle_uploader_beyond_its_budget() {
    let mut swarm = swarm();
    let digest = Digest::of(b"large");
    let layout = PieceLayout::new(64 << 20).unwrap();
    let count = layout.piece_count();
    let have = Bitfield::empty(count);
    let _ = swarm.on_event(START, Event::Opened { digest, layout, have, verified: false });
    let _ = swarm.on_event(START, Event::Verifiable { digest, verifiable: true });
    for n in 1..=8 {
        let _ = swarm.on_event(START, Event::PeerUp(peer(n)));
        let _ = swarm.on_event(START, Event::Hello { peer: peer(n), digest, have: Bitfield::full(count) });
    }
    let requests = |actions: &[Action]| {
        let asked = actions.iter().filter_map(|action| match action {
            Action::Request { peer, .. } => Some(*peer),
            _ => None,
        });
        asked.collect::<Vec<_>>()
    };
    let want = Event::Want { digest, id: WantId(1), pieces: 0..count, priority: Priority::Bulk };
    let first = requests(&swarm.on_event(START, want));
    assert_eq!(first.len(), 8, "128 KiB each: a MiB");
    let idle = (1..=8).map(peer).find(|peer| first.iter().filter(|asked| *asked == peer).count() == 1).unwrap();
    assert!(requests(&swarm.on_event(START, Event::Tick)).is_empty(), "the budget is spent");
    assert_eq!(requests(&swarm.on_event(START, Event::Free { peer: idle, digest })), [idle]);
}

#[test]
fn an_idle_uploader_invites_those_that_have_least() {
    let mut swarm = swarm();
    let digest = Digest::of(b"here");
    let layout = PieceLayout::new(300 << 10).unwrap();
    let count = layout.piece_count();
    let _ = swarm.on_event(START, Event::Opened { digest, layout, have: Bitfield::full(count), verified: true });
    for n in 1..=6u8 {
        let mut theirs = Bitfield::empty(count);
        (1..u32::from(n).min(count)).for_each(|piece| assert!(theirs.set(PieceIndex(piece))));
        let _ = swarm.on_event(START, Event::PeerUp(peer(n)));
        let _ = swarm.on_event(START, Event::Hello { peer: peer(n), digest, have: theirs });
    }
    let _ = swarm.on_event(START, Event::Request { peer: peer(5), digest, piece: PieceIndex(0), urgent: false });
    let sent = swarm.on_event(START + Duration::from_secs(1), Event::Sent { peer: peer(5) });
    let invited = sent.iter().filter_map(|action| match action {
        Action::SayFree { peer, .. } => Some(peer.as_bytes()[0]),
        _ => None,
    });
    let invited: Vec<u8> = invited.collect();
    assert!(invited.starts_with(&[1, 2, 3]), "{invited:?}");
}

#[test]
fn a_complete_blob_that_no_peer_asks_for_may_be_closed_and_its_peers_are_told() {
    let mut swarm = swarm();
    let (digest, pieces) = open(&mut swarm, b"kept", &[0, 1, 2, 3, 4], &[]);
    let request = Event::Request { peer: peer(1), digest, piece: pieces[0], urgent: false };
    let _ = swarm.on_event(START, request);
    let _ = swarm.on_event(START, Event::Sent { peer: peer(1) });
    assert!(!swarm.is_quiet(&digest), "a peer that lacks pieces has just asked");
    let later = START + Duration::from_secs(70);
    let _ = swarm.on_event(later, Event::Have { peer: peer(1), digest, pieces: vec![pieces[0]] });
    assert!(swarm.is_quiet(&digest));
    let told = swarm.on_event(later, Event::Closed(digest));
    assert!(told.contains(&Action::SayNotHere { peer: peer(1), digest, piece: None }), "{told:?}");
}

/// A swarm in which peer 1 owes two pieces, or none, when its connection breaks.
fn broken_off(owes: bool) -> Swarm {
    let mut swarm = swarm();
    let (digest, _) = open(&mut swarm, b"owed", &[], &[0, 1]);
    let _ = swarm.on_event(START, Event::Verifiable { digest, verifiable: true });
    if owes {
        let want = Event::Want { digest, id: WantId(1), pieces: 0..2, priority: Priority::Bulk };
        let _ = swarm.on_event(START, want);
    }
    assert!(!reports(&swarm.on_event(START, Event::PeerDown(peer(1))), 1));
    swarm
}

/// Requests that waited behind slow peers were given up one after the other, and the only peer was not asked for the longer.
#[test]
fn requests_that_time_out_together_are_one_lapse() {
    let mut swarm = swarm();
    let (digest, _) = open(&mut swarm, b"slow", &[], &[0, 1, 2, 3, 4]);
    let _ = swarm.on_event(START, Event::Verifiable { digest, verifiable: true });
    let mut at = START;
    for piece in 0..2 {
        let want = Event::Want { digest, id: WantId(piece.into()), pieces: piece..piece + 1, priority: Priority::Bulk };
        at += Duration::from_millis(100);
        let asked = swarm.on_event(at, want);
        assert!(asked.iter().any(|action| matches!(action, Action::Request { .. })), "{piece}: {asked:?}");
    }
    let (mut given_up, mut asked_again) = (0, None);
    let end = START + Duration::from_secs(60);
    while asked_again.is_none() && at < end {
        at += Duration::from_millis(20);
        let actions = swarm.on_event(at, Event::Tick);
        given_up += actions.iter().filter(|action| matches!(action, Action::Cancel { .. })).count();
        asked_again = actions.iter().any(|action| matches!(action, Action::Request { .. })).then_some(at - START);
    }
    assert_eq!(given_up, 2);
    let asked_again = asked_again.expect("it is the only one that has them");
    assert!((25..27).contains(&asked_again.as_secs()), "{asked_again:?}");
}

fn reports(actions: &[Action], n: u8) -> bool {
    actions.contains(&Action::Report(peer(n)))
}

#[test]
fn a_peer_that_breaks_off_while_it_owes_pieces_and_stays_away_is_reported() {
    const LATER: Duration = START.saturating_add(Duration::from_millis(600));
    assert!(!reports(&broken_off(false).on_event(LATER, Event::Tick), 1), "it owed nothing");
    let mut swarm = broken_off(true);
    assert!(!reports(&swarm.on_event(START, Event::Tick), 1));
    assert!(reports(&swarm.on_event(LATER, Event::Tick), 1));
    assert!(!reports(&swarm.on_event(LATER, Event::Tick), 1), "once");
    assert!(reports(&swarm.on_event(LATER, Event::DialFailed(peer(2))), 2), "nobody is there");
}

/// Two nodes that dialled each other at once reported each other when one of the two connections was dropped, and were not
/// named to each other for a minute.
#[test]
fn a_peer_whose_connection_gives_way_to_another_is_not_reported() {
    const LATER: Duration = START.saturating_add(Duration::from_secs(3));
    let mut swarm = broken_off(true);
    let _ = swarm.on_event(START, Event::PeerUp(peer(1)));
    assert!(!reports(&swarm.on_event(LATER, Event::Tick), 1));
}

#[test]
fn a_blob_fetched_anew_is_served_again_once_it_is_proven() {
    let mut swarm = swarm();
    let (digest, pieces) = open(&mut swarm, b"doubted", &[0, 1, 2, 3, 4], &[]);
    let request = |piece| Event::Request { peer: peer(1), digest, piece, urgent: false };
    let _ = swarm.on_event(START, Event::Dropped { digest, pieces: pieces.clone(), origin_only: true });
    for &piece in &pieces {
        let _ = swarm.on_event(START, Event::Stored { digest, piece, source: PieceSource::Origin });
    }
    let refused = swarm.on_event(START, request(pieces[0]));
    assert!(refused.iter().any(|action| matches!(action, Action::SayNotHere { piece: Some(_), .. })), "{refused:?}");
    let told = swarm.on_event(START, Event::Verified(digest));
    let all = |action: &Action| matches!(action, Action::SayHave { pieces: have, .. } if *have == pieces);
    assert!(told.iter().any(all), "{told:?}");
    let served = swarm.on_event(START, request(pieces[0]));
    assert!(served.iter().any(|action| matches!(action, Action::Upload { .. })), "{served:?}");
}

#[test]
fn what_a_peer_tells_is_used_and_is_no_sign_that_discovery_lives() {
    let mut swarm = swarm();
    let digest = Digest::of(b"told");
    let layout = PieceLayout::new(300 << 10).unwrap();
    let have = Bitfield::empty(layout.piece_count());
    let _ = swarm.on_event(START, Event::Opened { digest, layout, have, verified: false });
    let _ = swarm.on_event(START, Event::Want { digest, id: WantId(1), pieces: 0..1, priority: Priority::Bulk });
    let _ = swarm.on_event(START, Event::Found { digest, found: None });
    let holders = vec![Holder::new(peer(7), "10.0.0.7:7000".parse().unwrap(), Holding::Complete)];
    let told = FoundPeers { holders, verifiable: false, metainfo_pending: true };
    let later = START + Duration::from_secs(2);
    let actions = swarm.on_event(later, Event::Told { digest, told });
    assert!(
        actions.iter().any(|action| matches!(action, Action::Dial { peer: p, .. } if *p == peer(7))),
        "{actions:?}"
    );
    let (named, _) = swarm.holders_of(&digest);
    assert_eq!(named.iter().map(|holder| holder.peer).collect::<Vec<_>>(), [peer(7)], "and passed on");
    assert!(!swarm.discovery_is_down(), "it was asked once, and said at once that it does not answer");
    let asked = swarm.on_event(START + Duration::from_secs(4), Event::Tick);
    assert!(asked.iter().any(|action| matches!(action, Action::Find(_))), "{asked:?}");
    let _ = swarm.on_event(START + Duration::from_secs(4), Event::Found { digest, found: None });
    assert!(swarm.discovery_is_down());
}
