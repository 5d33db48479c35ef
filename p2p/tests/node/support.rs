//! What whole-node tests need: discovery in memory, an origin in memory, and nodes that can be killed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{
    Discovery, DiscoveryError, Found, Holder, Holding, Lease, LeaseReply, LeaseRequest, Replicas, Settlement,
    Statement, Vote,
};
use lapwing_p2p::identity::{Identity, PeerId};
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, NodeConfig, Security};
use lapwing_p2p::origin::{ByteStream, Origin, OriginError};
use lapwing_p2p::store::{ChunkStore, StoreConfig, StoreError};

/// Bytes that look random, the same for the same seed.
pub(crate) fn content(length: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// A tracker without a network.
#[derive(Default)]
pub(crate) struct Tracker {
    state: Mutex<State>,
    pub(crate) down: AtomicBool,
}

#[derive(Default)]
struct State {
    addresses: HashMap<PeerId, SocketAddr>,
    holders: HashMap<Digest, BTreeMap<PeerId, Holding>>,
    /// By subject, so that nodes with thousands of blobs do not wait for it.
    statements: HashMap<Digest, Vec<(Statement, BTreeSet<PeerId>)>>,
    books: HashMap<Digest, Book>,
    next_lease: u64,
}

#[derive(Default)]
struct Book {
    live: BTreeMap<u64, (PeerId, Range<u32>)>,
    fetched: BTreeMap<u32, PeerId>,
    lessees: BTreeSet<PeerId>,
}

impl Tracker {
    pub(crate) fn register(&self, peer: PeerId, address: SocketAddr) {
        self.state.lock().unwrap().addresses.insert(peer, address);
    }

    /// A peer is dead: what it held and fetched is not there any more.
    pub(crate) fn forget(&self, peer: PeerId) {
        let mut state = self.state.lock().unwrap();
        state.addresses.remove(&peer);
        for holders in state.holders.values_mut() {
            holders.remove(&peer);
        }
        for book in state.books.values_mut() {
            book.live.retain(|_, (holder, _)| *holder != peer);
            book.fetched.retain(|_, fetcher| *fetcher != peer);
        }
    }

    pub(crate) fn add_holder(&self, digest: Digest, peer: PeerId, holding: Holding) {
        self.state.lock().unwrap().holders.entry(digest).or_default().insert(peer, holding);
    }

    pub(crate) fn add_lessee(&self, digest: Digest, peer: PeerId) {
        self.state.lock().unwrap().books.entry(digest).or_default().lessees.insert(peer);
    }

    /// `peer` makes a statement, true or not.
    pub(crate) fn vote(&self, statement: Statement, peer: PeerId) {
        let mut state = self.state.lock().unwrap();
        state.statements.entry(statement.subject).or_default().push((statement, BTreeSet::from([peer])));
    }

    /// What is stated of a blob, and by whom.
    pub(crate) fn stated(&self, subject: &Digest) -> Vec<(Statement, BTreeSet<PeerId>)> {
        let state = self.state.lock().unwrap();
        state.statements.get(subject).cloned().unwrap_or_default()
    }

    /// As after a restart: nobody has stated anything.
    pub(crate) fn forget_statements(&self) {
        self.state.lock().unwrap().statements.clear();
    }

    pub(crate) fn holding(&self, digest: &Digest, peer: &PeerId) -> Option<Holding> {
        self.state.lock().unwrap().holders.get(digest)?.get(peer).copied()
    }

    fn lease(&self, me: PeerId, request: &LeaseRequest) -> LeaseReply {
        let mut state = self.state.lock().unwrap();
        let id = state.next_lease;
        state.next_lease += 1;
        let book = state.books.entry(request.digest).or_default();
        let wanted = |runs: &[Range<u32>]| {
            let leased = |piece: &u32| book.live.values().any(|(_, run)| run.contains(piece));
            runs.iter().flat_map(Clone::clone).find(|piece| !book.fetched.contains_key(piece) && !leased(piece))
        };
        let crowded = book.live.len() >= 8;
        let first = wanted(&request.urgent).or_else(|| wanted(&request.missing).filter(|_| !crowded));
        let Some(first) = first else {
            return match book.live.is_empty() {
                true => LeaseReply::Exhausted,
                false => LeaseReply::Wait(Duration::from_millis(20)),
            };
        };
        let second = first + 1;
        let free = !book.fetched.contains_key(&second) && !book.live.values().any(|(_, run)| run.contains(&second));
        let count = if free && request.missing.iter().any(|run| run.contains(&second)) { 2 } else { 1 };
        book.live.insert(id, (me, first..first + count));
        book.lessees.insert(me);
        LeaseReply::Granted(Lease::new(id, PieceIndex(first), count, Duration::from_secs(30)))
    }
}

/// One node's view of the tracker.
pub(crate) struct Client {
    tracker: Arc<Tracker>,
    me: PeerId,
}

impl Client {
    fn ask<T>(&self, answer: impl FnOnce(&Tracker) -> T) -> BoxFuture<'static, Result<T, DiscoveryError>>
    where
        T: Send + 'static,
    {
        let answer = if self.tracker.down.load(Ordering::Relaxed) {
            Err(DiscoveryError::Unreachable { tracker: "memory".into(), reason: "switched off".into() })
        } else {
            Ok(answer(&self.tracker))
        };
        Box::pin(std::future::ready(answer))
    }
}

impl Discovery for Client {
    fn find(&self, digest: Digest) -> BoxFuture<'_, Result<Found, DiscoveryError>> {
        self.ask(|tracker| {
            let state = tracker.state.lock().unwrap();
            let holders = state.holders.get(&digest).into_iter().flatten().filter(|(peer, _)| **peer != self.me);
            let holders =
                holders.filter_map(|(&peer, &holding)| Some(Holder::new(peer, *state.addresses.get(&peer)?, holding)));
            let votes = state.statements.get(&digest).into_iter().flatten();
            let votes = votes.map(|(statement, nodes)| Vote { statement: *statement, nodes: nodes.len() as u32 });
            let lessees = state.books.get(&digest).map(|book| book.lessees.iter().copied().collect());
            Found { holders: holders.collect(), votes: votes.collect(), lessees: lessees.unwrap_or_default() }
        })
    }

    fn announce(&self, digest: Digest, holding: Option<Holding>) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        self.ask(|tracker| {
            let mut state = tracker.state.lock().unwrap();
            let holders = state.holders.entry(digest).or_default();
            match holding {
                Some(holding) => holders.insert(self.me, holding),
                None => holders.remove(&self.me),
            };
        })
    }

    fn state(&self, statement: Statement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        self.ask(|tracker| {
            let mut state = tracker.state.lock().unwrap();
            let stated = state.statements.entry(statement.subject).or_default();
            match stated.iter_mut().find(|(known, _)| *known == statement) {
                Some((_, nodes)) => {
                    nodes.insert(self.me);
                }
                None => stated.push((statement, BTreeSet::from([self.me]))),
            }
        })
    }

    fn replicas<'a>(&'a self, digests: &'a [Digest]) -> BoxFuture<'a, Result<Vec<Replicas>, DiscoveryError>> {
        let digests = digests.to_vec();
        self.ask(move |tracker| {
            let state = tracker.state.lock().unwrap();
            let count = |digest| {
                let holders = state.holders.get(digest).into_iter().flatten();
                let others = holders.filter(|(peer, holding)| **peer != self.me && **holding == Holding::Complete);
                let all = others.count() as u32;
                Replicas { zone: all, all }
            };
            digests.iter().map(count).collect()
        })
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        self.ask(|tracker| {
            let mut state = tracker.state.lock().unwrap();
            state.holders.values_mut().for_each(|holders| {
                holders.remove(&self.me);
            });
        })
    }

    fn lease(&self, request: LeaseRequest) -> BoxFuture<'_, Result<LeaseReply, DiscoveryError>> {
        self.ask(|tracker| tracker.lease(self.me, &request))
    }

    fn settle(&self, settlement: Settlement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        self.ask(|tracker| {
            let mut state = tracker.state.lock().unwrap();
            let Some(book) = state.books.get_mut(&settlement.digest) else { return };
            let Some((peer, run)) = book.live.remove(&settlement.lease) else { return };
            book.fetched.extend(run.take(settlement.fetched as usize).map(|piece| (piece, peer)));
        })
    }
}

