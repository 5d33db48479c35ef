//! While a registry is away: manifests and blobs as it gave them before, where the operator allows it ([`Outage`]).
//!
//! Only what cannot be asked is answered so: a registry that says no is heard.

use axum::body::Body;
use axum::http::header::{AGE, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{Credential, Denied, ForwardError, ForwardRequest, Forwarded, Grant, Reference};

use super::Mirror;
use super::answer::Refusal;
use super::request::{Asked, Thing};
use crate::outage::{Given, Place, Stale};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

impl Mirror {
    /// The registry's answer. Where there is another, only half of the time is spent on waiting for it.
    pub(super) async fn ask_registry(&self, request: &ForwardRequest) -> Result<Forwarded, ForwardError> {
        let asking = self.registries.forward(request);
        if self.outage.is_none() {
            return asking.await;
        }
        let patience = self.settings.first_byte / 2;
        tokio::time::timeout(patience, asking).await.unwrap_or_else(|_| {
            Err(ForwardError::Unavailable {
                registry: request.registry.clone(),
                repository: request.repository.clone(),
                reason: format!("no answer within {patience:?}"),
            })
        })
    }

    /// Remembers what the registry just said of a manifest.
    pub(super) fn note_for_outage(
        &self,
        asked: &Asked,
        reference: &Reference,
        forwarded: &Forwarded,
        credential: &Credential,
    ) {
        let Some(outage) = &self.outage else { return };
        if !self.registries.is_listed(&asked.registry) {
            return;
        }
        let text = |name: &HeaderName| forwarded.headers.get(name).and_then(|value| value.to_str().ok());
        let digest = if asked.head {
            text(&CONTENT_DIGEST).and_then(|text| text.parse().ok())
        } else {
            Some(Digest::of(&forwarded.body))
        };
        let length = if asked.head {
            text(&CONTENT_LENGTH).and_then(|text| text.parse().ok())
        } else {
            Some(forwarded.body.len() as u64)
        };
        if let (Some(digest), Some(length)) = (digest, length) {
            let given = Given { digest, length, media_type: text(&CONTENT_TYPE).map(str::to_owned) };
            let place = Place::new(&asked.registry, &asked.repository, credential);
            outage.told(&place, reference, given, forwarded.body.clone());
        }
    }

    /// The manifest as its registry gave it before.
    pub(super) async fn stale_manifest(&self, asked: &Asked, credential: &Credential) -> Option<Response> {
        let (Some(outage), Thing::Manifest(reference)) = (&self.outage, &asked.thing) else { return None };
        if !self.registries.is_listed(&asked.registry) {
            return None;
        }
        let place = Place::new(&asked.registry, &asked.repository, credential);
        let stale = outage.manifest(&place, reference, !asked.head).await?;
        let response = answer(asked, stale)?;
        self.metrics.count_outage("manifest");
        Some(response)
    }

    /// The registry's word on a blob, or what it said before.
    pub(super) async fn grant(&self, asked: &Asked, digest: Digest, credential: &Credential) -> Result<Grant, Refusal> {
        let asking = self.registries.authorize(&asked.registry, &asked.repository, digest, credential);
        let Some(outage) = &self.outage else { return Ok(asking.await?) };
        let patience = self.settings.first_byte / 2;
        let answer = tokio::time::timeout(patience, asking).await;
        let denied = match answer {
            Ok(Err(denied @ Denied::Unavailable { .. })) => denied,
            Ok(answer) => return Ok(answer?),
            Err(_) => {
                Denied::Unavailable { origin: asked.to_string(), reason: format!("no answer within {patience:?}") }
            }
        };
        let place = Place::new(&asked.registry, &asked.repository, credential);
        let listed = self.registries.is_listed(&asked.registry);
        let length = outage.blob(&place, digest).filter(|_| listed).ok_or(denied)?;
        tracing::warn!(asked = %asked, "the registry is away: a blob is given to whom it was given before");
        self.metrics.count_outage("blob");
        Ok(Grant { length, listed })
    }
}

fn answer(asked: &Asked, stale: Stale) -> Option<Response> {
    let Stale { digest, length, media_type, age, body } = stale;
    if !accepts(asked, &media_type) {
        tracing::info!(asked = %asked, media_type, "the registry is away, and the client wants another type than it gave");
        return None;
    }
    tracing::warn!(asked = %asked, %digest, age_seconds = age.as_secs(), "the registry is away: its last word is given");
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::try_from(media_type).ok()?);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CONTENT_DIGEST, HeaderValue::try_from(digest.to_string()).ok()?);
    headers.insert(AGE, HeaderValue::from(age.as_secs()));
    headers.insert(CACHE_STATUS, HeaderValue::from_static("lapwing; hit; detail=outage"));
    Some(response)
}

/// Whether a client takes this type (RFC 9110 section 12.5.1; weights are not looked at).
fn accepts(asked: &Asked, media_type: &str) -> bool {
    let accepted = asked.accept();
    let mut ranges = accepted.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let is_it = |range: &str| {
        let range = range.split(';').next().unwrap_or_default().trim();
        range == "*/*" || range == "application/*" || range.eq_ignore_ascii_case(media_type)
    };
    accepted.is_empty() || ranges.any(is_it)
}
