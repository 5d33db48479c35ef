//! A node's side: [`Discovery`] over gRPC.
//!
//! [`TrackerClient`] owns what this node holds and states, and one task per tracker (`client/link.rs`) that keeps the
//! tracker up to date. Announcing therefore never waits and never fails for want of a tracker: it is told as soon as
//! there is one, and told again after a restart. Of several trackers two own each digest (`client/owners.rs`): they are told
//! of it and asked about it, one after the other where one fails or is slow (`client/asking.rs`). While both are down any
//! other is asked, which knows nothing but grants leases; while none answers, questions fail at once, and the caller goes
//! on without.
//!
//! Where the trackers are named may change at any time (`client/watching.rs`).
//!
//! Nothing is kept on disk: a node that restarts announces what its store holds.

mod answers;
mod asking;
mod budget;
mod config;
mod held;
mod leasing;
mod link;
mod links;
mod orders;
mod owners;
mod pace;
mod seeds;
mod source;
mod trials;
mod watching;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, join_all};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{
    Discovery, DiscoveryError, Found, Holder, Holding, LeaseReply, LeaseRequest, Order, OrderRequest, OrderStand,
    PreheatRequest, Preheated, Replicas, SeedRefusal, SeedRequest, Settlement, Statement, StatementKind, TrialReport,
};
use lapwing_p2p::identity::PeerId;
use tokio::time::{Instant, timeout};

use self::asking::all_failed;
use self::budget::RetryBudget;
pub(crate) use self::config::endpoint;
pub use self::config::{ClientConfig, InvalidConfig};
use self::held::{Held, Noted};
use self::leasing::Granted;
use self::link::Link;
use self::links::{Links, Tasks};
pub use self::source::{SourceError, TrackerSource};
use crate::limits::{FIND_HEDGE, MAX_BLOBS_PER_NODE};
use crate::{proto, traced};

/// What the client and its tasks share.
struct Shared {
    config: ClientConfig,
    caller: proto::Caller,
    held: Mutex<Held>,
    /// Replaced only while `held` is locked.
    links: Mutex<Arc<Links>>,
    tasks: Mutex<Tasks>,
    budget: Arc<Mutex<RetryBudget>>,
    /// Who granted the leases under way.
    granted: Mutex<Granted>,
    heard: orders::Heard,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps and counts that are changed in single steps: nothing is left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }

    fn links(&self) -> Arc<Links> {
        lock(&self.links).clone()
    }
}

/// Talks to the trackers in one node's name. Dropping it ends its tasks; the trackers then forget the node within a
/// minute, or at once after [`TrackerClient::leave`].
pub struct TrackerClient {
    shared: Arc<Shared>,
    seeds: seeds::Seeds,
}

impl std::fmt::Debug for TrackerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrackerClient").field("trackers", &self.shared.config.trackers).finish_non_exhaustive()
    }
}

impl Drop for TrackerClient {
    fn drop(&mut self) {
        lock(&self.shared.tasks).end_all();
    }
}

impl TrackerClient {
    /// Starts to talk to the trackers, in the background; must be called within a tokio runtime. Trackers that are down
    /// are no error.
    pub fn new(config: ClientConfig) -> Result<Arc<Self>, InvalidConfig> {
        let sources = config.check()?;
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
        let shared = Arc::new(Shared {
            config,
            caller,
            held: Mutex::default(),
            links: Mutex::default(),
            tasks: Mutex::default(),
            budget: Arc::new(Mutex::new(RetryBudget::new(Instant::now()))),
            granted: Mutex::default(),
            heard: orders::Heard::default(),
        });
        let fixed = |source: &TrackerSource| match source {
            TrackerSource::Address(address) => Some(address.clone()),
            _ => None,
        };
        let trackers: Vec<_> = sources.iter().filter_map(fixed).collect();
        shared.use_trackers(&trackers)?;
        if trackers.len() < sources.len() {
            let watching = tokio::spawn(watching::watch(Arc::clone(&shared), sources));
            lock(&shared.tasks).watch(watching);
        }
        Ok(Arc::new(Self { shared, seeds: seeds::Seeds::default() }))
    }

