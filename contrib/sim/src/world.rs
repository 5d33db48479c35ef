//! The simulated world: nodes, links, tracker and origin, and what happens when.

mod node;
mod peers;
mod tracker;

use std::ops::Range;
use std::time::Duration;

use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, LeaseRequest, Settlement};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::swarm::{Action, Event, PieceSource, Priority, Swarm, SwarmConfig, TransferId, WantId};

use self::node::Node;
use self::tracker::Tracker;
use crate::pipe::{Pipe, ps_per_byte};
use crate::queue::Queue;
use crate::scenario::Scenario;

/// Bytes under way on one connection.
const WINDOW: u64 = 256 << 10;
/// Hashing the last bytes of a blob.
const PROOF_NS: u64 = 1_000_000;
/// Between the ticks of a busy node, as in production.
const TICK_NS: u64 = 20_000_000;
/// The first nodes have their arrivals recorded, piece by piece.
const RECORDED: usize = 16;

/// A piece of one of the blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    blob: u16,
    piece: u32,
}

/// What one node says to another.
#[derive(Debug)]
enum Message {
    Hello(u16, Box<Bitfield>),
    Have(u16, Vec<PieceIndex>),
    Request(Part, bool),
    Cancel(Part),
    NotHere(u16, Option<u32>),
    Free(u16),
}

/// What a node asks of the tracker.
#[derive(Debug)]
enum Call {
    Find(u16),
    Announce(u16, Holding),
    Lease(Box<LeaseRequest>),
    Settle(Settlement),
    Report(PeerId),
    Heartbeat,
}

/// What is due.
#[derive(Debug)]
enum Due {
    Start(u32),
    Tick(u32),
    Message {
        from: u32,
        to: u32,
        message: Message,
    },
    /// A piece that a peer sent is complete at its receiver.
    Piece {
        from: u32,
        to: u32,
        part: Part,
    },
    /// A piece of a transfer is complete at its receiver.
    Fetched {
        to: u32,
        transfer: TransferId,
        part: Part,
        last: bool,
    },
    Uplink(u32),
    OriginLink,
    /// The origin begins to answer.
    Transfer {
        node: u32,
        transfer: TransferId,
        blob: u16,
        pieces: Range<u32>,
    },
    Dialled {
        from: u32,
        to: u32,
    },
    LinkUp {
        node: u32,
        peer: u32,
    },
    LinkDown {
        node: u32,
        peer: u32,
    },
    Call(u32, Call),
    Answer(u32, Box<Event>),
    Proof {
        node: u32,
        blob: u16,
    },
    Death(u32),
    TrackerTick,
    Outage(bool),
}

/// What the origin sends: to whom, in which transfer.
type Fetch = (u32, TransferId);

/// A run.
pub struct World {
    scenario: Scenario,
    now_ns: u64,
    queue: Queue<Due>,
    digests: Vec<Digest>,
    layouts: Vec<PieceLayout>,
    nodes: Vec<Node>,
    ids: Vec<PeerId>,
    origin: Pipe<Fetch, (Part, bool)>,
    /// When the link between the zones is free, into the second and into the first one.
    border_free_ns: [u64; 2],
    tracker: Tracker,
    random: fastrand::Rng,
    unfinished: usize,
    /// Used by every event.
    actions: Vec<Action>,
    measured: Measured,
}

/// What a run is measured by.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// When the nodes that live had everything, ascending, in seconds since their start.
    pub done_s: Vec<f64>,
    /// When the last one had, since the beginning.
    pub last_s: f64,
    /// Bytes that the origin sent.
    pub origin_bytes: u64,
    /// Bytes that went into the second zone and out of it.
    pub border_bytes: [u64; 2],
    /// Bytes of pieces that arrived where nobody waited for them any more, or were wrong.
    pub wasted_bytes: u64,
    /// Bytes of pieces that arrived.
    pub bytes: u64,
    /// Second requests for a piece.
    pub hedges: u64,
    /// Messages about new pieces.
    pub haves: u64,
    /// Messages about free upload slots.
    pub invitations: u64,
    /// Peers that were refused for wrong pieces.
    pub bans: u64,
    /// Events that schedulers were told of.
    pub events: u64,
    /// For the first nodes: when each piece was there, in seconds.
    pub arrivals_s: Vec<Vec<f64>>,
    /// Hash of everything that happened.
    pub trace: u64,
    /// Nodes that live and did not finish within the limit.
    pub unfinished: usize,
}

