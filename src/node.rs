//! The node daemon: everything a worker needs, put together.
//!
//! Start order: directories and identity, chunk store, discovery, swarm, lazy mounts (from here on reads of what a former
//! process mounted are answered), snapshotter, mirror, and last the word "ready". Nothing here needs a registry or a
//! tracker to be up.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use lapwing_discovery::client::{ClientConfig, TrackerClient};
use lapwing_p2p::discovery::Discovery;
use lapwing_p2p::membership::Role as Member;
use lapwing_p2p::node::{Node, NodeConfig, NodeError};
use lapwing_p2p::store::{ChunkStore, Medium, StoreConfig};
use lapwing_p2p::timeline::Timelines;
use lapwing_plugins::containerd::Containerd;
use lapwing_plugins::http::Urls;
use lapwing_plugins::registry::Registries;
use lapwing_snapshotter::fuse::HolderProgram;
use lapwing_snapshotter::lazy::{self, Backend, LazyMetrics, LazyMounts, Unsupported};
use lapwing_snapshotter::remote::RemoteLayers;
use lapwing_snapshotter::service::{Diffs, SnapshotMetrics, Snapshotter, SnapshotterConfig, Socket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::catalog::Catalog;
use crate::cli::HOLD_COMMAND;
use crate::config::{Config, LazyBackend, StoreKind};
use crate::confinement::mounter;
use crate::dashboard::{self, Dashboard};
use crate::explain::{self, Pulls};
use crate::held;
use crate::hydrate::{self, Hydration};
use crate::layers::build::Builder;
use crate::layers::tars::Tars;
use crate::layers::{KeptIndexes, Layers, Lazy, Origins, sweep};
use crate::membership::Membership;
use crate::memory;
use crate::mirror::{self, MirrorMetrics, MirrorSettings};
use crate::outage::Outage;
use crate::preheat::Preheat;
use crate::preheat::machine::Worker;
use crate::profiles::{self, Profiles, Terms};
use crate::proxy::{self, Proxy, ProxyMetrics};
use crate::rights::Rights;
use crate::traces::{Recorder, Traces};
use crate::tracker;

pub(crate) mod observer;
pub(crate) mod pins;
pub(crate) mod removal;
mod solitary;
pub(crate) mod state;

/// After so long a node has its mounts of before back, and containerd has ended what it was unpacking.
const RESTORED: Duration = Duration::from_secs(600);

/// Whether the daemon brings a tracker of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Embedded {
    /// `lapwing node`
    Nothing,
    /// `lapwing up`
    Tracker,
}

/// What a node of the swarm is to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Fetches for itself.
    Worker,
    /// Fetches for all, asked at this port.
    Seed {
        /// Of its service.
        port: u16,
    },
}

impl Role {
    const fn seed_port(self) -> u16 {
        match self {
            Self::Worker => 0,
            Self::Seed { port } => port,
        }
    }
}

/// What a worker's listeners are made of.
struct Parts {
    node: Arc<Node>,
    catalog: Arc<Catalog>,
    registries: Arc<Registries>,
    origins: Arc<Origins>,
    layers: Arc<Layers>,
    outage: Option<Arc<Outage>>,
    containerd: Containerd,
    /// None where nothing is mounted lazily.
    profiles: Option<Arc<Profiles>>,
    pulls: Arc<Pulls>,
}

