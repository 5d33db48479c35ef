//! Trackers in this process, served over gRPC on loopback, and nodes that call them.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapwing_discovery::proto::tracker_service_client::TrackerServiceClient;
use lapwing_discovery::proto::{self, HoldingState};
use lapwing_discovery::server::{Clock, Tracker, serve};
use lapwing_discovery::store::HolderStore;
use lapwing_p2p::digest::Digest;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// For whatever must come true in the end.
const DEADLINE: Duration = Duration::from_secs(90);

pub(crate) type Opener = Box<dyn Fn() -> Arc<dyn HolderStore> + Send + Sync>;

/// How trackers of a test are made. Time stands still unless the test moves it.
pub(crate) struct Rig {
    open: Option<Opener>,
    milliseconds: Arc<AtomicU64>,
    groups: AtomicU64,
}

impl Rig {
    /// One tracker with its own memory.
    pub(crate) fn alone() -> Self {
        // A day in 2026: far enough from zero for every subtraction.
        let start = 1_790_000_000_000;
        Self { open: None, milliseconds: Arc::new(AtomicU64::new(start)), groups: AtomicU64::new(0) }
    }

    /// Trackers over stores that `open` opens.
    pub(crate) fn sharing(open: impl Fn() -> Arc<dyn HolderStore> + Send + Sync + 'static) -> Self {
        Self { open: Some(Box::new(open)), ..Self::alone() }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.open.is_some()
    }

    /// The store itself, over a connection of its own.
    pub(crate) fn store(&self) -> Option<Arc<dyn HolderStore>> {
        self.open.as_ref().map(|open| open())
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.milliseconds.fetch_add(time.as_millis() as u64, Ordering::AcqRel);
    }

    fn clock(&self) -> Clock {
        let milliseconds = Arc::clone(&self.milliseconds);
        Arc::new(move || Duration::from_millis(milliseconds.load(Ordering::Acquire)))
    }

    pub(crate) fn now(&self) -> Duration {
        (self.clock())()
    }

    /// A group that no test has used.
    pub(crate) fn group(&self) -> String {
        format!("group-{}", self.groups.fetch_add(1, Ordering::AcqRel))
    }

    pub(crate) async fn tracker(&self) -> Served {
        let mut tracker = Tracker::with_clock(self.clock());
        if let Some(open) = &self.open {
            tracker = tracker.sharing(open(), self.clock());
        }
        let mut metrics = prometheus_client::registry::Registry::default();
        tracker.metrics().register(&mut metrics);
        // Both families: IPv4 callers are seen on mapped addresses.
        let listener = TcpListener::bind("[::]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move { serve(listener, tracker, std::future::pending()).await.unwrap() });
        Served { port, metrics, task }
    }

    /// Two trackers, or the only one twice.
    pub(crate) async fn pair(&self) -> (Arc<Served>, Arc<Served>) {
        let one = Arc::new(self.tracker().await);
        let two = if self.is_shared() { Arc::new(self.tracker().await) } else { Arc::clone(&one) };
        (one, two)
    }
}

/// A tracker that is served until it is dropped, which ends it as a crash would.
pub(crate) struct Served {
    port: u16,
    metrics: prometheus_client::registry::Registry,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    /// A metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned()))
    }

    async fn channel(&self, host: &str) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{host}:{}", self.port)).unwrap();
        endpoint.timeout(Duration::from_secs(30)).connect().await.unwrap()
    }

    pub(crate) async fn node(&self, group: &str, number: u8) -> Node {
        self.node_at("127.0.0.1", group, number).await
    }

    /// A node that reaches the tracker at `host`, and so is seen there.
    pub(crate) async fn node_at(&self, host: &str, group: &str, number: u8) -> Node {
        let caller = proto::Caller {
            node: vec![number; 32],
            group: group.to_owned(),
            piece_port: 7000 + u32::from(number),
            zone: String::new(),
            rack: String::new(),
            instance: 1,
            seed: false,
            seed_port: 0,
        };
        Node { caller, client: TrackerServiceClient::new(self.channel(host).await) }
    }
}

/// A node, as far as trackers know it.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) caller: proto::Caller,
    pub(crate) client: TrackerServiceClient<Channel>,
}

