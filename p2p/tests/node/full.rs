//! A full disk does not fail a pull: what cannot be stored passes through memory to its readers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use lapwing_evidence::Evidence;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Blob, Node, Priority, ReadError};
use lapwing_p2p::store::{ChunkStore, StoreConfig};

use crate::mounts::Mount;
use crate::support::{Handle, MemoryOrigin, Mood, Tracker, content, start, start_on};

const MIB: usize = 1 << 20;
const LENGTH: usize = 24 * MIB;

/// A node whose store is on a small filesystem.
struct Cramped {
    tracker: Arc<Tracker>,
    metrics: Arc<Metrics>,
    node: Arc<Node>,
    disk: Mount,
}

impl Cramped {
    async fn on(disk: Mount, full: bool) -> Self {
        let root = disk.path().join("store");
        let store = ChunkStore::open(&root, StoreConfig::default()).unwrap();
        if full {
            fill(&disk.path());
        }
        let (tracker, metrics) = (Arc::new(Tracker::default()), Arc::new(Metrics::default()));
        let identity = Arc::new(Identity::generate().unwrap());
        let node = start_on(&tracker, store, identity, Arc::clone(&metrics), |_| {}).await;
        Self { tracker, metrics, node, disk }
    }

    fn open(&self, bytes: &Bytes, origin: Option<&Arc<MemoryOrigin>>) -> Arc<Blob> {
        let origin = origin.map(|origin| Arc::new(Handle(Arc::clone(origin))) as _);
        self.node.open(Digest::of(bytes), bytes.len() as u64, origin).unwrap()
    }

    /// Every piece that the store has is right.
    fn check(&self, bytes: &Bytes) -> u64 {
        let Some(blob) = self.node.store().get(&Digest::of(bytes)) else { return 0 };
        for piece in blob.have().iter() {
            let range = blob.layout().range(piece);
            let right = &bytes[range.start as usize..range.end as usize];
            assert!(blob.read_piece(piece).unwrap() == right, "{piece:?} is marked and wrong");
        }
        blob.have_bytes()
    }

    async fn stop(self) {
        self.node.shutdown().await;
        drop(self.node);
        drop(self.disk);
    }
}

fn filler(disk: &Path) -> PathBuf {
    disk.join("filler")
}

/// Takes all the room there is, to the last block.
fn fill(disk: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(filler(disk)).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    let _ = file.sync_all();
}

