//! Who is there, who holds what, who states what, who may fetch what: the tracker's whole state, without sockets or clock.
//!
//! `now` is the time since any fixed moment and never goes back. Every call names its [`Caller`] and registers it if
//! need be; a registration has a number, and a caller that sees another number than before sends all that it holds
//! again ([`Registry::sync`]), since the tracker restarted, or forgot it, or takes it for another process.
//!
//! Groups share nothing but the limits: each has its own nodes and blobs, and a call reaches those of its own group only.
//!
//! Addresses come from connections, never from requests, and nothing here is ever dialled. That a caller is who it says
//! is not proven here: it is as true as the transport makes it, so that answers are hints that peers check by key,
//! and blobs by digest.
//!
//! All of it is lost when the process ends; a [`Dump`] helps the next one over the time until the nodes have told it
//! everything again.

mod blob;
mod dump;
mod find;
mod group;
mod holders;
mod learn;
mod leasing;
mod nearest;
mod nearness;
mod neighbours;
mod node;
mod orders;
mod replicas;
mod seeds;
mod slab;
mod snapshot;
#[cfg(test)]
mod tests;
mod trials;
mod view;
mod votes;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Found, Holding, LeaseReply, LeaseRequest, Settlement, Statement};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::PieceLayout;

pub use self::dump::{Dump, DumpError, Restored};
use self::group::Group;
pub use self::learn::{Moment, Relation};
pub use self::nearness::{Place, distance};
pub use self::orders::Listed;
pub use self::snapshot::{Member, SwarmSnapshot, TrackerSnapshot};
pub use self::view::{BlobView, GroupCounts, HolderView, LeaseView, MemberFilter, Members};
use crate::lease::SettleError;
use crate::lease::sites::LeasePolicy;
use crate::limits::{
    MAX_BLOBS_PER_NODE, MAX_BOOKS, MAX_GROUPS, MAX_HOLDINGS, MAX_LENGTHS_PER_BLOB, MAX_STATEMENTS_PER_NODE,
};
use crate::seed::Seed;

/// Who calls, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its key.
    pub node: PeerId,
    /// Drawn when its process started.
    pub instance: u64,
    /// Its group.
    pub group: String,
    /// Where it stands; the address is that of its end of the connection.
    pub place: Place,
    /// Port of its piece wire; 0 if it serves nobody.
    pub port: u16,
    /// Whether it keeps blobs for others.
    pub seed: bool,
    /// Port of its seed service; 0 if it is no seed.
    pub seed_port: u16,
    /// The tracker's end of the connection. A holder that runs on the tracker's own machine is seen there on a loopback
    /// address, and this is where the caller reaches that machine.
    pub reached_at: IpAddr,
}

/// Changes when a node must send everything again.
pub type Registration = u64;

/// A request that was not carried out, and changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A limit of the tracker is reached.
    #[error("the tracker keeps at most {limit} {what}")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many at most.
        limit: usize,
    },
    /// A limit of the calling node is reached.
    #[error("node {node} may have at most {limit} {what}")]
    TooMany {
        /// Who.
        node: PeerId,
        /// Of what.
        what: &'static str,
        /// How many at most.
        limit: usize,
    },
    /// The settlement cannot be.
    #[error(transparent)]
    Settlement(#[from] SettleError),
}

impl Refusal {
    const fn blobs(node: PeerId) -> Self {
        Self::TooMany { node, what: "blobs", limit: MAX_BLOBS_PER_NODE }
    }

    const fn statements(node: PeerId) -> Self {
        Self::TooMany { node, what: "statements", limit: MAX_STATEMENTS_PER_NODE }
    }

    const fn holdings() -> Self {
        Self::Full { what: "holdings", limit: MAX_HOLDINGS }
    }

    const fn books() -> Self {
        Self::Full { what: "blobs under lease", limit: MAX_BOOKS }
    }

    const fn lengths() -> Self {
        Self::Full { what: "different lengths of one blob", limit: MAX_LENGTHS_PER_BLOB }
    }
}

