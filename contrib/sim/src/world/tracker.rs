//! The tracker's end of the simulation: the production registry, asked over a link with a latency.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lapwing_discovery::lease::sites::{LeasePolicy, SitePolicy};
use lapwing_discovery::registry::{Caller, Place, Registration, Registry};
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::swarm::{Event, FoundPeers};

use super::node::Node;
use super::{Call, Due, World, nanos};
use crate::scenario::Scenario;

/// Between a node's signs of life.
const HEARTBEAT_NS: u64 = 15_000_000_000;
/// How long a client collects announcements: so long, and up to twice as long.
const ANNOUNCE_BATCH_NS: u64 = 50_000_000;

/// The tracker, and what its clients remember.
pub(super) struct Tracker {
    /// None while it is dead.
    registry: Option<Registry>,
    callers: Vec<Caller>,
    registrations: Vec<Option<Registration>>,
    /// By node and blob: what the node announced.
    announced: Vec<Vec<Option<Holding>>>,
}

impl Tracker {
    pub(super) fn new(scenario: &Scenario, seed: u64, ids: &[PeerId], nodes: &[Node]) -> Self {
        let caller = |(index, (&node, state)): (usize, (&PeerId, &Node))| Caller {
            node,
            instance: 1,
            group: String::new(),
            place: Place {
                zone: if state.zone == 0 { "near" } else { "far" }.into(),
                rack: "".into(),
                address: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | index as u32)),
            },
            port: 7000,
            seed: false,
            seed_port: 0,
            reached_at: IpAddr::V4(Ipv4Addr::new(10, 255, 255, 254)),
        };
        Self {
            registry: Some(registry(scenario, seed)),
            callers: ids.iter().zip(nodes).enumerate().map(caller).collect(),
            registrations: vec![None; ids.len()],
            announced: nodes.iter().map(|node| vec![None; node.have.len()]).collect(),
        }
    }

    pub(super) fn tick(&mut self, now_ns: u64) {
        if let Some(registry) = &mut self.registry {
            registry.tick(Duration::from_nanos(now_ns));
        }
    }

    pub(super) fn outage(&mut self, begins: bool, scenario: &Scenario, seed: u64) {
        self.registry = if begins { None } else { Some(registry(scenario, seed)) };
    }
}

/// A tracker that knows nothing yet; with two zones, the origin is in the first one.
fn registry(scenario: &Scenario, seed: u64) -> Registry {
    let zone = if scenario.zone_link.is_some() { "near" } else { "" };
    let usual = SitePolicy { copies: scenario.copies, zone: zone.into(), ..SitePolicy::default() };
    Registry::with_policy(seed, LeasePolicy { usual, ..LeasePolicy::default() })
}

impl World {
    pub(super) fn ask(&mut self, me: u32, call: Call) {
        self.queue.push(self.now_ns + nanos(self.scenario.latency), Due::Call(me, call));
    }

    pub(super) fn announce(&mut self, me: u32, blob: u16, holding: Holding) {
        let batch = ANNOUNCE_BATCH_NS + self.random.u64(..ANNOUNCE_BATCH_NS);
        self.queue.push(self.now_ns + batch, Due::Call(me, Call::Announce(blob, holding)));
    }

    /// A call reaches the tracker, or would.
    pub(super) fn call(&mut self, me: u32, call: Call) {
        if !self.nodes[me as usize].alive {
            return;
        }
        if matches!(call, Call::Heartbeat) {
            self.queue.push(self.now_ns + HEARTBEAT_NS, Due::Call(me, Call::Heartbeat));
        }
        let now = Duration::from_nanos(self.now_ns);
        let tracker = &mut self.tracker;
        let caller = &tracker.callers[me as usize];
        if let Call::Announce(blob, holding) = &call {
            tracker.announced[me as usize][usize::from(*blob)] = Some(*holding);
        }
        let Some(registry) = &mut tracker.registry else {
            let event = match call {
                Call::Find(blob) => Event::Found { digest: self.digests[usize::from(blob)], found: None },
                Call::Lease(request) => Event::Leased { digest: request.digest, reply: None },
                Call::Announce(..) | Call::Settle(_) | Call::Report(_) | Call::Heartbeat => return,
            };
            return self.answer(me, event);
        };
        let digest = |blob: u16| self.digests[usize::from(blob)];
        let (registration, event) = match call {
            Call::Find(blob) => {
                let Ok((registration, found)) = registry.find(now, caller, digest(blob)) else { return };
                // No statements are made here, so that nothing keeps a peer's pieces from being checked.
                let found = FoundPeers { holders: found.holders, verifiable: true, metainfo_pending: false };
                (Ok(registration), Some(Event::Found { digest: digest(blob), found: Some(found) }))
            }
            Call::Announce(blob, holding) => (registry.announce(now, caller, &[(digest(blob), Some(holding))]), None),
            Call::Lease(request) => {
                let layout = self.layouts[usize::from(
                    self.digests.iter().position(|known| *known == request.digest).unwrap_or_default() as u16,
                )];
                let Ok((registration, reply)) = registry.lease(now, caller, &request, layout) else { return };
                (Ok(registration), Some(Event::Leased { digest: request.digest, reply: Some(reply) }))
            }
            Call::Settle(settlement) => (registry.settle(now, caller, settlement), None),
            Call::Report(peer) => (registry.report(now, caller, peer), None),
            Call::Heartbeat => (registry.heartbeat(now, caller), None),
        };
        if let Ok(registration) = registration {
            self.registered(me, registration);
        }
        if let Some(event) = event {
            self.answer(me, event);
        }
    }

    /// A client that sees another registration than before lists everything again.
    fn registered(&mut self, me: u32, registration: Registration) {
        let tracker = &mut self.tracker;
        let before = tracker.registrations[me as usize].replace(registration);
        if before.is_none_or(|before| before == registration) {
            return;
        }
        let announced = tracker.announced[me as usize].iter().zip(&self.digests);
        let holdings: Vec<_> = announced.filter_map(|(holding, &digest)| Some((digest, (*holding)?))).collect();
        if let Some(registry) = &mut tracker.registry {
            let caller = &tracker.callers[me as usize];
            let listed = registry.sync(Duration::from_nanos(self.now_ns), caller, &holdings, &[]);
            listed.expect("a few holdings are below every limit of the tracker");
        }
    }

    fn answer(&mut self, me: u32, event: Event) {
        self.queue.push(self.now_ns + nanos(self.scenario.latency), Due::Answer(me, Box::new(event)));
    }
}
