//! Old blobs make room for new ones, but never those in use.

use std::fs::FileTimes;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::store::{ChunkStore, StoreConfig, StoreError};

use crate::reference::Reference;

const KIB: usize = 1 << 10;

fn store(quota: usize) -> (tempfile::TempDir, Arc<ChunkStore>) {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { quota_bytes: Some(quota as u64), free_floor_bytes: 0 };
    let store = ChunkStore::open(&directory.path().join("store"), config).unwrap();
    (directory, store)
}

fn digests(store: &ChunkStore) -> Vec<Digest> {
    let mut digests: Vec<_> = store.list().iter().map(|blob| blob.digest).collect();
    digests.sort_unstable();
    digests
}

fn sorted(blobs: &[&Reference]) -> Vec<Digest> {
    let mut digests: Vec<_> = blobs.iter().map(|blob| blob.digest).collect();
    digests.sort_unstable();
    digests
}

/// Ten blobs of 100 KiB under a quota of 1,000 KiB, oldest first: nine are 90 %.
fn blobs() -> Vec<Reference> {
    (0..10).map(|seed| Reference::new(seed, 100 * KIB)).collect()
}

#[test]
fn the_least_recently_used_go_first_down_to_the_low_watermark() {
    let (_directory, store) = store(1000 * KIB);
    let blobs = blobs();
    for blob in &blobs[..9] {
        store.insert(&blob.digest, &blob.bytes).unwrap();
    }
    assert_eq!(store.list().len(), 9, "90 % are not too much");
    store.get(&blobs[0].digest).unwrap();
    store.insert(&blobs[9].digest, &blobs[9].bytes).unwrap();
    // 1,000 KiB are above 90 %: down to 800, and the first was used again.
    let expected: Vec<_> =
        blobs.iter().enumerate().filter(|(i, _)| ![1, 2].contains(i)).map(|(_, blob)| blob).collect();
    assert_eq!(digests(&store), sorted(&expected));
    assert_eq!(store.used_bytes(), 800 * KIB as u64);
}

#[test]
fn pinned_blobs_stay_and_are_named_when_there_is_no_room() {
    let (directory, store) = store(1000 * KIB);
    let blobs = blobs();
    let pins: Vec<_> = blobs[..9].iter().map(|blob| store.insert(&blob.digest, &blob.bytes).unwrap().pin()).collect();
    assert!(store.list().iter().all(|blob| blob.pinned));
    let error = store.make_room(200 * KIB as u64).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::NoSpace { .. }) && text.contains("raise the quota"), "{text}");
    assert!(text.contains(directory.path().to_str().unwrap()), "{text}");
    assert!(matches!(store.remove(&blobs[3].digest), Err(StoreError::InUse(digest)) if digest == blobs[3].digest));
    assert_eq!(store.list().len(), 9);
    drop(pins);
    store.make_room(200 * KIB as u64).unwrap();
    assert_eq!(digests(&store), sorted(&blobs[3..9].iter().collect::<Vec<_>>()));
}

#[test]
fn a_pin_counts_until_the_last_one_is_gone() {
    let (_directory, store) = store(1000 * KIB);
    let blob = Reference::new(1, KIB);
    let first = store.insert(&blob.digest, &blob.bytes).unwrap().pin();
    let second = first.blob().pin();
    drop(first);
    assert!(matches!(store.remove(&blob.digest), Err(StoreError::InUse(_))));
    drop(second);
    assert!(store.remove(&blob.digest).unwrap());
    assert!(!store.remove(&blob.digest).unwrap());
}

#[test]
fn what_can_never_fit_does_not_empty_the_cache() {
    let (_directory, store) = store(1000 * KIB);
    let blobs = blobs();
    for blob in &blobs[..5] {
        store.insert(&blob.digest, &blob.bytes).unwrap();
    }
    assert!(matches!(store.make_room(2000 * KIB as u64), Err(StoreError::NoSpace { .. })));
    assert_eq!(store.list().len(), 5);
}

