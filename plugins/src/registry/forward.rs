//! Manifests, tag lists and referrers, passed through with the client's rights.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use lapwing_p2p::digest::Digest;

use super::client::{pause, read_bounded};
use super::credential::Credential;
use super::endpoint::Ask;
use super::name::{Reference, RegistryName, RepositoryName};
use super::{Registries, UnknownRegistry};
use crate::limits::MAX_MANIFEST_LENGTH;

/// How a resource is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardMethod {
    /// With its body.
    Get,
    /// Its headers only.
    Head,
}

/// What of a repository is asked for.
#[derive(Debug, Clone)]
pub enum Resource {
    /// A manifest or index.
    Manifest(Reference),
    /// The list of tags.
    Tags,
    /// What refers to a manifest.
    Referrers(Digest),
}

/// A request passed through.
#[derive(Debug, Clone)]
pub struct ForwardRequest {
    /// How.
    pub method: ForwardMethod,
    /// Where.
    pub registry: RegistryName,
    /// Of which repository.
    pub repository: RepositoryName,
    /// What.
    pub resource: Resource,
    /// The query, for tag lists (`n`, `last`) and referrers (`artifactType`), without `ns`.
    pub query: Option<String>,
    /// The client's `Accept` headers.
    pub accept: Vec<HeaderValue>,
    /// Whose rights are used.
    pub credential: Credential,
}

/// The registry's answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Forwarded {
    /// Its status.
    pub status: StatusCode,
    /// Those of its headers that concern a client: type, length, digest, challenge, link.
    pub headers: HeaderMap,
    /// Its body; empty for HEAD.
    pub body: Bytes,
}

/// Why there is no answer to pass on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ForwardError {
    /// The registry is not one the node talks to.
    #[error(transparent)]
    Unknown(#[from] UnknownRegistry),
    /// The registry could not be asked, or asks for a pause.
    #[error("registry {registry} did not answer for {repository}: {reason}")]
    Unavailable {
        /// Which registry.
        registry: RegistryName,
        /// For which repository.
        repository: RepositoryName,
        /// What happened.
        reason: String,
    },
}

const RELAYED: [HeaderName; 6] = [
    CONTENT_TYPE,
    CONTENT_LENGTH,
    WWW_AUTHENTICATE,
    LINK,
    HeaderName::from_static("docker-content-digest"),
    HeaderName::from_static("oci-filters-applied"),
];

impl Registries {
    /// Passes a request through. A body is read whole, up to [`MAX_MANIFEST_LENGTH`].
    pub async fn forward(&self, request: &ForwardRequest) -> Result<Forwarded, ForwardError> {
        let endpoint = self.find(&request.registry)?;
        let unavailable = |reason: String| ForwardError::Unavailable {
            registry: request.registry.clone(),
            repository: request.repository.clone(),
            reason,
        };
        let mut headers = HeaderMap::new();
        for accept in &request.accept {
            headers.append(ACCEPT, accept.clone());
        }
        let ask = Ask {
            method: if request.method == ForwardMethod::Head { Method::HEAD } else { Method::GET },
            repository: &request.repository,
            resource: match &request.resource {
                Resource::Manifest(reference) => format!("manifests/{reference}"),
                Resource::Tags => "tags/list".to_owned(),
                Resource::Referrers(digest) => format!("referrers/{digest}"),
            },
            query: request.query.as_deref(),
            headers,
            credential: &request.credential,
        };
        let answer = endpoint.exchange_if_reached(&ask).await.map_err(|error| unavailable(error.to_string()))?;
        let (status, sent) = (answer.response.status(), answer.response.headers());
        if let Some(pause) = pause(status.as_u16(), sent, std::time::SystemTime::now()) {
            return Err(unavailable(format!("HTTP {status}, asked for a pause of {pause:?}")));
        }
        let mut headers = HeaderMap::new();
        for name in RELAYED {
            for value in sent.get_all(&name) {
                headers.append(name.clone(), value.clone());
            }
        }
        let body = if request.method == ForwardMethod::Head {
            Bytes::new()
        } else {
            read_bounded(answer.response, MAX_MANIFEST_LENGTH).await.map_err(unavailable)?
        };
        Ok(Forwarded { status, headers, body })
    }
}
