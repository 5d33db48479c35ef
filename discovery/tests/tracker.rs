//! A real tracker on loopback, and real clients.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as the test itself may")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapwing_discovery::server::{Keeping, ServeError, Tracker, serve};
use lapwing_discovery::{ClientConfig, TrackerClient};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{
    Discovery, DiscoveryError, Holding, LeaseReply, LeaseRequest, Replicas, Settlement, Statement, StatementKind,
};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::PieceLayout;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A tracker that runs until it is stopped or dropped.
struct Running {
    tracker: Tracker,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    async fn start(tracker: Tracker) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), tracker).await
    }

    async fn start_on(address: SocketAddr, tracker: Tracker) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener: TcpListener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve(listener, tracker.clone(), shutdown));
        Self { tracker, address, stop, task }
    }

    /// Ends it as a crash would: connections break.
    async fn kill(self) -> SocketAddr {
        drop(self.stop);
        self.task.abort();
        let _ = self.task.await;
        self.address
    }

    fn client(&self, node: u8) -> Arc<TrackerClient> {
        client(&[self.address], node)
    }
}

fn peer(node: u8) -> PeerId {
    PeerId::from_bytes([node; 32])
}

fn config(trackers: &[SocketAddr], node: u8) -> ClientConfig {
    let trackers = trackers.iter().map(ToString::to_string).collect();
    ClientConfig { piece_port: 7000 + u16::from(node), ..ClientConfig::new(trackers, peer(node)) }
}

fn client(trackers: &[SocketAddr], node: u8) -> Arc<TrackerClient> {
    TrackerClient::new(config(trackers, node)).unwrap()
}

/// Waits for something to become so.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let poll = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), poll).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn until_current(clients: &[&TrackerClient]) {
    for client in clients {
        until("the tracker knows all", || async { client.is_current() }).await;
    }
}

async fn holders(client: &TrackerClient, digest: Digest) -> Vec<PeerId> {
    let found = client.find(digest).await.map(|found| found.holders).unwrap_or_default();
    let mut peers: Vec<PeerId> = found.into_iter().map(|holder| holder.peer).collect();
    peers.sort();
    peers
}

#[tokio::test]
async fn what_is_announced_is_found_with_the_address_of_the_connection() {
    let running = Running::start(Tracker::new()).await;
    let (one, two, three) = (running.client(1), running.client(2), running.client(3));
    let digest = Digest::of(b"layer");
    one.announce(digest, Some(Holding::Partial)).await.unwrap();
    two.announce(digest, Some(Holding::Complete)).await.unwrap();
    until_current(&[&one, &two]).await;

    let mut found = three.find(digest).await.unwrap().holders;
    found.sort_by_key(|holder| holder.peer);
    let seen: Vec<_> = found.iter().map(|holder| (holder.peer, holder.address.to_string(), holder.holding)).collect();
    assert_eq!(
        seen,
        [
            (peer(1), "127.0.0.1:7001".to_owned(), Holding::Partial),
            (peer(2), "127.0.0.1:7002".to_owned(), Holding::Complete)
        ]
    );
    assert_eq!(holders(&one, digest).await, [peer(2)], "not the asker itself");

    one.announce(digest, None).await.unwrap();
    until_current(&[&one]).await;
    assert_eq!(holders(&three, digest).await, [peer(2)]);
    two.leave().await.unwrap();
    assert_eq!(holders(&three, digest).await, []);
    running.kill().await;
}

#[tokio::test]
async fn a_group_sees_nothing_of_another() {
    let running = Running::start(Tracker::new()).await;
    let digest = Digest::of(b"private layer");
    let ours = running.client(1);
    let theirs = TrackerClient::new(ClientConfig { group: "b".to_owned(), ..config(&[running.address], 2) }).unwrap();
    ours.announce(digest, Some(Holding::Complete)).await.unwrap();
    until_current(&[&ours]).await;
    assert_eq!(holders(&theirs, digest).await, []);
    assert_eq!(holders(&running.client(3), digest).await, [peer(1)]);
    running.kill().await;
}