#[test]
fn a_blob_counts_by_what_is_written_of_it() {
    let (_directory, store) = store(1000 * KIB);
    let large = Reference::new(1, 4000 * KIB);
    let blob = store.open_blob(&large.digest, large.length()).unwrap();
    assert_eq!(store.used_bytes(), 0);
    let mut pieces = large.pieces();
    let first = pieces.next().unwrap();
    blob.write_piece(first, large.piece(first)).unwrap();
    assert_eq!(store.used_bytes(), large.layout.piece_length());
    let error = pieces.find_map(|piece| blob.write_piece(piece, large.piece(piece)).err()).unwrap();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert!(store.used_bytes() <= 1000 * KIB as u64);
    assert_eq!(store.used_bytes(), blob.have_bytes());
    blob.drop_pieces(&large.pieces().collect::<Vec<_>>()).unwrap();
    assert_eq!(store.used_bytes(), 0);
}

#[test]
fn writing_makes_room_without_being_asked() {
    let (_directory, store) = store(1000 * KIB);
    let blobs = blobs();
    for blob in &blobs[..8] {
        store.insert(&blob.digest, &blob.bytes).unwrap();
    }
    let large = Reference::new(77, 700 * KIB);
    let blob = store.open_blob(&large.digest, large.length()).unwrap();
    for piece in large.pieces() {
        blob.write_piece(piece, large.piece(piece)).unwrap();
        assert!(store.used_bytes() <= 1000 * KIB as u64);
    }
    blob.verify().unwrap();
    assert!(store.get(&blobs[0].digest).is_none());
}

#[test]
fn the_order_of_uses_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { quota_bytes: Some(1000 * KIB as u64), free_floor_bytes: 0 };
    let blobs = blobs();
    {
        let store = ChunkStore::open(directory.path(), config).unwrap();
        for (age, blob) in (1..).zip(&blobs[..9]) {
            let stored = store.insert(&blob.digest, &blob.bytes).unwrap();
            // As if the last use had been so many days ago.
            let time = SystemTime::now() - Duration::from_secs(86_400 * age);
            stored.file().set_times(FileTimes::new().set_modified(time)).unwrap();
        }
    }
    {
        let store = ChunkStore::open(directory.path(), config).unwrap();
        // A use, which is written down since the last one is older than a minute.
        store.get(&blobs[8].digest).unwrap();
    }
    let store = ChunkStore::open(directory.path(), config).unwrap();
    store.make_room(100 * KIB as u64).unwrap();
    let left: Vec<_> = blobs[..6].iter().chain(&blobs[8..9]).collect();
    assert_eq!(digests(&store), sorted(&left));
}

#[test]
fn a_handle_to_a_removed_blob_reads_and_does_not_write() {
    let (directory, store) = store(1000 * KIB);
    let reference = Reference::new(1, 300 * KIB);
    let blob = store.open_blob(&reference.digest, reference.length()).unwrap();
    let mut pieces = reference.pieces();
    let (first, second) = (pieces.next().unwrap(), pieces.next().unwrap());
    blob.write_piece(first, reference.piece(first)).unwrap();
    assert!(store.remove(&reference.digest).unwrap());
    assert!(blob.is_removed());
    assert_eq!(blob.read_piece(first).unwrap(), reference.piece(first));
    assert!(matches!(blob.write_piece(second, reference.piece(second)), Err(StoreError::Removed(_))));
    assert!(matches!(blob.flush(), Err(StoreError::Removed(_))));
    assert!(matches!(blob.drop_pieces(&[first]), Err(StoreError::Removed(_))));
    assert_eq!(store.used_bytes(), 0);
    let again = store.open_blob(&reference.digest, reference.length()).unwrap();
    assert!(again.have().is_empty());
    again.write_piece(second, reference.piece(second)).unwrap();
    again.flush().unwrap();
    drop((blob, again, store));
    let store = ChunkStore::open(&directory.path().join("store"), StoreConfig::default()).unwrap();
    assert_eq!(store.used_bytes(), reference.layout.piece_length());
}
