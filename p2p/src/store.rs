//! The chunk store: the one copy of every byte on this machine.
//!
//! # What it does
//!
//! Keeps *blobs*, immutable byte strings named by their SHA-256, in whole or in part. A part is a set of pieces
//! ([`PieceLayout`]); each can be read, sent and traded as soon as it is written. A download that died goes on from the
//! pieces that are here ([`ChunkStore::open_blob`]). Old blobs make room for new ones ([`ChunkStore::age`]), and whoever
//! announces what is here hears of it ([`ChunkStore::watch_removed`]).
//!
//! It does not fetch and does not judge: bytes are written as they are given. Whoever writes a piece has checked it
//! ([`crate::verify`]), or finds out with [`StoredBlob::verify`] and takes it back with [`StoredBlob::drop_pieces`].
//!
//! # On disk
//!
//! ```text
//! <root>/                           0700, owned by the user of the process
//!   blobs/lock                      locked by the one process that has the store
//!   blobs/pins                      digests that an operator pinned, one a line
//!   blobs/sha256/ab/abcd.../data    sparse file of the blob's length; its modification time is the blob's last use
//!                           pieces  length, bitmap, verified flag, checksum (format: store/bitmap.rs)
//!                           journal pieces written since `pieces` was, with checksums (format: store/journal.rs)
//!                           metainfo  hash of every piece + CRC-32C, once verified (format: crate::verify)
//!                           tmp     the next pieces or metainfo, renamed when it is on disk
//! ```
//!
//! With [`Medium::Memory`] there is none of this: each blob is a file without a name (memfd_create(2)), and all of it ends
//! with the process.
//!
//! Blobs in files of somebody else ([`foreign`]) are in the store's table and nowhere else.
//!
//! Other entries of `<root>` belong to others and are not touched. A blob's own directory is the store's alone.
//!
//! # Who owns what
//!
//! [`ChunkStore`] owns the table of blobs, in shards; [`StoredBlob`] owns one data file and its bits (`store/state.rs`).
//! A blob nobody holds may be closed, to save its descriptor, and is opened again when asked for. A [`Pin`], a
//! [`Hold`] and an operator's pin (`store/pins.rs`) keep a blob from eviction; without one, a handle still reads, but
//! writing may fail with [`StoreError::Removed`].
//!
//! Locks, outermost first: the turn to evict, a shard's turn to open or remove, a blob's turn to replace its bitmap,
//! a shard's table, the pins, a blob's bits. The last three are held for memory operations only; no lock is held while
//! data are read or written. Everything blocks the calling thread while the disk works: async callers use `spawn_blocking`.
//!
//! # After a crash
//!
//! Guaranteed, whether the process was killed or the machine lost power (on a disk that keeps what it says it synced):
//! * a piece whose bit is set has the bytes that were written: data are synced before the bitmap file that speaks of
//!   them replaces the old one in one step, and a piece's bytes change only while its bit is nowhere set;
//! * pieces written before a [`StoredBlob::flush`] that returned are there;
//! * when only the process died, every piece that could be read is there: the journal speaks of those since the flush;
//! * pieces whose [`StoredBlob::drop_pieces`] returned are gone;
//! * a damaged, missing or foreign `pieces` file, or a `data` file cut short, costs a new fetch of what it held and
//!   nothing else.
//!
//! Not guaranteed:
//! * after a loss of power, pieces written since the last flush: those whose bytes are not what the journal says are
//!   fetched again;
//! * a blob of which no piece is there: its directory is removed at the next start;
//! * the last minute of the order of uses;
//! * that nobody else changed a `data` file in place: reads do not hash. Receivers check what they are sent.

mod bitmap;
mod blob;
mod disk;
mod error;
pub mod foreign;
mod journal;
mod order;
mod pins;
mod room;
mod state;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

use tokio::sync::mpsc;

use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::layout::{PieceIndex, PieceLayout};
use crate::limits::MAX_IDLE_OPEN_BLOBS;

pub use blob::{Pin, StoredBlob};
pub use error::StoreError;
pub use pins::Hold;

use blob::byte_count;
use disk::BlobRoot;
use foreign::{Elsewhere, ForeignEntry};
use pins::Pins;
use room::Room;

const SHARDS: usize = 64;
/// How often a blob is inserted that others keep changing.
const INSERT_TRIES: u32 = 8;

