//! One registry: how it is reached, and the exchange of one request with it: token, redirects, pauses.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use lru::LruCache;
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::sync::Semaphore;

use super::address::is_public;
use super::challenge::strongest;
use super::client::{Route, pause, transport_reason};
use super::config::RegistryConfig;
use super::credential::{Credential, CredentialKey};
use super::name::{RegistryName, RepositoryName};
use super::reach::Reach;
use super::token::{Token, TokenError, Tokens};
use crate::limits::{MAX_LOCATION_LENGTH, MAX_REDIRECTS};

/// Credentials whose pauses are remembered for one registry.
const PAUSES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// One registry.
pub(crate) struct Endpoint {
    pub(crate) name: RegistryName,
    /// Scheme and authority.
    base: Url,
    pub(crate) config: RegistryConfig,
    /// How the registry itself is reached.
    route: Route,
    /// Whether the operator, or the built-in list, names it.
    pub(crate) listed: bool,
    own: Client,
    public: Client,
    tokens: Arc<Tokens>,
    pauses: Mutex<LruCache<CredentialKey, Instant>>,
    reach: Reach,
    /// One permit for each transfer of a blob.
    pub(crate) transfers: Arc<Semaphore>,
}

/// What is asked of a registry.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) repository: &'a RepositoryName,
    /// What follows the repository in the path: `blobs/<digest>`.
    pub(crate) resource: String,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: HeaderMap,
    pub(crate) credential: &'a Credential,
}

/// An answer, of whatever status but a redirect.
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// It comes from another host than the registry: a content delivery network.
    pub(crate) redirected: bool,
    /// When the token that the node fetched for this expires.
    pub(crate) expires: Option<Instant>,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("{0}")]
    Transport(String),
    #[error("redirect refused: {0}")]
    Redirect(String),
    #[error("no token: {0}")]
    Token(String),
    #[error("asked for a pause of {0:?}")]
    Paused(Duration),
}

/// Where an endpoint is and by which clients it is reached.
pub(crate) struct Place {
    pub(crate) name: RegistryName,
    pub(crate) config: RegistryConfig,
    pub(crate) route: Route,
    pub(crate) listed: bool,
    pub(crate) own: Client,
    pub(crate) public: Client,
    /// Most transfers of blobs at once.
    pub(crate) max_parallel: NonZeroU32,
}

