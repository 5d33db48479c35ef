//! What readers get when something fails.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::PieceLayout;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Priority, ReadError};
use lapwing_p2p::origin::{ByteStream, Origin, OriginError};

use crate::support::{Handle, MemoryOrigin, Mood, Tracker, content, start, start_with};

const LENGTH: usize = 8 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_read_in_the_middle_fetches_only_its_pieces() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 11);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |_| {}).await;
    let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    let range = 3_000_000..3_000_100;
    assert_eq!(
        blob.read(range.clone(), Priority::Fault).await.unwrap(),
        bytes.slice(range.start as usize..range.end as usize)
    );
    let piece = PieceLayout::new(LENGTH as u64).unwrap().piece_length();
    assert_eq!(origin.sent.load(Ordering::Relaxed), piece);
    assert!(matches!(blob.read(0..LENGTH as u64 + 1, Priority::Fault).await, Err(ReadError::OutOfRange { .. })));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_discovery_the_origin_serves() {
    let tracker = Arc::new(Tracker::default());
    tracker.down.store(true, Ordering::Relaxed);
    let bytes = content(LENGTH, 12);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    let directory = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::default());
    let identity = Arc::new(Identity::generate().unwrap());
    let node = start_with(&tracker, directory.path(), identity, Arc::clone(&metrics), |_| {}).await;
    let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.verified().await.unwrap();
    assert!(metrics.unleased_fetches.get() > 0);
    assert_eq!(origin.copies(), 1.0);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_goes_on_where_it_was() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 13);
    let digest = Digest::of(&bytes);
    let directory = tempfile::tempdir().unwrap();
    let half = Arc::new(MemoryOrigin::with_allowance(bytes.clone(), LENGTH / 2));
    let root = directory.path().to_owned();
    let kept = {
        let (tracker, half) = (Arc::clone(&tracker), Arc::clone(&half));
        // The node dies with its runtime: no shutdown, no flush but its own.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let kept = runtime.block_on(async {
                let node = start(&tracker, &root, |_| {}).await;
                let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(half)))).unwrap();
                blob.want_all(Priority::Bulk);
                let pieces = root.join(format!("blobs/sha256/{}/{}/pieces", &digest.hex()[..2], digest.hex()));
                while !pieces.exists() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                tracker.forget(node.id());
                let have = || node.blobs().iter().find(|status| status.digest == digest).unwrap().have;
                have()
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
            kept
        })
        .join()
        .unwrap()
    };
    assert!(kept > LENGTH as u64 / 4, "only {kept} bytes were kept");
    let rest = MemoryOrigin::new(bytes.clone());
    let node = start(&tracker, directory.path(), |_| {}).await;
    let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&rest))))).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(rest.sent.load(Ordering::Relaxed), LENGTH as u64 - kept);
    assert_eq!(blob.read(0..LENGTH as u64, Priority::Bulk).await.unwrap(), bytes);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_refuses_is_named_and_fresh_credentials_help() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 14);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    let refusal = OriginError::Unauthorized { origin: "memory".into(), status: 401 };
    *origin.mood.lock().unwrap() = Mood::Fails(refusal.clone());
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |_| {}).await;
    let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    match blob.read(0..10, Priority::Fault).await {
        Err(ReadError::Origin { source, .. }) => assert_eq!(source, refusal),
        other => panic!("{other:?}"),
    }
    *origin.mood.lock().unwrap() = Mood::Serves;
    let again = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    assert!(Arc::ptr_eq(&blob, &again));
    assert_eq!(again.read(0..10, Priority::Fault).await.unwrap(), bytes.slice(0..10));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_origin_is_left_alone_and_asked_again() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(1 << 20, 15);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    let retry_after = Duration::from_millis(300);
    *origin.mood.lock().unwrap() = Mood::Fails(OriginError::Busy { origin: "memory".into(), retry_after });
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |_| {}).await;
    let blob = node.open(digest, 1 << 20, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.want_all(Priority::Bulk);
    while origin.ranges.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    *origin.mood.lock().unwrap() = Mood::Serves;
    blob.verified().await.unwrap();
    assert_eq!(origin.copies(), 1.0);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_ranges_streams_the_whole() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 16);
    let digest = Digest::of(&bytes);
    let mut origin = MemoryOrigin::with_allowance(bytes.clone(), usize::MAX >> 8);
    origin.serves_ranges = false;
    let origin = Arc::new(origin);
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |_| {}).await;
    let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(origin.copies(), 1.0);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_serves_something_else_cuts_the_stream_and_is_named() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(1 << 20, 17);
    let digest = Digest::of(&bytes);
    let origin = MemoryOrigin::new(bytes.clone());
    *origin.mood.lock().unwrap() = Mood::Lies;
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |_| {}).await;
    let blob = node.open(digest, 1 << 20, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    let streamed: Vec<_> = blob.stream(0..1 << 20, Priority::Bulk).collect().await;
    let given: usize = streamed.iter().flatten().map(|bytes| bytes.len()).sum();
    assert!(given < 1 << 20 && streamed.last().unwrap().is_err(), "a wrong blob was given whole");
    match blob.verified().await {
        Err(ReadError::DigestMismatch { actual, .. }) => assert_ne!(actual, digest),
        other => panic!("{other:?}"),
    }
    assert!(!blob.is_verified());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_has_it_ends_in_a_named_deadline() {
    let tracker = Arc::new(Tracker::default());
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |config| config.read_deadline = Duration::from_millis(100)).await;
    let digest = Digest::of(b"nobody has it");
    let blob = node.open(digest, 1 << 20, None).unwrap();
    match blob.read(5..10, Priority::Fault).await {
        Err(error @ ReadError::Deadline { .. }) => assert!(error.to_string().contains(&digest.to_string())),
        other => panic!("{other:?}"),
    }
    node.shutdown().await;
}

