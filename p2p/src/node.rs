//! The node: sockets and tasks around the [swarm](crate::swarm).
//!
//! Every event goes through [`Node::drive`], which asks the scheduler under one short lock what to do and does it; what
//! takes time runs in tasks that report by the next event. Bytes go from a connection or an origin to the chunk store,
//! and readers take them from there; nothing is shown or passed on that was not checked (see `trust`).
//!
//! After a crash: pieces of the last two seconds, or 64 MiB, may be fetched again. What was complete is announced anew.
//! Who vouched for the pieces of an incomplete blob is forgotten: they are served again once the blob, or its metainfo, is
//! known. Metainfo that was not published yet is made again.

mod ageing;
mod aside;
mod blame;
mod blob;
mod buffers;
mod config;
mod connection;
mod derived;
mod error;
mod exchange;
mod finding;
mod following;
mod foreign;
mod hashing;
mod intake;
mod keeping;
mod origins;
mod passing;
mod perform;
mod publishing;
#[cfg(test)]
mod tests;
mod throttle;
mod transfer;
mod trust;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::discovery::Discovery;
use crate::exchange::{Exchange, remembered};
use crate::identity::PeerId;
use crate::layout::{PieceIndex, PieceLayout};
use crate::limits::MAX_GREETINGS;
use crate::metrics::{Metrics, Source, SourceLabel};
use crate::origin::{Origin, OriginError};
use crate::store::{ChunkStore, Pin, StoreError};
use crate::swarm::{Event, Policy, Swarm, SwarmConfig, WantId};
use crate::timeline::Timelines;
use crate::tls::{Protocol, Tls};

pub use crate::swarm::Priority;
pub use blob::{Blob, Sources};
pub use config::{NodeConfig, Security};
pub use error::{NodeError, OpenError, ReadError};
pub use following::Followed;
pub use foreign::ForeignConfig;

use blob::lock;
use buffers::Buffers;
use connection::{Link, Queues};
use derived::Derived;
use throttle::OriginGate;

/// One line of [`Node::blobs`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobStatus {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Bytes of the pieces that are here.
    pub have: u64,
    /// Whether the whole blob matched its digest.
    pub verified: bool,
    /// Connected peers that trade it.
    pub peers: usize,
    /// Bytes that came from peers since the start.
    pub bytes_from_peers: u64,
    /// Bytes that came from the origin since the start.
    pub bytes_from_origin: u64,
    /// Whether something wants bytes of it now.
    pub active: bool,
    /// Whether an operator pinned it.
    pub pinned: bool,
    /// Whether its bytes lie in a file of somebody else.
    pub foreign: bool,
}

