//! What a cache may do with a resource: decisions of RFC 9110 and RFC 9111, without I/O and without a clock.
//!
//! The cache is a shared one: several clients, several nodes. Where a rule leaves a choice, the careful side is taken:
//!
//! * No heuristic freshness: without `s-maxage`, `max-age` or `Expires` every use is revalidated (RFC 9111, 4.2.2).
//! * Only what has a strong validator is shared, since only that names bytes: a strong `ETag`, or a `Last-Modified` that
//!   lies at least [`STRONG_DATE_MARGIN`] before the answer's `Date` (RFC 9110, 8.8.2.2). A weak `ETag` says that the
//!   server does not promise equal bytes, and then neither does its `Last-Modified`.
//! * `Vary` on anything but `Accept-Encoding`, which is always `identity` here, and on what browsers say of the asking page, is not shared.
//! * An answer to a request that carries credentials is not shared unless it says `public` (RFC 9111, 3.5).
//! * What is stale is used without asking only where the operator allows it, and never against `must-revalidate`.

use std::time::{Duration, SystemTime};

use http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, DATE, ETAG, EXPIRES, HeaderMap, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, PRAGMA, VARY,
};
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_FRESHNESS, MAX_KEPT_HEADER, MAX_KEPT_HEADERS};

/// How much older than the answer a `Last-Modified` must be to tell versions apart: changes within the clock's second,
/// or by a server whose clocks disagree, would carry the same date.
pub const STRONG_DATE_MARGIN: Duration = Duration::from_secs(60);

/// Headers of an answer that are kept, and given to clients.
const KEPT: [HeaderName; 10] = [
    AGE,
    CACHE_CONTROL,
    DATE,
    ETAG,
    EXPIRES,
    LAST_MODIFIED,
    VARY,
    http::header::CONTENT_DISPOSITION,
    http::header::CONTENT_LANGUAGE,
    http::header::CONTENT_TYPE,
];

/// What tells one version of a resource from every other, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Validator {
    /// A strong entity tag, with its quotes.
    ETag(String),
    /// A date, as the server wrote it.
    LastModified(String),
}

impl Validator {
    /// The validator as the header's text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::ETag(text) | Self::LastModified(text) => text,
        }
    }

    /// The strong validator among the headers of an answer.
    pub fn of(headers: &HeaderMap, answered: SystemTime) -> Option<Self> {
        if let Some(tag) = headers.get(ETAG) {
            return tag.to_str().ok().filter(|tag| is_strong_tag(tag)).map(|tag| Self::ETag(tag.to_owned()));
        }
        let text = headers.get(LAST_MODIFIED)?.to_str().ok()?;
        let modified = httpdate::parse_http_date(text).ok()?;
        let date = date_of(headers).unwrap_or(answered);
        (modified + STRONG_DATE_MARGIN <= date).then(|| Self::LastModified(text.to_owned()))
    }

    /// Whether the headers of another answer carry this validator.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::ETag(tag) => headers.get(ETAG).is_some_and(|sent| sent == tag.as_str()),
            Self::LastModified(date) => {
                headers.get(ETAG).is_none() && headers.get(LAST_MODIFIED).is_some_and(|sent| sent == date.as_str())
            }
        }
    }
}

fn is_strong_tag(tag: &str) -> bool {
    tag.strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .is_some_and(|inner| inner.bytes().all(|byte| byte == 0x21 || (0x23..=0x7e).contains(&byte)))
}

/// The parts of `Cache-Control` that matter here (RFC 9111, 5.2). Unknown directives are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Directives {
    /// `no-store`
    pub no_store: bool,
    /// `no-cache`, also with field names: the whole is revalidated then.
    pub no_cache: bool,
    /// `private`, also with field names.
    pub private: bool,
    /// `public`
    pub public: bool,
    /// `must-revalidate` or `proxy-revalidate`
    pub must_revalidate: bool,
    /// `max-age`; zero where it cannot be read.
    pub max_age: Option<Duration>,
    /// `s-maxage`; zero where it cannot be read.
    pub s_maxage: Option<Duration>,
}

