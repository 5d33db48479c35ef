//! The contract with whoever published a blob: a registry, a web server, an object store.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_core::future::BoxFuture;

use crate::digest::Digest;

/// Body of a ranged fetch. Ends after exactly the bytes asked for, or with an error.
pub type ByteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// One blob at its place of publication, with whatever credentials that needs.
///
/// Contract:
/// * `fetch(range)` yields exactly the bytes of that range, in order, or an error. An answer of another length, a `200`
///   to a range that is not the whole blob, or a wrong `Content-Range` is an error, never bytes.
/// * It does not retry what the error tells apart (the swarm decides that), but renews an expired token once by itself.
/// * Dropping the future or the stream ends the transfer.
/// * Bytes are not verified here.
pub trait Origin: Send + Sync + 'static {
    /// Opens a transfer of `range` (bytes of the blob; not empty; within its length).
    fn fetch(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>>;

    /// Where the blob is, for people: registry, repository and digest, or a URL without its query. No secrets.
    fn describe(&self) -> String;

    /// The server behind it, the same on every node: streams and pauses are counted for all blobs of one site. Unless
    /// overridden, what stands before the first slash of [`Self::describe`], scheme aside.
    fn site(&self) -> String {
        site_of(&self.describe())
    }

    /// Tells the origins of one blob apart: equal for the same place with the same rights. No secret can be read from it.
    fn key(&self) -> Digest {
        Digest::of(self.describe().as_bytes())
    }

    /// What another machine needs to fetch the blob from the same place by its own right; none where it could not, or must
    /// not.
    fn locator(&self) -> Option<Locator> {
        None
    }
}

/// The place of a blob as keys into lists that every machine keeps for itself: never an address to dial, never a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Locator {
    /// The publisher, by the name that it is listed under.
    pub namespace: String,
    /// The part of it that holds the blob.
    pub repository: String,
}

/// The host (and port) with which a description begins.
fn site_of(description: &str) -> String {
    let rest = description.split_once("://").map_or(description, |(_, rest)| rest);
    let host = rest.split(['/', ' ', '?', '#']).next().unwrap_or_default();
    host.chars().take(crate::limits::MAX_SITE_BYTES).collect::<String>().to_ascii_lowercase()
}

/// Why an origin gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// 404 or 410: the origin does not have it.
    #[error("{origin} does not have this blob (HTTP {status})")]
    NotFound {
        /// Where it was looked for.
        origin: String,
        /// The HTTP status.
        status: u16,
    },
    /// 401 or 403, after a token was fetched anew.
    #[error("{origin} refused the credentials (HTTP {status}); check the registry's entry in the configuration")]
    Unauthorized {
        /// Who refused.
        origin: String,
        /// The HTTP status.
        status: u16,
    },
    /// 429 or 503 with `Retry-After`.
    #[error("{origin} asks for a pause of {retry_after:?}")]
    Busy {
        /// Who asked.
        origin: String,
        /// How long to leave it alone.
        retry_after: Duration,
    },
    /// The origin has something else there now: this version is not to be had from it any more.
    #[error("{origin} has changed: the version that was asked for is gone; ask again for the new one")]
    Changed {
        /// Which URL.
        origin: String,
    },
    /// The origin ignores `Range`: only a transfer of the whole blob is possible.
    #[error("{origin} does not serve ranges")]
    NoRanges {
        /// Who.
        origin: String,
    },
    /// Anything that may pass: connection refused, time-out, 5xx, a body cut short.
    #[error("{origin} did not deliver: {reason}")]
    Unavailable {
        /// Who.
        origin: String,
        /// What happened.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_the_host_of_whatever_describes_it() {
        for (description, site) in [
            ("reg.example:5000/library/x@sha256:00", "reg.example:5000"),
            ("https://Files.example/a/b", "files.example"),
            ("http://10.0.0.1:80", "10.0.0.1:80"),
            ("", ""),
        ] {
            assert_eq!(site_of(description), site);
        }
    }
}
