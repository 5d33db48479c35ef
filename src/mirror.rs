//! The registry mirror: the pull side of the OCI distribution API on a local port, for containerd and dockerd.
//!
//! * [`request`], [`range`], [`answer`]: what is asked for, which bytes of it, and the form of a refusal
//! * [`manifest`]: manifests, tags and referrers, passed through; what they teach goes to the [`ImageObserver`]
//! * [`named`]: digests that it must not deny
//! * [`blob`]: blobs, authorized by their registry and streamed out of the swarm
//! * [`stale`]: what is answered while a registry is away, where the operator allows that
//! * [`url`]: plain URLs, for clients other than runtimes
//! * [`sources`]: where the bytes of a transfer come from, for clients that show it
//!
//! The client is a container runtime that has another host to go to. So the rule everywhere: answer before
//! [`MirrorSettings::first_byte`], with the right bytes or an error; never 429 (containerd would ask us again), never
//! 404 for what the registry has, never 200 to a range, and once bytes flow, cut the connection rather than err
//! (`hosts.toml` and `fetcher.go` of containerd 2.1). What registries answer is logged, since containerd hides it.
//!
//! Whoever reaches this port may use it: it belongs on loopback. Nothing here survives a restart, and nothing needs to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::body::HttpBody as _;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method};
use axum::response::Response;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::{Blob, Node};
use lapwing_plugins::http::Urls;
use lapwing_plugins::registry::{Reference, Registries, RegistryName, RepositoryName};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::catalog::Image;
use crate::limits::{HEAD_TIMEOUT, MAX_MIRROR_CONNECTIONS};
use crate::listening::{self, Bounds};
use crate::outage::Outage;

mod answer;
mod blob;
mod manifest;
mod metrics;
mod named;
mod range;
mod request;
pub(crate) mod sources;
mod stale;
#[cfg(test)]
mod tests;
mod traced;
mod url;

pub(crate) use metrics::MirrorMetrics;

use answer::Refusal;
use request::{Asked, Thing};
use traced::Traced;

/// How long running transfers may go on after the shutdown began.
const LAST_TRANSFERS: Duration = Duration::from_secs(2);

/// What an operator may set.
#[derive(Debug, Clone)]
pub(crate) struct MirrorSettings {
    /// The registry meant by requests without `ns`, as dockerd sends them.
    pub default_registry: RegistryName,
    /// How long until the first byte of an answer, after which the runtime is sent to its next host.
    pub first_byte: Duration,
}

/// Whoever wants to know what passes.
pub(crate) trait ImageObserver: Send + Sync + 'static {
    /// A client was given the manifest of an image, and its config is here too, so that
    /// [`Catalog::learn`](crate::catalog::Catalog::learn) can take it up. Runs on a thread that may block for a moment;
    /// the client is given the config only when this is done, or after a short while.
    fn image_seen(&self, image: &Image);

    /// The registry was asked for a manifest, from `began` until now.
    fn manifest_resolved(&self, _: &RegistryName, _: &RepositoryName, _: &Reference, _began: std::time::Instant) {}

    /// A client was given the manifest of an image; its config is not known yet.
    fn pull_begun(&self, _: &Image) {}

    /// A client that may have it has begun to pull a blob, or a range of it: a layer mostly. Called for each request.
    fn blob_opened(&self, registry: &RegistryName, repo: &RepositoryName, blob: &Arc<Blob>);
}

/// See the module's documentation.
pub(crate) struct Mirror {
    settings: MirrorSettings,
    registries: Arc<Registries>,
    urls: Arc<Urls>,
    node: Arc<Node>,
    observer: Arc<dyn ImageObserver>,
    metrics: MirrorMetrics,
    learning: manifest::Learning,
    named: named::Named,
    watched: Arc<sources::Watched>,
    /// None: a registry that is away is away.
    outage: Option<Arc<Outage>>,
}

impl Mirror {
    pub(crate) fn new(
        settings: MirrorSettings,
        registries: Arc<Registries>,
        urls: Arc<Urls>,
        node: Arc<Node>,
        observer: Arc<dyn ImageObserver>,
        metrics: MirrorMetrics,
        outage: Option<Arc<Outage>>,
    ) -> Arc<Self> {
        let learning = manifest::Learning::default();
        Arc::new(Self {
            settings,
            registries,
            urls,
            node,
            observer,
            metrics,
            learning,
            named: named::Named::default(),
            watched: Arc::default(),
            outage,
        })
    }
}

