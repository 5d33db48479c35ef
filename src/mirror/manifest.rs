//! Manifests, tags and referrers: passed through, and manifests learnt from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::Priority;
use lapwing_p2p::trace::{self, Span, SpanKind};
use lapwing_plugins::limits::MAX_CONFIG_LENGTH;
use lapwing_plugins::registry::{Credential, ForwardMethod, ForwardRequest, Forwarded, Reference, Resource};
use tokio::sync::watch;

use super::Mirror;
use super::answer::Refusal;
use super::request::{Asked, Thing};
use crate::catalog::Image;
use crate::limits::MAX_LEARNING;

/// How long the reading of a config may take.
const CONFIG_DEADLINE: Duration = Duration::from_secs(20);
/// How long a client waits for the catalog before it is given a config.
const LEARNING_PATIENCE: Duration = Duration::from_secs(1);

impl Mirror {
    pub(super) async fn pass_through(self: &Arc<Self>, asked: &Asked) -> Result<Response, Refusal> {
        let resource = match &asked.thing {
            Thing::Manifest(reference) => Resource::Manifest(reference.clone()),
            Thing::Referrers(digest) => Resource::Referrers(*digest),
            Thing::Tags | Thing::Blob(_) => Resource::Tags,
        };
        let credential = self.registries.client_credential(&asked.registry, asked.authorization());
        let request = ForwardRequest {
            method: if asked.head { ForwardMethod::Head } else { ForwardMethod::Get },
            registry: asked.registry.clone(),
            repository: asked.repository.clone(),
            resource,
            query: asked.query.clone(),
            accept: asked.accept(),
            credential: credential.clone(),
        };
        let began = Instant::now();
        let mut asking = Span::step("registry.ask", SpanKind::Client, trace::current());
        let answered = self.ask_registry(&request).await;
        match &answered {
            Ok(answer) => asking.count("http.response.status_code", answer.status.as_u16().into()),
            Err(_) => asking.fail("no answer"),
        }
        drop(asking);
        let forwarded = match answered {
            Ok(forwarded) if !forwarded.status.is_server_error() => forwarded,
            failed => {
                if let Some(response) = self.stale_manifest(asked, &credential).await {
                    return Ok(response);
                }
                failed?
            }
        };
        if let Thing::Manifest(reference) = &asked.thing
            && forwarded.status == StatusCode::OK
        {
            check_digest(asked, reference, &forwarded)?;
            self.observer.manifest_resolved(&asked.registry, &asked.repository, reference, began);
            if let (Reference::Tag(_), Some(digest)) = (reference, stated_digest(&forwarded)) {
                self.named.note(&asked.registry, &asked.repository, digest);
            }
            self.note_for_outage(asked, reference, &forwarded, &credential);
            if !asked.head && self.registries.is_listed(&asked.registry) {
                self.learn(asked, &forwarded, credential);
            }
        }
        if let Thing::Manifest(Reference::Digest(digest)) = asked.thing
            && forwarded.status == StatusCode::NOT_FOUND
            && self.named.has(&asked.registry, &asked.repository, digest)
        {
            return Err(Refusal::unavailable(format!(
                "{asked}: the registry named it for a tag, and says now that it has it not"
            )));
        }
        relay(asked, forwarded)
    }

    /// Reads the config that a manifest names and tells the observer, beside the answer to the client.
    fn learn(self: &Arc<Self>, asked: &Asked, forwarded: &Forwarded, credential: Credential) {
        let image = match Image::parse(asked.registry.clone(), asked.repository.clone(), &forwarded.body) {
            Ok(image) if image.config_length <= MAX_CONFIG_LENGTH => image,
            Ok(image) => {
                tracing::info!(digest = %image.manifest, bytes = image.config_length, "config is too long to learn from");
                return;
            }
            Err(reason) => {
                tracing::debug!(asked = %asked, %reason, "nothing to learn from this manifest");
                return;
            }
        };
        self.observer.pull_begun(&image);
        let Some(done) = self.learning.begin(image.config) else {
            return;
        };
        let (this, context) = (Arc::clone(self), trace::current());
        tokio::spawn(async move {
            let (manifest, repo) = (image.manifest, image.repo.clone());
            let read = tokio::time::timeout(CONFIG_DEADLINE, this.read_config(&image, credential)).await;
            let learnt = match read.unwrap_or_else(|_| Err(format!("nothing came within {CONFIG_DEADLINE:?}"))) {
                Ok(config) => image.with_config(&config).map_err(|error| error.to_string()),
                Err(reason) => Err(reason),
            };
            match learnt {
                Ok(image) => {
                    let observer = this.observer.clone();
                    let learning = move || trace::within_blocking(context, || observer.image_seen(&image));
                    let seen = tokio::task::spawn_blocking(learning).await;
                    tracing::info!(digest = %manifest, %repo, learnt = seen.is_ok(), "image seen");
                }
                Err(reason) => {
                    tracing::info!(digest = %manifest, %repo, reason, "layers of this image are not learnt: it is pulled whole");
                }
            }
            drop(done);
        });
    }

