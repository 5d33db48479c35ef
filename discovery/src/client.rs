//! A node's side: [`Discovery`] over gRPC.
//!
//! [`TrackerClient`] owns what this node holds and states, and one task per tracker (`client/link.rs`) that keeps the
//! tracker up to date. Announcing therefore never waits and never fails for want of a tracker: it is told as soon as
//! there is one, and told again after a restart. Questions go to the first tracker that answers, in the configured
//! order; while none does they fail at once, and the caller goes on without.
//!
//! Nothing is kept on disk: a node that restarts announces what its store holds.

mod answers;
mod config;
mod link;
mod seeds;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{
    Discovery, DiscoveryError, Found, Holder, Holding, LeaseReply, LeaseRequest, Replicas, SeedRequest, Settlement,
    Statement,
};
use lapwing_p2p::identity::PeerId;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use self::config::{ClientConfig, InvalidConfig};
use self::link::{Held, Link};
use crate::limits::{MAX_BLOBS_PER_NODE, MAX_STATEMENTS_PER_NODE};
use crate::{proto, wire};

/// What the client and its tasks share.
struct Shared {
    config: ClientConfig,
    caller: proto::Caller,
    held: Mutex<Held>,
    links: Vec<Arc<Link>>,
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        // Maps that are changed by single inserts and removals: nothing is left half done.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Talks to the trackers in one node's name. Dropping it ends its tasks; the trackers then forget the node within a
/// minute, or at once after [`TrackerClient::leave`].
pub struct TrackerClient {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    seeds: seeds::Seeds,
}

impl std::fmt::Debug for TrackerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrackerClient").field("trackers", &self.shared.config.trackers).finish_non_exhaustive()
    }
}

impl Drop for TrackerClient {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl TrackerClient {
    /// Starts to talk to the trackers, in the background; must be called within a tokio runtime. Trackers that are down
    /// are no error.
    pub fn new(config: ClientConfig) -> Result<Arc<Self>, InvalidConfig> {
        config.check()?;
        let mut links = Vec::new();
        for tracker in &config.trackers {
            let (endpoint, is_local) = config::endpoint(tracker)?;
            links.push(Arc::new(Link::new(tracker.clone(), is_local, endpoint.connect_lazy())));
        }
        let caller = proto::Caller {
            node: config.node.as_bytes().to_vec(),
            group: config.group.clone(),
            piece_port: config.piece_port.into(),
            zone: config.zone.clone(),
            rack: config.rack.clone(),
            instance: fastrand::u64(..),
            seed: config.seed,
            seed_port: config.seed_port.into(),
        };
        let shared = Arc::new(Shared { config, caller, held: Mutex::default(), links });
        let keep = |link: &Arc<Link>| {
            let (link, shared) = (link.clone(), shared.clone());
            tokio::spawn(async move { link.keep(shared).await })
        };
        let tasks = shared.links.iter().map(keep).collect();
        Ok(Arc::new(Self { shared, tasks, seeds: seeds::Seeds::default() }))
    }

    /// Takes this node off the trackers' lists, at once, and stops telling them anything: a later question would register
    /// it again.
    async fn leave_all(&self) -> Result<(), DiscoveryError> {
        self.tasks.iter().for_each(JoinHandle::abort);
        let leave = |link: &Arc<Link>| {
            let link = link.clone();
            async move {
                link.check_open()?;
                let request = proto::LeaveRequest { caller: Some(self.shared.caller.clone()) };
                link.call(self.shared.config.deadline, async { link.client().leave(request).await }).await.map(drop)
            }
        };
        any(join_all(self.shared.links.iter().map(leave)).await)
    }

    /// Whether the first tracker that answers knows all that this node holds and states.
    pub fn is_current(&self) -> bool {
        let first = self.shared.links.iter().find(|link| link.check_open().is_ok());
        first.is_some_and(|link| link.is_current())
    }

    /// Asks the first tracker that answers.
    async fn ask<T, R>(&self, call: impl Fn(Arc<Link>) -> R) -> Result<(Arc<Link>, T), DiscoveryError>
    where
        R: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = self.shared.config.deadline;
        let give_up_at = Instant::now() + 2 * deadline;
        let mut failed = Vec::new();
        for link in &self.shared.links {
            let left = give_up_at.saturating_duration_since(Instant::now()).min(deadline);
            let outcome = match link.check_open() {
                Ok(()) if left.is_zero() => break,
                Ok(()) => link.call(left, call(link.clone())).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(reply) => return Ok((link.clone(), reply)),
                Err(refused @ DiscoveryError::Refused { .. }) => return Err(refused),
                Err(unreachable) => failed.push(unreachable),
            }
        }
        Err(all_failed(failed))
    }

    /// Tells every tracker that answers; one that heard is enough.
    async fn tell<R>(&self, call: impl Fn(Arc<Link>) -> R) -> Result<(), DiscoveryError>
    where
        R: Future<Output = Result<tonic::Response<u64>, tonic::Status>>,
    {
        let deadline: Duration = self.shared.config.deadline;
        let calls = self.shared.links.iter().map(|link| {
            let reply = call(link.clone());
            async move {
                link.check_open()?;
                link.observe(link.call(deadline, reply).await?);
                Ok(())
            }
        });
        any(join_all(calls).await)
    }

    fn refused(&self, reason: String) -> DiscoveryError {
        DiscoveryError::Refused { tracker: self.shared.config.trackers.join(", "), reason }
    }
}

