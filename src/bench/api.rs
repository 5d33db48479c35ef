//! `/api/v1/bench` of the admin listener: a run is begun (POST), looked at (GET) and stopped (DELETE). One at a time; the last one is remembered.
//!
//! A page of another origin cannot begin a run: it would have to ask before it sends JSON or DELETE, and nobody here says yes.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::Node;
use lapwing_plugins::registry::Registries;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::report::Report;
use super::run::Run;
use crate::preheat::limits::{MAX_NODES, MAX_PLATFORMS, MAX_REQUEST};
use crate::preheat::{ImageName, Refused};

/// Shortest and longest time that nodes have to hear of a run before it begins, in seconds.
pub(crate) const START_IN: std::ops::RangeInclusive<u64> = 1..=600;
/// Longest run, in seconds.
pub(crate) const MAX_SECONDS: u64 = 6 * 3600;

/// Begins a run.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRun {
    /// An image, as pods name it.
    pub image: String,
    /// Of an image for several platforms, these; none: that of the machine that is asked.
    #[serde(default)]
    pub platform: Vec<String>,
    /// So many nodes; none: all.
    #[serde(default)]
    pub nodes: Option<u32>,
    /// Whether nodes remove in the end what the run brought them.
    #[serde(default)]
    pub remove: bool,
    /// How long nodes have to hear of it.
    pub start_in_seconds: u64,
    /// How long after the beginning nodes are waited for.
    pub timeout_seconds: u64,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RunState {
    /// The registry is asked for the image.
    Resolving,
    /// Nodes hear of it.
    Waiting,
    Running,
    /// The last words of the nodes are gathered.
    Settling,
    Removing,
    Ended,
    Failed,
    Canceled,
}

impl RunState {
    pub(crate) const fn has_ended(self) -> bool {
        matches!(self, Self::Ended | Self::Failed | Self::Canceled)
    }
}

/// A run as it is told.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct RunView {
    /// Names it.
    pub id: String,
    /// The image.
    pub image: String,
    /// How far it is.
    pub state: RunState,
    /// Why it failed.
    pub error: String,
    /// How long until all begin.
    pub begins_in_ms: u64,
    /// Whether nodes remove in the end what it brought them.
    pub remove: bool,
    /// Nodes that it is for, as the tracker counts them.
    pub expected: u32,
    /// Whether nodes were not waited for any longer.
    pub timed_out: bool,
    /// The blobs of the image.
    pub blobs: Vec<RunBlob>,
    /// Nodes that have said something.
    pub nodes: Vec<RunNode>,
}

/// A blob of the image.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct RunBlob {
    /// Its digest.
    #[serde(with = "as_text")]
    #[schemars(with = "String")]
    pub digest: Digest,
    /// Its length.
    pub length_bytes: u64,
}

/// A node that has said something.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct RunNode {
    /// Its key.
    pub node: String,
    /// Where the tracker sees it.
    pub address: IpAddr,
    /// Its zone; empty when unknown.
    pub zone: String,
    /// One for each blob, in their order.
    pub reports: Vec<Option<Report>>,
}

mod as_text {
    use lapwing_p2p::digest::Digest;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The runs of one daemon.
pub(crate) struct Bench {
    node: Arc<Node>,
    registries: Arc<Registries>,
    last: Mutex<Option<Arc<Run>>>,
}

pub(crate) fn routes(node: &Arc<Node>, registries: &Arc<Registries>) -> Router {
    let bench = Bench { node: Arc::clone(node), registries: Arc::clone(registries), last: Mutex::default() };
    Router::new()
        .route("/api/v1/bench", get(show).post(begin).delete(stop))
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(Arc::new(bench))
}

impl Bench {
    fn last(&self) -> MutexGuard<'_, Option<Arc<Run>>> {
        // It is only ever replaced.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, new: NewRun) -> Result<RunView, (StatusCode, String)> {
        check(&new).map_err(|reason| (StatusCode::UNPROCESSABLE_ENTITY, reason))?;
        let image: ImageName = new.image.parse().map_err(|reason| (StatusCode::UNPROCESSABLE_ENTITY, reason))?;
        if !self.registries.is_listed(&image.registry) {
            return Err((StatusCode::FORBIDDEN, Refused::NotListed(image.registry).to_string()));
        }
        let mut last = self.last();
        if let Some(running) = last.as_ref().map(|run| run.view()).filter(|view| !view.state.has_ended()) {
            let reason = format!("{} is being measured; wait for its end", running.image);
            return Err((StatusCode::CONFLICT, reason));
        }
        let run = Arc::new(Run::new(Arc::clone(&self.node), Arc::clone(&self.registries), new));
        tokio::spawn(Arc::clone(&run).run());
        let view = run.view();
        *last = Some(run);
        Ok(view)
    }
}

fn check(new: &NewRun) -> Result<(), String> {
    if !START_IN.contains(&new.start_in_seconds) {
        return Err(format!("start_in_seconds: expected {} to {}", START_IN.start(), START_IN.end()));
    }
    if !(1..=MAX_SECONDS).contains(&new.timeout_seconds) {
        return Err(format!("timeout_seconds: expected 1 to {MAX_SECONDS}"));
    }
    if new.platform.len() > MAX_PLATFORMS {
        return Err(format!("platform: at most {MAX_PLATFORMS}"));
    }
    match new.nodes {
        Some(nodes) if !(1..=MAX_NODES).contains(&nodes) => Err(format!("nodes: expected 1 to {MAX_NODES}")),
        _ => Ok(()),
    }
}

async fn begin(State(bench): State<Arc<Bench>>, new: Result<Json<NewRun>, JsonRejection>) -> Response {
    let begun = match new {
        Ok(Json(new)) => bench.begin(new),
        Err(rejection) => Err((rejection.status(), rejection.body_text())),
    };
    match begun {
        Ok(view) => Json(view).into_response(),
        Err((status, reason)) => (status, format!("{reason}\n")).into_response(),
    }
}

async fn show(State(bench): State<Arc<Bench>>) -> Response {
    told(bench.last().clone())
}

async fn stop(State(bench): State<Arc<Bench>>) -> Response {
    let last = bench.last().clone();
    if let Some(run) = &last {
        run.stop.cancel();
    }
    told(last)
}

fn told(run: Option<Arc<Run>>) -> Response {
    match run {
        Some(run) => Json(run.view()).into_response(),
        None => (StatusCode::NOT_FOUND, "nothing was measured from here since the daemon started\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        let good = NewRun {
            image: "reg.example/app:1".to_owned(),
            platform: Vec::new(),
            nodes: Some(8),
            remove: false,
            start_in_seconds: 25,
            timeout_seconds: 3600,
        };
        assert_eq!(check(&good), Ok(()));
        let cases = [
            (NewRun { nodes: Some(0), ..good.clone() }, "nodes"),
            (NewRun { nodes: Some(MAX_NODES + 1), ..good.clone() }, "nodes"),
            (NewRun { start_in_seconds: 0, ..good.clone() }, "start_in_seconds"),
            (NewRun { start_in_seconds: 601, ..good.clone() }, "start_in_seconds"),
            (NewRun { timeout_seconds: 0, ..good.clone() }, "timeout_seconds"),
            (NewRun { timeout_seconds: MAX_SECONDS + 1, ..good.clone() }, "timeout_seconds"),
            (NewRun { platform: vec!["linux/amd64".to_owned(); MAX_PLATFORMS + 1], ..good }, "platform"),
        ];
        for (bad, hint) in cases {
            assert!(check(&bad).unwrap_err().contains(hint));
        }
    }
}
