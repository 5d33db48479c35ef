//! Nodes whose tracker is dead, and what they still find through the peers they know.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, StatementKind};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, NodeConfig, Priority};
use lapwing_p2p::wire::Frame;
use lapwing_p2p::wire::telling::{TELLS_HOLDERS, Telling, ToldHolder};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::raw;
use crate::support::{Handle, MemoryOrigin, Tracker, content, start, start_with};

const LENGTH: usize = 3 << 20;
/// What nodes meet over.
const SMALL: usize = 100 << 10;
const DEADLINE: Duration = Duration::from_secs(60);

fn patient(config: &mut NodeConfig) {
    config.read_deadline = DEADLINE;
}

/// Waits for something to become so.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let poll = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, poll).await.unwrap_or_else(|_| panic!("waited for {what}"));
}

/// Lets the node fetch these bytes and make their metainfo.
async fn hold(node: &Arc<Node>, bytes: &Bytes) {
    let (digest, length) = (Digest::of(bytes), bytes.len() as u64);
    let origin = Handle(MemoryOrigin::new(bytes.clone()));
    node.open(digest, length, Some(Arc::new(origin))).unwrap().verified().await.unwrap();
    if bytes.len() > SMALL {
        until("metainfo", || async { node.derived(digest, StatementKind::Metainfo).await.is_some() }).await;
    }
}

/// Makes two nodes known to each other: one reads what the other has.
async fn acquaint(holder: &Arc<Node>, reader: &Arc<Node>, seed: u64) {
    let bytes = content(SMALL, seed);
    hold(holder, &bytes).await;
    let blob = reader.open(Digest::of(&bytes), SMALL as u64, None).unwrap();
    assert_eq!(blob.read(0..SMALL as u64, Priority::Bulk).await.unwrap(), bytes);
}

