//! Which pieces were written since the bitmap file was last replaced: what a killed process leaves to its successor.
//!
//! The bitmap file is replaced every few seconds, after the data were synced. In between each piece that is written is
//! noted here, with a checksum of its bytes and without any sync: a process that is killed loses only the pieces it was
//! just writing. Notes are believed only as far as the bytes in the data file agree with them, so neither a torn write
//! nor a loss of power makes them lie. Pieces that are taken back take the whole journal with them, durably.
//!
//! `<blob>/journal`, version 1, big-endian:
//!
//! ```text
//! offset  bytes  content
//!      0      4  magic "LWPJ"
//!      4      1  version, 1
//!      5      3  zero
//!      8      8  length of the blob in bytes
//!     16     32  SHA-256 of the blob
//!     48      4  CRC-32C (RFC 3720) of everything before
//!     52     12  zero
//! then for each piece written:
//!      0      4  its index
//!      4      4  CRC-32C of its bytes
//!      8      4  zero
//!     12      4  CRC-32C of the twelve bytes before
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::error::StoreError;
use super::{disk, lock};
use crate::bitfield::Bitfield;
use crate::changes;
use crate::digest::Digest;
use crate::failpoint;
use crate::layout::{PieceIndex, PieceLayout};
use crate::limits::MAX_JOURNAL_FILE_LENGTH;

pub(super) const JOURNAL: &str = "journal";
const MAGIC: [u8; 4] = *b"LWPJ";
const VERSION: u8 = 1;
const HEADER_LENGTH: usize = 64;
const NOTE_LENGTH: usize = 16;

/// The journal of an open blob; the file comes with the first note.
#[derive(Debug, Default)]
pub(super) struct Journal {
    file: Mutex<Option<Arc<File>>>,
    notes: AtomicU64,
}

impl Journal {
    /// Notes a piece whose bytes are in the data file. Best effort: without the note the piece is fetched again if the
    /// process dies before the next flush.
    pub(super) fn note(&self, directory: &Path, digest: &Digest, layout: PieceLayout, piece: PieceIndex, bytes: &[u8]) {
        let written = self.file(directory, digest, layout).and_then(|file| {
            let place = self.notes.fetch_add(1, Ordering::Relaxed);
            let offset = (HEADER_LENGTH as u64) + place * NOTE_LENGTH as u64;
            let note = encode_note(piece, crc32c::crc32c(bytes));
            failpoint::reach_half("journal", || drop(changes::write_at(&file, &note[..7], offset)));
            changes::write_at(&file, &note, offset)
        });
        if let Err(error) = written {
            tracing::debug!(%digest, piece = piece.0, %error, "piece is not in the journal");
        }
    }