impl Directives {
    /// Reads all `Cache-Control` headers; of several ages the shortest counts.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut all = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            // What cannot be read may have been a prohibition.
            let Ok(text) = value.to_str() else {
                all.no_store = true;
                continue;
            };
            for directive in split_quoted(text) {
                all.take(directive);
            }
        }
        all
    }

    fn take(&mut self, directive: &str) {
        let (name, argument) = match directive.split_once('=') {
            Some((name, argument)) => (name.trim(), argument.trim().trim_matches('"')),
            None => (directive.trim(), ""),
        };
        let shortest = |known: Option<Duration>| {
            let seconds = seconds(argument);
            Some(known.map_or(seconds, |known| known.min(seconds)))
        };
        match name.to_ascii_lowercase().as_str() {
            "no-store" => self.no_store = true,
            "no-cache" => self.no_cache = true,
            "private" => self.private = true,
            "public" => self.public = true,
            "must-revalidate" | "proxy-revalidate" => self.must_revalidate = true,
            "max-age" => self.max_age = shortest(self.max_age),
            "s-maxage" => self.s_maxage = shortest(self.s_maxage),
            _ => {}
        }
    }
}

/// Splits at commas that stand outside quotes.
fn split_quoted(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |character| {
        quoted ^= character == '"';
        character == ',' && !quoted
    })
}

/// A number of seconds; zero where it is none, so that what cannot be read is stale (RFC 9111, 4.2.1).
fn seconds(text: &str) -> Duration {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = if digits { text.parse().unwrap_or(u64::MAX) } else { 0 };
    Duration::from_secs(seconds).min(MAX_FRESHNESS)
}

fn date_of(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

/// Why an answer is passed to the client that asked, and to nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Not a 200.
    #[error("its status is not 200")]
    Status,
    /// `Cache-Control: no-store`, of request or answer.
    #[error("no-store")]
    NoStore,
    /// `Cache-Control: private`.
    #[error("private")]
    Private,
    /// The request carried credentials and the answer does not say `public`.
    #[error("the client's credentials went along, and the answer is not public")]
    Credentials,
    /// `Vary` on something that clients choose.
    #[error("it varies with the request")]
    Varies,
    /// It is encoded although `identity` was asked for.
    #[error("it is encoded")]
    Encoded,
    /// Nothing tells its versions apart.
    #[error("it has no strong validator")]
    NoValidator,
    /// Its length is not known before the end.
    #[error("its length is unknown")]
    NoLength,
    /// Its headers are longer than what is kept.
    #[error("its headers are too long")]
    TooLong,
}

/// What an origin said of a resource, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Length of the content in bytes.
    pub length: u64,
    /// Names in lower case and values of what is kept.
    headers: Vec<(String, String)>,
    asked: SystemTime,
    answered: SystemTime,
}

/// What to do with a request, given what is known of its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is known: ask.
    Ask,
    /// Ask whether what is known still holds.
    Revalidate,
    /// Use what is known.
    Use,
}

/// What a conditional request brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revalidated {
    /// The same version, with newer metadata.
    Current(Metadata),
    /// Another version, or none that can be shared any more: ask anew, without conditions.
    Changed,
    /// The origin failed (5xx): what is stale may do, where that is allowed.
    Failed,
    /// Anything else is the answer: the resource is gone, or forbidden.
    Refused,
}

