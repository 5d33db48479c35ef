//! The forward proxy: HTTP requests in absolute-form, and CONNECT.
//!
//! * [`target`], [`rules`]: what is asked for, and what is done with it
//! * [`upstream`]: whom requests are passed on to, and who may be dialled
//! * [`tunnel`]: CONNECT, blind or ended here; [`certificates`]: what it is ended with
//! * [`checked`]: blobs that are passed on after all
//! * [`idle`], [`refusal`], [`metrics`]: connections that end, answers that are none, what is counted
//!
//! Only blobs of registries whose blobs are shared, and URLs that `http.allow` names, come out of the swarm, by the mirror's own code: with the
//! client's own `Authorization`, and after the registry said yes. Where the mirror would send a runtime on to its next host, the request is
//! passed on. Everything else is passed on as it is. `Proxy-Authorization` and other headers for the next hop are not.
//!
//! CONNECT is a blind tunnel. Where the operator gave a CA and a rule names the host, TLS is ended here instead, by a certificate of that CA,
//! and requests inside are treated like all others.
//!
//! Whoever reaches this port may use it: it belongs on loopback. Nothing here survives a restart, and nothing needs to.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{HOST, HeaderMap};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lapwing_plugins::http::Allowed;
use lapwing_plugins::registry::Registries;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, ProxyAction};
use crate::idle::Idle;
use crate::limits::{HEAD_TIMEOUT, MAX_HEAD_BYTES, MAX_HEADERS};
use crate::listening::FULL;
use crate::mirror::Mirror;

mod certificates;
mod checked;
mod metrics;
mod refusal;
pub(crate) mod rules;
mod target;
mod tunnel;
mod upstream;

pub(crate) use metrics::ProxyMetrics;

use certificates::Certificates;
use refusal::Refusal;
use rules::Rules;
use target::Target;
use upstream::Upstream;