#[tokio::test]
async fn votes_count_each_node_once() {
    let running = Running::start(Tracker::new()).await;
    let subject = Digest::of(b"layer");
    let about =
        |object: &[u8]| Statement { subject, kind: StatementKind::Metainfo, object: Digest::of(object), length: 9 };
    let clients: Vec<_> = (1..=3).map(|node| running.client(node)).collect();
    clients[0].state(about(b"a lie")).await.unwrap();
    clients[0].state(about(b"truth")).await.unwrap();
    clients[1].state(about(b"truth")).await.unwrap();
    clients[2].state(about(b"another lie")).await.unwrap();
    until_current(&clients.iter().map(|client| &**client).collect::<Vec<_>>()).await;
    let votes = running.client(4).find(subject).await.unwrap().votes;
    let tally: Vec<_> = votes.iter().map(|vote| (vote.statement, vote.nodes)).collect();
    assert_eq!(tally, [(about(b"truth"), 2), (about(b"another lie"), 1)]);
    running.kill().await;
}

/// Fetches under leases until there is nothing left to fetch; returns the pieces it fetched.
async fn fetch_all(client: Arc<TrackerClient>, digest: Digest, length: u64) -> Vec<u32> {
    let pieces = PieceLayout::new(length).unwrap().piece_count();
    let mut fetched = Vec::new();
    loop {
        let mut missing: Vec<_> = Vec::new();
        let mut next = 0;
        for piece in fetched.iter().copied().chain([pieces]) {
            if next < piece {
                missing.push(next..piece);
            }
            next = piece + 1;
        }
        missing.truncate(64);
        let request = LeaseRequest { missing, ..LeaseRequest::new(digest, length) };
        match client.lease(request).await.unwrap() {
            LeaseReply::Granted(lease) => {
                fetched.extend(lease.first.0..lease.first.0 + lease.count);
                fetched.sort_unstable();
                let settlement = Settlement::new(lease.id, digest, lease.count);
                client.settle(settlement).await.unwrap();
            }
            LeaseReply::Wait(pause) => tokio::time::sleep(pause).await,
            LeaseReply::Exhausted => return fetched,
        }
    }
}

#[tokio::test]
async fn nodes_that_start_together_fetch_each_piece_once() {
    let running = Running::start(Tracker::new()).await;
    let (digest, length) = (Digest::of(b"big"), 20 << 20);
    let clients: Vec<_> = (1..=6).map(|node| running.client(node)).collect();
    let tasks: Vec<_> = clients.iter().map(|client| tokio::spawn(fetch_all(client.clone(), digest, length))).collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort_unstable();
    let pieces = PieceLayout::new(length).unwrap().piece_count();
    assert_eq!(all, (0..pieces).collect::<Vec<_>>());
    let lessees = running.client(9).find(digest).await.unwrap().lessees;
    assert!(!lessees.is_empty() && lessees.len() <= 6, "{lessees:?}");
    running.kill().await;
}

#[tokio::test]
async fn a_silent_node_is_gone_within_a_minute() {
    let seconds = Arc::new(AtomicU64::new(0));
    let clock = seconds.clone();
    let tracker = Tracker::with_clock(Arc::new(move || Duration::from_secs(clock.load(Ordering::SeqCst))));
    let running = Running::start(tracker).await;
    let digest = Digest::of(b"layer");
    let (silent, asker) = (running.client(1), running.client(2));
    silent.announce(digest, Some(Holding::Complete)).await.unwrap();
    until_current(&[&silent]).await;
    drop(silent);
    seconds.store(40, Ordering::SeqCst);
    assert_eq!(holders(&asker, digest).await, [peer(1)]);
    seconds.store(60, Ordering::SeqCst);
    assert_eq!(holders(&asker, digest).await, []);
    running.tracker.tick();
    assert_eq!(running.tracker.snapshot().nodes, 1, "the asker alone");
    running.kill().await;
}

