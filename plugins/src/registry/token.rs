//! Tokens: fetched once for all concurrent askers, kept until shortly before they expire.
//!
//! Source: distribution's "Token Authentication Specification" and "Token scope documentation"; OAuth2 refresh tokens as
//! docker stores them (`identitytoken`). The scope is always `repository:<name>:pull`, whatever a challenge asks for:
//! the node never wants more.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::header::{AUTHORIZATION, HeaderValue};
use lru::LruCache;
use reqwest::{Method, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::client::{pause, read_bounded, transport_reason};
use super::credential::{Credential, CredentialKey, Secret};
use super::endpoint::Endpoint;
use super::flight::Flights;
use super::keychain::Keychain;
use super::name::RepositoryName;
use crate::limits::{DEFAULT_TOKEN_AGE, MAX_TOKEN_AGE, MAX_TOKEN_ANSWER, MAX_TOKEN_LENGTH, MAX_TOKENS};

/// A token is not used in its last moments: at most this much of its life is given up.
const EXPIRY_MARGIN: Duration = Duration::from_secs(30);

/// An `Authorization` header that the node made.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    pub(crate) expires: Instant,
}

/// Why there is no token.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum TokenError {
    /// The token service, or the lack of a credential, says no.
    #[error("refused")]
    Refused,
    /// It may work later, or the registry's challenge is not acceptable.
    #[error("{0}")]
    Failed(String),
    /// The token service wants to be left alone for so long.
    #[error("asked for a pause of {0:?}")]
    Paused(Duration),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    registry: String,
    repository: RepositoryName,
    credential: CredentialKey,
}

/// The tokens of all registries.
pub(crate) struct Tokens {
    keychain: Arc<Keychain>,
    kept: Arc<Mutex<LruCache<TokenKey, Token>>>,
    flights: Flights<TokenKey, Result<Token, TokenError>>,
}

impl Tokens {
    pub(crate) fn new(keychain: Keychain) -> Self {
        let capacity = NonZeroUsize::new(MAX_TOKENS).unwrap_or(NonZeroUsize::MIN);
        Self {
            keychain: Arc::new(keychain),
            kept: Arc::new(Mutex::new(LruCache::new(capacity))),
            flights: Flights::new(),
        }
    }

    /// The token to try first.
    pub(crate) fn kept(
        &self,
        endpoint: &Endpoint,
        repository: &RepositoryName,
        credential: &Credential,
    ) -> Option<Token> {
        fresh(&self.kept, &key(endpoint, repository, credential), None)
    }

    /// A token that is not `refused`: one that somebody else fetched meanwhile, or a new one.
    pub(crate) async fn renew(
        &self,
        endpoint: &Arc<Endpoint>,
        repository: &RepositoryName,
        credential: &Credential,
        challenge: Challenge,
        refused: Option<Token>,
    ) -> Result<Token, TokenError> {
        let key = key(endpoint, repository, credential);
        let (endpoint, repository, credential) = (endpoint.clone(), repository.clone(), credential.clone());
        let answer = self.flights.join(key.clone(), || {
            if let Some(token) = fresh(&self.kept, &key, refused.as_ref()) {
                return Err(Ok(token));
            }
            let (kept, keychain) = (self.kept.clone(), self.keychain.clone());
            Ok(Box::pin(async move {
                if refused.is_some() {
                    keychain.refused(endpoint.name.as_str(), repository.as_str());
                }
                let asking = Asking { endpoint: &endpoint, repository: &repository, credential: &credential };
                let mut token = asking.fetch(&keychain, &challenge).await;
                let is_own = matches!((&token, &credential), (Err(TokenError::Refused), Credential::Configured));
                // What a program said an hour ago may have run out.
                if is_own && keychain.refused(endpoint.name.as_str(), repository.as_str()) {
                    token = asking.fetch(&keychain, &challenge).await;
                }
                let token = token?;
                kept.lock().unwrap_or_else(PoisonError::into_inner).put(key, token.clone());
                Ok(token)
            }))
        });
        answer.await.unwrap_or_else(|| Err(TokenError::Failed("the token request ended abnormally".to_owned())))
    }
}

fn key(endpoint: &Endpoint, repository: &RepositoryName, credential: &Credential) -> TokenKey {
    TokenKey { registry: endpoint.name.to_string(), repository: repository.clone(), credential: credential.key() }
}

fn fresh(kept: &Mutex<LruCache<TokenKey, Token>>, key: &TokenKey, refused: Option<&Token>) -> Option<Token> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    let token = kept.get(key)?;
    (token.expires > Instant::now() && Some(token) != refused).then(|| token.clone())
}

