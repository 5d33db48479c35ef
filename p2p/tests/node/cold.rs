//! Nodes that start together, and what comes after.

use std::sync::Arc;

use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, Statement, StatementKind};
use lapwing_p2p::node::Priority;

use crate::support::{Handle, MemoryOrigin, Tracker, content, start};

const LENGTH: usize = 12 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn four_nodes_fetch_the_blob_about_once() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 1);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    let directories: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut nodes = Vec::new();
    for directory in &directories {
        nodes.push(start(&tracker, directory.path(), |_| {}).await);
    }
    let pulls = nodes.iter().map(|node| {
        let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
        async move {
            blob.verified().await.unwrap();
            blob
        }
    });
    let blobs = futures_util::future::join_all(pulls).await;
    for (node, blob) in nodes.iter().zip(&blobs) {
        assert_eq!(blob.read(0..LENGTH as u64, Priority::Bulk).await.unwrap(), bytes);
        let status = node.blobs().into_iter().find(|status| status.digest == digest).unwrap();
        assert!(status.verified && !status.active && status.have == LENGTH as u64);
    }
    assert!(origin.copies() <= 1.05, "the origin sent {} copies", origin.copies());
    assert_eq!(blobs.iter().filter(|blob| blob.was_first_lessee()).count(), 1);
    for node in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_latecomer_takes_everything_from_peers_and_checks_it_by_metainfo() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 2);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(&tracker, one.path(), |_| {}).await;
    let blob = first.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.verified().await.unwrap();
    let metainfo = loop {
        // Published right after the digest matched.
        if let Some(metainfo) = first.derived(digest, StatementKind::Metainfo).await {
            break metainfo;
        }
        tokio::task::yield_now().await;
    };
    assert!(metainfo.is_verified());

    let second = start(&tracker, two.path(), |_| {}).await;
    let late = second.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    let streamed: Vec<_> = late.stream(0..LENGTH as u64, Priority::Bulk).map(Result::unwrap).collect().await;
    assert_eq!(streamed.concat(), bytes);
    assert_eq!(late.sources().bytes_from_origin, 0);
    assert_eq!(late.sources().bytes_from_peers, LENGTH as u64);
    assert!(!late.was_first_lessee());
    late.verified().await.unwrap();
    while tracker.holding(&digest, &second.id()) != Some(Holding::Complete) {
        tokio::task::yield_now().await;
    }
    first.shutdown().await;
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_comes_from_a_peer_without_anybodys_word() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(1000, 3);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(&tracker, one.path(), |_| {}).await;
    let second = start(&tracker, two.path(), |_| {}).await;
    let blob = first.open(digest, 1000, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.verified().await.unwrap();
    while tracker.holding(&digest, &first.id()) != Some(Holding::Complete) {
        tokio::task::yield_now().await;
    }
    let blob = second.open(digest, 1000, None).unwrap();
    assert_eq!(blob.read(10..20, Priority::Fault).await.unwrap(), bytes.slice(10..20));
    assert_eq!(origin.copies(), 1.0);
    first.shutdown().await;
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_object_is_found_by_its_subject_and_after_a_restart() {
    let tracker = Arc::new(Tracker::default());
    let subject = Digest::of(b"layer");
    let object = content(700 << 10, 4);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(&tracker, one.path(), |_| {}).await;
    let digest = first.publish(StatementKind::LayerIndex, subject, object.clone()).await.unwrap();
    assert_eq!(digest, Digest::of(&object));
    let second = start(&tracker, two.path(), |_| {}).await;
    let found = second.derived(subject, StatementKind::LayerIndex).await.unwrap();
    assert_eq!(found.read(0..found.length(), Priority::ReadAhead).await.unwrap(), object);
    found.verified().await.unwrap();
    drop(found);
    let (kind, length) = (StatementKind::LayerIndex, object.len() as u64);
    second.accept(Statement { subject, kind, object: digest, length }).await;
    assert!(second.derived(Digest::of(b"other"), StatementKind::LayerIndex).await.is_none());
    first.shutdown().await;
    second.shutdown().await;
    drop((first, second));

    tracker.down.store(true, std::sync::atomic::Ordering::Relaxed);
    let again = start(&tracker, two.path(), |_| {}).await;
    let found = again.derived(subject, StatementKind::LayerIndex).await.unwrap();
    assert_eq!(found.read(0..found.length(), Priority::ReadAhead).await.unwrap(), object);
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_objects_of_a_subject_are_found_but_for_refuted_ones() {
    let tracker = Arc::new(Tracker::default());
    let (subject, kind) = (Digest::of(b"image"), StatementKind::Profile);
    let directories: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut nodes = Vec::new();
    for directory in &directories {
        nodes.push(start(&tracker, directory.path(), |_| {}).await);
    }
    let mut stated = Vec::new();
    for (number, node) in nodes[..3].iter().enumerate() {
        stated.push(node.publish(kind, subject, content(100, number as u64)).await.unwrap());
    }
    stated.sort();
    let asker = &nodes[3];
    let found = async |most| {
        let mut found: Vec<_> =
            asker.all_derived(subject, kind, most).await.iter().map(|object| object.digest()).collect();
        found.sort();
        found
    };
    assert_eq!(found(9).await, stated);
    assert_eq!(found(2).await.len(), 2);
    asker.refute(Statement { subject, kind, object: stated[1], length: 100 }).await;
    assert_eq!(found(9).await, [stated[0], stated[2]]);
    for node in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_object_gets_it_when_this_node_derives_it() {
    let tracker = Arc::new(Tracker::default());
    let object = content(700 << 10, 5);
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |_| {}).await;
    let waiting = node.open(Digest::of(&object), object.len() as u64, None).unwrap();
    waiting.want_all(Priority::Background);
    assert!(!waiting.is_verified());
    node.publish(StatementKind::LayerIndex, Digest::of(b"layer"), object.clone()).await.unwrap();
    waiting.verified().await.unwrap();
    assert_eq!(waiting.read(0..object.len() as u64, Priority::Fault).await.unwrap(), object);
    node.shutdown().await;
}

/// One vote names an object of a length that its kind cannot have: it is not fetched, and the next vote counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_vote_for_an_object_beyond_the_limit_of_its_kind_is_passed_over() {
    let tracker = Arc::new(Tracker::default());
    let subject = Digest::of(b"layer");
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(&tracker, one.path(), |_| {}).await;
    let second = start(&tracker, two.path(), |_| {}).await;
    let kind = StatementKind::LayerIndex;
    for (subject, length) in [(subject, 1 << 40), (subject, 0), (Digest::of(b"other"), kind.max_length() + 1)] {
        tracker.vote(Statement { subject, kind, object: Digest::of(b"never there"), length }, first.id());
    }
    let digest = first.publish(kind, subject, content(1000, 6)).await.unwrap();
    assert_eq!(second.derived(subject, kind).await.unwrap().digest(), digest);
    assert!(second.derived(Digest::of(b"other"), kind).await.is_none());
    first.shutdown().await;
    second.shutdown().await;
}
