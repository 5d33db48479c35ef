//! Where registries tell of pushes: `POST /webhooks/<distribution|harbor>/<registry>`, on a listener of its own, which other machines may
//! reach (`preheat.listen`).
//!
//! Only a registry that `preheat.webhooks` names is heard, by its own secret, before its body is read. What it tells begins or goes on with a job
//! ([`super::jobs::Jobs::pushed`]) for that registry and no other. Answers are short, so that the registry's queue goes on; whatever is not
//! answered with 200 it tells again.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lapwing_plugins::registry::{Registries, RegistryName};
use percent_encoding::percent_decode_str;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::events::{self, Dialect};
use super::limits::{MAX_NOTIFICATION, MAX_NOTIFICATIONS, NOTIFICATION_TIME};
use super::secret::Secret;
use super::{Preheat, To};
use crate::config;

const PREFIX: &str = "/webhooks/";

/// See the module's documentation.
pub(crate) struct Webhooks {
    preheat: Arc<Preheat>,
    secrets: HashMap<RegistryName, Secret>,
    to: To,
    lazy_index: bool,
    places: Arc<Semaphore>,
}

/// An answer, and what it is counted as.
struct Answer {
    status: StatusCode,
    outcome: &'static str,
    text: String,
}

impl Answer {
    fn new(status: StatusCode, outcome: &'static str, text: impl Into<String>) -> Self {
        Self { status, outcome, text: text.into() }
    }
}

/// Listens, if the configuration says so, and serves until `shutdown`.
pub(crate) async fn start(
    config: &config::Preheat,
    registries: &Registries,
    preheat: Arc<Preheat>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Some(listen) = config.listen() else { return Ok(()) };
    let mut secrets = HashMap::new();
    for (name, webhook) in &config.webhooks {
        let key = || format!("configuration key preheat.webhooks.{name:?}");
        let registry: RegistryName = name.parse().with_context(key)?;
        anyhow::ensure!(registries.is_listed(&registry), "{}: list it under registries.hosts as well", key());
        let secret = Secret::new(&webhook.secret_file).map_err(anyhow::Error::msg).with_context(key)?;
        secrets.insert(registry, secret);
    }
    let listener =
        TcpListener::bind(listen).await.with_context(|| crate::node::cannot_listen("preheat.listen", listen))?;
    let places = Arc::new(Semaphore::new(MAX_NOTIFICATIONS));
    let webhooks = Webhooks { preheat, secrets, to: config.to, lazy_index: config.lazy_index, places };
    tracing::info!(%listen, "registries may tell of pushes");
    tokio::spawn(serve(listener, Arc::new(webhooks), shutdown));
    Ok(())
}

async fn serve(listener: TcpListener, webhooks: Arc<Webhooks>, shutdown: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => webhooks.take(stream, from, &shutdown),
            Err(error) => {
                tracing::warn!(%error, "no notification can be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Webhooks {
    /// One connection, one notification.
    fn take(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, shutdown: &CancellationToken) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            // It comes again.
            self.preheat.metrics.notification("busy");
            return;
        };
        let (this, shutdown) = (Arc::clone(self), shutdown.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let this = Arc::clone(&this);
                async move { Ok::<_, Infallible>(this.respond(request, from).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(NOTIFICATION_TIME)
                .max_buf_size(64 << 10)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let bounded = tokio::time::timeout(3 * NOTIFICATION_TIME, connection);
            let _ = shutdown.run_until_cancelled(bounded).await;
            drop(place);
        });
    }

    async fn respond(&self, request: Request<Incoming>, from: SocketAddr) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let Answer { status, outcome, text } = self.answer(request).await;
        self.preheat.metrics.notification(outcome);
        if status != StatusCode::OK {
            let path: String = path.chars().take(200).collect();
            tracing::warn!(%from, %method, path, status = status.as_u16(), reason = text, "a notification is refused");
        }
        let mut response = Response::new(Body::from(format!("{text}\n")));
        *response.status_mut() = status;
        match status {
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            }
            _ => {}
        }
        response
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (dialect, registry) = match self.addressed(&request) {
            Ok(addressed) => addressed,
            Err(answer) => return answer,
        };
        if length(request.headers()).is_some_and(|length| length > MAX_NOTIFICATION as u64) {
            return too_long();
        }
        let body = axum::body::to_bytes(Body::new(request.into_body()), MAX_NOTIFICATION);
        let body = match tokio::time::timeout(NOTIFICATION_TIME, body).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => return too_long(),
            Err(_) => return Answer::new(StatusCode::REQUEST_TIMEOUT, "malformed", "the notification does not come"),
        };
        let pushed = match events::read(dialect, &registry, &body) {
            Ok(pushed) => pushed,
            Err(reason) => return Answer::new(StatusCode::BAD_REQUEST, "malformed", reason),
        };
        for pushed in pushed {
            if let Err(full) = self.preheat.pushed(pushed, self.to, self.lazy_index) {
                return Answer::new(StatusCode::SERVICE_UNAVAILABLE, "busy", full.to_string());
            }
        }
        Answer::new(StatusCode::OK, "accepted", "accepted")
    }

    /// Who says something, and how; an answer to whoever must not.
    fn addressed(&self, request: &Request<Incoming>) -> Result<(Dialect, RegistryName), Answer> {
        let unknown = |reason: &str| Answer::new(StatusCode::NOT_FOUND, "unknown", reason);
        let form = || unknown("the form is /webhooks/<distribution|harbor>/<registry>");
        let rest = request.uri().path().strip_prefix(PREFIX).ok_or_else(form)?;
        let (dialect, registry) = rest.split_once('/').ok_or_else(form)?;
        let dialect = match dialect {
            "distribution" => Dialect::Distribution,
            "harbor" => Dialect::Harbor,
            _ => return Err(form()),
        };
        let registry = percent_decode_str(registry).decode_utf8().map_err(|_| form())?;
        let registry: RegistryName = registry.parse().map_err(|_| form())?;
        let secret = self.secrets.get(&registry);
        let secret = secret.ok_or_else(|| unknown("preheat.webhooks does not name this registry"))?;
        match secret.is_shown_by(request.headers().get(AUTHORIZATION)) {
            Ok(true) => {}
            Ok(false) => {
                let text = "the Authorization header is not the secret of preheat.webhooks";
                return Err(Answer::new(StatusCode::UNAUTHORIZED, "unauthorized", text));
            }
            Err(error) => {
                tracing::error!(%registry, error, "the secret of a webhook cannot be read");
                let text = "the secret cannot be read";
                return Err(Answer::new(StatusCode::SERVICE_UNAVAILABLE, "busy", text));
            }
        }
        if request.method() != Method::POST {
            return Err(Answer::new(StatusCode::METHOD_NOT_ALLOWED, "malformed", "notifications are POSTed"));
        }
        Ok((dialect, registry))
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_long() -> Answer {
    let text = format!("a notification has at most {MAX_NOTIFICATION} bytes");
    Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "malformed", text)
}
