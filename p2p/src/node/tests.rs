//! What needs a view of a node's inside.

use std::path::Path;

use futures_core::future::BoxFuture;

use super::*;
use crate::discovery::{DiscoveryError, Found, Holding, LeaseReply, LeaseRequest, Settlement, Statement};
use crate::identity::Identity;
use crate::store::StoreConfig;

/// No tracker is there.
struct Silence;

fn silent<T: Send + 'static>() -> BoxFuture<'static, Result<T, DiscoveryError>> {
    let error = DiscoveryError::Unreachable { tracker: "none".to_owned(), reason: "there is none".to_owned() };
    Box::pin(std::future::ready(Err(error)))
}

impl Discovery for Silence {
    fn find(&self, _: Digest) -> BoxFuture<'_, Result<Found, DiscoveryError>> {
        silent()
    }

    fn announce(&self, _: Digest, _: Option<Holding>) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        silent()
    }

    fn state(&self, _: Statement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        silent()
    }

    fn lease(&self, _: LeaseRequest) -> BoxFuture<'_, Result<LeaseReply, DiscoveryError>> {
        silent()
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        silent()
    }

    fn settle(&self, _: Settlement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        silent()
    }
}

async fn start(root: &Path) -> Arc<Node> {
    let store = ChunkStore::open(root, StoreConfig::default()).unwrap();
    let identity = Arc::new(Identity::generate().unwrap());
    let config = NodeConfig::new("127.0.0.1:0".parse().unwrap(), identity);
    Node::start(config, store, Arc::new(Silence), Arc::new(Metrics::default())).await.unwrap()
}

/// [`Node::open`] asks for a blob's trust under the node's lock: nobody may do it the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn telling_what_is_verifiable_does_not_deadlock_with_an_open() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let blob = node.open(Digest::of(b"blob"), 1 << 20, None).unwrap();
    // Threads that no runtime waits for: when they are stuck the test still ends.
    let (done, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let (opener, teller) = (done.clone(), done);
    let (opening, opened) = (Arc::clone(&node), Arc::clone(&blob));
    std::thread::spawn(move || {
        for _ in 0..20_000 {
            let _inner = lock(&opening.inner);
            let _ = lock(&opened.trust).needs_no_word();
        }
        let _ = opener.send(());
    });
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let _entered = runtime.enter();
        (0..20_000).for_each(|_| node.tell_verifiable(&blob));
        let _ = teller.send(());
    });
    for _ in 0..2 {
        let ended = tokio::time::timeout(Duration::from_secs(60), ended.recv()).await;
        ended.expect("both threads wait for the other's lock").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_of_zero_is_refused_for_all_but_the_empty_blob() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let refused = node.open(Digest::of(b"something"), 0, None).map(|blob| blob.digest());
    assert!(matches!(&refused, Err(OpenError::NotEmpty(digest)) if *digest == Digest::of(b"something")), "{refused:?}");
    node.open(Digest::of(b""), 0, None).unwrap().verified().await.unwrap();
    node.shutdown().await;
}

