//! A disk that runs full gives an error that says what to do, and harms nothing that is stored.

use lapwing_p2p::store::{ChunkStore, StoreConfig, StoreError};

use crate::mounts::Mount;
use crate::reference::Reference;

const MIB: usize = 1 << 20;

#[test]
fn a_full_disk_is_an_error_and_the_store_stays_right() {
    let Some(disk) = Mount::tmpfs(8 << 20) else { return };
    let root = disk.path().join("store");
    let reference = Reference::new(1, 16 * MIB);
    let written = {
        let store = ChunkStore::open(&root, StoreConfig::default()).unwrap();
        let blob = store.open_blob(&reference.digest, reference.length()).unwrap();
        let error = reference
            .pieces()
            .find_map(|piece| blob.write_piece(piece, reference.piece(piece)).err())
            .expect("16 MiB do not fit in 8");
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(root.to_str().unwrap()) && text.contains("free space"), "{text}");
        assert_eq!(store.used_bytes(), blob.have_bytes());
        // Not even the bitmap has room now: what was written can be read, and is not lost when room comes back.
        assert!(matches!(blob.flush(), Err(StoreError::NoSpace { .. })));
        let have: Vec<_> = blob.have().iter().collect();
        let (dropped, kept) = have.split_at(4);
        assert!(kept.iter().all(|&piece| blob.read_piece(piece).unwrap() == reference.piece(piece)));
        blob.drop_pieces(dropped).unwrap();
        assert_eq!(store.used_bytes(), blob.have_bytes());
        rustix::fs::fallocate(
            blob.file(),
            rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
            0,
            4 * blob.layout().piece_length(),
        )
        .unwrap();
        blob.flush().unwrap();
        kept.to_vec()
    };
    let store = ChunkStore::open(&root, StoreConfig::default()).unwrap();
    let blob = store.get(&reference.digest).unwrap();
    assert_eq!(blob.have().iter().collect::<Vec<_>>(), written);
    assert!(written.iter().all(|&piece| blob.read_piece(piece).unwrap() == reference.piece(piece)));
}

#[test]
fn a_drop_on_a_full_disk_is_durable() {
    let Some(disk) = Mount::tmpfs(8 << 20) else { return };
    let root = disk.path().join("store");
    let reference = Reference::new(1, 4 * MIB);
    let dropped: Vec<_> = reference.pieces().take(3).collect();
    {
        let store = ChunkStore::open(&root, StoreConfig::default()).unwrap();
        store.insert(&reference.digest, &reference.bytes).unwrap();
        fill(&disk.path().join("filler"));
        let blob = store.get(&reference.digest).unwrap();
        blob.drop_pieces(&dropped).unwrap();
        assert!(dropped.iter().all(|&piece| !blob.has(piece)));
    }
    let store = ChunkStore::open(&root, StoreConfig::default()).unwrap();
    if let Some(blob) = store.get(&reference.digest) {
        assert!(dropped.iter().all(|&piece| !blob.has(piece)));
    }
}

#[test]
fn a_full_disk_evicts_what_nobody_needs() {
    let Some(disk) = Mount::tmpfs(8 << 20) else { return };
    let store = ChunkStore::open(&disk.path().join("store"), StoreConfig::default()).unwrap();
    let (old, new) = (Reference::new(1, 3 * MIB), Reference::new(2, 7 * MIB));
    store.insert(&old.digest, &old.bytes).unwrap();
    let blob = store.insert(&new.digest, &new.bytes).unwrap();
    assert!(blob.is_verified());
    assert_eq!(store.get(&old.digest).map(|blob| blob.digest()), None);
    assert_eq!(store.used_bytes(), new.length());
}

#[test]
fn the_free_space_floor_is_kept() {
    let Some(disk) = Mount::tmpfs(8 << 20) else { return };
    let floor = 4 << 20;
    let config = StoreConfig { free_floor_bytes: floor, ..StoreConfig::default() };
    let store = ChunkStore::open(&disk.path().join("store"), config).unwrap();
    let (first, second, large) = (Reference::new(1, 2 * MIB), Reference::new(2, 3 * MIB), Reference::new(3, 6 * MIB));
    store.insert(&first.digest, &first.bytes).unwrap();
    store.insert(&second.digest, &second.bytes).unwrap();
    assert!(store.get(&first.digest).is_none());
    let error = store.insert(&large.digest, &large.bytes).unwrap_err();
    assert!(matches!(&error, StoreError::NoSpace { .. }) && error.to_string().contains("floor"), "{error}");
    let stat = rustix::fs::statvfs(disk.path()).unwrap();
    assert!(stat.f_bavail * stat.f_frsize >= floor);
}

/// A process that is just being started has a copy of every descriptor, and filesystems may free in the background:
/// the space had been taken for not freed, the next blob evicted as well, and the write failed.
#[test]
fn space_that_comes_back_a_moment_after_the_eviction_is_waited_for() {
    for floor in [0, 1 << 20] {
        space_that_comes_back_late(floor);
    }
}

fn space_that_comes_back_late(floor: u64) {
    let Some(disk) = Mount::tmpfs(8 << 20) else { return };
    let config = StoreConfig { free_floor_bytes: floor, ..StoreConfig::default() };
    let root = disk.path().join("store");
    let store = ChunkStore::open(&root, config).unwrap();
    let (old, young, new) = (Reference::new(1, 3 * MIB), Reference::new(2, 2 * MIB), Reference::new(3, 4 * MIB));
    store.insert(&old.digest, &old.bytes).unwrap();
    store.insert(&young.digest, &young.bytes).unwrap();
    let hex = old.digest.hex();
    let copy = std::fs::File::open(root.join("blobs/sha256").join(&hex[..2]).join(&hex).join("data")).unwrap();
    let closing = std::thread::spawn(move || {
        while rustix::fs::fstat(&copy).unwrap().st_nlink > 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    });
    assert!(store.insert(&new.digest, &new.bytes).unwrap().is_verified());
    closing.join().unwrap();
    assert!(store.get(&young.digest).is_some(), "evicted for nothing");
}

fn fill(path: &std::path::Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    let full = (0..).find_map(|_| file.write_all(&[1; 4096]).err()).unwrap();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
}
