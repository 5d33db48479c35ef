//! Objects that derive from blobs: whose word they are, and what becomes of wrong ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Statement, StatementKind};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, Priority};

use crate::support::{Handle, MemoryOrigin, Tracker, content, start, start_with};

const KIND: StatementKind = StatementKind::LayerIndex;

async fn again(tracker: &Arc<Tracker>, root: &std::path::Path, node: Arc<Node>, identity: &Arc<Identity>) -> Arc<Node> {
    node.shutdown().await;
    drop(node);
    start_with(tracker, root, Arc::clone(identity), Arc::new(Metrics::default()), |_| {}).await
}

fn voters(tracker: &Tracker, subject: &Digest) -> BTreeSet<lapwing_p2p::identity::PeerId> {
    tracker.stated(subject).into_iter().flat_map(|(_, voters)| voters).collect()
}

/// An index that a node merely uses it does not state, not even after a restart; one that it proved it does.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_node_has_proven_is_said_in_its_name() {
    let tracker = Arc::new(Tracker::default());
    let (subject, object) = (Digest::of(b"layer"), content(1000, 61));
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let identity = Arc::new(Identity::generate().unwrap());
    let maker = start(&tracker, one.path(), |_| {}).await;
    maker.publish(KIND, subject, object.clone()).await.unwrap();
    let user = start_with(&tracker, two.path(), Arc::clone(&identity), Arc::new(Metrics::default()), |_| {}).await;
    let found = user.derived(subject, KIND).await.unwrap();
    assert_eq!(found.read(0..1000, Priority::Prefetch).await.unwrap(), object);
    found.verified().await.unwrap();
    let statement = Statement { subject, kind: KIND, object: found.digest(), length: 1000 };
    user.accept(statement).await;
    drop(found);

    let user = again(&tracker, two.path(), user, &identity).await;
    // Said after everything that the node has to say when it starts.
    let marker = Digest::of(b"marker");
    user.publish(KIND, marker, content(10, 62)).await.unwrap();
    assert_eq!(voters(&tracker, &subject), BTreeSet::from([maker.id()]));
    user.prove(statement).await;
    assert_eq!(voters(&tracker, &subject), BTreeSet::from([maker.id(), user.id()]));
    tracker.forget_statements();
    let user = again(&tracker, two.path(), user, &identity).await;
    while !voters(&tracker, &subject).contains(&user.id()) {
        tokio::task::yield_now().await;
    }
    maker.shutdown().await;
    user.shutdown().await;
}

/// The first vote is a lie: it is tried once, and never again; the next vote is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_refuted_object_gives_way_to_the_next_vote_for_good() {
    let tracker = Arc::new(Tracker::default());
    let (subject, lie, right) = (Digest::of(b"layer"), content(1000, 63), content(1000, 64));
    let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let liar = start(&tracker, roots[0].path(), |_| {}).await;
    liar.publish(KIND, subject, lie.clone()).await.unwrap();
    let honest = start(&tracker, roots[1].path(), |_| {}).await;
    honest.publish(KIND, subject, right.clone()).await.unwrap();
    let identity = Arc::new(Identity::generate().unwrap());
    let user = start_with(&tracker, roots[2].path(), Arc::clone(&identity), Arc::new(Metrics::default()), |_| {}).await;
    let found = user.derived(subject, KIND).await.unwrap();
    assert_eq!(found.digest(), Digest::of(&lie));
    found.verified().await.unwrap();
    user.refute(Statement { subject, kind: KIND, object: found.digest(), length: 1000 }).await;
    drop(found);
    assert_eq!(user.derived(subject, KIND).await.unwrap().digest(), Digest::of(&right));
    let user = again(&tracker, roots[2].path(), user, &identity).await;
    assert_eq!(user.derived(subject, KIND).await.unwrap().digest(), Digest::of(&right));
    for node in [liar, honest, user] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_waits_for_its_quorum() {
    let tracker = Arc::new(Tracker::default());
    let (subject, object) = (Digest::of(b"layer"), content(1000, 65));
    let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = start(&tracker, roots[0].path(), |_| {}).await;
    first.publish(KIND, subject, object.clone()).await.unwrap();
    let careful = start(&tracker, roots[1].path(), |config| config.index_quorum = 2).await;
    assert!(careful.derived(subject, KIND).await.is_none());
    let second = start(&tracker, roots[2].path(), |_| {}).await;
    second.publish(KIND, subject, object.clone()).await.unwrap();
    assert_eq!(careful.derived(subject, KIND).await.unwrap().digest(), Digest::of(&object));
    for node in [first, careful, second] {
        node.shutdown().await;
    }
}

/// The process died after the blob was proven and before its metainfo was published.
#[tokio::test(flavor = "multi_thread")]
async fn metainfo_that_was_never_published_is_made_at_the_next_start() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(1 << 20, 66);
    let digest = Digest::of(&bytes);
    let root = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::generate().unwrap());
    let node = start_with(&tracker, root.path(), Arc::clone(&identity), Arc::new(Metrics::default()), |_| {}).await;
    let blob = node.open(digest, 1 << 20, Some(Arc::new(Handle(MemoryOrigin::new(bytes))))).unwrap();
    blob.verified().await.unwrap();
    while tracker.stated(&digest).is_empty() {
        tokio::task::yield_now().await;
    }
    drop(blob);
    let published = tracker.stated(&digest)[0].0;
    node.shutdown().await;
    drop(node);
    tracker.forget_statements();
    std::fs::remove_file(root.path().join("derived")).unwrap();
    let hex = published.object.hex();
    std::fs::remove_dir_all(root.path().join("blobs/sha256").join(&hex[..2]).join(hex)).unwrap();

    let node = start_with(&tracker, root.path(), identity, Arc::new(Metrics::default()), |_| {}).await;
    while tracker.stated(&digest).is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(tracker.stated(&digest), [(published, BTreeSet::from([node.id()]))]);
    assert!(node.derived(digest, StatementKind::Metainfo).await.unwrap().is_verified());
    node.shutdown().await;
}
