//! HTTP as Piccolo's agents speak it, with a bound on everything they send.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tonic::Code;

use super::message::{Advertisement, BadQuestion, Done, Holders, NotFound, Question, Sign};
use super::{Piccolo, PiccoloError};
use crate::limits::{CALL_TIMEOUT, MAX_PICCOLO_BODIES, MAX_PICCOLO_BODY_BYTES, MAX_PICCOLO_KEY_BYTES, TICK};

#[derive(Clone)]
struct Shell {
    piccolo: Piccolo,
    /// Bodies that are read and taken in at the same time.
    bodies: Arc<Semaphore>,
}

/// A call that failed: what the agent is told, and what is counted.
struct Failure {
    status: StatusCode,
    code: Code,
    message: String,
}

impl Failure {
    fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }
}

impl From<PiccoloError> for Failure {
    fn from(error: PiccoloError) -> Self {
        // An agent asks again for a minute after a 5xx, and gives up at once after a 4xx.
        match &error {
            PiccoloError::Refused(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, error.to_string())
            }
            _ => Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, error.to_string()),
        }
    }
}

/// Answers agents. Requests carry the address that they come from, as a [`ConnectInfo`]; whoever listens bounds connections and heads.
pub fn router(piccolo: Piccolo) -> Router {
    let shell = Shell { piccolo, bodies: Arc::new(Semaphore::new(MAX_PICCOLO_BODIES)) };
    Router::new()
        .route("/api/v1/keepalive", post(keepalive))
        .route("/api/v1/distribution/advertise", post(advertise))
        .route("/api/v1/distribution/sync", post(sync))
        .route("/api/v1/distribution/findkey", get(find_key))
        .layer(DefaultBodyLimit::disable())
        .with_state(shell)
}

/// Speaks for agents to the registry, and forgets silent ones, as long as it is polled.
pub async fn keep_time(piccolo: Piccolo) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        piccolo.tick();
    }
}

type Remote = ConnectInfo<SocketAddr>;

async fn keepalive(State(shell): State<Shell>, ConnectInfo(remote): Remote, request: Request) -> Response {
    let act = |remote, sign: Sign| shell.piccolo.keepalive(remote, &sign);
    shell.change("piccolo_keepalive", remote, request, act, "keep alive success").await
}

async fn advertise(State(shell): State<Shell>, ConnectInfo(remote): Remote, request: Request) -> Response {
    let act = |remote, keys: Advertisement| shell.piccolo.advertise(remote, &keys);
    shell.change("piccolo_advertise", remote, request, act, "Distribution created!").await
}

async fn sync(State(shell): State<Shell>, ConnectInfo(remote): Remote, request: Request) -> Response {
    let act = |remote, keys: Advertisement| shell.piccolo.sync(remote, &keys);
    shell.change("piccolo_sync", remote, request, act, "Distribution created!").await
}

async fn find_key(State(shell): State<Shell>, ConnectInfo(remote): Remote, request: Request) -> Response {
    let count = |code| shell.piccolo.tracker.metrics().count_call("piccolo_findkey", code);
    let outcome = match Query::<Question>::try_from_uri(request.uri()) {
        Ok(Query(question)) => answer(&shell.piccolo, remote.ip().to_canonical(), question),
        Err(error) => Err(Failure::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, error.body_text())),
    };
    match outcome {
        Ok(response) => {
            count(Code::Ok);
            response
        }
        Err(failure) => {
            count(failure.code);
            let error = format!("Wrong request format: {}", failure.message);
            (failure.status, Json(BadQuestion { error })).into_response()
        }
    }
}

fn answer(piccolo: &Piccolo, remote: IpAddr, question: Question) -> Result<Response, Failure> {
    if question.key.is_empty() || question.key.len() > MAX_PICCOLO_KEY_BYTES {
        let message = format!("a key has 1 to {MAX_PICCOLO_KEY_BYTES} bytes");
        return Err(Failure::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, message));
    }
    let found = piccolo.find_key(remote, &question)?;
    if found.is_empty() {
        let message = format!("Didn't find the key {} in piccolo", question.key);
        return Ok((StatusCode::NOT_FOUND, Json(NotFound { message })).into_response());
    }
    let holders = found.iter().map(ToString::to_string).collect();
    Ok(Json(Holders { key: question.key, group: question.group, holders, total: 0 }).into_response())
}

impl Shell {
    /// Carries out a call that changes something, and answers as Piccolo does.
    async fn change<T: DeserializeOwned>(
        &self,
        method: &'static str,
        remote: SocketAddr,
        request: Request,
        act: impl FnOnce(IpAddr, T) -> Result<(), PiccoloError>,
        done: &str,
    ) -> Response {
        let taken = tokio::time::timeout(CALL_TIMEOUT, self.take(remote.ip().to_canonical(), request, act)).await;
        let late = |_| {
            let text = format!("the request took more than {CALL_TIMEOUT:?}");
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, Code::DeadlineExceeded, text))
        };
        let outcome = taken.unwrap_or_else(late);
        let code = outcome.as_ref().map_or_else(|failure| failure.code, |()| Code::Ok);
        self.piccolo.tracker.metrics().count_call(method, code);
        match outcome {
            Ok(()) => {
                let done = Done { success: true, message: done.to_owned() };
                (StatusCode::CREATED, Json(done)).into_response()
            }
            Err(failure) => {
                tracing::debug!(agent = %remote, method, error = %failure.message, "an agent's call is refused");
                (failure.status, Json(Done { success: false, message: failure.message })).into_response()
            }
        }
    }

    async fn take<T: DeserializeOwned>(
        &self,
        remote: IpAddr,
        request: Request,
        act: impl FnOnce(IpAddr, T) -> Result<(), PiccoloError>,
    ) -> Result<(), Failure> {
        let closed = |_| Failure::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "the tracker is stopping");
        let _permit = self.bodies.acquire().await.map_err(closed)?;
        let too_long = |error: &dyn std::fmt::Display| {
            let text = format!("a body has at most {MAX_PICCOLO_BODY_BYTES} bytes: {error}");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, text)
        };
        let announced = request.body().size_hint().lower();
        if announced > MAX_PICCOLO_BODY_BYTES as u64 {
            return Err(too_long(&format_args!("{announced} are announced")));
        }
        let body = axum::body::to_bytes(request.into_body(), MAX_PICCOLO_BODY_BYTES).await;
        let body = body.map_err(|error| too_long(&error))?;
        let message = serde_json::from_slice(&body).map_err(|error| {
            let text = format!("Wrong request format: {error}");
            Failure::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, text)
        })?;
        Ok(act(remote, message)?)
    }
}
