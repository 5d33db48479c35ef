//! Blobs: may this client have it, then out of the swarm.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::{Blob, Priority, ReadError};
use lapwing_p2p::origin::Origin;
use lapwing_p2p::timeline::{Span, Timeline, Track};
use lapwing_p2p::trace::{Span as Step, SpanKind};
use lapwing_plugins::registry::RegistryOrigin;
use tokio::time::Instant;

use super::Mirror;
use super::answer::Refusal;
use super::metrics::MirrorMetrics;
use super::range::{Wanted, wanted};
use super::request::Asked;
use super::sources;
use super::traced::Traced;

/// How many times [`MirrorSettings::first_byte`](super::MirrorSettings::first_byte) a client waits at most for the first
/// byte of a blob, while others come.
const PATIENCE: u32 = 30;

impl Mirror {
    /// The right to a blob is asked of its registry first, whatever of it is here: an answer then says no more than
    /// the registry's own would.
    pub(super) async fn blob(
        self: &Arc<Self>,
        asked: &Asked,
        digest: Digest,
        deadline: Instant,
        traced: &mut Traced,
    ) -> Result<Response, Refusal> {
        let credential = self.registries.client_credential(&asked.registry, asked.authorization());
        let began = std::time::Instant::now();
        let mut asking = Step::step("registry.authorize", SpanKind::Client, traced.span.context());
        let granted = self.before(deadline, asked, self.grant(asked, digest, &credential)).await;
        if granted.is_err() {
            asking.fail("not granted");
        }
        drop(asking);
        let grant = granted?;
        let granted = std::time::Instant::now();
        let length = grant.length;
        let etag = format!("\"{digest}\"");
        let (status, range) = match wanted(&asked.headers, length, &etag) {
            Wanted::Whole => (StatusCode::OK, 0..length),
            Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
            Wanted::Unsatisfiable => return Err(Refusal::range_not_satisfiable(length)),
        };
        let mut came = None;
        let body = if asked.head || range.is_empty() {
            Body::empty()
        } else {
            let origin = self
                .registries
                .origin(&asked.registry, &asked.repository, digest, length, credential)
                .map_err(|error| Refusal::unavailable(error.to_string()))?;
            if grant.listed {
                let opening = self.before(deadline, asked, self.shared(asked, digest, length, Arc::new(origin)));
                let blob = traced.span.around(opening).await?;
                traced.follow(&blob);
                blob.timeline().add(Track::Authorize, began, granted);
                came = self.watched.begin(&blob);
                if range == (0..length) && !asked.headers.contains_key(sources::PACE) {
                    blob.want_all(Priority::Bulk);
                }
                traced.status(status);
                self.flow(asked.to_string(), &blob, range.clone(), traced).await?
            } else {
                self.before(deadline, asked, straight(asked, range.clone(), &origin)).await?
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
        let text = |text: String| HeaderValue::try_from(text).map_err(|error| Refusal::unavailable(error.to_string()));
        headers.insert("docker-content-digest", text(digest.to_string())?);
        headers.insert(ETAG, text(etag)?);
        headers.extend(came.map(|came| (sources::CONTENT, came)));
        if status == StatusCode::PARTIAL_CONTENT {
            headers.insert(CONTENT_RANGE, text(format!("bytes {}-{}/{length}", range.start, range.end - 1))?);
        }
        Ok(response)
    }

    /// A blob that every node may share with clients to whom its registry says yes.
    async fn shared(
        &self,
        asked: &Asked,
        digest: Digest,
        length: u64,
        origin: Arc<dyn Origin>,
    ) -> Result<Arc<Blob>, Refusal> {
        self.node.timelines().go_on(&digest);
        let blob = self.node.open(digest, length, Some(origin))?;
        self.observer.blob_opened(&asked.registry, &asked.repository, &blob);
        self.learning.settled(digest).await;
        Ok(blob)
    }

    /// The body, whose first bytes are here already: until they are, the answer can still be an error.
    /// The trace goes on until the body ends.
    pub(super) async fn flow(
        &self,
        shown: String,
        blob: &Arc<Blob>,
        range: Range<u64>,
        traced: &mut Traced,
    ) -> Result<Body, FlowError> {
        let mut stream = Box::pin(blob.stream(range.clone(), Priority::Bulk));
        let first = match self.first_bytes(&shown, blob, &mut stream).await? {
            Some(first) => first?,
            None => return Err(Refusal::unavailable(format!("{shown}: the swarm gave no bytes")).into()),
        };
        let (left, metrics, watched) = (range.end - range.start, self.metrics.clone(), Arc::clone(&self.watched));
        let timeline = blob.timeline();
        let taking = timeline.span(Track::Transfer);
        let traced = std::mem::take(traced);
        let transfer =
            Transfer { shown, blob: blob.clone(), left, range, metrics, watched, timeline, _taking: taking, traced };
        let whole = futures_util::stream::once(async { Ok(first) }).chain(stream);
        Ok(Body::from_stream(transfer.watch(whole)))
    }

    /// Waits for the first bytes while other bytes of the blob come, or of blobs that were asked for before it: many nodes
    /// that start together get its rarest pieces first, and to send one of them on to the registry would cost a copy.
    async fn first_bytes(
        &self,
        shown: &str,
        blob: &Arc<Blob>,
        stream: &mut (impl Stream<Item = Result<Bytes, ReadError>> + Unpin),
    ) -> Result<Option<Result<Bytes, ReadError>>, Refusal> {
        let arrived = || {
            let sources = blob.sources();
            sources.bytes_from_peers + sources.bytes_from_origin
        };
        for _ in 0..PATIENCE {
            let before = arrived();
            match tokio::time::timeout(self.settings.first_byte, stream.next()).await {
                Ok(first) => return Ok(first),
                Err(_) if arrived() > before || blob.may_come_later(self.settings.first_byte) => {}
                Err(_) => break,
            }
        }
        Err(self.silent(shown))
    }
}

/// Why no body began to flow.
#[derive(Debug)]
pub(super) enum FlowError {
    /// The first bytes could not be had.
    Read(ReadError),
    /// Any other reason.
    Refused(Refusal),
}

impl From<ReadError> for FlowError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<Refusal> for FlowError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<FlowError> for Refusal {
    fn from(error: FlowError) -> Self {
        match error {
            FlowError::Read(error) => error.into(),
            FlowError::Refused(refusal) => refusal,
        }
    }
}

/// The bytes as an unlisted registry gives them, past the swarm: any client can name a registry of its own that claims
/// every digest there is, and neither may it be given what others pulled, nor may its bytes come among theirs.
async fn straight(asked: &Asked, range: Range<u64>, origin: &RegistryOrigin) -> Result<Body, Refusal> {
    tracing::info!(asked = %asked, registry = %asked.registry, "passed through: not listed under registries.hosts, so not shared");
    let stream = origin.fetch(range).await.map_err(|error| Refusal::unavailable(error.to_string()))?;
    Ok(Body::from_stream(stream))
}

/// Takes down how long the client leaves what it was given without asking for more.
fn timed<T>(
    stream: impl Stream<Item = T> + Send + 'static,
    timeline: Arc<Timeline>,
) -> impl Stream<Item = T> + Send + 'static {
    let (mut stream, mut given) = (Box::pin(stream), None::<std::time::Instant>);
    futures_util::stream::poll_fn(move |context| {
        if let Some(given) = given.take() {
            timeline.add(Track::Client, given, std::time::Instant::now());
        }
        let polled = stream.as_mut().poll_next(context);
        given = matches!(&polled, std::task::Poll::Ready(Some(_))).then(std::time::Instant::now);
        polled
    })
}

/// Says in the log how a transfer ended, and counts its bytes.
struct Transfer {
    shown: String,
    blob: Arc<Blob>,
    range: Range<u64>,
    left: u64,
    metrics: MirrorMetrics,
    watched: Arc<sources::Watched>,
    timeline: Arc<Timeline>,
    _taking: Span,
    traced: Traced,
}

impl Transfer {
    /// Passes the stream on; an error ends it, which cuts the connection.
    fn watch(
        mut self,
        stream: impl Stream<Item = Result<Bytes, ReadError>> + Send + 'static,
    ) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + 'static {
        let timeline = Arc::clone(&self.timeline);
        let watched = stream.map(move |item| {
            match &item {
                Ok(bytes) => {
                    self.left = self.left.saturating_sub(bytes.len() as u64);
                    self.metrics.count_bytes(bytes.len() as u64);
                    self.timeline.bytes(Track::Transfer, bytes.len() as u64);
                }
                Err(error) => {
                    tracing::warn!(digest = %self.blob.digest(), asked = %self.shown, %error, "transfer is cut; the client resumes elsewhere");
                    self.metrics.count_cut();
                }
            }
            item
        });
        timed(watched, timeline)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.watched.end(&self.blob);
        self.traced.ended(self.range.end - self.range.start - self.left, self.left);
        let sources = self.blob.sources();
        tracing::info!(
            digest = %self.blob.digest(),
            asked = %self.shown,
            bytes = self.range.end - self.range.start - self.left,
            missing_bytes = self.left,
            bytes_from_peers = sources.bytes_from_peers,
            bytes_from_origin = sources.bytes_from_origin,
            "blob transfer ended"
        );
    }
}
