//! Old blobs make room for new ones, but never those in use.

use std::fs::FileTimes;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Replicas;
use lapwing_p2p::store::{ChunkStore, Medium, Removed, StoreConfig, StoreError};

use crate::reference::Reference;

const KIB: usize = 1 << 10;

crate::on_disk_and_in_memory![
    the_least_recently_used_go_first_down_to_the_low_watermark,
    pinned_blobs_stay_and_are_named_when_there_is_no_room,
    a_pin_counts_until_the_last_one_is_gone,
    what_can_never_fit_does_not_empty_the_cache,
    a_blob_counts_by_what_is_written_of_it,
    writing_makes_room_without_being_asked,
    what_a_mount_needs_stays_without_being_open,
    the_last_copy_of_a_zone_goes_last_and_one_that_others_have_first,
];

fn store(medium: Medium, quota: usize) -> (tempfile::TempDir, Arc<ChunkStore>) {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { medium, quota_bytes: Some(quota as u64), ..StoreConfig::default() };
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

fn the_least_recently_used_go_first_down_to_the_low_watermark(medium: Medium) {
    let (_directory, store) = store(medium, 1000 * KIB);
    let blobs = blobs();
    for blob in &blobs[..9] {
        store.insert(&blob.digest, &blob.bytes).unwrap();
    }
    assert_eq!(store.list().len(), 9, "90 % are not too much");
    store.get(&blobs[0].digest).unwrap();
    let mut removed = store.watch_removed();
    assert!(store.crowded().now_or_never().is_none(), "nobody is called as long as there is room");
    store.insert(&blobs[9].digest, &blobs[9].bytes).unwrap();
    assert_eq!(store.list().len(), 10, "a write that fits does not wait for evictions");
    assert!(store.crowded().now_or_never().is_some());
    assert!(store.age().unwrap());
    // 1,000 KiB are above 90 %: down to 800, and the first was used again.
    let expected: Vec<_> =
        blobs.iter().enumerate().filter(|(i, _)| ![1, 2].contains(i)).map(|(_, blob)| blob).collect();
    assert_eq!(digests(&store), sorted(&expected));
    assert_eq!(store.used_bytes(), 800 * KIB as u64);
    for blob in &blobs[1..3] {
        let expected = Removed { digest: blob.digest, bytes: 100 * KIB as u64, evicted: true };
        assert_eq!(removed.try_recv(), Ok(expected));
    }
    assert!(removed.try_recv().is_err());
    store.remove(&blobs[9].digest).unwrap();
    assert!(removed.try_recv().is_ok_and(|removed| removed.digest == blobs[9].digest && !removed.evicted));
}

#[test]
fn the_watermarks_are_where_they_are_set() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        quota_bytes: Some(1000 * KIB as u64),
        high_watermark_percent: 50,
        low_watermark_percent: 20,
        ..StoreConfig::default()
    };
    let store = ChunkStore::open(directory.path(), config).unwrap();
    let blobs = blobs();
    for (blob, left) in blobs.iter().zip([1, 2, 3, 4, 5, 2, 3, 4, 5, 2]) {
        store.insert(&blob.digest, &blob.bytes).unwrap();
        assert!(store.age().unwrap());
        assert_eq!(store.list().len(), left);
    }
}

#[test]
fn what_an_operator_pinned_stays_over_restarts_until_it_is_unpinned() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { quota_bytes: Some(1000 * KIB as u64), ..StoreConfig::default() };
    let blobs = blobs();
    {
        let store = ChunkStore::open(directory.path(), config).unwrap();
        assert!(store.pin(blobs[0].digest).unwrap() && !store.pin(blobs[0].digest).unwrap());
        assert!(store.pin(blobs[1].digest).unwrap() && store.unpin(blobs[1].digest).unwrap());
        assert!(!store.unpin(blobs[1].digest).unwrap());
        for blob in &blobs {
            store.insert(&blob.digest, &blob.bytes).unwrap();
        }
    }
    let store = ChunkStore::open(directory.path(), config).unwrap();
    assert_eq!(store.pinned(), [blobs[0].digest]);
    store.make_room(800 * KIB as u64).unwrap();
    assert_eq!(digests(&store), [blobs[0].digest]);
    assert!(store.list()[0].pinned && !store.list()[0].in_use);
    let error = store.remove(&blobs[0].digest).unwrap_err();
    assert!(matches!(error, StoreError::Pinned(_)) && error.to_string().contains("lapwing unpin"), "{error}");
    assert!(store.unpin(blobs[0].digest).unwrap());
    assert!(store.remove(&blobs[0].digest).unwrap());
}