pub(crate) const PARTIAL: HoldingState = HoldingState::Partial;
pub(crate) const COMPLETE: HoldingState = HoldingState::Complete;
pub(crate) const GONE: HoldingState = HoldingState::Gone;

pub(crate) fn holding(digest: Digest, state: HoldingState) -> proto::Holding {
    proto::Holding { digest: digest.as_bytes().to_vec(), state: state.into() }
}

impl Node {
    fn caller(&self) -> Option<proto::Caller> {
        Some(self.caller.clone())
    }

    /// The same node as seen by another tracker.
    pub(crate) async fn at(&self, tracker: &Served) -> Self {
        Self { client: TrackerServiceClient::new(tracker.channel("127.0.0.1").await), ..self.clone() }
    }

    pub(crate) async fn try_announce(&self, holdings: Vec<proto::Holding>) -> Result<(), Status> {
        let request = proto::AnnounceRequest { caller: self.caller(), holdings };
        self.client.clone().announce(request).await.map(drop)
    }

    pub(crate) async fn announce(&self, digest: Digest, state: HoldingState) {
        self.try_announce(vec![holding(digest, state)]).await.unwrap();
    }

    pub(crate) async fn sync(&self, digests: &[Digest], whole: bool) {
        let holdings: Vec<_> = digests.iter().map(|digest| holding(*digest, COMPLETE)).collect();
        let mut messages: Vec<_> = holdings.chunks(4096).map(|some| self.listing(some.to_vec(), whole)).collect();
        messages.push(self.listing(Vec::new(), whole));
        self.client.clone().sync(futures_util::stream::iter(messages)).await.unwrap();
    }

    fn listing(&self, holdings: Vec<proto::Holding>, whole: bool) -> proto::SyncRequest {
        proto::SyncRequest { caller: self.caller(), holdings, statements: Vec::new(), whole }
    }

    pub(crate) async fn beat(&self) {
        self.client.clone().heartbeat(proto::HeartbeatRequest { caller: self.caller() }).await.unwrap();
    }

    pub(crate) async fn leave(&self) {
        self.client.clone().leave(proto::LeaveRequest { caller: self.caller() }).await.unwrap();
    }

    pub(crate) async fn holders(&self, digest: Digest) -> Vec<proto::Holder> {
        let request = proto::FindRequest { caller: self.caller(), digest: digest.as_bytes().to_vec() };
        let mut holders = self.client.clone().find(request).await.unwrap().into_inner().holders;
        holders.sort_by(|a, b| a.node.cmp(&b.node));
        holders
    }

    /// Numbers and states of the holders.
    pub(crate) async fn find(&self, digest: Digest) -> Vec<(u8, HoldingState)> {
        self.holders(digest).await.iter().map(|holder| (holder.node[0], holder.state())).collect()
    }

    pub(crate) async fn seeds(&self) -> Vec<(u8, u32, u32)> {
        let request = proto::SeedsRequest { caller: self.caller() };
        let seeds = self.client.clone().seeds(request).await.unwrap().into_inner().seeds;
        seeds.iter().map(|seed| (seed.node[0], seed.piece_port, seed.seed_port)).collect()
    }

    pub(crate) async fn copies(&self, digests: &[Digest]) -> Vec<u32> {
        let digests = digests.iter().map(|digest| digest.as_bytes().to_vec()).collect();
        let request = proto::ReplicasRequest { caller: self.caller(), digests };
        let counts = self.client.clone().replicas(request).await.unwrap().into_inner().counts;
        counts.iter().map(|count| count.all).collect()
    }

    /// Whether it may fetch all of a blob of one piece from the origin.
    pub(crate) async fn is_granted(&self, digest: Digest) -> bool {
        let request = proto::LeaseRequest {
            caller: self.caller(),
            digest: digest.as_bytes().to_vec(),
            length: 1000,
            site: "registry".to_owned(),
            missing: vec![proto::Run { first: 0, end: 1 }],
            ..proto::LeaseRequest::default()
        };
        let reply = self.client.clone().lease(request).await.unwrap().into_inner();
        matches!(reply.outcome, Some(proto::lease_reply::Outcome::Grant(_)))
    }
}

/// Waits for `so` to become true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let poll = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, poll).await.unwrap_or_else(|_| panic!("never: {what}"));
}
