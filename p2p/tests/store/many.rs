//! Thousands of blobs: found again at the start, listed, opened and evicted without more descriptors than a few hundred.

use std::time::Instant;

use lapwing_p2p::limits::MAX_IDLE_OPEN_BLOBS;
use lapwing_p2p::store::{ChunkStore, StoreConfig};

use crate::mounts::Mount;
use crate::reference::Reference;

const BLOBS: u64 = 5000;
const LENGTH: usize = 1000;

/// Says how long each part took; what is asserted does not depend on that.
#[test]
fn thousands_of_blobs_are_kept_found_and_evicted() {
    // Where syncing costs nothing: 5,000 blobs are 15,000 syncs.
    let Some(disk) = Mount::tmpfs(256 << 20) else { return };
    let config = StoreConfig { quota_bytes: Some(BLOBS * LENGTH as u64), ..StoreConfig::default() };
    let blobs: Vec<_> = (0..BLOBS).map(|seed| Reference::new(seed, LENGTH)).collect();
    let mut last = Instant::now();
    let mut took = |what: &str| {
        let now = Instant::now();
        eprintln!("{BLOBS} blobs: {what}: {:?}", now - last);
        last = now;
    };
    {
        let store = ChunkStore::open(&disk.path(), config).unwrap();
        took("reference");
        for blob in &blobs {
            store.insert(&blob.digest, &blob.bytes).unwrap();
        }
        took("insert");
    }
    let store = ChunkStore::open(&disk.path(), config).unwrap();
    took("start");
    assert_eq!(store.list().len(), blobs.len());
    assert_eq!(store.used_bytes(), BLOBS * LENGTH as u64);
    took("list");
    for blob in &blobs {
        assert!(store.get(&blob.digest).unwrap().is_verified());
    }
    took("open each");
    let data_files = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = links.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        links.filter(|link| link.starts_with(disk.path()) && link.ends_with("data")).count()
    };
    assert!(data_files() <= MAX_IDLE_OPEN_BLOBS + 1, "{}", data_files());
    took("count descriptors");
    assert!(store.age().unwrap());
    assert_eq!(store.list().len(), blobs.len() * 80 / 100);
    took("evict a fifth");
    drop(store);
}
