//! Blobs in files of somebody else: read in place, counted for nothing, gone with their files.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::store::foreign::ForeignFile;
use lapwing_p2p::store::{ChunkStore, Medium, StoreConfig, StoreError};

use crate::mounts::Mount;

/// Somebody else's directory of blobs.
struct Theirs(Arc<Path>);

impl Theirs {
    fn in_directory(directory: &Path) -> Self {
        let blobs = directory.join("theirs");
        std::fs::create_dir_all(&blobs).unwrap();
        Self(blobs.into())
    }

    fn add(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = self.0.join(digest.hex());
        std::fs::write(&path, bytes).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        digest
    }

    fn file(&self, digest: &Digest) -> ForeignFile {
        ForeignFile::open(&self.0, *digest).unwrap()
    }

    fn remove(&self, digest: &Digest) {
        std::fs::remove_file(self.0.join(digest.hex())).unwrap();
    }
}

fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn hold(store: &ChunkStore, theirs: &Theirs, digest: &Digest) -> bool {
    let file = theirs.file(digest);
    file.verify(|_| true).unwrap();
    store.hold_foreign(file).unwrap()
}

/// Everything below a directory, with what a reader could change of it.
fn state_of(directory: &Path) -> Vec<(String, u64, i64, u64)> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let state = entries.map(|entry| {
        let metadata = entry.metadata().unwrap();
        (entry.file_name().into_string().unwrap(), metadata.len(), metadata.mtime_nsec(), metadata.nlink())
    });
    let mut state: Vec<_> = state.collect();
    state.sort();
    state
}

fn is_read_in_place(store: &Arc<ChunkStore>, theirs: &Theirs) {
    let bytes = content(900_000, 1);
    let digest = theirs.add(&bytes);
    let before = state_of(&theirs.0);
    assert!(store.lacks(&digest));
    assert!(hold(store, theirs, &digest));
    assert!(!store.lacks(&digest) && store.is_verified(&digest));
    let blob = store.get(&digest).unwrap();
    assert!(blob.is_complete() && blob.is_verified() && blob.is_foreign());
    assert_eq!(blob.read_at(0..900_000).unwrap(), bytes);
    assert_eq!(blob.read_piece(PieceIndex(2)).unwrap(), bytes[128 << 10..192 << 10]);
    assert_eq!((store.used_bytes(), store.foreign(), store.foreign_count()), (0, vec![(digest, 900_000)], 1));
    assert!(!hold(store, theirs, &digest), "it is held already");
    // It is nobody's to evict, remove or write.
    assert!(!store.evict_some(1) && !store.remove(&digest).unwrap());
    assert!(!blob.write_piece(PieceIndex(0), &bytes[..64 << 10]).unwrap());
    assert_eq!(state_of(&theirs.0), before, "nothing of the other's is touched");

    theirs.remove(&digest);
    assert_eq!(store.lost_foreign(), [digest]);
    assert!(store.release_foreign(&digest) && !store.release_foreign(&digest));
    assert!(store.get(&digest).is_none() && store.lacks(&digest) && blob.is_removed());
    assert_eq!(blob.read_at(5..900_000).unwrap(), bytes[5..], "who has a handle goes on reading");
}

#[test]
fn a_file_on_the_same_filesystem_is_read_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(&directory.path().join("own"), StoreConfig::default()).unwrap();
    is_read_in_place(&store, &Theirs::in_directory(directory.path()));
}

#[test]
fn a_file_on_another_filesystem_is_read_in_place() {
    let Some(mount) = Mount::tmpfs(4 << 20) else { return };
    let directory = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(directory.path(), StoreConfig::default()).unwrap();
    let theirs = Theirs::in_directory(&mount.path());
    assert_ne!(theirs.0.metadata().unwrap().dev(), directory.path().metadata().unwrap().dev());
    is_read_in_place(&store, &theirs);
}

#[test]
fn a_store_in_memory_reads_them_too() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { medium: Medium::Memory, quota_bytes: Some(1 << 20), ..StoreConfig::default() };
    let store = ChunkStore::open(&directory.path().join("own"), config).unwrap();
    is_read_in_place(&store, &Theirs::in_directory(directory.path()));
}

#[test]
fn a_file_that_is_another_by_now_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(&directory.path().join("own"), StoreConfig::default()).unwrap();
    let mut removed = store.watch_removed();
    let theirs = Theirs::in_directory(directory.path());
    let digest = theirs.add(&content(300_000, 2));
    assert!(hold(&store, &theirs, &digest));
    std::fs::write(theirs.0.join(digest.hex()), content(300_000, 3)).unwrap();
    assert_eq!(store.lost_foreign(), [digest]);
    assert!(store.get(&digest).is_none());
    assert_eq!(removed.try_recv().unwrap().digest, digest);
    assert!(matches!(theirs.file(&digest).verify(|_| true), Err(StoreError::DigestMismatch { .. })));
    // Nor is a link, which may lead anywhere.
    let elsewhere = directory.path().join("elsewhere");
    std::fs::rename(theirs.0.join(digest.hex()), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, theirs.0.join(digest.hex())).unwrap();
    assert!(ForeignFile::open(&theirs.0, digest).is_err());
}

#[test]
fn hashing_can_be_ended() {
    let directory = tempfile::tempdir().unwrap();
    let theirs = Theirs::in_directory(directory.path());
    let digest = theirs.add(&content(300_000, 4));
    let mut pieces = 0;
    let ended = theirs.file(&digest).verify(|_| {
        pieces += 1;
        pieces < 2
    });
    assert!(matches!(ended, Err(StoreError::Changed(_))), "{ended:?}");
    assert_eq!(pieces, 2);
}

