//! A tracker that lies to nodes: about who has what, about addresses, about digests, about leases. Each blob is whole and right at last, from
//! the origin or an honest peer, and nobody is dialled on its word who could not be a peer.
//!
//! The tracker and the nodes are real, in a network namespace of their own where the metadata service of a cloud has an address.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as the test itself may")]

#[path = "lying/liar.rs"]
mod liar;

use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lapwing_discovery::limits::{MAX_HOLDERS_PER_ANSWER, MAX_REPLY_BYTES};
use lapwing_discovery::{ClientConfig, TrackerClient};
use lapwing_evidence::{Evidence, count, seed};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Discovery as _;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, NodeConfig, Priority};
use lapwing_p2p::origin::{ByteStream, Origin, OriginError};
use lapwing_p2p::store::{ChunkStore, StoreConfig};
use liar::{Liar, Lie};
use tokio::net::TcpListener;

/// Which one transfer without a lease brings.
const LENGTH: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(59);
/// Set in the namespace.
const WITHIN: &str = "LAPWING_TEST_WITHIN";
/// Where nodes and tracker are: no loopback, so that loopback addresses are none of the tracker's business.
const HERE: &str = "10.9.8.7";
/// Where nobody should connect to.
const TRAPS: [&str; 3] = ["127.0.0.1:7081", "169.254.169.254:80", "169.254.7.7:7081"];

struct MemoryOrigin {
    bytes: Bytes,
    sent: AtomicU64,
}

impl Origin for MemoryOrigin {
    fn fetch(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>> {
        let bytes = self.bytes.slice(range.start as usize..range.end as usize);
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let body: ByteStream = Box::pin(futures_util::stream::iter([Ok(bytes)]));
        Box::pin(std::future::ready(Ok(body)))
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

fn content(seed: u64) -> Bytes {
    let mut bytes = vec![0; LENGTH];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

struct Started {
    node: Arc<Node>,
    client: Arc<TrackerClient>,
    metrics: Arc<Metrics>,
    _root: tempfile::TempDir,
}

async fn node(tracker: &str, port: u16) -> Started {
    let root = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::generate().unwrap());
    let config = ClientConfig { piece_port: port, ..ClientConfig::new(vec![tracker.to_owned()], identity.id()) };
    let client = TrackerClient::new(config).unwrap();
    let store = ChunkStore::open(root.path(), StoreConfig::default()).unwrap();
    let config = NodeConfig::new(format!("{HERE}:{port}").parse().unwrap(), identity);
    let metrics = Arc::new(Metrics::default());
    let node = Node::start(config, store, Arc::clone(&client) as _, Arc::clone(&metrics)).await.unwrap();
    Started { node, client, metrics, _root: root }
}

/// Runs the test of this name again, in a network of its own; says whether this is it already.
fn is_within_namespace(name: &str) -> bool {
    if std::env::var_os(WITHIN).is_some() {
        return true;
    }
    let script = format!(
        "ip link set lo up && ip address add {HERE}/32 dev lo && ip address add 169.254.169.254/32 dev lo && \
         ip address add 169.254.7.7/32 dev lo && exec \"$0\" --exact {name} --nocapture --test-threads=1"
    );
    let status = Command::new("unshare")
        .args(["--map-root-user", "--net", "--", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(WITHIN, "1")
        .status()
        .unwrap();
    assert!(status.success(), "within the namespace: {status}");
    false
}

#[test]
fn a_lying_tracker_keeps_no_transfer_from_its_end_and_sends_nobody_astray() {
    if !is_within_namespace("a_lying_tracker_keeps_no_transfer_from_its_end_and_sends_nobody_astray") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(lied_to());
}

async fn lied_to() {
    let mut evidence = Evidence::new(5, "trackers that lie about peers, addresses, digests and leases");
    let traps = futures_util::future::join_all(TRAPS.map(TcpListener::bind)).await;
    let traps: Vec<TcpListener> = traps.into_iter().map(Result::unwrap).collect();
    let liar = Liar::start(HERE).await;
    let honest = node(&liar.address, 7101).await;
    let mut port = 7102;
    // Those about leases take most of a minute each.
    let about_leases = if count(0, 1) > 0 { &Lie::LEASES[..] } else { &[] };
    let rounds = (0..count(1, 25)).flat_map(|round| Lie::PEERS.map(|lie| (round, lie)));
    for (round, lie) in rounds.chain(about_leases.iter().map(|lie| (0, *lie))) {
        let bytes = content(seed().wrapping_mul(1000) + u64::from(round) * 100 + lie as u64);
        let digest = Digest::of(&bytes);
        // The truth first: the honest node gets it, and whoever is told of that node.
        liar.tell(Lie::Nothing, &[]);
        let origin = Arc::new(MemoryOrigin { bytes: bytes.clone(), sent: AtomicU64::new(0) });
        let held = honest.node.open(digest, LENGTH as u64, Some(Arc::clone(&origin) as _)).unwrap();
        held.verified().await.unwrap();
        evidence.served_before(held.read(0..LENGTH as u64, Priority::Bulk).await.unwrap().len() as u64);

        port += 1;
        let reader = node(&liar.address, port).await;
        let peers = if lie.names_the_honest() { vec![(honest.node.id(), 7101)] } else { Vec::new() };
        liar.tell(lie, &peers);
        let given = if peers.is_empty() { Some(origin as _) } else { None };
        let found = reader.client.find(digest).await;
        let believed = found.as_ref().map_or(0, |found| found.holders.len());
        assert!(believed <= MAX_HOLDERS_PER_ANSWER, "{lie:?}: {believed} holders");
        assert!(lie != Lie::Million || found.is_err(), "an answer beyond {MAX_REPLY_BYTES} bytes was read");
        let blob = reader.node.open(digest, LENGTH as u64, given).unwrap();
        let begun = Instant::now();
        let read = tokio::time::timeout(PATIENCE, blob.read(0..LENGTH as u64, Priority::Bulk)).await;
        let read = read.unwrap_or_else(|_| panic!("{lie:?}: nothing within {PATIENCE:?}"));
        evidence.ended(begun.elapsed(), read.is_ok());
        let read = read.unwrap_or_else(|error| panic!("{lie:?}: {error}"));
        assert!(evidence.compare(&bytes, &read), "{lie:?}: wrong bytes");
        eprintln!("{lie:?}: {:?}, {:?}, {believed} believed", begun.elapsed(), blob.sources());
        if !peers.is_empty() {
            assert_eq!(blob.sources().bytes_from_peers, LENGTH as u64, "{lie:?}: from the honest peer");
        }
        assert_eq!(reader.metrics.bans.get(), 0, "{lie:?}: a tracker's lie is nobody else's fault");
        reader.node.shutdown().await;
    }
    for (lie, told) in liar.told() {
        assert!(told > 0, "{lie:?} was never told");
        evidence.faults(&format!("{lie:?}"), told);
    }
    for (trap, address) in traps.iter().zip(TRAPS) {
        let dialled = tokio::time::timeout(Duration::from_millis(10), trap.accept()).await;
        assert!(dialled.is_err(), "{address} was dialled on the tracker's word");
    }
    honest.node.shutdown().await;
    eprintln!("{:?}", evidence.record());
}
