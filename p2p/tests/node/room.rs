//! A store without room: what nobody uses any more makes way, and what cannot be stored is not fetched for ever.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::Node;
use lapwing_p2p::store::{ChunkStore, Medium, StoreConfig};

use crate::support::{Handle, MemoryOrigin, Tracker, content, start_on};

const MIB: usize = 1 << 20;

async fn node_with_quota(root: &std::path::Path, quota_bytes: usize) -> Arc<Node> {
    let store = ChunkStore::open(
        root,
        StoreConfig { quota_bytes: Some(quota_bytes as u64), free_floor_bytes: 0, ..StoreConfig::default() },
    )
    .unwrap();
    let tracker = Arc::new(Tracker::default());
    start_on(&tracker, store, Arc::new(Identity::generate().unwrap()), Arc::new(Metrics::default()), |_| {}).await
}

/// Blobs stay open for a while, since peers often come back to them, and had all of them wanted when they were pulled whole:
/// neither may keep a full store from taking the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_was_pulled_makes_way_for_the_next() {
    let root = tempfile::tempdir().unwrap();
    let node = node_with_quota(root.path(), 4 * MIB).await;
    for seed in 0..4 {
        let bytes = content(3 * MIB, seed);
        let origin = MemoryOrigin::new(bytes.clone());
        let blob = node.open(Digest::of(&bytes), bytes.len() as u64, Some(Arc::new(Handle(origin)))).unwrap();
        blob.verified().await.unwrap();
    }
    let pulled = node.blobs().iter().filter(|blob| blob.length == 3 * MIB as u64).count();
    assert_eq!(pulled, 1, "the last one is left");
    node.shutdown().await;
}

async fn pull(node: &Arc<Node>, length: usize, seed: u64) -> Digest {
    let bytes = content(length, seed);
    let digest = Digest::of(&bytes);
    let origin = Arc::new(Handle(MemoryOrigin::new(bytes)));
    node.open(digest, length as u64, Some(origin)).unwrap().verified().await.unwrap();
    digest
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), wait).await.expect("it never came true");
}

/// As many of them are above the high mark of a store of 10 MiB (90 %) by their content alone.
const ABOVE_THIRD: usize = 3 * MIB + 4096;
const ABOVE_NINTH: usize = MIB + 4096;

/// Three blobs of a third of it are above the high mark: one goes before anything more is to be written, and nobody is sent
/// here for it any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_evicted_is_evicted_ahead_of_need_and_withdrawn_at_once() {
    let root = tempfile::tempdir().unwrap();
    let config = StoreConfig { quota_bytes: Some(10 * MIB as u64), ..StoreConfig::default() };
    let store = ChunkStore::open(root.path(), config).unwrap();
    let (tracker, metrics) = (Arc::new(Tracker::default()), Arc::new(Metrics::default()));
    let identity = Arc::new(Identity::generate().unwrap());
    let node = start_on(&tracker, store, identity, Arc::clone(&metrics), |_| {}).await;
    let mut pulled = Vec::new();
    for seed in 0..3 {
        let digest = pull(&node, ABOVE_THIRD, seed).await;
        until(|| tracker.holding(&digest, &node.id()) == Some(Holding::Complete)).await;
        pulled.push(digest);
    }
    until(|| node.store().used_bytes() <= 8 * MIB as u64).await;
    until(|| tracker.holding(&pulled[0], &node.id()).is_none()).await;
    assert!(pulled[1..].iter().all(|digest| tracker.holding(digest, &node.id()) == Some(Holding::Complete)));
    assert!(metrics.evicted_blobs.get() >= 1 && metrics.evicted_bytes.get() >= 3 * MIB as u64);
    // And announced again when it is here again.
    let again = pull(&node, ABOVE_THIRD, 0).await;
    until(|| tracker.holding(&again, &node.id()) == Some(Holding::Complete)).await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_other_node_has_outlives_what_others_have() {
    let root = tempfile::tempdir().unwrap();
    let config = StoreConfig { quota_bytes: Some(10 * MIB as u64), ..StoreConfig::default() };
    let store = ChunkStore::open(root.path(), config).unwrap();
    let tracker = Arc::new(Tracker::default());
    let identity = Arc::new(Identity::generate().unwrap());
    let node = start_on(&tracker, store, identity, Arc::default(), |_| {}).await;
    let other = Identity::generate().unwrap().id();
    let mut pulled = Vec::new();
    for seed in 0..9 {
        let digest = Digest::of(&content(ABOVE_NINTH, seed));
        if [2, 3].contains(&seed) {
            // It has no address, so nobody asks it for anything.
            tracker.add_holder(digest, other, Holding::Complete);
        }
        pulled.push(pull(&node, ABOVE_NINTH, seed).await);
    }
    until(|| node.store().used_bytes() <= 8 * MIB as u64).await;
    let here = |digest: &Digest| node.store().list().iter().any(|blob| blob.digest == *digest);
    let gone: Vec<_> = (0..9).filter(|&seed: &usize| !here(&pulled[seed])).collect();
    assert_eq!(gone, [2, 3]);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_its_store_in_memory_pulls_and_serves() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = StoreConfig { medium: Medium::Memory, quota_bytes: Some(32 * MIB as u64), ..StoreConfig::default() };
    let tracker = Arc::new(Tracker::default());
    let start = |root| {
        let store = ChunkStore::open(root, config).unwrap();
        start_on(&tracker, store, Arc::new(Identity::generate().unwrap()), Arc::default(), |_| {})
    };
    let (first, second) = (start(one.path()).await, start(two.path()).await);
    let digest = pull(&first, 6 * MIB, 1).await;
    let blob = second.open(digest, 6 * MIB as u64, None).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.sources().bytes_from_peers, 6 * MIB as u64);
    assert!(!one.path().join("blobs").exists() && !two.path().join("blobs").exists());
    first.shutdown().await;
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_not_fetched_for_ever() {
    let root = tempfile::tempdir().unwrap();
    let node = node_with_quota(root.path(), 4 * MIB).await;
    let bytes = content(6 * MIB, 1);
    let origin = MemoryOrigin::new(bytes.clone());
    let blob = node.open(Digest::of(&bytes), bytes.len() as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    let error = blob.verified().await.unwrap_err().to_string();
    assert!(error.contains("no room") && error.contains(root.path().to_str().unwrap()), "{error}");
    assert!(origin.sent.load(Ordering::Relaxed) <= bytes.len() as u64, "nothing is fetched again");
    drop(blob);

    let bytes = content(3 * MIB, 2);
    let small =
        node.open(Digest::of(&bytes), bytes.len() as u64, Some(Arc::new(Handle(MemoryOrigin::new(bytes.clone())))));
    small.unwrap().verified().await.unwrap();
    node.shutdown().await;
}
