//! What an operator, a bad disk or an older program left in the store's directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::store::{ChunkStore, Medium, StoreConfig, StoreError};

use crate::reference::Reference;

const LENGTH: usize = 700_000;

fn open(root: &Path) -> Arc<ChunkStore> {
    ChunkStore::open(root, StoreConfig::default()).unwrap()
}

fn open_in(medium: Medium, root: &Path) -> Arc<ChunkStore> {
    let config = StoreConfig { medium, quota_bytes: Some(1 << 30), ..StoreConfig::default() };
    ChunkStore::open(root, config).unwrap()
}

crate::on_disk_and_in_memory![
    wrong_bytes_are_found_by_verify_and_taken_back,
    insert_replaces_wrong_pieces_of_a_partial_blob,
    pieces_and_ranges_are_held_to_the_layout,
    a_length_that_differs_is_refused_unless_nothing_is_written,
    the_space_of_dropped_pieces_comes_back,
];

fn directory_of(root: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    root.join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// A store with one whole and one other blob; gives the directory of the first.
fn damaged(damage: impl FnOnce(&Path)) -> (tempfile::TempDir, Arc<ChunkStore>, Reference, Reference) {
    let root = tempfile::tempdir().unwrap();
    let (blob, other) = (Reference::new(1, LENGTH), Reference::new(2, LENGTH));
    {
        let store = open(root.path());
        store.insert(&blob.digest, &blob.bytes).unwrap();
        store.insert(&other.digest, &other.bytes).unwrap();
    }
    damage(&directory_of(root.path(), &blob.digest));
    let store = open(root.path());
    let untouched = store.get(&other.digest).unwrap();
    assert!(untouched.is_verified());
    untouched.verify().unwrap();
    (root, store, blob, other)
}

type Damage = (&'static str, fn(&Path));

#[test]
fn a_bitmap_that_is_not_right_costs_a_new_fetch_and_nothing_else() {
    let damages: [Damage; 8] = [
        ("missing", |blob| fs::remove_file(blob.join("pieces")).unwrap()),
        ("empty", |blob| fs::write(blob.join("pieces"), b"").unwrap()),
        ("torn", |blob| {
            let bytes = fs::read(blob.join("pieces")).unwrap();
            fs::write(blob.join("pieces"), &bytes[..bytes.len() - 3]).unwrap();
        }),
        ("flipped", |blob| {
            let mut bytes = fs::read(blob.join("pieces")).unwrap();
            bytes[48] ^= 0x10;
            fs::write(blob.join("pieces"), bytes).unwrap();
        }),
        ("foreign", |blob| fs::write(blob.join("pieces"), vec![0x5a; 3 << 20]).unwrap()),
        ("directory", |blob| {
            fs::remove_file(blob.join("pieces")).unwrap();
            fs::create_dir(blob.join("pieces")).unwrap();
        }),
        ("link", |blob| {
            fs::rename(blob.join("pieces"), blob.join("elsewhere")).unwrap();
            symlink(blob.join("elsewhere"), blob.join("pieces")).unwrap();
        }),
        ("data missing", |blob| fs::remove_file(blob.join("data")).unwrap()),
    ];
    for (name, damage) in damages {
        let (root, store, blob, _) = damaged(damage);
        assert!(store.get(&blob.digest).is_none(), "{name}");
        assert_eq!(store.used_bytes(), LENGTH as u64, "{name}");
        assert!(!directory_of(root.path(), &blob.digest).exists(), "{name}");
        assert!(store.insert(&blob.digest, &blob.bytes).unwrap().is_verified(), "{name}");
        assert_eq!(store.used_bytes(), 2 * LENGTH as u64, "{name}");
    }
}

#[test]
fn the_bitmap_of_another_blob_is_not_believed() {
    let (_root, store, blob, _) = damaged(|directory| {
        let other = Reference::new(2, LENGTH);
        let root = directory.ancestors().nth(4).unwrap();
        fs::copy(directory_of(root, &other.digest).join("pieces"), directory.join("pieces")).unwrap();
    });
    assert!(store.get(&blob.digest).is_none());
}

#[test]
fn data_cut_short_keep_the_pieces_before_the_cut() {
    let (root, store, blob, _) = damaged(|directory| {
        let file = fs::OpenOptions::new().write(true).open(directory.join("data")).unwrap();
        file.set_len(3 * 65_536 + 5).unwrap();
    });
    let stored = store.get(&blob.digest).unwrap();
    assert_eq!(stored.have().iter().collect::<Vec<_>>(), [PieceIndex(0), PieceIndex(1), PieceIndex(2)]);
    assert!(!stored.is_verified());
    assert!(matches!(stored.read_at(0..LENGTH as u64), Err(StoreError::Missing { piece: 3, .. })));
    drop((stored, store));
    // The bits are gone from the disk too, now that the hole would read as zeros.
    let store = open(root.path());
    let stored = store.get(&blob.digest).unwrap();
    assert_eq!(stored.have().count(), 3);
    for piece in blob.pieces() {
        assert_eq!(stored.write_piece(piece, blob.piece(piece)).unwrap(), piece.0 >= 3);
    }
    stored.verify().unwrap();
}

#[test]
fn data_longer_than_the_blob_are_not_believed() {
    let (_root, store, blob, _) = damaged(|directory| {
        fs::OpenOptions::new().write(true).open(directory.join("data")).unwrap().set_len(1 << 30).unwrap();
    });
    assert!(store.get(&blob.digest).is_none());
}

#[test]
fn foreign_entries_are_left_alone() {
    let (root, store, ..) = damaged(|directory| {
        let sha256 = directory.ancestors().nth(2).unwrap();
        fs::write(sha256.join("README"), b"mine").unwrap();
        fs::create_dir(sha256.join("zz")).unwrap();
        fs::create_dir(sha256.join("zz/not-a-digest")).unwrap();
        fs::write(directory.parent().unwrap().join(Digest::of(b"file").hex()), b"mine").unwrap();
        fs::create_dir(sha256.join("zz").join(Digest::of(b"wrong shard").hex())).unwrap();
    });
    assert_eq!(store.list().len(), 2);
    assert_eq!(fs::read(root.path().join("blobs/sha256/README")).unwrap(), b"mine");
    assert!(root.path().join("blobs/sha256/zz/not-a-digest").exists());
}

#[test]
fn metainfo_is_kept_and_a_damaged_one_is_not_believed() {
    let (root, store, blob, _) = damaged(|_| {});
    let made = store.get(&blob.digest).unwrap().verify().unwrap();
    drop(store);
    let store = open(root.path());
    let stored = store.get(&blob.digest).unwrap();
    assert_eq!(stored.metainfo(), Some(made));
    let path = directory_of(root.path(), &blob.digest).join("metainfo");
    let mut bytes = fs::read(&path).unwrap();
    bytes[60] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(stored.metainfo(), None);
}

fn wrong_bytes_are_found_by_verify_and_taken_back(medium: Medium) {
    let root = tempfile::tempdir().unwrap();
    let blob = Reference::new(1, LENGTH);
    let store = open_in(medium, root.path());
    let stored = store.open_blob(&blob.digest, blob.length()).unwrap();
    let liar = PieceIndex(4);
    for piece in blob.pieces() {
        let rubbish: Vec<u8> = blob.piece(piece).iter().map(|byte| !byte).collect();
        assert!(stored.write_piece(piece, if piece == liar { &rubbish } else { blob.piece(piece) }).unwrap());
    }
    assert!(stored.is_complete());
    assert!(matches!(stored.verify(), Err(StoreError::DigestMismatch { digest, .. }) if digest == blob.digest));
    assert!(!stored.is_verified());
    stored.drop_pieces(&[liar]).unwrap();
    assert!(matches!(stored.verify(), Err(StoreError::Missing { piece: 4, .. })));
    assert!(matches!(stored.mark_verified(stored.drops()), Err(StoreError::Missing { piece: 4, .. })));
    let drops = stored.drops();
    assert!(stored.write_piece(liar, blob.piece(liar)).unwrap());
    stored.drop_pieces(&[PieceIndex(0)]).unwrap();
    assert!(stored.write_piece(PieceIndex(0), blob.piece(PieceIndex(0))).unwrap());
    assert!(
        matches!(stored.mark_verified(drops), Err(StoreError::Changed(_))),
        "whoever hashed it did not see that piece"
    );
    let metainfo = stored.verify().unwrap();
    assert!(blob.pieces().all(|piece| metainfo.matches(piece, blob.piece(piece))));
    assert!(stored.is_verified());
}

#[test]
fn a_blob_of_which_nothing_is_left_is_gone_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let blob = Reference::new(1, LENGTH);
    let store = open(root.path());
    let stored = store.insert(&blob.digest, &blob.bytes).unwrap();
    stored.drop_pieces(&blob.pieces().collect::<Vec<_>>()).unwrap();
    drop((stored, store));
    assert!(directory_of(root.path(), &blob.digest).join("data").exists());
    assert!(open(root.path()).list().is_empty());
    assert!(!directory_of(root.path(), &blob.digest).exists());
}

#[test]
fn dropped_pieces_are_gone_after_a_restart_without_a_flush() {
    let root = tempfile::tempdir().unwrap();
    let blob = Reference::new(1, LENGTH);
    {
        let store = open(root.path());
        let stored = store.insert(&blob.digest, &blob.bytes).unwrap();
        stored.drop_pieces(&[PieceIndex(2), PieceIndex(9), PieceIndex(2)]).unwrap();
        assert!(!stored.is_verified());
    }
    let store = open(root.path());
    let stored = store.get(&blob.digest).unwrap();
    assert!(!stored.is_verified());
    assert_eq!(blob.pieces().filter(|&piece| !stored.has(piece)).collect::<Vec<_>>(), [PieceIndex(2), PieceIndex(9)]);
    assert_eq!(store.used_bytes(), LENGTH as u64 - 2 * 65_536);
}

/// The journal goes with what is dropped. What it said of other pieces went, too, so that a killed process lost them.
#[test]
fn pieces_beside_a_dropped_one_survive_a_kill_without_a_flush() {
    let (root, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let blob = Reference::new(1, LENGTH);
    let store = open(root.path());
    let stored = store.open_blob(&blob.digest, blob.length()).unwrap();
    for piece in blob.pieces().take(4) {
        stored.write_piece(piece, blob.piece(piece)).unwrap();
    }
    stored.drop_pieces(&[PieceIndex(1)]).unwrap();
    // What a killed process leaves is what is in its files.
    copy_tree(root.path(), copy.path());
    let have = open(copy.path()).get(&blob.digest).unwrap().have();
    assert_eq!(have.iter().collect::<Vec<_>>(), [0, 2, 3].map(PieceIndex));
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A blob that was found wrong and given up kept its space: it was not counted, and so never evicted.
fn the_space_of_dropped_pieces_comes_back(medium: Medium) {
    use std::os::unix::fs::MetadataExt as _;
    let root = tempfile::tempdir().unwrap();
    let blob = Reference::new(1, 3 << 20);
    let store = open_in(medium, root.path());
    let stored = store.insert(&blob.digest, &blob.bytes).unwrap();
    let space = || stored.file().metadata().unwrap().blocks() * 512;
    assert!(space() >= blob.length());
    stored.drop_pieces(&blob.pieces().skip(1).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.used_bytes(), blob.layout.piece_length());
    // Filesystems round to their blocks.
    assert!(space() <= blob.layout.piece_length() + (64 << 10), "{} bytes are taken", space());
    assert!(stored.read_piece(PieceIndex(0)).unwrap() == blob.piece(PieceIndex(0)));
    assert_eq!(stored.file().metadata().unwrap().len(), blob.length());
}

fn insert_replaces_wrong_pieces_of_a_partial_blob(medium: Medium) {
    let root = tempfile::tempdir().unwrap();
    let blob = Reference::new(1, LENGTH);
    let store = open_in(medium, root.path());
    let stored = store.open_blob(&blob.digest, blob.length()).unwrap();
    stored.write_piece(PieceIndex(0), &vec![0; 65_536]).unwrap();
    stored.flush().unwrap();
    assert!(matches!(store.insert(&blob.digest, b"other"), Err(StoreError::DigestMismatch { .. })));
    store.insert(&blob.digest, &blob.bytes).unwrap().verify().unwrap();
    assert_eq!(store.used_bytes(), LENGTH as u64);
}

fn pieces_and_ranges_are_held_to_the_layout(medium: Medium) {
    let root = tempfile::tempdir().unwrap();
    let blob = Reference::new(1, LENGTH);
    let store = open_in(medium, root.path());
    let stored = store.open_blob(&blob.digest, blob.length()).unwrap();
    let write = |piece, bytes: &[u8]| stored.write_piece(PieceIndex(piece), bytes);
    assert!(matches!(write(0, &blob.bytes[1..65_536]), Err(StoreError::PieceLength { expected: 65_536, .. })));
    assert!(matches!(write(10, &[0; 65_536]), Err(StoreError::PieceLength { expected: 44_640, .. })));
    assert!(matches!(write(11, &[]), Err(StoreError::PieceLength { expected: 0, .. })));
    assert!(matches!(stored.read_piece(PieceIndex(0)), Err(StoreError::Missing { piece: 0, .. })));
    assert!(matches!(stored.read_at(0..LENGTH as u64 + 1), Err(StoreError::OutOfRange { .. })));
    assert!(write(0, blob.piece(PieceIndex(0))).unwrap());
    assert!(!write(0, &[0; 65_536]).unwrap(), "a piece that is there is not written over");
    assert_eq!(stored.read_at(7..65_536).unwrap(), blob.bytes[7..65_536]);
    assert!(matches!(stored.read_at(7..65_537), Err(StoreError::Missing { piece: 1, .. })));
}

fn a_length_that_differs_is_refused_unless_nothing_is_written(medium: Medium) {
    let root = tempfile::tempdir().unwrap();
    let blob = Reference::new(1, LENGTH);
    let store = open_in(medium, root.path());
    let wrong = store.open_pinned(&blob.digest, 5).unwrap();
    let error = store.open_blob(&blob.digest, blob.length()).unwrap_err();
    assert!(matches!(error, StoreError::LengthMismatch { stored: 5, asked: 700_000, .. }), "{error}");
    drop(wrong);
    store.insert(&blob.digest, &blob.bytes).unwrap();
    assert!(matches!(store.open_blob(&blob.digest, 5), Err(StoreError::LengthMismatch { .. })));
    assert!(matches!(store.open_blob(&blob.digest, u64::MAX), Err(StoreError::TooLong(_))));
}

#[test]
fn an_empty_blob_is_a_blob() {
    let root = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"");
    open(root.path()).insert(&digest, b"").unwrap();
    let store = open(root.path());
    let stored = store.get(&digest).unwrap();
    assert!(stored.is_verified() && stored.is_complete());
    assert_eq!(stored.read_at(0..0).unwrap().len(), 0);
    assert_eq!(stored.verify().unwrap().length(), 0);
}

/// Data files of the store that this process has open.
fn data_files(root: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    links.filter(|link| link.starts_with(root) && link.ends_with("data")).count()
}

#[test]
fn descriptors_of_blobs_that_were_all_in_use_are_given_up_later() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let count = lapwing_p2p::limits::MAX_IDLE_OPEN_BLOBS + 40;
    let blobs: Vec<_> = (0..count as u64).map(|seed| Reference::new(seed, 64)).collect();
    let held: Vec<_> = blobs.iter().map(|blob| store.insert(&blob.digest, &blob.bytes).unwrap()).collect();
    store.close_surplus();
    assert_eq!(data_files(root.path()), count, "they are in use");
    drop(held);
    store.close_surplus();
    assert_eq!(data_files(root.path()), 0);
    assert_eq!(store.get(&blobs[0].digest).unwrap().read_at(0..64).unwrap(), blobs[0].bytes);
}

#[test]
fn more_blobs_than_descriptors_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let count = lapwing_p2p::limits::MAX_IDLE_OPEN_BLOBS + 40;
    let blobs: Vec<_> = (0..count as u64).map(|seed| Reference::new(seed, 64)).collect();
    let held = store.open_blob(&Digest::of(b"held"), 300_000).unwrap();
    held.write_piece(PieceIndex(1), &[9; 65_536]).unwrap();
    for blob in &blobs {
        store.insert(&blob.digest, &blob.bytes).unwrap();
    }
    let open = data_files(root.path());
    assert!(open <= lapwing_p2p::limits::MAX_IDLE_OPEN_BLOBS + 1, "{open}");
    assert!(Arc::ptr_eq(&held, &store.get(&held.digest()).unwrap()), "a blob in use is not closed");
    for blob in &blobs {
        assert_eq!(store.get(&blob.digest).unwrap().read_at(0..64).unwrap(), blob.bytes);
    }
    assert_eq!(store.used_bytes(), 64 * count as u64 + 65_536);
}

