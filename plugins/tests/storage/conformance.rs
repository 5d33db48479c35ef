//! What every [`SeedStorage`] must do.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::origin::ByteStream;
use lapwing_p2p::storage::{SeedStorage, StorageError};

/// More than two parts of an upload.
const LARGE: usize = (17 << 20) + 12_345;

/// Runs all of it on a storage that is empty.
pub(crate) async fn run(storage: Arc<dyn SeedStorage>) {
    what_is_put_is_there_whole_and_in_ranges(&*storage).await;
    what_is_missing_is_said_to_be(&*storage).await;
    putting_again_replaces(&*storage).await;
    what_does_not_arrive_whole_is_not_there(&*storage).await;
    an_upload_that_died_is_not_there(&storage).await;
    large_blobs_come_back(&*storage).await;
    two_at_once_do_not_disturb_each_other(&storage).await;
    listings_are_ordered_and_bounded(&*storage).await;
}

/// `length` bytes that differ from blob to blob.
fn blob(number: u64, length: usize) -> (Digest, Vec<u8>) {
    let mut bytes = vec![0; length];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    (Digest::of(&bytes), bytes)
}

fn chunks(bytes: &[u8]) -> Vec<std::io::Result<Bytes>> {
    bytes.chunks(100_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect()
}

fn stream(bytes: &[u8]) -> ByteStream {
    Box::pin(futures_util::stream::iter(chunks(bytes)))
}

async fn put(storage: &dyn SeedStorage, digest: Digest, bytes: &[u8]) {
    storage.put(digest, bytes.len() as u64, stream(bytes)).await.unwrap();
}

async fn get(storage: &dyn SeedStorage, digest: Digest, range: Range<u64>) -> Result<Vec<u8>, StorageError> {
    let mut stream = storage.get(digest, range).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(error) => {
                return Err(StorageError::Failed { storage: "the stream".to_owned(), reason: error.to_string() });
            }
        }
    }
    Ok(bytes)
}

async fn assert_absent(storage: &dyn SeedStorage, digest: Digest) {
    assert_eq!(storage.stat(digest).await.unwrap(), None);
    assert!(matches!(get(storage, digest, 0..1).await, Err(StorageError::Missing { .. })));
    assert!(storage.list(None, 1000).await.unwrap().iter().all(|(listed, _)| *listed != digest));
}

async fn what_is_put_is_there_whole_and_in_ranges(storage: &dyn SeedStorage) {
    for length in [1, 4096, 300_000] {
        let (digest, bytes) = blob(1, length);
        put(storage, digest, &bytes).await;
        let length = length as u64;
        assert_eq!(storage.stat(digest).await.unwrap(), Some(length));
        assert_eq!(get(storage, digest, 0..length).await.unwrap(), bytes);
        for range in [0..1, length - 1..length, length / 3..length.div_ceil(3) * 2] {
            let range = range.start..range.end.min(length);
            let expected = &bytes[range.start as usize..range.end as usize];
            assert_eq!(get(storage, digest, range.clone()).await.unwrap(), expected, "{range:?}");
        }
        assert!(get(storage, digest, 0..length + 1).await.is_err(), "no fewer bytes than were asked for");
        assert!(get(storage, digest, length..length + 1).await.is_err());
        assert!(matches!(get(storage, digest, 0..0).await, Err(StorageError::OutOfRange { .. })));
    }
}

async fn what_is_missing_is_said_to_be(storage: &dyn SeedStorage) {
    let (digest, _) = blob(2, 10);
    assert_absent(storage, digest).await;
    storage.delete(digest).await.unwrap();
}

async fn putting_again_replaces(storage: &dyn SeedStorage) {
    let (digest, bytes) = blob(3, 200_000);
    put(storage, digest, &bytes).await;
    put(storage, digest, &bytes).await;
    assert_eq!(get(storage, digest, 0..200_000).await.unwrap(), bytes);
    storage.delete(digest).await.unwrap();
    assert_absent(storage, digest).await;
    put(storage, digest, &bytes).await;
    assert_eq!(get(storage, digest, 0..200_000).await.unwrap(), bytes);
}