/// How long running transfers may go on after the shutdown began.
const LAST_TRANSFERS: Duration = Duration::from_secs(2);
/// See the module's documentation.
pub(crate) struct Proxy {
    rules: Rules,
    allowed: Allowed,
    connect_ports: Vec<u16>,
    idle: Duration,
    mirror: Arc<Mirror>,
    upstream: Upstream,
    certificates: Option<Certificates>,
    metrics: ProxyMetrics,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Proxy {
    pub(crate) fn new(
        config: &Config,
        registries: Arc<Registries>,
        mirror: Arc<Mirror>,
        metrics: ProxyMetrics,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let own = &config.proxy;
        let intercepts = !own.ca_file.as_os_str().is_empty();
        Ok(Arc::new(Self {
            rules: Rules::new(own)
                .map_err(|(key, reason)| anyhow::anyhow!("configuration key proxy.{key}: {reason}"))?,
            allowed: Allowed::parse(&config.http.allow)?,
            connect_ports: own.connect_ports.clone(),
            idle: own.idle.0,
            mirror,
            upstream: Upstream::new(config, registries)?,
            certificates: intercepts.then(|| Certificates::load(&own.ca_file, &own.ca_key_file)).transpose()?,
            metrics,
            connections: Arc::new(Semaphore::new(own.max_connections)),
            tasks: TaskTracker::new(),
            shutdown,
        }))
    }
}

/// Serves until the shutdown; what then does not end soon is cut.
pub(crate) async fn serve(listener: TcpListener, proxy: Arc<Proxy>) -> anyhow::Result<()> {
    loop {
        let accepted = tokio::select! {
            () = proxy.shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => proxy.clone().take(stream).await,
            Err(error) => {
                // Descriptors have run out, or a client was gone at once: others may come.
                tracing::warn!(%error, "the proxy cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    proxy.tasks.close();
    let _ = tokio::time::timeout(LAST_TRANSFERS, proxy.tasks.wait()).await;
    Ok(())
}

/// One client, for as long as it, or a tunnel of its, is there.
#[derive(Clone)]
struct Session {
    proxy: Arc<Proxy>,
    /// The server whose TLS is ended here for this client.
    ended: Option<Target>,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Proxy {
    async fn take(self: Arc<Self>, mut stream: TcpStream) {
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            self.metrics.count("refused", StatusCode::SERVICE_UNAVAILABLE);
            // A fresh socket's buffer has room for this.
            let _ = stream.write_all(FULL).await;
            return;
        };
        let _ = stream.set_nodelay(true);
        let session = Session { proxy: self.clone(), ended: None, _permit: Arc::new(permit) };
        let idle = Idle::new(stream, self.idle);
        self.tasks.spawn(session.serve(idle));
    }
}

impl Session {
    /// Answers the requests of one connection. Boxed: a tunnel that is ended here holds another one.
    fn serve<S>(self, stream: S) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Box::pin(async move {
            let shutdown = self.proxy.shutdown.clone();
            let service = service_fn(move |request| {
                let session = self.clone();
                async move { Ok::<_, std::convert::Infallible>(session.answer(request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD_BYTES)
                .max_headers(MAX_HEADERS)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(LAST_TRANSFERS, connection).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a client of the proxy is gone");
            }
        })
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let shown = format!("{} {}", request.method(), self.shown(&request));
        let (way, answer) = if request.method() == Method::CONNECT && self.ended.is_none() {
            self.connect(request).await
        } else {
            self.fetch(request).await
        };
        let way = if answer.is_err() { "refused" } else { way };
        let response = answer.unwrap_or_else(|refusal| {
            tracing::info!(asked = shown, %refusal, "proxy refuses");
            refusal.into_response()
        });
        tracing::debug!(asked = shown, way, status = response.status().as_u16(), "proxy answers");
        self.proxy.metrics.count(way, response.status());
        response
    }

    /// Without the query, which may be a signature.
    fn shown(&self, request: &Request<Incoming>) -> String {
        let uri = request.uri();
        match &self.ended {
            Some(server) => format!("https://{}{}", server.authority_text(), uri.path()),
            None => format!("{}{}", uri.authority().map_or("", |authority| authority.as_str()), uri.path()),
        }
    }

    async fn fetch(&self, request: Request<Incoming>) -> (&'static str, Result<Response<Body>, Refusal>) {
        let proxy = &self.proxy;
        let (head, body) = request.into_parts();
        let target = match self.target(&head) {
            Ok(target) => target,
            Err(refusal) => return ("refused", Err(refusal)),
        };
        let action = proxy.rules.action(&target);
        if action == ProxyAction::Refuse {
            let reason = format!("{} is refused by proxy.rules", target.authority_text());
            return ("refused", Err(Refusal::new(StatusCode::FORBIDDEN, reason)));
        }
        if action == ProxyAction::Swarm
            && let Some(response) = proxy.out_of_swarm(&target, &head).await
        {
            return ("swarm", Ok(response));
        }
        let passed = proxy.upstream.pass(&target, &head, Body::new(body), &proxy.rules).await;
        let whole = action == ProxyAction::Swarm && head.method == Method::GET;
        ("direct", passed.map(|response| if whole { checked_blob(&target, response) } else { response }))
    }

    fn target(&self, head: &Parts) -> Result<Target, Refusal> {
        let target = match &self.ended {
            None => Target::absolute(&head.uri).map_err(Refusal::bad)?,
            Some(server) => {
                if !names(&head.headers, server) {
                    let reason = format!("this connection is to {}", server.authority_text());
                    return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, reason));
                }
                server.with_path(&head.uri).map_err(Refusal::bad)?
            }
        };
        if head.method == Method::CONNECT {
            return Err(Refusal::bad("a tunnel within a tunnel"));
        }
        if self.proxy.upstream.came_round(&head.headers) {
            return Err(Refusal::new(StatusCode::LOOP_DETECTED, "this request has passed here before"));
        }
        Ok(target)
    }
}

/// A blob that the swarm did not give is the registry's own, and still must be what it is called.
fn checked_blob(target: &Target, response: Response<Body>) -> Response<Body> {
    match target.blob() {
        Some((_, digest)) if response.status() == StatusCode::OK => {
            response.map(|body| Body::from_stream(checked::checked(body.into_data_stream(), digest)))
        }
        _ => response,
    }
}

/// Whether `Host` is the server that the client asked for.
fn names(headers: &HeaderMap, server: &Target) -> bool {
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .and_then(|host| host.parse::<http::uri::Authority>().ok());
    host.is_some_and(|host| {
        let name = host.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        name.eq_ignore_ascii_case(&server.host) && host.port_u16().unwrap_or(443) == server.port
    })
}

impl Proxy {
    /// The answer out of the swarm; `None` where there is none and the request is to be passed on.
    async fn out_of_swarm(&self, target: &Target, head: &Parts) -> Option<Response<Body>> {
        if head.method != Method::GET && head.method != Method::HEAD {
            return None;
        }
        if let Some((repository, digest)) = target.blob() {
            let registry = self.upstream.registry(target)?;
            return self.mirror.blob_for_proxy(registry, repository, digest, head).await;
        }
        if target.path.starts_with("/v2/") || !self.allowed.allows(&target.to_string()) {
            return None;
        }
        let scheme = if target.tls { "https" } else { "http" };
        let path = format!("/{scheme}/{}{}", target.authority_text(), target.path);
        self.mirror.url_for_proxy(&path, head).await
    }
}