/// Where the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Medium {
    /// Below the root; what is there is found again.
    #[default]
    Disk,
    /// In memory that belongs to this process, one descriptor for each blob; needs a quota. Nothing outlives the process.
    Memory,
}

/// Where a store is, and bounds on the space that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreConfig {
    /// Where the bytes are. Default on disk.
    pub medium: Medium,
    /// Most bytes of pieces to keep; without it the free-space floor alone bounds the store.
    pub quota_bytes: Option<u64>,
    /// Bytes of the filesystem that are left free; zero for none. Means nothing in memory.
    pub free_floor_bytes: u64,
    /// Percent of the quota above which eviction starts. Default 90.
    pub high_watermark_percent: u8,
    /// Percent of the quota at which eviction ends. Default 80.
    pub low_watermark_percent: u8,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            medium: Medium::Disk,
            quota_bytes: None,
            free_floor_bytes: 0,
            high_watermark_percent: 90,
            low_watermark_percent: 80,
        }
    }
}

/// One line of [`ChunkStore::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobSummary {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Bytes of the pieces that are there.
    pub have_bytes: u64,
    /// Whether the whole blob matched its digest.
    pub verified: bool,
    /// When it was last used; exact to a minute for uses before this process started.
    pub last_use: SystemTime,
    /// Whether a mount or a download needs it right now.
    pub in_use: bool,
    /// Whether an operator pinned it.
    pub pinned: bool,
    /// Whether its bytes lie in a file of somebody else ([`foreign`]).
    pub foreign: bool,
}

/// A blob that is not in the store any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Which.
    pub digest: Digest,
    /// Bytes of its pieces that were there.
    pub bytes: u64,
    /// Whether it made room for others.
    pub evicted: bool,
}

/// All blobs below one directory.
#[derive(Debug)]
pub struct ChunkStore {
    root: Arc<BlobRoot>,
    room: Room,
    shards: [Shard; SHARDS],
    pins: Pins,
    open_blobs: AtomicUsize,
    /// Foreign blobs, and how often one came or went.
    foreign: (AtomicUsize, AtomicUsize),
    elsewhere: Mutex<Elsewhere>,
    /// Open blobs above which descriptors are given up.
    close_above: AtomicUsize,
    removed: OnceLock<mpsc::UnboundedSender<Removed>>,
    this: Weak<ChunkStore>,
}

#[derive(Debug, Default)]
struct Shard {
    /// Never held across I/O.
    entries: Mutex<HashMap<Digest, Entry>>,
    /// Held while a blob of this shard is opened, made or removed. Taken before `entries`.
    lifecycle: Mutex<()>,
}

#[derive(Debug)]
enum Entry {
    /// On disk, with no descriptor.
    Closed(BlobSummary),
    /// In a file of somebody else, with no descriptor.
    Foreign(ForeignEntry),
    Open(Arc<StoredBlob>),
}

/// Why a blob goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    /// To make room. A pinned or held one stays.
    Evicted,
    /// Somebody wants it to go. A pinned or held one stays.
    Demanded,
    /// Nothing of it is here, so that no pin is of any use.
    Unwritten,
}

impl Entry {
    fn is_unwritten(&self) -> bool {
        match self {
            Self::Closed(summary) => summary.length > 0 && summary.have_bytes == 0,
            Self::Foreign(_) => false,
            Self::Open(blob) => blob.layout().length() > 0 && blob.state.lock().have.is_empty(),
        }
    }

    fn summary(&self, digest: Digest) -> BlobSummary {
        match self {
            Self::Closed(summary) => summary.clone(),
            Self::Foreign(entry) => entry.summary(digest),
            Self::Open(blob) => {
                let state = blob.state.lock();
                BlobSummary {
                    digest: blob.digest(),
                    length: blob.layout().length(),
                    have_bytes: byte_count(blob.layout(), &state.have),
                    verified: state.verified,
                    last_use: blob.last_use(),
                    in_use: state.in_use(),
                    pinned: false,
                    foreign: blob.is_foreign(),
                }
            }
        }
    }
}

