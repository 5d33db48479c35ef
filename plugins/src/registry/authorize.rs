//! Who may have a blob: the registry says so, to this credential, for this repository.
//!
//! Having a blob in the store is no right to it, and knowing its digest is none either. Positive answers are
//! remembered for a short while; negative ones never. Where the operator lets nodes believe each other, what another
//! one was answered counts as well ([`Witnesses`]).

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use http::header::{HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use lapwing_p2p::digest::Digest;
use lru::LruCache;

use super::credential::{Credential, CredentialKey};
use super::endpoint::{Answer, Ask, Endpoint};
use super::flight::Flights;
use super::name::{RegistryName, RepositoryName};
use super::origin::{content_length, content_range};
use super::{Registries, UnknownRegistry};
use crate::limits::{GRANT_AGE, MAX_GRANTS};

/// The registry's yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Length of the blob in bytes, as the registry says.
    pub length: u64,
    /// Whether the registry is one that the operator, or the built-in list, names. The yes of any other registry says
    /// nothing about bytes that came from elsewhere: everybody can run one that has every digest.
    pub listed: bool,
}

/// The registry's no, or the lack of an answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Denied {
    /// 401 or 403.
    #[error("{origin} refuses this client (HTTP {status})")]
    Refused {
        /// Which blob, where.
        origin: String,
        /// 401 or 403.
        status: StatusCode,
        /// The registry's `WWW-Authenticate` headers, for the client to answer.
        challenges: Vec<HeaderValue>,
    },
    /// 404 or 410.
    #[error("{origin} does not exist (HTTP {status})")]
    Missing {
        /// Which blob, where.
        origin: String,
        /// The status.
        status: StatusCode,
    },
    /// The registry is not one the node talks to.
    #[error(transparent)]
    Unknown(#[from] UnknownRegistry),
    /// No usable answer.
    #[error("{origin}: whether this client may have it could not be asked: {reason}")]
    Unavailable {
        /// Which blob, where.
        origin: String,
        /// What happened.
        reason: String,
    },
}

/// To pull a blob of a repository, by somebody.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Right {
    /// The registry.
    pub registry: RegistryName,
    /// The repository.
    pub repository: RepositoryName,
    /// The blob.
    pub digest: Digest,
    /// Whose.
    pub credential: CredentialKey,
}

/// Other nodes to which registries answer, too.
///
/// Contract: `ask` ends within a second, and gives nothing unless a node that may be believed was granted just this
/// right; `tell` does not block.
pub trait Witnesses: Send + Sync {
    /// The blob's length in bytes and for how long the right counts, if another node was granted it.
    fn ask<'a>(&'a self, right: &'a Right) -> BoxFuture<'a, Option<(u64, Duration)>>;

    /// The registry grants it, with that length of the blob in bytes, for so long.
    fn tell(&self, right: &Right, length: u64, left: Duration);
}

#[derive(Clone, Copy)]
struct Kept {
    grant: Grant,
    until: Instant,
}

/// The answers remembered.
pub(crate) struct Grants {
    kept: Arc<Mutex<LruCache<Right, Kept>>>,
    flights: Flights<Right, Result<Grant, Denied>>,
}

impl Grants {
    pub(crate) fn new() -> Self {
        let capacity = NonZeroUsize::new(MAX_GRANTS).unwrap_or(NonZeroUsize::MIN);
        Self { kept: Arc::new(Mutex::new(LruCache::new(capacity))), flights: Flights::new() }
    }
}

impl Registries {
    /// Asks the registry whether `credential` may pull this blob of this repository, unless it said yes just now.
    pub async fn authorize(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: Digest,
        credential: &Credential,
    ) -> Result<Grant, Denied> {
        let endpoint = self.find(registry)?;
        let key =
            Right { registry: registry.clone(), repository: repository.clone(), digest, credential: credential.key() };
        let answer = self.grants.flights.join(key.clone(), || {
            let mut kept = self.grants.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(kept) = kept.get(&key).filter(|kept| kept.until > Instant::now()) {
                return Err(Ok(kept.grant));
            }
            let (kept, credential) = (self.grants.kept.clone(), credential.clone());
            // The node's own rights are its own, and what is everybody's needs no proof.
            let is_a_clients = endpoint.listed && matches!(credential, Credential::Header(_));
            let witnesses = self.witnesses.get().filter(|_| is_a_clients).cloned();
            Ok(Box::pin(async move {
                let asked = match heard(witnesses.as_deref(), &key).await {
                    Some(heard) => Ok(heard),
                    None => ask(&endpoint, &key.repository, digest, &credential).await.inspect(|answer| {
                        if let Some(witnesses) = &witnesses {
                            let left = answer.until.saturating_duration_since(Instant::now());
                            witnesses.tell(&key, answer.grant.length, left);
                        }
                    }),
                };
                if let Ok(answer) = &asked {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).put(key, *answer);
                }
                asked.map(|kept| kept.grant)
            }))
        });
        answer.await.unwrap_or_else(|| {
            Err(Denied::Unavailable {
                origin: describe(registry, repository, digest),
                reason: "the request ended abnormally".to_owned(),
            })
        })
    }
}