/// Who wants a token for what.
struct Asking<'a> {
    endpoint: &'a Endpoint,
    repository: &'a RepositoryName,
    credential: &'a Credential,
}

impl Asking<'_> {
    async fn fetch(&self, keychain: &Keychain, challenge: &Challenge) -> Result<Token, TokenError> {
        let (endpoint, repository) = (self.endpoint, self.repository);
        let secret = match self.credential {
            Credential::Anonymous | Credential::Header(_) => Secret::None,
            Credential::Basic { username, password } => {
                Secret::Password { username: username.clone(), password: password.clone() }
            }
            Credential::Configured => keychain
                .secret(endpoint.name.as_str(), &endpoint.config, repository.as_str())
                .await
                .map_err(|error| TokenError::Failed(error.to_string()))?,
        };
        match challenge {
            Challenge::Basic => {
                let header = secret.basic().ok_or(TokenError::Refused)?;
                Ok(Token { header, expires: Instant::now() + MAX_TOKEN_AGE })
            }
            Challenge::Bearer { realm, service } => {
                bearer(endpoint, repository, &secret, realm, service.as_deref()).await
            }
        }
    }
}

async fn bearer(
    endpoint: &Endpoint,
    repository: &RepositoryName,
    secret: &Secret,
    realm: &str,
    service: Option<&str>,
) -> Result<Token, TokenError> {
    let (mut url, route) = endpoint.token_realm(realm).map_err(TokenError::Failed)?;
    let scope = format!("repository:{repository}:pull");
    let mut parameters = vec![("scope", scope.as_str())];
    parameters.extend(service.map(|service| ("service", service)));
    let client = endpoint.client(route);
    let request = if let Secret::Identity(token) = secret {
        parameters.extend([("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", "lapwing")]);
        client.request(Method::POST, url.clone()).form(&parameters)
    } else {
        url.query_pairs_mut().extend_pairs(parameters);
        let request = client.request(Method::GET, url.clone());
        match secret.basic() {
            Some(header) => request.header(AUTHORIZATION, header),
            None => request,
        }
    };
    let asked = Instant::now();
    let failed = |reason: String| TokenError::Failed(format!("{} {reason}", shown(&url)));
    let response = request.send().await.map_err(|error| failed(transport_reason(error)))?;
    if let Some(pause) = pause(response.status().as_u16(), response.headers(), SystemTime::now()) {
        return Err(TokenError::Paused(pause));
    }
    match response.status().as_u16() {
        200 => {}
        400 | 401 | 403 | 404 => return Err(TokenError::Refused),
        status => return Err(failed(format!("answered HTTP {status} instead of a token"))),
    }
    let body = read_bounded(response, MAX_TOKEN_ANSWER).await.map_err(failed)?;
    parse(&body, asked).ok_or_else(|| failed("sent no usable token".to_owned()))
}

fn shown(realm: &Url) -> String {
    format!("token service {}", realm.host_str().unwrap_or_default())
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

fn parse(body: &[u8], asked: Instant) -> Option<Token> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token)?;
    if token.is_empty() || token.len() > MAX_TOKEN_LENGTH {
        return None;
    }
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    let age =
        answer.expires_in.filter(|&age| age > 0).map_or(DEFAULT_TOKEN_AGE, Duration::from_secs).min(MAX_TOKEN_AGE);
    Some(Token { header, expires: asked + age - EXPIRY_MARGIN.min(age / 4) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_token_services() {
        let now = Instant::now();
        let life =
            |body: &str| parse(body.as_bytes(), now).map(|token| (token.header, (token.expires - now).as_secs()));
        assert_eq!(life(r#"{"token":"t","expires_in":300}"#), Some((HeaderValue::from_static("Bearer t"), 270)));
        assert_eq!(life(r#"{"access_token":"t"}"#), Some((HeaderValue::from_static("Bearer t"), 45)));
        assert_eq!(
            life(r#"{"token":"","access_token":"a","expires_in":4}"#),
            Some((HeaderValue::from_static("Bearer a"), 3))
        );
        assert_eq!(life(r#"{"token":"t","expires_in":99999999999}"#).unwrap().1, MAX_TOKEN_AGE.as_secs() - 30);
        for bad in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\r\nb"}"#, r#"{"token":1}"#, "<html>"] {
            assert!(parse(bad.as_bytes(), now).is_none(), "{bad}");
        }
    }
}
