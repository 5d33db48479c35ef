//! One version of a URL's content as the swarm's origin.
//!
//! Every answer is held to the version's validator before a byte of it is taken: ranges are asked for with `If-Range`,
//! and what comes without the validator, or with another, is not used. So the pieces of one version never mix with
//! another's, whatever the server does to the URL meanwhile.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use futures_core::future::BoxFuture;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE,
};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::origin::{ByteStream, Origin, OriginError};
use reqwest::{Method, Response};

use super::cache::Validator;
use super::fetch::Fetcher;
use super::kept::Kept;
use super::target::Target;
use crate::registry::client::pause;
use crate::registry::origin::{content_length, content_range, exactly};

/// One version of one URL, asked for with the headers of the client that wanted it.
pub struct UrlOrigin {
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) target: Target,
    pub(crate) validator: Validator,
    pub(crate) length: u64,
    /// Where it is noted that the version is out of date.
    pub(crate) kept: Weak<Kept>,
}

/// What an answer to a request for a range of one version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The bytes asked for, of this version.
    Good,
    /// This version, whole, though a range was asked for; or ranges without word of which version they are of.
    NoRanges,
    /// The URL has other content now.
    Changed,
    /// Not what was asked for.
    Wrong(&'static str),
}

impl UrlOrigin {
    async fn open(&self, range: Range<u64>) -> Result<ByteStream, OriginError> {
        if range.is_empty() || range.end > self.length {
            let reason = format!("bytes {}..{} are not within its {} bytes", range.start, range.end, self.length);
            return Err(self.unavailable(reason));
        }
        let turn = self.fetcher.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|error| self.unavailable(error.to_string()))?;
        let headers = self.request(&range).map_err(|error| self.unavailable(error.to_string()))?;
        let sent = self.fetcher.send(&Method::GET, &self.target.url, &headers, &self.target.personal).await;
        let response = sent.map_err(|error| self.unavailable(error.to_string()))?;
        self.check(&range, &response)?;
        Ok(exactly(response, range.end - range.start, self.describe(), turn))
    }

    fn request(&self, range: &Range<u64>) -> Result<HeaderMap, http::header::InvalidHeaderValue> {
        let mut headers = self.target.neutral.clone();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if *range != (0..self.length) {
            headers.insert(RANGE, HeaderValue::try_from(format!("bytes={}-{}", range.start, range.end - 1))?);
            headers.insert(IF_RANGE, HeaderValue::try_from(self.validator.as_str())?);
        }
        Ok(headers)
    }

    fn check(&self, range: &Range<u64>, response: &Response) -> Result<(), OriginError> {
        let (origin, status) = (self.describe(), response.status().as_u16());
        match status {
            200 | 206 => {}
            401 | 403 => return Err(OriginError::Unauthorized { origin, status }),
            404 | 410 => return Err(self.changed()),
            // The range lies behind the end, or a condition fails: other content.
            412 | 416 => return Err(self.changed()),
            _ => {
                return Err(match pause(status, response.headers(), SystemTime::now()) {
                    Some(retry_after) => OriginError::Busy { origin, retry_after },
                    None => self.unavailable(format!("HTTP {status}")),
                });
            }
        }
        match judge(&self.validator, self.length, range, status, response.headers()) {
            Verdict::Good => Ok(()),
            Verdict::NoRanges => Err(OriginError::NoRanges { origin }),
            Verdict::Changed => Err(self.changed()),
            Verdict::Wrong(reason) => Err(self.unavailable(reason.to_owned())),
        }
    }

    fn changed(&self) -> OriginError {
        if let Some(kept) = self.kept.upgrade() {
            kept.outdated(&self.target.key(), &self.validator);
        }
        OriginError::Changed { origin: self.describe() }
    }

    fn unavailable(&self, reason: String) -> OriginError {
        OriginError::Unavailable { origin: self.describe(), reason }
    }
}

