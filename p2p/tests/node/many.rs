//! One node with thousands of blobs: it opens, lists, announces, remembers, restarts and evicts.
//!
//! `LAPWING_TEST_BLOBS` is how many, in thousands of them to see how time and memory grow.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, Statement, StatementKind};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::node::Node;
use lapwing_p2p::store::{ChunkStore, StoreConfig, StoreError};

use crate::points::fast_directory;
use crate::support::{Tracker, content, start_on};

const LENGTH: usize = 500;

fn open(root: &Path, config: StoreConfig) -> Arc<ChunkStore> {
    loop {
        match ChunkStore::open(root, config) {
            // What a node that was there before left behind on blocking threads ends soon.
            Err(StoreError::Locked(_)) => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    }
}

/// Prints how long a step took and what the process weighs after it, for who wants to know.
fn note(step: &str, begun: &mut Instant) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().to_owned();
    eprintln!("{step}: {:?}, {resident}", begun.elapsed());
    *begun = Instant::now();
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(180), wait).await.expect("it never came true");
}

/// Announced are all of these.
fn announced(tracker: &Tracker, node: &Node, digests: &[Digest]) -> usize {
    digests.iter().filter(|digest| tracker.holding(digest, &node.id()) == Some(Holding::Complete)).count()
}

fn statement(subject: &Digest) -> Statement {
    Statement { subject: *subject, kind: StatementKind::LayerIndex, object: *subject, length: LENGTH as u64 }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_blobs_are_opened_announced_remembered_and_evicted() {
    let count: usize = std::env::var("LAPWING_TEST_BLOBS").map_or(5000, |count| count.parse().unwrap());
    // In memory: what is to be seen is what the node does, not how fast a disk syncs.
    let root = fast_directory();
    let begun = &mut Instant::now();
    let store = open(root.path(), StoreConfig::default());
    let digests: Vec<Digest> = (0..count as u64)
        .map(|seed| {
            let bytes = content(LENGTH, seed);
            let digest = Digest::of(&bytes);
            store.insert(&digest, &bytes).unwrap();
            digest
        })
        .collect();
    note("inserted", begun);
    drop(store);

    let tracker = Arc::new(Tracker::default());
    let identity = Arc::new(Identity::generate().unwrap());
    let store = open(root.path(), StoreConfig::default());
    note("opened", begun);
    let node = start_on(&tracker, store, Arc::clone(&identity), Arc::default(), |_| {}).await;
    until(|| announced(&tracker, &node, &digests) == count).await;
    note("announced", begun);
    assert_eq!(node.blobs().len(), count);
    note("listed", begun);
    for digest in &digests {
        node.prove(statement(digest)).await;
    }
    note("remembered", begun);
    let mut uses = node.store().list();
    uses.sort_unstable_by_key(|blob| blob.digest);
    node.shutdown().await;
    drop(node);

    tracker.forget_statements();
    let node =
        start_on(&tracker, open(root.path(), StoreConfig::default()), Arc::clone(&identity), Arc::default(), |_| {})
            .await;
    let last = digests.iter().max().unwrap();
    until(|| !tracker.stated(last).is_empty()).await;
    assert!(digests.iter().all(|digest| tracker.stated(digest).len() == 1));
    note("restarted", begun);
    let mut after = node.store().list();
    after.sort_unstable_by_key(|blob| blob.digest);
    let times = |blobs: &[lapwing_p2p::store::BlobSummary]| blobs.iter().map(|blob| blob.last_use).collect::<Vec<_>>();
    assert_eq!(times(&after), times(&uses), "what is announced is not used by that");
    node.shutdown().await;
    drop(node);

    let quota = (count * LENGTH / 2) as u64;
    let store = open(root.path(), StoreConfig { quota_bytes: Some(quota), ..StoreConfig::default() });
    let node = start_on(&tracker, store, identity, Arc::default(), |_| {}).await;
    until(|| node.store().used_bytes() <= quota / 100 * 80).await;
    note("evicted", begun);
    let left = node.store().list().len();
    assert!(left >= count * 39 / 100 && left <= count * 40 / 100, "{left} of {count} are left");
    until(|| announced(&tracker, &node, &digests) == left).await;
    note("withdrawn", begun);
    node.shutdown().await;
}
