//! A disk that gives other bytes than were written: what is found spoilt is not given to anybody, and comes anew.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, Priority};

use crate::support::{Handle, MemoryOrigin, Tracker, content, start_with};

const LENGTH: usize = 2 << 20;
const WHOLE: u64 = LENGTH as u64;

fn spoil(root: &Path, digest: &Digest, at: u64) {
    let data = root.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex()).join("data");
    let file = File::options().read(true).write(true).open(data).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

async fn start(tracker: &Arc<Tracker>, root: &Path, identity: &Arc<Identity>) -> (Arc<Node>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    (start_with(tracker, root, Arc::clone(identity), Arc::clone(&metrics), |_| {}).await, metrics)
}

/// A node, started anew, with a proven blob whose third piece was spoilt in between.
async fn spoilt(tracker: &Arc<Tracker>, root: &Path, bytes: &Bytes) -> (Arc<Node>, Arc<Metrics>) {
    let (digest, identity) = (Digest::of(bytes), Arc::new(Identity::generate().unwrap()));
    let (node, _) = start(tracker, root, &identity).await;
    let origin = Arc::new(Handle(MemoryOrigin::new(bytes.clone())));
    node.open(digest, WHOLE, Some(origin)).unwrap().verified().await.unwrap();
    node.shutdown().await;
    drop(node);
    spoil(root, &digest, 150_000);
    let (node, metrics) = start(tracker, root, &identity).await;
    while tracker.holding(&digest, &node.id()) != Some(Holding::Complete) {
        tokio::task::yield_now().await;
    }
    (node, metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_spoilt_between_two_starts_is_not_sent_and_the_blob_is_partial_then() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 71);
    let digest = Digest::of(&bytes);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (holder, holder_metrics) = spoilt(&tracker, one.path(), &bytes).await;
    let (taker, metrics) = start(&tracker, two.path(), &Arc::new(Identity::generate().unwrap())).await;
    let blob = taker.open(digest, WHOLE, Some(Arc::new(Handle(MemoryOrigin::new(bytes.clone()))))).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.read(0..WHOLE, Priority::Bulk).await.unwrap(), bytes);
    assert_eq!((metrics.bad_pieces.get(), holder_metrics.spoilt_pieces.get()), (0, 1));
    while tracker.holding(&digest, &holder.id()) != Some(Holding::Partial) {
        tokio::task::yield_now().await;
    }

    // Whoever wants it here gets what is missing from the other, and it is proven anew.
    let healed = holder.open(digest, WHOLE, None).unwrap();
    assert!(!healed.is_verified());
    healed.verified().await.unwrap();
    assert_eq!(healed.read(0..WHOLE, Priority::Bulk).await.unwrap(), bytes);
    while tracker.holding(&digest, &holder.id()) != Some(Holding::Complete) {
        tokio::task::yield_now().await;
    }
    holder.shutdown().await;
    taker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_a_spoilt_piece_fetches_it_anew() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 72);
    let digest = Digest::of(&bytes);
    let root = tempfile::tempdir().unwrap();
    let (node, metrics) = spoilt(&tracker, root.path(), &bytes).await;
    let origin = MemoryOrigin::new(bytes.clone());
    let blob = node.open(digest, WHOLE, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    let streamed: Vec<Bytes> = blob.stream(0..WHOLE, Priority::Bulk).map(Result::unwrap).collect().await;
    assert_eq!(streamed.concat(), bytes);
    assert_eq!(metrics.spoilt_pieces.get(), 1);
    assert_eq!(origin.sent.load(std::sync::atomic::Ordering::Relaxed), 64 << 10, "one piece");
    blob.verified().await.unwrap();
    node.shutdown().await;
}
