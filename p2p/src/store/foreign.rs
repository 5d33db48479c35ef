//! Blobs whose bytes lie in files of somebody else on this machine, who keeps and removes them as he likes.
//!
//! Such a file is opened read-only and read in place: never written, linked, or given times. It counts for no quota, and is
//! nothing that could be evicted. The store knows it by a [`Stamp`], and believes it as long as the file at that path has
//! the same one; it is looked at whenever the file is opened. Of a blob that it has or is fetching by itself the store
//! takes no such file.
//!
//! A file has been held against the digest before it is given to [`ChunkStore::hold_foreign`]: [`ForeignFile::verify`].
//! What was verified under which stamp is remembered over restarts in a [`Ledger`].

use std::collections::HashSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Advice, OFlags, fadvise};

use super::bitmap::Bitmap;
use super::blob::StoredBlob;
use super::disk::{BlobRoot, Found};
use super::error::StoreError;
use super::{BlobSummary, ChunkStore, Entry, Removed, lock};
use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::layout::{PieceIndex, PieceLayout};
use crate::verify::{Metainfo, StreamVerifier, VerifyError};

mod ledger;

pub use ledger::Ledger;

/// What tells a file's content without reading it, as long as nobody goes out of his way to fake it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Of the filesystem.
    pub device: u64,
    /// On that filesystem.
    pub inode: u64,
    /// In bytes.
    pub length: u64,
    /// When it was last changed, in nanoseconds since the epoch.
    pub modified_ns: i128,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        }
    }
}

/// A file that is named by the hexadecimal digits of the digest that its bytes are said to have, open for reading.
#[derive(Debug)]
pub struct ForeignFile {
    place: Place,
    digest: Digest,
    layout: PieceLayout,
    file: File,
}

/// Where a foreign file is, and what it has to look like.
#[derive(Debug, Clone)]
pub(super) struct Place {
    directory: Arc<Path>,
    pub(super) stamp: Stamp,
}

impl Place {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// Whether the file is still there and the same.
    fn is_there(&self, digest: &Digest) -> bool {
        std::fs::symlink_metadata(self.path(digest)).is_ok_and(|found| Stamp::of(&found) == self.stamp)
    }
}

impl ForeignFile {
    /// Opens the file of that blob in `directory`.
    pub fn open(directory: &Arc<Path>, digest: Digest) -> Result<Self, StoreError> {
        let path = directory.join(digest.hex());
        let failed = |error| StoreError::io("open", &path, error);
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(&path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(failed(io::Error::other("it is not a file")));
        }
        let layout = PieceLayout::new(found.len())?;
        let place = Place { directory: Arc::clone(directory), stamp: Stamp::of(&found) };
        Ok(Self { place, digest, layout, file })
    }

    /// Which blob it is to be.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// How the blob is cut.
    pub const fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// What it looked like when it was opened.
    pub const fn stamp(&self) -> Stamp {
        self.place.stamp
    }

    /// Hashes the whole file against its digest. `go_on` hears of the bytes of each piece after it was hashed, waits as long
    /// as it likes, and may end it, which gives [`StoreError::Changed`]. What is read does not stay in the page cache.
    pub fn verify(&self, mut go_on: impl FnMut(u64) -> bool) -> Result<Metainfo, StoreError> {
        let mut verifier = StreamVerifier::new(self.digest, self.layout);
        let mut buffer = vec![0; self.layout.piece_length().min(self.layout.length()) as usize];
        for piece in (0..self.layout.piece_count()).map(PieceIndex) {
            let range = self.layout.range(piece);
            let length = range.end - range.start;
            let bytes = &mut buffer[..length as usize];
            let read = self.file.read_exact_at(bytes, range.start);
            read.map_err(|error| StoreError::io("read", &self.place.path(&self.digest), error))?;
            verifier.push_piece(bytes);
            // Best effort: who unpacks or sends it meanwhile reads it again.
            let _ = fadvise(&self.file, range.start, std::num::NonZeroU64::new(length), Advice::DontNeed);
            if !go_on(length) {
                return Err(StoreError::Changed(self.digest));
            }
        }
        match verifier.finish() {
            Ok(metainfo) if self.place.is_there(&self.digest) => Ok(metainfo),
            Ok(_) => Err(StoreError::Changed(self.digest)),
            Err(VerifyError::DigestMismatch { expected: digest, actual }) => {
                Err(StoreError::DigestMismatch { digest, actual })
            }
            Err(error @ (VerifyError::PieceLength { .. } | VerifyError::Short { .. })) => {
                unreachable!("every piece was pushed once, in its length: {error}")
            }
        }
    }

    /// As the store shows it; `used` is the root of what counts for nothing.
    fn stored(self, used: Arc<BlobRoot>, last_use: SystemTime, store: Weak<ChunkStore>) -> StoredBlob {
        let have = Bitfield::full(self.layout.piece_count());
        let bitmap = Bitmap { layout: self.layout, have, verified: true };
        let found = Found { data: self.file, bitmap, last_use };
        StoredBlob::foreign(self.digest, found, used, store, self.place)
    }
}

/// The files of somebody else, whether the store has their blobs itself or not.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    directory: Option<Arc<Path>>,
    digests: HashSet<Digest>,
}

/// A foreign blob that is not open.
#[derive(Debug, Clone)]
pub(super) struct ForeignEntry {
    place: Place,
    last_use: SystemTime,
}

impl ForeignEntry {
    pub(super) const fn new(place: Place, last_use: SystemTime) -> Self {
        Self { place, last_use }
    }

