//! The tracker's end of the simulation: the production registry, asked over a link with a latency.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use lapwing_discovery::lease::sites::{LeasePolicy, SitePolicy};
use lapwing_discovery::registry::{Caller, Place, Registration, Registry};
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::swarm::{Event, FoundPeers};

use super::due::{Call, HubDue};
use super::hub::Hub;
use super::plan::{Plan, nanos};
use crate::scenario::Scenario;

/// Between a node's signs of life.
const HEARTBEAT_NS: u64 = 15_000_000_000;

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
    pub(super) fn new(plan: &Plan, seed: u64) -> Self {
        let (scenario, ids) = (&plan.scenario, &plan.ids);
        let caller = |(index, &node): (usize, &PeerId)| Caller {
            node,
            instance: 1,
            group: String::new(),
            place: Place {
                zone: if plan.zone(index as u32) == 0 { "near" } else { "far" }.into(),
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
            callers: ids.iter().enumerate().map(caller).collect(),
            registrations: vec![None; ids.len()],
            announced: vec![vec![None; plan.digests.len()]; ids.len()],
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

impl Hub {
    /// A call reaches the tracker, or would.
    pub(super) fn call(&mut self, me: u32, call: Call) {
        if self.dead[me as usize] {
            return;
        }
        if matches!(call, Call::Heartbeat) {
            self.queue.push(self.now_ns + HEARTBEAT_NS, HubDue::Call(me, Call::Heartbeat));
        }
        let (now, plan) = (Duration::from_nanos(self.now_ns), Arc::clone(&self.plan));
        let tracker = &mut self.tracker;
        let caller = &tracker.callers[me as usize];
        if let Call::Announce(blob, holding) = &call {
            tracker.announced[me as usize][usize::from(*blob)] = Some(*holding);
        }
        let digest = |blob: u16| plan.digests[usize::from(blob)];
        let Some(registry) = &mut tracker.registry else {
            let event = match call {
                Call::Find(blob) => Event::Found { digest: digest(blob), found: None },
                Call::Lease(request) => Event::Leased { digest: request.digest, reply: None },
                Call::Announce(..) | Call::Settle(_) | Call::Report(_) | Call::Heartbeat => return,
            };
            let at_ns = self.now_ns + nanos(plan.scenario.hangs);
            return self.queue.push(at_ns, HubDue::Failed(me, Box::new(event)));
        };
        let (registration, event) = match call {
            Call::Find(blob) => {
                self.measured.questions[0] += 1;
                let Ok((registration, found)) = registry.find(now, caller, digest(blob)) else { return };
                // No statements are made here, so that nothing keeps a peer's pieces from being checked.
                let found = FoundPeers { holders: found.holders, verifiable: true, metainfo_pending: false };
                (Ok(registration), Some(Event::Found { digest: digest(blob), found: Some(found) }))
            }
            Call::Announce(blob, holding) => (registry.announce(now, caller, &[(digest(blob), Some(holding))]), None),
            Call::Lease(request) => {
                self.measured.questions[1] += 1;
                let layout = plan.layouts[usize::from(plan.blob(&request.digest))];
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
        let announced = tracker.announced[me as usize].iter().zip(&self.plan.digests);
        let holdings: Vec<_> = announced.filter_map(|(holding, &digest)| Some((digest, (*holding)?))).collect();
        if let Some(registry) = &mut tracker.registry {
            let caller = &tracker.callers[me as usize];
            let listed = registry.sync(Duration::from_nanos(self.now_ns), caller, &holdings, &[]);
            listed.expect("a few holdings are below every limit of the tracker");
        }
    }
}