    /// Uses these trackers (`host:port`) in place of those before, without a restart: what changed its owner is announced to
    /// the new one and withdrawn from the old one. Only for a client whose configuration names no DNS or file, which would have
    /// its own way again.
    pub fn use_trackers(&self, trackers: &[String]) -> Result<(), InvalidConfig> {
        self.shared.use_trackers(trackers)
    }

    /// Takes this node off the trackers' lists, at once, and stops telling them anything: a later question would register
    /// it again.
    async fn leave_all(&self) -> Result<(), DiscoveryError> {
        lock(&self.shared.tasks).end_all();
        let links = self.shared.links();
        let left = join_all(links.all().iter().map(|link| self.shared.leave(link))).await;
        if left.iter().any(Result::is_ok) {
            return Ok(());
        }
        Err(all_failed(left.into_iter().filter_map(Result::err).collect()))
    }

    /// Whether every tracker that answers, and there is one, knows all that it is to know of this node.
    pub fn is_current(&self) -> bool {
        let links = self.shared.links();
        let mut answering = links.all().iter().filter(|link| link.check_open().is_ok()).peekable();
        answering.peek().is_some() && answering.all(|link| link.is_current())
    }

    /// What one of `links` knows of `digest`, and whether others may know more.
    async fn find_at(&self, links: Vec<Arc<Link>>, digest: Digest) -> Result<(Arc<Link>, Found, bool), DiscoveryError> {
        let ask = |link: Arc<Link>| {
            let caller = Some(self.shared.caller.clone());
            let request = proto::FindRequest { caller, digest: digest.as_bytes().to_vec() };
            let request = traced::call(request);
            async move { link.client().find(request).await }
        };
        let spare =
            Arc::new(|link: Arc<Link>, reply: proto::FindReply| link.observe(reply.registration, reply.pause_ms));
        let (link, reply) = self.shared.ask(links, FIND_HEDGE, ask, spare).await?;
        link.observe(reply.registration, reply.pause_ms);
        let found = answers::found(&reply, digest, self.shared.config.node, link.is_local);
        let in_doubt = found.holders.is_empty() || reply.settling || link.is_forgetful();
        Ok((link, found, in_doubt))
    }

    fn refused(&self, reason: String) -> DiscoveryError {
        let links = self.shared.links();
        let trackers: Vec<_> = links.all().iter().map(|link| link.tracker.as_str()).collect();
        DiscoveryError::Refused { tracker: trackers.join(", "), reason }
    }
}