/// A node of the swarm. Call [`Node::shutdown`] before the last handle goes.
pub struct Node {
    config: NodeConfig,
    store: Arc<ChunkStore>,
    discovery: Arc<dyn Discovery>,
    metrics: Arc<Metrics>,
    timelines: Arc<Timelines>,
    local_addr: SocketAddr,
    started: Instant,
    inner: Mutex<Inner>,
    /// Never taken while another lock is held, nor another while this one is.
    exchange: Mutex<Exchange>,
    derived: Derived,
    /// What somebody else holds on this machine, if that is followed.
    foreign: OnceLock<Arc<foreign::Following>>,
    origin_gate: OriginGate,
    connections: Arc<Semaphore>,
    /// One for each connection that somebody opened and has not said yet who it is.
    greetings: Arc<Semaphore>,
    buffers: Buffers,
    /// None where the operator wants plaintext.
    tls: Option<Tls>,
    told_otherwise: AtomicBool,
    aside_bytes: AtomicU64,
    passing_bytes: AtomicU64,
    fullness: Mutex<passing::Fullness>,
    next_id: AtomicU64,
    /// When the last piece came, in milliseconds from the start; 0 before the first.
    last_piece_ms: AtomicU64,
    wake: Notify,
    flush_now: Notify,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// What the scheduler's decisions change. Never held across I/O.
///
/// Order of locks: this one first, then those of a [`Blob`]. Whoever holds one of a blob's must not take this one.
struct Inner {
    swarm: Swarm,
    blobs: HashMap<Digest, Arc<Blob>>,
    links: HashMap<PeerId, Link>,
}

impl Node {
    /// Binds the piece wire and announces the complete blobs of the store.
    pub async fn start(
        config: NodeConfig,
        store: Arc<ChunkStore>,
        discovery: Arc<dyn Discovery>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, NodeError> {
        let bind = |source| NodeError::Bind { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let local_addr = listener.local_addr().map_err(bind)?;
        if let Err(error) = connection::control_congestion(&listener, &config) {
            let wanted = &*config.congestion_control;
            tracing::warn!(wanted, %error, "the piece wire keeps the system's congestion control");
        }
        let swarm_config = SwarmConfig {
            upload_slots: config.upload_slots,
            max_peers_per_blob: config.max_peers_per_blob,
            max_connections: config.max_connections,
            unleased_streams: config.origin_streams_without_tracker,
            ban: config.ban,
            policy: Policy::default(),
            ask_seeds: config.ask_seeds,
            seed: fastrand::u64(..),
        };
        let swarm = Swarm::new(config.identity.id(), swarm_config);
        let removed = store.watch_removed();
        let derived = {
            let store = Arc::clone(&store);
            let root = store.root().to_owned();
            tokio::task::spawn_blocking(move || Derived::load(&root)).await
        };
        let remembered = {
            let root = store.root().to_owned();
            tokio::task::spawn_blocking(move || remembered::load(&root)).await.unwrap_or_default()
        };
        let group = *Digest::of(config.group.as_bytes()).as_bytes();
        let exchange = Exchange::new(config.identity.id(), group, remembered, fastrand::u64(..));
        let node = Arc::new(Self {
            exchange: Mutex::new(exchange),
            derived: derived.unwrap_or_else(|_| Derived::load(store.root())),
            foreign: OnceLock::new(),
            connections: Arc::new(Semaphore::new(config.max_connections)),
            greetings: Arc::new(Semaphore::new(MAX_GREETINGS)),
            buffers: Buffers::new(),
            origin_gate: OriginGate::default(),
            tls: match &config.security {
                Security::Plaintext => None,
                Security::Keys => Some(Tls::new(Protocol::Wire, &config.identity, None)?),
                Security::Members(credentials) => Some(Tls::new(Protocol::Wire, &config.identity, Some(credentials))?),
            },
            told_otherwise: AtomicBool::new(false),
            config,
            store,
            discovery,
            metrics,
            timelines: Arc::default(),
            local_addr,
            started: Instant::now(),
            inner: Mutex::new(Inner { swarm, blobs: HashMap::new(), links: HashMap::new() }),
            aside_bytes: AtomicU64::new(0),
            passing_bytes: AtomicU64::new(0),
            fullness: Mutex::default(),
            next_id: AtomicU64::new(0),
            last_piece_ms: AtomicU64::new(0),
            wake: Notify::new(),
            flush_now: Notify::new(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        node.set_limits(node.config.limits);
        node.spawn(keeping::accept(Arc::clone(&node), listener));
        node.spawn(keeping::tick(Arc::clone(&node)));
        node.spawn(keeping::flush(Arc::clone(&node)));
        node.spawn(exchange::remember(Arc::clone(&node)));
        node.spawn(ageing::age(Arc::clone(&node)));
        node.spawn(ageing::withdraw_removed(Arc::clone(&node), removed));
        node.spawn(Arc::clone(&node).announce_stored());
        Ok(node)
    }

    /// Where the piece wire listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Its name.
    pub fn id(&self) -> PeerId {
        self.config.identity.id()
    }

    /// Whom it asks who has what.
    pub fn discovery(&self) -> &Arc<dyn Discovery> {
        &self.discovery
    }

    /// Its chunk store.
    pub fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// The trackers that it asks, and what is wrong with those that it does not for now.
    pub fn trackers(&self) -> Vec<(String, Option<String>)> {
        self.discovery.trackers()
    }

    /// Bytes of pieces since it started: taken in, from wherever, and sent to peers.
    pub fn moved_bytes(&self) -> (u64, u64) {
        let taken = |source| self.metrics.piece_bytes.get_or_create(&SourceLabel { source }).get();
        (taken(Source::peer) + taken(Source::origin), self.metrics.served_bytes.get())
    }

    /// Where the time of the last pulls went.
    pub fn timelines(&self) -> &Arc<Timelines> {
        &self.timelines
    }

    /// Opens a blob; it joins the swarm at the first want. All opens of a digest share one state: an origin that works
    /// stays in use, and one that comes later stands by until that is refused. Opens a few files, so it may block for
    /// a moment.
    pub fn open(
        self: &Arc<Self>,
        digest: Digest,
        length: u64,
        origin: Option<Arc<dyn Origin>>,
    ) -> Result<Arc<Blob>, OpenError> {
        let blob = self.open_shared(digest, length)?;
        if let Some(origin) = origin {
            let news = lock(&blob.origins).offer(origin);
            let failed = lock(&blob.origin_error).clone();
            // A pause that the origin asked for is not cut short by who asks again.
            if news || failed.is_some_and(|error| !matches!(error, OriginError::Busy { .. })) {
                *lock(&blob.origin_error) = None;
                self.drive(Event::OriginKnown(digest));
            }
        }
        Ok(blob)
    }

    fn open_shared(self: &Arc<Self>, digest: Digest, length: u64) -> Result<Arc<Blob>, OpenError> {
        let checked = |blob: Arc<Blob>| {
            if blob.length() != length {
                return Err(OpenError::LengthMismatch { digest, open: blob.length(), asked: length });
            }
            *lock(&blob.last_open) = Instant::now();
            let timeline = self.timelines.of(&digest);
            timeline.opened(length, blob.stored.have_bytes());
            *lock(&blob.timeline) = timeline;
            Ok(blob)
        };
        if let Some(blob) = self.open_blob(&digest) {
            return checked(blob);
        }
        if length == 0 && digest != Digest::of(b"") {
            return Err(OpenError::NotEmpty(digest));
        }
        let blob = Arc::new(Blob::new(self, self.open_stored(&digest, length)?));
        let own = || if blob.stored.is_foreign() { self.own_metainfo(&digest) } else { None };
        if let Some(metainfo) = blob.stored.metainfo().or_else(own) {
            lock(&blob.trust).set_metainfo(metainfo, true);
        }
        let opened = {
            let mut inner = lock(&self.inner);
            let opened = Arc::clone(inner.blobs.entry(digest).or_insert(blob));
            let (have, verified) = (opened.stored.have(), opened.is_verified());
            self.dispatch(&mut inner, Event::Opened { digest, layout: opened.layout, have, verified });
            // A metainfo that is here already makes peers useful even while discovery is silent.
            let verifiable = lock(&opened.trust).needs_no_word();
            if verifiable {
                self.dispatch(&mut inner, Event::Verifiable { digest, verifiable });
            }
            opened
        };
        if opened.stored.is_complete() {
            self.hash_as_it_comes(&opened);
        }
        checked(opened)
    }

    /// The blob's place in the store, or one that takes nothing where there is no room for it.
    fn open_stored(self: &Arc<Self>, digest: &Digest, length: u64) -> Result<Pin, StoreError> {
        match self.store.open_pinned(digest, length) {
            Err(StoreError::NoSpace { .. }) => {}
            opened => return opened,
        }
        self.close_unused(Duration::ZERO);
        // Whatever the oldest blob gives back is enough for a directory and its entries.
        self.store.evict_some(1);
        match self.store.open_pinned(digest, length) {
            Err(error @ StoreError::NoSpace { .. }) => {
                tracing::warn!(%digest, %error, "no room: the blob passes through memory to its readers and is not kept");
                self.store.open_nowhere(digest, length)
            }
            opened => opened,
        }
    }

    /// Flushes, withdraws from discovery, and closes all connections.
    pub async fn shutdown(self: &Arc<Self>) {
        const PATIENCE: Duration = Duration::from_secs(3);
        for blob in self.open_blobs() {
            blob.fail(ReadError::ShutDown);
        }
        for link in lock(&self.inner).links.values() {
            link.closing.cancel();
        }
        self.stopping.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(PATIENCE, self.tasks.wait()).await;
        self.flush_all().await;
        self.save_remembered().await;
        // At last: what still ran might have registered the node again.
        if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, self.discovery.leave()).await {
            tracing::debug!(%error, "discovery was not told that this node ends");
        }
    }

    /// Whether bytes are wanted that are not here yet.
    pub fn is_busy(&self) -> bool {
        lock(&self.inner).swarm.is_busy()
    }

    /// What it holds and does.
    pub fn blobs(&self) -> Vec<BlobStatus> {
        let stored = self.store.list();
        let inner = lock(&self.inner);
        let status = |summary: crate::store::BlobSummary| {
            let sources = inner.blobs.get(&summary.digest).map(|blob| blob.sources()).unwrap_or_default();
            BlobStatus {
                digest: summary.digest,
                length: summary.length,
                have: summary.have_bytes,
                verified: summary.verified,
                peers: inner.swarm.peers_of(&summary.digest),
                bytes_from_peers: sources.bytes_from_peers,
                bytes_from_origin: sources.bytes_from_origin,
                active: inner.swarm.is_active(&summary.digest),
                pinned: summary.pinned,
                foreign: summary.foreign,
            }
        };
        stored.into_iter().map(status).collect()
    }

    /// Tells the scheduler what happened and does what it says.
    fn drive(self: &Arc<Self>, event: Event) {
        self.dispatch(&mut lock(&self.inner), event);
    }

    fn dispatch(self: &Arc<Self>, inner: &mut Inner, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in inner.swarm.on_event(self.elapsed(), event) {
                self.perform(inner, action, &mut events);
            }
        }
        if inner.swarm.holds_back() {
            // By the next tick a limit may allow it.
            self.wake.notify_one();
        }
    }

    fn note_piece(&self) {
        let now = u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.last_piece_ms.fetch_max(now, Ordering::Relaxed);
    }

    /// How long ago the last piece came; none has when this is `None`.
    fn since_last_piece(&self) -> Option<Duration> {
        let last = self.last_piece_ms.load(Ordering::Relaxed);
        (last > 0).then(|| self.elapsed().saturating_sub(Duration::from_millis(last)))
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn next_want(&self) -> WantId {
        WantId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Registers that pieces are wanted.
    fn want(self: &Arc<Self>, blob: &Arc<Blob>, id: WantId, pieces: Range<u32>, priority: Priority) {
        self.hash_as_it_comes(blob);
        blob.recall(&pieces);
        self.drive(Event::Want { digest: blob.digest, id, pieces, priority });
        self.wake.notify_one();
    }

    fn open_blob(&self, digest: &Digest) -> Option<Arc<Blob>> {
        lock(&self.inner).blobs.get(digest).cloned()
    }

    fn open_blobs(&self) -> Vec<Arc<Blob>> {
        lock(&self.inner).blobs.values().cloned().collect()
    }

    fn peers_of(&self, digest: &Digest) -> usize {
        lock(&self.inner).swarm.peers_of(digest)
    }

    fn is_active(&self, digest: &Digest) -> bool {
        lock(&self.inner).swarm.is_active(digest)
    }

    /// The blob, if that piece was asked of that peer.
    fn expecting(&self, peer: PeerId, digest: &Digest, piece: PieceIndex) -> Option<Arc<Blob>> {
        let inner = lock(&self.inner);
        inner.swarm.expects(peer, digest, piece).then(|| inner.blobs.get(digest).cloned()).flatten()
    }

    /// Stops asking for a blob that its origin serves wrong.
    fn give_up(self: &Arc<Self>, blob: &Blob) {
        self.unwant(blob, blob.forget_want());
    }

    fn unwant(self: &Arc<Self>, blob: &Blob, want: Option<WantId>) {
        if let Some(id) = want {
            self.drive(Event::Unwant { digest: blob.digest, id });
        }
    }

    /// A peer said hello: it may speak of a blob that is only in the store so far.
    async fn greeted(self: &Arc<Self>, peer: PeerId, digest: Digest, layout: PieceLayout, have: Bitfield) {
        let node = Arc::clone(self);
        let open = move || match node.open_blob(&digest).filter(|blob| !blob.stored.is_removed()) {
            Some(blob) => (blob.layout == layout).then_some(blob),
            None => {
                let stored = node.store.get(&digest)?;
                (stored.layout() == layout).then(|| node.open_shared(digest, layout.length()).ok()).flatten()
            }
        };
        let blob = tokio::task::spawn_blocking(open).await.ok().flatten();
        if blob.is_some() {
            self.drive(Event::Hello { peer, digest, have });
            return;
        }
        if let Some(link) = lock(&self.inner).links.get(&peer) {
            link.send(crate::wire::Frame::NotHere { digest, piece: None });
        }
        if self.open_blob(&digest).is_none() && self.store.get(&digest).is_none() {
            // Discovery still names this node: it was evicted, or lost.
            self.withdraw(digest).await;
        }
    }

    async fn withdraw(&self, digest: Digest) {
        if let Err(error) = self.discovery.announce(digest, None).await {
            tracing::debug!(%digest, %error, "a blob that is gone is not withdrawn");
        }
    }

    /// Registers a connection. Of two connections between the same two nodes that stays which the lesser one opened;
    /// of two opened by the same one, the newer.
    fn link_up(self: &Arc<Self>, peer: PeerId, initiator: PeerId, takes_traces: bool) -> Option<(u64, Queues)> {
        let mut inner = lock(&self.inner);
        if let Some(present) = inner.links.get(&peer) {
            if present.initiator < initiator {
                return None;
            }
            present.closing.cancel();
            inner.links.remove(&peer);
            self.metrics.peers.dec();
            self.dispatch(&mut inner, Event::PeerDown(peer));
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (link, queues) = Link::new(id, initiator, takes_traces, self.stopping.child_token());
        inner.links.insert(peer, link);
        self.metrics.peers.inc();
        self.dispatch(&mut inner, Event::PeerUp(peer));
        Some((id, queues))
    }

    fn link_down(self: &Arc<Self>, peer: PeerId, id: u64) {
        let mut inner = lock(&self.inner);
        if inner.links.get(&peer).is_some_and(|link| link.id == id) {
            inner.links.remove(&peer);
            self.metrics.peers.dec();
            self.dispatch(&mut inner, Event::PeerDown(peer));
        }
    }

    /// Runs a task until it ends or the node stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = task => {}
            }
        });
    }
}
