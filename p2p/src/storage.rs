//! The contract with whatever a seed keeps completed blobs in beside its chunk store, and that storage as an origin.
//!
//! The chunk store on the local disk is the working copy; the storage is where blobs are still to be had after the disk
//! was lost or made room. Nothing that comes out of it is believed: it goes through the swarm as an origin's bytes do,
//! against the digest.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;

use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::layout::{PieceIndex, PieceLayout};
use crate::origin::{ByteStream, Locator, Origin, OriginError};

/// Completed blobs by digest.
///
/// Contract:
/// * A blob is there whole or not at all: a `put` that fails, is dropped, or dies with the process leaves what was there
///   before, or nothing. A `put` whose stream is shorter or longer than `length` fails.
/// * `get` yields exactly the bytes of the range, or an error. [`StorageError::Missing`] comes before any byte.
/// * Who puts has verified the blob. Putting it again replaces it.
pub trait SeedStorage: Send + Sync + 'static {
    /// Stores a blob of `length` bytes.
    fn put(&self, digest: Digest, length: u64, bytes: ByteStream) -> BoxFuture<'_, Result<(), StorageError>>;

    /// Bytes of a blob; the range is not empty.
    fn get(&self, digest: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, StorageError>>;

    /// The length of a blob; none if it is not there.
    fn stat(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, StorageError>>;

    /// Removes a blob. One that is not there is no error.
    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), StorageError>>;

    /// The blobs after `after`, ascending, with their lengths; at most `limit`, fewer only at the end.
    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<(Digest, u64)>, StorageError>>;
}

/// Why a storage did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The blob is not there.
    #[error("{storage} does not have {digest}")]
    Missing {
        /// Which storage.
        storage: String,
        /// The blob.
        digest: Digest,
    },
    /// The range is empty, or not within the blob.
    #[error("{storage}: bytes {}..{} are not within {digest}", range.start, range.end)]
    OutOfRange {
        /// Which storage.
        storage: String,
        /// The blob.
        digest: Digest,
        /// The range.
        range: Range<u64>,
    },
    /// The stream that was put had another length.
    #[error("{storage}: {got} bytes came for {digest}, which has {expected}")]
    WrongLength {
        /// Which storage.
        storage: String,
        /// The blob.
        digest: Digest,
        /// Bytes that came before it ended, or was cut.
        got: u64,
        /// Bytes that it should have.
        expected: u64,
    },
    /// The storage failed.
    #[error("{storage} failed: {reason}; check its options, its credentials and that it can be reached")]
    Failed {
        /// Which storage.
        storage: String,
        /// What happened.
        reason: String,
    },
}

/// What is known of the blob's copy in the storage.
#[derive(Debug)]
struct Kept {
    state: State,
    /// Pieces that were given whole: one that is asked for again was wrong.
    given: Bitfield,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    There,
    Gone,
}

/// A blob out of the storage, and what it lacks, or what of it turned out wrong, from the origin behind it.
pub struct StorageOrigin {
    storage: Arc<dyn SeedStorage>,
    digest: Digest,
    layout: PieceLayout,
    behind: Arc<dyn Origin>,
    copy: Arc<Mutex<Kept>>,
}

impl StorageOrigin {
    /// The blob `digest`, cut as `layout` says.
    pub fn new(storage: Arc<dyn SeedStorage>, digest: Digest, layout: PieceLayout, behind: Arc<dyn Origin>) -> Self {
        let copy = Kept { state: State::Unknown, given: Bitfield::empty(layout.piece_count()) };
        Self { storage, digest, layout, behind, copy: Arc::new(Mutex::new(copy)) }
    }

    fn copy(&self) -> MutexGuard<'_, Kept> {
        lock(&self.copy)
    }

    /// Whether the storage is to be asked for `range`.
    async fn has(&self, range: &Range<u64>) -> bool {
        let digest = self.digest;
        let (state, wrong) = {
            let copy = self.copy();
            (copy.state, self.layout.pieces(range.clone()).any(|piece| copy.given.get(PieceIndex(piece))))
        };
        match state {
            State::Gone => false,
            State::There if wrong => {
                tracing::warn!(%digest, "the storage's copy of the blob is wrong: removed, and fetched from its origin");
                self.copy().state = State::Gone;
                if let Err(error) = self.storage.delete(digest).await {
                    tracing::warn!(%digest, %error, "the wrong copy cannot be removed");
                }
                false
            }
            State::There => true,
            State::Unknown => match self.storage.stat(digest).await {
                Ok(found) => {
                    let there = found == Some(self.layout.length());
                    self.copy().state = if there { State::There } else { State::Gone };
                    there
                }
                Err(error) => {
                    tracing::warn!(%digest, %error, "the origin is asked instead");
                    false
                }
            },
        }
    }

    /// Notes the pieces of `range` as given once all its bytes have passed.
    fn noted(&self, range: Range<u64>, stream: ByteStream) -> ByteStream {
        let (copy, layout) = (Arc::clone(&self.copy), self.layout);
        let mut left = range.end - range.start;
        Box::pin(stream.inspect(move |chunk| {
            let Ok(chunk) = chunk else { return };
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                let mut copy = lock(&copy);
                for piece in layout.pieces(range.clone()) {
                    copy.given.set(PieceIndex(piece));
                }
            }
        }))
    }
}