impl Discovery for TrackerClient {
    fn find(&self, digest: Digest) -> BoxFuture<'_, Result<Found, DiscoveryError>> {
        Box::pin(async move {
            let ask = |link: Arc<Link>| {
                let caller = Some(self.shared.caller.clone());
                let request = proto::FindRequest { caller, digest: digest.as_bytes().to_vec() };
                async move { link.client().find(request).await }
            };
            let (link, reply) = self.ask(ask).await?;
            link.observe(reply.registration);
            Ok(answers::found(&reply, digest, self.shared.config.node, link.is_local))
        })
    }

    /// Is recorded, and told to the trackers within a tenth of a second, or as soon as they answer.
    fn announce(&self, digest: Digest, holding: Option<Holding>) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(async move {
            let mut held = self.shared.held();
            let before = held.holdings.get(&digest).copied();
            if before == holding {
                return Ok(());
            }
            match holding {
                Some(_) if before.is_none() && held.holdings.len() >= MAX_BLOBS_PER_NODE => {
                    return Err(self.refused(format!("{digest}: a node announces at most {MAX_BLOBS_PER_NODE} blobs")));
                }
                Some(holding) => drop(held.holdings.insert(digest, holding)),
                None => drop(held.holdings.remove(&digest)),
            }
            for link in &self.shared.links {
                link.push_holding(digest, holding);
            }
            Ok(())
        })
    }

    /// Is recorded and told like an announcement.
    fn state(&self, statement: Statement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(async move {
            let mut held = self.shared.held();
            let key = (statement.kind, statement.subject);
            if held.statements.get(&key) == Some(&statement) {
                return Ok(());
            }
            if !held.statements.contains_key(&key) && held.statements.len() >= MAX_STATEMENTS_PER_NODE {
                let subject = statement.subject;
                return Err(
                    self.refused(format!("{subject}: a node makes at most {MAX_STATEMENTS_PER_NODE} statements"))
                );
            }
            held.statements.insert(key, statement);
            for link in &self.shared.links {
                link.push_statement(statement);
            }
            Ok(())
        })
    }

    fn replicas<'a>(&'a self, digests: &'a [Digest]) -> BoxFuture<'a, Result<Vec<Replicas>, DiscoveryError>> {
        Box::pin(async move {
            let ask = |link: Arc<Link>| {
                let caller = Some(self.shared.caller.clone());
                let digests = digests.iter().map(|digest| digest.as_bytes().to_vec()).collect();
                async move { link.client().replicas(proto::ReplicasRequest { caller, digests }).await }
            };
            let (link, reply) = self.ask(ask).await?;
            link.observe(reply.registration);
            let count = |count: &proto::ReplicaCount| Replicas { zone: count.zone, all: count.all };
            Ok(reply.counts.iter().take(digests.len()).map(count).collect())
        })
    }

    fn lease(&self, request: LeaseRequest) -> BoxFuture<'_, Result<LeaseReply, DiscoveryError>> {
        Box::pin(async move {
            let ask = |link: Arc<Link>| {
                let message = wire::lease::request_message(self.shared.caller.clone(), &request);
                async move { link.client().lease(message).await }
            };
            let (link, reply) = self.ask(ask).await?;
            link.observe(reply.registration);
            answers::leased(&reply, &request).ok_or_else(|| DiscoveryError::Refused {
                tracker: link.tracker.clone(),
                reason: format!("its answer to a lease of {} is none to what was asked", request.digest),
            })
        })
    }

    /// Is told to every tracker: those that did not grant the lease take no notice.
    fn settle(&self, settlement: Settlement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(self.tell(move |link| {
            let request = wire::lease::settlement_message(self.shared.caller.clone(), &settlement);
            async move { Ok(link.client().settle(request).await?.map(|reply| reply.registration)) }
        }))
    }

    /// The responsible seed is asked, and up to two more in its place.
    fn ask_seed(&self, request: SeedRequest) -> BoxFuture<'_, Result<Option<Holder>, DiscoveryError>> {
        Box::pin(async move { Ok(self.have_seed_fetch(&request).await) })
    }

    /// Is told to every tracker. They stop naming the peer: to this node for a minute, to others until it is heard from
    /// again.
    fn report(&self, peer: PeerId) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(self.tell(move |link| {
            let caller = Some(self.shared.caller.clone());
            let request = proto::ReportRequest { caller, peer: peer.as_bytes().to_vec() };
            async move { Ok(link.client().report(request).await?.map(|reply| reply.registration)) }
        }))
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(self.leave_all())
    }
}

/// One success is enough.
fn any(outcomes: Vec<Result<(), DiscoveryError>>) -> Result<(), DiscoveryError> {
    let mut failed = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) => failed.push(error),
        }
    }
    Err(all_failed(failed))
}

/// One error that names every tracker; a refusal tells more than silence.
fn all_failed(mut failed: Vec<DiscoveryError>) -> DiscoveryError {
    if let Some(refused) = failed.iter().position(|error| matches!(error, DiscoveryError::Refused { .. })) {
        return failed.swap_remove(refused);
    }
    let (mut trackers, mut reasons) = (Vec::new(), Vec::new());
    for error in failed {
        if let DiscoveryError::Unreachable { tracker, reason } = error {
            trackers.push(tracker);
            reasons.push(reason);
        }
    }
    DiscoveryError::Unreachable { tracker: trackers.join(", "), reason: reasons.join("; ") }
}
