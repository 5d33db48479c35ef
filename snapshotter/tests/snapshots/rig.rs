//! A snapshotter on a socket of its own, its client, and a source of layers that are directories.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::graph::{Labels, REF_LABEL};
use lapwing_snapshotter::remote::{Fallback, Fetched, RemoteLayers, Started, Target};
use lapwing_snapshotter::service::proto::diff::diff_client::DiffClient;
use lapwing_snapshotter::service::proto::diff::{ApplyRequest, ApplyResponse};
use lapwing_snapshotter::service::proto::snapshots_client::SnapshotsClient;
use lapwing_snapshotter::service::proto::{
    CommitSnapshotRequest, Descriptor, Info, ListSnapshotsRequest, Mount, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest,
};
use lapwing_snapshotter::service::{
    Diffs, ServeError, SnapshotMetrics, Snapshotter, SnapshotterConfig, Socket, Unpacker,
};
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Mounts are for root alone; who runs the tests otherwise is told what was not tested.
pub(crate) fn may_mount(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped {test}: mounting needs root");
    }
    is_root
}

/// Bind-mounts directories in place of layers.
#[derive(Default)]
pub(crate) struct Directories {
    by_chain_id: Mutex<HashMap<String, (Digest, PathBuf)>>,
    /// What resolve was told: chain id, parent's chain id, namespace.
    pub(crate) asked: Mutex<Vec<(String, Option<String>, String)>>,
    pub(crate) mounts: AtomicUsize,
    pub(crate) started: Mutex<Vec<Started>>,
    pub(crate) silent: std::sync::atomic::AtomicBool,
    pub(crate) broken: std::sync::atomic::AtomicBool,
}

impl Directories {
    pub(crate) fn add(&self, chain_id: &str, directory: &Path) {
        let layer = Digest::of(directory.as_os_str().as_encoded_bytes());
        self.by_chain_id.lock().unwrap().insert(chain_id.to_owned(), (layer, directory.to_owned()));
    }
}

impl RemoteLayers for Directories {
    fn resolve<'a>(&'a self, target: &'a Target<'a>) -> BoxFuture<'a, Result<Digest, Fallback>> {
        let asked = (target.chain_id.to_owned(), target.parent_chain_id.clone(), target.namespace.clone());
        self.asked.lock().unwrap().push(asked);
        let found = self.by_chain_id.lock().unwrap().get(target.chain_id).map(|(layer, _)| *layer);
        Box::pin(async move {
            if self.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            found.ok_or_else(|| Fallback { reason: "no-index", message: "nobody has it".to_owned() })
        })
    }

    fn fetched<'a>(&'a self, layer: &'a Digest, length: u64) -> BoxFuture<'a, Result<Fetched, Fallback>> {
        let is_known = self.by_chain_id.lock().unwrap().values().any(|(known, _)| known == layer);
        let fetched = Fetched { diff_id: *layer, tar_length: 2 * length };
        let outcome =
            is_known.then_some(fetched).ok_or_else(|| Fallback { reason: "no_index", message: String::new() });
        Box::pin(std::future::ready(outcome))
    }

    fn mount(&self, layer: &Digest, at: &Path, _: &[PathBuf]) -> Result<(), String> {
        if self.broken.load(Ordering::SeqCst) {
            return Err("out of order".to_owned());
        }
        let layers = self.by_chain_id.lock().unwrap();
        let (_, directory) = layers.values().find(|(known, _)| known == layer).ok_or("unknown layer")?;
        self.unmount(at);
        rustix::mount::mount_bind(directory, at).map_err(|error| error.to_string())?;
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        rustix::mount::mount_remount(at, flags, "").map_err(|error| error.to_string())?;
        self.mounts.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn directory(&self, layer: &Digest) -> Option<PathBuf> {
        let layers = self.by_chain_id.lock().unwrap();
        layers.values().find(|(known, _)| known == layer).map(|(_, directory)| directory.clone())
    }

    fn started(&self, started: Started) {
        self.started.lock().unwrap().push(started);
    }

    fn unmount(&self, at: &Path) {
        let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
    }
}

