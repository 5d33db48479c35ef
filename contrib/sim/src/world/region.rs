//! One half of the nodes, with a calendar of its own.
//!
//! What a node does to another takes the latency at least, so that both halves can be simulated at the same time for that
//! long. Nodes of even numbers are in one, those of odd numbers in the other one; so a zone's border belongs to one half.

use std::sync::Arc;
use std::time::Duration;

use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::swarm::{Action, Event, PieceSource, Priority, WantId};

use super::due::{Call, Due, HubDue, Message, Part};
use super::measured::Measured;
use super::node::{self, Node};
use super::plan::{Plan, nanos};
use crate::queue::Queue;

/// How many there are.
pub(super) const REGIONS: u32 = 2;
/// Hashing the last bytes of a blob.
const PROOF_NS: u64 = 1_000_000;
/// The first tick comes within that time.
const TICK_NS: u64 = 20_000_000;
/// How long a client collects announcements: so long, and up to twice as long.
const ANNOUNCE_BATCH_NS: u64 = 50_000_000;
/// The first nodes have their arrivals recorded, piece by piece.
pub(super) const RECORDED: usize = 16;

/// Half of the world.
pub(super) struct Region {
    pub(super) plan: Arc<Plan>,
    pub(super) number: u32,
    pub(super) now_ns: u64,
    pub(super) queue: Queue<Due>,
    /// Those whose number leaves `number` when divided by [`REGIONS`].
    pub(super) nodes: Vec<Node>,
    /// When the link into this half is free, if a border lies between them.
    pub(super) border_free_ns: u64,
    pub(super) random: fastrand::Rng,
    pub(super) unfinished: usize,
    /// For the other half.
    pub(super) across: Vec<(u64, Due)>,
    pub(super) to_hub: Vec<(u64, HubDue)>,
    /// From the other half and from the hub, since the last turn.
    pub(super) inbox: [Vec<(u64, Due)>; 2],
    /// Used by every event.
    actions: Vec<Action>,
    pub(super) measured: Measured,
}

impl Region {
    pub(super) fn new(plan: Arc<Plan>, number: u32, nodes: Vec<Node>, seed: u64) -> Self {
        let unfinished = nodes.iter().filter(|node| node.counts).count();
        Self {
            plan,
            number,
            now_ns: 0,
            queue: Queue::default(),
            nodes,
            border_free_ns: 0,
            random: fastrand::Rng::with_seed(seed),
            unfinished,
            across: Vec::new(),
            to_hub: Vec::new(),
            inbox: [Vec::new(), Vec::new()],
            actions: Vec::new(),
            measured: Measured::default(),
        }
    }

    /// Everything that is due before `end_ns`.
    pub(super) fn run(&mut self, end_ns: u64) {
        self.take_inbox();
        while let Some((at_ns, due)) = self.queue.pop_before(end_ns) {
            self.now_ns = at_ns;
            self.happens(due);
        }
    }

    fn take_inbox(&mut self) {
        for inbox in &mut self.inbox {
            inbox.drain(..).for_each(|(at_ns, due)| self.queue.push(at_ns, due));
        }
    }

    /// When something is due here next.
    pub(super) fn next_ns(&mut self) -> Option<u64> {
        self.take_inbox();
        self.queue.next_ns()
    }

    pub(super) fn node(&self, index: u32) -> &Node {
        &self.nodes[(index / REGIONS) as usize]
    }

    pub(super) fn node_mut(&mut self, index: u32) -> &mut Node {
        &mut self.nodes[(index / REGIONS) as usize]
    }

