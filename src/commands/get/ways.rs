//! The two ways to a content: the node on this machine, and straight to the source.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_RANGE,
    RANGE,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::origin::{Origin as _, OriginError};
use lapwing_plugins::http::cache::Validator;
use lapwing_plugins::http::{FILTER_QUERY, Passed, Straight, Target};
use lapwing_plugins::limits::MAX_MANIFEST_LENGTH;
use lapwing_plugins::registry::{ForwardMethod, ForwardRequest, Reference, Resource};
use reqwest::{Client, Response, Url};

use super::limits::{MAX_LISTING, MAX_REFUSAL, NODE_CONNECT, USUAL_NODE};
use super::neighbour::is_trusted;
use super::outcome::{Failed, Fault, Via};
use super::place::{Place, Repository};
use super::progress::Teller;
use crate::mirror::sources::{self, Came};

/// What manifests there are.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What is asked for.
pub(super) struct Ask<'a> {
    pub place: &'a Place,
    pub headers: &'a HeaderMap,
    pub filter: &'a [String],
    /// Whether it will be taken slowly.
    pub paced: bool,
    /// From which byte on, and of which version.
    pub rest: Option<(u64, &'a str)>,
}

/// Bytes as they come, or why they do not.
type Body = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// A content that begins to come.
pub(super) struct Answer {
    pub body: Body,
    /// The first byte of `body`.
    pub from: u64,
    /// Of the whole, where it is told.
    pub length: Option<u64>,
    pub validator: Option<String>,
    pub via: Via,
    /// What it is called in the swarm, and what had come when this began.
    pub shared: Option<(String, Came)>,
    /// Why it does not come out of the swarm.
    pub because: Option<String>,
}

/// What became of a question.
pub(super) enum Opened {
    Answer(Box<Answer>),
    /// The part that is here is of another version.
    Outdated,
}

/// Which node is asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum NodeChoice {
    /// `--no-p2p`
    None,
    Named(SocketAddr),
    /// The one at the usual place, if it is to be trusted.
    Usual,
}

/// How the ways are made.
pub(super) struct WaysConfig {
    pub node: NodeChoice,
    pub silence: Duration,
    pub ca_file: Option<PathBuf>,
}

pub(super) struct Ways {
    node: Option<(SocketAddr, Client)>,
    /// Why there is none.
    absent: &'static str,
    /// Nobody answers there.
    away: AtomicBool,
    /// Made at its first use: the system's certificates take longer to be read than a small file to come from the node.
    straight: OnceLock<Straight>,
    ca_file: Option<PathBuf>,
    silence: Duration,
    teller: Teller,
}

impl Ways {
    pub(super) fn new(config: &WaysConfig, teller: Teller) -> Result<Self, Failed> {
        // The node speaks plain HTTP on this machine: no certificates are needed.
        let builder = || Client::builder().no_proxy().http1_only().tcp_nodelay(true).tls_certs_only([]);
        let client = || builder().connect_timeout(NODE_CONNECT).redirect(reqwest::redirect::Policy::none());
        let (node, absent) = match config.node {
            NodeChoice::None => (None, "--no-p2p"),
            NodeChoice::Named(node) => (Some(node), ""),
            NodeChoice::Usual if is_trusted(USUAL_NODE.port()) => (Some(USUAL_NODE), ""),
            NodeChoice::Usual => {
                teller.note(&format!(
                    "who listens at {USUAL_NODE} is another user: fetched straight from the source; name your node with --node"
                ));
                (None, "another user listens in the node's place")
            }
        };
        let node = node.map(|node| client().build().map(|client| (node, client)));
        let ways = Self {
            node: node.transpose().map_err(|error| Failed::new(Fault::Other, error.to_string()))?,
            absent,
            away: AtomicBool::new(false),
            straight: OnceLock::new(),
            ca_file: config.ca_file.clone(),
            silence: config.silence,
            teller,
        };
        if ways.ca_file.is_some() {
            // That it cannot be read is to be known at once.
            ways.straight()?;
        }
        Ok(ways)
    }

