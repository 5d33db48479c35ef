//! Plain URLs: `GET /url/<http|https>/<host[:port]>/<path>?<query>`.
//!
//! For clients other than container runtimes, on the same port. What may be fetched is named by `http.allow`. Content that a shared
//! cache may keep and that has a strong validator comes out of the swarm, under a name made of URL, validator and length; everything
//! else is passed through from its origin, with the client's own headers, and kept nowhere. `Cache-Status` (RFC 9211) tells which
//! it was. When the URL changes while the bytes of a version flow, the answer is cut: it is never mended with bytes of another version.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::http::header::{ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LAST_MODIFIED};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use lapwing_p2p::node::{Priority, ReadError};
use lapwing_p2p::origin::OriginError;
use lapwing_plugins::http::cache::client_has;
use lapwing_plugins::http::{BadTarget, Opened, Passing, Target, UrlError, Version};
use tokio::time::Instant;

use super::Mirror;
use super::answer::Refusal;
use super::blob::FlowError;
use super::range::{Wanted, wanted};
use super::sources;
use super::traced::Traced;

/// What the path of such a request begins with.
pub(super) const PREFIX: &str = "/url/";
/// How often a request is begun anew because its URL changed before the first byte was given.
const ATTEMPTS: u32 = 3;
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

impl Mirror {
    pub(super) async fn url(self: &Arc<Self>, deadline: Instant, request: &Parts) -> Result<Response, Refusal> {
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(Refusal::method_not_allowed());
        }
        let rest = request.uri.path().strip_prefix(PREFIX).unwrap_or_default();
        let target = Target::parse(rest, request.uri.query(), &request.headers)?;
        let mut traced = Traced::url(&target, &request.headers);
        let answer = self.url_of(deadline, &target, &request.method, &request.headers, &mut traced).await;
        traced.answered(&answer);
        match &answer {
            Ok(response) => {
                let how = response.headers().get(CACHE_STATUS).and_then(|value| value.to_str().ok());
                tracing::info!(url = target.describe(), status = response.status().as_u16(), how, "URL answered");
            }
            Err(refusal) => tracing::info!(url = target.describe(), %refusal, "URL refused"),
        }
        answer
    }

    async fn url_of(
        self: &Arc<Self>,
        deadline: Instant,
        target: &Target,
        method: &Method,
        request: &HeaderMap,
        traced: &mut Traced,
    ) -> Result<Response, Refusal> {
        let (mut changed, shown) = (None, target.describe());
        for _ in 0..ATTEMPTS {
            let opening = async { Ok(self.urls.open(target, request).await?) };
            let version = match self.before(deadline, &shown, opening).await? {
                Opened::Shared(version) => version,
                Opened::Passed(passing) => {
                    return self.before(deadline, &shown, self.pass_url(target, method, request, passing)).await;
                }
            };
            match self.give(target, method, request, &version, traced).await {
                Err(FlowError::Read(error)) if is_changed(&error) => changed = Some(error),
                Err(error) => return Err(error.into()),
                Ok(response) => return Ok(response),
            }
        }
        let error = changed.map(|error| error.to_string()).unwrap_or_default();
        Err(Refusal::unavailable(format!("{shown}: it changes faster than it can be fetched: {error}")))
    }

    /// Answers with one version of the content.
    async fn give(
        &self,
        target: &Target,
        method: &Method,
        request: &HeaderMap,
        version: &Version,
        traced: &mut Traced,
    ) -> Result<Response, FlowError> {
        let (length, mut headers) = (version.metadata.length, version.metadata.headers());
        let age = version.metadata.age(SystemTime::now()).as_secs();
        headers.insert(AGE, HeaderValue::from(age));
        let status = if version.stale { "lapwing; hit; detail=stale" } else { "lapwing; hit" };
        headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
        if client_has(request, &headers) {
            return Ok(answer(StatusCode::NOT_MODIFIED, headers, Body::empty()));
        }
        let validator = headers.get(ETAG).or_else(|| headers.get(LAST_MODIFIED));
        let validator = validator.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (status, range) = match wanted(request, length, validator) {
            Wanted::Whole => (StatusCode::OK, 0..length),
            Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
            Wanted::Unsatisfiable => return Err(Refusal::range_not_satisfiable(length).into()),
        };
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
        if status == StatusCode::PARTIAL_CONTENT {
            let sent = format!("bytes {}-{}/{length}", range.start, range.end - 1);
            let sent = HeaderValue::try_from(sent).map_err(|error| Refusal::unavailable(error.to_string()))?;
            headers.insert(CONTENT_RANGE, sent);
        }
        let body = if method == Method::HEAD || range.is_empty() {
            Body::empty()
        } else {
            self.node.timelines().go_on(&version.name);
            let blob = self.node.open(version.name, length, Some(version.origin.clone())).map_err(Refusal::from)?;
            headers.extend(self.watched.begin(&blob).map(|came| (sources::CONTENT, came)));
            if range == (0..length) && !request.contains_key(sources::PACE) {
                blob.want_all(Priority::Bulk);
            }
            traced.follow(&blob);
            traced.status(status);
            self.flow(target.describe(), &blob, range, traced).await?
        };
        Ok(answer(status, headers, body))
    }

    async fn pass_url(
        &self,
        target: &Target,
        method: &Method,
        request: &HeaderMap,
        passing: Passing,
    ) -> Result<Response, Refusal> {
        let passed = self.urls.pass(target, method, request).await?;
        let mut headers = passed.headers;
        if let Ok(why) = HeaderValue::try_from(format!("lapwing; fwd=bypass; detail=\"{passing}\"")) {
            headers.insert(CACHE_STATUS, why);
        }
        let body = if method == Method::HEAD { Body::empty() } else { Body::from_stream(passed.body.bytes_stream()) };
        Ok(answer(passed.status, headers, body))
    }
}

fn is_changed(error: &ReadError) -> bool {
    matches!(error, ReadError::Origin { source: OriginError::Changed { .. }, .. })
}

fn answer(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

impl From<BadTarget> for Refusal {
    fn from(error: BadTarget) -> Self {
        let (status, code) = match &error {
            BadTarget::Malformed(_) => (StatusCode::BAD_REQUEST, "URL_INVALID"),
            BadTarget::NotAllowed(_) => (StatusCode::FORBIDDEN, "DENIED"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<UrlError> for Refusal {
    fn from(error: UrlError) -> Self {
        match error {
            UrlError::Target(error) => error.into(),
            UrlError::Unavailable { .. } => Self::unavailable(error.to_string()),
        }
    }
}