impl Endpoint {
    pub(crate) fn new(place: Place, tokens: Arc<Tokens>) -> Result<Self, String> {
        let Place { name, config, route, listed, own, public, max_parallel } = place;
        let host = match (&config.host, name.as_str()) {
            (Some(host), _) => host.as_str(),
            (None, "docker.io") => "registry-1.docker.io",
            (None, name) => name,
        };
        super::name::check_host(host).map_err(|wrong| format!("host {host:?} of registry {name}: {wrong}"))?;
        let scheme = if config.plain_http { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/")).map_err(|error| format!("host {host:?}: {error}"))?;
        if route == Route::Public {
            check_literal(&base)?;
        }
        let transfers = Arc::new(Semaphore::new(max_parallel.get() as usize));
        let pauses = Mutex::new(LruCache::new(PAUSES));
        Ok(Self { name, base, config, route, listed, own, public, tokens, pauses, reach: Reach::default(), transfers })
    }

    pub(crate) fn client(&self, route: Route) -> &Client {
        match route {
            Route::Listed => &self.own,
            Route::Public => &self.public,
        }
    }

    /// The same as [`Self::exchange`] for somebody who has another place to go to: fails within a second when the registry cannot be
    /// reached.
    pub(crate) async fn exchange_if_reached(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Answer, ExchangeError> {
        self.reach.check(&self.base, self.route).await.map_err(ExchangeError::Transport)?;
        self.exchange(ask).await
    }

    /// Asks, with a token fetched or renewed once where the registry wants that and the credential allows it.
    pub(crate) async fn exchange(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Answer, ExchangeError> {
        let key = ask.credential.key();
        if let Some(left) = self.pause_left(&key) {
            return Err(ExchangeError::Paused(left));
        }
        let answer = self.authenticate(ask).await;
        let asked = match &answer {
            Ok(answer) if answer.redirected => None,
            Ok(answer) => pause(answer.response.status().as_u16(), answer.response.headers(), SystemTime::now()),
            Err(ExchangeError::Paused(pause)) => Some(*pause),
            Err(_) => None,
        };
        if let Some(pause) = asked {
            tracing::warn!(registry = %self.name, pause_seconds = pause.as_secs(), "registry asks for a pause");
            self.pauses.lock().unwrap_or_else(PoisonError::into_inner).put(key, Instant::now() + pause);
        }
        answer
    }

    fn pause_left(&self, key: &CredentialKey) -> Option<Duration> {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        let left = pauses.get(key)?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    async fn authenticate(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Answer, ExchangeError> {
        if let Credential::Header(header) = ask.credential {
            return self.follow(ask, Some(header), None).await;
        }
        let kept = self.tokens.kept(self, ask.repository, ask.credential);
        let mut answer = self.follow_with(ask, kept.as_ref()).await?;
        if !refused(&answer) {
            return Ok(answer);
        }
        if kept.is_some() && strongest(answer.response.headers()).is_none() {
            // A stale token was refused without a word on how to get a new one: ask as a stranger would.
            answer = self.follow_with(ask, None).await?;
        }
        let Some(challenge) = strongest(answer.response.headers()).filter(|_| refused(&answer)) else {
            return Ok(answer);
        };
        match self.tokens.renew(self, ask.repository, ask.credential, challenge, kept).await {
            Ok(token) => self.follow_with(ask, Some(&token)).await,
            Err(TokenError::Refused) => Ok(answer),
            Err(TokenError::Paused(pause)) => Err(ExchangeError::Paused(pause)),
            Err(TokenError::Failed(reason)) => Err(ExchangeError::Token(reason)),
        }
    }

    async fn follow_with(&self, ask: &Ask<'_>, token: Option<&Token>) -> Result<Answer, ExchangeError> {
        self.follow(ask, token.map(|token| &token.header), token.map(|token| token.expires)).await
    }

    /// Sends, and follows redirects. `Authorization` goes to the registry's own scheme, host and port only.
    async fn follow(
        &self,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
        expires: Option<Instant>,
    ) -> Result<Answer, ExchangeError> {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{}", ask.repository, ask.resource));
        url.set_query(ask.query);
        let (mut route, mut redirected) = (self.route, false);
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client(route).request(ask.method.clone(), url.clone());
            request = request.headers(ask.headers.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(header) = authorization.filter(|_| !redirected) {
                request = request.header(AUTHORIZATION, header);
            }
            let sent = request.send().await;
            if !redirected {
                match &sent {
                    Ok(_) => self.reach.heard(),
                    Err(_) => self.reach.doubt(),
                }
            }
            let response = sent.map_err(|error| ExchangeError::Transport(transport_reason(error)))?;
            if !is_redirect(response.status()) {
                return Ok(Answer { response, redirected, expires });
            }
            url = location(&url, response.headers()).map_err(ExchangeError::Redirect)?;
            redirected = redirected || url.origin() != self.base.origin();
            route = self.route_to(&url, &self.config.redirect_hosts).map_err(ExchangeError::Redirect)?;
        }
        Err(ExchangeError::Redirect(format!("more than {MAX_REDIRECTS} in a row")))
    }

    /// By which client `url` may be reached: the operator's word lifts the check of addresses.
    fn route_to(&self, url: &Url, allowed: &[String]) -> Result<Route, String> {
        if url.origin() == self.base.origin() {
            return Ok(self.route);
        }
        if allowed.iter().any(|host| is_at(url, host)) {
            return Ok(Route::Listed);
        }
        check_literal(url)?;
        Ok(Route::Public)
    }

    /// Checks the realm of a challenge: the registry itself, or its known token service, and https unless the
    /// registry itself is configured without.
    pub(crate) fn token_realm(&self, realm: &str) -> Result<(Url, Route), String> {
        let known = match self.name.as_str() {
            "docker.io" => Some("auth.docker.io"),
            "registry.gitlab.com" => Some("gitlab.com"),
            _ => None,
        };
        let url = Url::parse(realm).map_err(|error| format!("the challenge's realm is not a URL: {error}"))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        if !(url.scheme() == "https" || (url.scheme() == "http" && self.config.plain_http)) || has_userinfo(&url) {
            return Err(format!("the challenge names a token service at {host} that is not plain https"));
        }
        if url.origin() == self.base.origin() {
            return Ok((url, self.route));
        }
        if self.config.auth_host.as_deref().is_some_and(|host| is_at(&url, host)) {
            return Ok((url, Route::Listed));
        }
        if self.config.auth_host.is_none() && known.is_some_and(|host| is_at(&url, host)) {
            return Ok((url, Route::Public));
        }
        Err(format!("the challenge names a token service at {host}; if that is right, set auth_host of this registry"))
    }
}

fn refused(answer: &Answer) -> bool {
    !answer.redirected && matches!(answer.response.status().as_u16(), 401 | 403)
}

pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn has_userinfo(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// Where a redirect leads: http or https, never from https to http.
pub(crate) fn location(from: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let value = headers.get(LOCATION).ok_or("it names no location")?;
    let text = value.to_str().map_err(|_| "its location is not text")?;
    if text.len() > MAX_LOCATION_LENGTH {
        return Err("its location is too long".to_owned());
    }
    let url = from.join(text).map_err(|error| format!("its location is not a URL: {error}"))?;
    let host = url.host_str().unwrap_or_default();
    match (from.scheme(), url.scheme()) {
        _ if has_userinfo(&url) => Err(format!("its location at {host} carries credentials")),
        (_, "https") | ("http", "http") => Ok(url),
        (_, scheme) => Err(format!("its location at {host} has the scheme {scheme:?}")),
    }
}

/// Whether `url` is at `host[:port]`; without a port, at the scheme's default one.
fn is_at(url: &Url, host: &str) -> bool {
    Url::parse(&format!("{}://{host}/", url.scheme())).is_ok_and(|wanted| wanted.origin() == url.origin())
}

/// Refuses addresses written out in a URL that are not public; names are checked when they are resolved.
pub(crate) fn check_literal(url: &Url) -> Result<(), String> {
    let address = match url.host() {
        Some(url::Host::Ipv4(address)) => address.into(),
        Some(url::Host::Ipv6(address)) => address.into(),
        Some(url::Host::Domain(_)) => return Ok(()),
        None => return Err("there is no host".to_owned()),
    };
    if is_public(address) {
        Ok(())
    } else {
        Err(format!("{address} is not a public address; list its host in the configuration if it is meant"))
    }
}
