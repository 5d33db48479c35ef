//! Who is to blame for a blob that comes out wrong: those who signed what is not true, and nobody else.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, StatementKind};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, Priority, ReadError};
use lapwing_p2p::rate::{Limits, Rates};
use lapwing_p2p::verify::{Metainfo, piece_hash};

use crate::hostile::{LENGTH, Spoil, liar, relay};
use crate::support::{Handle, MemoryOrigin, Mood, Tracker, content, start_with};

const WHOLE: u64 = LENGTH as u64;

struct Start {
    node: Arc<Node>,
    metrics: Arc<Metrics>,
    identity: Arc<Identity>,
    _root: tempfile::TempDir,
}

async fn node(tracker: &Arc<Tracker>) -> Start {
    let root = tempfile::tempdir().unwrap();
    let (metrics, identity) = (Arc::new(Metrics::default()), Arc::new(Identity::generate().unwrap()));
    let node = start_with(tracker, root.path(), Arc::clone(&identity), Arc::clone(&metrics), |_| {}).await;
    Start { node, metrics, identity, _root: root }
}

/// A node that has fetched all of it from the origin under leases, and proven it.
async fn honest(tracker: &Arc<Tracker>, origin: &Arc<MemoryOrigin>, digest: Digest) -> Start {
    let start = node(tracker).await;
    let blob = start.node.open(digest, WHOLE, Some(Arc::new(Handle(Arc::clone(origin))))).unwrap();
    blob.verified().await.unwrap();
    while tracker.holding(&digest, &start.node.id()) != Some(Holding::Complete) || tracker.stated(&digest).is_empty() {
        tokio::task::yield_now().await;
    }
    start
}

/// A node that holds pieces of a liar's, with the liar's signatures, and does not know better yet: whoever takes them from
/// it finds out who lied, not who passed the lie on.
#[tokio::test(flavor = "multi_thread")]
async fn who_passes_a_lie_on_is_not_charged_for_it() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 51);
    let digest = Digest::of(&bytes);
    let liar = liar(&tracker, &bytes, Spoil::OneBit, true).await;
    tracker.add_lessee(digest, liar.identity.id());
    let relay = node(&tracker).await;
    let part = relay.node.open(digest, WHOLE, None).unwrap();
    part.read(0..WHOLE / 2, Priority::Fault).await.unwrap();
    // The liar is gone: what it said is passed on by the relay alone.
    tracker.forget(liar.identity.id());
    tracker.add_holder(digest, relay.node.id(), Holding::Partial);

    let taker = node(&tracker).await;
    let origin = MemoryOrigin::new(bytes.clone());
    taker.node.open(digest, WHOLE, None).unwrap().read(0..WHOLE / 2, Priority::Fault).await.unwrap();
    let blob = taker.node.open(digest, WHOLE, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.read(0..WHOLE, Priority::Bulk).await.unwrap(), bytes);
    assert_eq!(blob.sources().bytes_from_peers, WHOLE / 2, "from the relay");
    assert_eq!(origin.sent.load(Ordering::Relaxed), WHOLE, "what was in doubt was fetched again, and nothing else");
    let metrics = &taker.metrics;
    assert_eq!((metrics.false_statements.get(), metrics.bans.get(), metrics.bad_pieces.get()), (3, 1, 0));

    // The relay is welcome still.
    let other = content(100_000, 52);
    let held = relay.node.open(Digest::of(&other), 100_000, Some(Arc::new(Handle(MemoryOrigin::new(other.clone())))));
    held.unwrap().verified().await.unwrap();
    tracker.add_holder(Digest::of(&other), relay.node.id(), Holding::Complete);
    let given = taker.node.open(Digest::of(&other), 100_000, None).unwrap();
    assert_eq!(given.read(0..100_000, Priority::Fault).await.unwrap(), other);
    for start in [relay, taker] {
        start.node.shutdown().await;
    }
}

/// Right statements of an honest lessee over wrong bytes: the sender is banned, the lessee goes on serving.
#[tokio::test(flavor = "multi_thread")]
async fn a_lying_relay_is_banned_and_the_signer_is_not() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 53);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    let honest = honest(&tracker, &origin, digest).await;
    // Slow enough that the liar has its turns.
    let upload = Rates { node: 2 << 20, ..Rates::default() };
    honest.node.set_limits(Limits { upload, ..Limits::default() });
    let liar = relay(&tracker, &bytes, Spoil::OneBit, false, Some(Arc::clone(&honest.identity))).await;
    let taker = node(&tracker).await;
    let blob = taker.node.open(digest, WHOLE, None).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.read(0..WHOLE, Priority::Bulk).await.unwrap(), bytes);
    let metrics = &taker.metrics;
    assert!(liar.sent.load(Ordering::Relaxed) >= 3, "the liar was asked");
    assert!((3..=4).contains(&metrics.bad_pieces.get()), "{} bad pieces", metrics.bad_pieces.get());
    let counts = (metrics.bans.get(), metrics.false_statements.get(), metrics.digest_mismatches.get());
    assert_eq!(counts, (1, 0, 0));
    for start in [honest, taker] {
        start.node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_liars_are_both_convicted_and_no_reader_gets_a_wrong_blob() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 54);
    let digest = Digest::of(&bytes);
    for spoil in [Spoil::OneBit, Spoil::AnotherPiece] {
        let liar = liar(&tracker, &bytes, spoil, true).await;
        tracker.add_lessee(digest, liar.identity.id());
    }
    let taker = node(&tracker).await;
    let origin = MemoryOrigin::new(bytes.clone());
    let blob = taker.node.open(digest, WHOLE, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.read(0..WHOLE, Priority::Bulk).await.unwrap(), bytes);
    assert_eq!(taker.metrics.bans.get(), 2);
    assert!(origin.sent.load(Ordering::Relaxed) <= WHOLE);
    taker.node.shutdown().await;
}

