//! Object stores, through opendal.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::origin::ByteStream;
use lapwing_p2p::storage::{SeedStorage, StorageError};
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::{EntryMode, ErrorKind, HttpTransporter, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;

use super::{InvalidStorage, StorageConfig};
use crate::limits::{
    MAX_LISTED, MAX_STORAGE_PARTS, STORAGE_PART, STORAGE_PARTS_AT_ONCE, STORAGE_RETRIES, STORAGE_TIMEOUT,
};

/// Where everything is, below the root that the options name.
const PREFIX: &str = "sha256/";

/// Blobs as objects of an object store (or files of a directory, or memory).
#[derive(Debug, Clone)]
pub struct ObjectStorage {
    operator: Operator,
    /// For people.
    name: String,
}

impl ObjectStorage {
    /// Checks the configuration; nothing is asked yet. A rustls crypto provider must have been installed.
    pub fn open(config: &StorageConfig) -> Result<Self, InvalidStorage> {
        let mut options = config.all_options()?;
        if config.service == "fs" {
            keep_uploads_aside(&mut options);
        }
        let operator = operator(&config.service, options)?;
        let information = operator.info();
        let name = format!("{}:{}{}", config.service, information.name(), information.root());
        Ok(Self { operator, name })
    }

    fn failed(&self, error: &opendal::Error) -> StorageError {
        // The full text may quote requests, and with them signatures.
        StorageError::Failed { storage: self.name.clone(), reason: format!("{}: {}", error.kind(), error.message()) }
    }

    async fn write(&self, digest: Digest, length: u64, mut bytes: ByteStream) -> Result<(), StorageError> {
        let part = part_length(length);
        let mut writer = self
            .operator
            .writer_with(&path(&digest))
            .chunk(part)
            .concurrent(STORAGE_PARTS_AT_ONCE)
            .await
            .map_err(|error| self.failed(&error))?;
        let mut got = 0;
        let outcome = loop {
            let chunk = match bytes.next().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(_)) => break Err(None),
                None if got == length => break Ok(()),
                None => break Err(None),
            };
            got += chunk.len() as u64;
            if got > length {
                break Err(None);
            }
            if let Err(error) = writer.write(chunk).await {
                break Err(Some(error));
            }
        };
        let outcome = match outcome {
            Ok(()) => writer.close().await.map(drop).map_err(Some),
            failed => failed,
        };
        let Err(error) = outcome else { return Ok(()) };
        // What was sent so far is only in the way; a process that dies here leaves it to the store's own rules.
        if let Err(error) = writer.abort().await {
            tracing::debug!(%digest, %error, "an upload that failed cannot be taken back");
        }
        Err(match error {
            Some(error) => self.failed(&error),
            None => StorageError::WrongLength { storage: self.name.clone(), digest, got, expected: length },
        })
    }

    async fn read(&self, digest: Digest, range: Range<u64>) -> Result<ByteStream, StorageError> {
        let storage = self.name.clone();
        if range.is_empty() {
            return Err(StorageError::OutOfRange { storage, digest, range });
        }
        let missing = || StorageError::Missing { storage: self.name.clone(), digest };
        let failed = |error: opendal::Error| match error.kind() {
            ErrorKind::NotFound => missing(),
            _ => self.failed(&error),
        };
        let reader = self.operator.reader(&path(&digest)).await.map_err(failed)?;
        let mut stream = reader.into_bytes_stream(range.clone()).await.map_err(failed)?;
        let first = match stream.next().await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
            Some(Err(error)) => return Err(StorageError::Failed { storage, reason: error.to_string() }),
            None => return Err(StorageError::OutOfRange { storage, digest, range }),
        };
        let whole = futures_util::stream::once(async { Ok(first) }).chain(stream);
        Ok(exactly(whole, range.end - range.start))
    }

    /// The blobs of one directory, ascending.
    async fn list_directory(&self, directory: &str) -> Result<Vec<(Digest, u64)>, StorageError> {
        let mut lister = self.operator.lister(directory).await.map_err(|error| self.failed(&error))?;
        let mut listed = Vec::new();
        while let Some(entry) = lister.next().await {
            let entry = entry.map_err(|error| self.failed(&error))?;
            let Some(digest) = digest_of(entry.path()).filter(|_| entry.metadata().mode() == EntryMode::FILE) else {
                continue;
            };
            // Not every service tells lengths in a listing.
            let length = match entry.metadata().content_length() {
                0 => self.length(digest).await?,
                length => Some(length),
            };
            listed.extend(length.map(|length| (digest, length)));
        }
        listed.sort_unstable();
        Ok(listed)
    }

    async fn length(&self, digest: Digest) -> Result<Option<u64>, StorageError> {
        match self.operator.stat(&path(&digest)).await {
            Ok(metadata) => Ok(Some(metadata.content_length())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// The directories that blobs after `after` can be in, ascending.
    async fn directories(&self, after: Option<Digest>) -> Result<Vec<String>, StorageError> {
        let first = after.map(|after| directory(&after)).unwrap_or_default();
        let mut lister = self.operator.lister(PREFIX).await.map_err(|error| self.failed(&error))?;
        let mut found = Vec::new();
        while let Some(entry) = lister.next().await {
            let entry = entry.map_err(|error| self.failed(&error))?;
            let name = entry.path();
            // There are 256 that can be a blob's.
            if name.len() == PREFIX.len() + 3 && name.ends_with('/') && *name >= *first && found.len() < 256 {
                found.push(name.to_owned());
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// A service as all of them are used here: over our own client, with a limit on silence, and tried again.
pub(super) fn operator(service: &str, options: BTreeMap<String, String>) -> Result<Operator, InvalidStorage> {
    let refused = |error: opendal::Error| InvalidStorage::Options(error.message().to_owned());
    opendal::init_default_registry();
    let operator = Operator::via_iter(service, options).map_err(refused)?;
    let client = reqwest::Client::builder()
        .user_agent(concat!("lapwing/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::limited(3))
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(STORAGE_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(60))
        .build()
        .map_err(|error| InvalidStorage::Options(format!("cannot make an HTTPS client: {error}")))?;
    let transport = HttpTransporter::new(ReqwestTransport::new(client));
    let context = operator.base_context().with_http_transport(transport);
    Ok(operator
        .with_context(context)
        .layer(TimeoutLayer::default().with_timeout(STORAGE_TIMEOUT).with_io_timeout(STORAGE_TIMEOUT))
        .layer(RetryLayer::default().with_max_times(STORAGE_RETRIES).with_jitter()))
}

/// A directory's files appear by renaming, out of a place on the same filesystem.
fn keep_uploads_aside(options: &mut BTreeMap<String, String>) {
    if let Some(root) = options.get("root") {
        let aside = format!("{}/uploads", root.trim_end_matches('/'));
        options.entry("atomic_write_dir".to_owned()).or_insert(aside);
    }
}

/// Bytes of a part: longer for blobs that would have too many.
fn part_length(length: u64) -> usize {
    let least = length.div_ceil(MAX_STORAGE_PARTS) as usize;
    least.next_multiple_of(1 << 20).max(STORAGE_PART)
}

fn directory(digest: &Digest) -> String {
    let path = path(digest);
    path[..PREFIX.len() + 3].to_owned()
}

fn path(digest: &Digest) -> String {
    let text = digest.to_string();
    let hex = text.trim_start_matches("sha256:");
    format!("{PREFIX}{}/{hex}", &hex[..2])
}

/// The blob whose path this is.
fn digest_of(entry: &str) -> Option<Digest> {
    let hex = entry.rsplit('/').next()?;
    let digest: Digest = format!("sha256:{hex}").parse().ok()?;
    (path(&digest) == entry).then_some(digest)
}

/// A stream that ends after exactly that many bytes, or with an error.
fn exactly(
    stream: impl futures_core::Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static,
    length: u64,
) -> ByteStream {
    let state = Some((Box::pin(stream), length));
    Box::pin(futures_util::stream::unfold(state, |state| async move {
        let (mut stream, left) = state?;
        let wrong = |text: &str| Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text.to_owned()));
        match stream.next().await {
            Some(Ok(chunk)) => match left.checked_sub(chunk.len() as u64) {
                Some(left) => Some((Ok(chunk), Some((stream, left)))),
                None => Some((wrong("the object store sent more than was asked for"), None)),
            },
            Some(Err(error)) => Some((Err(error), None)),
            None if left > 0 => Some((wrong("the object store sent less than was asked for"), None)),
            None => None,
        }
    }))
}

impl SeedStorage for ObjectStorage {
    fn put(&self, digest: Digest, length: u64, bytes: ByteStream) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(self.write(digest, length, bytes))
    }

    fn get(&self, digest: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, StorageError>> {
        Box::pin(self.read(digest, range))
    }

    fn stat(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, StorageError>> {
        Box::pin(self.length(digest))
    }

    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async move { self.operator.delete(&path(&digest)).await.map_err(|error| self.failed(&error)) })
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<(Digest, u64)>, StorageError>> {
        Box::pin(async move {
            let limit = limit.min(MAX_LISTED);
            let mut listed = Vec::new();
            for directory in self.directories(after).await? {
                let blobs = self.list_directory(&directory).await?.into_iter();
                listed.extend(blobs.filter(|(digest, _)| after.is_none_or(|after| *digest > after)));
                if listed.len() >= limit {
                    break;
                }
            }
            listed.truncate(limit);
            Ok(listed)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_digests_and_nothing_else() {
        let digest = Digest::of(b"x");
        let path = path(&digest);
        assert_eq!(digest_of(&path), Some(digest));
        assert!(path.starts_with(&directory(&digest)) && directory(&digest).len() == 10);
        for other in ["sha256/", "sha256/00/", "x", "sha256/00/../x", &path[1..], &path.replace("sha256/", "sha256/0")]
        {
            assert_eq!(digest_of(other), None, "{other}");
        }
    }

    #[test]
    fn no_blob_has_too_many_parts() {
        for length in [0, 1, 80 << 30, 1_u64 << 40] {
            assert!(length.div_ceil(part_length(length) as u64) <= MAX_STORAGE_PARTS, "{length}");
        }
        assert_eq!(part_length(1 << 30), STORAGE_PART);
    }
}