#[tokio::test]
async fn nodes_that_were_forgotten_tell_everything_again() {
    let seconds = Arc::new(AtomicU64::new(0));
    let clock = seconds.clone();
    let tracker = Tracker::with_clock(Arc::new(move || Duration::from_secs(clock.load(Ordering::SeqCst))));
    let running = Running::start(tracker).await;
    let digest = Digest::of(b"layer");
    let quick = ClientConfig { heartbeat: Duration::from_millis(20), ..config(&[running.address], 1) };
    let node = TrackerClient::new(quick).unwrap();
    node.announce(digest, Some(Holding::Complete)).await.unwrap();
    until_current(&[&node]).await;
    let asker = running.client(2);
    assert_eq!(holders(&asker, digest).await, [peer(1)]);
    // As if the node had been asleep: its next heartbeat comes too late, over a connection that still stands.
    seconds.store(100, Ordering::SeqCst);
    until("told again", || async { holders(&asker, digest).await == [peer(1)] }).await;
    running.kill().await;
}

#[tokio::test]
async fn a_reported_peer_is_kept_from_everybody_at_once() {
    let running = Running::start(Tracker::new()).await;
    let digest = Digest::of(b"layer");
    let dead = running.client(1);
    dead.announce(digest, Some(Holding::Complete)).await.unwrap();
    until_current(&[&dead]).await;
    let (asker, other) = (running.client(2), running.client(3));
    assert_eq!(holders(&other, digest).await, [peer(1)]);
    asker.report(peer(1)).await.unwrap();
    assert_eq!(holders(&asker, digest).await, []);
    assert_eq!(holders(&other, digest).await, []);
    // It was not dead: it calls, and is named again, though not to the one who reported it.
    dead.announce(Digest::of(b"other"), Some(Holding::Partial)).await.unwrap();
    until_current(&[&dead]).await;
    assert_eq!(holders(&other, digest).await, [peer(1)]);
    assert_eq!(holders(&asker, digest).await, []);
    running.kill().await;
}

#[tokio::test]
async fn nodes_tell_a_restarted_tracker_everything_again() {
    let running = Running::start(Tracker::new()).await;
    let subject = Digest::of(b"layer");
    let (one, two) = (running.client(1), running.client(2));
    one.announce(subject, Some(Holding::Complete)).await.unwrap();
    let statement = Statement { subject, kind: StatementKind::LayerIndex, object: Digest::of(b"index"), length: 5 };
    one.state(statement).await.unwrap();
    until_current(&[&one, &two]).await;
    let address = running.kill().await;

    let error = two.find(subject).await.unwrap_err();
    let DiscoveryError::Unreachable { tracker, .. } = error else { panic!("{error}") };
    assert_eq!(tracker, address.to_string());
    // Announced while there is no tracker: told later.
    let later = Digest::of(b"later");
    one.announce(later, Some(Holding::Partial)).await.unwrap();

    let running = Running::start_on(address, Tracker::new()).await;
    until("found again", || async { holders(&two, subject).await == [peer(1)] }).await;
    assert_eq!(holders(&two, later).await, [peer(1)]);
    assert_eq!(two.find(subject).await.unwrap().votes[0].statement, statement);
    running.kill().await;
}

#[tokio::test]
async fn a_dead_tracker_fails_calls_at_once_and_is_named() {
    // Bound, and never listening: connections are refused.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let client = client(&[address], 1);
    let error = client.find(Digest::of(b"x")).await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("refused"), "{error}");
    client.announce(Digest::of(b"x"), Some(Holding::Complete)).await.unwrap();
    assert!(!client.is_current());
}

#[tokio::test]
async fn a_tracker_that_hangs_costs_one_deadline_and_then_nothing() {
    // Accepts connections by its backlog and never answers.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hanging.local_addr().unwrap();
    let config = ClientConfig { deadline: Duration::from_millis(200), ..config(&[address], 1) };
    let client = TrackerClient::new(config).unwrap();
    let first = client.find(Digest::of(b"x")).await.unwrap_err();
    assert!(matches!(&first, DiscoveryError::Unreachable { tracker, .. } if *tracker == address.to_string()));
    // The circuit is open: a call ends without ever being pending.
    let call = client.find(Digest::of(b"x"));
    assert!(futures_util::FutureExt::now_or_never(call).expect("fails at once").is_err());
}

