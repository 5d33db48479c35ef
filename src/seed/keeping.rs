//! The storage behind the seed's own disk: completed blobs are put into it, and looked for in it before their registry is asked.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::layout::PieceLayout;
use lapwing_p2p::node::{Blob, Priority};
use lapwing_p2p::origin::{ByteStream, Origin};
use lapwing_p2p::storage::{SeedStorage, StorageError, StorageOrigin};
use lru::LruCache;
use tokio::time::sleep;

use super::metrics::SeedMetrics;

/// How often a blob is tried to be put again, and after which pause, times the number of tries.
const TRIES: u32 = 4;
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Blobs that are remembered to be in the storage, so that it is not asked at each request.
const MAX_KNOWN: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// See the module's documentation.
#[derive(Clone)]
pub(super) struct Keeping {
    storage: Arc<Counted>,
}

/// The storage, with its bytes counted.
struct Counted {
    inner: Arc<dyn SeedStorage>,
    metrics: SeedMetrics,
    known: Mutex<LruCache<Digest, ()>>,
}

impl Counted {
    fn known(&self) -> MutexGuard<'_, LruCache<Digest, ()>> {
        // Single insertions and removals: nothing is left half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noted<T>(&self, outcome: Result<T, StorageError>) -> Result<T, StorageError> {
        if let Err(StorageError::Failed { .. }) = &outcome {
            self.metrics.storage_failures.inc();
        }
        outcome
    }
}

impl Keeping {
    pub(super) fn new(storage: Arc<dyn SeedStorage>, metrics: SeedMetrics) -> Self {
        let known = Mutex::new(LruCache::new(MAX_KNOWN));
        Self { storage: Arc::new(Counted { inner: storage, metrics, known }) }
    }

    /// Says at the start whether the storage can be used; the seed does without it while it cannot.
    pub(super) async fn greet(&self) {
        match self.storage.list(None, 1).await {
            Ok(_) => tracing::info!("the storage answers"),
            Err(error) => tracing::warn!(%error, "the storage cannot be used now; blobs come from their registries"),
        }
    }

    /// Whether the storage has the blob, as far as it can be asked.
    pub(super) async fn has(&self, digest: Digest, length: u64) -> bool {
        match self.storage.stat(digest).await {
            Ok(found) => found == Some(length),
            Err(error) => {
                tracing::warn!(%digest, %error, "the storage cannot be asked for a blob");
                false
            }
        }
    }

    /// Whether the blob was seen to be in the storage.
    pub(super) fn is_known(&self, digest: &Digest) -> bool {
        self.storage.known().get(digest).is_some()
    }

    /// The blob out of the storage first, and what is amiss there from `behind`.
    pub(super) fn before(&self, digest: Digest, layout: PieceLayout, behind: Arc<dyn Origin>) -> Arc<dyn Origin> {
        Arc::new(StorageOrigin::new(Arc::clone(&self.storage) as _, digest, layout, behind))
    }

    /// Puts a verified blob into the storage, unless it is there.
    pub(super) async fn keep(&self, blob: &Arc<Blob>) -> Result<(), StorageError> {
        let (digest, length) = (blob.digest(), blob.length());
        for tried in 1.. {
            match self.put_if_missing(blob).await {
                Ok(()) => break,
                Err(error) if tried == TRIES => return Err(error),
                Err(error) => {
                    tracing::info!(%digest, %error, tried, "blob is not in the storage yet: tried again");
                    sleep(TRY_AGAIN * tried).await;
                }
            }
        }
        tracing::debug!(%digest, length, "blob is in the storage");
        Ok(())
    }

    async fn put_if_missing(&self, blob: &Arc<Blob>) -> Result<(), StorageError> {
        let (digest, length) = (blob.digest(), blob.length());
        if self.storage.stat(digest).await? != Some(length) {
            let bytes = blob.stream(0..length, Priority::Background).map(|chunk| chunk.map_err(std::io::Error::other));
            self.storage.put(digest, length, Box::pin(bytes)).await?;
        }
        self.storage.known().put(digest, ());
        Ok(())
    }
}

impl SeedStorage for Counted {
    fn put(&self, digest: Digest, length: u64, bytes: ByteStream) -> BoxFuture<'_, Result<(), StorageError>> {
        let written = self.metrics.storage_written.clone();
        let bytes = bytes.inspect(move |chunk| {
            written.inc_by(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
        });
        Box::pin(async move { self.noted(self.inner.put(digest, length, Box::pin(bytes)).await) })
    }

    fn get(&self, digest: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, StorageError>> {
        Box::pin(async move {
            let stream = self.noted(self.inner.get(digest, range).await)?;
            let read = self.metrics.storage_read.clone();
            let stream = stream.inspect(move |chunk| {
                read.inc_by(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
            });
            Ok(Box::pin(stream) as ByteStream)
        })
    }

    fn stat(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, StorageError>> {
        Box::pin(async move { self.noted(self.inner.stat(digest).await) })
    }

    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), StorageError>> {
        self.known().pop(&digest);
        Box::pin(async move { self.noted(self.inner.delete(digest).await) })
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<(Digest, u64)>, StorageError>> {
        Box::pin(async move { self.noted(self.inner.list(after, limit).await) })
    }
}