/// How an origin behaves.
#[derive(Debug, Clone)]
pub(crate) enum Mood {
    Serves,
    Fails(OriginError),
    /// Gives other bytes than it should.
    Lies,
}

/// An origin in memory that counts what it sends.
pub(crate) struct MemoryOrigin {
    bytes: Bytes,
    pub(crate) sent: AtomicU64,
    pub(crate) ranges: Mutex<Vec<Range<u64>>>,
    pub(crate) mood: Mutex<Mood>,
    pub(crate) serves_ranges: bool,
    /// Bytes it may still send before it waits.
    pub(crate) allowance: tokio::sync::Semaphore,
}

const CHUNK: usize = 32 << 10;

impl MemoryOrigin {
    pub(crate) fn new(bytes: Bytes) -> Arc<Self> {
        Arc::new(Self::with_allowance(bytes, usize::MAX >> 8))
    }

    /// One that stops after about so many bytes.
    pub(crate) fn with_allowance(bytes: Bytes, allowance: usize) -> Self {
        Self {
            bytes,
            sent: AtomicU64::new(0),
            ranges: Mutex::new(Vec::new()),
            mood: Mutex::new(Mood::Serves),
            serves_ranges: true,
            allowance: tokio::sync::Semaphore::new(allowance / CHUNK),
        }
    }

