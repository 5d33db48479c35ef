//! One blob of a registry as the swarm's origin.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::origin::{ByteStream, Locator, Origin, OriginError};
use reqwest::{Method, Response};

use super::client::{pause, transport_reason};
use super::credential::Credential;
use super::endpoint::{Ask, Endpoint, ExchangeError};
use super::name::RepositoryName;

/// One blob at its registry. Each fetch asks the registry anew: where it redirects to is never kept.
///
/// Transfers of one registry are limited in number (`max_parallel`); one above it waits for the end of another.
pub struct RegistryOrigin {
    endpoint: Arc<Endpoint>,
    repository: RepositoryName,
    digest: Digest,
    length: u64,
    credential: Credential,
    /// The client's header was refused: it has run out, and is not tried again.
    worn: AtomicBool,
}

impl RegistryOrigin {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        repository: RepositoryName,
        digest: Digest,
        length: u64,
        credential: Credential,
    ) -> Self {
        Self { endpoint, repository, digest, length, credential, worn: AtomicBool::new(false) }
    }

    async fn open(&self, range: Range<u64>) -> Result<ByteStream, OriginError> {
        if range.is_empty() || range.end > self.length {
            let reason = format!("bytes {}..{} are not within its {} bytes", range.start, range.end, self.length);
            return Err(self.unavailable(reason));
        }
        let turn = self.endpoint.transfers.clone().acquire_owned().await;
        let turn = turn.map_err(|error| self.unavailable(error.to_string()))?;
        let response = self.open_as_allowed(&range).await?;
        Ok(exactly(response, range.end - range.start, self.describe(), turn))
    }

    /// With the client's header while that is good. Its right was checked when the blob was opened, so that a transfer
    /// may go on with the node's own credentials when the header runs out in its middle.
    async fn open_as_allowed(&self, range: &Range<u64>) -> Result<Response, OriginError> {
        let is_header = matches!(self.credential, Credential::Header(_));
        if !is_header || !self.worn.load(Ordering::Relaxed) {
            let opened = self.open_with(range, &self.credential).await;
            if !is_header || !matches!(opened, Err(OriginError::Unauthorized { .. })) {
                return opened;
            }
            self.worn.store(true, Ordering::Relaxed);
        }
        self.open_with(range, &Credential::Configured).await
    }

    async fn open_with(&self, range: &Range<u64>, credential: &Credential) -> Result<Response, OriginError> {
        let mut headers = HeaderMap::new();
        let wanted = HeaderValue::try_from(format!("bytes={}-{}", range.start, range.end - 1));
        headers.insert(RANGE, wanted.map_err(|error| self.unavailable(error.to_string()))?);
        let ask = Ask {
            method: Method::GET,
            repository: &self.repository,
            resource: format!("blobs/{}", self.digest),
            query: None,
            headers,
            credential,
        };
        let answer = self.endpoint.exchange(&ask).await.map_err(|error| match error {
            ExchangeError::Paused(retry_after) => OriginError::Busy { origin: self.describe(), retry_after },
            error => self.unavailable(error.to_string()),
        })?;
        self.check(range, &answer.response, answer.redirected)?;
        Ok(answer.response)
    }

    fn unavailable(&self, reason: String) -> OriginError {
        OriginError::Unavailable { origin: self.describe(), reason }
    }

    /// Maps the status, and holds the headers of a good answer to what was asked for.
    fn check(&self, range: &Range<u64>, response: &Response, redirected: bool) -> Result<(), OriginError> {
        let (origin, status) = (self.describe(), response.status().as_u16());
        match status {
            200 | 206 => {}
            401 | 403 if !redirected => return Err(OriginError::Unauthorized { origin, status }),
            404 | 410 => return Err(OriginError::NotFound { origin, status }),
            _ => {
                return Err(match pause(status, response.headers(), std::time::SystemTime::now()) {
                    Some(retry_after) => OriginError::Busy { origin, retry_after },
                    None => self.unavailable(format!("HTTP {status}")),
                });
            }
        }
        let headers = response.headers();
        if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(self.unavailable("the body is encoded although identity was asked for".to_owned()));
        }
        if status == 200 && *range != (0..self.length) {
            return Err(OriginError::NoRanges { origin });
        }
        if status == 206
            && !content_range(headers)
                .is_some_and(|(sent, total)| sent == *range && total.is_none_or(|total| total == self.length))
        {
            let sent = headers.get(CONTENT_RANGE).map_or("none".to_owned(), |value| format!("{value:?}"));
            return Err(self.unavailable(format!(
                "bytes {}-{} of {} were asked for, Content-Range is {sent}",
                range.start,
                range.end - 1,
                self.length
            )));
        }
        let expected = range.end - range.start;
        match content_length(headers) {
            Some(length) if length != expected => {
                Err(self.unavailable(format!("Content-Length is {length}, expected {expected}")))
            }
            _ => Ok(()),
        }
    }
}

impl Origin for RegistryOrigin {
    fn fetch(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>> {
        Box::pin(async move {
            let opened = self.open(range.clone()).await;
            if let Err(error) = &opened {
                tracing::info!(digest = %self.digest, repo = %self.repository, %error, "origin gave nothing");
            }
            opened
        })
    }

    fn describe(&self) -> String {
        format!("{}/{}@{}", self.endpoint.name, self.repository, self.digest)
    }

    fn key(&self) -> Digest {
        let mut text = self.describe().into_bytes();
        text.extend(self.credential.key().as_bytes());
        Digest::of(&text)
    }

    fn locator(&self) -> Option<Locator> {
        let locator = || Locator { namespace: self.endpoint.name.to_string(), repository: self.repository.to_string() };
        self.endpoint.listed.then(locator)
    }
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `bytes first-last/total` (RFC 9110 section 14.4), as a half-open range and the total if it is known.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last).then_some((first..last.checked_add(1)?, total))
}

/// The body, ended by an error unless it has exactly `length` bytes. Bytes past them are not passed on. Holds `turn` as
/// long as it lives.
pub(crate) fn exactly(response: Response, length: u64, origin: String, turn: impl Send + 'static) -> ByteStream {
    let body = response.bytes_stream();
    let state = (body.boxed(), length, (origin, turn), false);
    Box::pin(futures_util::stream::unfold(state, |(mut body, left, held, ended)| async move {
        let origin = &held.0;
        if ended {
            return None;
        }
        let (item, left, ended) = match body.next().await {
            Some(Ok(chunk)) if chunk.len() as u64 <= left => {
                let left = left - chunk.len() as u64;
                (Some(Ok(chunk)), left, false)
            }
            Some(Ok(_)) => (Some(Err(io::Error::other(format!("{origin} sent more than it announced")))), left, true),
            Some(Err(error)) => {
                (Some(Err(io::Error::other(format!("{origin}: {}", transport_reason(error))))), left, true)
            }
            None if left > 0 => {
                let short = format!("{origin} ended the body {left} bytes short");
                (Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, short))), left, true)
            }
            None => (None, left, true),
        };
        item.map(|item| (item, (body, left, held, ended)))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(parse("bytes 0-9/100"), Some((0..10, Some(100))));
        assert_eq!(parse("bytes 5-5/*"), Some((5..6, None)));
        for bad in [
            "bytes */100",
            "bytes 9-0/100",
            "bytes 0-18446744073709551615/*",
            "octets 0-1/2",
            "bytes 0-9",
            "bytes a-b/c",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