#[test]
fn what_the_store_has_or_fetches_by_itself_is_not_taken_from_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(&directory.path().join("own"), StoreConfig::default()).unwrap();
    let theirs = Theirs::in_directory(directory.path());
    let bytes = content(300_000, 5);
    let digest = theirs.add(&bytes);
    let pin = store.open_pinned(&digest, 300_000).unwrap();
    pin.blob().write_piece(PieceIndex(0), &bytes[..64 << 10]).unwrap();
    assert!(!store.lacks(&digest) && !store.hold_foreign(theirs.file(&digest)).unwrap());
    drop(pin);
    // Pieces that nobody needs give way.
    assert!(store.lacks(&digest) && hold(&store, &theirs, &digest));
    assert_eq!(store.used_bytes(), 0);
    assert_eq!(store.get(&digest).unwrap().read_at(0..300_000).unwrap(), bytes);

    let own = content(1000, 6);
    let digest = theirs.add(&own);
    store.insert(&digest, &own).unwrap();
    assert!(!store.lacks(&digest) && !store.hold_foreign(theirs.file(&digest)).unwrap());
    assert!(!store.release_foreign(&digest), "it is the store's own");
    assert_eq!(store.used_bytes(), 1000);
}

#[test]
fn the_quota_does_not_count_them_and_evicts_around_them() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { quota_bytes: Some(1 << 20), ..StoreConfig::default() };
    let store = ChunkStore::open(&directory.path().join("own"), config).unwrap();
    let theirs = Theirs::in_directory(directory.path());
    let held = theirs.add(&content(4 << 20, 7));
    assert!(hold(&store, &theirs, &held));
    for seed in 10..20 {
        let bytes = content(200_000, seed);
        store.insert(&Digest::of(&bytes), &bytes).unwrap();
    }
    assert!(store.used_bytes() <= 1 << 20);
    assert!(store.is_verified(&held));
    // As if nothing had been there: the next process asks again.
    drop(store);
    let store = ChunkStore::open(&directory.path().join("own"), config).unwrap();
    assert!(store.lacks(&held) && store.used_bytes() > 0);
}

#[test]
fn a_piece_that_is_spoilt_ends_it_and_the_stores_own_takes_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(&directory.path().join("own"), StoreConfig::default()).unwrap();
    let theirs = Theirs::in_directory(directory.path());
    let bytes = content(300_000, 8);
    let digest = theirs.add(&bytes);
    assert!(hold(&store, &theirs, &digest));
    let blob = store.get(&digest).unwrap();
    blob.drop_pieces(&[PieceIndex(1)]).unwrap();
    assert!(blob.is_removed() && !blob.has(PieceIndex(1)) && store.get(&digest).is_none());
    assert_eq!(std::fs::read(theirs.0.join(digest.hex())).unwrap(), bytes, "the other's file is not punched");
    let own = store.open_blob(&digest, 300_000).unwrap();
    assert!(!own.is_foreign() && own.have().is_empty());
    assert!(own.write_piece(PieceIndex(0), &bytes[..64 << 10]).unwrap());
}

#[test]
fn thousands_take_few_descriptors() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let config = StoreConfig { medium: Medium::Memory, quota_bytes: Some(1 << 20), ..StoreConfig::default() };
    for (place, config) in [("disk", StoreConfig::default()), ("memory", config)] {
        let store = ChunkStore::open(&directory.path().join(place), config).unwrap();
        let theirs = Theirs::in_directory(directory.path());
        let digests: Vec<_> = (0..3000_u32).map(|n| theirs.add(&n.to_be_bytes())).collect();
        assert!(digests.iter().all(|digest| hold(&store, &theirs, digest)));
        let before = descriptors();
        for (n, digest) in (0_u32..).zip(&digests) {
            assert_eq!(store.get(digest).unwrap().read_at(0..4).unwrap(), n.to_be_bytes()[..]);
        }
        let more = descriptors().saturating_sub(before);
        assert!(more < 1000, "{more} descriptors for {} blobs on {place}", digests.len());
        assert_eq!(store.foreign_count(), 3000);
    }
}

/// Nothing is lost with the store's copy of what somebody else has, too; a blob that lost its file is one like any other.
#[test]
fn what_somebody_else_has_too_is_evicted_first() {
    let directory = tempfile::tempdir().unwrap();
    let theirs = Theirs::in_directory(directory.path());
    let config = StoreConfig { quota_bytes: Some(1_000_000), ..StoreConfig::default() };
    let store = ChunkStore::open(&directory.path().join("store"), config).unwrap();
    let blobs: Vec<_> = (0..8).map(|seed| content(100_000, seed)).collect();
    let insert = |bytes: &Vec<u8>| store.insert(&Digest::of(bytes), bytes).unwrap().digest();
    let digests: Vec<_> = blobs.iter().map(insert).collect();
    for bytes in &blobs[4..] {
        theirs.add(bytes);
    }
    store.set_elsewhere(&theirs.0, digests[4..7].iter().copied().collect());
    store.add_elsewhere(digests[7]);
    theirs.remove(&digests[4]);
    std::fs::write(theirs.0.join(digests[5].hex()), b"not all of it").unwrap();
    let _needed = store.hold(digests[6]);

    assert!(store.evict_some(1));
    assert!(!store.is_verified(&digests[7]), "the one that is there, and that nobody needs");
    assert!(hold(&store, &theirs, &digests[7]));
    assert!(store.evict_some(1));
    let left: Vec<_> = digests.iter().map(|digest| store.is_verified(digest)).collect();
    assert_eq!(left, [false, true, true, true, true, true, true, true], "then the oldest");
}