    pub(super) fn summary(&self, digest: Digest) -> BlobSummary {
        BlobSummary {
            digest,
            length: self.place.stamp.length,
            have_bytes: self.place.stamp.length,
            verified: true,
            last_use: self.last_use,
            in_use: false,
            pinned: false,
            foreign: true,
        }
    }

    /// Opens the file, if it is what it was.
    pub(super) fn open(&self, digest: Digest, root: &Path, store: Weak<ChunkStore>) -> Result<StoredBlob, StoreError> {
        let file = ForeignFile::open(&self.place.directory, digest)?;
        if file.stamp() != self.place.stamp {
            return Err(StoreError::Changed(digest));
        }
        Ok(file.stored(Arc::new(BlobRoot::nowhere(root)), self.last_use, store))
    }
}

impl ChunkStore {
    /// Whether a foreign file of that blob would be of use: nothing complete is here, and nothing that somebody uses.
    pub fn lacks(&self, digest: &Digest) -> bool {
        self.summary(digest).is_none_or(|blob| !blob.verified && !blob.in_use) && !self.pins.is_held(digest)
    }

    /// Takes a file for its blob; it was held against the digest under the stamp that it has. Pieces that are here give way.
    /// False if the store does not lack the blob.
    pub fn hold_foreign(&self, file: ForeignFile) -> Result<bool, StoreError> {
        let digest = file.digest;
        if !self.lacks(&digest) {
            return Ok(false);
        }
        match self.remove(&digest) {
            Err(StoreError::InUse(_) | StoreError::Pinned(_)) => return Ok(false),
            removed => drop(removed?),
        }
        let _turn = lock(&self.shard(&digest).lifecycle);
        let mut entries = lock(&self.shard(&digest).entries);
        if entries.contains_key(&digest) {
            return Ok(false);
        }
        let accessed = UNIX_EPOCH + Duration::from_nanos(u64::try_from(file.place.stamp.modified_ns).unwrap_or(0));
        entries.insert(digest, Entry::Foreign(ForeignEntry::new(file.place, accessed)));
        self.foreign.0.fetch_add(1, Ordering::Relaxed);
        self.foreign.1.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Forgets a foreign blob, whoever uses it: who has a handle can still read. False if it is not one.
    pub fn release_foreign(&self, digest: &Digest) -> bool {
        let _turn = lock(&self.shard(digest).lifecycle);
        self.drop_foreign(digest)
    }

    /// The same, for who has the shard's turn.
    pub(super) fn drop_foreign(&self, digest: &Digest) -> bool {
        let bytes = {
            let mut entries = lock(&self.shard(digest).entries);
            let bytes = match entries.get(digest) {
                Some(Entry::Foreign(entry)) => entry.place.stamp.length,
                Some(Entry::Open(blob)) if blob.is_foreign() => {
                    blob.state.lock().removed = true;
                    self.open_blobs.fetch_sub(1, Ordering::Relaxed);
                    blob.layout().length()
                }
                _ => return false,
            };
            entries.remove(digest);
            self.foreign.0.fetch_sub(1, Ordering::Relaxed);
            self.foreign.1.fetch_add(1, Ordering::Relaxed);
            bytes
        };
        self.tell_removed(Removed { digest: *digest, bytes, evicted: false });
        true
    }

    /// The foreign blobs whose file is not there any more, or another one. Looks at each.
    pub fn lost_foreign(&self) -> Vec<Digest> {
        let places = |shard: &super::Shard| {
            let entries = lock(&shard.entries);
            let place = |(digest, entry): (&Digest, &Entry)| match entry {
                Entry::Foreign(entry) => Some((*digest, entry.place.clone())),
                Entry::Open(blob) => blob.foreign_place().map(|place| (*digest, place.clone())),
                Entry::Closed(_) => None,
            };
            entries.iter().filter_map(place).collect::<Vec<_>>()
        };
        let places: Vec<_> = self.shards.iter().flat_map(places).collect();
        places.into_iter().filter(|(digest, place)| !place.is_there(digest)).map(|(digest, _)| digest).collect()
    }

    /// Says which blobs have a file in `directory`: of those the store's own copies are the first to go when room is needed,
    /// and [`Self::hold_foreign`] takes their place. To be told again when that changes; a file that is gone does not count.
    pub fn set_elsewhere(&self, directory: &Arc<Path>, digests: HashSet<Digest>) {
        *lock(&self.elsewhere) = Elsewhere { directory: Some(Arc::clone(directory)), digests };
    }

    /// Adds one to [`Self::set_elsewhere`].
    pub fn add_elsewhere(&self, digest: Digest) {
        lock(&self.elsewhere).digests.insert(digest);
    }

    /// Whether all of a blob that the store has lies in a file of somebody else, too. Looks at the file.
    pub(super) fn is_elsewhere(&self, blob: &BlobSummary) -> bool {
        let path = {
            let elsewhere = lock(&self.elsewhere);
            let Some(directory) = elsewhere.directory.as_ref().filter(|_| elsewhere.digests.contains(&blob.digest))
            else {
                return false;
            };
            directory.join(blob.digest.hex())
        };
        !blob.foreign && std::fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.len() == blob.length)
    }

    /// How many foreign blobs are held.
    pub fn foreign_count(&self) -> usize {
        self.foreign.0.load(Ordering::Relaxed)
    }

    /// Another number whenever a foreign blob has come or gone.
    pub fn foreign_version(&self) -> usize {
        self.foreign.1.load(Ordering::Relaxed)
    }

    /// The foreign blobs that are held, with their lengths.
    pub fn foreign(&self) -> Vec<(Digest, u64)> {
        let blobs = self.list().into_iter().filter(|blob| blob.foreign);
        blobs.map(|blob| (blob.digest, blob.length)).collect()
    }
}
