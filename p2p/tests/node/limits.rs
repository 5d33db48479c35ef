//! Speed limits on real sockets.
//!
//! The clock of the machine only bounds from one side: what must not go faster took at least so long, however slow the
//! machine is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, StatementKind};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::PieceLayout;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Blob, Node, Priority};
use lapwing_p2p::rate::{Limits, Rates};

use crate::support::{Handle, MemoryOrigin, Tracker, content, start, start_with};

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

fn only(node: u64) -> Rates {
    Rates { node, ..Rates::default() }
}

/// The least time in which `bytes` go at `rate`, when a burst and one more piece need not be waited for.
fn least(bytes: u64, rate: u64) -> Duration {
    let piece = PieceLayout::new(bytes).unwrap().piece_length();
    Duration::from_secs_f64((bytes - rate / 4 - piece) as f64 / rate as f64)
}

/// A node that has a blob of these bytes, known to discovery with its metainfo.
async fn holder(tracker: &Arc<Tracker>, root: &std::path::Path, bytes: &bytes::Bytes) -> Arc<Node> {
    let node = start(tracker, root, |_| {}).await;
    hold(&node, tracker, bytes).await;
    node
}

async fn hold(node: &Arc<Node>, tracker: &Arc<Tracker>, bytes: &bytes::Bytes) {
    let digest = Digest::of(bytes);
    let origin = Arc::new(Handle(MemoryOrigin::new(bytes.clone())));
    node.open(digest, bytes.len() as u64, Some(origin)).unwrap().verified().await.unwrap();
    while tracker.holding(&digest, &node.id()) != Some(Holding::Complete)
        || node.derived(digest, StatementKind::Metainfo).await.is_none()
    {
        tokio::task::yield_now().await;
    }
}

