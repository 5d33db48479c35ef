//! The operator's listener: metrics, health, the state behind `lapwing ls`, and the speed limits behind `lapwing limits`.

mod asked;
pub(crate) mod reference;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use lapwing_p2p::node::Node;
use prometheus_client::registry::Registry;

use crate::config::LimitsTable;
use crate::limits::{HEAD_TIMEOUT, MAX_ADMIN_CONNECTIONS};
use crate::listening::{self, Bounds};

/// How long answers may take after the shutdown began.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What the listener shows; the daemon fills in the parts it has.
#[derive(Default)]
pub(crate) struct Admin {
    pub metrics: Registry,
    /// Set once everything that clients need is listening.
    pub ready: Arc<AtomicBool>,
    /// Answers `/api/v1/state`.
    pub state: Option<Box<dyn Fn() -> serde_json::Value + Send + Sync>>,
    /// Whose speed limits `/api/v1/limits` shows and sets.
    pub limited: Option<Arc<Node>>,
    /// What else the operator may ask for or set, below `/api/v1/`.
    pub api: Router,
}

impl Admin {
    /// Where a crate's metrics go: names get the prefix `lapwing_`.
    pub(crate) fn lapwing(&mut self) -> &mut Registry {
        self.metrics.sub_registry_with_prefix("lapwing")
    }
}

/// Binds the listener now, so that a taken port is an error at start; serves until `shutdown`.
pub(crate) async fn bind(
    address: SocketAddr,
    mut admin: Admin,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let api = std::mem::take(&mut admin.api);
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route(reference::PATH, get(|| async { Json(reference::document()) }))
        .route("/api/v1/state", get(state))
        .route("/api/v1/limits", get(limits).put(set_limits))
        .with_state(Arc::new(admin))
        .merge(api)
        .layer(axum::middleware::from_fn(asked::only_here));
    // A large image is hydrated for longer than any client of the mirror waits.
    let bounds =
        Bounds { connections: MAX_ADMIN_CONNECTIONS, head: HEAD_TIMEOUT, last: LAST_ANSWERS, is_patient: true };
    tokio::spawn(listening::serve(listener, router, bounds, shutdown));
    Ok(bound)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.metrics) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    if admin.ready.load(Ordering::Acquire) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
    }
}

async fn state(State(admin): State<Arc<Admin>>) -> Response {
    match &admin.state {
        Some(state) => Json(state()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn limits(State(admin): State<Arc<Admin>>) -> Response {
    match &admin.limited {
        Some(node) => Json(LimitsTable::from(node.limits())).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Sets all limits; those left out are taken away.
async fn set_limits(State(admin): State<Arc<Admin>>, Json(table): Json<LimitsTable>) -> Response {
    let Some(node) = &admin.limited else { return StatusCode::NOT_FOUND.into_response() };
    if let Some((key, reason)) = table.invalid() {
        return (StatusCode::UNPROCESSABLE_ENTITY, format!("{key}: {reason}\n")).into_response();
    }
    node.set_limits((&table).into());
    let limits = LimitsTable::from(node.limits());
    tracing::info!(limits = %serde_json::to_string(&limits).unwrap_or_default(), "speed limits changed");
    Json(limits).into_response()
}
