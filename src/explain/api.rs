//! `GET /api/v1/pulls`: the last pulls, the newest first; `GET /api/v1/pulls/<image or digest>`: all that is known of one.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Pulls;
use super::view::{self, PullSummary};

pub(crate) fn routes(pulls: Arc<Pulls>) -> Router {
    Router::new().route("/api/v1/pulls", get(all)).route("/api/v1/pulls/{*name}", get(one)).with_state(pulls)
}

async fn all(State(pulls): State<Arc<Pulls>>) -> Json<Vec<PullSummary>> {
    Json(view::list(&pulls))
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct Wanted {
    /// Whether names that may mean several images are refused.
    #[serde(default)]
    single: bool,
}

async fn one(
    State(pulls): State<Arc<Pulls>>,
    Path(name): Path<String>,
    Query(Wanted { single }): Query<Wanted>,
) -> Response {
    let shown: String = name.chars().take(120).collect();
    let found = if single { view::find_single(&pulls, &name) } else { Ok(view::find(&pulls, &name)) };
    match found {
        Ok(Some(pull)) => Json(pull).into_response(),
        Err(names) => {
            let reason =
                format!("{shown:?} is not the whole name of an image; say which you mean: {}\n", names.join(", "));
            (StatusCode::CONFLICT, reason).into_response()
        }
        Ok(None) => {
            let reason = format!(
                "no pull of {shown:?} is remembered: it did not come through this node's mirror since the node started, or \
                 newer pulls took its place; `lapwing explain` without a name lists those that are\n"
            );
            (StatusCode::NOT_FOUND, reason).into_response()
        }
    }
}
