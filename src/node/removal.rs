//! What `lapwing rm` and `lapwing gc` ask of the node: `DELETE /api/v1/blobs/<digest>`, `GET` and `PUT /api/v1/gc`. Like those of pins, none of
//! the methods that change something can be sent by a web page of another origin without asking first.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::Node;
use lapwing_p2p::store::StoreError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One blob, and what its removal frees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Removed {
    /// The blob.
    pub digest: String,
    /// Whether it was here.
    pub removed: bool,
    /// What that frees.
    pub bytes: u64,
}

/// What is removed at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Collected {
    /// Whether it was done, and not only looked at.
    pub done: bool,
    /// Each that goes.
    pub blobs: Vec<Removed>,
    /// What all of them free.
    pub bytes: u64,
    /// Blobs that stay because an operator pinned them.
    pub pinned: usize,
    /// Blobs that stay because something uses them: mounts, downloads, readers.
    pub in_use: usize,
    /// Why blobs stay that nobody uses: one sentence for each.
    #[serde(default)]
    pub failed: Vec<String>,
}

pub(crate) fn routes(node: Arc<Node>) -> Router {
    Router::new()
        .route("/api/v1/blobs/{digest}", delete(remove))
        .route("/api/v1/gc", get(look).put(collect))
        .with_state(node)
}

async fn remove(State(node): State<Arc<Node>>, Path(text): Path<String>) -> Response {
    let Ok(digest) = text.parse::<Digest>() else {
        let shown: String = text.chars().take(80).collect();
        let reason = format!("{shown:?} is not a digest; expected sha256: and 64 hexadecimal digits\n");
        return (StatusCode::BAD_REQUEST, reason).into_response();
    };
    let work = move || {
        let held = node.blobs().into_iter().find(|blob| blob.digest == digest);
        let removed = node.remove(&digest)?;
        let is_foreign = held.as_ref().is_some_and(|blob| blob.foreign);
        Ok((removed, held.map_or(0, |blob| blob.have), is_foreign))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok((false, _, true))) => {
            let reason = format!("{digest} lies in containerd's content store, and goes with the image there\n");
            (StatusCode::CONFLICT, reason).into_response()
        }
        Ok(Ok((removed, bytes, _))) => {
            if removed {
                tracing::info!(%digest, bytes, "an operator removed a blob");
            }
            Json(Removed { digest: digest.to_string(), removed, bytes: if removed { bytes } else { 0 } })
                .into_response()
        }
        Ok(Err(error)) => (StatusCode::CONFLICT, format!("{}\n", refusal(&error))).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the node is stopping\n").into_response(),
    }
}

fn refusal(error: &StoreError) -> String {
    match error {
        StoreError::Pinned(digest) => format!("{digest} is pinned: `lapwing unpin {digest}` first"),
        StoreError::InUse(digest) => format!(
            "{digest} is in use by a mount, a download, a reader or another node: remove the image and its containers in \
             containerd, or wait a minute"
        ),
        other => other.to_string(),
    }
}

async fn look(State(node): State<Arc<Node>>) -> Response {
    answer(node, false).await
}

async fn collect(State(node): State<Arc<Node>>) -> Response {
    answer(node, true).await
}

async fn answer(node: Arc<Node>, done: bool) -> Response {
    match tokio::task::spawn_blocking(move || collected(&node, done)).await {
        Ok(collected) => {
            if done {
                let (blobs, bytes) = (collected.blobs.len(), collected.bytes);
                tracing::info!(blobs, bytes, "an operator had the chunk store emptied of what nobody uses");
            }
            Json(collected).into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the node is stopping\n").into_response(),
    }
}

fn collected(node: &Arc<Node>, done: bool) -> Collected {
    let removed = |digest: Digest, bytes| Removed { digest: digest.to_string(), removed: done, bytes };
    let (mut blobs, mut failed) = (Vec::new(), Vec::new());
    if done {
        for (digest, bytes, outcome) in node.remove_unused() {
            match outcome {
                Ok(true) => blobs.push(removed(digest, bytes)),
                // Somebody has removed it, or begun to use it, meanwhile.
                Ok(false) | Err(StoreError::Pinned(_) | StoreError::InUse(_)) => {}
                Err(error) => {
                    tracing::warn!(%digest, %error, "a blob that nobody uses could not be removed");
                    failed.push(format!("{digest} could not be removed: {error}"));
                }
            }
        }
    } else {
        blobs.extend(node.removable().into_iter().map(|(digest, bytes)| removed(digest, bytes)));
    }
    let gone: std::collections::HashSet<_> = blobs.iter().map(|blob| blob.digest.as_str()).collect();
    let stays =
        |blob: &lapwing_p2p::node::BlobStatus| !blob.foreign && !gone.contains(blob.digest.to_string().as_str());
    let left: Vec<_> = node.blobs().into_iter().filter(stays).collect();
    let pinned = left.iter().filter(|blob| blob.pinned).count();
    let in_use = (left.len() - pinned).saturating_sub(failed.len());
    let bytes = blobs.iter().map(|blob| blob.bytes).sum();
    Collected { done, blobs, bytes, pinned, in_use, failed }
}