/// What a tick did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    /// Nodes that were silent for too long.
    pub nodes: usize,
    /// Leases that outlived their term.
    pub leases: usize,
    /// Whether more has expired than one tick forgets: the next should come soon.
    pub backlog: bool,
}

/// Sums over all groups, which the limits are about.
#[derive(Debug, Default)]
struct Totals {
    nodes: usize,
    holdings: usize,
    books: usize,
    /// Numbers given out, to registrations and leases alike.
    numbers: u64,
    /// The first of these is one more. Random, so that numbers of an earlier life of the tracker mean nothing in this one.
    epoch: u64,
    /// How often a node was registered anew.
    registrations: u64,
    expired_leases: usize,
}

impl Totals {
    /// The number that is given out next.
    const fn upcoming(&self) -> u64 {
        self.epoch.wrapping_add(self.numbers + 1)
    }

    /// Gives out a number.
    const fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.epoch.wrapping_add(self.numbers)
    }
}

/// The tracker's state.
#[derive(Debug)]
pub struct Registry {
    groups: HashMap<String, Group>,
    totals: Totals,
    random: fastrand::Rng,
    policy: LeasePolicy,
}

impl Registry {
    /// An empty registry. `seed` decides all that is random in it, and must differ from one start to the next.
    pub fn new(seed: u64) -> Self {
        Self::with_policy(seed, LeasePolicy::default())
    }