impl Metadata {
    /// Takes the metadata of a 200 to HEAD or GET, or of a 206 with the total length, or says why it is not shared.
    /// `personal`: the request carried headers that can stand for a person's rights.
    pub fn admit(
        request: &HeaderMap,
        personal: bool,
        headers: &HeaderMap,
        length: Option<u64>,
        (asked, answered): (SystemTime, SystemTime),
    ) -> Result<Self, Obstacle> {
        let directives = Directives::of(headers);
        if directives.no_store || Directives::of(request).no_store {
            return Err(Obstacle::NoStore);
        }
        if directives.private {
            return Err(Obstacle::Private);
        }
        if personal && !directives.public {
            return Err(Obstacle::Credentials);
        }
        if varies(headers) {
            return Err(Obstacle::Varies);
        }
        if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(Obstacle::Encoded);
        }
        let length = length.ok_or(Obstacle::NoLength)?;
        Validator::of(headers, answered).ok_or(Obstacle::NoValidator)?;
        let headers = kept(headers).ok_or(Obstacle::TooLong)?;
        Ok(Self { length, headers, asked, answered })
    }

    /// The headers for a client, without `Age`.
    pub fn headers(&self) -> HeaderMap {
        let mut map = self.all();
        map.remove(AGE);
        map
    }

    /// The strong validator. None only where a file was tampered with: [`Self::admit`] demands one.
    pub fn validator(&self) -> Option<Validator> {
        Validator::of(&self.all(), self.answered)
    }

    /// When the origin said so.
    pub fn answered(&self) -> SystemTime {
        self.answered
    }

    /// How old it is (RFC 9111, 4.2.3).
    pub fn age(&self, now: SystemTime) -> Duration {
        let since = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default();
        let headers = self.all();
        let apparent = date_of(&headers).map_or(Duration::ZERO, |date| since(date, self.answered));
        let told = headers.get(AGE).and_then(|age| age.to_str().ok()).map_or(Duration::ZERO, |age| {
            // An age that cannot be read is one that is too high.
            if age.trim().bytes().all(|byte| byte.is_ascii_digit()) { seconds(age.trim()) } else { MAX_FRESHNESS }
        });
        apparent.max(told + since(self.asked, self.answered)) + since(self.answered, now)
    }

    /// How long it is fresh, counted in its [`Self::age`] (RFC 9111, 4.2.1).
    pub fn lifetime(&self) -> Duration {
        let headers = self.all();
        let directives = Directives::of(&headers);
        if let Some(told) = directives.s_maxage.or(directives.max_age) {
            return told;
        }
        // Several Expires, or one that is no date, mean "expired".
        let mut all = headers.get_all(EXPIRES).iter();
        let (Some(expires), None) = (all.next(), all.next()) else { return Duration::ZERO };
        let expires = expires.to_str().ok().and_then(|text| httpdate::parse_http_date(text).ok());
        let date = date_of(&headers).unwrap_or(self.answered);
        expires.and_then(|at| at.duration_since(date).ok()).unwrap_or_default().min(MAX_FRESHNESS)
    }

    /// Whether it may be used without asking. A clock that was set back makes it stale.
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        now >= self.answered && self.age(now) < self.lifetime() && !Directives::of(&self.all()).no_cache
    }

    /// Whether the origin's failure to answer may be bridged with it, for at most `limit` after it became stale.
    pub fn may_be_stale(&self, now: SystemTime, limit: Duration) -> bool {
        let directives = Directives::of(&self.all());
        // s-maxage forbids it too (RFC 9111, 5.2.2.10).
        let forbidden = directives.must_revalidate || directives.no_cache || directives.s_maxage.is_some();
        !limit.is_zero() && !forbidden && now >= self.answered && self.age(now) <= self.lifetime() + limit
    }

    /// The conditions under which the origin says 304 when this still holds.
    pub fn conditions(&self) -> HeaderMap {
        let (all, mut conditions) = (self.all(), HeaderMap::new());
        if let Some(tag) = all.get(ETAG) {
            conditions.insert(IF_NONE_MATCH, tag.clone());
        }
        if let Some(date) = all.get(LAST_MODIFIED) {
            conditions.insert(IF_MODIFIED_SINCE, date.clone());
        }
        conditions
    }

    /// What the answer to a conditional request means for it. `length`: of the content, where a 200 tells it.
    pub fn revalidated(
        &self,
        status: u16,
        headers: &HeaderMap,
        length: Option<u64>,
        times: (SystemTime, SystemTime),
    ) -> Revalidated {
        match status {
            304 => self.refreshed(headers, times).map_or(Revalidated::Changed, Revalidated::Current),
            // A server that takes no notice of conditions.
            200 | 206 if length == Some(self.length) && self.validator().is_some_and(|own| own.is_in(headers)) => {
                self.refreshed(headers, times).map_or(Revalidated::Changed, Revalidated::Current)
            }
            200 | 206 | 412 => Revalidated::Changed,
            500..=599 | 429 => Revalidated::Failed,
            _ => Revalidated::Refused,
        }
    }

    /// The metadata with the headers of a 304 in the place of the old ones (RFC 9111, 3.2). None if they speak of another
    /// version, or forbid to keep it.
    fn refreshed(&self, newer: &HeaderMap, (asked, answered): (SystemTime, SystemTime)) -> Option<Self> {
        let own = self.validator()?;
        let mut headers = self.all();
        // They speak of the answer that they came with.
        headers.remove(AGE);
        headers.remove(DATE);
        for name in KEPT.iter().filter(|name| newer.contains_key(*name)) {
            headers.remove(name);
            for value in newer.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        let directives = Directives::of(&headers);
        if !own.is_in(&headers) || directives.no_store || directives.private || varies(&headers) {
            return None;
        }
        Validator::of(&headers, answered)?;
        Some(Self { length: self.length, headers: kept(&headers)?, asked, answered })
    }

    fn all(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                map.append(name, value);
            }
        }
        map
    }
}

