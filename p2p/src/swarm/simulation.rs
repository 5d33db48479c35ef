//! Several schedulers against each other in simulated time: links with a rate, a tracker, an origin, and deaths.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use super::{Action, Event, FoundPeers, PieceSource, Priority, Swarm, SwarmConfig, WantId};
use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::discovery::{Holder, Holding, Lease, LeaseReply, LeaseRequest};
use crate::identity::PeerId;
use crate::layout::{PieceIndex, PieceLayout};

const MIB: u64 = 1 << 20;
const LATENCY: Duration = Duration::from_micros(500);
const TICK: Duration = Duration::from_millis(20);

struct SimNode {
    swarm: Swarm,
    alive: bool,
    /// Sends wrong bytes.
    corrupt: bool,
    /// Sends nothing, though its connections stay.
    mute: bool,
    /// To whom it has not sent what it should have.
    owed: Vec<PeerId>,
    uplink_free: Duration,
    opened: BTreeSet<Digest>,
    links: BTreeSet<usize>,
    arrivals: Vec<(Duration, Digest, PieceIndex, PieceSource)>,
}

struct Simulation {
    now: Duration,
    sequence: u64,
    due: BTreeMap<(Duration, u64), (usize, Event)>,
    nodes: Vec<SimNode>,
    layouts: BTreeMap<Digest, PieceLayout>,
    uplink_bytes_per_s: u64,
    origin_bytes_per_s: u64,
    origin_free: Duration,
    origin_pieces: BTreeMap<(Digest, PieceIndex), u32>,
    discovery_down: bool,
    holders: BTreeMap<Digest, BTreeMap<usize, Holding>>,
    live: BTreeMap<u64, (Digest, Range<u32>)>,
    fetched: BTreeSet<(Digest, u32)>,
    bans: Vec<(usize, PeerId)>,
    trace: Vec<(Duration, usize, Action)>,
}

fn id(node: usize) -> PeerId {
    PeerId::from_bytes([node as u8 + 1; 32])
}

fn index(peer: PeerId) -> usize {
    usize::from(peer.as_bytes()[0]) - 1
}

impl Simulation {
    fn new(nodes: usize, seed: u64) -> Self {
        let node = |index| SimNode {
            swarm: Swarm::new(id(index), SwarmConfig { seed: seed + index as u64, ..SwarmConfig::default() }),
            alive: true,
            corrupt: false,
            mute: false,
            owed: Vec::new(),
            uplink_free: Duration::ZERO,
            opened: BTreeSet::new(),
            links: BTreeSet::new(),
            arrivals: Vec::new(),
        };
        let mut simulation = Self {
            now: Duration::ZERO,
            sequence: 0,
            due: BTreeMap::new(),
            nodes: (0..nodes).map(node).collect(),
            layouts: BTreeMap::new(),
            uplink_bytes_per_s: 25 * MIB,
            origin_bytes_per_s: 25 * MIB,
            origin_free: Duration::ZERO,
            origin_pieces: BTreeMap::new(),
            discovery_down: false,
            holders: BTreeMap::new(),
            live: BTreeMap::new(),
            fetched: BTreeSet::new(),
            bans: Vec::new(),
            trace: Vec::new(),
        };
        for node in 0..nodes {
            simulation.after(TICK * (node as u32 + 1) / nodes as u32, node, Event::Tick);
        }
        simulation
    }

    fn blob(&mut self, name: &str, length: u64) -> Digest {
        let digest = Digest::of(name.as_bytes());
        self.layouts.insert(digest, PieceLayout::new(length).unwrap());
        digest
    }

    fn pieces(&self, digest: &Digest) -> u32 {
        self.layouts[digest].piece_count()
    }

    /// Opens a blob on a node, empty or complete, with or without an origin.
    fn open(&mut self, node: usize, digest: Digest, complete: bool, origin: bool) {
        let (layout, count) = (self.layouts[&digest], self.pieces(&digest));
        let have = if complete { Bitfield::full(count) } else { Bitfield::empty(count) };
        self.nodes[node].opened.insert(digest);
        self.happen(node, Event::Opened { digest, layout, have, verified: complete });
        if complete {
            self.happen(node, Event::Verified(digest));
        }
        if origin {
            self.happen(node, Event::OriginKnown(digest));
        }
    }

    fn want(&mut self, node: usize, digest: Digest, pieces: Range<u32>, priority: Priority) -> WantId {
        self.sequence += 1;
        let id = WantId(self.sequence);
        self.happen(node, Event::Want { digest, id, pieces, priority });
        id
    }

