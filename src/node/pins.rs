//! What `lapwing pin` and `lapwing unpin` ask of the node: `PUT` and `DELETE /api/v1/pins/<digest>`. Neither method can be
//! sent by a web page of another origin without asking first, and nobody here says yes.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use axum::{Json, Router};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::store::{ChunkStore, StoreError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a pin stands after the call.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PinState {
    /// The blob.
    pub digest: String,
    /// Whether it is kept.
    pub pinned: bool,
    /// Whether the call changed that.
    pub changed: bool,
    /// Whether the whole blob is here.
    pub complete: bool,
}

pub(crate) fn routes(store: Arc<ChunkStore>) -> Router {
    Router::new().route("/api/v1/pins/{digest}", put(pin).delete(unpin)).with_state(store)
}

async fn pin(State(store): State<Arc<ChunkStore>>, Path(digest): Path<String>) -> Response {
    change(store, digest, true).await
}

async fn unpin(State(store): State<Arc<ChunkStore>>, Path(digest): Path<String>) -> Response {
    change(store, digest, false).await
}

async fn change(store: Arc<ChunkStore>, text: String, pin: bool) -> Response {
    let Ok(digest) = text.parse::<Digest>() else {
        let reason = format!("{text:?} is not a digest; expected sha256: and 64 hexadecimal digits\n");
        return (StatusCode::BAD_REQUEST, reason).into_response();
    };
    let work = move || {
        let changed = if pin { store.pin(digest)? } else { store.unpin(digest)? };
        let complete = store.get(&digest).is_some_and(|blob| blob.is_verified());
        Ok(PinState { digest: digest.to_string(), pinned: pin, changed, complete })
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(state)) => {
            tracing::info!(%digest, pinned = state.pinned, "an operator changed a pin");
            Json(state).into_response()
        }
        Ok(Err(error)) => {
            let error: StoreError = error;
            (StatusCode::INSUFFICIENT_STORAGE, format!("{error}\n")).into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the node is stopping\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_p2p::store::StoreConfig;

    #[tokio::test]
    async fn a_pin_is_set_and_taken_back_over_http() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let store = ChunkStore::open(directory.path(), StoreConfig::default()).unwrap();
        let digest = Digest::of(b"blob");
        store.insert(&digest, b"blob").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(axum::serve(listener, routes(Arc::clone(&store))).into_future());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{address}/api/v1/pins/{digest}");
        let state: PinState = client.put(&url).send().await.unwrap().json().await.unwrap();
        assert!(state.pinned && state.changed && state.complete, "{state:?}");
        assert!(matches!(store.remove(&digest), Err(StoreError::Pinned(_))));
        let state: PinState = client.delete(&url).send().await.unwrap().json().await.unwrap();
        assert!(!state.pinned && state.changed, "{state:?}");
        assert!(store.remove(&digest).unwrap());
        let nonsense = client.put(format!("http://{address}/api/v1/pins/latest")).send().await.unwrap();
        assert_eq!(nonsense.status(), StatusCode::BAD_REQUEST);
        assert_eq!(client.post(&url).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
        server.abort();
    }
}