#[tokio::test]
async fn the_second_tracker_knows_all_when_the_first_dies() {
    let (first, second) = (Running::start(Tracker::new()).await, Running::start(Tracker::new()).await);
    let both = [first.address, second.address];
    let (one, two) = (client(&both, 1), client(&both, 2));
    let digest = Digest::of(b"layer");
    one.announce(digest, Some(Holding::Complete)).await.unwrap();
    until("both know", || async { [&first, &second].iter().all(|running| running.tracker.snapshot().holders == 1) })
        .await;
    first.kill().await;
    assert_eq!(holders(&two, digest).await, [peer(1)]);
    second.kill().await;
}

#[tokio::test]
async fn copies_elsewhere_are_counted_in_the_order_of_the_question() {
    let running = Running::start(Tracker::new()).await;
    let zoned = |node, zone: &str| {
        TrackerClient::new(ClientConfig { zone: zone.to_owned(), ..config(&[running.address], node) }).unwrap()
    };
    let (one, two, three) = (zoned(1, "a"), zoned(2, "a"), zoned(3, "b"));
    let (near, far, mine) = (Digest::of(b"near"), Digest::of(b"far"), Digest::of(b"mine"));
    for digest in [near, far, mine] {
        one.announce(digest, Some(Holding::Complete)).await.unwrap();
    }
    two.announce(near, Some(Holding::Complete)).await.unwrap();
    three.announce(far, Some(Holding::Complete)).await.unwrap();
    until_current(&[&one, &two, &three]).await;
    let counts = one.replicas(&[mine, near, far]).await.unwrap();
    assert_eq!(counts, [Replicas { zone: 0, all: 0 }, Replicas { zone: 1, all: 1 }, Replicas { zone: 0, all: 1 }]);
    let many = vec![mine; lapwing_p2p::limits::MAX_REPLICA_QUESTIONS + 1];
    assert!(matches!(one.replicas(&many).await, Err(DiscoveryError::Refused { .. })));
}

/// The file of a tracker that ended is what the next one begins with, until the nodes tell it more.
#[tokio::test]
async fn a_tracker_that_starts_again_knows_who_has_what_before_anybody_tells() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tracker/holders");
    let keeping = Keeping::new(file.clone());
    let (layer, news) = (Digest::of(b"layer"), Digest::of(b"news"));
    let running = Running::start(Tracker::new()).await;
    // The first tells nobody anything any more once its client is dropped; the second goes on.
    let (gone, stays) = (running.client(1), running.client(2));
    for client in [&gone, &stays] {
        client.announce(layer, Some(Holding::Complete)).await.unwrap();
    }
    until_current(&[&gone, &stays]).await;
    keeping.write(&running.tracker).unwrap();
    drop(gone);
    stays.announce(news, Some(Holding::Complete)).await.unwrap();
    stays.announce(layer, None).await.unwrap();
    until_current(&[&stays]).await;
    let address = running.kill().await;

    let next = Tracker::new();
    keeping.restore(&next);
    assert_eq!((next.snapshot().nodes, next.snapshot().holders), (2, 2));
    let running = Running::start_on(address, next).await;
    let asker = running.client(3);
    assert!(holders(&asker, layer).await.contains(&peer(1)));
    until("the second has told what changed", || async {
        // Whose calls are answered sees that its registration is another.
        let _ = stays.find(layer).await;
        holders(&asker, news).await == [peer(2)] && holders(&asker, layer).await == [peer(1)]
    })
    .await;

    // Half a file is worse than none, and no reason not to start.
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
    let empty = Tracker::new();
    keeping.restore(&empty);
    assert_eq!(empty.snapshot().nodes, 0);
    std::fs::remove_file(&file).unwrap();
    keeping.restore(&empty);
    assert_eq!(empty.snapshot().nodes, 0);
}