impl World {
    /// The world of a scenario at its beginning.
    pub fn new(scenario: Scenario) -> Self {
        let mut random = fastrand::Rng::with_seed(scenario.seed);
        let layouts: Vec<PieceLayout> = scenario
            .blobs
            .iter()
            .map(|&length| PieceLayout::new(length).expect("the blobs of scenarios are far below the limit"))
            .collect();
        let digests = (0..layouts.len()).map(|blob| Digest::of(&blob.to_be_bytes())).collect();
        let ids: Vec<PeerId> = (0..scenario.nodes).map(|index| node::name(&mut random, index)).collect();
        let rates = scenario.rates;
        let nodes = ids.iter().enumerate().map(|(index, &id)| {
            let config = SwarmConfig { seed: random.u64(..), policy: scenario.policy, ..SwarmConfig::default() };
            let slow = index >= scenario.holders && index < scenario.holders + scenario.slow;
            let up = ps_per_byte(if slow { rates.up / 100.0 } else { rates.up });
            Node::new(Swarm::new(id, config), Pipe::new(up, scenario.quantum, WINDOW), &layouts)
        });
        let mut nodes: Vec<Node> = nodes.collect();
        for (index, node) in nodes.iter_mut().enumerate() {
            node.corrupt = index >= scenario.nodes - scenario.corrupt;
            node.zone = u8::from(scenario.zone_link.is_some() && index % 2 == 1);
            node.counts = !node.corrupt && index >= scenario.holders;
        }
        let unfinished = nodes.iter().filter(|node| node.counts).count();
        let tracker = Tracker::new(&scenario, random.u64(..), &ids, &nodes);
        let mut world = Self {
            now_ns: 0,
            queue: Queue::default(),
            digests,
            layouts,
            ids,
            nodes,
            origin: Pipe::new(ps_per_byte(rates.origin), scenario.quantum.min(64 << 10), WINDOW),
            border_free_ns: [0; 2],
            tracker,
            random,
            unfinished,
            actions: Vec::new(),
            measured: Measured::default(),
            scenario,
        };
        world.schedule();
        world
    }

    fn schedule(&mut self) {
        let scenario = self.scenario.clone();
        for index in 0..scenario.nodes {
            let start = nanos(scenario.arrival_gap) * index as u64 + self.random.u64(..10_000_000);
            self.nodes[index].started_ns = start;
            self.queue.push(start, Due::Start(index as u32));
        }
        for index in 0..scenario.deaths {
            // Not those that hold everything, are slow or lie.
            let node = scenario.holders + scenario.slow + index * (scenario.nodes / 2) / scenario.deaths;
            self.queue.push(nanos(scenario.death(index)), Due::Death(node as u32));
        }
        if let Some(outage) = &scenario.outage {
            self.queue.push(nanos(outage.start), Due::Outage(true));
            self.queue.push(nanos(outage.end), Due::Outage(false));
        }
        self.queue.push(0, Due::TrackerTick);
    }

    /// Runs until every node that lives has everything, or the limit.
    pub fn run(mut self) -> Measured {
        let limit_ns = nanos(self.scenario.limit);
        while self.unfinished > 0
            && let Some((at_ns, due)) = self.queue.pop()
        {
            self.now_ns = at_ns;
            if at_ns > limit_ns {
                break;
            }
            self.happens(due);
        }
        self.finish()
    }