    pub(crate) fn copies(&self) -> f64 {
        self.sent.load(Ordering::Relaxed) as f64 / self.bytes.len() as f64
    }
}

/// The origin as one node knows it.
pub(crate) struct Handle(pub(crate) Arc<MemoryOrigin>);

impl Origin for Handle {
    fn fetch(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>> {
        let origin = Arc::clone(&self.0);
        Box::pin(async move {
            origin.ranges.lock().unwrap().push(range.clone());
            let lies = match origin.mood.lock().unwrap().clone() {
                Mood::Fails(error) => return Err(error),
                Mood::Lies => true,
                Mood::Serves => false,
            };
            if !origin.serves_ranges && range != (0..origin.bytes.len() as u64) {
                return Err(OriginError::NoRanges { origin: "memory".into() });
            }
            let state = (origin, range);
            let body = futures_util::stream::unfold(state, move |(origin, range)| async move {
                if range.is_empty() {
                    return None;
                }
                origin.allowance.acquire().await.unwrap().forget();
                // As fast as a link of some 500 Mbit/s, so that nodes have time to trade.
                tokio::time::sleep(Duration::from_micros(500)).await;
                let end = range.end.min(range.start + CHUNK as u64);
                let mut bytes = origin.bytes.slice(range.start as usize..end as usize);
                if lies {
                    bytes = bytes.iter().map(|byte| !byte).collect();
                }
                origin.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Some((Ok(bytes), (origin, end..range.end)))
            });
            Ok(Box::pin(body) as ByteStream)
        })
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

/// Starts a node with its store in `root`.
pub(crate) async fn start(tracker: &Arc<Tracker>, root: &Path, adjust: impl FnOnce(&mut NodeConfig)) -> Arc<Node> {
    start_with(tracker, root, Arc::new(Identity::generate().unwrap()), Arc::new(Metrics::default()), adjust).await
}

pub(crate) async fn start_with(
    tracker: &Arc<Tracker>,
    root: &Path,
    identity: Arc<Identity>,
    metrics: Arc<Metrics>,
    adjust: impl FnOnce(&mut NodeConfig),
) -> Arc<Node> {
    let store = loop {
        match ChunkStore::open(root, StoreConfig::default()) {
            // What a node that was there before left behind on blocking threads ends soon.
            Err(StoreError::Locked(_)) => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    start_on(tracker, store, identity, metrics, adjust).await
}

/// Starts a node with this store.
pub(crate) async fn start_on(
    tracker: &Arc<Tracker>,
    store: Arc<ChunkStore>,
    identity: Arc<Identity>,
    metrics: Arc<Metrics>,
    adjust: impl FnOnce(&mut NodeConfig),
) -> Arc<Node> {
    let mut config = NodeConfig::new("127.0.0.1:0".parse().unwrap(), identity);
    config.read_deadline = Duration::from_secs(20);
    config.security = if crate::INSECURE { Security::Plaintext } else { Security::Keys };
    adjust(&mut config);
    let client = Arc::new(Client { tracker: Arc::clone(tracker), me: config.identity.id() });
    let node = Node::start(config, store, client, metrics).await.unwrap();
    tracker.register(node.id(), node.local_addr());
    node
}