/// An origin of its own name, as another client's rights would make it.
struct Rights(&'static str, Arc<MemoryOrigin>);

impl Origin for Rights {
    fn fetch(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>> {
        let opening = Handle(Arc::clone(&self.1));
        Box::pin(async move { opening.fetch(range).await })
    }

    fn describe(&self) -> String {
        self.0.to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worse_rights_do_not_displace_an_origin_that_works() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 18);
    let digest = Digest::of(&bytes);
    let good = Arc::new(MemoryOrigin::with_allowance(bytes.clone(), LENGTH / 4));
    let bad = MemoryOrigin::new(bytes.clone());
    *bad.mood.lock().unwrap() = Mood::Fails(OriginError::Unauthorized { origin: "bad".into(), status: 401 });
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |_| {}).await;
    let open = |name, origin: &Arc<MemoryOrigin>| {
        node.open(digest, LENGTH as u64, Some(Arc::new(Rights(name, Arc::clone(origin))))).unwrap()
    };
    let blob = open("good", &good);
    blob.want_all(Priority::Bulk);
    while good.sent.load(Ordering::Relaxed) < LENGTH as u64 / 8 {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        open("bad", &bad);
    }
    good.allowance.add_permits(usize::MAX >> 16);
    blob.verified().await.unwrap();
    assert_eq!(good.copies(), 1.0);
    assert_eq!(bad.ranges.lock().unwrap().len(), 0, "an origin that works was left for one that does not");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_run_out_are_replaced_by_those_that_stand_by() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 19);
    let digest = Digest::of(&bytes);
    let first = Arc::new(MemoryOrigin::with_allowance(bytes.clone(), LENGTH / 4));
    let second = MemoryOrigin::new(bytes.clone());
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |_| {}).await;
    let open = |name, origin: &Arc<MemoryOrigin>| {
        node.open(digest, LENGTH as u64, Some(Arc::new(Rights(name, Arc::clone(origin))))).unwrap()
    };
    let blob = open("first", &first);
    open("second", &second);
    blob.want_all(Priority::Bulk);
    while first.sent.load(Ordering::Relaxed) < LENGTH as u64 / 8 {
        tokio::task::yield_now().await;
    }
    *first.mood.lock().unwrap() = Mood::Fails(OriginError::Unauthorized { origin: "first".into(), status: 401 });
    first.allowance.add_permits(usize::MAX >> 16);
    blob.verified().await.unwrap();
    assert!(second.copies() > 0.5, "{}", second.copies());
    assert!((first.copies() + second.copies() - 1.0).abs() < 1e-9);
    node.shutdown().await;
}