/// Runs until `shutdown`, then lets go in the opposite order. Mounts stay for the next process to take up.
pub(crate) async fn run(mut config: Config, embedded: Embedded, shutdown: CancellationToken) -> anyhow::Result<()> {
    let root = prepare_root(&config.root)?;
    let mut admin = Admin::default();
    let roles: &[_] = if embedded == Embedded::Tracker { &[Member::Node, Member::Tracker] } else { &[Member::Node] };
    let membership = Membership::open(&config, roles, admin.lapwing()).await?;
    let role = if embedded == Embedded::Tracker { "up" } else { "node" };
    let recorder = Recorder { role, peer: Some(membership.identity.id()), config: &config };
    let traces = Traces::start(&recorder, admin.lapwing())?;
    let mut shown = Vec::new();
    if embedded == Embedded::Tracker {
        let tracker = tracker::new(&config)?;
        tracker.metrics().register(&mut admin.metrics);
        admin.api = admin.api.merge(tracker::view::routes(tracker.clone()));
        shown.push(tracker::dashboard_part(tracker.clone()));
        tracker::start(&config, tracker, &membership, shutdown.clone()).await?;
        config.tracker.addresses.push(config.tracker.listen.to_string());
    }
    let swarm = start_swarm(&config, &membership, &mut admin, Role::Worker).await?;
    let parts = assemble(&config, &root, swarm, &mut admin)?;
    parts.layers.serve_former()?;
    let mut serving = JoinSet::new();
    serving.spawn(mounter::watch(shutdown.clone()));
    if config.snapshotter.enabled {
        serving.spawn(start_snapshotter(&config, &parts, &mut admin, &shutdown).await?);
    }
    start_mirror(&config, &root, &parts, &mut admin, &mut serving, &shutdown).await?;
    start_admin(&config, &parts, admin, shown, &shutdown).await?;
    let Parts { node, layers, .. } = parts;
    serving.spawn(memory::return_after_bursts(Arc::clone(&node), shutdown.clone()));
    tracing::info!(peer = %node.id(), mirror = %config.mirror.listen, wire = %node.local_addr(), "node is ready");

    let ended = served(serving, &shutdown).await;
    // Also after a failure: what readers wait for is left to the next process, not answered with errors.
    if let Some(mounts) = layers.mounts() {
        mounts.shutdown().await;
    }
    node.shutdown().await;
    Traces::finish(traces).await;
    ended
}

fn assemble(config: &Config, root: &Path, node: Arc<Node>, admin: &mut Admin) -> anyhow::Result<Parts> {
    let catalog = Arc::new(Catalog::open(&root.join("catalog.redb"))?);
    let registries = Registries::new(config.registries.clone())?;
    if let Some(file) = config.trust.rights_key_file() {
        registries.believe(Rights::open(file, Arc::clone(&node))?);
    }
    let max_stale = config.outage.max_stale.0;
    let outage = (!max_stale.is_zero()).then(|| Outage::new(max_stale, Arc::clone(&node)));
    let origins = Arc::new(Origins::new(Arc::clone(&registries), outage.clone()));
    let metrics = LazyMetrics::default();
    metrics.register(admin.lapwing());
    let complete_after = (!config.lazy.complete_after.0.is_zero()).then_some(config.lazy.complete_after.0);
    let layers = Layers::new(
        Arc::clone(&node),
        Arc::clone(&catalog),
        Arc::clone(&origins),
        start_lazy(config, metrics, Arc::clone(node.timelines())),
        KeptIndexes::new(root),
        config.lazy.formats(),
        complete_after,
    );
    let containerd = Containerd::at(&config.containerd.socket).context("configuration key containerd.socket")?;
    let terms = Terms { record_for: config.lazy.record_for.0, prefetch: config.lazy.prefetch };
    let profiles = layers
        .mounts()
        .map(|mounts| Profiles::new(root, Arc::clone(&node), Arc::clone(mounts), containerd.clone(), terms));
    if let Some(profiles) = &profiles {
        layers.tell(Arc::clone(profiles));
    }
    let pulls = Arc::new(Pulls::new(Arc::clone(node.timelines())));
    Ok(Parts { node, catalog, registries, origins, layers, outage, containerd, profiles, pulls })
}

/// Starts the mirror, and the forward proxy if there is to be one.
async fn start_mirror(
    config: &Config,
    root: &Path,
    parts: &Parts,
    admin: &mut Admin,
    serving: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let builder = config.lazy.build_indexes.then(|| start_builder(config, parts));
    let (catalog, layers, pulls) = (Arc::clone(&parts.catalog), Arc::clone(&parts.layers), Arc::clone(&parts.pulls));
    let observer = Arc::new(observer::Observer::new(catalog, layers, pulls, builder));
    let default_registry = config.mirror.default_registry.parse();
    let mirror = mirror::Mirror::new(
        MirrorSettings {
            default_registry: default_registry.context("configuration key mirror.default_registry")?,
            first_byte: config.mirror.first_byte.0,
        },
        Arc::clone(&parts.registries),
        Urls::new(config.http.urls(), root.join("urls"))?,
        Arc::clone(&parts.node),
        observer,
        MirrorMetrics::register(admin.lapwing()),
        parts.outage.clone(),
    );
    let listen = config.mirror.listen;
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| cannot_listen("mirror.listen", listen))?;
    serving.spawn(mirror::serve(listener, Arc::clone(&mirror), shutdown.clone()));
    let metrics = ProxyMetrics::register(admin.lapwing());
    if let Some(listen) = config.proxy.listen() {
        let proxy = Proxy::new(config, Arc::clone(&parts.registries), mirror, metrics, shutdown.clone())?;
        serving.spawn(proxy::serve(bind_proxy(listen).await?, proxy));
    }
    Ok(())
}