    /// Something is due at a node, which may be of the other half; then it takes the latency at least.
    pub(super) fn post(&mut self, at_ns: u64, node: u32, due: Due) {
        if node % REGIONS == self.number {
            self.queue.push(at_ns, due);
        } else {
            debug_assert!(at_ns >= self.now_ns + self.plan.latency_ns, "{due:?} comes too soon");
            self.across.push((at_ns, due));
        }
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Start(node) => self.start(node),
            Due::Tick(node) => self.tick(node),
            Due::Message { from, to, message } => self.message(from, to, message),
            Due::Arrives { to, bytes, load, last } => self.arrives(to, bytes, load, last),
            Due::Complete { to, load } => self.complete(to, load),
            Due::Uplink(node) => self.uplink(node),
            Due::Late { node, to, expected_ns, at_ns } => self.node_mut(node).up.late(to, expected_ns, at_ns),
            Due::Dialled { from, to } => self.dialled(from, to),
            Due::Linked { node, peer } => self.linked(node, peer),
            Due::LinkDown { node, peer } => self.link_down(node, peer),
            Due::Answer(node, event) => self.tell(node, *event),
            Due::Proof { node, blob } => self.tell(node, Event::Verified(self.plan.digests[usize::from(blob)])),
            Due::Death(node) => self.die(node),
        }
    }

    fn start(&mut self, index: u32) {
        let holds = (index as usize) < self.plan.scenario.holders;
        for blob in 0..self.plan.layouts.len() {
            let (digest, layout) = (self.plan.digests[blob], self.plan.layouts[blob]);
            let count = layout.piece_count();
            let have = if holds { Bitfield::full(count) } else { Bitfield::empty(count) };
            if holds {
                self.node_mut(index).have[blob] = have.clone();
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
    }

    fn tick(&mut self, index: u32) {
        self.tell(index, Event::Tick);
        let node = self.node(index);
        if node.alive {
            let pause_ns = nanos(node.swarm.tick_pause());
            self.queue.push(self.now_ns + pause_ns, Due::Tick(index));
        }
    }

    /// Tells a node's scheduler what happened and does what it says.
    pub(super) fn tell(&mut self, index: u32, event: Event) {
        let now_ns = self.now_ns;
        let mut actions = std::mem::take(&mut self.actions);
        let node = self.node_mut(index);
        if node.alive {
            node.swarm.on_event_into(Duration::from_nanos(now_ns), event, &mut actions);
            self.measured.events += 1;
            self.measured.note(now_ns, index, 1);
            for action in actions.drain(..) {
                self.perform(index, action);
            }
        }
        self.actions = actions;
    }

    fn perform(&mut self, me: u32, action: Action) {
        let plan = &*self.plan;
        match action {
            Action::Dial { peer, .. } => self.dial(me, node::index(peer)),
            Action::Close { peer, .. } => self.close(me, node::index(peer)),
            Action::Banned(_) => self.measured.bans += 1,
            Action::Upload { peer, digest, piece } => self.upload(me, node::index(peer), plan.part(&digest, piece)),
            Action::SayHello { peer, digest, have } => {
                self.say(me, peer, Message::Hello(plan.blob(&digest), Box::new(have)));
            }
            Action::SayHave { peer, digest, pieces } => {
                self.measured.haves += 1;
                self.say(me, peer, Message::Have(plan.blob(&digest), pieces));
            }
            Action::SayNotHere { peer, digest, piece } => {
                self.say(me, peer, Message::NotHere(plan.blob(&digest), piece.map(|piece| piece.0)));
            }
            Action::SayFree { peer, digest } => {
                self.measured.invitations += 1;
                self.say(me, peer, Message::Free(plan.blob(&digest)));
            }
            Action::Request { peer, digest, piece, urgent, hedge } => {
                self.measured.hedges += u64::from(hedge);
                self.measured.note(self.now_ns, me, u64::from(piece.0) << 8 | 2);
                self.say(me, peer, Message::Request(plan.part(&digest, piece), urgent));
            }
            Action::Cancel { peer, digest, piece } => self.say(me, peer, Message::Cancel(plan.part(&digest, piece))),
            Action::Announce { digest, holding } => {
                let batch_ns = ANNOUNCE_BATCH_NS + self.random.u64(..ANNOUNCE_BATCH_NS);
                self.ask(me, batch_ns, Call::Announce(plan.blob(&digest), holding));
            }
            Action::Find(digest) => self.ask(me, 0, Call::Find(plan.blob(&digest))),
            Action::Lease(request) => self.ask(me, 0, Call::Lease(Box::new(request))),
            Action::Settle(settlement) => self.ask(me, 0, Call::Settle(settlement)),
            Action::Report(peer) => self.ask(me, 0, Call::Report(peer)),
            Action::Transfer { digest, transfer, pieces, delay, .. } => {
                let begins = self.now_ns + nanos(delay + plan.scenario.first_byte) + plan.latency_ns;
                let blob = plan.blob(&digest);
                self.to_hub.push((begins, HubDue::Transfer { node: me, transfer, blob, pieces }));
            }
            // There are no seeds: nodes are not told to ask them.
            Action::AskSeed { .. } | Action::Fail { .. } => {}
        }
    }

    /// A call to the tracker, made after a while.
    fn ask(&mut self, me: u32, after_ns: u64, call: Call) {
        self.to_hub.push((self.now_ns + after_ns + self.plan.latency_ns, HubDue::Call(me, call)));
    }

    /// A piece was checked and stored.
    pub(super) fn stored(&mut self, index: u32, part: Part, source: PieceSource) {
        let (now_ns, blob, plan) = (self.now_ns, usize::from(part.blob), Arc::clone(&self.plan));
        let node = self.node_mut(index);
        if node.have[blob].set(PieceIndex(part.piece)) {
            if (index as usize) < plan.scenario.holders + RECORDED + plan.scenario.slow {
                let all = plan.layouts.iter().map(|layout| layout.piece_count() as usize).sum();
                let before: u32 = plan.layouts[..blob].iter().map(PieceLayout::piece_count).sum();
                node.arrivals_ns.resize(all, 0);
                node.arrivals_ns[(before + part.piece) as usize] = now_ns;
            }
            if node.have[blob].is_full() {
                let done = node.have.iter().all(Bitfield::is_full);
                node.done_ns = done.then_some(now_ns);
                let counts = done && node.counts;
                self.unfinished -= usize::from(counts);
                self.queue.push(now_ns + PROOF_NS, Due::Proof { node: index, blob: part.blob });
            }
        }
        self.measured.note(now_ns, index, u64::from(part.piece) << 8 | 3);
        self.tell(index, Event::Stored { digest: plan.digests[blob], piece: PieceIndex(part.piece), source });
    }
}