/// All agree, since all have it from there: the origin is named, nobody is charged, and nothing of it is kept.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_serves_something_else_is_to_blame_and_no_node() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 55);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    *origin.mood.lock().unwrap() = Mood::Lies;
    let starts = [node(&tracker).await, node(&tracker).await];
    let pulls = starts.iter().map(|start| {
        let blob = start.node.open(digest, WHOLE, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
        async move { blob.verified().await }
    });
    for refused in futures_util::future::join_all(pulls).await {
        match refused {
            Err(error @ ReadError::DigestMismatch { .. }) => {
                let text = error.to_string();
                assert!(text.contains(&digest.to_string()) && text.contains("from memory"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    for start in starts {
        let metrics = &start.metrics;
        assert_eq!((metrics.bans.get(), metrics.bad_pieces.get(), metrics.false_statements.get()), (0, 0, 0));
        assert!(!start.node.store().get(&digest).unwrap().is_verified());
        start.node.shutdown().await;
    }
}

/// One node states a metainfo that is a lie. Honest peers contradict it, and are not charged; it is refuted.
#[tokio::test(flavor = "multi_thread")]
async fn one_lying_vote_for_a_metainfo_harms_nobody() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 56);
    let digest = Digest::of(&bytes);
    let layout = PieceLayout::new(WHOLE).unwrap();
    let hashes = (0..layout.piece_count()).map(|piece| piece_hash(&piece.to_be_bytes())).collect();
    let lie = Metainfo::new(digest, WHOLE, hashes).unwrap();
    let evil = node(&tracker).await;
    evil.node.publish(StatementKind::Metainfo, digest, lie.encode().into()).await.unwrap();
    let origin = MemoryOrigin::new(bytes.clone());
    let honest = node(&tracker).await;
    let held = honest.node.open(digest, WHOLE, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    held.verified().await.unwrap();
    while tracker.holding(&digest, &honest.node.id()) != Some(Holding::Complete) {
        tokio::task::yield_now().await;
    }

    let taker = node(&tracker).await;
    let blob = taker.node.open(digest, WHOLE, None).unwrap();
    tokio::time::timeout(Duration::from_secs(60), blob.verified()).await.expect("the lie keeps the blob out").unwrap();
    assert_eq!(blob.read(0..WHOLE, Priority::Bulk).await.unwrap(), bytes);
    assert_eq!(blob.sources().bytes_from_peers, WHOLE);
    assert_eq!((taker.metrics.bans.get(), taker.metrics.bad_pieces.get()), (0, 0));
    for start in [evil, honest, taker] {
        start.node.shutdown().await;
    }
}

/// A liar's lie is found out without the origin, by the metainfo of somebody who has proven the blob: just the wrong pieces
/// come again, from peers.
#[tokio::test(flavor = "multi_thread")]
async fn metainfo_of_another_tells_which_pieces_are_wrong() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 57);
    let digest = Digest::of(&bytes);
    let liar = liar(&tracker, &bytes, Spoil::OneBit, true).await;
    tracker.add_lessee(digest, liar.identity.id());
    let taker = node(&tracker).await;
    let blob = taker.node.open(digest, WHOLE, None).unwrap();
    let layout = PieceLayout::new(WHOLE).unwrap();
    // All but the last piece is the liar's.
    blob.read(0..layout.range(PieceIndex(layout.piece_count() - 1)).start, Priority::Fault).await.unwrap();
    tracker.forget(liar.identity.id());
    let honest = honest(&tracker, &MemoryOrigin::new(bytes.clone()), digest).await;
    blob.verified().await.unwrap();
    assert_eq!(blob.read(0..WHOLE, Priority::Bulk).await.unwrap(), bytes);
    assert_eq!(blob.sources().bytes_from_origin, 0, "it has no origin");
    assert_eq!(taker.metrics.bans.get(), 1, "the liar");
    for start in [honest, taker] {
        start.node.shutdown().await;
    }
}
