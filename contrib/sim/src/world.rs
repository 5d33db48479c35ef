//! The simulated world: nodes, links, tracker and origin, and what happens when.
//!
//! * `region`, `peers`, `node`: the nodes, in two halves, and what goes between them
//! * `hub`, `tracker`: what all share: the origin and the tracker
//! * `lockstep`: how two threads run these three parts side by side
//! * `plan`, `due`, `measured`: what never changes, what is due, what is measured

mod due;
mod hub;
mod lockstep;
mod measured;
mod node;
mod peers;
mod plan;
mod region;
mod tracker;

use std::sync::{Arc, Mutex, MutexGuard};

use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::swarm::{Swarm, SwarmConfig};

pub use self::measured::Measured;

use self::due::{Call, Due, HubDue};
use self::hub::{Hub, WINDOW};
use self::lockstep::Lockstep;
use self::node::Node;
use self::plan::{Plan, nanos};
use self::region::{RECORDED, REGIONS, Region};
use self::tracker::Tracker;
use crate::pipe::{Pipe, ps_per_byte};
use crate::scenario::Scenario;

/// The halves and the hub.
const PARTS: usize = REGIONS as usize + 1;
const SECOND_NS: u64 = 1_000_000_000;

/// A run.
pub struct World {
    plan: Arc<Plan>,
    regions: [Mutex<Region>; REGIONS as usize],
    hub: Mutex<Hub>,
}

impl World {
    /// The world of a scenario at its beginning.
    pub fn new(scenario: Scenario) -> Self {
        let mut random = fastrand::Rng::with_seed(scenario.seed);
        let ids = (0..scenario.nodes).map(|index| node::name(&mut random, index)).collect();
        let plan = Arc::new(Plan::new(scenario, ids));
        let mut halves: [Vec<Node>; REGIONS as usize] = Default::default();
        for index in 0..plan.scenario.nodes {
            halves[index % REGIONS as usize].push(new_node(&plan, index, random.u64(..)));
        }
        let tracker = Tracker::new(&plan, random.u64(..));
        let mut hub = Hub::new(Arc::clone(&plan), tracker, random.u64(..));
        hub.schedule();
        let mut number = 0..;
        let regions = halves
            .map(|nodes| Region::new(Arc::clone(&plan), number.next().unwrap_or_default(), nodes, random.u64(..)));
        let mut world = Self { plan, regions: regions.map(Mutex::new), hub: Mutex::new(hub) };
        world.schedule(&mut random);
        world
    }

    fn schedule(&mut self, random: &mut fastrand::Rng) {
        let scenario = &self.plan.scenario;
        let mut hub = lock(&self.hub);
        for index in 0..scenario.nodes as u32 {
            let start = nanos(scenario.arrival_gap) * u64::from(index) + random.u64(..10_000_000);
            let mut region = lock(&self.regions[(index % REGIONS) as usize]);
            region.node_mut(index).started_ns = start;
            region.queue.push(start, Due::Start(index));
            hub.queue.push(start + random.u64(..15 * SECOND_NS), HubDue::Call(index, Call::Heartbeat));
        }
        for index in 0..scenario.deaths {
            // Not those that hold everything, are slow or lie.
            let node = (scenario.holders + scenario.slow + index * (scenario.nodes / 2) / scenario.deaths) as u32;
            let at_ns = nanos(scenario.death(index));
            lock(&self.regions[(node % REGIONS) as usize]).queue.push(at_ns, Due::Death(node));
            hub.queue.push(at_ns, HubDue::Death(node));
        }
    }

    /// Runs until every node that lives has everything, or the limit.
    pub fn run(self) -> Measured {
        let lockstep = Lockstep::default();
        let run = |part: usize, end_ns: u64| match self.regions.get(part) {
            Some(region) => lock(region).run(end_ns),
            None => lock(&self.hub).run(end_ns),
        };
        std::thread::scope(|scope| {
            let _end = lockstep.end();
            let two = self.plan.scenario.two_threads;
            if two {
                scope.spawn(|| lockstep.help(PARTS, &run));
            }
            while let Some(end_ns) = self.next_stretch() {
                match two {
                    true => lockstep.run(PARTS, end_ns, &run),
                    false => (0..PARTS).for_each(|part| run(part, end_ns)),
                }
            }
        });
        self.finish()
    }

