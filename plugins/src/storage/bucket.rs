//! The objects of an S3 bucket by key, as links that are good for a while: what has a link can be fetched as any URL.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use opendal::{EntryMode, Operator};

use super::InvalidStorage;
use super::objects::operator;

/// A bucket of an S3-compatible store.
#[derive(Debug, Clone)]
pub struct Bucket {
    operator: Operator,
    name: String,
}

/// A bucket did not answer as asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("bucket {bucket}: {reason}")]
pub struct BucketError {
    bucket: String,
    reason: String,
}

impl Bucket {
    /// Opens the bucket. `options` are opendal's for the service `s3` (`endpoint`, `region`, ...); credentials that are not among
    /// them come from the environment, as other S3 clients take them. Nothing is asked yet.
    pub fn open(bucket: &str, mut options: BTreeMap<String, String>) -> Result<Self, InvalidStorage> {
        options.insert("bucket".to_owned(), bucket.to_owned());
        Ok(Self { operator: operator("s3", options)?, name: bucket.to_owned() })
    }

    fn failed(&self, error: &opendal::Error) -> BucketError {
        // The full text may quote requests, and with them signatures.
        BucketError { bucket: self.name.clone(), reason: format!("{}: {}", error.kind(), error.message()) }
    }

    /// The keys below a prefix that ends in a slash, or all for an empty one; an error if there are more than `most`.
    pub async fn keys(&self, prefix: &str, most: usize) -> Result<Vec<String>, BucketError> {
        let path = if prefix.is_empty() { "/" } else { prefix };
        let mut lister = self.operator.lister_with(path).recursive(true).await.map_err(|error| self.failed(&error))?;
        let mut keys = Vec::new();
        while let Some(entry) = lister.next().await {
            let entry = entry.map_err(|error| self.failed(&error))?;
            if entry.metadata().mode() != EntryMode::FILE {
                continue;
            }
            if keys.len() == most {
                let reason = format!("more than {most} objects below {prefix:?}; name a longer prefix");
                return Err(BucketError { bucket: self.name.clone(), reason });
            }
            keys.push(entry.path().to_owned());
        }
        keys.sort_unstable();
        Ok(keys)
    }

    /// A URL by which anybody may read the object until `valid` is over.
    pub async fn link(&self, key: &str, valid: Duration) -> Result<String, BucketError> {
        let signed = self.operator.presign_read(key, valid).await.map_err(|error| self.failed(&error))?;
        Ok(signed.uri().to_string())
    }
}