#[test]
fn one_process_at_a_time_has_a_store() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let error = ChunkStore::open(root.path(), StoreConfig::default()).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    // A blob still held may still be written: the store is not free yet.
    let blob = store.open_blob(&Digest::of(b"held"), 5).unwrap();
    drop(store);
    assert!(matches!(ChunkStore::open(root.path(), StoreConfig::default()), Err(StoreError::Locked(_))));
    drop(blob);
    open(root.path());
}

#[test]
fn directories_are_private_and_those_open_to_others_refused() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("new/store");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let chmod = |mode| fs::set_permissions(&root, fs::Permissions::from_mode(mode)).unwrap();
    drop(open(&root));
    for directory in ["", "blobs", "blobs/sha256"] {
        assert_eq!(mode(&root.join(directory)), 0o700, "{directory}");
    }
    chmod(0o755);
    drop(open(&root));
    assert_eq!(mode(&root), 0o700);
    chmod(0o777);
    let error = ChunkStore::open(&root, StoreConfig::default()).unwrap_err();
    assert!(matches!(error, StoreError::Insecure { .. }) && error.to_string().contains("chmod 0700"), "{error}");
    chmod(0o700);
    // The root may be a link to a larger disk, what is below it may not.
    symlink(&root, parent.path().join("link")).unwrap();
    drop(open(&parent.path().join("link")));
    fs::rename(root.join("blobs"), parent.path().join("blobs")).unwrap();
    symlink(parent.path().join("blobs"), root.join("blobs")).unwrap();
    assert!(matches!(ChunkStore::open(&root, StoreConfig::default()), Err(StoreError::Insecure { .. })));
}