async fn pulled(blob: &Arc<Blob>) -> Result<Vec<u8>, ReadError> {
    blob.want_all(Priority::Bulk);
    let chunks: Vec<Bytes> = blob.stream(0..blob.length(), Priority::Bulk).try_collect().await?;
    Ok(chunks.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_finishes_on_a_disk_that_is_full_from_the_start() {
    let mut evidence = Evidence::new(3, "pulls on a disk that is full");
    for disk in [Mount::tmpfs(8 << 20), Mount::ext4(16 << 20)] {
        let Some(disk) = disk else { return };
        evidence.fault("disk full before a pull");
        let cramped = Cramped::on(disk, true).await;
        let bytes = content(LENGTH, 1);
        let origin = MemoryOrigin::new(bytes.clone());
        let blob = cramped.open(&bytes, Some(&origin));
        let begun = std::time::Instant::now();
        let given = pulled(&blob).await.unwrap();
        evidence.ended(begun.elapsed(), true);
        assert!(evidence.compare(&bytes, &given) && given.len() == bytes.len());
        assert!(cramped.metrics.bypassed_bytes.get() >= LENGTH as u64 / 2);
        assert!(origin.copies() < 1.5, "the origin sent {} copies", origin.copies());
        assert!(cramped.check(&bytes) < LENGTH as u64);
        assert!(!blob.is_verified());
        // A part, long after it passed.
        let part = blob.read(MIB as u64..2 * MIB as u64, Priority::Fault).await.unwrap();
        assert!(part == bytes[MIB..2 * MIB]);
        drop(blob);
        cramped.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_finishes_on_a_disk_that_runs_full_in_its_middle_and_the_next_one_stores_it() {
    let mut evidence = Evidence::new(3, "pulls on a disk that runs full");
    for disk in [Mount::tmpfs(40 << 20), Mount::ext4(48 << 20)] {
        let Some(disk) = disk else { return };
        evidence.fault("disk full in the middle of a pull");
        let cramped = Cramped::on(disk, false).await;
        std::fs::write(filler(&cramped.disk.path()), vec![1; 30 * MIB]).unwrap();
        let bytes = content(LENGTH, 1);
        let origin = MemoryOrigin::new(bytes.clone());
        let blob = cramped.open(&bytes, Some(&origin));
        let begun = std::time::Instant::now();
        let given = pulled(&blob).await.unwrap();
        evidence.ended(begun.elapsed(), true);
        assert!(evidence.compare(&bytes, &given) && given.len() == bytes.len());
        let stored = cramped.check(&bytes);
        assert!(stored > 0 && stored < LENGTH as u64, "{stored} bytes are stored");
        assert!(cramped.metrics.bypassed_bytes.get() > 0);
        // Who waits for all of it to be stored is told why it is not.
        let error = blob.verified().await.unwrap_err().to_string();
        assert!(error.contains("no room") && error.contains(cramped.disk.path().to_str().unwrap()), "{error}");
        std::fs::remove_file(filler(&cramped.disk.path())).unwrap();
        // ext4 gives a removed file's room to others once its journal is committed.
        rustix::fs::syncfs(std::fs::File::open(cramped.disk.path()).unwrap()).unwrap();
        let sent = origin.sent.load(Ordering::Relaxed);
        blob.verified().await.unwrap();
        assert_eq!(cramped.check(&bytes), LENGTH as u64);
        let again = origin.sent.load(Ordering::Relaxed) - sent;
        assert!(again <= LENGTH as u64 - stored, "{again} bytes came again, {stored} were there");
        drop(blob);
        cramped.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_readers_of_a_full_disk_get_all_of_it_from_a_peer() {
    let Some(disk) = Mount::tmpfs(8 << 20) else { return };
    let cramped = Cramped::on(disk, true).await;
    let root = tempfile::tempdir().unwrap();
    let peer = start(&cramped.tracker, root.path(), |_| {}).await;
    let bytes = content(LENGTH, 1);
    let digest = Digest::of(&bytes);
    let origin = Arc::new(Handle(MemoryOrigin::new(bytes.clone())));
    peer.open(digest, LENGTH as u64, Some(origin)).unwrap().verified().await.unwrap();
    let blobs = (cramped.open(&bytes, None), cramped.open(&bytes, None));
    let (one, other) = tokio::join!(pulled(&blobs.0), pulled(&blobs.1));
    assert!(one.unwrap() == bytes && other.unwrap() == bytes);
    drop(blobs);
    peer.shutdown().await;
    cramped.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_do_not_complete_a_pull_that_passes_through_memory() {
    let Some(disk) = Mount::tmpfs(8 << 20) else { return };
    let cramped = Cramped::on(disk, true).await;
    let bytes = content(LENGTH, 1);
    let origin = MemoryOrigin::new(bytes.clone());
    *origin.mood.lock().unwrap() = Mood::Lies;
    let blob = cramped.open(&bytes, Some(&origin));
    let mut stream = Box::pin(blob.stream(0..blob.length(), Priority::Bulk));
    let mut given = 0;
    let error = loop {
        match stream.next().await.expect("it does not end well") {
            Ok(chunk) => given += chunk.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReadError::DigestMismatch { .. }), "{error}");
    assert!(given < LENGTH, "the last piece is withheld");
    drop((stream, blob));
    cramped.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_is_too_small_does_not_fail_a_pull_either() {
    let root = tempfile::tempdir().unwrap();
    let config = StoreConfig { quota_bytes: Some(4 * MIB as u64), ..StoreConfig::default() };
    let store = ChunkStore::open(root.path(), config).unwrap();
    let tracker = Arc::new(Tracker::default());
    let node = start_on(&tracker, store, Arc::new(Identity::generate().unwrap()), Arc::default(), |_| {}).await;
    let bytes = content(LENGTH, 1);
    let origin = MemoryOrigin::new(bytes.clone());
    let digest = Digest::of(&bytes);
    let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    assert!(pulled(&blob).await.unwrap() == bytes);
    assert!(node.store().used_bytes() <= 4 * MIB as u64);
    let stored = node.store().get(&digest).unwrap();
    assert!(stored.has(PieceIndex(0)) && !stored.is_complete());
    node.shutdown().await;
}
