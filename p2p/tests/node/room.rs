//! A store without room: what nobody uses any more makes way, and what cannot be stored is not fetched for ever.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::Node;
use lapwing_p2p::store::{ChunkStore, StoreConfig};

use crate::support::{Handle, MemoryOrigin, Tracker, content, start_on};

const MIB: usize = 1 << 20;

async fn node_with_quota(root: &std::path::Path, quota_bytes: usize) -> Arc<Node> {
    let store =
        ChunkStore::open(root, StoreConfig { quota_bytes: Some(quota_bytes as u64), free_floor_bytes: 0 }).unwrap();
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