/// Locks, also after another thread panicked: every change under these locks is complete at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChunkStore {
    /// Opens the store in `root`, making it if need be, and finds again what a former process left.
    pub fn open(root: &Path, config: StoreConfig) -> Result<Arc<Self>, StoreError> {
        if config.medium == Medium::Memory && config.quota_bytes.is_none() {
            return Err(StoreError::NoQuota);
        }
        let root = Arc::new(match config.medium {
            Medium::Disk => BlobRoot::open(root)?,
            Medium::Memory => BlobRoot::in_memory(root),
        });
        let pins = Pins::load(root.path.parent().filter(|_| !root.is_memory()).map(Path::to_owned))?;
        let store = Arc::new_cyclic(|this| Self {
            room: Room::new(config),
            shards: std::array::from_fn(|_| Shard::default()),
            pins,
            open_blobs: AtomicUsize::new(0),
            foreign: Default::default(),
            elsewhere: Mutex::default(),
            close_above: AtomicUsize::new(MAX_IDLE_OPEN_BLOBS),
            removed: OnceLock::new(),
            this: this.clone(),
            root,
        });
        if store.root.is_memory() {
            return Ok(store);
        }
        for digest in disk::scan(&store.root.path)? {
            let directory = store.root.blob(&digest);
            match disk::recover(&directory, &digest).and_then(|found| store.unless_empty(&digest, found)) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    // A killed process may have left a name that only the kernel knows. What is done from now on rests on it.
                    if let Err(error) = disk::sync_what_is_new(&directory) {
                        tracing::warn!(%digest, %error, "pieces of this blob may be fetched again after a loss of power");
                    }
                    store.adopt(digest, &found);
                }
                Err(error) => tracing::warn!(%digest, %error, "stored blob is left alone"),
            }
        }
        Ok(store)
    }

    /// The directory it is in, for small files that belong beside the blobs.
    pub fn root(&self) -> &Path {
        // BlobRoot adds two directories.
        self.root.path.ancestors().nth(2).unwrap_or(&self.root.path)
    }

    /// What was found, unless no piece of it is there: it may still take the space of those that were dropped, which
    /// nothing counts. What a full disk kept from being taken up stays in the journal for the next start.
    fn unless_empty(&self, digest: &Digest, found: Option<disk::Found>) -> Result<Option<disk::Found>, StoreError> {
        let is_empty = |found: &disk::Found| found.bitmap.layout.length() > 0 && found.bitmap.have.is_empty();
        if found.as_ref().is_some_and(is_empty) && journal::is_empty(&self.root.blob(digest)) {
            self.root.discard(digest)?;
            return Ok(None);
        }
        Ok(found)
    }

    fn adopt(&self, digest: Digest, found: &disk::Found) {
        let disk::Found { bitmap, last_use, .. } = found;
        let have_bytes = byte_count(bitmap.layout, &bitmap.have);
        self.root.used.fetch_add(have_bytes, Ordering::Relaxed);
        let summary = BlobSummary {
            digest,
            length: bitmap.layout.length(),
            have_bytes,
            verified: bitmap.verified,
            last_use: *last_use,
            in_use: false,
            pinned: false,
            foreign: false,
        };
        lock(&self.shard(&digest).entries).insert(digest, Entry::Closed(summary));
    }

    fn shard(&self, digest: &Digest) -> &Shard {
        &self.shards[usize::from(digest.as_bytes()[0]) % SHARDS]
    }

    /// A blob that is here, whole or in part. Counts as a use.
    pub fn get(&self, digest: &Digest) -> Option<Arc<StoredBlob>> {
        if let Some(blob) = self.opened(digest, Arc::clone) {
            blob.touch();
            return Some(blob);
        }
        if !lock(&self.shard(digest).entries).contains_key(digest) {
            return None;
        }
        let _turn = lock(&self.shard(digest).lifecycle);
        let blob = self.existing(digest, Arc::clone).unwrap_or_else(|error| {
            tracing::warn!(%digest, %error, "stored blob cannot be opened");
            None
        });
        blob.inspect(|blob| blob.touch())
    }

    /// Whether a blob is here whole and matched its digest. Neither opens it nor counts as a use.
    pub fn is_verified(&self, digest: &Digest) -> bool {
        self.summary(digest).is_some_and(|blob| blob.verified)
    }

    /// A blob of that length, with the pieces that are here or none.
    ///
    /// Nothing on disk is durable before its first flush.
    pub fn open_blob(&self, digest: &Digest, length: u64) -> Result<Arc<StoredBlob>, StoreError> {
        Ok(Arc::clone(self.open_pinned(digest, length)?.blob()))
    }

    /// Like [`Self::open_blob`], and not evicted in between.
    pub fn open_pinned(&self, digest: &Digest, length: u64) -> Result<Pin, StoreError> {
        let layout = PieceLayout::new(length)?;
        let pin = match self.try_open(digest, layout) {
            // Whoever stated the other length must not be able to keep the blob out.
            Err(StoreError::LengthMismatch { .. }) if self.remove_unwritten(digest).unwrap_or(false) => {
                self.try_open(digest, layout)?
            }
            opened => opened?,
        };
        pin.blob().touch();
        Ok(pin)
    }

    /// A blob for which there is no room: pieces cannot be written to it, and nobody else finds it.
    pub fn open_nowhere(&self, digest: &Digest, length: u64) -> Result<Pin, StoreError> {
        let layout = PieceLayout::new(length)?;
        let root = Arc::new(BlobRoot::nowhere(&self.root.path));
        let data = root.create(digest, length)?;
        let bitmap = bitmap::Bitmap { layout, have: Bitfield::empty(layout.piece_count()), verified: false };
        let found = disk::Found { data, bitmap, last_use: SystemTime::now() };
        Ok(Arc::new(StoredBlob::new(*digest, found, root, Weak::new())).pin())
    }

    fn summary(&self, digest: &Digest) -> Option<BlobSummary> {
        lock(&self.shard(digest).entries).get(digest).map(|entry| entry.summary(*digest))
    }

    fn try_open(&self, digest: &Digest, layout: PieceLayout) -> Result<Pin, StoreError> {
        let checked = |blob: &Arc<StoredBlob>| {
            let (stored, asked) = (blob.layout().length(), layout.length());
            if stored == asked {
                Ok(blob.pin())
            } else {
                Err(StoreError::LengthMismatch { digest: *digest, stored, asked })
            }
        };
        if let Some(pin) = self.opened(digest, checked) {
            return pin;
        }
        // Before the shard's turn: what makes way may be of the same shard.
        if !lock(&self.shard(digest).entries).contains_key(digest) {
            self.spare_descriptors()?;
        }
        let _turn = lock(&self.shard(digest).lifecycle);
        if let Some(pin) = self.existing(digest, checked)? {
            return pin;
        }
        let data = self.root.create(digest, layout.length())?;
        let bitmap = bitmap::Bitmap { layout, have: Bitfield::empty(layout.piece_count()), verified: false };
        self.admit(*digest, disk::Found { data, bitmap, last_use: SystemTime::now() }, checked)
    }

    /// A blob in memory has its descriptor as long as it is here: where there are too many, old ones go.
    fn spare_descriptors(&self) -> Result<(), StoreError> {
        let limit = self.root.max_blobs();
        let crowded = || self.open_blobs.load(Ordering::Relaxed) >= limit;
        if crowded() {
            self.evict_blobs(limit / 16 + 1);
        }
        if crowded() { Err(StoreError::TooManyBlobs(limit)) } else { Ok(()) }
    }

    /// A blob that has its descriptor. `take` runs under the lock: nothing removes the blob meanwhile.
    fn opened<T>(&self, digest: &Digest, take: impl Fn(&Arc<StoredBlob>) -> T) -> Option<T> {
        match lock(&self.shard(digest).entries).get(digest) {
            Some(Entry::Open(blob)) => Some(take(blob)),
            _ => None,
        }
    }

    /// A blob that is here, opened if need be. The caller has the shard's turn.
    fn existing<T>(&self, digest: &Digest, take: impl Fn(&Arc<StoredBlob>) -> T) -> Result<Option<T>, StoreError> {
        let entries = || lock(&self.shard(digest).entries);
        let closed = match entries().get(digest) {
            None => return Ok(None),
            Some(Entry::Open(blob)) => return Ok(Some(take(blob))),
            Some(Entry::Foreign(entry)) => Err(entry.clone()),
            Some(Entry::Closed(summary)) => Ok(summary.clone()),
        };
        let closed = match closed {
            Ok(closed) => closed,
            Err(foreign) => return Ok(self.existing_foreign(digest, &foreign, take)),
        };
        let found = disk::recover(&self.root.blob(digest), digest)?;
        self.root.used.fetch_sub(closed.have_bytes, Ordering::Relaxed);
        let Some(mut found) = found else {
            entries().remove(digest);
            self.tell_removed(Removed { digest: *digest, bytes: closed.have_bytes, evicted: false });
            return Ok(None);
        };
        found.last_use = found.last_use.max(closed.last_use);
        self.root.used.fetch_add(byte_count(found.bitmap.layout, &found.bitmap.have), Ordering::Relaxed);
        Ok(Some(self.admit(*digest, found, take)))
    }

    /// The same of a foreign one; one whose file is gone or another is forgotten.
    fn existing_foreign<T>(
        &self,
        digest: &Digest,
        entry: &ForeignEntry,
        take: impl Fn(&Arc<StoredBlob>) -> T,
    ) -> Option<T> {
        match entry.open(*digest, &self.root.path, self.this.clone()) {
            Ok(blob) => Some(self.show(Arc::new(blob), take)),
            Err(error) => {
                tracing::info!(%digest, %error, "a file of somebody else is not what it was, the blob is not here any more");
                self.drop_foreign(digest);
                None
            }
        }
    }

    fn admit<T>(&self, digest: Digest, found: disk::Found, take: impl Fn(&Arc<StoredBlob>) -> T) -> T {
        self.show(Arc::new(StoredBlob::new(digest, found, Arc::clone(&self.root), self.this.clone())), take)
    }

    fn show<T>(&self, blob: Arc<StoredBlob>, take: impl Fn(&Arc<StoredBlob>) -> T) -> T {
        let digest = blob.digest();
        let taken = {
            let mut entries = lock(&self.shard(&digest).entries);
            let taken = take(&blob);
            entries.insert(digest, Entry::Open(blob));
            taken
        };
        if self.open_blobs.fetch_add(1, Ordering::Relaxed) >= self.close_above.load(Ordering::Relaxed) {
            self.close_idle();
        }
        taken
    }

    /// Gives up descriptors of blobs that nobody holds any more, once there are too many.
    pub fn close_surplus(&self) {
        if self.open_blobs.load(Ordering::Relaxed) > MAX_IDLE_OPEN_BLOBS {
            self.close_idle();
        }
    }

    /// Gives up the descriptors of blobs that nobody holds and whose bits are all on disk.
    fn close_idle(&self) {
        for shard in &self.shards {
            for (digest, entry) in lock(&shard.entries).iter_mut() {
                let Entry::Open(blob) = &*entry else { continue };
                if self.root.is_memory() && !blob.is_foreign() {
                    continue;
                }
                // Under the lock nobody can get a first handle.
                if Arc::strong_count(blob) == 1 && blob.state.lock().is_flushed() {
                    *entry = match blob.foreign_place() {
                        Some(place) => Entry::Foreign(ForeignEntry::new(place.clone(), blob.last_use())),
                        None => Entry::Closed(entry.summary(*digest)),
                    };
                    self.open_blobs.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        // Where most are in use, looking at all of them for each blob that is opened would cost more than descriptors do.
        let left = self.open_blobs.load(Ordering::Relaxed);
        self.close_above.store((left + left / 4).max(MAX_IDLE_OPEN_BLOBS), Ordering::Relaxed);
    }

    /// Stores a small blob whole: checked against its digest, durable and verified on return. Evicts if need be.
    pub fn insert(&self, digest: &Digest, bytes: &[u8]) -> Result<Arc<StoredBlob>, StoreError> {
        let actual = Digest::of(bytes);
        if actual != *digest {
            return Err(StoreError::DigestMismatch { digest: *digest, actual });
        }
        let pin = self.open_pinned(digest, bytes.len() as u64)?;
        let blob = Arc::clone(pin.blob());
        if blob.is_verified() {
            // The disk may have refused to take that down before.
            blob.flush()?;
            return Ok(blob);
        }
        for _ in 0..INSERT_TRIES {
            // Others may be writing it, too, and what they write is not known to be right.
            let drops = blob.drops();
            fill(&blob, bytes)?;
            match blob.mark_verified(drops) {
                Err(StoreError::Changed(_) | StoreError::Missing { .. }) => {}
                marked => return marked.map(|()| blob),
            }
        }
        Err(StoreError::Changed(*digest))
    }

    /// Every blob that is here, in no order.
    pub fn list(&self) -> Vec<BlobSummary> {
        let summaries = |shard: &Shard| {
            lock(&shard.entries).iter().map(|(digest, entry)| entry.summary(*digest)).collect::<Vec<_>>()
        };
        let mut blobs: Vec<_> = self.shards.iter().flat_map(summaries).collect();
        for blob in &mut blobs {
            blob.in_use |= self.pins.is_held(&blob.digest);
            blob.pinned = self.pins.is_pinned(&blob.digest);
        }
        blobs
    }

    /// Removes a blob; false if it was not here. Refused while it is in use, or pinned by an operator. Who has a handle to
    /// it can still read, and its space comes back when the last handle is gone.
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.discard(digest, Removal::Demanded)
    }

    /// Removes a blob that has pieces and none of them is here; false if it was not here, or one is. Refused while it is
    /// in use.
    pub fn remove_unwritten(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.discard(digest, Removal::Unwritten)
    }

    /// Removes a blob that nobody uses. Of a foreign one nothing is here that could be removed.
    fn discard(&self, digest: &Digest, removal: Removal) -> Result<bool, StoreError> {
        let shard = self.shard(digest);
        let _turn = lock(&shard.lifecycle);
        if self.summary(digest).is_some_and(|blob| blob.foreign) {
            return Ok(false);
        }
        let (entry, have_bytes) = {
            let mut entries = lock(&shard.entries);
            // Until it is out of the table nobody gets a pin on it who would then believe that it stays.
            let _unpinned = if removal == Removal::Unwritten { None } else { Some(self.pins.none_on(digest)?) };
            let Some(entry) = entries.get(digest) else { return Ok(false) };
            if removal == Removal::Unwritten && !entry.is_unwritten() {
                return Ok(false);
            }
            let have_bytes = match entry {
                Entry::Closed(summary) => summary.have_bytes,
                // Under the shard's turn none becomes one.
                Entry::Foreign(_) => return Ok(false),
                Entry::Open(blob) => {
                    let mut state = blob.state.lock();
                    if state.in_use() {
                        return Err(StoreError::InUse(*digest));
                    }
                    state.removed = true;
                    byte_count(blob.layout(), &state.have)
                }
            };
            (entries.remove(digest), have_bytes)
        };
        self.root.used.fetch_sub(have_bytes, Ordering::Relaxed);
        self.tell_removed(Removed { digest: *digest, bytes: have_bytes, evicted: removal == Removal::Evicted });
        let Some(Entry::Open(blob)) = entry else {
            self.root.discard(digest)?;
            return Ok(true);
        };
        self.open_blobs.fetch_sub(1, Ordering::Relaxed);
        // A flush that has begun ends first; a later one sees that the blob is removed.
        let _flushed = lock(&blob.bitmap_turn);
        self.root.discard(digest)?;
        Ok(true)
    }

    fn tell_removed(&self, removed: Removed) {
        if let Some(listener) = self.removed.get() {
            // Who has stopped listening does not mind.
            let _ = listener.send(removed);
        }
    }

    /// Tells of every blob that is removed from now on, whoever removes it. For one listener; a second one hears
    /// nothing.
    pub fn watch_removed(&self) -> mpsc::UnboundedReceiver<Removed> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = self.removed.set(sender);
        receiver
    }

    /// Bytes of all pieces that are here or being written.
    pub fn used_bytes(&self) -> u64 {
        self.root.used.load(Ordering::Relaxed)
    }
}

/// Sees to it that every piece that is there is one of `bytes`.
fn fill(blob: &StoredBlob, bytes: &[u8]) -> Result<(), StoreError> {
    let layout = blob.layout();
    for piece in (0..layout.piece_count()).map(PieceIndex) {
        let range = layout.range(piece);
        let right = &bytes[range.start as usize..range.end as usize];
        while !blob.write(piece, right, false)? {
            match blob.read_piece(piece) {
                Ok(there) if there == right => break,
                Ok(_) => blob.drop_pieces(&[piece])?,
                Err(StoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod simulated;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inserted_blob_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = vec![7; 700_000];
        let digest = Digest::of(&bytes);
        {
            let store = ChunkStore::open(directory.path(), StoreConfig::default()).unwrap();
            store.insert(&digest, &bytes).unwrap();
        }
        let store = ChunkStore::open(directory.path(), StoreConfig::default()).unwrap();
        assert_eq!(store.used_bytes(), 700_000);
        let blob = store.get(&digest).unwrap();
        assert!(blob.is_verified() && blob.is_complete());
        assert_eq!(blob.read_at(0..700_000).unwrap(), bytes);
        blob.verify().unwrap();
    }
}