#[test]
fn pins_that_cannot_be_read_are_not_taken_for_none() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
    {
        let store = ChunkStore::open(directory.path(), StoreConfig::default()).unwrap();
        store.pin(one).unwrap();
        store.pin(other).unwrap();
    }
    let path = directory.path().join("blobs/pins");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("not a digest\n{text}")).unwrap();
    assert_eq!(ChunkStore::open(directory.path(), StoreConfig::default()).unwrap().pinned().len(), 2);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = ChunkStore::open(directory.path(), StoreConfig::default()).unwrap_err();
    assert!(error.to_string().contains("blobs/pins"), "{error}");
}

fn what_a_mount_needs_stays_without_being_open(medium: Medium) {
    let (_directory, store) = store(medium, 1000 * KIB);
    let blobs = blobs();
    let hold = store.hold(blobs[0].digest);
    let second = store.hold(blobs[0].digest);
    for blob in &blobs[..9] {
        store.insert(&blob.digest, &blob.bytes).unwrap();
    }
    drop(second);
    store.make_room(901 * KIB as u64).unwrap_err();
    store.make_room(800 * KIB as u64).unwrap();
    assert_eq!(digests(&store), [blobs[0].digest]);
    assert!(matches!(store.remove(&blobs[0].digest), Err(StoreError::InUse(_))));
    drop(hold);
    assert!(store.remove(&blobs[0].digest).unwrap());
}

fn the_last_copy_of_a_zone_goes_last_and_one_that_others_have_first(medium: Medium) {
    let (_directory, store) = store(medium, 1000 * KIB);
    let blobs = blobs();
    for blob in &blobs[..9] {
        store.insert(&blob.digest, &blob.bytes).unwrap();
    }
    let asked = store.unweighed(100).unwrap();
    assert_eq!(asked, blobs[..5].iter().map(|blob| blob.digest).collect::<Vec<_>>(), "the older half of them");
    let (last, near) = (Replicas { zone: 0, all: 0 }, Replicas { zone: 2, all: 5 });
    store.weigh([(blobs[0].digest, last), (blobs[1].digest, near), (blobs[2].digest, last), (blobs[3].digest, near)]);
    assert_eq!(store.unweighed(100).unwrap(), [blobs[4].digest]);
    store.insert(&blobs[9].digest, &blobs[9].bytes).unwrap();
    assert!(store.age().unwrap());
    let gone = |store: &ChunkStore| {
        (0..10).filter(|&place| !digests(store).contains(&blobs[place].digest)).collect::<Vec<_>>()
    };
    assert_eq!(gone(&store), [1, 3]);
    store.make_room(700 * KIB as u64).unwrap();
    assert_eq!(digests(&store), sorted(&[&blobs[9]]), "a last copy goes when nothing else is enough");
}

fn pinned_blobs_stay_and_are_named_when_there_is_no_room(medium: Medium) {
    let (directory, store) = store(medium, 1000 * KIB);
    let blobs = blobs();
    let pins: Vec<_> = blobs[..9].iter().map(|blob| store.insert(&blob.digest, &blob.bytes).unwrap().pin()).collect();
    assert!(store.list().iter().all(|blob| blob.in_use));
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

fn a_pin_counts_until_the_last_one_is_gone(medium: Medium) {
    let (_directory, store) = store(medium, 1000 * KIB);
    let blob = Reference::new(1, KIB);
    let first = store.insert(&blob.digest, &blob.bytes).unwrap().pin();
    let second = first.blob().pin();
    drop(first);
    assert!(matches!(store.remove(&blob.digest), Err(StoreError::InUse(_))));
    drop(second);
    assert!(store.remove(&blob.digest).unwrap());
    assert!(!store.remove(&blob.digest).unwrap());
}

fn what_can_never_fit_does_not_empty_the_cache(medium: Medium) {
    let (_directory, store) = store(medium, 1000 * KIB);
    let blobs = blobs();
    for blob in &blobs[..5] {
        store.insert(&blob.digest, &blob.bytes).unwrap();
    }
    assert!(matches!(store.make_room(2000 * KIB as u64), Err(StoreError::NoSpace { .. })));
    assert_eq!(store.list().len(), 5);
}

fn a_blob_counts_by_what_is_written_of_it(medium: Medium) {
    let (_directory, store) = store(medium, 1000 * KIB);
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

fn writing_makes_room_without_being_asked(medium: Medium) {
    let (_directory, store) = store(medium, 1000 * KIB);
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
    let config = StoreConfig { quota_bytes: Some(1000 * KIB as u64), free_floor_bytes: 0, ..StoreConfig::default() };
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
    let (directory, store) = store(Medium::Disk, 1000 * KIB);
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
