//! Content that has a name in the place of a digest: a version of a URL.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, Statement, StatementKind};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Blob, Node, Priority, ReadError};

use crate::support::{Handle, MemoryOrigin, Mood, Tracker, content, start, start_with};

/// One of a single piece, and one of many.
const LENGTHS: [usize; 2] = [100_000, 4 << 20];

/// Waits until the node has told discovery what the pieces hash to.
async fn stated(node: &Arc<Node>, name: Digest) -> Arc<Blob> {
    loop {
        match node.derived(name, StatementKind::Metainfo).await {
            Some(metainfo) => break metainfo,
            None => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_it_at_one_copy_and_serve_it_after_a_restart() {
    for length in LENGTHS {
        let tracker = Arc::new(Tracker::default());
        let bytes = content(length, 31);
        let name = Digest::name(b"a version of a URL");
        let origin = MemoryOrigin::new(bytes.clone());
        let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let identity = Arc::new(Identity::generate().unwrap());
        let begin = |directory: usize| {
            let metrics = Arc::new(Metrics::default());
            start_with(&tracker, directories[directory].path(), Arc::clone(&identity), metrics, |_| {})
        };
        let nodes = [begin(0).await, start(&tracker, directories[1].path(), |_| {}).await];
        let pulls = nodes.iter().map(|node| {
            let blob = node.open(name, length as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
            async move { blob.stream(0..length as u64, Priority::Bulk).map(Result::unwrap).collect::<Vec<_>>().await }
        });
        for streamed in futures_util::future::join_all(pulls).await {
            assert!(streamed.concat() == bytes, "wrong bytes");
        }
        assert!(origin.copies() <= 1.05, "{} copies of {length}", origin.copies());
        stated(&nodes[0], name).await;
        for node in nodes {
            tracker.forget(node.id());
            node.shutdown().await;
        }

        let again = begin(0).await;
        while tracker.holding(&name, &again.id()) != Some(Holding::Complete) {
            tokio::task::yield_now().await;
        }
        stated(&again, name).await;
        let late = start(&tracker, directories[2].path(), |_| {}).await;
        let before = origin.sent.load(Ordering::Relaxed);
        let blob = late.open(name, length as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
        assert!(blob.read(0..length as u64, Priority::Bulk).await.unwrap() == bytes);
        assert_eq!(origin.sent.load(Ordering::Relaxed), before, "a holder that was restarted is as good");
        late.shutdown().await;
        again.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_contradicts_what_was_stated_is_believed_and_readers_are_told() {
    let length = LENGTHS[1];
    let tracker = Arc::new(Tracker::default());
    let bytes = content(length, 32);
    let name = Digest::name(b"a version that somebody lies about");
    let (lying, honest) = (MemoryOrigin::new(bytes.clone()), MemoryOrigin::new(bytes.clone()));
    *lying.mood.lock().unwrap() = Mood::Lies;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // It fetches without a lease, so that its signatures count nowhere: its metainfo alone is believed.
    tracker.down.store(true, Ordering::Relaxed);
    let liar = start(&tracker, one.path(), |_| {}).await;
    let blob = liar.open(name, length as u64, Some(Arc::new(Handle(lying)))).unwrap();
    blob.verified().await.unwrap();
    let metainfo = stated(&liar, name).await;
    tracker.down.store(false, Ordering::Relaxed);
    tracker.add_holder(name, liar.id(), Holding::Complete);
    let (kind, object, length_stated) = (StatementKind::Metainfo, metainfo.digest(), metainfo.length());
    tracker.vote(Statement { subject: name, kind, object, length: length_stated }, liar.id());

    let node = start(&tracker, two.path(), |_| {}).await;
    let blob = node.open(name, length as u64, Some(Arc::new(Handle(Arc::clone(&honest))))).unwrap();
    let mut stream = Box::pin(blob.stream(0..length as u64 / 2, Priority::Bulk));
    let first = stream.next().await.unwrap().unwrap();
    assert!(first != bytes.slice(0..first.len()), "nothing tells yet that this is a lie");
    blob.read(0..length as u64 / 2, Priority::Bulk).await.unwrap();
    tracker.forget(liar.id());
    liar.shutdown().await;

    blob.verified().await.unwrap();
    assert!(blob.read(0..length as u64, Priority::Bulk).await.unwrap() == bytes, "wrong bytes were kept");
    assert_eq!(honest.copies(), 1.0);
    let rest: Vec<_> = stream.collect().await;
    assert!(matches!(rest.last(), Some(Err(ReadError::Revoked { .. }))), "the reader was not told");
    node.shutdown().await;
}