/// It was wanted for ever: the node never idled again, and its directory was never evicted.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_does_not_come_and_that_nobody_waits_for_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let digest = Digest::of(b"blob");
    node.open(digest, 1 << 20, None).unwrap().want_all(Priority::Bulk);
    assert!(node.is_busy());
    let path = directory.path().join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
    assert!(path.exists());
    let gone = async {
        while node.is_busy() || !node.store().list().is_empty() || path.exists() {
            node.close_unused(Duration::ZERO);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("it stays");
    assert!(node.open_blobs().is_empty());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_removed_is_told_without_changing_anything() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let (bytes, missing) = (b"all of it is here", Digest::of(b"blob"));
    let (kept, unused) = (Digest::of(b"kept"), Digest::of(bytes));
    node.store().insert(&kept, b"kept").unwrap();
    node.store().insert(&unused, bytes).unwrap();
    node.store().pin(kept).unwrap();
    let opened =
        [(kept, 4), (unused, bytes.len() as u64)].map(|(digest, length)| node.open(digest, length, None).unwrap());
    node.open(missing, 1 << 20, None).unwrap().want_all(Priority::Bulk);
    assert_eq!(node.removable(), [], "all are held or wanted");
    drop(opened);

    let told = async {
        while node.removable() != [(unused, bytes.len() as u64)] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("it is not told");
    assert!(lock(&node.inner).blobs.contains_key(&unused) && node.is_busy(), "nothing was closed or given up");
    let removed: Vec<_> =
        node.remove_unused().into_iter().map(|(digest, _, outcome)| (digest, outcome.unwrap())).collect();
    assert_eq!(removed, [(unused, true)]);
    assert!(node.store().list().iter().all(|blob| blob.digest != unused) && node.is_busy());
    node.shutdown().await;
}

/// A write that found the disk full and told so late cancelled the pull of who had made room and asked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_found_no_room_says_nothing_of_who_asked_since() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let blob = node.open(Digest::of(b"blob"), 1 << 20, None).unwrap();
    let full = ReadError::from(StoreError::NoSpace { path: "disk".to_owned(), reason: "test".to_owned() });
    let refuse = |attempt| node.pass(&blob, PieceIndex(0), &[0; 1 << 16], attempt, &full);
    let ask = || {
        let blob = Arc::clone(&blob);
        tokio::spawn(async move { blob.verified().await })
    };
    let asked = async |than: Option<WantId>| {
        while blob.attempt().is_none() || blob.attempt() == than {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        blob.attempt()
    };
    let waiting = ask();
    let first = asked(None).await;
    assert!(!refuse(first).unwrap(), "no reader needs it");
    assert!(matches!(waiting.await.unwrap(), Err(ReadError::Store(_))) && !node.is_busy());
    let waiting = ask();
    let second = asked(first).await;
    refuse(first).unwrap_err();
    assert!(node.is_busy() && blob.attempt() == second);
    // A reader of a part makes no difference to who waits for all of it.
    let reader = tokio::spawn({
        let blob = Arc::clone(&blob);
        async move { blob.read(0..1, Priority::Fault).await }
    });
    while !lock(&blob.passing).is_needed() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    refuse(first).unwrap_err();
    assert!(!waiting.is_finished() && refuse(second).unwrap());
    assert!(matches!(waiting.await.unwrap(), Err(ReadError::Store(_))));
    assert_eq!(reader.await.unwrap().unwrap()[..], [0]);
    node.shutdown().await;
}

/// The last byte waited for a dozen flushes, of which a small blob on a slow disk had most of its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_has_all_of_a_blob_that_matches_before_the_disk_holds_it_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    for length in [10_000, 300_000] {
        let content = content(length);
        let blob = node.open(Digest::of(&content), content.len() as u64, None).unwrap();
        let disk = StalledDisk::of(&blob).await;
        write(&blob, &content);
        let read = tokio::time::timeout(Duration::from_secs(60), read_all(&blob));
        assert!(read.await.expect("the reader waits for the disk").unwrap() == content);
        assert!(!blob.is_verified(), "it is not written down yet");
        disk.go_on();
        blob.verified().await.unwrap();
        assert!(node.store().is_verified(&blob.digest()));
    }
    node.shutdown().await;
}

/// The bytes that matched are those that are given, though the disk loses them before it holds them for good.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_loses_after_the_whole_matched_is_not_given() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    for length in [10_000, 300_000] {
        let content = content(length);
        let digest = Digest::of(&content);
        let blob = node.open(digest, content.len() as u64, None).unwrap();
        write(&blob, &content);
        let disk = StalledDisk::of(&blob).await;
        node.hash_as_it_comes(&blob);
        while blob.progress.borrow().matched.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let data = directory.path().join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex()).join("data");
        std::fs::write(data, vec![0; length as usize]).unwrap();
        let mut read = tokio::spawn({
            let blob = Arc::clone(&blob);
            async move { read_all(&blob).await }
        });
        let mut waits = async || tokio::time::timeout(Duration::from_millis(300), &mut read).await.is_err();
        assert!(waits().await, "what was lost has to come again, and nobody has it");
        disk.go_on();
        assert!(waits().await, "the same when the rest is written down");
        read.abort();
    }
    node.shutdown().await;
}

/// Nothing of a blob's proof reaches the disk meanwhile.
struct StalledDisk {
    thread: std::thread::JoinHandle<()>,
    go_on: std::sync::mpsc::Sender<()>,
}

impl StalledDisk {
    async fn of(blob: &Blob) -> Self {
        let (stalled, is_stalled) = tokio::sync::oneshot::channel();
        let (go_on, wait) = std::sync::mpsc::channel();
        let stored = Arc::clone(&blob.stored);
        let thread = std::thread::spawn(move || {
            let _stall = stored.stall_disk();
            stalled.send(()).unwrap();
            // Also when the test has failed.
            let _ = wait.recv();
        });
        is_stalled.await.unwrap();
        Self { thread, go_on }
    }

    fn go_on(self) {
        drop(self.go_on);
        self.thread.join().unwrap();
    }
}

fn content(length: u32) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect()
}

fn write(blob: &Blob, content: &[u8]) {
    for piece in (0..blob.layout.piece_count()).map(PieceIndex) {
        let range = blob.layout.range(piece);
        blob.stored.write_piece(piece, &content[range.start as usize..range.end as usize]).unwrap();
    }
}

async fn read_all(blob: &Arc<Blob>) -> Result<Vec<u8>, ReadError> {
    let (mut stream, mut read) = (std::pin::pin!(blob.stream(0..blob.length(), Priority::Bulk)), Vec::new());
    while let Some(bytes) = futures_util::StreamExt::next(&mut stream).await {
        read.extend_from_slice(&bytes?);
    }
    Ok(read)
}