fn start_builder(config: &Config, parts: &Parts) -> Arc<Builder> {
    let mounts = parts.layers.mounts().filter(|_| config.lazy.enabled && config.snapshotter.enabled);
    let tars = mounts.map(|mounts| {
        let (containerd, socket) = (parts.containerd.clone(), config.snapshotter.socket.clone());
        Arc::new(Tars::new(Arc::clone(mounts), containerd, socket, config.store.free_floor.0))
    });
    let told = Arc::clone(&parts.layers);
    let built = Box::new(move |layer, index| told.built(layer, index));
    let builder = Arc::new(Builder::new(Arc::clone(&parts.node), built).keeping(tars.clone()));
    parts.layers.build_by(Arc::clone(&builder), tars);
    builder
}

/// Follows what containerd holds, and begins to answer operators: from then on the node is ready.
async fn start_admin(
    config: &Config,
    parts: &Parts,
    mut admin: Admin,
    mut shown: Vec<(&'static str, dashboard::Part)>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let Parts { node, catalog, registries, layers, origins, containerd, profiles, pulls, .. } = parts;
    let told = (Arc::clone(node), Arc::clone(layers), Arc::clone(catalog));
    admin.state = Some(Box::new(move || {
        serde_json::to_value(state::NodeState::gather(&told.0, &told.1, &told.2)).unwrap_or_default()
    }));
    admin.limited = Some(Arc::clone(node));
    admin.api = admin.api.merge(pins::routes(Arc::clone(node.store())));
    admin.api = admin.api.merge(explain::api::routes(Arc::clone(pulls)));
    admin.api = admin.api.merge(removal::routes(Arc::clone(node)));
    shown.push(("node", dashboard_part(config, parts)));
    admin.api = admin.api.merge(dashboard::routes(Dashboard::new("node", shown)));
    if let Some(profiles) = profiles {
        admin.api = admin.api.merge(profiles::api::routes(Arc::clone(profiles)));
    }
    held::start(&config.containerd, containerd, node);
    admin.api = admin.api.merge(hydrate::routes(Hydration {
        node: Arc::clone(node),
        origins: Arc::clone(origins),
        catalog: Arc::clone(catalog),
        containerd: containerd.clone(),
    }));
    let told = Arc::clone(layers);
    // Of its own: it keeps no tars, since nobody has asked for these layers yet.
    let builder = Builder::new(Arc::clone(node), Box::new(move |layer, index| told.built(layer, index)));
    let worker = Worker { node: Arc::clone(node), registries: Arc::clone(registries), builder: Arc::new(builder) };
    Preheat::start(Arc::new(worker), node, registries, config, &mut admin, shutdown).await?;
    let ready = Arc::clone(&admin.ready);
    let listen = config.admin.listen;
    admin::bind(listen, admin, shutdown.clone().cancelled_owned())
        .await
        .with_context(|| cannot_listen("admin.listen", listen))?;
    ready.store(true, Ordering::Release);
    Ok(())
}

/// What the dashboard shows of the node.
fn dashboard_part(config: &Config, parts: &Parts) -> dashboard::Part {
    let Parts { node, catalog, layers, pulls, .. } = parts;
    let (node, catalog, layers, pulls) = (Arc::clone(node), Arc::clone(catalog), Arc::clone(layers), Arc::clone(pulls));
    let quota = (config.store.quota.0 > 0).then_some(config.store.quota.0);
    Box::new(move || {
        dashboard::node::state(&node, state::NodeState::gather(&node, &layers, &catalog), Some(&pulls), quota)
    })
}

/// Waits for the shutdown and then for the end of everything that serves. What ends before ends the node: one that lacks a part
/// is worse than one that is started anew.
pub(crate) async fn served(
    mut serving: JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        Some(ended) = serving.join_next() => {
            ended??;
            anyhow::bail!("a listener of the node ended though nobody stopped it");
        }
    }
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    Ok(())
}