async fn read_all(node: &Arc<Node>, bytes: &Bytes) {
    let length = bytes.len() as u64;
    let blob = node.open(Digest::of(bytes), length, None).unwrap();
    assert_eq!(blob.read(0..length, Priority::Bulk).await.unwrap(), *bytes);
    blob.verified().await.unwrap();
    assert_eq!(blob.sources().bytes_from_peers, length);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_is_found_through_the_one_peer_that_is_known() {
    let tracker = Arc::new(Tracker::default());
    let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let metrics = Arc::new(Metrics::default());
    let known = start(&tracker, directories[0].path(), patient).await;
    let holder = start(&tracker, directories[1].path(), patient).await;
    let identity = Arc::new(Identity::generate().unwrap());
    let asker = start_with(&tracker, directories[2].path(), identity, Arc::clone(&metrics), patient).await;
    let bytes = content(LENGTH, 71);
    hold(&holder, &bytes).await;
    // It has a part of the blob, and knows from the tracker who has all of it.
    let part = known.open(Digest::of(&bytes), LENGTH as u64, None).unwrap();
    part.read(0..1, Priority::Fault).await.unwrap();
    acquaint(&known, &asker, 72).await;
    tracker.down.store(true, Ordering::Relaxed);

    read_all(&asker, &bytes).await;
    let has = |node: &Node| node.blobs().into_iter().find(|blob| blob.digest == Digest::of(&bytes)).unwrap().have;
    assert!(has(&known) < LENGTH as u64, "it could have given all of it itself");
    assert!(metrics.told_holders.get() >= 1);
    assert_eq!(metrics.refused_answers.get(), 0);
    for node in [asker, known, holder] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_without_a_tracker_asks_the_peers_it_remembers() {
    let tracker = Arc::new(Tracker::default());
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let holder = start(&tracker, one.path(), patient).await;
    let bytes = content(LENGTH, 73);
    hold(&holder, &bytes).await;
    let identity = Arc::new(Identity::generate().unwrap());
    let root = two.path();
    let start_anew = || start_with(&tracker, root, Arc::clone(&identity), Arc::new(Metrics::default()), patient);
    let first = start_anew().await;
    acquaint(&holder, &first, 74).await;
    first.shutdown().await;
    drop(first);
    tracker.down.store(true, Ordering::Relaxed);

    let second = start_anew().await;
    read_all(&second, &bytes).await;
    second.shutdown().await;
    holder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_groups_do_not_help_each_other() {
    let tracker = Arc::new(Tracker::default());
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let metrics = Arc::new(Metrics::default());
    let identity = Arc::new(Identity::generate().unwrap());
    let other = |config: &mut NodeConfig| config.group = "other".into();
    let holder = start_with(&tracker, one.path(), identity, Arc::clone(&metrics), other).await;
    let node = start(&tracker, two.path(), |config| config.read_deadline = Duration::from_secs(2)).await;
    acquaint(&holder, &node, 75).await;
    let bytes = content(LENGTH, 76);
    hold(&holder, &bytes).await;
    node.shutdown().await;
    let remembered = std::fs::read_to_string(two.path().join("peers")).unwrap_or_default();
    assert!(remembered.lines().count() <= 1, "{remembered}");
    assert_eq!(metrics.refused_questions.get(), 0, "it was not even asked");
    holder.shutdown().await;
}

/// A peer that answers questions as no node does.
struct Liar {
    stream: raw::Stream,
    tracker: Arc<Tracker>,
    node: Arc<Node>,
    metrics: Arc<Metrics>,
    _directory: tempfile::TempDir,
}

impl Liar {
    /// Lets a node connect to it for a blob that it is said to have, and greets it.
    async fn start(group: &str) -> Self {
        let tracker = Arc::new(Tracker::default());
        let directory = tempfile::tempdir().unwrap();
        let (identity, metrics) = (Arc::new(Identity::generate().unwrap()), Arc::new(Metrics::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        tracker.register(identity.id(), listener.local_addr().unwrap());
        let bait = content(SMALL, 77);
        tracker.add_holder(Digest::of(&bait), identity.id(), Holding::Complete);
        let own = Arc::new(Identity::generate().unwrap());
        let short = |config: &mut NodeConfig| config.read_deadline = Duration::from_secs(2);
        let node = start_with(&tracker, directory.path(), own, Arc::clone(&metrics), short).await;
        want(&node, &bait);
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = raw::accept_with(TELLS_HOLDERS, stream, &identity).await.unwrap();
        let group = *Digest::of(group.as_bytes()).as_bytes();
        raw::send(&mut stream, &Frame::Here { port: 7081, group }).await.unwrap();
        Self { stream, tracker, node, metrics, _directory: directory }
    }

    /// The next frame that is such a one.
    async fn next(&mut self, is_it: impl Fn(&Frame) -> bool) -> Frame {
        let reading = async {
            loop {
                let frame = raw::receive(&mut self.stream).await.unwrap();
                if is_it(&frame) {
                    return frame;
                }
            }
        };
        tokio::time::timeout(DEADLINE, reading).await.unwrap()
    }

    async fn tell(&mut self, digest: Digest, others: Vec<ToldHolder>) {
        let telling = Telling { digest, own: None, metainfo: None, others };
        raw::send(&mut self.stream, &Frame::Holders(telling)).await.unwrap();
    }

    async fn refused(&self, count: u64) {
        until("the answer to be refused", || async { self.metrics.refused_answers.get() == count }).await;
    }
}

/// Wants bytes in the background.
fn want(node: &Arc<Node>, bytes: &Bytes) {
    let blob = node.open(Digest::of(bytes), bytes.len() as u64, None).unwrap();
    tokio::spawn(async move { blob.read(0..1, Priority::Bulk).await });
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_are_refused_and_counted_and_nobody_is_dialled_for_them() {
    let mut liar = Liar::start("default").await;
    let trap = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = trap.local_addr().unwrap().port();
    liar.tell(Digest::of(b"unasked"), Vec::new()).await;
    liar.refused(1).await;

    liar.tracker.down.store(true, Ordering::Relaxed);
    let wanted = content(LENGTH, 78);
    let digest = Digest::of(&wanted);
    want(&liar.node, &wanted);
    let asks = move |frame: &Frame| *frame == Frame::AskHolders { digest };
    liar.next(asks).await;
    let other = Identity::generate().unwrap().id();
    let at = |address: &str| ToldHolder { peer: other, address: address.parse().unwrap(), holding: Holding::Complete };
    liar.tell(digest, vec![at(&format!("0.0.0.0:{port}"))]).await;
    liar.refused(2).await;
    liar.tell(digest, vec![at(&format!("127.0.0.1:{port}"))]).await;
    liar.refused(3).await;
    let dialled = tokio::time::timeout(Duration::ZERO, trap.accept()).await;
    assert!(dialled.is_err(), "somebody was dialled on a liar's word");
    assert_eq!(liar.metrics.told_holders.get(), 0);

    // Thousands of entries: the length alone ends the connection.
    let length = 51 * 5000_u32;
    liar.stream.write_all(&[&[13][..], &length.to_be_bytes()].concat()).await.unwrap();
    liar.stream.flush().await.unwrap();
    let ended = async { while raw::receive(&mut liar.stream).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, ended).await.unwrap();
    liar.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_of_another_group_is_told_nothing() {
    let mut liar = Liar::start("other").await;
    let held = content(SMALL, 79);
    hold(&liar.node, &held).await;
    raw::send(&mut liar.stream, &Frame::AskHolders { digest: Digest::of(&held) }).await.unwrap();
    let metrics = Arc::clone(&liar.metrics);
    until("the question to be refused", || async { metrics.refused_questions.get() == 1 }).await;
    let group = *Digest::of(b"default").as_bytes();
    raw::send(&mut liar.stream, &Frame::Here { port: 7081, group }).await.unwrap();
    raw::send(&mut liar.stream, &Frame::AskHolders { digest: Digest::of(&held) }).await.unwrap();
    let Frame::Holders(told) = liar.next(|frame| matches!(frame, Frame::Holders(_))).await else { unreachable!() };
    assert_eq!(
        (told.digest, told.own),
        (Digest::of(&held), Some(Holding::Complete)),
        "the first answer is to the second"
    );
    liar.node.shutdown().await;
}
