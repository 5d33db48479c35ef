//! What is different when the store is in memory.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::store::{ChunkStore, Medium, StoreConfig, StoreError};

use crate::reference::Reference;

const MIB: usize = 1 << 20;

fn open(root: &std::path::Path, quota: usize) -> Arc<ChunkStore> {
    let config = StoreConfig { medium: Medium::Memory, quota_bytes: Some(quota as u64), ..StoreConfig::default() };
    ChunkStore::open(root, config).unwrap()
}

#[test]
fn it_needs_a_quota() {
    let root = tempfile::tempdir().unwrap();
    let config = StoreConfig { medium: Medium::Memory, ..StoreConfig::default() };
    let error = ChunkStore::open(root.path(), config).unwrap_err();
    assert!(matches!(error, StoreError::NoQuota) && error.to_string().contains("store.quota"), "{error}");
}

#[test]
fn nothing_is_on_disk_and_nothing_outlives_it() {
    let root = tempfile::tempdir().unwrap();
    let blob = Reference::new(1, 3 * MIB);
    {
        let store = open(root.path(), 8 * MIB);
        let stored = store.insert(&blob.digest, &blob.bytes).unwrap();
        let made = stored.verify().unwrap();
        assert_eq!(stored.metainfo(), Some(made));
        assert_eq!(stored.read_at(5..2 * MIB as u64).unwrap(), blob.bytes[5..2 * MIB]);
        // The descriptor serves sendfile as that of a file on disk does.
        let link = std::fs::read_link(format!("/proc/self/fd/{}", stored.file().as_raw_fd())).unwrap();
        assert!(link.to_string_lossy().contains("memfd:lapwing-blob"), "{link:?}");
        store.pin(blob.digest).unwrap();
    }
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    let store = open(root.path(), 8 * MIB);
    assert!(store.list().is_empty() && store.pinned().is_empty());
    assert_eq!(store.used_bytes(), 0);
}

#[test]
fn memory_comes_back_with_what_is_evicted() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), 8 * MIB);
    let blocks = |blob: &Reference| {
        use std::os::unix::fs::MetadataExt as _;
        store.get(&blob.digest).unwrap().file().metadata().unwrap().blocks() * 512
    };
    let large = Reference::new(1, 40 * MIB);
    let partial = store.open_blob(&large.digest, large.length()).unwrap();
    partial.write_piece(PieceIndex(3), large.piece(PieceIndex(3))).unwrap();
    assert_eq!(blocks(&large), large.layout.piece_length(), "memory is taken by what is written");
    drop(partial);
    for seed in 2..8 {
        let blob = Reference::new(seed, 3 * MIB);
        store.insert(&blob.digest, &blob.bytes).unwrap();
        assert_eq!(blocks(&blob), blob.length());
        let held: u64 = store.list().iter().map(|blob| blob.have_bytes).sum();
        assert!(store.used_bytes() <= 8 * MIB as u64 && held == store.used_bytes());
    }
    assert!(store.get(&large.digest).is_none());
}

#[test]
fn more_blobs_than_are_kept_open_on_disk_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), MIB);
    let count = lapwing_p2p::limits::MAX_IDLE_OPEN_BLOBS + 40;
    if rustix::process::getrlimit(rustix::process::Resource::Nofile).current.is_some_and(|most| most < 4096) {
        eprintln!("SKIPPED: this process may not have 4,096 descriptors");
        return;
    }
    let blobs: Vec<_> = (0..count as u64).map(|seed| Reference::new(seed, 64)).collect();
    for blob in &blobs {
        store.insert(&blob.digest, &blob.bytes).unwrap();
    }
    assert!(blobs.iter().all(|blob| store.get(&blob.digest).unwrap().read_at(0..64).unwrap() == blob.bytes));
    assert!(store.get(&Digest::of(b"other")).is_none());
}

/// Not a test of its own: a process with few descriptors.
#[test]
fn crowd() {
    let Ok(most) = std::env::var("LAPWING_TEST_CROWD") else { return };
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), MIB);
    for seed in 0..2000 {
        let blob = Reference::new(seed, 64);
        store.insert(&blob.digest, &blob.bytes).unwrap();
        assert!(store.list().len() <= most.parse().unwrap());
    }
}

/// It waited for itself: a blob made room for another one of the same shard.
#[test]
fn blobs_beyond_the_descriptors_make_way() {
    let limited = "ulimit -n 256; exec \"$0\" --exact memory::crowd --nocapture --test-threads=1";
    let mut child = std::process::Command::new("sh")
        .args(["-c", limited])
        .arg(std::env::current_exe().unwrap())
        .env("LAPWING_TEST_CROWD", "128")
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if std::time::Instant::now() > deadline => break None,
            None => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    };
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(status.expect("it hangs").success());
}