    fn want_all(&mut self, node: usize, digest: Digest, priority: Priority) {
        let pieces = 0..self.pieces(&digest);
        self.want(node, digest, pieces, priority);
    }

    fn after(&mut self, delay: Duration, node: usize, event: Event) {
        self.sequence += 1;
        self.due.insert((self.now + delay, self.sequence), (node, event));
    }

    fn happen(&mut self, node: usize, event: Event) {
        if !self.nodes[node].alive {
            return;
        }
        if let Event::Stored { digest, piece, source } = &event {
            self.nodes[node].arrivals.push((self.now, *digest, *piece, *source));
        }
        if matches!(event, Event::Tick) {
            self.after(TICK, node, Event::Tick);
        }
        for action in self.nodes[node].swarm.on_event(self.now, event) {
            self.trace.push((self.now, node, action.clone()));
            self.perform(node, action);
        }
    }

    fn step(&mut self) {
        let ((time, _), (node, event)) = self.due.pop_first().expect("ticks never end");
        self.now = time;
        match event {
            // A piece on its way: judged on arrival.
            Event::Stored { digest, piece, source: PieceSource::Peer(peer) } => {
                if self.nodes[node].swarm.expects(peer, &digest, piece) {
                    match self.nodes[index(peer)].corrupt {
                        true => self.happen(node, Event::Bad { peer, digest, piece }),
                        false => self.happen(node, event),
                    }
                }
            }
            event => self.happen(node, event),
        }
    }

    fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            assert!(self.now < limit, "not done after {limit:?}");
            self.step();
        }
    }

    fn has_all(&self, node: usize, digest: &Digest) -> bool {
        let mine = self.nodes[node].arrivals.iter().filter(|(_, of, ..)| of == digest);
        mine.map(|(_, _, piece, _)| piece).collect::<BTreeSet<_>>().len() as u32 == self.pieces(digest)
    }

    fn has(&self, node: usize, digest: &Digest, piece: u32) -> bool {
        self.nodes[node].arrivals.iter().any(|(_, of, arrived, _)| of == digest && arrived.0 == piece)
    }

    /// All of it was fetched from the origin before, and discovery counts on those who did.
    fn fetched_by_others(&mut self, digest: Digest) {
        let pieces = self.pieces(&digest);
        self.fetched.extend((0..pieces).map(|piece| (digest, piece)));
    }

    /// Waits for one blocked read after the other, and gives the longest wait.
    fn read_one_by_one(&mut self, node: usize, digest: Digest, pieces: Range<u32>) -> Duration {
        let mut longest = Duration::ZERO;
        for piece in pieces {
            let start = self.now;
            self.want(node, digest, piece..piece + 1, Priority::Fault);
            self.run_until(start + Duration::from_secs(60), |now| now.has(node, &digest, piece));
            longest = longest.max(self.now - start);
        }
        longest
    }

    /// How many pieces have come to the first node from that one.
    fn pieces_from(&self, node: usize) -> usize {
        let from_it = |arrival: &&(_, _, _, PieceSource)| arrival.3 == PieceSource::Peer(id(node));
        self.nodes[0].arrivals.iter().filter(from_it).count()
    }

    /// How often the first node asked that one for a piece.
    fn requests_to(&self, node: usize) -> usize {
        let asks = |action: &Action| matches!(action, Action::Request { peer, .. } if *peer == id(node));
        self.trace.iter().filter(|(_, by, action)| *by == 0 && asks(action)).count()
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].alive = false;
        self.holders.values_mut().for_each(|holders| {
            holders.remove(&node);
        });
        for other in std::mem::take(&mut self.nodes[node].links) {
            self.nodes[other].links.remove(&node);
            self.after(LATENCY, other, Event::PeerDown(id(node)));
        }
    }

    fn perform(&mut self, node: usize, action: Action) {
        let me = id(node);
        match action {
            Action::Dial { peer, .. } => self.dial(node, index(peer)),
            Action::Close { peer, .. } => {
                self.nodes[node].links.remove(&index(peer));
                self.nodes[index(peer)].links.remove(&node);
                self.after(LATENCY, index(peer), Event::PeerDown(me));
            }
            Action::SayHello { peer, digest, have } => {
                let event = match self.nodes[index(peer)].opened.contains(&digest) {
                    true => (index(peer), Event::Hello { peer: me, digest, have }),
                    false => (node, Event::NotHere { peer, digest, piece: None }),
                };
                self.after(LATENCY, event.0, event.1);
            }
            Action::SayHave { peer, digest, pieces } => {
                self.after(LATENCY, index(peer), Event::Have { peer: me, digest, pieces });
            }
            Action::SayFree { peer, digest } => self.after(LATENCY, index(peer), Event::Free { peer: me, digest }),
            Action::SayNotHere { peer, digest, piece } => {
                self.after(LATENCY, index(peer), Event::NotHere { peer: me, digest, piece });
            }
            Action::Request { peer, digest, piece, urgent, .. } => {
                self.after(LATENCY, index(peer), Event::Request { peer: me, digest, piece, urgent });
            }
            Action::Cancel { peer, digest, piece } => {
                self.after(LATENCY, index(peer), Event::Cancel { peer: me, digest, piece });
            }
            Action::Upload { peer, .. } if self.nodes[node].mute => self.nodes[node].owed.push(peer),
            Action::Upload { peer, digest, piece } => {
                let range = self.layouts[&digest].range(piece);
                let takes = Duration::from_secs(1) * (range.end - range.start) as u32 / self.uplink_bytes_per_s as u32;
                let left = self.nodes[node].uplink_free.max(self.now) + takes;
                self.nodes[node].uplink_free = left;
                self.after(left - self.now, node, Event::Sent { peer });
                let arrives = Event::Stored { digest, piece, source: PieceSource::Peer(me) };
                self.after(left + LATENCY - self.now, index(peer), arrives);
            }
            Action::Banned(peer) => self.bans.push((node, peer)),
            Action::Fail { .. } | Action::Report(_) => {}
            action => self.consult(node, action),
        }
    }

    fn dial(&mut self, node: usize, other: usize) {
        if !self.nodes[other].alive {
            return self.after(LATENCY * 2, node, Event::DialFailed(id(other)));
        }
        if self.nodes[node].links.insert(other) {
            self.nodes[other].links.insert(node);
            self.after(LATENCY * 2, node, Event::PeerUp(id(other)));
            self.after(LATENCY * 2, other, Event::PeerUp(id(node)));
        }
    }

    fn consult(&mut self, node: usize, action: Action) {
        match action {
            Action::Find(digest) => {
                let found = (!self.discovery_down).then(|| {
                    let holders = self.holders.get(&digest).into_iter().flatten().filter(|(other, _)| **other != node);
                    let address = "127.0.0.1:1".parse().unwrap();
                    let holder = |(&other, &holding): (&_, &_)| Holder::new(id(other), address, holding);
                    FoundPeers { holders: holders.map(holder).collect(), verifiable: true, metainfo_pending: false }
                });
                self.after(LATENCY * 2, node, Event::Found { digest, found });
            }
            Action::Announce { digest, holding } => {
                self.holders.entry(digest).or_default().insert(node, holding);
            }
            Action::Lease(request) => {
                let digest = request.digest;
                let reply = (!self.discovery_down).then(|| self.lease(&request));
                self.after(LATENCY * 2, node, Event::Leased { digest, reply });
            }
            Action::Settle(settlement) => {
                if let Some((digest, run)) = self.live.remove(&settlement.lease) {
                    self.fetched.extend(run.take(settlement.fetched as usize).map(|piece| (digest, piece)));
                }
            }
            Action::Transfer { digest, transfer, pieces, delay, .. } => {
                let mut at = self.origin_free.max(self.now + delay + LATENCY);
                self.after(at - self.now, node, Event::FirstByte { digest, transfer });
                for piece in pieces.map(PieceIndex) {
                    let range = self.layouts[&digest].range(piece);
                    at += Duration::from_secs(1) * (range.end - range.start) as u32 / self.origin_bytes_per_s as u32;
                    *self.origin_pieces.entry((digest, piece)).or_default() += 1;
                    self.after(at - self.now, node, Event::Stored { digest, piece, source: PieceSource::Origin });
                }
                self.origin_free = at;
                self.after(at - self.now, node, Event::TransferEnded { digest, transfer, outcome: Ok(()) });
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn lease(&mut self, request: &LeaseRequest) -> LeaseReply {
        let digest = request.digest;
        let taken = |piece: &u32| {
            self.fetched.contains(&(digest, *piece))
                || self.live.values().any(|(of, run)| *of == digest && run.contains(piece))
        };
        let mut wanted = request.urgent.iter().chain(&request.missing).flat_map(Clone::clone).filter(|p| !taken(p));
        let Some(first) = wanted.next().filter(|_| self.live.len() < 8) else {
            return match self.live.values().any(|(of, _)| *of == digest) {
                true => LeaseReply::Wait(Duration::from_millis(20)),
                false => LeaseReply::Exhausted,
            };
        };
        let count = if wanted.next() == Some(first + 1) { 2 } else { 1 };
        self.sequence += 1;
        let id = self.sequence;
        self.live.insert(id, (digest, first..first + count));
        LeaseReply::Granted(Lease::new(id, PieceIndex(first), count, Duration::from_secs(10)))
    }
}

#[test]
fn nodes_that_start_together_fetch_every_piece_once_and_near_the_bound() {
    for nodes in [1, 2, 4, 8, 16] {
        let mut simulation = Simulation::new(nodes, 1);
        let digest = simulation.blob("layer", 64 * MIB);
        for node in 0..nodes {
            simulation.open(node, digest, false, true);
            simulation.want_all(node, digest, Priority::Bulk);
        }
        simulation.run_until(Duration::from_secs(60), |now| (0..nodes).all(|node| now.has_all(node, &digest)));
        assert_eq!(simulation.origin_pieces.len() as u32, simulation.pieces(&digest));
        assert!(simulation.origin_pieces.values().all(|&times| times == 1), "a piece came from the origin twice");
        // One copy through the origin's link, N - 1 through the uplinks of all.
        let (origin, peers) = (64.0 / 25.0, 64.0 * (nodes - 1) as f64 / (25.0 * nodes as f64));
        let took = simulation.now.as_secs_f64();
        assert!(took < f64::max(origin, peers) * 1.1, "{nodes} nodes took {took} s");
    }
}

#[test]
fn what_a_dead_peer_owed_is_asked_of_others() {
    let mut simulation = Simulation::new(3, 2);
    let digest = simulation.blob("layer", 64 * MIB);
    simulation.open(1, digest, true, false);
    simulation.open(2, digest, true, false);
    simulation.open(0, digest, false, false);
    simulation.want_all(0, digest, Priority::Bulk);
    simulation.run_until(Duration::from_secs(10), |now| now.nodes[0].arrivals.len() > 20);
    let owed = |from: usize| {
        let from_it = |arrival: &&(_, _, _, PieceSource)| arrival.3 == PieceSource::Peer(id(from));
        simulation.nodes[0].arrivals.iter().filter(from_it).count()
    };
    assert!(owed(1) > 5 && owed(2) > 5, "both are used");
    simulation.kill(1);
    simulation.run_until(Duration::from_secs(10), |now| now.has_all(0, &digest));
}

#[test]
fn the_origin_brings_what_died_with_its_only_holder() {
    let mut simulation = Simulation::new(2, 3);
    let digest = simulation.blob("layer", 32 * MIB);
    simulation.open(1, digest, true, false);
    simulation.open(0, digest, false, true);
    simulation.want_all(0, digest, Priority::Bulk);
    simulation.run_until(Duration::from_secs(10), |now| now.nodes[0].arrivals.len() > 20);
    assert_eq!(simulation.origin_pieces.len(), 0, "a complete holder is there");
    simulation.kill(1);
    let had = simulation.nodes[0].arrivals.len();
    simulation.run_until(Duration::from_secs(20), |now| now.has_all(0, &digest));
    assert!(simulation.origin_pieces.len() + had <= simulation.pieces(&digest) as usize + 1);
}

#[test]
fn who_sends_wrong_pieces_is_banned_after_three() {
    let mut simulation = Simulation::new(3, 4);
    let digest = simulation.blob("layer", 64 * MIB);
    simulation.nodes[1].corrupt = true;
    simulation.open(1, digest, true, false);
    simulation.open(2, digest, true, false);
    simulation.open(0, digest, false, false);
    simulation.want_all(0, digest, Priority::Bulk);
    simulation.run_until(Duration::from_secs(20), |now| now.has_all(0, &digest));
    assert_eq!(simulation.bans, [(0, id(1))]);
    let asked = |action: &Action| matches!(action, Action::Request { peer, .. } if *peer == id(1));
    let requests = simulation.trace.iter().filter(|(_, node, action)| *node == 0 && asked(action)).count();
    assert!(requests <= 4, "{requests} requests went to a liar");
    let banned_at = simulation.trace.iter().position(|(_, _, action)| matches!(action, Action::Banned(_))).unwrap();
    let after = &simulation.trace[banned_at..];
    let dials = |action: &Action| matches!(action, Action::Dial { peer, .. } if *peer == id(1));
    assert!(!after.iter().any(|(_, _, action)| asked(action) || dials(action)), "a banned peer was asked again");
}

#[test]
fn a_holder_that_is_banned_here_does_not_starve_reads() {
    let mut simulation = Simulation::new(2, 14);
    let digest = simulation.blob("layer", 64 * MIB);
    simulation.nodes[1].corrupt = true;
    simulation.open(1, digest, true, false);
    simulation.open(0, digest, false, true);
    simulation.fetched_by_others(digest);
    let first = simulation.read_one_by_one(0, digest, 0..4);
    assert!(first < Duration::from_secs(4), "{first:?} until the origin was asked");
    assert_eq!(simulation.bans, [(0, id(1))]);
    let later = simulation.read_one_by_one(0, digest, 10..40);
    assert!(later < Duration::from_millis(500), "{later:?} for a read, though it is known that no peer can be used");
}

#[test]
fn a_holder_that_is_banned_here_does_not_starve_a_pull() {
    let mut simulation = Simulation::new(2, 15);
    let digest = simulation.blob("layer", 64 * MIB);
    simulation.nodes[1].corrupt = true;
    simulation.open(1, digest, true, false);
    simulation.open(0, digest, false, true);
    simulation.fetched_by_others(digest);
    simulation.want_all(0, digest, Priority::Bulk);
    simulation.run_until(Duration::from_secs(25), |now| now.has_all(0, &digest));
}

#[test]
fn a_holder_that_vanishes_without_a_word_delays_few_reads() {
    let mut simulation = Simulation::new(2, 16);
    let digest = simulation.blob("layer", 64 * MIB);
    simulation.open(1, digest, true, false);
    simulation.open(0, digest, false, true);
    simulation.fetched_by_others(digest);
    simulation.read_one_by_one(0, digest, 0..20);
    assert!(simulation.origin_pieces.is_empty(), "the holder gave all");
    simulation.nodes[1].alive = false;
    let first = simulation.read_one_by_one(0, digest, 20..21);
    assert!(first < Duration::from_secs(4), "{first:?} until the origin was asked");
    let later = simulation.read_one_by_one(0, digest, 30..60);
    assert!(later < Duration::from_millis(500), "{later:?} for a read after the peer was found silent");
}

/// Two holders of a blob and one who pulls it; after some pieces the first holder stops in the middle of one, and says
/// nothing any more. When that was.
fn stalled(simulation: &mut Simulation, length: u64) -> (Digest, Duration) {
    let digest = simulation.blob("layer", length);
    simulation.open(1, digest, true, false);
    simulation.open(2, digest, true, false);
    simulation.open(0, digest, false, false);
    simulation.want_all(0, digest, Priority::Bulk);
    let from_first = |now: &Simulation| now.pieces_from(1) > 10;
    simulation.run_until(Duration::from_secs(10), from_first);
    simulation.nodes[1].mute = true;
    (digest, simulation.now)
}

#[test]
fn a_peer_that_stops_in_the_middle_of_a_piece_holds_up_nothing() {
    let mut simulation = Simulation::new(3, 20);
    let (digest, since) = stalled(&mut simulation, 64 * MIB);
    let asked = simulation.requests_to(1);
    simulation.run_until(Duration::from_secs(30), |now| now.has_all(0, &digest));
    // The other one alone has an uplink of 25 MiB/s.
    let took = simulation.now - since;
    assert!(took < Duration::from_secs_f64(64.0 / 25.0 * 1.2), "{took:?}");
    assert!(simulation.requests_to(1) <= asked + 8, "it was asked again and again");
}

#[test]
fn a_peer_that_stalls_is_left_alone_and_has_its_full_share_again_once_it_sends() {
    let mut simulation = Simulation::new(3, 21);
    let (digest, since) = stalled(&mut simulation, 1024 * MIB);
    let until = |simulation: &mut Simulation, seconds: u64| {
        let end = since + Duration::from_secs(seconds);
        simulation.run_until(end + Duration::from_secs(1), |now| now.now >= end);
    };
    until(&mut simulation, 14);
    let (asked, had) = (simulation.requests_to(1), simulation.pieces_from(1));
    until(&mut simulation, 24);
    assert_eq!(simulation.requests_to(1), asked, "what was asked of it had timed out");
    simulation.nodes[1].mute = false;
    for peer in std::mem::take(&mut simulation.nodes[1].owed) {
        simulation.happen(1, Event::Sent { peer });
    }
    until(&mut simulation, 30);
    assert!(!simulation.has_all(0, &digest));
    let (first, second) = (simulation.pieces_from(1) - had, simulation.pieces_from(2));
    assert!(first > 10, "{first} pieces since, {second} from the other one");
}

#[test]
fn a_blocked_read_goes_before_a_pull() {
    let mut simulation = Simulation::new(2, 5);
    let digest = simulation.blob("layer", 256 * MIB);
    simulation.open(1, digest, true, false);
    simulation.open(0, digest, false, false);
    simulation.want_all(0, digest, Priority::Bulk);
    simulation.run_until(Duration::from_secs(10), |now| now.nodes[0].arrivals.len() > 50);
    let (asked, piece) = (simulation.now, simulation.pieces(&digest) - 3);
    simulation.want(0, digest, piece..piece + 1, Priority::Fault);
    let arrived = |now: &Simulation| now.nodes[0].arrivals.iter().any(|arrival| arrival.2 == PieceIndex(piece));
    simulation.run_until(Duration::from_secs(20), arrived);
    // Behind the four pieces that are on the way, not behind the hundreds that are wanted.
    let a_piece = Duration::from_millis(20);
    assert!(simulation.now - asked < a_piece * 7, "took {:?}", simulation.now - asked);
}

#[test]
fn what_nobody_waits_for_comes_too() {
    let mut simulation = Simulation::new(2, 6);
    let urgent = simulation.blob("urgent", 32 * MIB);
    let other = simulation.blob("other", 16 * MIB);
    for digest in [urgent, other] {
        simulation.open(1, digest, true, false);
        simulation.open(0, digest, false, false);
    }
    simulation.want_all(0, other, Priority::Background);
    simulation.want_all(0, urgent, Priority::Bulk);
    simulation.run_until(Duration::from_secs(20), |now| now.has_all(0, &urgent));
    assert!(!simulation.has_all(0, &other), "background completion does not overtake a pull");
    simulation.run_until(Duration::from_secs(20), |now| now.has_all(0, &other));
}

#[test]
fn what_nobody_wants_any_more_is_not_asked_for() {
    let mut simulation = Simulation::new(2, 7);
    let digest = simulation.blob("layer", 64 * MIB);
    simulation.open(1, digest, true, false);
    simulation.open(0, digest, false, false);
    let pieces = 0..simulation.pieces(&digest);
    let want = simulation.want(0, digest, pieces, Priority::Bulk);
    simulation.run_until(Duration::from_secs(10), |now| now.nodes[0].arrivals.len() > 20);
    simulation.happen(0, Event::Unwant { digest, id: want });
    let asked = simulation.trace.len();
    let end = simulation.now + Duration::from_secs(5);
    simulation.run_until(end + Duration::from_secs(1), |now| now.now >= end);
    let requests = |action: &Action| matches!(action, Action::Request { .. });
    assert!(!simulation.trace[asked..].iter().any(|(_, _, action)| requests(action)));
    assert!(!simulation.nodes[0].swarm.is_busy());
}

#[test]
fn a_dead_tracker_costs_copies_and_nothing_else() {
    let mut simulation = Simulation::new(3, 8);
    let digest = simulation.blob("layer", 16 * MIB);
    for node in 0..3 {
        simulation.open(node, digest, false, true);
        simulation.want_all(node, digest, Priority::Bulk);
    }
    simulation.run_until(Duration::from_secs(10), |now| now.nodes[0].arrivals.len() > 5);
    simulation.discovery_down = true;
    simulation.run_until(Duration::from_secs(30), |now| (0..3).all(|node| now.has_all(node, &digest)));
}

#[test]
fn equal_seeds_give_equal_traces() {
    let run = |seed| {
        let mut simulation = Simulation::new(4, seed);
        let digest = simulation.blob("layer", 16 * MIB);
        for node in 0..4 {
            simulation.open(node, digest, false, true);
            simulation.want_all(node, digest, Priority::Bulk);
        }
        simulation.run_until(Duration::from_secs(30), |now| (0..4).all(|node| now.has_all(node, &digest)));
        simulation.trace
    };
    assert_eq!(run(9), run(9));
    assert_ne!(run(9), run(10));
}