    fn straight(&self) -> Result<&Straight, Failed> {
        if let Some(made) = self.straight.get() {
            return Ok(made);
        }
        let made = Straight::new(self.silence, self.ca_file.as_deref());
        let made = made.map_err(|error| Failed::new(Fault::Other, error.to_string()))?;
        Ok(self.straight.get_or_init(|| made))
    }

    /// Begins to fetch; `straight`: not by the node.
    pub(super) async fn open(&self, ask: &Ask<'_>, straight: bool) -> Result<Opened, Failed> {
        let because = match self.node.as_ref().filter(|_| !straight) {
            Some(_) if self.away.load(Ordering::Relaxed) => "no node answers".to_owned(),
            Some((node, client)) => match self.by_node(*node, client, ask).await? {
                Ok(opened) => return Ok(opened),
                Err(reason) => {
                    self.teller.note(&format!("{reason}: fetched straight from the source"));
                    reason
                }
            },
            None if self.node.is_none() => self.absent.to_owned(),
            None => "the node could not go on".to_owned(),
        };
        self.by_source(ask, because).await
    }

    /// Inner error: why the node does not do it.
    async fn by_node(
        &self,
        node: SocketAddr,
        client: &Client,
        ask: &Ask<'_>,
    ) -> Result<Result<Opened, String>, Failed> {
        let mut headers = request_headers(ask)?;
        let filter = HeaderValue::try_from(ask.filter.join(","));
        headers.insert(FILTER_QUERY, filter.map_err(|_| Failed::new(Fault::Usage, "--filter-query: not in ASCII"))?);
        if ask.paced {
            headers.insert(sources::PACE, HeaderValue::from_static("slow"));
        }
        let asking = client.get(node_url(node, ask.place)).headers(headers).send();
        let response = match tokio::time::timeout(self.silence, asking).await {
            Err(_) => return Ok(Err(format!("the node at {node} did not answer within {:?}", self.silence))),
            Ok(Err(error)) if error.is_connect() => {
                self.away.store(true, Ordering::Relaxed);
                return Ok(Err(format!("no node answers at {node}")));
            }
            Ok(Err(error)) => return Ok(Err(format!("the node at {node} gave no answer: {error}"))),
            Ok(Ok(response)) => response,
        };
        let Some(how) = how(ask.place, &response) else {
            if response.status() == 416 && ask.rest.is_some() {
                return Ok(Ok(Opened::Outdated));
            }
            return Ok(Err(refusal(node, response).await));
        };
        let shared = response.headers().get(sources::CONTENT).and_then(sources::parse).filter(|_| how.is_none());
        let because = how.map(|why| format!("the node passed it through: {why}"));
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        judge(ask, status, &headers, response, Via::Node).map(|opened| {
            Ok(match opened {
                Opened::Answer(answer) => Opened::Answer(Box::new(Answer { shared, because, ..*answer })),
                Opened::Outdated => Opened::Outdated,
            })
        })
    }

    async fn by_source(&self, ask: &Ask<'_>, because: String) -> Result<Opened, Failed> {
        let opened = match ask.place {
            Place::Url(url) => {
                let headers = request_headers(ask)?;
                let passed = self.ask_source(url, &headers).await?;
                judge(ask, passed.status.as_u16(), &passed.headers, passed.body, Via::Source)?
            }
            Place::Blob { of, digest, length } => {
                let from = ask.rest.map_or(0, |(from, _)| from);
                Opened::Answer(Box::new(blob(of, *digest, from..*length).await?))
            }
        };
        Ok(match opened {
            Opened::Answer(answer) => Opened::Answer(Box::new(Answer { because: Some(because), ..*answer })),
            Opened::Outdated => Opened::Outdated,
        })
    }

    async fn ask_source(&self, url: &Url, headers: &HeaderMap) -> Result<Passed, Failed> {
        let (path, query) = path_of(url);
        let target = Target::parse(&path, query, headers);
        let target = target.map_err(|error| Failed::new(Fault::Usage, error.to_string()))?;
        let asking = tokio::time::timeout(self.silence, self.straight()?.get(&target, headers)).await;
        let silent = || Failed::network(format!("{}: no answer within {:?}", target.describe(), self.silence));
        asking.map_err(|_| silent())?.map_err(|error| Failed::network(error.to_string()))
    }