/// Takes down what it is to unpack; asks the socket back first, as containerd does where it is configured to.
pub(crate) struct Unpacks {
    socket: PathBuf,
    pub(crate) asked: Mutex<Vec<(String, ApplyRequest)>>,
    pub(crate) came_back: Mutex<Vec<Code>>,
}

impl Unpacks {
    pub(crate) fn at(socket: &Path) -> Arc<Self> {
        Arc::new(Self { socket: socket.to_owned(), asked: Mutex::default(), came_back: Mutex::default() })
    }
}

impl Unpacker for Unpacks {
    fn unpack(&self, namespace: String, request: ApplyRequest) -> BoxFuture<'_, Result<ApplyResponse, Status>> {
        Box::pin(async move {
            let back = apply_in(&self.socket, &namespace, request.clone()).await;
            self.came_back.lock().unwrap().push(code(back));
            let applied = request.diff.clone();
            self.asked.lock().unwrap().push((namespace, request));
            Ok(ApplyResponse { applied })
        })
    }
}

pub(crate) async fn apply_in(socket: &Path, namespace: &str, request: ApplyRequest) -> Result<Descriptor, Status> {
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap();
    let mut request = Request::new(request);
    request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
    Ok(DiffClient::new(channel).apply(request).await?.into_inner().applied.unwrap())
}

struct Server {
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), ServeError>>,
}

pub(crate) struct Rig {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) layers: Arc<Directories>,
    pub(crate) unpacks: Arc<Unpacks>,
    pub(crate) metrics: SnapshotMetrics,
    pub(crate) client: SnapshotsClient<Channel>,
    pub(crate) snapshotter: Snapshotter,
    /// Of the requests.
    pub(crate) namespace: String,
    server: Option<Server>,
}