    /// The same, with an operator's policy of leases.
    pub fn with_policy(seed: u64, policy: LeasePolicy) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let totals = Totals { epoch: random.u64(..), ..Totals::default() };
        Self { groups: HashMap::new(), totals, random, policy }
    }

    /// An empty one with the same policy, and numbers that mean nothing in this one.
    pub(crate) fn fresh(&mut self) -> Self {
        Self::with_policy(self.random.u64(..), self.policy.clone())
    }

    /// How often a node was registered anew, which then has everything to tell.
    pub(crate) const fn registrations(&self) -> u64 {
        self.totals.registrations
    }

    /// Registers `caller` or notes that it lives.
    pub fn heartbeat(&mut self, now: Duration, caller: &Caller) -> Result<Registration, Refusal> {
        self.enter(now, caller).map(|call| call.registration)
    }

    /// Changes to what `caller` holds; `None` withdraws.
    pub fn announce(
        &mut self,
        now: Duration,
        caller: &Caller,
        holdings: &[(Digest, Option<Holding>)],
    ) -> Result<Registration, Refusal> {
        let call = self.enter(now, caller)?;
        call.group.announce(call.totals, call.node, holdings)?;
        Ok(call.registration)
    }

    /// Replaces all that `caller` holds and states.
    pub fn sync(
        &mut self,
        now: Duration,
        caller: &Caller,
        holdings: &[(Digest, Holding)],
        statements: &[Statement],
    ) -> Result<Registration, Refusal> {
        let call = self.enter(now, caller)?;
        call.group.sync(call.totals, call.node, holdings, statements, call.random)?;
        Ok(call.registration)
    }

    /// Adds statements in `caller`'s name; a later one of the same kind and subject takes the earlier one's place.
    pub fn state(&mut self, now: Duration, caller: &Caller, statements: &[Statement]) -> Result<Registration, Refusal> {
        let call = self.enter(now, caller)?;
        call.group.state(call.node, statements, call.random)?;
        Ok(call.registration)
    }

    /// Who holds `digest`, or fetches it if it is small, nearest to `caller` first, and what is stated of it.
    pub fn find(&mut self, now: Duration, caller: &Caller, digest: Digest) -> Result<(Registration, Found), Refusal> {
        let call = self.enter(now, caller)?;
        let found = call.group.find(now, call.node, caller.reached_at, digest, call.random);
        Ok((call.registration, found))
    }

    /// The seeds of `caller`'s group that live, at most [`MAX_SEEDS`](crate::limits::MAX_SEEDS).
    pub fn seeds(&mut self, now: Duration, caller: &Caller) -> Result<(Registration, Vec<Seed>), Refusal> {
        let call = self.enter(now, caller)?;
        Ok((call.registration, call.group.live_seeds(now, call.node, caller.reached_at)))
    }

    /// Whether `caller` may fetch pieces from the origin. Nobody may while a live node holds all of the blob.
    pub fn lease(
        &mut self,
        now: Duration,
        caller: &Caller,
        request: &LeaseRequest,
        layout: PieceLayout,
    ) -> Result<(Registration, LeaseReply), Refusal> {
        let call = self.enter(now, caller)?;
        let reply = call.group.lease(now, call.totals, call.node, request, layout, call.random)?;
        Ok((call.registration, reply))
    }

    /// Ends a lease of `caller`.
    pub fn settle(&mut self, now: Duration, caller: &Caller, settlement: Settlement) -> Result<Registration, Refusal> {
        let call = self.enter(now, caller)?;
        call.group.settle(now, caller.node, &settlement)?;
        Ok(call.registration)
    }

    /// `peer` failed `caller`: it is kept from the caller's answers for a while, and from everybody's until it is heard
    /// from again, if another says so too, or else for seconds only.
    pub fn report(&mut self, now: Duration, caller: &Caller, peer: PeerId) -> Result<Registration, Refusal> {
        let call = self.enter(now, caller)?;
        call.group.report(now, call.node, peer);
        Ok(call.registration)
    }

    /// `caller` goes, and what it announced with it.
    pub fn leave(&mut self, caller: &Caller) {
        if let Some(group) = self.groups.get_mut(&caller.group) {
            group.leave(&mut self.totals, caller.node, caller.instance);
        }
    }

    /// Forgets what has expired. To be called about once a second.
    pub fn tick(&mut self, now: Duration) -> Expired {
        let before = self.totals.nodes;
        let mut backlog = false;
        for group in self.groups.values_mut() {
            backlog |= group.tick(now, &mut self.totals);
        }
        let totals = &mut self.totals;
        self.groups.retain(|_, group| {
            let empty = group.is_empty();
            if empty {
                totals.books -= group.books();
            }
            !empty
        });
        let leases = std::mem::take(&mut self.totals.expired_leases);
        Expired { nodes: before - self.totals.nodes, leases, backlog }
    }

    fn enter<'a>(&'a mut self, now: Duration, caller: &Caller) -> Result<Call<'a>, Refusal> {
        if !self.groups.contains_key(&caller.group) {
            if self.groups.len() >= MAX_GROUPS {
                return Err(Refusal::Full { what: "groups", limit: MAX_GROUPS });
            }
            self.groups.insert(caller.group.clone(), Group::new(self.policy.clone()));
        }
        let group = self.groups.get_mut(&caller.group).expect("it was there or has just been inserted");
        let next = self.totals.upcoming();
        let (node, registration) = group.register(now, &mut self.totals, caller, next)?;
        self.totals.numbers += u64::from(registration == next);
        self.totals.registrations += u64::from(registration == next);
        Ok(Call { group, totals: &mut self.totals, random: &mut self.random, node, registration })
    }
}

/// A call of a registered node.
struct Call<'a> {
    group: &'a mut Group,
    totals: &'a mut Totals,
    random: &'a mut fastrand::Rng,
    node: u32,
    registration: Registration,
}

/// Where an asker reaches a holder: the address the holder was seen on, unless both were seen from different sides.
fn reachable(holder: SocketAddr, asker: IpAddr, reached_at: IpAddr) -> SocketAddr {
    if holder.ip().is_loopback() && !asker.is_loopback() {
        return SocketAddr::new(reached_at, holder.port());
    }
    holder
}

/// Whether `runs` are ascending, disjoint, not empty, and end within a blob of `pieces`.
pub(crate) fn are_runs(runs: &[Range<u32>], pieces: u32) -> bool {
    let mut end = 0;
    runs.iter().all(|run| {
        let fits = run.start >= end && run.start < run.end && run.end <= pieces;
        end = run.end;
        fits
    })
}
