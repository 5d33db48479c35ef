//! Plain URLs with the semantics of an HTTP cache (RFC 9110, RFC 9111), shared through the swarm.
//!
//! * `target`: which URL is meant, whether it may be fetched, and the name of one version of its content
//! * `cache`: what may be kept, for how long, and what a revalidation means: pure decisions
//! * `kept`: the metadata of URLs, over restarts
//! * `fetch`, `origin`: exchanges with web servers; one version as the swarm's origin
//! * `straight`: the same exchanges without a node, for a command
//!
//! A request goes: [`Urls::open`] finds the current version, asking the origin if need be. A version that can be shared
//! has a name, made of the URL, its strong validator and its length, and comes out of the swarm under that name; anything
//! else is passed through ([`Urls::pass`]) from the origin to the one client that asked.

pub mod cache;
mod fetch;
mod kept;
mod origin;
mod straight;
mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_core::future::BoxFuture;
use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue, RANGE};
use http::{Method, StatusCode};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::origin::Origin;
use reqwest::Response;
use tokio::sync::Semaphore;

use self::cache::{Decision, Metadata, Obstacle, Revalidated, content_length_of, decide};
use self::fetch::{FetchError, Fetcher};
use self::kept::Kept;
pub use self::target::end_to_end;
use crate::registry::RegistriesConfig;
use crate::registry::client::{Route, build};
use crate::registry::flight::Flights;

pub use self::origin::UrlOrigin;
pub use self::straight::Straight;
pub use self::target::{Allowed, BadTarget, FILTER_QUERY, InvalidPattern, Target, without_ignored};

/// How plain URLs are fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UrlsConfig {
    /// Hosts that URLs may be fetched from, as [`Allowed`] reads them.
    pub allow: Vec<String>,
    /// How long after it became stale a URL's content may be used when its origin fails; zero: never.
    pub stale_if_error: Duration,
    /// Query parameters that do not choose the content: `name` or `prefix*`.
    pub ignore_query: Vec<String>,
    /// Most transfers at once.
    pub max_parallel: u32,
    /// Time for a connection to stand, and for silence before or within an answer.
    pub connect_timeout: Duration,
    /// See [`Self::connect_timeout`].
    pub read_timeout: Duration,
}

/// The plain URLs of this node.
pub struct Urls {
    config: UrlsConfig,
    fetcher: Arc<Fetcher>,
    kept: Arc<Kept>,
    flights: Flights<Digest, Result<Looked, UrlError>>,
}