    fn file(&self, directory: &Path, digest: &Digest, layout: PieceLayout) -> io::Result<Arc<File>> {
        let mut slot = lock(&self.file);
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(flags);
        let file = Arc::new(changes::open(&directory.join(JOURNAL), &options, true)?);
        failpoint::reach("journal.created");
        let header = encode_header(digest, layout);
        failpoint::reach_half("journal.header", || drop(changes::write_at(&file, &header[..20], 0)));
        changes::write_at(&file, &header, 0)?;
        failpoint::reach("journal.begun");
        self.notes.store(0, Ordering::Relaxed);
        *slot = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Takes everything back that was noted; durable on return.
    pub(super) fn erase(&self, directory: &Path) -> Result<(), StoreError> {
        let path = directory.join(JOURNAL);
        let mut slot = lock(&self.file);
        let Some(file) = slot.take() else {
            if path.symlink_metadata().is_ok() {
                disk::remove(&path)?;
                disk::sync_directory(directory)?;
            }
            return Ok(());
        };
        let erased = changes::resize(&file, 0).and_then(|()| {
            failpoint::reach("journal.emptied");
            changes::sync_all(&file)
        });
        erased.map_err(|error| StoreError::io("erase", &path, error))
    }

    /// The bitmap file says that every piece is there: nothing is left to note. Best effort.
    pub(super) fn finish(&self, directory: &Path) {
        if lock(&self.file).take().is_some() {
            failpoint::reach("journal.ending");
            let _ = disk::remove(&directory.join(JOURNAL));
            failpoint::reach("journal.ended");
        }
    }
}

/// The layout of a blob that was killed before its bitmap file was written first.
pub(super) fn layout(directory: &Path, digest: &Digest) -> Option<PieceLayout> {
    decode_header(digest, &disk::read(&directory.join(JOURNAL), MAX_JOURNAL_FILE_LENGTH).ok()?)
}

/// Whether nothing is noted.
pub(super) fn is_empty(directory: &Path) -> bool {
    directory.join(JOURNAL).symlink_metadata().map_or(true, |journal| journal.len() <= HEADER_LENGTH as u64)
}

/// Adds the pieces that are noted, and whose bytes are as they were noted, to `have`; whether there were any.
pub(super) fn replay(directory: &Path, digest: &Digest, layout: PieceLayout, data: &File, have: &mut Bitfield) -> bool {
    let Ok(journal) = disk::read(&directory.join(JOURNAL), MAX_JOURNAL_FILE_LENGTH) else { return false };
    if decode_header(digest, &journal) != Some(layout) {
        return false;
    }
    let mut buffer = Vec::new();
    let before = have.count();
    for (piece, checksum) in journal[HEADER_LENGTH..].chunks_exact(NOTE_LENGTH).filter_map(decode_note) {
        let range = layout.range(piece);
        if range.is_empty() || have.get(piece) {
            continue;
        }
        buffer.resize((range.end - range.start) as usize, 0);
        if data.read_exact_at(&mut buffer, range.start).is_ok() && crc32c::crc32c(&buffer) == checksum {
            have.set(piece);
        }
    }
    have.count() > before
}

fn encode_header(digest: &Digest, layout: PieceLayout) -> [u8; HEADER_LENGTH] {
    let mut header = [0; HEADER_LENGTH];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[8..16].copy_from_slice(&layout.length().to_be_bytes());
    header[16..48].copy_from_slice(digest.as_bytes());
    let checksum = crc32c::crc32c(&header[..48]);
    header[48..52].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn decode_header(digest: &Digest, bytes: &[u8]) -> Option<PieceLayout> {
    let header: &[u8; HEADER_LENGTH] = bytes.first_chunk()?;
    let length = u64::from_be_bytes(*header[8..16].first_chunk()?);
    let layout = PieceLayout::new(length).ok()?;
    (*header == encode_header(digest, layout)).then_some(layout)
}

fn encode_note(piece: PieceIndex, checksum: u32) -> [u8; NOTE_LENGTH] {
    let mut note = [0; NOTE_LENGTH];
    note[..4].copy_from_slice(&piece.0.to_be_bytes());
    note[4..8].copy_from_slice(&checksum.to_be_bytes());
    let own = crc32c::crc32c(&note[..12]);
    note[12..].copy_from_slice(&own.to_be_bytes());
    note
}

fn decode_note(note: &[u8]) -> Option<(PieceIndex, u32)> {
    let piece = PieceIndex(u32::from_be_bytes(*note.first_chunk()?));
    let checksum = u32::from_be_bytes(*note[4..].first_chunk()?);
    (note == encode_note(piece, checksum)).then_some((piece, checksum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LENGTH: u64 = 300_000;

    struct Blob {
        directory: tempfile::TempDir,
        digest: Digest,
        layout: PieceLayout,
        data: File,
        journal: Journal,
    }

    impl Blob {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let data = File::options().read(true).write(true).create_new(true).open(directory.path().join("data"));
            let data = data.unwrap();
            data.set_len(LENGTH).unwrap();
            let layout = PieceLayout::new(LENGTH).unwrap();
            Self { directory, digest: Digest::of(b"blob"), layout, data, journal: Journal::default() }
        }

        fn write(&self, piece: u32, fill: u8) {
            let range = self.layout.range(PieceIndex(piece));
            let bytes = vec![fill; (range.end - range.start) as usize];
            self.data.write_all_at(&bytes, range.start).unwrap();
            self.journal.note(self.directory.path(), &self.digest, self.layout, PieceIndex(piece), &bytes);
        }

        fn replayed(&self) -> Vec<u32> {
            let mut have = Bitfield::empty(self.layout.piece_count());
            replay(self.directory.path(), &self.digest, self.layout, &self.data, &mut have);
            have.iter().map(|piece| piece.0).collect()
        }

        fn path(&self) -> std::path::PathBuf {
            self.directory.path().join(JOURNAL)
        }
    }

    #[test]
    fn what_is_noted_is_found_again() {
        let blob = Blob::new();
        assert_eq!(blob.replayed(), [0; 0]);
        blob.write(4, 1);
        blob.write(0, 2);
        assert_eq!(blob.replayed(), [0, 4]);
        assert_eq!(layout(blob.directory.path(), &blob.digest), Some(blob.layout));
        assert_eq!(layout(blob.directory.path(), &Digest::of(b"other")), None);
    }

    #[test]
    fn a_note_that_the_bytes_contradict_is_not_believed() {
        let blob = Blob::new();
        blob.write(1, 1);
        blob.write(2, 2);
        // As if the data had not reached the disk.
        blob.data.write_all_at(&[0; 100], blob.layout.range(PieceIndex(1)).start + 5).unwrap();
        assert_eq!(blob.replayed(), [2]);
    }

    #[test]
    fn a_note_of_what_was_there_before_does_not_vouch_for_what_came_later() {
        let blob = Blob::new();
        blob.write(1, 1);
        let range = blob.layout.range(PieceIndex(1));
        blob.data.write_all_at(&vec![9; (range.end - range.start) as usize], range.start).unwrap();
        assert_eq!(blob.replayed(), [0; 0]);
    }

    /// As when the disk is full in the middle of it, or the process is killed there.
    #[test]
    fn a_torn_note_takes_no_other_with_it() {
        let blob = Blob::new();
        (0..3).for_each(|piece| blob.write(piece, 1));
        let mut bytes = std::fs::read(blob.path()).unwrap();
        bytes[HEADER_LENGTH + NOTE_LENGTH + 7..HEADER_LENGTH + 2 * NOTE_LENGTH].fill(0);
        std::fs::write(blob.path(), bytes).unwrap();
        assert_eq!(blob.replayed(), [0, 2]);
    }

    #[test]
    fn erased_is_erased_and_it_goes_on_after_that() {
        let blob = Blob::new();
        blob.write(1, 1);
        blob.journal.erase(blob.directory.path()).unwrap();
        assert_eq!(blob.replayed(), [0; 0]);
        blob.write(3, 1);
        assert_eq!(blob.replayed(), [3]);
        // Also one that a former process left.
        Journal::default().erase(blob.directory.path()).unwrap();
        assert!(!blob.path().exists());
    }

    proptest! {
        #[test]
        fn a_changed_or_cut_journal_adds_nothing_wrong(at in any::<prop::sample::Index>(), flip in 1_u8.., cut in any::<bool>()) {
            let blob = Blob::new();
            blob.write(0, 1);
            blob.write(3, 2);
            let mut bytes = std::fs::read(blob.path()).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
            std::fs::write(blob.path(), bytes).unwrap();
            prop_assert!(blob.replayed().iter().all(|piece| [0, 3].contains(piece)));
        }
    }
}
