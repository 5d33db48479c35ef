//! Servers that requests are passed on to, and which of them may be dialled at all.
//!
//! A host must have a public address, as an unlisted registry must, unless the configuration names it: otherwise whoever reaches this port
//! could make the node connect to the machine's own services, to the cloud's metadata and into its network. Addresses are checked after
//! names were resolved and before they are dialled.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use http::header::{EXPECT, HOST, HeaderMap, HeaderValue, VIA};
use http::request::Parts;
use http::{Response, StatusCode};
use hyper::body::Body as _;
use lapwing_plugins::http::end_to_end;
use lapwing_plugins::registry::{PublicOnly, Registries, RegistryName, is_public};
use tokio::net::TcpStream;

use super::refusal::Refusal;
use super::rules::Rules;
use super::target::Target;
use crate::config::Config;

/// docker.io's registry is called otherwise than it is.
const DOCKER_HUB: &str = "registry-1.docker.io";

pub(super) struct Upstream {
    /// Reaches public addresses only.
    public: reqwest::Client,
    /// Reaches what the configuration names, wherever it is.
    named: reqwest::Client,
    connect_timeout: Duration,
    registries: Arc<Registries>,
    /// Registries of the configuration, by where they are reached.
    places: HashMap<Place, RegistryName>,
    /// Who this is in `Via`, so that requests that come round are known.
    pseudonym: HeaderValue,
}

/// Whether by TLS, the host and its port.
type Place = (bool, String, u16);

impl Upstream {
    pub(super) fn new(config: &Config, registries: Arc<Registries>) -> anyhow::Result<Self> {
        let ca_file = &config.proxy.upstream_ca_file;
        let certificates = if ca_file.as_os_str().is_empty() { Vec::new() } else { certificates(ca_file)? };
        let connect_timeout = Duration::from_secs(config.registries.connect_timeout_seconds.max(1));
        let client = || {
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .no_proxy()
                .http1_only()
                .tcp_nodelay(true)
                .connect_timeout(connect_timeout)
                .read_timeout(config.proxy.idle.0)
                .tls_certs_merge(certificates.clone())
        };
        let mut places = HashMap::new();
        for (name, registry) in &config.registries.hosts {
            let Ok(parsed) = name.parse::<RegistryName>() else { continue };
            let scheme = if registry.plain_http { "http" } else { "https" };
            let reached = registry.host.clone().unwrap_or_else(|| match parsed == RegistryName::docker_hub() {
                true => DOCKER_HUB.to_owned(),
                false => name.clone(),
            });
            if let Ok(target) = format!("{scheme}://{reached}/")
                .parse()
                .map_err(drop)
                .and_then(|uri| Target::absolute(&uri).map_err(drop))
            {
                places.insert(place(&target), parsed);
            }
        }
        let pseudonym = format!("1.1 lapwing-{:016x}", fastrand::u64(..));
        Ok(Self {
            public: client().dns_resolver(Arc::new(PublicOnly)).build().context("the proxy's HTTP client")?,
            named: client().build().context("the proxy's HTTP client")?,
            connect_timeout,
            registries,
            places,
            pseudonym: HeaderValue::try_from(pseudonym)?,
        })
    }

    /// The registry that a URL is of, where it is one whose blobs are shared.
    pub(super) fn registry(&self, target: &Target) -> Option<RegistryName> {
        if let Some(name) = self.places.get(&place(target)) {
            return Some(name.clone());
        }
        let name = match target.authority_text() {
            hub if hub == DOCKER_HUB => RegistryName::docker_hub(),
            other => other.parse().ok()?,
        };
        // What the configuration says of a registry of that name was for another place.
        let elsewhere = self.places.values().any(|known| *known == name);
        (target.tls && !elsewhere && self.registries.is_listed(&name)).then_some(name)
    }

    /// Whether the configuration names the host, as a registry or as one that may be private.
    fn is_named(&self, target: &Target, rules: &Rules) -> bool {
        rules.may_be_private(&target.host, target.port) || self.places.contains_key(&place(target))
    }

    /// Whether the request has passed here before.
    pub(super) fn came_round(&self, headers: &HeaderMap) -> bool {
        let own = self.pseudonym.as_bytes();
        headers.get_all(VIA).iter().any(|via| via.as_bytes().windows(own.len()).any(|part| part == own))
    }

    /// Passes a request on as it is, less what was meant for this proxy.
    pub(super) async fn pass(
        &self,
        target: &Target,
        head: &Parts,
        body: Body,
        rules: &Rules,
    ) -> Result<Response<Body>, Refusal> {
        let named = self.is_named(target, rules);
        if !named && let Some(address) = literal(&target.host) {
            check(address, target)?;
        }
        let client = if named { &self.named } else { &self.public };
        let mut headers = end_to_end(&head.headers);
        headers.remove(EXPECT);
        headers.remove(HOST);
        headers.append(VIA, self.pseudonym.clone());
        let mut request = client.request(head.method.clone(), target.to_string()).headers(headers);
        if !body.is_end_stream() {
            request = request.body(reqwest::Body::wrap_stream(body.into_data_stream()));
        }
        let answer = request.send().await.map_err(|error| {
            let reason = transport_reason(error);
            let status = if reason.contains(NO_PUBLIC) { StatusCode::FORBIDDEN } else { StatusCode::BAD_GATEWAY };
            Refusal::new(status, format!("{}: {reason}", target.authority_text()))
        })?;
        let (status, mut headers) = (answer.status(), end_to_end(answer.headers()));
        headers.append(VIA, self.pseudonym.clone());
        let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// A connection for a tunnel.
    pub(super) async fn dial(&self, target: &Target, rules: &Rules) -> Result<TcpStream, Refusal> {
        let failed =
            |reason: String| Refusal::new(StatusCode::BAD_GATEWAY, format!("{}: {reason}", target.authority_text()));
        let named = self.is_named(target, rules);
        let dialling = async {
            let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
            let found: Vec<SocketAddr> = found.map_err(|error| failed(error.to_string()))?.collect();
            let may: Vec<_> = found.iter().copied().filter(|address| named || is_public(address.ip())).collect();
            if let (Some(address), true) = (found.first(), may.is_empty()) {
                check(address.ip(), target)?;
            }
            let mut last = failed("it has no address".into());
            for address in may {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = failed(error.to_string()),
                }
            }
            Err(last)
        };
        let waited = self.connect_timeout;
        let stream = tokio::time::timeout(waited, dialling).await;
        let stream = stream.unwrap_or_else(|_| Err(failed(format!("no connection within {waited:?}"))))?;
        // Only latency is lost without.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

/// How the resolver that gives public addresses only says that there is none.
const NO_PUBLIC: &str = "no public address";

fn place(target: &Target) -> Place {
    (target.tls, target.host.clone(), target.port)
}

fn literal(host: &str) -> Option<IpAddr> {
    host.parse().ok()
}

fn check(address: IpAddr, target: &Target) -> Result<(), Refusal> {
    if is_public(address) {
        return Ok(());
    }
    let host = target.authority_text();
    let reason = format!(
        "{host} has {NO_PUBLIC}, and nothing else is connected to; name it in proxy.private_hosts if it is meant"
    );
    Err(Refusal::new(StatusCode::FORBIDDEN, reason))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let of = || format!("configuration key proxy.upstream_ca_file: {}", path.display());
    let pem = std::fs::read(path).with_context(of)?;
    reqwest::Certificate::from_pem_bundle(&pem).with_context(of)
}

/// What went wrong, with its causes and without the URL, whose query may be a signature.
fn transport_reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