async fn what_does_not_arrive_whole_is_not_there(storage: &dyn SeedStorage) {
    let (digest, bytes) = blob(4, 200_000);
    let broken = || {
        let mut chunks = chunks(&bytes);
        chunks.truncate(1);
        chunks.push(Err(std::io::Error::other("the sender is gone")));
        Box::pin(futures_util::stream::iter(chunks)) as ByteStream
    };
    let long: Vec<u8> = bytes.iter().copied().chain([0]).collect();
    for kind in ["short", "long", "broken", "short", "long", "broken"] {
        let wrong = match kind {
            "short" => stream(&bytes[..199_999]),
            "long" => stream(&long),
            _ => broken(),
        };
        let there = storage.stat(digest).await.unwrap().is_some();
        let outcome = storage.put(digest, 200_000, wrong).await;
        assert!(matches!(outcome, Err(StorageError::WrongLength { expected: 200_000, .. })), "{kind}: {outcome:?}");
        if there {
            assert_eq!(get(storage, digest, 0..200_000).await.unwrap(), bytes, "{kind}: what was there before stays");
        } else {
            assert_absent(storage, digest).await;
        }
        if kind == "broken" {
            put(storage, digest, &bytes).await;
        }
    }
}

async fn an_upload_that_died_is_not_there(storage: &Arc<dyn SeedStorage>) {
    for length in [200_000, LARGE] {
        let (digest, bytes) = blob(5, length);
        // Everything but the last chunk is sent, and then nothing more ever comes.
        let mut sent = chunks(&bytes);
        sent.pop();
        let (at_the_end, reached) = tokio::sync::oneshot::channel();
        let end = futures_util::stream::once(async move {
            let _ = at_the_end.send(());
            std::future::pending().await
        });
        let stream = Box::pin(futures_util::stream::iter(sent).chain(end)) as ByteStream;
        let putting = Arc::clone(storage);
        let upload = tokio::spawn(async move { putting.put(digest, length as u64, stream).await });
        reached.await.unwrap();
        upload.abort();
        assert!(upload.await.is_err());
        assert_absent(&**storage, digest).await;
        put(&**storage, digest, &bytes).await;
        assert_eq!(get(&**storage, digest, 0..length as u64).await.unwrap(), bytes, "it can be put all the same");
    }
}

async fn large_blobs_come_back(storage: &dyn SeedStorage) {
    let (digest, bytes) = blob(6, LARGE);
    put(storage, digest, &bytes).await;
    assert_eq!(storage.stat(digest).await.unwrap(), Some(LARGE as u64));
    assert_eq!(Digest::of(&get(storage, digest, 0..LARGE as u64).await.unwrap()), digest);
    let seam = (8 << 20) - 100..(8 << 20) + 100;
    let expected = &bytes[seam.start as usize..seam.end as usize];
    assert_eq!(get(storage, digest, seam.clone()).await.unwrap(), expected, "across two parts");
}

async fn two_at_once_do_not_disturb_each_other(storage: &Arc<dyn SeedStorage>) {
    let (digest, bytes) = blob(7, 1 << 20);
    let puts = (0..4).map(|_| storage.put(digest, 1 << 20, stream(&bytes)).boxed());
    for outcome in futures_util::future::join_all(puts).await {
        outcome.unwrap();
    }
    assert_eq!(Digest::of(&get(&**storage, digest, 0..1 << 20).await.unwrap()), digest);
}

async fn listings_are_ordered_and_bounded(storage: &dyn SeedStorage) {
    for (digest, _) in storage.list(None, 1000).await.unwrap() {
        storage.delete(digest).await.unwrap();
    }
    assert!(storage.list(None, 10).await.unwrap().is_empty());
    let mut all = Vec::new();
    for number in 100..130 {
        let (digest, bytes) = blob(number, 100 + number as usize);
        put(storage, digest, &bytes).await;
        all.push((digest, bytes.len() as u64));
    }
    all.sort_unstable();
    assert_eq!(storage.list(None, 1000).await.unwrap(), all);
    let mut paged = Vec::new();
    loop {
        let page = storage.list(paged.last().map(|(digest, _)| *digest), 7).await.unwrap();
        assert!(page.len() <= 7);
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, all);
    storage.delete(all[3].0).await.unwrap();
    all.remove(3);
    assert_eq!(storage.list(None, 1000).await.unwrap(), all);
}

/// A storage that cannot do its work says so everywhere, takes nothing for missing, and tells no secret.
pub(crate) async fn fails_openly(storage: &dyn SeedStorage, secret: &str) {
    let (digest, bytes) = blob(8, 1000);
    let errors = [
        storage.put(digest, 1000, stream(&bytes)).await.err(),
        storage.get(digest, 0..10).await.err(),
        storage.stat(digest).await.err(),
        storage.delete(digest).await.err(),
        storage.list(None, 10).await.err(),
    ];
    for error in errors {
        let error = error.unwrap();
        assert!(matches!(error, StorageError::Failed { .. }), "{error}");
        assert!(!error.to_string().contains(secret), "{error}");
    }
}