    /// The text of a directory listing, straight from its source.
    pub(super) async fn listing(&self, url: &Url, headers: &HeaderMap) -> Result<String, Failed> {
        let passed = self.ask_source(url, headers).await?;
        if passed.status != 200 {
            return Err(Failed::status(url.as_str(), passed.status.as_u16()));
        }
        let mut response = passed.body;
        let html = passed.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        if !html || response.url() != url {
            return Err(Failed::new(Fault::Protocol, format!("{url}: not a directory listing in HTML")));
        }
        let mut body = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| Failed::network(error.without_url().to_string()))?
        {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_LISTING {
                return Err(Failed::new(Fault::Protocol, format!("{url}: a listing of more than {MAX_LISTING} bytes")));
            }
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// A manifest, by the node if there is one, else from its registry.
    pub(super) async fn manifest(
        &self,
        of: &Repository,
        reference: &Reference,
        headers: &HeaderMap,
    ) -> Result<Bytes, Failed> {
        let because = match &self.node {
            Some((node, client)) if !self.away.load(Ordering::Relaxed) => {
                let url = format!("http://{node}/v2/{}/manifests/{reference}?ns={}", of.repository, of.registry);
                let mut headers = headers.clone();
                for kind in MANIFESTS {
                    headers.append(ACCEPT, HeaderValue::from_static(kind));
                }
                match tokio::time::timeout(self.silence, client.get(url).headers(headers).send()).await {
                    Ok(Ok(answer)) if answer.status().is_success() => {
                        return bounded(answer).await.map_err(Failed::network);
                    }
                    Ok(Ok(answer)) => refusal(*node, answer).await,
                    Ok(Err(_)) => {
                        self.away.store(true, Ordering::Relaxed);
                        format!("no node answers at {node}")
                    }
                    Err(_) => format!("the node at {node} did not answer within {:?}", self.silence),
                }
            }
            _ => String::new(),
        };
        if !because.is_empty() {
            self.teller.note(&format!("{because}: asked straight of the registry"));
        }
        let request = ForwardRequest {
            method: ForwardMethod::Get,
            registry: of.registry.clone(),
            repository: of.repository.clone(),
            resource: Resource::Manifest(reference.clone()),
            query: None,
            accept: MANIFESTS.map(HeaderValue::from_static).to_vec(),
            credential: of.credential.clone(),
        };
        let answer = of.registries.forward(&request).await.map_err(|error| Failed::network(error.to_string()))?;
        if !answer.status.is_success() {
            let shown = format!("{}/{}:{reference}", of.registry, of.repository);
            return Err(Failed::status(&shown, answer.status.as_u16()));
        }
        Ok(answer.body)
    }

    /// What came to the node of a content since it opened it.
    pub(super) async fn came(&self, name: &str) -> Option<Came> {
        let (node, client) = self.node.as_ref()?;
        let url = format!("http://{node}{}{name}", sources::PREFIX);
        let answer = client.get(url).timeout(NODE_CONNECT).send().await.ok()?.error_for_status().ok()?;
        answer.json().await.ok()
    }
}

/// A blob as its registry gives it.
async fn blob(of: &Repository, digest: Digest, range: Range<u64>) -> Result<Answer, Failed> {
    let (from, length) = (range.start, range.end);
    let unknown = |error: &dyn std::fmt::Display| Failed::new(Fault::Other, error.to_string());
    let origin = of.registries.origin(&of.registry, &of.repository, digest, length, of.credential.clone());
    let origin = origin.map_err(|error| unknown(&error))?;
    let body: Body = if range.is_empty() {
        Box::pin(futures_util::stream::empty())
    } else {
        let stream = origin.fetch(range).await.map_err(|error| of_origin(&error))?;
        Box::pin(stream.map(|chunk| chunk.map_err(|error| error.to_string())))
    };
    let validator = Some(format!("\"{digest}\""));
    Ok(Answer { body, from, length: Some(length), validator, via: Via::Source, shared: None, because: None })
}

fn of_origin(error: &OriginError) -> Failed {
    let reason = error.to_string();
    match error {
        OriginError::Unauthorized { .. } => {
            Failed::new(Fault::Credentials, format!("{reason}; docker login, or give a header"))
        }
        OriginError::NotFound { .. } => Failed::new(Fault::Status, reason),
        _ => Failed::network(reason),
    }
}

fn node_url(node: SocketAddr, place: &Place) -> String {
    match place {
        Place::Url(url) => {
            let (path, query) = path_of(url);
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            format!("http://{node}/url/{path}{query}")
        }
        Place::Blob { of, digest, .. } => {
            format!("http://{node}/v2/{}/blobs/{digest}?ns={}", of.repository, of.registry)
        }
    }
}

/// As the node and `Target::parse` read it.
fn path_of(url: &Url) -> (String, Option<&str>) {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    (format!("{}/{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path()), url.query())
}

fn request_headers(ask: &Ask<'_>) -> Result<HeaderMap, Failed> {
    let mut headers = ask.headers.clone();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Some((from, validator)) = ask.rest {
        let value =
            |text: &str| HeaderValue::try_from(text).map_err(|error| Failed::new(Fault::Protocol, error.to_string()));
        headers.insert(RANGE, value(&format!("bytes={from}-"))?);
        headers.insert(IF_RANGE, value(validator)?);
    }
    Ok(headers)
}

/// None if the answer is the node's own, else why the source's answer was passed through, if it was.
fn how(place: &Place, response: &Response) -> Option<Option<String>> {
    if matches!(place, Place::Blob { .. }) {
        let listed = response.headers().contains_key(sources::CONTENT);
        let why = || "the registry is not listed under registries.hosts".to_owned();
        return response.status().is_success().then(|| (!listed).then(why));
    }
    let text = response.headers().get(CACHE_STATUS)?.to_str().ok()?.strip_prefix("lapwing; ")?;
    let why = || text.split_once("detail=").map_or(text, |(_, detail)| detail.trim_matches('"')).to_owned();
    Some((!text.starts_with("hit")).then(why))
}

/// What the node says when it refuses.
async fn refusal(node: SocketAddr, mut response: Response) -> String {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_REFUSAL {
            return format!("what answers at {node} is not a node (HTTP {status})");
        }
    }
    let told: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let message = told.as_ref().and_then(|told| told.pointer("/errors/0/message")).and_then(|message| message.as_str());
    match message {
        Some(message) => format!("the node does not fetch it: {}", message.escape_debug()),
        None => format!("what answers at {node} is not a node (HTTP {status})"),
    }
}

/// The body of a manifest.
async fn bounded(mut response: Response) -> Result<Bytes, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| error.without_url().to_string())? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_MANIFEST_LENGTH {
            return Err(format!("a manifest of more than {MAX_MANIFEST_LENGTH} bytes"));
        }
    }
    Ok(body.into())
}