/// What another node was answered.
async fn heard(witnesses: Option<&dyn Witnesses>, right: &Right) -> Option<Kept> {
    let (length, left) = witnesses?.ask(right).await?;
    Some(Kept { grant: Grant { length, listed: true }, until: Instant::now() + left.min(GRANT_AGE) })
}

fn describe(registry: &RegistryName, repository: &RepositoryName, digest: Digest) -> String {
    format!("{registry}/{repository}@{digest}")
}

/// HEAD; where what it redirects to knows no HEAD (a URL signed for GET), the first byte by GET.
async fn ask(
    endpoint: &Arc<Endpoint>,
    repository: &RepositoryName,
    digest: Digest,
    credential: &Credential,
) -> Result<Kept, Denied> {
    let origin = describe(&endpoint.name, repository, digest);
    let unavailable = |reason: String| Denied::Unavailable { origin: origin.clone(), reason };
    let send = |method: Method, headers: HeaderMap| async {
        let resource = format!("blobs/{digest}");
        let ask = Ask { method, repository, resource, query: None, headers, credential };
        endpoint.exchange_if_reached(&ask).await.map_err(|error| unavailable(error.to_string()))
    };
    let mut answer = send(Method::HEAD, HeaderMap::new()).await?;
    // Some servers say 0 to every HEAD.
    let is_plausible = |length: &u64| *length > 0 || digest == Digest::of(b"");
    let mut length = match answer.response.status() {
        StatusCode::OK => content_length(answer.response.headers()).filter(is_plausible),
        _ => None,
    };
    if length.is_none() && (answer.redirected || matches!(answer.response.status().as_u16(), 200 | 405)) {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        answer = send(Method::GET, headers).await?;
        length = match answer.response.status() {
            StatusCode::OK => content_length(answer.response.headers()),
            StatusCode::PARTIAL_CONTENT => content_range(answer.response.headers()).and_then(|(_, total)| total),
            _ => None,
        };
    }
    let expires = answer.expires;
    let length = judge(&origin, &answer, length)?;
    let age = GRANT_AGE.min(left(credential, expires));
    let grant = Grant { length, listed: endpoint.listed };
    tracing::info!(repo = %repository, %digest, registry = %endpoint.name, length, "registry grants a blob");
    Ok(Kept { grant, until: Instant::now() + age })
}

fn judge(origin: &str, answer: &Answer, length: Option<u64>) -> Result<u64, Denied> {
    let (origin, status) = (origin.to_owned(), answer.response.status());
    let denied = match (status.as_u16(), length) {
        (200 | 206, Some(length)) => return Ok(length),
        (200 | 206, None) => Denied::Unavailable { origin, reason: "the answer does not tell its length".to_owned() },
        (401 | 403, _) if !answer.redirected => {
            let challenges = answer.response.headers().get_all(WWW_AUTHENTICATE).iter().cloned().collect();
            Denied::Refused { origin, status, challenges }
        }
        (404 | 410, _) => Denied::Missing { origin, status },
        (status, _) => Denied::Unavailable { origin, reason: format!("HTTP {status}") },
    };
    tracing::info!(error = %denied, "registry denies a blob");
    Err(denied)
}

/// How long the token lives that the answer was given to.
fn left(credential: &Credential, expires: Option<Instant>) -> Duration {
    let fetched = expires.map(|at| at.saturating_duration_since(Instant::now()));
    let sent = match credential {
        Credential::Header(header) => {
            expiry_of_jwt(header).map(|at| at.duration_since(SystemTime::now()).unwrap_or_default())
        }
        _ => None,
    };
    fetched.or(sent).unwrap_or(GRANT_AGE)
}

/// The `exp` claim of a bearer token that is a JWT (RFC 7519 section 4.1.4). Not verified: it only shortens.
fn expiry_of_jwt(header: &HeaderValue) -> Option<SystemTime> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: u64,
    }
    let token = header.to_str().ok()?.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))?.1;
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jwt_expiry_shortens_a_grant() {
        let header = |claims: &str| {
            HeaderValue::try_from(format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))).unwrap()
        };
        assert_eq!(expiry_of_jwt(&header(r#"{"exp":100}"#)), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(100)));
        assert_eq!(left(&Credential::Header(header(r#"{"exp":100}"#)), None), Duration::ZERO);
        assert_eq!(left(&Credential::Header(header("{}")), None), GRANT_AGE);
        for text in ["Basic dTpw", "Bearer opaque", "Bearer a.!.c", ""] {
            assert_eq!(expiry_of_jwt(&HeaderValue::from_static(text)), None, "{text}");
        }
        let far = header(&format!(r#"{{"exp":{}}}"#, u64::MAX));
        assert_eq!(expiry_of_jwt(&far), None);
    }
}