fn have(node: &Arc<Node>, blob: &Blob) -> u64 {
    node.store().get(&blob.digest()).map_or(0, |stored| stored.have_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_requests_and_origins_keep_to_their_limits() {
    const RATE: u64 = 4 * MIB;
    let bytes = content(8 * MIB as usize, 41);
    let digest = Digest::of(&bytes);
    let pull = async |of_holder: Limits, of_taker: Limits, origin: bool| {
        let tracker = Arc::new(Tracker::default());
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = MemoryOrigin::new(bytes.clone());
        let holder = if origin { None } else { Some(holder(&tracker, one.path(), &bytes).await) };
        if let Some(holder) = &holder {
            holder.set_limits(of_holder);
        }
        let metrics = Arc::new(Metrics::default());
        let identity = Arc::new(Identity::generate().unwrap());
        let began = Instant::now();
        let taker =
            start_with(&tracker, two.path(), identity, Arc::clone(&metrics), |config| config.limits = of_taker).await;
        let blob = taker.open(digest, 8 * MIB, origin.then(|| Arc::new(Handle(source)) as _)).unwrap();
        blob.verified().await.unwrap();
        let took = began.elapsed();
        let sources = blob.sources();
        assert_eq!(if origin { sources.bytes_from_origin } else { sources.bytes_from_peers }, 8 * MIB);
        assert_eq!(blob.read(0..8 * MIB, Priority::Bulk).await.unwrap(), bytes);
        taker.shutdown().await;
        if let Some(holder) = holder {
            holder.shutdown().await;
        }
        (took, metrics)
    };
    let none = Limits::default();
    let (took, _) = pull(Limits { upload: only(RATE), ..none }, none, false).await;
    assert!(took >= least(8 * MIB, RATE), "uploads took only {took:?}");
    let per_peer = Rates { per_peer: RATE, ..Rates::default() };
    let (took, _) = pull(Limits { upload: per_peer, ..none }, none, false).await;
    assert!(took >= least(8 * MIB, RATE), "uploads to one peer took only {took:?}");
    let (took, metrics) = pull(none, Limits { download: only(RATE), ..none }, false).await;
    assert!(took >= least(8 * MIB, RATE), "requests took only {took:?}");
    assert!(throttled(&metrics, "download") > 0.0);
    let (took, metrics) = pull(none, Limits { origin: only(RATE), ..none }, true).await;
    assert!(took >= least(8 * MIB, RATE), "the origin took only {took:?}");
    assert!(throttled(&metrics, "origin") > 0.0);
}

fn throttled(metrics: &Metrics, direction: &'static str) -> f64 {
    metrics.throttled.get_or_create(&lapwing_p2p::metrics::DirectionLabel { direction }).get()
}

/// At the first limits the blob would take minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_lifted_binds_no_more() {
    const CRAWL: u64 = 64 << 10;
    let tracker = Arc::new(Tracker::default());
    let bytes = content(16 * MIB as usize, 42);
    let digest = Digest::of(&bytes);
    let (one, two, three) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let holder = holder(&tracker, one.path(), &bytes).await;
    holder.set_limits(Limits { upload: only(CRAWL), ..Limits::default() });
    let slow = Limits { download: only(CRAWL), ..Limits::default() };
    let taker = start(&tracker, two.path(), |config| config.limits = slow).await;
    assert_eq!(taker.limits(), slow);
    let blob = taker.open(digest, 16 * MIB, None).unwrap();
    blob.read(0..1, Priority::Bulk).await.unwrap();
    holder.set_limits(Limits::default());
    taker.set_limits(Limits::default());
    assert_eq!(taker.limits(), Limits::default());
    tokio::time::timeout(DEADLINE, blob.verified()).await.expect("the limit still binds").unwrap();

    let origin = MemoryOrigin::new(bytes.clone());
    let alone = Arc::new(Tracker::default());
    let fetcher = start(&alone, three.path(), |_| {}).await;
    fetcher.set_limits(Limits { origin: only(CRAWL), ..Limits::default() });
    let blob = fetcher.open(digest, 16 * MIB, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.want_all(Priority::Bulk);
    while origin.sent.load(Ordering::Relaxed) < 2 * CRAWL {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    fetcher.set_limits(Limits::default());
    tokio::time::timeout(DEADLINE, blob.verified()).await.expect("the limit still binds").unwrap();
    for node in [holder, taker, fetcher] {
        node.shutdown().await;
    }
}

/// What is read gets the whole of a limit that a background pull uses up; the pull gets what is left, and ends.
#[tokio::test(flavor = "multi_thread")]
async fn reads_are_served_while_a_background_pull_saturates_the_limit() {
    const RATE: u64 = 4 * MIB;
    let tracker = Arc::new(Tracker::default());
    let (background, read) = (content(24 * MIB as usize, 43), content(6 * MIB as usize, 44));
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let holder = holder(&tracker, one.path(), &background).await;
    hold(&holder, &tracker, &read).await;
    let taker = start(&tracker, two.path(), |_| {}).await;
    taker.set_limits(Limits { download: only(RATE), ..Limits::default() });
    let pulled = taker.open(Digest::of(&background), 24 * MIB, None).unwrap();
    pulled.want_all(Priority::Background);
    pulled.read(0..1, Priority::Background).await.unwrap();

    let wanted = taker.open(Digest::of(&read), 6 * MIB, None).unwrap();
    wanted.read(0..1, Priority::Fault).await.unwrap();
    let before = have(&taker, &pulled);
    assert_eq!(wanted.read(0..6 * MIB, Priority::Fault).await.unwrap(), read);
    let meanwhile = have(&taker, &pulled) - before;
    // An equal share would be 6 MiB. Up to 1 MiB was asked for before the read, and comes.
    assert!(meanwhile < 3 * MIB, "{meanwhile} bytes of the background came during the read of {}", 6 * MIB);
    assert!(!pulled.is_verified(), "there was nothing to be held back");
    taker.set_limits(Limits::default());
    tokio::time::timeout(DEADLINE, pulled.verified()).await.expect("the background pull does not end").unwrap();
    for node in [holder, taker] {
        node.shutdown().await;
    }
}