/// Holds the source's answer to what was asked for.
fn judge(ask: &Ask<'_>, status: u16, headers: &HeaderMap, body: Response, via: Via) -> Result<Opened, Failed> {
    let shown = ask.place.shown();
    let validator = Validator::of(headers, SystemTime::now()).map(|validator| validator.as_str().to_owned());
    let (from, length) = match (status, ask.rest) {
        (200, _) => (0, number(headers)),
        // Who takes no notice of `If-Range` may give a part of another version.
        (206, Some((_, version))) if validator.as_deref() != Some(version) => return Ok(Opened::Outdated),
        (206, Some((from, _))) => match content_range(headers) {
            Some((start, length)) if start == from => (from, Some(length)),
            _ => {
                let reason = format!("{shown}: the answer is not the range that was asked for");
                return Err(Failed::new(Fault::Protocol, reason));
            }
        },
        (412 | 416, Some(_)) => return Ok(Opened::Outdated),
        _ => return Err(Failed::status(&shown, status)),
    };
    let body = Box::pin(body.bytes_stream().map(|chunk| chunk.map_err(|error| error.without_url().to_string())));
    Ok(Opened::Answer(Box::new(Answer { body, from, length, validator, via, shared: None, because: None })))
}

fn number(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// First byte, and length of the whole.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let (range, length) = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, length.parse().ok()?))
}