fn lock(copy: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // Each change is a single step.
    copy.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Origin for StorageOrigin {
    fn fetch(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>> {
        Box::pin(async move {
            if self.has(&range).await {
                match self.storage.get(self.digest, range.clone()).await {
                    Ok(stream) => return Ok(self.noted(range, stream)),
                    Err(error) => {
                        tracing::info!(digest = %self.digest, %error, "the origin is asked instead");
                        if matches!(error, StorageError::Missing { .. }) {
                            self.copy().state = State::Gone;
                        }
                    }
                }
            }
            self.behind.fetch(range).await
        })
    }

    fn describe(&self) -> String {
        self.behind.describe()
    }

    fn locator(&self) -> Option<Locator> {
        self.behind.locator()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const LENGTH: u64 = 1 << 20;

    /// One blob, and what was asked.
    struct Shelf {
        bytes: Mutex<Option<Vec<u8>>>,
        fails: bool,
    }

    fn failed() -> StorageError {
        StorageError::Failed { storage: "shelf".to_owned(), reason: "broken".to_owned() }
    }

    fn stream(bytes: &[u8]) -> ByteStream {
        let chunks: Vec<_> = bytes.chunks(10_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        Box::pin(futures_util::stream::iter(chunks))
    }

    impl SeedStorage for Shelf {
        fn put(&self, _: Digest, _: u64, _: ByteStream) -> BoxFuture<'_, Result<(), StorageError>> {
            Box::pin(std::future::ready(Err(failed())))
        }

        fn get(&self, digest: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, StorageError>> {
            let missing = StorageError::Missing { storage: "shelf".to_owned(), digest };
            let bytes = self.bytes.lock().unwrap();
            let answer = bytes.as_ref().map(|bytes| stream(&bytes[range.start as usize..range.end as usize]));
            Box::pin(std::future::ready(if self.fails { Err(failed()) } else { answer.ok_or(missing) }))
        }

        fn stat(&self, _: Digest) -> BoxFuture<'_, Result<Option<u64>, StorageError>> {
            let length = self.bytes.lock().unwrap().as_ref().map(|bytes| bytes.len() as u64);
            Box::pin(std::future::ready(Ok(length)))
        }

        fn delete(&self, _: Digest) -> BoxFuture<'_, Result<(), StorageError>> {
            *self.bytes.lock().unwrap() = None;
            Box::pin(std::future::ready(Ok(())))
        }

        fn list(&self, _: Option<Digest>, _: usize) -> BoxFuture<'_, Result<Vec<(Digest, u64)>, StorageError>> {
            Box::pin(std::future::ready(Err(failed())))
        }
    }

    struct Behind;

    impl Origin for Behind {
        fn fetch(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>> {
            Box::pin(std::future::ready(Ok(stream(&vec![b'o'; (range.end - range.start) as usize]))))
        }

        fn describe(&self) -> String {
            "behind".to_owned()
        }
    }

    fn origin(bytes: Option<Vec<u8>>, fails: bool) -> (StorageOrigin, Arc<Shelf>) {
        let shelf = Arc::new(Shelf { bytes: Mutex::new(bytes), fails });
        let layout = PieceLayout::new(LENGTH).unwrap();
        (StorageOrigin::new(Arc::clone(&shelf) as _, Digest::of(b"x"), layout, Arc::new(Behind)), shelf)
    }

    /// The first byte of what is fetched, and how many come.
    async fn fetch(origin: &StorageOrigin, range: Range<u64>) -> (u8, usize) {
        let chunks: Vec<_> = origin.fetch(range).await.unwrap().collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect();
        (bytes[0], bytes.len())
    }

    #[tokio::test]
    async fn what_the_storage_has_comes_from_it_and_the_rest_from_behind() {
        let (origin, shelf) = origin(Some(vec![b's'; LENGTH as usize]), false);
        assert_eq!(fetch(&origin, 0..131_072).await, (b's', 131_072));
        *shelf.bytes.lock().unwrap() = None;
        assert_eq!(fetch(&origin, 131_072..262_144).await, (b'o', 131_072), "it went missing meanwhile");
        for (bytes, fails) in [(None, false), (Some(vec![b's'; 7]), false), (Some(vec![b's'; LENGTH as usize]), true)] {
            assert_eq!(fetch(&self::origin(bytes, fails).0, 0..10).await, (b'o', 10));
        }
    }

    #[tokio::test]
    async fn a_copy_of_which_a_piece_is_asked_for_again_is_removed() {
        let (origin, shelf) = origin(Some(vec![b's'; LENGTH as usize]), false);
        let layout = PieceLayout::new(LENGTH).unwrap();
        let piece = layout.piece_length();
        let mut cut = origin.fetch(0..2 * piece).await.unwrap();
        cut.next().await.unwrap().unwrap();
        drop(cut);
        assert_eq!(fetch(&origin, 0..2 * piece).await.0, b's', "a transfer that was cut is no proof");
        assert_eq!(fetch(&origin, 2 * piece..3 * piece).await.0, b's');
        assert_eq!(fetch(&origin, piece..2 * piece).await.0, b'o');
        assert!(shelf.bytes.lock().unwrap().is_none());
        assert_eq!(fetch(&origin, 3 * piece..4 * piece).await.0, b'o');
    }
}
