//! A node with its mirror, and a registry that has one image.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use axum::response::Response;
use lapwing_discovery::server::{Tracker, serve as serve_tracker};
use lapwing_discovery::{ClientConfig, TrackerClient};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Blob, Node, NodeConfig};
use lapwing_p2p::store::{ChunkStore, StoreConfig, StoreError};
use lapwing_plugins::http::{Urls, UrlsConfig};
use lapwing_plugins::registry::{Registries, RegistryName, RepositoryName};
use tokio_util::sync::CancellationToken;

use super::fake::{Fake, Seen, status, with_body};
use crate::catalog::{Image, LayerRecord};
use crate::mirror::{ImageObserver, Mirror, MirrorMetrics, MirrorSettings, serve};
use crate::outage::Outage;

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image of one layer.
#[derive(Clone)]
pub(super) struct Sample {
    pub layer: Vec<u8>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl Sample {
    pub(super) fn new(length: usize) -> Self {
        let mut layer = vec![0; length];
        fastrand::Rng::with_seed(length as u64).fill(&mut layer);
        let diff_id = Digest::of(b"the tar");
        let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#).into_bytes();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config).to_string(), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(&layer).to_string(), "size": length,
            }],
        });
        Self { layer, config, manifest: manifest.to_string().into_bytes() }
    }

    pub(super) fn layer_path(&self) -> String {
        format!("/v2/team/app/blobs/{}", Digest::of(&self.layer))
    }

    pub(super) fn config_path(&self) -> String {
        format!("/v2/team/app/blobs/{}", Digest::of(&self.config))
    }

    pub(super) fn manifest_path(&self) -> String {
        format!("/v2/team/app/manifests/{}", Digest::of(&self.manifest))
    }

    /// Answers as a registry that has this image under the tag `v1`.
    pub(super) fn answer(&self, seen: &Seen) -> Response {
        let path = seen.path();
        if path == self.layer_path() {
            bytes(seen, &self.layer)
        } else if path == self.config_path() {
            bytes(seen, &self.config)
        } else if path == self.manifest_path() || path == "/v2/team/app/manifests/v1" {
            let digest = Digest::of(&self.manifest).to_string();
            let length = self.manifest.len().to_string();
            let headers =
                [("content-type", MANIFEST_TYPE), ("docker-content-digest", &digest), ("content-length", &length)];
            let body = if seen.method == Method::HEAD { Body::empty() } else { Body::from(self.manifest.clone()) };
            with_body(200, &headers, body)
        } else {
            with_body(404, &[("content-type", "application/json")], r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)
        }
    }
}

/// A blob, or the range of it that is asked for.
pub(super) fn bytes(seen: &Seen, blob: &[u8]) -> Response {
    let total = blob.len();
    if seen.method == Method::HEAD {
        return status(200, &[("content-length", &total.to_string())]);
    }
    let Some(range) = seen.header("range") else {
        return with_body(200, &[], blob.to_vec());
    };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let sent = format!("bytes {first}-{last}/{total}");
    with_body(206, &[("content-range", &sent)], blob[first..=last].to_vec())
}

/// Writes down what it is told.
#[derive(Default)]
pub(super) struct Witness {
    pub images: Mutex<Vec<LayerRecord>>,
    pub opened: Mutex<Vec<Digest>>,
}

impl ImageObserver for Witness {
    fn image_seen(&self, image: &Image) {
        self.images.lock().unwrap().extend(image.records());
    }

    fn blob_opened(&self, _: &RegistryName, _: &RepositoryName, blob: &Arc<Blob>) {
        self.opened.lock().unwrap().push(blob.digest());
    }
}

/// A tracker on loopback; ends with the test's runtime.
pub(super) async fn tracker() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_tracker(listener, Tracker::new(), std::future::pending()));
    address
}

/// How a node and its mirror are to run.
pub(super) struct RigSettings {
    pub registries: Arc<Registries>,
    pub tracker: SocketAddr,
    pub first_byte: Duration,
    pub stale_if_error: Duration,
    /// How stale an answer may be while the registry is away; 0: there is none.
    pub max_stale: Duration,
    /// Hosts that URLs may be fetched from.
    pub allow: Vec<String>,
    pub directory: tempfile::TempDir,
}

impl RigSettings {
    pub(super) fn new(registry: &Fake, tracker: SocketAddr) -> Self {
        Self {
            registries: registry.listed(),
            tracker,
            first_byte: Duration::from_secs(10),
            stale_if_error: Duration::ZERO,
            max_stale: Duration::ZERO,
            allow: vec![registry.address.to_string()],
            directory: tempfile::tempdir().unwrap(),
        }
    }
}

/// A node and its mirror.
pub(super) struct Rig {
    pub address: SocketAddr,
    pub node: Arc<Node>,
    pub witness: Arc<Witness>,
    pub client: reqwest::Client,
    registry: String,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
    directory: tempfile::TempDir,
}

impl Rig {
    pub(super) async fn start(registry: &Fake) -> Self {
        Self::start_at(registry, tracker().await, Duration::from_secs(10)).await
    }

    pub(super) async fn start_at(registry: &Fake, tracker: SocketAddr, first_byte: Duration) -> Self {
        Self::start_with(registry, RigSettings { first_byte, ..RigSettings::new(registry, tracker) }).await
    }

    pub(super) async fn start_with(registry: &Fake, settings: RigSettings) -> Self {
        let RigSettings { registries, tracker, first_byte, stale_if_error, max_stale, allow, directory } = settings;
        let identity = Arc::new(Identity::load_or_create(&directory.path().join("key")).unwrap());
        let store = StoreConfig::default();
        let store = loop {
            match ChunkStore::open(&directory.path().join("store"), store) {
                // What a node that was there before left behind on blocking threads ends soon.
                Err(StoreError::Locked(_)) => tokio::task::yield_now().await,
                opened => break opened.unwrap(),
            }
        };
        // The tracker announces the port it is told: it must be known before the node binds it.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let discovery = TrackerClient::new(ClientConfig {
            piece_port: free.port(),
            ..ClientConfig::new(vec![tracker.to_string()], identity.id())
        });
        let config = NodeConfig::new(free, identity);
        let node = Node::start(config, store, discovery.unwrap(), Arc::new(Metrics::default())).await.unwrap();
        let witness = Arc::new(Witness::default());
        let settings = MirrorSettings { default_registry: registry.name(), first_byte };
        let urls = UrlsConfig {
            allow,
            stale_if_error,
            ignore_query: Vec::new(),
            max_parallel: 16,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
        };
        let urls = Urls::new(urls, directory.path().join("urls")).unwrap();
        let metrics = MirrorMetrics::default();
        let outage = (!max_stale.is_zero()).then(|| Outage::new(max_stale, node.clone()));
        let mirror = Mirror::new(settings, registries, urls, node.clone(), witness.clone(), metrics, outage);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, mirror, shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().http1_only().build().unwrap();
        let registry = registry.address.to_string();
        Self { address, node, witness, client, registry, shutdown, serving, directory }
    }

    /// A request to the mirror, with `ns` as containerd sends it.
    pub(super) fn ask(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let ns = self.registry.replace(':', "%3A");
        self.client.request(method, format!("http://{}{path}?ns={ns}", self.address))
    }

    pub(super) async fn get(&self, path: &str) -> reqwest::Response {
        self.ask(Method::GET, path).send().await.unwrap()
    }

    /// Stops it; its directory is left for a successor.
    pub(super) async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
        self.node.shutdown().await;
        self.directory
    }
}

pub(super) fn header<'a>(response: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}
