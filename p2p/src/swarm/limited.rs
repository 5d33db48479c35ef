//! A scheduler under speed limits, in simulated time.

use super::*;
use crate::bitfield::Bitfield;
use crate::layout::PieceLayout;

const MIB: u64 = 1 << 20;
const STEP: Duration = Duration::from_millis(20);

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

fn layout() -> PieceLayout {
    // 512 pieces of 64 KiB.
    PieceLayout::new(32 * MIB).unwrap()
}

fn only(node: u64) -> Rates {
    Rates { node, ..Rates::default() }
}

/// A scheduler with a blob of which `have` is here, and peers that have `theirs` of it.
fn swarm(digest: Digest, have: bool, theirs: bool, peers: u8) -> Swarm {
    let bits =
        |all: bool| if all { Bitfield::full(layout().piece_count()) } else { Bitfield::empty(layout().piece_count()) };
    let mut swarm = Swarm::new(peer(0), SwarmConfig::default());
    let opened = Event::Opened { digest, layout: layout(), have: bits(have), verified: have };
    let _ = swarm.on_event(Duration::ZERO, opened);
    let _ = swarm.on_event(Duration::ZERO, Event::Verifiable { digest, verifiable: true });
    for n in 1..=peers {
        let _ = swarm.on_event(Duration::ZERO, Event::PeerUp(peer(n)));
        let _ = swarm.on_event(Duration::ZERO, Event::Hello { peer: peer(n), digest, have: bits(theirs) });
    }
    swarm
}

/// Wants all of `digest`, and lets time pass with peers that answer every request at once; gives the bytes that came of each blob until each second's end.
fn download(swarm: &mut Swarm, digest: Digest, priority: Priority, seconds: u64) -> Vec<u64> {
    let (mut came, mut by_second) = (0, Vec::new());
    let mut actions = swarm.on_event(Duration::ZERO, Event::Want { digest, id: WantId(1), pieces: 0..512, priority });
    for second in 0..seconds {
        for step in 0..50 {
            let now = Duration::from_secs(second) + STEP * step;
            actions.extend(swarm.on_event(now, Event::Tick));
            while let Some(action) = actions.pop() {
                let Action::Request { peer, digest, piece, .. } = action else { continue };
                came += layout().piece_length();
                let stored = Event::Stored { digest, piece, source: PieceSource::Peer(peer) };
                actions.extend(swarm.on_event(now, stored));
            }
        }
        by_second.push(came);
    }
    by_second
}

#[test]
fn requests_keep_to_the_limit_to_the_byte() {
    let digest = Digest::of(b"blob");
    let mut swarm = swarm(digest, false, true, 3);
    swarm.set_limits(Duration::ZERO, Rates::default(), only(2 * MIB));
    let came = download(&mut swarm, digest, Priority::Bulk, 8);
    let piece = layout().piece_length();
    for (second, came) in (1..).zip(came) {
        let allowed = 2 * MIB * second + 2 * MIB / 4 + piece;
        assert!(came <= allowed, "{came} bytes in {second} s");
        // A tick's worth may still be due, and the piece that goes on credit.
        assert!(came + 2 * MIB / 50 + piece >= allowed, "{came} bytes in {second} s: less than was allowed");
    }
}

#[test]
fn a_read_has_the_whole_limit_and_the_background_what_is_left() {
    let (background, read) = (Digest::of(b"background"), Digest::of(b"read"));
    let mut swarm = swarm(background, false, true, 3);
    let opened = Event::Opened { digest: read, layout: layout(), have: Bitfield::empty(512), verified: false };
    let _ = swarm.on_event(Duration::ZERO, opened);
    let _ = swarm.on_event(Duration::ZERO, Event::Verifiable { digest: read, verifiable: true });
    let _ = swarm.on_event(Duration::ZERO, Event::Hello { peer: peer(1), digest: read, have: Bitfield::full(512) });
    swarm.set_limits(Duration::ZERO, Rates::default(), only(2 * MIB));
    let before = download(&mut swarm, background, Priority::Background, 2)[1];
    // 4 MiB are read: two seconds' worth.
    let want = Event::Want { digest: read, id: WantId(2), pieces: 0..64, priority: Priority::Fault };
    let now = Duration::from_secs(2);
    let mut actions = swarm.on_event(now, want);
    let (mut came, mut background_came, mut step) = (0, 0, 0);
    while came < 64 {
        while let Some(action) = actions.pop() {
            let Action::Request { peer, digest, piece, .. } = action else { continue };
            if digest == read {
                came += 1;
            } else {
                background_came += 1;
            }
            actions.extend(swarm.on_event(now, Event::Stored { digest, piece, source: PieceSource::Peer(peer) }));
        }
        step += 1;
        actions = swarm.on_event(now + STEP * step, Event::Tick);
    }
    assert!(before > 3 * MIB, "the background had all there was: {before} bytes");
    assert_eq!(background_came, 0, "pieces of the background went before those of the read");
    assert!(STEP * step <= Duration::from_millis(2200), "the read took {:?}", STEP * step);
}

#[test]
fn uploads_keep_to_the_limits_of_node_and_peer_and_urgent_ones_go_first() {
    let digest = Digest::of(b"blob");
    let mut swarm = swarm(digest, true, false, 2);
    let rates = Rates { node: 2 * MIB, per_blob: 0, per_peer: MIB };
    swarm.set_limits(Duration::ZERO, rates, Rates::default());
    let mut sent: BTreeMap<PeerId, u64> = BTreeMap::new();
    let mut next = BTreeMap::from([(peer(1), 0), (peer(2), 100)]);
    let mut first_urgent = None;
    for step in 0..200 {
        let now = STEP * step;
        let mut actions = swarm.on_event(now, Event::Tick);
        // Either always has four requests waiting; after two seconds the second peer's reads are blocked.
        for (&peer, piece) in &mut next {
            for _ in 0..4 {
                let urgent = step >= 100 && peer == self::peer(2);
                let request = Event::Request { peer, digest, piece: PieceIndex(*piece % 512), urgent };
                actions.extend(swarm.on_event(now, request));
                *piece += 1;
            }
        }
        while let Some(action) = actions.pop() {
            let Action::Upload { peer, piece, .. } = action else { continue };
            if step >= 100 && first_urgent.is_none() {
                first_urgent = Some((peer, piece));
            }
            *sent.entry(peer).or_default() += layout().piece_length();
            actions.extend(swarm.on_event(now, Event::Sent { peer }));
        }
    }
    let seconds = 4;
    let piece = layout().piece_length();
    for n in [1, 2] {
        let allowed = MIB * seconds + MIB / 4 + piece;
        assert!(sent[&peer(n)] <= allowed && sent[&peer(n)] + 2 * piece >= allowed - MIB / 50, "{sent:?}");
    }
    assert!(first_urgent.is_some());
    assert!(swarm.throttled().0 >= Duration::from_millis(3500), "{:?}", swarm.throttled());
    assert!(swarm.is_busy(), "what is held back needs ticks");
}