/// Plain URLs cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUrls {
    /// An entry of `http.allow`.
    #[error("configuration key http.allow: {0}")]
    Pattern(#[from] InvalidPattern),
    /// No HTTP client.
    #[error("{0}")]
    Client(String),
    /// The metadata directory.
    #[error("metadata of URLs cannot be kept in {path}: {source}")]
    Directory {
        /// The directory.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// No answer from an origin.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UrlError {
    /// The URL may not be fetched.
    #[error(transparent)]
    Target(#[from] BadTarget),
    /// It did not answer, or with an error of its own.
    #[error("{url}: {reason}")]
    Unavailable {
        /// The URL, without its query.
        url: String,
        /// What happened.
        reason: String,
    },
}

/// One version of a URL's content, as the swarm knows it.
#[derive(Clone)]
pub struct Version {
    /// Its name in the swarm.
    pub name: Digest,
    /// What its origin said of it.
    pub metadata: Metadata,
    /// Where it comes from.
    pub origin: Arc<dyn Origin>,
    /// It is out of date, and used because its origin fails.
    pub stale: bool,
}

/// What can be done for a client.
#[derive(Clone)]
pub enum Opened {
    /// Give it this version, out of the swarm.
    Shared(Version),
    /// Pass its request through.
    Passed(Passing),
}

/// Why a request is passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Passing {
    /// The content is not one for a shared cache.
    #[error("not shared: {0}")]
    Obstacle(#[from] Obstacle),
    /// The origin refuses, in words that are the client's to hear.
    #[error("the origin answers HTTP {0}")]
    Status(u16),
}

/// What asking the origin brought.
#[derive(Debug, Clone)]
enum Looked {
    Known { metadata: Metadata, stale: bool },
    Passed(Passing),
}

/// An answer of an origin, to be passed on as it is.
pub struct Passed {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, without those for the next hop.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Response,
}

impl Urls {
    /// Reads what is kept in `directory`, and makes the clients. A rustls crypto provider must have been installed.
    pub fn new(config: UrlsConfig, directory: PathBuf) -> Result<Arc<Self>, InvalidUrls> {
        let allowed = Allowed::parse(&config.allow)?;
        let times = RegistriesConfig {
            connect_timeout_seconds: config.connect_timeout.as_secs(),
            read_timeout_seconds: config.read_timeout.as_secs(),
            ..RegistriesConfig::default()
        };
        let client = |route| build(&times, None, route).map_err(InvalidUrls::Client);
        let fetcher = Fetcher {
            allowed,
            free: client(Route::Listed)?,
            public: client(Route::Public)?,
            turns: Arc::new(Semaphore::new(config.max_parallel.max(1) as usize)),
        };
        let path = directory.display().to_string();
        let kept = Kept::load(directory).map_err(|source| InvalidUrls::Directory { path, source })?;
        Ok(Arc::new(Self { config, fetcher: Arc::new(fetcher), kept, flights: Flights::new() }))
    }

    /// Whether the URL may be fetched.
    pub fn check(&self, target: &Target) -> Result<(), BadTarget> {
        let host = || target.url.host_str().unwrap_or_default().to_owned();
        self.fetcher.allowed.route(&target.url).map(drop).ok_or_else(|| BadTarget::NotAllowed(host()))
    }

    /// The current version of the URL for a client with these request headers; its origin is asked where that is needed.
    pub async fn open(self: &Arc<Self>, target: &Target, request: &HeaderMap) -> Result<Opened, UrlError> {
        self.check(target)?;
        let key = target.key();
        let known = self.kept.get(&key);
        let looked = match (decide(known.as_ref(), request, SystemTime::now()), known) {
            (Decision::Use, Some(metadata)) => Looked::Known { metadata, stale: false },
            _ => self.look(target, request).await?,
        };
        let (metadata, stale) = match looked {
            Looked::Known { metadata, stale } => (metadata, stale),
            Looked::Passed(passing) => return Ok(Opened::Passed(passing)),
        };
        let Some(validator) = metadata.validator() else {
            self.kept.forget(&key);
            return Ok(Opened::Passed(Obstacle::NoValidator.into()));
        };
        let name = target.version_name(&self.config.ignore_query, &validator, metadata.length);
        let origin = UrlOrigin {
            fetcher: self.fetcher.clone(),
            target: target.clone(),
            validator,
            length: metadata.length,
            kept: Arc::downgrade(&self.kept),
        };
        Ok(Opened::Shared(Version { name, metadata, origin: Arc::new(origin), stale }))
    }

    /// Asks the origin, once for all who ask at the same time.
    async fn look(self: &Arc<Self>, target: &Target, request: &HeaderMap) -> Result<Looked, UrlError> {
        // A client that forbids to keep the answer must not decide for others.
        let mut key = target.key();
        if cache::Directives::of(request).no_store {
            key = Digest::of(&[key.as_bytes().as_slice(), b"no-store"].concat());
        }
        let (this, target, request) = (Arc::clone(self), target.clone(), request.clone());
        let url = target.describe();
        let answer = self.flights.join(key, || {
            let asking: BoxFuture<'static, _> = Box::pin(async move { this.ask(&target, &request).await });
            Ok(asking)
        });
        let ended = || UrlError::Unavailable { url, reason: "the request ended abnormally".to_owned() };
        answer.await.unwrap_or_else(|| Err(ended()))
    }

    async fn ask(&self, target: &Target, request: &HeaderMap) -> Result<Looked, UrlError> {
        let key = target.key();
        let known = self.kept.get(&key);
        if let Some(known) = &known {
            match self.revalidate(target, known).await {
                Ok(Some(looked)) => return Ok(looked),
                Ok(None) => {}
                Err(reason) => return self.bridge(target, known, reason),
            }
        }
        self.ask_anew(target, request).await
    }

    /// Asks whether `known` still holds; none if the URL has changed, an error if the origin cannot tell.
    async fn revalidate(&self, target: &Target, known: &Metadata) -> Result<Option<Looked>, String> {
        let asked = SystemTime::now();
        let response = self.head(target, known.conditions()).await.map_err(|error| error.to_string())?;
        let (status, headers) = (response.status().as_u16(), response.headers());
        let times = (asked, SystemTime::now());
        let key = target.key();
        Ok(match known.revalidated(status, headers, content_length_of(status, headers), times) {
            Revalidated::Current(metadata) => {
                tracing::debug!(url = target.describe(), status, "a URL's content is current");
                self.kept.put(key, metadata.clone());
                Some(Looked::Known { metadata, stale: false })
            }
            Revalidated::Changed => {
                tracing::info!(url = target.describe(), status, "a URL's content has changed");
                self.kept.forget(&key);
                None
            }
            Revalidated::Failed => return Err(format!("HTTP {status}")),
            Revalidated::Refused => {
                self.kept.forget(&key);
                // A server that knows no HEAD answers the GET that comes next.
                if matches!(status, 405 | 501) { None } else { Some(Looked::Passed(Passing::Status(status))) }
            }
        })
    }

    /// The origin fails: what is stale may do, where the operator allows it.
    fn bridge(&self, target: &Target, known: &Metadata, reason: String) -> Result<Looked, UrlError> {
        let url = target.describe();
        if known.may_be_stale(SystemTime::now(), self.config.stale_if_error) {
            tracing::warn!(
                url,
                reason,
                "the origin fails: its content is used although it is stale (http.stale_if_error)"
            );
            return Ok(Looked::Known { metadata: known.clone(), stale: true });
        }
        Err(UrlError::Unavailable { url, reason })
    }

    /// Asks without conditions: by HEAD, and where that gives no length, for the first byte by GET.
    async fn ask_anew(&self, target: &Target, request: &HeaderMap) -> Result<Looked, UrlError> {
        let unavailable =
            |error: FetchError| UrlError::Unavailable { url: target.describe(), reason: error.to_string() };
        let mut asked = SystemTime::now();
        let mut response = self.head(target, HeaderMap::new()).await.map_err(unavailable)?;
        let mut length = content_length_of(response.status().as_u16(), response.headers());
        // Some servers say 0 to every HEAD; a URL signed for GET refuses it.
        if length.is_none_or(|length| length == 0) && matches!(response.status().as_u16(), 200 | 400 | 403 | 405 | 501)
        {
            asked = SystemTime::now();
            let mut headers = request_headers(target);
            headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
            response =
                self.fetcher.send(&Method::GET, &target.url, &headers, &target.personal).await.map_err(unavailable)?;
            length = content_length_of(response.status().as_u16(), response.headers());
        }
        let status = response.status().as_u16();
        match status {
            200 | 206 => {}
            429 | 500..=599 => {
                return Err(UrlError::Unavailable { url: target.describe(), reason: format!("HTTP {status}") });
            }
            _ => return Ok(Looked::Passed(Passing::Status(status))),
        }
        let times = (asked, SystemTime::now());
        let personal = !target.personal.is_empty();
        let admitted = Metadata::admit(request, personal, response.headers(), length, times);
        Ok(match admitted {
            Ok(metadata) => {
                self.kept.put(target.key(), metadata.clone());
                Looked::Known { metadata, stale: false }
            }
            Err(obstacle) => Looked::Passed(obstacle.into()),
        })
    }

    async fn head(&self, target: &Target, conditions: HeaderMap) -> Result<Response, FetchError> {
        let mut headers = request_headers(target);
        headers.extend(conditions);
        self.fetcher.send(&Method::HEAD, &target.url, &headers, &target.personal).await
    }

    /// Sends the client's own request to the origin, and gives the answer as it is.
    pub async fn pass(&self, target: &Target, method: &Method, request: &HeaderMap) -> Result<Passed, UrlError> {
        self.check(target)?;
        self.fetcher.pass(target, method, request).await
    }
}

impl Fetcher {
    async fn pass(&self, target: &Target, method: &Method, request: &HeaderMap) -> Result<Passed, UrlError> {
        let mut headers = end_to_end(request);
        for name in target.personal.keys() {
            headers.remove(name);
        }
        // What a client says to its node is not for the origin.
        let own: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with("lapwing-")).cloned().collect();
        for name in own {
            headers.remove(name);
        }
        let sent = self.send(method, &target.url, &headers, &target.personal).await;
        let body = sent.map_err(|error| UrlError::Unavailable { url: target.describe(), reason: error.to_string() })?;
        Ok(Passed { status: body.status(), headers: end_to_end(body.headers()), body })
    }
}

fn request_headers(target: &Target) -> HeaderMap {
    let mut headers = target.neutral.clone();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}
