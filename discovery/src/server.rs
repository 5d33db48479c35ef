//! The tracker as a gRPC service: a thin shell around [`Registry`].
//!
//! [`Tracker`] owns the state, behind one lock that is held for the length of one pure call and never across I/O.
//! [`serve`] answers on a listener until its shutdown future ends, and looks once a second for what has expired. The
//! embedded tracker of `lapwing up` is the same thing in the same process.
//!
//! Several trackers may share a store ([`Tracker::sharing`]): `server/shared.rs`.

mod keeping;
mod load;
mod outbox;
mod service;
mod shared;
mod view;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use lapwing_p2p::tls::Tls;
use tokio::net::TcpListener;

pub use self::keeping::Keeping;
use self::load::Load;
use self::shared::Shared;
use crate::authority::{self, Authority};
use crate::lease::sites::LeasePolicy;
use crate::limits::{BACKLOG_TICK, CALL_TIMEOUT, MAX_CALLS_PER_CONNECTION, MAX_REQUEST_BYTES, TICK};
use crate::metrics::{Metrics, StoreMetrics};
use crate::proto::tracker_service_server::TrackerServiceServer;
use crate::rates::Rates;
use crate::registry::{Expired, Registry, TrackerSnapshot};
use crate::store::HolderStore;
use crate::transport;

/// Tells the time since some fixed moment; must never go back.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What the clock says at the start: nodes that a shared store names were seen before that.
const CLOCK_START: Duration = Duration::from_secs(3600);

/// The time since the Unix epoch, for [`Tracker::sharing`].
pub fn wall_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// A tracker. Clones are the same tracker.
#[derive(Clone)]
pub struct Tracker {
    state: Arc<Mutex<Registry>>,
    load: Arc<Mutex<Load>>,
    clock: Clock,
    metrics: Metrics,
    rates: Arc<Mutex<Rates>>,
    shared: Option<Arc<Shared>>,
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").finish_non_exhaustive()
    }
}

impl Default for Tracker {
    fn default() -> Self {
        Self::new()
    }
}

impl Tracker {
    /// An empty tracker on the system's monotonic clock.
    pub fn new() -> Self {
        Self::with_policy(LeasePolicy::default())
    }

    /// The same, with an operator's policy of leases.
    pub fn with_policy(policy: LeasePolicy) -> Self {
        let start = Instant::now();
        let registry = Registry::with_policy(fastrand::u64(..), policy);
        Self::on(registry, Arc::new(move || CLOCK_START + start.elapsed()))
    }

    /// An empty tracker that is told the time.
    pub fn with_clock(clock: Clock) -> Self {
        Self::on(Registry::new(fastrand::u64(..)), clock)
    }

    fn on(registry: Registry, clock: Clock) -> Self {
        let load = Arc::new(Mutex::new(Load::new(clock())));
        let state = Arc::new(Mutex::new(registry));
        Self { state, load, clock, metrics: Metrics::default(), rates: Arc::default(), shared: None }
    }

    /// The same, sharing what nodes tell it with other trackers through `store`, while it is served. `wall` tells the time
    /// since the Unix epoch. To be called before it is served, and before its metrics are registered.
    #[must_use]
    pub fn sharing(mut self, store: Arc<dyn HolderStore>, wall: Clock) -> Self {
        let metrics = self.metrics.store.insert(StoreMetrics::default()).clone();
        self.shared = Some(Arc::new(Shared::new(store, wall, metrics)));
        self
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What it knows at this moment.
    pub fn snapshot(&self) -> TrackerSnapshot {
        self.registry().snapshot((self.clock)())
    }

    /// Forgets what has expired; [`serve`] does it once a second.
    pub fn tick(&self) -> Expired {
        let now = (self.clock)();
        self.sample_rates(now);
        let mut registry = self.registry();
        let expired = registry.tick(now);
        let counts = registry.counts();
        drop(registry);
        if let Some(shared) = &self.shared {
            shared.tick();
        }
        self.metrics.set_sizes(&counts);
        self.metrics.leases_expired.inc_by(expired.leases as u64);
        self.metrics.nodes_expired.inc_by(expired.nodes as u64);
        if expired != Expired::default() {
            tracing::debug!(nodes = expired.nodes, leases = expired.leases, "expired");
        }
        expired
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        // Counts: nothing is left half done.
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Duration {
        (self.clock)()
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        // Soft state: whatever a panic left half done, nodes announce again, and answers are checked by those who use them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tracker that cannot be reached any more.
#[derive(Debug, thiserror::Error)]
#[error("the tracker on {address} stopped: {source}; check that nothing else uses the port")]
pub struct ServeError {
    /// Where it listened.
    address: String,
    /// What the transport said.
    source: tonic::transport::Error,
}

/// Who may call, and what is served besides the tracker.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Callers are members of this cluster; none: everybody may call, over plain TCP.
    pub tls: Option<Tls>,
    /// The authority that this tracker is for its cluster.
    pub authority: Option<Arc<Authority>>,
}

/// Answers everybody on `listener` until `shutdown` ends; then calls under way are finished, and clients see their
/// connections close.
pub async fn serve(
    listener: TcpListener,
    tracker: Tracker,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    serve_members(listener, tracker, Access::default(), shutdown).await
}

/// Answers those who have access, likewise.
pub async fn serve_members(
    listener: TcpListener,
    tracker: Tracker,
    access: Access,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
    let cluster = access.tls.as_ref().and_then(Tls::own).map(|own| own.cluster);
    tracing::info!(address, cluster, "tracker listens");
    let service = TrackerServiceServer::new(tracker.clone()).max_decoding_message_size(MAX_REQUEST_BYTES);
    let authority = access.authority.map(authority::service);
    let serving = tonic::transport::Server::builder()
        .timeout(CALL_TIMEOUT)
        .max_concurrent_streams(MAX_CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(2 * CALL_TIMEOUT))
        .http2_keepalive_timeout(Some(CALL_TIMEOUT))
        .add_service(service)
        .add_optional_service(authority)
        .serve_with_incoming_shutdown(transport::incoming(listener, access.tls), shutdown);
    let ticking = async {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            while tracker.tick().backlog {
                tokio::time::sleep(BACKLOG_TICK).await;
            }
        }
    };
    tokio::select! {
        served = serving => served.map_err(|source| ServeError { address, source }),
        () = ticking => Ok(()),
        () = tracker.keep_store() => Ok(()),
    }
}