pub(crate) async fn connect(socket: &Path) -> SnapshotsClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    SnapshotsClient::new(channel)
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), Arc::default(), Duration::from_secs(60)).await
    }

    pub(crate) async fn start_with_timeout(resolve_timeout: Duration) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), Arc::default(), resolve_timeout).await
    }

    async fn start_in(directory: tempfile::TempDir, layers: Arc<Directories>, resolve_timeout: Duration) -> Self {
        let metrics = SnapshotMetrics::default();
        let config = SnapshotterConfig { resolve_timeout, ..SnapshotterConfig::new(directory.path().join("root")) };
        let remote: Arc<dyn RemoteLayers> = Arc::clone(&layers) as _;
        let snapshotter = Snapshotter::open(config, Some(remote), metrics.clone()).unwrap();
        snapshotter.restore().await.unwrap();
        let socket = directory.path().join("run/s.sock");
        let (stop, stopped) = oneshot::channel::<()>();
        let unpacks = Unpacks::at(&socket);
        let diffs = Diffs::new(snapshotter.clone(), Arc::clone(&unpacks) as _);
        let serving = Socket::bind(&socket).unwrap().serve(snapshotter.clone(), Some(diffs), async {
            let _ = stopped.await;
        });
        let served = tokio::spawn(serving);
        let client = connect(&socket).await;
        Self {
            directory,
            layers,
            unpacks,
            metrics,
            client,
            snapshotter,
            namespace: "k8s.io".to_owned(),
            server: Some(Server { stop, served }),
        }
    }

    /// Stops serving, runs `meanwhile`, and starts over on the same root.
    pub(crate) async fn restart(mut self, meanwhile: impl FnOnce(&Self)) -> Self {
        let Server { stop, served } = self.server.take().unwrap();
        stop.send(()).unwrap();
        served.await.unwrap().unwrap();
        assert!(!self.directory.path().join("run/s.sock").exists());
        meanwhile(&self);
        let layers = Arc::clone(&self.layers);
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        drop(self);
        Self::start_in(directory, layers, Duration::from_secs(60)).await
    }

    pub(crate) fn top(&self) -> PathBuf {
        fs::canonicalize(self.directory.path()).unwrap().join("root/snapshots")
    }

    pub(crate) async fn prepare(
        &mut self,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Result<Vec<Mount>, Status> {
        let labels: Labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (snapshotter, key, parent) = (String::new(), key.to_owned(), parent.to_owned());
        let mut request = Request::new(PrepareSnapshotRequest { snapshotter, key, parent, labels });
        request.metadata_mut().insert("containerd-namespace", self.namespace.parse().unwrap());
        Ok(self.client.prepare(request).await?.into_inner().mounts)
    }

    /// Prepares an extraction, as containerd's unpacker does.
    pub(crate) async fn extract(&mut self, key: &str, parent: &str, chain_id: &str) -> Result<Vec<Mount>, Status> {
        self.prepare(key, parent, &[(REF_LABEL, chain_id), ("containerd.io/snapshot/hint", "../../etc")]).await
    }

    /// Has `layer` unpacked into `mounts`, as containerd does once it has fetched it.
    pub(crate) async fn apply(&self, layer: &Digest, mounts: &[Mount]) -> Result<Descriptor, Status> {
        let diff = Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: layer.to_string(),
            size: 7,
            ..Descriptor::default()
        };
        let request = ApplyRequest { diff: Some(diff), mounts: mounts.to_vec(), ..ApplyRequest::default() };
        apply_in(&self.directory.path().join("run/s.sock"), "k8s.io", request).await
    }

    pub(crate) async fn commit(&mut self, key: &str, name: &str, parent: &str) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            key: key.to_owned(),
            name: name.to_owned(),
            parent: parent.to_owned(),
            ..CommitSnapshotRequest::default()
        };
        self.client.commit(request).await.map(|_| ())
    }

    pub(crate) async fn commit_with(&mut self, key: &str, name: &str, labels: &[(&str, &str)]) -> Result<(), Status> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (key, name) = (key.to_owned(), name.to_owned());
        let request = CommitSnapshotRequest { key, name, labels, ..CommitSnapshotRequest::default() };
        self.client.commit(request).await.map(|_| ())
    }

    pub(crate) async fn remove(&mut self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { key: key.to_owned(), ..RemoveSnapshotRequest::default() };
        self.client.remove(request).await.map(|_| ())
    }

    pub(crate) async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest { key: key.to_owned(), ..MountsRequest::default() };
        Ok(self.client.mounts(request).await?.into_inner().mounts)
    }

    pub(crate) async fn stat(&mut self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest { key: key.to_owned(), ..StatSnapshotRequest::default() };
        Ok(self.client.stat(request).await?.into_inner().info.unwrap())
    }

    pub(crate) async fn list(&mut self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        list(&mut self.client, filters).await
    }

    /// What containerd looks up after ALREADY_EXISTS (`core/metadata/snapshot.go`).
    pub(crate) async fn target(&mut self, chain_id: &str, parent: &str) -> Vec<Info> {
        let filter = format!("labels.\"{REF_LABEL}\"=={chain_id},parent==\"{parent}\"");
        self.list(&[&filter]).await.unwrap()
    }

    /// A layer with one file, `name`, known to the source of layers.
    pub(crate) fn layer(&self, chain_id: &str, name: &str) -> PathBuf {
        let layer = self.directory.path().join("layers").join(name);
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(name), chain_id).unwrap();
        self.layers.add(chain_id, &layer);
        layer
    }
}

pub(crate) async fn list(client: &mut SnapshotsClient<Channel>, filters: &[&str]) -> Result<Vec<Info>, Status> {
    let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
    let mut stream = client.list(ListSnapshotsRequest { snapshotter: String::new(), filters }).await?.into_inner();
    let mut found = Vec::new();
    while let Some(batch) = stream.message().await? {
        assert!(batch.info.len() <= 100);
        found.extend(batch.info);
    }
    Ok(found)
}

impl Drop for Rig {
    fn drop(&mut self) {
        detach_below(self.directory.path());
    }
}

/// Takes away all mounts below `path`, so that nothing is deleted through them.
pub(crate) fn detach_below(path: &Path) {
    for mount in mounts_below(path) {
        let _ = rustix::mount::unmount(&mount, UnmountFlags::DETACH);
    }
}

/// Mount points below `path`, deepest first.
pub(crate) fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let path = fs::canonicalize(path).unwrap();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut found: Vec<_> = points.filter(|point| point.starts_with(&path)).collect();
    found.reverse();
    found
}

pub(crate) fn code<T: std::fmt::Debug>(outcome: Result<T, Status>) -> Code {
    outcome.unwrap_err().code()
}

/// Waits until `condition` holds; the test's own time limit is the bound.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}