/// Holds a 200 or 206 to the version and the range that were asked for.
fn judge(validator: &Validator, length: u64, range: &Range<u64>, status: u16, headers: &HeaderMap) -> Verdict {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Verdict::Wrong("the body is encoded although identity was asked for");
    }
    let whole = *range == (0..length);
    if !validator.is_in(headers) {
        let silent = !headers.contains_key(ETAG) && !headers.contains_key(LAST_MODIFIED);
        // A 206 may leave out what the condition stated already (RFC 9110, 15.3.7), but from a server that takes no
        // notice of If-Range it could be of any version. The whole is sent with all headers.
        return if silent && status == 206 { Verdict::NoRanges } else { Verdict::Changed };
    }
    let sent = content_length(headers);
    match status {
        200 if sent.is_some_and(|sent| sent != length) => Verdict::Changed,
        200 if whole => Verdict::Good,
        200 => Verdict::NoRanges,
        _ => match content_range(headers) {
            Some((_, Some(total))) if total != length => Verdict::Changed,
            Some((got, _)) if got == *range && sent.is_none_or(|sent| sent == range.end - range.start) => Verdict::Good,
            _ if headers.contains_key(CONTENT_RANGE) => Verdict::Wrong("Content-Range is not what was asked for"),
            _ => Verdict::Wrong("206 without Content-Range"),
        },
    }
}

impl Origin for UrlOrigin {
    fn fetch(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>> {
        Box::pin(async move {
            let opened = self.open(range).await;
            if let Err(error) = &opened {
                tracing::info!(%error, "origin gave nothing");
            }
            opened
        })
    }

    fn describe(&self) -> String {
        self.target.describe()
    }

    fn key(&self) -> Digest {
        self.target.key()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_held_to_the_version() {
        let tag = Validator::ETag("\"v1\"".to_owned());
        let date = Validator::LastModified("Tue, 14 Nov 2023 22:13:20 GMT".to_owned());
        let (v1, v2) = (("etag", "\"v1\""), ("etag", "\"v2\""));
        let then = ("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT");
        let later = ("last-modified", "Tue, 14 Nov 2023 22:13:21 GMT");
        let part = ("content-range", "bytes 10-19/100");
        let wrong = |verdict| matches!(verdict, Verdict::Wrong(_));
        type Case<'a> = (&'a Validator, Range<u64>, u16, &'a [(&'static str, &'static str)], Option<Verdict>);
        let cases: &[Case<'_>] = &[
            (&tag, 10..20, 206, &[v1, part], Some(Verdict::Good)),
            (&tag, 10..20, 206, &[v1, part, later], Some(Verdict::Good)),
            (&tag, 10..20, 206, &[v1, ("content-range", "bytes 10-19/*")], Some(Verdict::Good)),
            (&tag, 10..20, 206, &[v2, part], Some(Verdict::Changed)),
            (&tag, 10..20, 206, &[("etag", "W/\"v1\""), part], Some(Verdict::Changed)),
            (&tag, 10..20, 206, &[then, part], Some(Verdict::Changed)),
            (&tag, 10..20, 206, &[part], Some(Verdict::NoRanges)),
            (&tag, 10..20, 206, &[v1, ("content-range", "bytes 10-19/101")], Some(Verdict::Changed)),
            (&tag, 10..20, 206, &[v1, ("content-range", "bytes 0-9/100")], None),
            (&tag, 10..20, 206, &[v1, part, ("content-length", "9")], None),
            (&tag, 10..20, 206, &[v1], None),
            (&tag, 10..20, 206, &[v1, part, ("content-encoding", "gzip")], None),
            (&tag, 10..20, 200, &[v1], Some(Verdict::NoRanges)),
            (&tag, 10..20, 200, &[v1, ("content-length", "100")], Some(Verdict::NoRanges)),
            (&tag, 10..20, 200, &[v1, ("content-length", "10")], Some(Verdict::Changed)),
            (&tag, 10..20, 200, &[v2, ("content-length", "100")], Some(Verdict::Changed)),
            (&tag, 10..20, 200, &[], Some(Verdict::Changed)),
            (&tag, 0..100, 200, &[v1], Some(Verdict::Good)),
            (&tag, 0..100, 200, &[v1, ("content-length", "99")], Some(Verdict::Changed)),
            (&tag, 0..100, 200, &[v2], Some(Verdict::Changed)),
            (&tag, 0..100, 200, &[], Some(Verdict::Changed)),
            (&date, 10..20, 206, &[then, part], Some(Verdict::Good)),
            (&date, 10..20, 206, &[later, part], Some(Verdict::Changed)),
            (&date, 10..20, 206, &[part], Some(Verdict::NoRanges)),
            (&date, 10..20, 206, &[then, v1, part], Some(Verdict::Changed)),
        ];
        for (validator, range, status, headers, expected) in cases {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            let verdict = judge(validator, 100, range, *status, &headers);
            match expected {
                Some(expected) => assert_eq!(verdict, *expected, "{status} {headers:?}"),
                None => assert!(wrong(verdict), "{status} {headers:?}: {verdict:?}"),
            }
        }
    }
}