impl Discovery for TrackerClient {
    /// The first owner is asked. Where it names nobody, or may not know all yet, the other owner is asked
    /// as well.
    fn find(&self, digest: Digest) -> BoxFuture<'_, Result<Found, DiscoveryError>> {
        Box::pin(async move {
            let links = self.shared.links();
            let (link, found, in_doubt) = self.find_at(links.order(&digest), digest).await?;
            if !in_doubt {
                return Ok(found);
            }
            let other = links.owners(&digest).find(|other| other.tracker != link.tracker && other.is_ready()).cloned();
            let Some(other) = other else { return Ok(found) };
            match timeout(FIND_HEDGE, self.find_at(vec![other], digest)).await {
                Ok(Ok((_, more, _))) => Ok(answers::merged(found, more)),
                _ => Ok(found),
            }
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
            for link in self.shared.links().owners(&digest) {
                link.push_holding(digest, holding);
            }
            Ok(())
        })
    }

    /// Is recorded and told like an announcement, the oldest making room if there are many; a right, which ends in minutes, is told once and not recorded.
    fn state(&self, statement: Statement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(async move {
            if statement.kind == StatementKind::Right {
                self.shared.links().owners(&statement.subject).for_each(|link| link.push_right(statement));
                return Ok(());
            }
            let mut held = self.shared.held();
            let links = self.shared.links();
            match held.note(statement) {
                Noted::Known => {}
                Noted::New => links.owners(&statement.subject).for_each(|link| link.push_statement(statement)),
                // The full listing has the new one, too.
                Noted::OldestGaveWay => links.all.iter().for_each(|link| link.tell_all_again()),
            }
            Ok(())
        })
    }

    fn replicas<'a>(&'a self, digests: &'a [Digest]) -> BoxFuture<'a, Result<Vec<Replicas>, DiscoveryError>> {
        Box::pin(self.count_replicas(digests))
    }

    fn lease(&self, request: LeaseRequest) -> BoxFuture<'_, Result<LeaseReply, DiscoveryError>> {
        Box::pin(self.ask_lease(request))
    }

    /// Is told to the tracker that granted the lease, or to all of them when that is not known: those that did not grant it
    /// take no notice.
    fn settle(&self, settlement: Settlement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(self.end_lease(settlement))
    }

    /// The responsible seed is asked, and up to two more in its place.
    fn ask_seed(&self, request: SeedRequest) -> BoxFuture<'_, Result<Option<Holder>, DiscoveryError>> {
        Box::pin(async move { Ok(self.have_seed_fetch(&request).await) })
    }

    /// The same seed is asked as for a pull.
    fn preheat_seed(&self, request: PreheatRequest) -> BoxFuture<'_, Result<Preheated, SeedRefusal>> {
        Box::pin(async move { self.have_seed_preheat(&request).await })
    }

    /// Who owns the blob knows who has it.
    fn order(&self, request: OrderRequest) -> BoxFuture<'_, Result<OrderStand, DiscoveryError>> {
        Box::pin(self.give_order(request))
    }

    fn next_order(&self) -> BoxFuture<'_, Order> {
        Box::pin(self.shared.heard.next())
    }

    fn order_failed(&self, digest: Digest, reason: String) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(self.fail_order(digest, reason))
    }

    /// The owner of the blob is told, where whoever measures asks.
    fn tell_trial(&self, digest: Digest, job: u64, report: Vec<u8>) -> BoxFuture<'_, Result<bool, DiscoveryError>> {
        Box::pin(self.tell_of_trial(digest, job, report))
    }

    fn trial_reports(&self, digest: Digest, job: u64) -> BoxFuture<'_, Result<Vec<TrialReport>, DiscoveryError>> {
        Box::pin(self.reports_of_trial(digest, job))
    }

    /// Is told to every tracker. They stop naming the peer: to this node for a minute, to others until it is heard from
    /// again.
    fn report(&self, peer: PeerId) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(self.shared.tell(move |link| {
            let caller = Some(self.shared.caller.clone());
            let request = proto::ReportRequest { caller, peer: peer.as_bytes().to_vec() };
            async move { Ok(link.client().report(request).await?.map(|reply| (reply.registration, reply.pause_ms))) }
        }))
    }

    fn trackers(&self) -> Vec<(String, Option<String>)> {
        let links = self.shared.links();
        let health = |link: &Arc<Link>| (link.tracker.clone(), link.check_open().err().map(|error| error.to_string()));
        links.all().iter().map(health).collect()
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(self.leave_all())
    }
}

impl TrackerClient {
    /// Each digest is asked of its first owner that answers. An answer to some of them only is none.
    async fn count_replicas(&self, digests: &[Digest]) -> Result<Vec<Replicas>, DiscoveryError> {
        let links = self.shared.links();
        let mut groups: HashMap<Vec<String>, Vec<usize>> = HashMap::new();
        for (place, digest) in digests.iter().enumerate() {
            let names = links.order(digest).iter().map(|link| link.tracker.clone()).collect();
            groups.entry(names).or_default().push(place);
        }
        let links = &links;
        let asked = groups.into_values().map(|places| async move {
            let order = places.first().map(|&place| links.order(&digests[place])).unwrap_or_default();
            let ask = |link: Arc<Link>| {
                let caller = Some(self.shared.caller.clone());
                let digests = places.iter().map(|&place| digests[place].as_bytes().to_vec()).collect();
                async move { link.client().replicas(proto::ReplicasRequest { caller, digests }).await }
            };
            let spare = Arc::new(|link: Arc<Link>, reply: proto::ReplicasReply| {
                link.observe(reply.registration, reply.pause_ms);
            });
            let (link, reply) = self.shared.ask(order, FIND_HEDGE, ask, spare).await?;
            link.observe(reply.registration, reply.pause_ms);
            Ok::<_, DiscoveryError>((places, reply.counts))
        });
        let mut replicas: Vec<Option<Replicas>> = vec![None; digests.len()];
        for answer in join_all(asked).await {
            let (places, counts) = answer?;
            for (place, count) in places.into_iter().zip(counts) {
                replicas[place] = Some(Replicas { zone: count.zone, all: count.all });
            }
        }
        Ok(replicas.into_iter().collect::<Option<_>>().unwrap_or_default())
    }
}
