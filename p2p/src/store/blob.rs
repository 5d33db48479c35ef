//! One blob of the store: its data file, its bits, and the order in which they reach the disk.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};

use super::ChunkStore;
use super::disk::{self, BlobRoot};
use super::error::{StoreError, is_full};
use super::foreign::Place;
use super::journal::Journal;
use super::lock;
use super::state::{PieceClaim, SharedState, Snapshot};
use crate::bitfield::Bitfield;
use crate::changes;
use crate::digest::Digest;
use crate::failpoint;
use crate::layout::{PieceIndex, PieceLayout};
use crate::limits::MAX_METAINFO_LENGTH;
use crate::verify::{Metainfo, StreamVerifier, VerifyError};

/// How old the last use on disk may be before a use is written down.
const LAST_USE_GRANULARITY: Duration = Duration::from_secs(60);

/// How often a piece is written whose blob fails to be synced meanwhile.
const WRITE_TRIES: u32 = 3;

/// A blob of the store, whole or in part. All of it may be called from any thread; what touches the disk blocks.
pub struct StoredBlob {
    digest: Digest,
    layout: PieceLayout,
    directory: PathBuf,
    data: File,
    pub(super) state: SharedState,
    journal: Journal,
    /// Of a blob in memory, which has no file for it.
    metainfo: Mutex<Option<Metainfo>>,
    /// Held while the bitmap file is replaced or the directory removed; true once the directories above are durable.
    pub(super) bitmap_turn: Mutex<bool>,
    /// Nanoseconds since the epoch.
    last_use: AtomicU64,
    last_use_on_disk: AtomicU64,
    root: Arc<BlobRoot>,
    store: Weak<ChunkStore>,
    /// Of one whose data file is somebody else's.
    foreign: Option<Place>,
}

/// Keeps a blob from being evicted or removed as long as it lives.
#[derive(Debug)]
pub struct Pin(Arc<StoredBlob>);

impl Pin {
    /// The blob it holds.
    pub const fn blob(&self) -> &Arc<StoredBlob> {
        &self.0
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.state.lock().pins -= 1;
    }
}

impl StoredBlob {
    pub(super) fn new(digest: Digest, found: disk::Found, root: Arc<BlobRoot>, store: Weak<ChunkStore>) -> Self {
        let last_use = nanoseconds(found.last_use);
        Self {
            digest,
            layout: found.bitmap.layout,
            directory: root.blob(&digest),
            data: found.data,
            state: SharedState::new(found.bitmap.have, found.bitmap.verified),
            journal: Journal::default(),
            metainfo: Mutex::default(),
            bitmap_turn: Mutex::new(false),
            last_use: AtomicU64::new(last_use),
            last_use_on_disk: AtomicU64::new(last_use),
            root,
            store,
            foreign: None,
        }
    }

    /// One whose data file is somebody else's, all of it, under a root that counts for nothing.
    pub(super) fn foreign(
        digest: Digest,
        found: disk::Found,
        root: Arc<BlobRoot>,
        store: Weak<ChunkStore>,
        place: Place,
    ) -> Self {
        Self { foreign: Some(place), ..Self::new(digest, found, root, store) }
    }

    /// Whether its data file is somebody else's.
    pub const fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    pub(super) const fn foreign_place(&self) -> Option<&Place> {
        self.foreign.as_ref()
    }

    /// Its name.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length and how it is cut.
    pub const fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// The pieces that can be read now.
    pub fn have(&self) -> Bitfield {
        self.state.lock().have.clone()
    }