    /// The config, out of the swarm like any blob: the client will ask for it next.
    async fn read_config(&self, image: &Image, credential: Credential) -> Result<bytes::Bytes, String> {
        let (digest, length) = (image.config, image.config_length);
        let origin = self.registries.origin(&image.registry, &image.repo, digest, length, credential);
        let origin = Arc::new(origin.map_err(|error| error.to_string())?);
        let blob = self.node.open(digest, length, Some(origin)).map_err(|error| error.to_string())?;
        blob.read(0..length, Priority::ReadAhead).await.map_err(|error| error.to_string())
    }
}

/// The digest that an answer carries in its header.
fn stated_digest(forwarded: &Forwarded) -> Option<Digest> {
    forwarded.headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// A manifest asked for by digest must be it; one asked for by tag must be what its header says.
fn check_digest(asked: &Asked, reference: &Reference, forwarded: &Forwarded) -> Result<(), Refusal> {
    let stated = forwarded.headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
    let stated = stated.map(|text| text.parse::<Digest>().map_err(|_| text));
    let expected = match (reference, &stated) {
        (Reference::Digest(digest), _) => Some(*digest),
        (Reference::Tag(_), Some(Ok(digest))) => Some(*digest),
        // Of another algorithm: for the client to check.
        (Reference::Tag(_), _) => None,
    };
    let actual = match &stated {
        _ if !asked.head => Some(Digest::of(&forwarded.body)),
        Some(Ok(digest)) => Some(*digest),
        _ => None,
    };
    match (expected, actual) {
        (Some(expected), Some(actual)) if expected != actual => {
            Err(Refusal::unavailable(format!("{asked}: the registry answers with {actual} instead of {expected}")))
        }
        _ => Ok(()),
    }
}

/// Relays what a runtime can make use of; of everything else it only learns that it shall go on.
fn relay(asked: &Asked, forwarded: Forwarded) -> Result<Response, Refusal> {
    let Forwarded { status, mut headers, body } = forwarded;
    if !(status.is_success() || matches!(status.as_u16(), 400 | 401 | 403 | 404 | 405 | 406 | 410)) {
        return Err(Refusal::unavailable(format!("{asked}: the registry answers HTTP {}", status.as_u16())));
    }
    if !asked.head {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// The configs that are being read.
#[derive(Default)]
pub(super) struct Learning {
    running: Arc<Mutex<HashMap<Digest, watch::Receiver<()>>>>,
}

/// One of them; dropped when it has been learnt or cannot be.
struct Lesson {
    config: Digest,
    running: Arc<Mutex<HashMap<Digest, watch::Receiver<()>>>>,
    _end: watch::Sender<()>,
}

impl Learning {
    /// `None` if this config is being read already, or too many are.
    fn begin(&self, config: Digest) -> Option<Lesson> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.len() >= MAX_LEARNING || running.contains_key(&config) {
            return None;
        }
        let (end, ended) = watch::channel(());
        running.insert(config, ended);
        Some(Lesson { config, running: self.running.clone(), _end: end })
    }

    /// Waits until the image of this config has been learnt, if it is being learnt: with the config in its hands, the
    /// runtime asks the snapshotter for chain ids.
    pub(super) async fn settled(&self, config: Digest) {
        let ended = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(&config).cloned();
        if let Some(mut ended) = ended {
            // The sender never sends: the wait ends when it is dropped.
            let _ = tokio::time::timeout(LEARNING_PATIENCE, ended.changed()).await;
        }
    }
}

impl Drop for Lesson {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.config);
    }
}