async fn bind_proxy(listen: std::net::SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    if !listen.ip().is_loopback() {
        tracing::warn!(%listen, "proxy.listen can be reached from other machines: every host that reaches it may use it");
    }
    tokio::net::TcpListener::bind(listen).await.with_context(|| cannot_listen("proxy.listen", listen))
}

/// What is said of an address that is taken or not ours.
pub(crate) fn cannot_listen(key: &str, address: std::net::SocketAddr) -> String {
    format!("configuration key {key}: {address} cannot be listened on; choose another address, or stop who has it")
}

/// Makes the root directory, readable by root alone.
pub(crate) fn prepare_root(root: &Path) -> anyhow::Result<std::path::PathBuf> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .with_context(|| format!("configuration key root: {} cannot be made", root.display()))?;
    root.canonicalize().with_context(|| format!("configuration key root: {}", root.display()))
}

/// Starts store, discovery and piece wire.
pub(crate) async fn start_swarm(
    config: &Config,
    membership: &Membership,
    admin: &mut Admin,
    role: Role,
) -> anyhow::Result<Arc<Node>> {
    let identity = Arc::clone(&membership.identity);
    let quota = (config.store.quota.0 > 0).then_some(config.store.quota.0);
    let store = ChunkStore::open(
        &config.root,
        StoreConfig {
            medium: match config.store.kind {
                StoreKind::Disk => Medium::Disk,
                StoreKind::Memory => Medium::Memory,
            },
            quota_bytes: quota,
            free_floor_bytes: config.store.free_floor.0,
            high_watermark_percent: config.store.high_watermark,
            low_watermark_percent: config.store.low_watermark,
        },
    )?;
    // Before anything can be evicted: mounts hold what they read, and they come back one after the other.
    let held: Vec<_> = lazy::kept_layers(&config.root).into_iter().map(|layer| store.hold(layer)).collect();
    tokio::spawn(async move {
        tokio::time::sleep(RESTORED).await;
        drop(held);
    });
    let mut settings = NodeConfig::new(config.peer.listen, Arc::clone(&identity));
    settings.read_deadline = config.lazy.read_deadline.0;
    settings.congestion_control = config.peer.congestion_control.clone().into();
    settings.upload_slots = config.peer.upload_slots;
    settings.limits = (&config.limits).into();
    settings.security = membership.security(config);
    settings.metainfo_quorum = config.trust.metainfo_quorum;
    settings.index_quorum = config.trust.index_quorum;
    settings.referent_quorum = config.outage.quorum;
    settings.compression = config.peer.compression;
    settings.group = config.tracker.group.clone().into();
    settings.ask_seeds = role == Role::Worker;
    let discovery: Arc<dyn Discovery> = if config.tracker.addresses.is_empty() {
        tracing::warn!("no tracker is configured (tracker.addresses): blobs come from the registries alone");
        Arc::new(solitary::Solitary)
    } else {
        membership.warn(config);
        TrackerClient::new(ClientConfig {
            group: config.tracker.group.clone(),
            zone: config.tracker.zone.clone(),
            rack: config.tracker.rack.clone(),
            piece_port: config.peer.listen.port(),
            seed: role != Role::Worker,
            seed_port: role.seed_port(),
            tls: membership.calls()?,
            resolver: config.tracker.resolver().map_err(anyhow::Error::msg)?,
            refresh: config.tracker.refresh.0,
            ..ClientConfig::new(config.tracker.addresses.clone(), identity.id())
        })?
    };
    let metrics = Arc::new(lapwing_p2p::metrics::Metrics::default());
    metrics.register(admin.lapwing());
    Node::start(settings, store, discovery, metrics).await.map_err(|error| match error {
        NodeError::Bind { .. } => anyhow::Error::new(error).context("configuration key peer.listen"),
        NodeError::Store(_) | NodeError::Tls(_) => error.into(),
    })
}

