//! A registry in this process that answers what a test wants, and writes down what it was asked. The mirror's tests use
//! it too.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Once};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::origin::{Origin as _, OriginError};
use lapwing_plugins::registry::{
    Credential, Registries, RegistriesConfig, RegistryConfig, RegistryName, RepositoryName,
};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn path(&self) -> &str {
        self.uri.split('?').next().unwrap()
    }
}

type Behaviour = Box<dyn Fn(&Seen) -> Response + Send + Sync>;

struct Inner {
    behaviour: Behaviour,
    seen: Mutex<Vec<Seen>>,
}

/// The server; ends with the test's runtime.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
}

impl Fake {
    pub(crate) async fn start(behaviour: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        provider();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner { behaviour: Box::new(behaviour), seen: Mutex::default() });
        let router = Router::new().fallback(answer).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, inner }
    }

    pub(crate) fn name(&self) -> RegistryName {
        self.address.to_string().parse().unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path() == path).count()
    }

    /// Registries that know this one, reached without TLS.
    pub(crate) fn listed(&self) -> Arc<Registries> {
        self.listed_as(RegistryConfig::default())
    }

    pub(crate) fn listed_as(&self, config: RegistryConfig) -> Arc<Registries> {
        let mut all = RegistriesConfig { read_timeout_seconds: 5, ..RegistriesConfig::default() };
        all.hosts.insert(self.address.to_string(), RegistryConfig { plain_http: true, ..config });
        Registries::new(all).unwrap()
    }

    /// The same with a general configuration.
    pub(crate) fn listed_in(&self, config: RegistriesConfig) -> Arc<Registries> {
        let own = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
        Registries::new(RegistriesConfig { hosts: [(self.address.to_string(), own)].into(), ..config }).unwrap()
    }

    /// Fetches a range of a blob, whole, as the swarm would.
    pub(crate) async fn fetch(
        &self,
        registries: &Registries,
        credential: Credential,
        range: std::ops::Range<u64>,
    ) -> Result<Vec<u8>, Failure> {
        let origin = registries.origin(&self.name(), &repo(), digest(), BLOB.len() as u64, credential).unwrap();
        let mut stream = origin.fetch(range).await.map_err(Failure::Origin)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|error| Failure::Body(error, bytes.clone()))?);
        }
        Ok(bytes)
    }
}

/// Why a fetch failed: before or within the body, and with which bytes given already.
#[derive(Debug)]
pub(crate) enum Failure {
    Origin(OriginError),
    Body(std::io::Error, Vec<u8>),
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let seen = Seen { method: parts.method, uri: parts.uri.to_string(), headers: parts.headers, body };
    inner.seen.lock().unwrap().push(seen.clone());
    (inner.behaviour)(&seen)
}

pub(crate) fn provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}

/// The blob that every fake registry has.
pub(crate) const BLOB: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

pub(crate) fn digest() -> Digest {
    Digest::of(BLOB)
}

pub(crate) fn repo() -> RepositoryName {
    "team/app".parse().unwrap()
}

pub(crate) fn blob_path() -> String {
    format!("/v2/team/app/blobs/{}", digest())
}

/// An answer of this status.
pub(crate) fn status(status: u16, headers: &[(&str, &str)]) -> Response {
    with_body(status, headers, Body::empty())
}

pub(crate) fn with_body(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

/// The blob as a well-behaved registry serves it.
pub(crate) fn blob(seen: &Seen) -> Response {
    let total = BLOB.len();
    let Some(range) = seen.header("range") else {
        let body = if seen.method == Method::HEAD { Body::empty() } else { Body::from(BLOB) };
        return with_body(200, &[("content-length", &total.to_string())], body);
    };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let sent = format!("bytes {first}-{last}/{total}");
    with_body(206, &[("content-range", &sent)], &BLOB[first..=last])
}

/// 401 with a challenge for a token of this server.
pub(crate) fn challenge(seen: &Seen) -> Response {
    let host = seen.header("host").unwrap();
    let value =
        format!("Bearer realm=\"http://{host}/token\",service=\"fake\",scope=\"repository:other:pull,push,delete\"");
    status(401, &[("www-authenticate", &value)])
}