    fn finish(mut self) -> Measured {
        let seconds = |ns: u64| ns as f64 * 1e-9;
        let counted = self.nodes.iter().filter(|node| node.counts && node.alive);
        let done = counted.filter_map(|node| Some((node.started_ns, node.done_ns?)));
        let mut done: Vec<(u64, u64)> = done.collect();
        self.measured.last_s = done.iter().map(|(_, done)| seconds(*done)).fold(0.0, f64::max);
        done.sort_by_key(|(started, done)| done - started);
        self.measured.done_s = done.iter().map(|(started, done)| seconds(done - started)).collect();
        self.measured.unfinished = self.unfinished;
        let recorded = self.nodes.iter().skip(self.scenario.holders).filter(|node| node.counts && node.alive);
        self.measured.arrivals_s = recorded
            .take(RECORDED)
            .map(|node| node.arrivals_ns.iter().map(|&arrived| seconds(arrived)).collect())
            .collect();
        self.measured
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Start(node) => self.start(node),
            Due::Tick(node) => self.tick(node),
            Due::Message { from, to, message } => self.message(from, to, message),
            Due::Piece { from, to, part } => self.piece(from, to, part),
            Due::Fetched { to, transfer, part, last } => self.fetched(to, transfer, part, last),
            Due::Uplink(node) => self.uplink(node),
            Due::OriginLink => self.origin_link(),
            Due::Transfer { node, transfer, blob, pieces } => self.transfer(node, transfer, blob, pieces),
            Due::Dialled { from, to } => self.dialled(from, to),
            Due::LinkUp { node, peer } => self.tell(node, Event::PeerUp(self.ids[peer as usize])),
            Due::LinkDown { node, peer } => self.link_down(node, peer),
            Due::Call(node, call) => self.call(node, call),
            Due::Answer(node, event) => self.tell(node, *event),
            Due::Proof { node, blob } => self.tell(node, Event::Verified(self.digests[usize::from(blob)])),
            Due::Death(node) => self.die(node),
            Due::TrackerTick => {
                self.tracker.tick(self.now_ns);
                if self.scenario.progress {
                    self.tell_progress();
                }
                self.queue.push(self.now_ns + 1_000_000_000, Due::TrackerTick);
            }
            Due::Outage(begins) => self.tracker.outage(begins, &self.scenario, self.random.u64(..)),
        }
    }

    fn start(&mut self, index: u32) {
        let holds = (index as usize) < self.scenario.holders;
        for blob in 0..self.layouts.len() {
            let (digest, layout) = (self.digests[blob], self.layouts[blob]);
            let count = layout.piece_count();
            let have = if holds { Bitfield::full(count) } else { Bitfield::empty(count) };
            if holds {
                self.nodes[index as usize].have[blob] = have.clone();
            }
            self.tell(index, Event::Opened { digest, layout, have, verified: holds });
            if holds {
                self.tell(index, Event::Verified(digest));
                continue;
            }
            self.tell(index, Event::OriginKnown(digest));
            let want = Event::Want { digest, id: WantId(blob as u64), pieces: 0..count, priority: Priority::Bulk };
            self.tell(index, want);
        }
        self.queue.push(self.now_ns + self.random.u64(..TICK_NS), Due::Tick(index));
        self.queue.push(self.now_ns + self.random.u64(..15_000_000_000), Due::Call(index, Call::Heartbeat));
    }

    fn tick(&mut self, index: u32) {
        self.tell(index, Event::Tick);
        if self.nodes[index as usize].alive {
            let busy = self.nodes[index as usize].swarm.is_busy();
            self.queue.push(self.now_ns + if busy { TICK_NS } else { TICK_NS * 25 }, Due::Tick(index));
        }
    }

    /// Tells a node's scheduler what happened and does what it says.
    fn tell(&mut self, index: u32, event: Event) {
        let node = &mut self.nodes[index as usize];
        if !node.alive {
            return;
        }
        self.measured.events += 1;
        let mut actions = std::mem::take(&mut self.actions);
        node.swarm.on_event_into(Duration::from_nanos(self.now_ns), event, &mut actions);
        self.note(index, 1);
        for action in actions.drain(..) {
            self.perform(index, action);
        }
        self.actions = actions;
    }

    /// How far the nodes are, one line.
    #[allow(clippy::print_stderr, reason = "progress goes to standard error")]
    fn tell_progress(&self) {
        let live = || self.nodes.iter().filter(|node| node.alive && node.counts);
        let spread = |values: &mut Vec<u64>| {
            values.sort_unstable();
            [0, values.len() / 2, values.len().saturating_sub(1)].map(|at| values.get(at).copied().unwrap_or_default())
        };
        let pieces = live().map(|node| node.have.iter().map(|have| u64::from(have.count())).sum());
        let peers = live().map(|node| node.swarm.peers_of(&self.digests[0]) as u64);
        let idle = live().filter(|node| node.up.is_idle()).count();
        eprintln!(
            "{:>5} s: pieces {:?}, peers {:?} (least, median, most), {idle} idle uplinks, {} unfinished, {:.3} copies",
            self.now_ns / 1_000_000_000,
            spread(&mut pieces.collect()),
            spread(&mut peers.collect()),
            self.unfinished,
            self.measured.origin_bytes as f64 / self.scenario.bytes() as f64,
        );
    }

    /// Adds to the trace.
    fn note(&mut self, node: u32, what: u64) {
        let mixed = self.measured.trace ^ self.now_ns ^ u64::from(node) << 40 ^ what << 8;
        self.measured.trace = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    fn perform(&mut self, me: u32, action: Action) {
        match action {
            Action::Dial { peer, .. } => self.dial(me, node::index(peer)),
            Action::Close { peer, .. } => self.close(me, node::index(peer)),
            Action::Banned(_) => self.measured.bans += 1,
            Action::Upload { peer, digest, piece } => self.upload(me, node::index(peer), digest, piece),
            Action::SayHello { peer, digest, have } => {
                self.say(me, peer, Message::Hello(self.blob(&digest), Box::new(have)));
            }
            Action::SayHave { peer, digest, pieces } => {
                self.measured.haves += 1;
                self.say(me, peer, Message::Have(self.blob(&digest), pieces));
            }
            Action::SayNotHere { peer, digest, piece } => {
                self.say(me, peer, Message::NotHere(self.blob(&digest), piece.map(|piece| piece.0)));
            }
            Action::SayFree { peer, digest } => {
                self.measured.invitations += 1;
                self.say(me, peer, Message::Free(self.blob(&digest)));
            }
            Action::Request { peer, digest, piece, urgent, hedge } => {
                self.measured.hedges += u64::from(hedge);
                self.note(me, u64::from(piece.0) << 8 | 2);
                self.say(me, peer, Message::Request(self.part(&digest, piece), urgent));
            }
            Action::Cancel { peer, digest, piece } => self.say(me, peer, Message::Cancel(self.part(&digest, piece))),
            Action::Find(digest) => self.ask(me, Call::Find(self.blob(&digest))),
            Action::Announce { digest, holding } => self.announce(me, self.blob(&digest), holding),
            Action::Lease(request) => self.ask(me, Call::Lease(Box::new(request))),
            Action::Settle(settlement) => self.ask(me, Call::Settle(settlement)),
            Action::Transfer { digest, transfer, pieces, delay, .. } => {
                let begins = self.now_ns + nanos(delay + self.scenario.latency * 2 + self.scenario.first_byte);
                let blob = self.blob(&digest);
                self.queue.push(begins, Due::Transfer { node: me, transfer, blob, pieces });
            }
            Action::Report(peer) => self.ask(me, Call::Report(peer)),
            // There are no seeds: nodes are not told to ask them.
            Action::AskSeed { .. } | Action::Fail { .. } => {}
        }
    }

    fn blob(&self, digest: &Digest) -> u16 {
        let found = self.digests.iter().position(|known| known == digest);
        found.expect("nobody speaks of blobs that are not simulated") as u16
    }

    fn part(&self, digest: &Digest, piece: PieceIndex) -> Part {
        Part { blob: self.blob(digest), piece: piece.0 }
    }

    fn piece_bytes(&self, part: Part) -> u64 {
        let range = self.layouts[usize::from(part.blob)].range(PieceIndex(part.piece));
        range.end - range.start
    }

    /// A piece was checked and stored.
    fn stored(&mut self, index: u32, part: Part, source: PieceSource) {
        let (now_ns, blob) = (self.now_ns, usize::from(part.blob));
        let node = &mut self.nodes[index as usize];
        let fresh = node.have[blob].set(PieceIndex(part.piece));
        if fresh {
            if (index as usize) < self.scenario.holders + RECORDED + self.scenario.slow {
                node.arrivals_ns.resize(self.layouts.iter().map(|layout| layout.piece_count() as usize).sum(), 0);
                let before: u32 = self.layouts[..blob].iter().map(PieceLayout::piece_count).sum();
                node.arrivals_ns[(before + part.piece) as usize] = now_ns;
            }
            if node.have[blob].is_full() {
                self.queue.push(now_ns + PROOF_NS, Due::Proof { node: index, blob: part.blob });
                if node.have.iter().all(Bitfield::is_full) {
                    node.done_ns = Some(now_ns);
                    self.unfinished -= usize::from(node.counts);
                }
            }
        }
        self.note(index, u64::from(part.piece) << 8 | 3);
        let digest = self.digests[blob];
        self.tell(index, Event::Stored { digest, piece: PieceIndex(part.piece), source });
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
