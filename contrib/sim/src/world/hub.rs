//! The tracker and the origin: what all nodes share, with a calendar of its own.

use std::ops::Range;
use std::sync::Arc;

use lapwing_p2p::swarm::{Event, TransferId};

use super::due::{Due, HubDue, Load, Part};
use super::measured::Measured;
use super::plan::{Plan, nanos};
use super::region::REGIONS;
use super::tracker::Tracker;
use crate::pipe::{Pipe, ps_per_byte};
use crate::queue::Queue;

/// Bytes under way on one connection.
pub(super) const WINDOW: u64 = 256 << 10;
/// The origin's turns are no longer than that.
const ORIGIN_QUANTUM: u64 = 64 << 10;

/// To whom the origin sends, in which transfer.
type Fetch = (u32, TransferId);

/// Tracker and origin.
pub(super) struct Hub {
    pub(super) plan: Arc<Plan>,
    pub(super) now_ns: u64,
    pub(super) queue: Queue<HubDue>,
    origin: Pipe<Fetch, (Part, bool)>,
    pub(super) tracker: Tracker,
    pub(super) dead: Vec<bool>,
    pub(super) random: fastrand::Rng,
    /// For the nodes of each half.
    pub(super) out: [Vec<(u64, Due)>; REGIONS as usize],
    /// From each half, since the last turn.
    pub(super) inbox: [Vec<(u64, HubDue)>; REGIONS as usize],
    pub(super) measured: Measured,
}

impl Hub {
    pub(super) fn new(plan: Arc<Plan>, tracker: Tracker, seed: u64) -> Self {
        let scenario = &plan.scenario;
        let origin = Pipe::new(ps_per_byte(scenario.rates.origin), scenario.quantum.min(ORIGIN_QUANTUM), WINDOW);
        Self {
            now_ns: 0,
            queue: Queue::default(),
            origin,
            tracker,
            dead: vec![false; scenario.nodes],
            random: fastrand::Rng::with_seed(seed),
            out: Default::default(),
            inbox: Default::default(),
            measured: Measured::default(),
            plan,
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

    fn happens(&mut self, due: HubDue) {
        match due {
            HubDue::Call(node, call) => self.call(node, call),
            HubDue::Failed(node, event) => self.answer(node, *event),
            HubDue::OriginLink => self.origin_link(),
            HubDue::Transfer { node, transfer, blob, pieces } => self.transfer(node, transfer, blob, pieces),
            HubDue::Late { to, transfer, expected_ns, at_ns } => self.origin.late((to, transfer), expected_ns, at_ns),
            HubDue::Death(node) => self.dead[node as usize] = true,
            HubDue::Tick => {
                self.tracker.tick(self.now_ns);
                self.queue.push(self.now_ns + 1_000_000_000, HubDue::Tick);
            }
            HubDue::Outage(begins) => self.tracker.outage(begins, &self.plan.scenario, self.random.u64(..)),
        }
    }

    /// What goes to a node takes the latency.
    fn post(&mut self, node: u32, due: Due) {
        let at_ns = self.now_ns + self.plan.latency_ns;
        self.out[(node % REGIONS) as usize].push((at_ns, due));
    }

    pub(super) fn answer(&mut self, node: u32, event: Event) {
        self.post(node, Due::Answer(node, Box::new(event)));
    }

    /// What happens to a node by itself is known beforehand: its death.
    pub(super) fn schedule(&mut self) {
        let scenario = self.plan.scenario.clone();
        if let Some(outage) = &scenario.outage {
            self.queue.push(nanos(outage.start), HubDue::Outage(true));
            self.queue.push(nanos(outage.end), HubDue::Outage(false));
        }
        self.queue.push(0, HubDue::Tick);
    }

    fn transfer(&mut self, node: u32, transfer: TransferId, blob: u16, pieces: Range<u32>) {
        if self.dead[node as usize] {
            return;
        }
        let last = pieces.end - 1;
        for piece in pieces {
            let part = Part { blob, piece };
            let bytes = self.plan.piece_bytes(part);
            if let Some(at_ns) = self.origin.send(self.now_ns, (node, transfer), (part, piece == last), bytes) {
                self.queue.push(at_ns, HubDue::OriginLink);
            }
        }
        self.answer(node, Event::FirstByte { digest: self.plan.digests[usize::from(blob)], transfer });
    }

    fn origin_link(&mut self) {
        let Some(left) = self.origin.timer(self.now_ns) else { return };
        if let Some(quantum) = left {
            let ((to, transfer), bytes) = (quantum.key, quantum.bytes);
            if self.dead[to as usize] {
                self.origin.drop_flow(quantum.key);
            } else {
                self.measured.origin_bytes += bytes;
                let (part, last) = quantum.job;
                let expected_ns = self.now_ns + self.plan.latency_ns + self.plan.down_ns(bytes);
                self.origin.delivered(quantum.key, expected_ns);
                let load = Load::Fetched { transfer, part, last };
                self.post(to, Due::Arrives { to, bytes: bytes as u32, load, last: quantum.last });
            }
        }
        if let Some(at_ns) = self.origin.start(self.now_ns) {
            self.queue.push(at_ns, HubDue::OriginLink);
        }
    }
}