/// The lazy mounts, or the reason why layers are pulled whole on this machine. Those that a former process left alive are taken up in any
/// case: containers use them.
fn start_lazy(config: &Config, metrics: LazyMetrics, timelines: Arc<Timelines>) -> Lazy {
    let enabled = config.lazy.enabled && config.snapshotter.enabled;
    let backend = if enabled {
        lazy_backend(config).map_err(|error| error.to_string())
    } else {
        Err("lazy.enabled or snapshotter.enabled is false".to_owned())
    };
    let options = lazy::Options {
        deadline: config.lazy.read_deadline.0,
        watch_first_start: !config.lazy.record_for.0.is_zero(),
        metrics,
        timelines,
        ..lazy::Options::default()
    };
    let options = lazy::Options { backend: *backend.as_ref().unwrap_or(&options.backend), ..options };
    let holder = config.lazy.holder.then(|| HolderProgram {
        // The running program, though an upgrade may have put another in its place.
        program: "/proc/self/exe".into(),
        arguments: vec![HOLD_COMMAND.to_owned()],
    });
    let refused = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "layers cannot be mounted lazily here: they are pulled whole");
        Lazy { mounts: None, unsupported: Some(error.to_string()) }
    };
    match (LazyMounts::take_up(&config.root, options.clone(), holder.clone()), backend) {
        (Ok(Some(mounts)), backend) => return Lazy { mounts: Some(mounts), unsupported: backend.err() },
        (Err(error), _) => {
            tracing::error!(%error, "the lazy mounts of a former process are not served");
            return refused(&error);
        }
        (Ok(None), Err(unsupported)) if !enabled => return Lazy { mounts: None, unsupported: Some(unsupported) },
        (Ok(None), Err(unsupported)) => return refused(&unsupported),
        (Ok(None), Ok(backend)) => tracing::debug!(?backend, "layers are mounted lazily"),
    }
    match LazyMounts::start_kept(&config.root, options, holder) {
        Ok(mounts) => {
            if !mounts.is_kept() {
                tracing::warn!(
                    "nobody keeps the lazy mounts while no node runs: when this process ends, containers lose them"
                );
            }
            Lazy { mounts: Some(mounts), unsupported: None }
        }
        Err(error) => refused(&error),
    }
}

/// How layers are mounted lazily here, found by trying.
fn lazy_backend(config: &Config) -> Result<Backend, Unsupported> {
    let erofs = || lazy::probe(&config.root).map(|_| Backend::Erofs);
    let fuse = || lazy::probe_trees().map(|()| Backend::Fuse);
    match config.lazy.backend {
        LazyBackend::Erofs => erofs(),
        LazyBackend::Fuse => fuse(),
        LazyBackend::Auto => erofs().or_else(|error| {
            tracing::warn!(%error, "the kernel's EROFS cannot show lazy layers here: FUSE alone does, more slowly");
            fuse()
        }),
    }
}

async fn start_snapshotter(
    config: &Config,
    parts: &Parts,
    admin: &mut Admin,
    shutdown: &CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<>> {
    let settings = SnapshotterConfig {
        resolve_timeout: config.snapshotter.resolve_timeout.0,
        ..SnapshotterConfig::new(&config.root)
    };
    let remote: Arc<dyn RemoteLayers> = Arc::clone(&parts.layers) as _;
    let metrics = SnapshotMetrics::default();
    metrics.register(admin.lapwing());
    let snapshotter = Snapshotter::open(settings, Some(remote), metrics)?;
    snapshotter.restore().await?;
    tokio::spawn(sweep::run(Arc::clone(&parts.layers), snapshotter.clone(), shutdown.clone()));
    let socket = Socket::bind(&config.snapshotter.socket).context("configuration key snapshotter.socket")?;
    let diffs = Diffs::new(snapshotter.clone(), Arc::new(parts.containerd.clone()));
    let diffs = diffs.taken_down(Arc::clone(parts.node.timelines()));
    let serving = socket.serve(snapshotter, Some(diffs), shutdown.clone().cancelled_owned());
    Ok(async move { serving.await.context("the snapshotter's socket") })
}