/// Serves until `shutdown`; transfers that then do not end soon are cut, and resumed by the client elsewhere.
pub(crate) async fn serve(
    listener: TcpListener,
    mirror: Arc<Mirror>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new().fallback(handle).with_state(mirror);
    let bounds =
        Bounds { connections: MAX_MIRROR_CONNECTIONS, head: HEAD_TIMEOUT, last: LAST_TRANSFERS, is_patient: false };
    listening::serve(listener, router, bounds, shutdown.cancelled_owned()).await;
    Ok(())
}

async fn handle(State(mirror): State<Arc<Mirror>>, request: Request) -> Response {
    let deadline = Instant::now() + mirror.settings.first_byte;
    if let Some(name) = request.uri().path().strip_prefix(sources::PREFIX) {
        let answer = mirror.watched.answer(name);
        mirror.metrics.count_answer("sources", answer.status());
        return answer;
    }
    if request.uri().path().starts_with(url::PREFIX) {
        // Its answers to HEAD carry the origin's own Content-Length.
        let (head, _) = request.into_parts();
        let answer = mirror.url(deadline, &head).await.unwrap_or_else(Refusal::into_response);
        mirror.metrics.count_answer("url", answer.status());
        return answer;
    }
    let (kind, answer) = match request::parse(&request, &mirror.settings.default_registry) {
        Err(refusal) => ("other", Err(refusal)),
        Ok(None) => ("ping", Ok(ping())),
        Ok(Some(asked)) => {
            let kind = asked.thing.kind();
            (kind, mirror.within(deadline, asked).await)
        }
    };
    let answer = answer.unwrap_or_else(Refusal::into_response);
    mirror.metrics.count_answer(kind, answer.status());
    strip_body(request.method(), answer)
}

impl Mirror {
    async fn within(self: &Arc<Self>, deadline: Instant, asked: Asked) -> Result<Response, Refusal> {
        let (shown, kind) = (asked.to_string(), asked.thing.kind());
        let mut traced = Traced::request(&asked);
        let answer = match &asked.thing {
            Thing::Blob(digest) => self.blob(&asked, *digest, deadline, &mut traced).await,
            _ => traced.span.around(self.before(deadline, &asked, self.pass_through(&asked))).await,
        };
        traced.answered(&answer);
        match &answer {
            Ok(response) => {
                tracing::info!(repo = %asked.repository, asked = %shown, kind, status = response.status().as_u16(), "mirror answers");
            }
            Err(refusal) => {
                tracing::info!(repo = %asked.repository, asked = %shown, kind, %refusal, "mirror sends the client on");
            }
        }
        answer
    }

    /// A blob that is asked for through the forward proxy; `None` where a runtime would be sent on to its next host.
    pub(crate) async fn blob_for_proxy(
        self: &Arc<Self>,
        registry: RegistryName,
        repository: RepositoryName,
        digest: Digest,
        request: &Parts,
    ) -> Option<Response> {
        let deadline = Instant::now() + self.settings.first_byte;
        let (head, headers) = (request.method == Method::HEAD, request.headers.clone());
        let asked = Asked { head, registry, repository, thing: Thing::Blob(digest), query: None, headers };
        let response = match self.within(deadline, asked).await {
            Err(refusal) if refusal.is_unavailable() => return None,
            answer => answer.unwrap_or_else(Refusal::into_response),
        };
        Some(strip_body(&request.method, response))
    }

    /// The same for a plain URL, given as `/<scheme>/<host>/<path>?<query>`.
    pub(crate) async fn url_for_proxy(self: &Arc<Self>, url: &str, request: &Parts) -> Option<Response> {
        let deadline = Instant::now() + self.settings.first_byte;
        let mut asked = request.clone();
        asked.uri = format!("{}{}", url::PREFIX.trim_end_matches('/'), url).parse().ok()?;
        match self.url(deadline, &asked).await {
            Err(refusal) if refusal.is_unavailable() => None,
            answer => Some(answer.unwrap_or_else(Refusal::into_response)),
        }
    }

    /// What `answering` gives before `deadline`, or the refusal that sends the client on.
    async fn before<T>(
        &self,
        deadline: Instant,
        asked: &(impl fmt::Display + ?Sized),
        answering: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        tokio::time::timeout_at(deadline, answering).await.unwrap_or_else(|_| Err(self.silent(asked)))
    }

    fn silent(&self, asked: &(impl fmt::Display + ?Sized)) -> Refusal {
        let waited = self.settings.first_byte;
        Refusal::unavailable(format!("{asked}: no answer from registry or peers within {waited:?}"))
    }
}

fn ping() -> Response {
    let mut response = Response::new(Body::from("{}"));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response.headers_mut().insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    response
}

/// An answer to HEAD has the headers of GET and no body.
fn strip_body(method: &Method, response: Response) -> Response {
    if method != Method::HEAD {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    Response::from_parts(parts, Body::empty())
}