    /// Exchanges what the parts have for each other. The end of the next stretch, in which nothing that happens in one part
    /// is felt in another; none when all is over.
    fn next_stretch(&self) -> Option<u64> {
        let mut regions = self.regions.each_ref().map(lock);
        let mut hub = lock(&self.hub);
        let hub = &mut *hub;
        if regions.iter().all(|region| region.unfinished == 0) {
            return None;
        }
        let [first, second] = &mut regions;
        std::mem::swap(&mut first.across, &mut second.inbox[0]);
        std::mem::swap(&mut second.across, &mut first.inbox[0]);
        for (number, region) in regions.iter_mut().enumerate() {
            std::mem::swap(&mut region.to_hub, &mut hub.inbox[number]);
            std::mem::swap(&mut hub.out[number], &mut region.inbox[1]);
        }
        let next = regions.iter_mut().filter_map(|region| region.next_ns()).chain(hub.next_ns()).min()?;
        let end_ns = next + self.plan.latency_ns;
        if self.plan.scenario.progress && next / SECOND_NS != end_ns / SECOND_NS {
            self.tell_progress(end_ns, &regions, hub);
        }
        (next <= nanos(self.plan.scenario.limit)).then_some(end_ns)
    }

    fn finish(self) -> Measured {
        let seconds = |ns: u64| ns as f64 * 1e-9;
        let regions = self.regions.each_ref().map(lock);
        let mut measured = lock(&self.hub).measured.clone();
        regions.iter().for_each(|region| measured.add(&region.measured));
        let nodes = (0..self.plan.scenario.nodes as u32).map(|index| regions[(index % REGIONS) as usize].node(index));
        let counted = nodes.clone().filter(|node| node.counts && node.alive);
        let done = counted.filter_map(|node| Some((node.started_ns, node.done_ns?)));
        let mut done: Vec<(u64, u64)> = done.collect();
        measured.last_s = done.iter().map(|(_, done)| seconds(*done)).fold(0.0, f64::max);
        done.sort_by_key(|(started, done)| done - started);
        measured.done_s = done.iter().map(|(started, done)| seconds(done - started)).collect();
        measured.unfinished = regions.iter().map(|region| region.unfinished).sum();
        let recorded = nodes.skip(self.plan.scenario.holders).filter(|node| node.counts && node.alive);
        measured.arrivals_s = recorded
            .take(RECORDED)
            .map(|node| node.arrivals_ns.iter().map(|&arrived| seconds(arrived)).collect())
            .collect();
        measured
    }

    /// How far the nodes are, one line.
    #[allow(clippy::print_stderr, reason = "progress goes to standard error")]
    fn tell_progress(&self, now_ns: u64, regions: &[MutexGuard<'_, Region>], hub: &Hub) {
        let nodes = || regions.iter().flat_map(|region| &region.nodes).filter(|node| node.alive && node.counts);
        let spread = |values: &mut Vec<u64>| {
            values.sort_unstable();
            [0, values.len() / 2, values.len().saturating_sub(1)].map(|at| values.get(at).copied().unwrap_or_default())
        };
        let pieces = nodes().map(|node| node.have.iter().map(|have| u64::from(have.count())).sum());
        let peers = nodes().map(|node| node.swarm.peers_of(&self.plan.digests[0]) as u64);
        let idle = nodes().filter(|node| node.up.is_idle()).count();
        eprintln!(
            "{:>5} s: pieces {:?}, peers {:?} (least, median, most), {idle} idle uplinks, {} unfinished, {:.3} copies",
            now_ns / SECOND_NS,
            spread(&mut pieces.collect()),
            spread(&mut peers.collect()),
            regions.iter().map(|region| region.unfinished).sum::<usize>(),
            hub.measured.origin_bytes as f64 / self.plan.scenario.bytes() as f64,
        );
    }
}

fn new_node(plan: &Plan, index: usize, seed: u64) -> Node {
    let scenario = &plan.scenario;
    let config = SwarmConfig { seed, policy: scenario.policy, ..SwarmConfig::default() };
    let slow = index >= scenario.holders && index < scenario.holders + scenario.slow;
    let up = ps_per_byte(if slow { scenario.rates.up / 100.0 } else { scenario.rates.up });
    let corrupt = index >= scenario.nodes - scenario.corrupt;
    let have = plan.layouts.iter().map(|layout| Bitfield::empty(layout.piece_count())).collect();
    let counts = !corrupt && index >= scenario.holders;
    let swarm = Swarm::new(plan.ids[index], config);
    Node { corrupt, counts, ..Node::new(swarm, Pipe::new(up, scenario.quantum, WINDOW), have) }
}

fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().expect("no thread has panicked, or this one is to follow it")
}