    /// Whether `piece` can be read now.
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.state.lock().have.get(piece)
    }

    /// Whether every piece is there. They may still be wrong: see [`Self::is_verified`].
    pub fn is_complete(&self) -> bool {
        self.state.lock().have.is_full()
    }

    /// Whether the whole blob matched its digest.
    pub fn is_verified(&self) -> bool {
        self.state.lock().verified
    }

    /// Bytes of the pieces that are there.
    pub fn have_bytes(&self) -> u64 {
        byte_count(self.layout, &self.state.lock().have)
    }

    /// When it was last opened, read through [`ChunkStore::get`], or written.
    pub fn last_use(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.last_use.load(Ordering::Relaxed))
    }

    /// Whether it is out of the store. Pieces can still be read through this handle, but nothing be written.
    pub fn is_removed(&self) -> bool {
        self.state.lock().removed
    }

    /// The bytes of its pieces, if one pin and nothing else keeps it.
    pub(super) fn bytes_if_pinned_once(&self) -> Option<u64> {
        let state = self.state.lock();
        state.is_pinned_once().then(|| byte_count(self.layout, &state.have))
    }

    /// The data file, for sendfile. Only the bytes of pieces that [`Self::has`] affirms mean anything.
    pub const fn file(&self) -> &File {
        &self.data
    }

    /// Keeps it in the store. On a blob that [`Self::is_removed`] it has no effect: see [`ChunkStore::open_pinned`].
    pub fn pin(self: &Arc<Self>) -> Pin {
        self.state.lock().pins += 1;
        Pin(Arc::clone(self))
    }

    /// Writes a piece; true if it is new, false (and nothing written) if it is there already. Others can read it at
    /// once; a killed process does not lose it, and it is durable after the next [`Self::flush`]. Waits for another thread that writes the same piece.
    ///
    /// The bytes are not checked against any hash here.
    pub fn write_piece(&self, piece: PieceIndex, bytes: &[u8]) -> Result<bool, StoreError> {
        self.write(piece, bytes, true)
    }

    /// The same; `noted` in the journal unless a flush follows at once.
    pub(super) fn write(&self, piece: PieceIndex, bytes: &[u8], noted: bool) -> Result<bool, StoreError> {
        let range = self.layout.range(piece);
        let (expected, found) = (range.end - range.start, bytes.len() as u64);
        if range.is_empty() || expected != found {
            return Err(StoreError::PieceLength { digest: self.digest, piece: piece.0, found, expected });
        }
        let Some(claim) = self.state.claim_for_write(piece).ok_or(StoreError::Removed(self.digest))? else {
            return Ok(false);
        };
        if claim.may_be_on_disk() {
            // A bit on disk must not be set while its bytes change.
            self.persist_without(&claim)?;
        }
        if self.root.is_nowhere() {
            let path = self.directory.display().to_string();
            let reason = "there was none when the blob was opened; free space on the filesystem".to_owned();
            return Err(StoreError::NoSpace { path, reason });
        }
        self.reserve(found)?;
        if let Err(error) = self.write_claimed(&claim, piece, bytes, noted) {
            self.root.used.fetch_sub(found, Ordering::Relaxed);
            return Err(error);
        }
        failpoint::reach("piece.shown");
        self.touch();
        Ok(true)
    }

    /// Writes a piece and shows it to readers.
    fn write_claimed(
        &self,
        claim: &PieceClaim<'_>,
        piece: PieceIndex,
        bytes: &[u8],
        noted: bool,
    ) -> Result<(), StoreError> {
        for _ in 0..WRITE_TRIES {
            let failed_syncs = claim.failed_syncs();
            self.write_data(bytes, self.layout.range(piece).start)?;
            failpoint::reach("data.written");
            if noted && !self.root.is_memory() {
                // Before readers see it: what was seen is not lost.
                self.journal.note(&self.directory, &self.digest, self.layout, piece, bytes);
                failpoint::reach("journal.noted");
            }
            if claim.set(failed_syncs) {
                return Ok(());
            }
        }
        let refused = io::Error::other("the disk fails to write it");
        Err(StoreError::io("write", &self.directory.join(disk::DATA), refused))
    }

    fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        match self.store.upgrade() {
            Some(store) => store.reserve(bytes),
            None => {
                self.root.used.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn write_data(&self, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
        let evict = || self.store.upgrade().is_some_and(|store| store.evict_some(bytes.len() as u64));
        failpoint::reach("data.writing");
        failpoint::reach_half("data", || drop(changes::write_at(&self.data, &bytes[..bytes.len() / 2], offset)));
        let written = match changes::write_at(&self.data, bytes, offset) {
            Err(error) if is_full(&error) && evict() => changes::write_at(&self.data, bytes, offset),
            written => written,
        };
        written.map_err(|error| StoreError::io("write", &self.directory.join(disk::DATA), error))
    }

    /// The bytes of a piece that is there.
    pub fn read_piece(&self, piece: PieceIndex) -> Result<Bytes, StoreError> {
        let range = self.layout.range(piece);
        if range.is_empty() {
            return Err(StoreError::Missing { digest: self.digest, piece: piece.0 });
        }
        self.read_at(range)
    }

    /// Bytes of the blob; every piece that holds some of them must be there.
    pub fn read_at(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.start > range.end || range.end > self.layout.length() {
            return Err(StoreError::OutOfRange {
                digest: self.digest,
                start: range.start,
                end: range.end,
                length: self.layout.length(),
            });
        }
        let length = (range.end - range.start) as usize;
        // Not set to zero first: a piece is read a few times for each time that it is written.
        let mut bytes = Vec::with_capacity(length);
        loop {
            let drops = self.need(self.layout.pieces(range.clone()))?;
            self.read_to(&mut bytes, length, range.start)?;
            // What was taken away meanwhile may have been read in part, or as what came in its place.
            if self.drops() == drops {
                return Ok(Bytes::from(bytes));
            }
        }
    }

    /// Gives `bytes` these many bytes of the file instead of what is in it.
    fn read_to(&self, bytes: &mut Vec<u8>, length: usize, offset: u64) -> Result<(), StoreError> {
        bytes.clear();
        while bytes.len() < length {
            let offset = offset + bytes.len() as u64;
            match pread(&self.data, spare_capacity(bytes), offset) {
                Ok(0) => return Err(self.unreadable(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(self.unreadable(error.into())),
            }
        }
        // More than asked for may have been allocated.
        bytes.truncate(length);
        Ok(())
    }

    fn read_exact(&self, bytes: &mut [u8], offset: u64) -> Result<(), StoreError> {
        self.data.read_exact_at(bytes, offset).map_err(|error| self.unreadable(error))
    }

    fn unreadable(&self, error: io::Error) -> StoreError {
        StoreError::io("read", &self.directory.join(disk::DATA), error)
    }

    /// An error if one of the pieces is not there. Gives what [`Self::drops`] would.
    fn need(&self, pieces: Range<u32>) -> Result<u64, StoreError> {
        let state = self.state.lock();
        match pieces.into_iter().find(|&piece| !state.have.get(PieceIndex(piece))) {
            Some(piece) => Err(StoreError::Missing { digest: self.digest, piece }),
            None => Ok(state.drops),
        }
    }

    /// Makes everything written before the call durable: the data first, then the bits that speak of it. Returns at
    /// once when there is nothing new.
    ///
    /// When the disk fails to write the data, the pieces since the last flush are forgotten: what the kernel still
    /// shows of them may be gone later.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut ancestors_durable = lock(&self.bitmap_turn);
        let Some(snapshot) = self.state.unflushed().ok_or(StoreError::Removed(self.digest))? else {
            return Ok(());
        };
        if self.root.is_memory() {
            self.state.persisted(&snapshot);
            return Ok(());
        }
        failpoint::reach("flush.begun");
        if let Err(error) = changes::sync_data(&self.data) {
            let forgotten = self.state.forget_unflushed();
            // What the kernel still shows of them must not be taken for stored by the next process either.
            let _ = self.journal.erase(&self.directory);
            self.root.used.fetch_sub(byte_count(self.layout, &forgotten), Ordering::Relaxed);
            return Err(StoreError::io("sync", &self.directory.join(disk::DATA), error));
        }
        failpoint::reach("data.synced");
        if !*ancestors_durable {
            for directory in self.directory.ancestors().skip(1).take(2) {
                disk::sync_directory(directory)?;
            }
            *ancestors_durable = true;
        }
        self.persist(&snapshot)?;
        if snapshot.is_full() {
            self.journal.finish(&self.directory);
        }
        Ok(())
    }

    /// Lets no flush, and no metainfo, reach the disk until what it gives is dropped.
    #[cfg(test)]
    pub(crate) fn stall_disk(&self) -> std::sync::MutexGuard<'_, bool> {
        lock(&self.bitmap_turn)
    }

    /// Replaces the bitmap file. The caller has the bitmap's turn.
    fn persist(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        self.state.may_persist(snapshot);
        disk::replace(&self.directory, disk::PIECES, &snapshot.bitmap(self.layout).encode(&self.digest))?;
        self.state.persisted(snapshot);
        Ok(())
    }

    /// Takes the claimed pieces out of the bitmap file.
    fn persist_without(&self, claim: &PieceClaim<'_>) -> Result<(), StoreError> {
        let _turn = lock(&self.bitmap_turn);
        if self.root.is_memory() {
            if let Some(snapshot) = self.state.persisted_without(claim).ok_or(StoreError::Removed(self.digest))? {
                self.state.persisted(&snapshot);
            }
            return Ok(());
        }
        self.journal.erase(&self.directory)?;
        failpoint::reach("journal.erased");
        let Some(snapshot) = self.state.persisted_without(claim).ok_or(StoreError::Removed(self.digest))? else {
            return Ok(());
        };
        let Err(error) = self.persist(&snapshot) else { return Ok(()) };
        // No file says less than any file, and removing one needs no space.
        tracing::warn!(digest = %self.digest, %error, "bitmap cannot be replaced, removed instead");
        disk::remove(&self.directory.join(disk::PIECES))?;
        disk::sync_directory(&self.directory)?;
        self.state.nothing_persisted();
        Ok(())
    }

    /// Forgets pieces, in memory and on disk, so that they can be written anew. The whole blob is unverified then.
    ///
    /// A foreign blob is not this store's to mend: it goes, and the next who opens it gets one of the store's own.
    pub fn drop_pieces(&self, pieces: &[PieceIndex]) -> Result<(), StoreError> {
        let (claim, dropped) =
            self.state.claim_for_drop(pieces, self.layout).ok_or(StoreError::Removed(self.digest))?;
        self.root.used.fetch_sub(byte_count(self.layout, &dropped), Ordering::Relaxed);
        // The journal goes with them: the others that it speaks of must not depend on it any more.
        if let Err(error) = self.flush() {
            tracing::debug!(digest = %self.digest, %error, "pieces are dropped before others are durable");
        }
        self.persist_without(&claim)?;
        if self.is_foreign() {
            drop(claim);
            self.state.lock().removed = true;
            if let Some(store) = self.store.upgrade() {
                store.release_foreign(&self.digest);
            }
            return Ok(());
        }
        self.punch_out(&dropped);
        Ok(())
    }

    /// Gives the space of pieces back that no bitmap speaks of any more: nothing else would, if they never came again.
    fn punch_out(&self, pieces: &Bitfield) {
        for piece in pieces.iter() {
            let range = self.layout.range(piece);
            // Best effort: not every filesystem can.
            if changes::punch(&self.data, range).is_err() {
                return;
            }
            failpoint::reach("data.punched");
        }
    }

    /// Hashes the whole blob in one read: against its digest, and every piece for the metainfo. The success is
    /// remembered on disk. On [`StoreError::DigestMismatch`] the pieces stay: which of them lie is for the caller to
    /// find out, and to [`Self::drop_pieces`].
    pub fn verify(&self) -> Result<Metainfo, StoreError> {
        let drops = self.drops();
        let mut verifier = StreamVerifier::new(self.digest, self.layout);
        let mut buffer = vec![0; self.layout.piece_length().min(self.layout.length()) as usize];
        for piece in 0..self.layout.piece_count() {
            self.need(piece..piece + 1)?;
            let range = self.layout.range(PieceIndex(piece));
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            self.read_exact(bytes, range.start)?;
            verifier.push_piece(bytes);
        }
        let outcome = verifier.finish();
        if self.drops() != drops {
            return Err(StoreError::Changed(self.digest));
        }
        match outcome {
            Ok(metainfo) => {
                self.save_metainfo(&metainfo)?;
                self.mark_verified(drops)?;
                Ok(metainfo)
            }
            Err(VerifyError::DigestMismatch { expected: digest, actual }) => {
                self.state.unverify();
                self.flush()?;
                Err(StoreError::DigestMismatch { digest, actual })
            }
            Err(error @ (VerifyError::PieceLength { .. } | VerifyError::Short { .. })) => {
                unreachable!("every piece was pushed once, in its length: {error}")
            }
        }
    }

    /// How often pieces were taken away: what was hashed before the last time may not be what is there.
    pub fn drops(&self) -> u64 {
        self.state.lock().drops
    }

    /// Remembers on disk that the whole blob matches its digest: for callers that hashed it by themselves, and asked for
    /// [`Self::drops`] before they began. [`StoreError::Changed`] if pieces were taken away since.
    pub fn mark_verified(&self, drops: u64) -> Result<(), StoreError> {
        self.need(0..self.layout.piece_count())?;
        if !self.state.verify(drops) {
            return Err(StoreError::Changed(self.digest));
        }
        failpoint::reach("verified.set");
        self.flush()
    }

    /// Keeps the metainfo beside the blob, so that [`Self::metainfo`] has it after a restart. One of another blob is
    /// ignored.
    pub fn save_metainfo(&self, metainfo: &Metainfo) -> Result<(), StoreError> {
        if metainfo.digest() != self.digest || metainfo.length() != self.layout.length() {
            return Ok(());
        }
        if self.metainfo().as_ref() == Some(metainfo) {
            return Ok(());
        }
        if self.root.is_memory() {
            *lock(&self.metainfo) = Some(metainfo.clone());
            return Ok(());
        }
        let mut bytes = metainfo.encode();
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        let _turn = lock(&self.bitmap_turn);
        if self.is_removed() {
            return Err(StoreError::Removed(self.digest));
        }
        disk::replace(&self.directory, disk::METAINFO, &bytes)
    }

    /// The metainfo that was saved beside the blob; none if there is none or it is damaged.
    pub fn metainfo(&self) -> Option<Metainfo> {
        if self.root.is_memory() {
            return lock(&self.metainfo).clone();
        }
        read_metainfo(&self.directory, &self.digest, self.layout.length())
    }

    /// Notes a use, on disk at most once a minute.
    pub(super) fn touch(&self) {
        let now = SystemTime::now();
        let nanos = nanoseconds(now);
        self.last_use.fetch_max(nanos, Ordering::Relaxed);
        if self.root.is_memory() {
            return;
        }
        let noted = self.last_use_on_disk.load(Ordering::Relaxed);
        let due = nanos.saturating_sub(noted) >= LAST_USE_GRANULARITY.as_nanos() as u64;
        if due && self.last_use_on_disk.compare_exchange(noted, nanos, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            // Best effort: only the order of eviction after a restart depends on it.
            let _ = self.data.set_times(std::fs::FileTimes::new().set_modified(now));
        }
    }
}

impl fmt::Debug for StoredBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("StoredBlob")
            .field("digest", &self.digest)
            .field("length", &self.layout.length())
            .field("pieces", &state.have.count())
            .field("verified", &state.verified)
            .finish_non_exhaustive()
    }
}

/// The metainfo in a blob's directory.
pub(super) fn read_metainfo(directory: &Path, digest: &Digest, length: u64) -> Option<Metainfo> {
    let bytes = disk::read(&directory.join(disk::METAINFO), MAX_METAINFO_LENGTH as u64 + 4).ok()?;
    let (body, checksum) = bytes.split_last_chunk()?;
    let whole = crc32c::crc32c(body) == u32::from_be_bytes(*checksum);
    let metainfo = Metainfo::decode(body).ok().filter(|_| whole)?;
    (metainfo.digest() == *digest && metainfo.length() == length).then_some(metainfo)
}

/// Bytes of the pieces in `have`.
pub(super) fn byte_count(layout: PieceLayout, have: &Bitfield) -> u64 {
    let last = PieceIndex(layout.piece_count().saturating_sub(1));
    let whole = u64::from(have.count()) * layout.piece_length();
    let range = layout.range(last);
    if have.get(last) { whole - (layout.piece_length() - (range.end - range.start)) } else { whole }
}

fn nanoseconds(time: SystemTime) -> u64 {
    // Until the year 2554.
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