/// What to do with a request for a resource of which this is known.
pub fn decide(known: Option<&Metadata>, request: &HeaderMap, now: SystemTime) -> Decision {
    let Some(known) = known else { return Decision::Ask };
    let wants = Directives::of(request);
    let pragma = request.get(PRAGMA).is_some_and(|value| value == "no-cache") && !request.contains_key(CACHE_CONTROL);
    let too_old = wants.max_age.is_some_and(|limit| limit.is_zero() || known.age(now) > limit);
    if wants.no_cache || pragma || too_old || !known.is_fresh(now) { Decision::Revalidate } else { Decision::Use }
}

/// Whether a client that asks under these conditions has the content already (RFC 9110, 13.1.2 and 13.1.3).
pub fn client_has(request: &HeaderMap, known: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let Some(own) = known.get(ETAG).and_then(|tag| tag.to_str().ok()) else { return false };
        let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        let all = request.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        return all.flat_map(split_quoted).any(|tag| tag.trim() == "*" || opaque(tag) == opaque(own));
    }
    let date = |headers: &HeaderMap, name| {
        headers.get(name).and_then(|value| value.to_str().ok()).and_then(|text| httpdate::parse_http_date(text).ok())
    };
    match (date(request, IF_MODIFIED_SINCE), date(known, LAST_MODIFIED)) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

/// Headers on which an answer may vary that is shared all the same: the encoding is always `identity` here, and what browsers say of the page
/// that asks decides about headers for browsers, which are not kept, while a strong validator names the bytes.
const VARIES_NOTHING: [&str; 4] =
    ["accept-encoding", "origin", "access-control-request-method", "access-control-request-headers"];

fn varies(headers: &HeaderMap) -> bool {
    headers.get_all(VARY).iter().any(|value| {
        let Ok(text) = value.to_str() else { return true };
        let harmless =
            |field: &str| field.is_empty() || VARIES_NOTHING.iter().any(|name| field.eq_ignore_ascii_case(name));
        !text.split(',').map(str::trim).all(harmless)
    })
}

/// The headers that are kept; none if they are too long.
fn kept(headers: &HeaderMap) -> Option<Vec<(String, String)>> {
    let mut kept = Vec::new();
    for name in &KEPT {
        for value in headers.get_all(name) {
            if value.len() > MAX_KEPT_HEADER || kept.len() == MAX_KEPT_HEADERS {
                return None;
            }
            // A value that is not text is dropped; an ETag or a Cache-Control of that kind has been refused before.
            if let Ok(value) = value.to_str() {
                kept.push((name.as_str().to_owned(), value.to_owned()));
            }
        }
    }
    Some(kept)
}

/// The length of the whole content that an answer to HEAD, to GET or to a range tells.
pub fn content_length_of(status: u16, headers: &HeaderMap) -> Option<u64> {
    match status {
        200 => headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok(),
        206 => headers.get(CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
