//! The chunk store as a storage: what the piece wire serves from, by sendfile, is at the same time what is kept.

use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;
use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::origin::ByteStream;
use lapwing_p2p::storage::{SeedStorage, StorageError};
use lapwing_p2p::store::{ChunkStore, StoreError, StoredBlob};

use crate::limits::MAX_LISTED;

/// Bytes given at once.
const CHUNK: u64 = 1 << 20;

/// The verified blobs of a [`ChunkStore`]. Blobs that are still arriving are not there.
#[derive(Clone)]
pub struct DiskStorage(Arc<ChunkStore>);

impl DiskStorage {
    /// The blobs of this store.
    pub const fn new(store: Arc<ChunkStore>) -> Self {
        Self(store)
    }

    fn name(&self) -> String {
        self.0.root().display().to_string()
    }

    fn failed(&self, reason: impl std::fmt::Display) -> StorageError {
        StorageError::Failed { storage: self.name(), reason: reason.to_string() }
    }

    /// Runs `work`, which blocks.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ChunkStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let store = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|error| self.failed(error))?.map_err(|error| self.failed(error))
    }

    async fn verified(&self, digest: Digest) -> Result<Option<Arc<StoredBlob>>, StorageError> {
        self.blocking(move |store| Ok(store.get(&digest).filter(|blob| blob.is_verified()))).await
    }

    async fn write(&self, digest: Digest, length: u64, mut bytes: ByteStream) -> Result<(), StorageError> {
        let pin = self.blocking(move |store| store.open_pinned(&digest, length)).await?;
        let blob = Arc::clone(pin.blob());
        let (layout, mut assembled, mut got) = (blob.layout(), BytesMut::new(), 0_u64);
        let mut piece = 0;
        let wrong = |got| StorageError::WrongLength { storage: self.name(), digest, got, expected: length };
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|_| wrong(got))?;
            got += chunk.len() as u64;
            if got > length {
                return Err(wrong(got));
            }
            assembled.extend_from_slice(&chunk);
            while piece < layout.piece_count() {
                let range = layout.range(PieceIndex(piece));
                let size = (range.end - range.start) as usize;
                if assembled.len() < size {
                    break;
                }
                let (blob, bytes, index) = (Arc::clone(&blob), assembled.split_to(size).freeze(), PieceIndex(piece));
                self.blocking(move |_| {
                    if blob.has(index) && !blob.is_verified() && blob.read_piece(index)? != bytes {
                        blob.drop_pieces(&[index])?;
                    }
                    blob.write_piece(index, &bytes)
                })
                .await?;
                piece += 1;
            }
        }
        if got != length {
            return Err(wrong(got));
        }
        self.blocking(move |_| {
            let blob = pin.blob();
            if !blob.is_verified() {
                blob.verify()?;
            }
            Ok(())
        })
        .await
    }
}

impl SeedStorage for DiskStorage {
    /// Also held against its digest, since what the chunk store calls verified is served.
    fn put(&self, digest: Digest, length: u64, bytes: ByteStream) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(self.write(digest, length, bytes))
    }

    fn get(&self, digest: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, StorageError>> {
        Box::pin(async move {
            let storage = self.name();
            let Some(blob) = self.verified(digest).await? else {
                return Err(StorageError::Missing { storage, digest });
            };
            if range.is_empty() || range.end > blob.layout().length() {
                return Err(StorageError::OutOfRange { storage, digest, range });
            }
            let chunks = futures_util::stream::unfold(Some((blob, range)), |state| async move {
                let (blob, range) = state.filter(|(_, range)| !range.is_empty())?;
                let end = range.end.min(range.start + CHUNK);
                let (reading, part) = (Arc::clone(&blob), range.start..end);
                let read = tokio::task::spawn_blocking(move || reading.read_at(part)).await;
                let bytes = read.map_err(std::io::Error::other).and_then(|read| read.map_err(std::io::Error::other));
                let next = bytes.is_ok().then_some((blob, end..range.end));
                Some((bytes, next))
            });
            Ok(Box::pin(chunks) as ByteStream)
        })
    }

    fn stat(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, StorageError>> {
        Box::pin(async move { Ok(self.verified(digest).await?.map(|blob| blob.layout().length())) })
    }

    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async move { self.blocking(move |store| store.remove(&digest).map(drop)).await })
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<(Digest, u64)>, StorageError>> {
        Box::pin(async move {
            let mut listed: Vec<(Digest, u64)> = self
                .0
                .list()
                .into_iter()
                .filter(|blob| blob.verified && after.is_none_or(|after| blob.digest > after))
                .map(|blob| (blob.digest, blob.length))
                .collect();
            listed.sort_unstable();
            listed.truncate(limit.min(MAX_LISTED));
            Ok(listed)
        })
    }
}
