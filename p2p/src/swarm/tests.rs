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
