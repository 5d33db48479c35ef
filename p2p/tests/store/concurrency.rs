//! Many threads on one blob: nobody reads what nobody wrote, and each piece is new once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::store::{ChunkStore, Medium, StoreConfig, StoreError};

use crate::points::fast_directory;
use crate::reference::{Reference, random};

crate::on_disk_and_in_memory![
    writers_readers_and_flushes_do_not_disturb_each_other,
    pieces_dropped_and_written_at_once_are_never_mixed,
    everybody_gets_the_same_blob_while_others_remove_it,
    what_is_inserted_is_right_whatever_others_write_meanwhile,
    what_is_held_and_there_stays_there,
];

fn roomy(medium: Medium) -> StoreConfig {
    StoreConfig { medium, quota_bytes: Some(1 << 30), ..StoreConfig::default() }
}

const LENGTH: usize = (5 << 20) + 77;

/// Ends the loops of the other threads, also when an assertion fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn writers_readers_and_flushes_do_not_disturb_each_other(medium: Medium) {
    let root = tempfile::tempdir().unwrap();
    let reference = Reference::new(1, LENGTH);
    let store = ChunkStore::open(root.path(), roomy(medium)).unwrap();
    let blob = store.open_blob(&reference.digest, reference.length()).unwrap();
    let (new, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let seed = random().u64(..);
    thread::scope(|scope| {
        let _done = SetOnDrop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                blob.flush().unwrap();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for piece in blob.have().iter() {
                    assert!(blob.read_piece(piece).unwrap() == reference.piece(piece), "{piece:?}");
                }
            }
        });
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let mut pieces: Vec<PieceIndex> = reference.pieces().collect();
                fastrand::Rng::with_seed(seed ^ writer).shuffle(&mut pieces);
                let (blob, reference, new) = (&blob, &reference, &new);
                scope.spawn(move || {
                    for piece in pieces {
                        new.fetch_add(
                            usize::from(blob.write_piece(piece, reference.piece(piece)).unwrap()),
                            Ordering::Relaxed,
                        );
                        assert!(blob.has(piece), "written by another is written");
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
    assert_eq!(new.load(Ordering::Relaxed), reference.layout.piece_count() as usize);
    assert_eq!(store.used_bytes(), reference.length());
    blob.verify().unwrap();
}

fn pieces_dropped_and_written_at_once_are_never_mixed(medium: Medium) {
    let root = tempfile::tempdir().unwrap();
    let reference = Reference::new(1, 300_000);
    let store = ChunkStore::open(root.path(), roomy(medium)).unwrap();
    let blob = store.open_blob(&reference.digest, reference.length()).unwrap();
    let piece = PieceIndex(1);
    let versions = [vec![1; 65_536], vec![2; 65_536], vec![3; 65_536]];
    let (start, done) = (Barrier::new(4), AtomicBool::new(false));
    thread::scope(|scope| {
        let _done = SetOnDrop(&done);
        for bytes in &versions {
            let (blob, start, done) = (&blob, &start, &done);
            scope.spawn(move || {
                start.wait();
                while !done.load(Ordering::Relaxed) {
                    blob.write_piece(piece, bytes).unwrap();
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Read while it is dropped and written: all of one version, or not there.
                match blob.read_piece(piece) {
                    Ok(bytes) => assert!(versions.iter().any(|version| bytes == *version), "mixed"),
                    Err(StoreError::Missing { .. }) => thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        });
        start.wait();
        for _ in 0..300 {
            blob.flush().unwrap();
            // Nobody else drops: what can be read once stays as it is.
            if let Ok(bytes) = blob.read_piece(piece) {
                assert!(versions.iter().any(|version| bytes == *version), "mixed");
                assert!(blob.read_piece(piece).unwrap() == bytes, "written over");
            }
            blob.drop_pieces(&[piece]).unwrap();
        }
    });
    blob.write_piece(piece, &versions[0]).unwrap();
    let bytes = blob.read_piece(piece).unwrap();
    assert!(versions.iter().any(|version| bytes == *version));
    assert_eq!(store.used_bytes(), blob.have_bytes());
    assert_eq!(blob.have_bytes(), 65_536);
}

fn everybody_gets_the_same_blob_while_others_remove_it(medium: Medium) {
    let root = tempfile::tempdir().unwrap();
    let reference = Reference::new(1, 300_000);
    let store = ChunkStore::open(root.path(), roomy(medium)).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..60 {
                    let pin = store.open_pinned(&reference.digest, reference.length()).unwrap();
                    let same = store.get(&reference.digest).unwrap();
                    assert!(Arc::ptr_eq(pin.blob(), &same));
                    for piece in reference.pieces() {
                        pin.blob().write_piece(piece, reference.piece(piece)).unwrap();
                    }
                    pin.blob().verify().unwrap();
                }
            });
        }
        // Without a pin the blob may go at any moment, and then nothing is written, but nothing else fails.
        scope.spawn(|| {
            for _ in 0..200 {
                let blob = store.open_blob(&reference.digest, reference.length()).unwrap();
                let first = PieceIndex(0);
                let written = blob.write_piece(first, reference.piece(first)).and_then(|_| blob.flush());
                assert!(matches!(written, Ok(()) | Err(StoreError::Removed(_))), "{written:?}");
            }
        });
        scope.spawn(|| {
            for _ in 0..2000 {
                match store.remove(&reference.digest) {
                    Ok(_) | Err(StoreError::InUse(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    });
    let left = store.get(&reference.digest).map_or(0, |blob| blob.have_bytes());
    assert_eq!(store.used_bytes(), left);
}

fn what_is_inserted_is_right_whatever_others_write_meanwhile(medium: Medium) {
    let root = fast_directory();
    let reference = Reference::new(1, 1 << 20);
    let store = ChunkStore::open(root.path(), roomy(medium)).unwrap();
    let mut inserted = 0;
    for round in 0..150 {
        let blob = store.open_blob(&reference.digest, reference.length()).unwrap();
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                // Against the other's way, so that they meet.
                for piece in (0..reference.layout.piece_count()).rev().map(PieceIndex) {
                    let rubbish = vec![round as u8; reference.piece(piece).len()];
                    blob.write_piece(piece, &rubbish).unwrap();
                }
            });
            start.wait();
            match store.insert(&reference.digest, &reference.bytes) {
                Ok(blob) => {
                    assert!(blob.is_verified());
                    assert!(blob.read_at(0..reference.length()).unwrap() == reference.bytes, "round {round}");
                    inserted += 1;
                }
                Err(StoreError::Changed(_)) => {}
                Err(error) => panic!("{error}"),
            }
        });
        assert!(store.remove(&reference.digest).unwrap());
    }
    assert!(inserted > 0);
}

fn what_is_held_and_there_stays_there(medium: Medium) {
    let root = fast_directory();
    let reference = Reference::new(1, 64);
    let store = ChunkStore::open(root.path(), roomy(medium)).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _done = SetOnDrop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.insert(&reference.digest, &reference.bytes).unwrap();
                match store.remove(&reference.digest) {
                    Ok(_) | Err(StoreError::InUse(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let mut seen = 0;
        while seen < 1000 {
            let hold = store.hold(reference.digest);
            if store.is_verified(&reference.digest) {
                seen += 1;
                for _ in 0..20 {
                    thread::yield_now();
                    assert!(store.is_verified(&reference.digest), "removed though it was held");
                }
            }
            drop(hold);
            thread::yield_now();
        }
    });
}
