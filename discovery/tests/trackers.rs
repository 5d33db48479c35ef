//! Several real trackers on loopback: who owns what, what a dead or silent one costs, and trackers that come and go.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as the test itself may")]
#![allow(clippy::single_range_in_vec_init, reason = "one run of one piece is what is meant")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lapwing_discovery::proto::tracker_service_client::TrackerServiceClient;
use lapwing_discovery::proto::{Caller, HeartbeatRequest};
use lapwing_discovery::server::{Tracker, serve};
use lapwing_discovery::{ClientConfig, TrackerClient};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Discovery, Holding, LeaseReply, LeaseRequest, Replicas, Statement, StatementKind};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::verify::piece_hash;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// What clients are told where a test shows that they do not wait for it.
const ENDLESS: Duration = Duration::from_secs(600);

/// A tracker that runs until it is killed or dropped.
struct Running {
    tracker: Tracker,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), Tracker::new()).await
    }

    async fn start_on(address: SocketAddr, tracker: Tracker) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = serve(listener, tracker.clone(), std::future::pending());
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self { tracker, address, task }
    }

    fn holders(&self) -> usize {
        self.tracker.snapshot().holders
    }

    /// Ends it as a crash would: connections break.
    async fn kill(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A way to a tracker whose replies can be held up: the tracker is asked, and seems to hang.
struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Gate {
    async fn before(tracker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, opened) = watch::channel(true);
        let task = tokio::spawn(async move {
            let mut ways = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let opened = opened.clone();
                ways.spawn(async move {
                    let (from_client, to_client) = client.into_split();
                    let (from_tracker, to_tracker) = TcpStream::connect(tracker).await.unwrap().into_split();
                    let always = watch::channel(true).1;
                    tokio::join!(pass(from_client, to_tracker, always), pass(from_tracker, to_client, opened));
                });
            }
        });
        Self { address, open, task }
    }

    fn set_open(&self, open: bool) {
        self.open.send(open).unwrap();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Copies bytes while the gate is open.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut open: watch::Receiver<bool>) {
    let mut buffer = [0; 4096];
    while let Ok(count) = from.read(&mut buffer).await {
        // An error tells that whoever could open it is gone, and the last word holds.
        let _ = open.wait_for(|open| *open).await;
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

fn peer(node: u8) -> PeerId {
    PeerId::from_bytes([node; 32])
}

fn names(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn config(trackers: &[SocketAddr], node: u8) -> ClientConfig {
    ClientConfig { piece_port: 7000 + u16::from(node), ..ClientConfig::new(names(trackers), peer(node)) }
}

fn client(trackers: &[SocketAddr], node: u8) -> Arc<TrackerClient> {
    TrackerClient::new(config(trackers, node)).unwrap()
}

fn digest(number: u32) -> Digest {
    Digest::of(&number.to_be_bytes())
}

/// The trackers in the order in which they are to be asked: reckoned anew, as another implementation would.
fn order(digest: &Digest, trackers: &[SocketAddr]) -> Vec<usize> {
    let weight = |place: &usize| piece_hash(&[digest.as_bytes(), trackers[*place].to_string().as_bytes()].concat());
    let mut places: Vec<usize> = (0..trackers.len()).collect();
    places.sort_by_key(|place| std::cmp::Reverse(weight(place)));
    places
}

/// Waits for something to become so.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let poll = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Lets something end in its time.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

async fn until_current(client: &TrackerClient) {
    until("the trackers know all", || async { client.is_current() }).await;
}

async fn holders(client: &TrackerClient, digest: Digest) -> Vec<PeerId> {
    let found = client.find(digest).await.map(|found| found.holders).unwrap_or_default();
    let mut peers: Vec<PeerId> = found.into_iter().map(|holder| holder.peer).collect();
    peers.sort();
    peers
}

async fn start(count: usize) -> (Vec<Running>, Vec<SocketAddr>) {
    let mut running = Vec::new();
    for _ in 0..count {
        running.push(Running::start().await);
    }
    let addresses = running.iter().map(|running| running.address).collect();
    (running, addresses)
}

const BLOBS: u32 = 60;

/// A node that holds all blobs, and whose trackers know it.
async fn holder(trackers: &[SocketAddr], node: u8) -> Arc<TrackerClient> {
    let client = client(trackers, node);
    for number in 0..BLOBS {
        client.announce(digest(number), Some(Holding::Complete)).await.unwrap();
    }
    until_current(&client).await;
    client
}

#[tokio::test]
async fn two_of_four_trackers_know_each_blob_and_all_nodes_ask_these() {
    let (mut running, addresses) = start(4).await;
    let one = holder(&addresses, 1).await;
    let statement =
        Statement { subject: digest(7), kind: StatementKind::Metainfo, object: Digest::of(b"metainfo"), length: 9 };
    one.state(statement).await.unwrap();
    until_current(&one).await;
    let mut expected = [0; 4];
    for number in 0..BLOBS {
        order(&digest(number), &addresses)[..2].iter().for_each(|&place| expected[place] += 1);
    }
    let counts: Vec<usize> = running.iter().map(Running::holders).collect();
    assert_eq!(counts, expected);
    assert!(running.iter().all(|running| running.tracker.snapshot().nodes == 1), "it is known everywhere");

    // In another order, since nobody promises one.
    let reversed: Vec<_> = addresses.iter().rev().copied().collect();
    let two = client(&reversed, 2);
    for number in 0..BLOBS {
        assert_eq!(holders(&two, digest(number)).await, [peer(1)], "blob {number}");
    }
    let digests: Vec<_> = (0..BLOBS + 1).map(digest).collect();
    let counts = two.replicas(&digests).await.unwrap();
    assert_eq!(counts[..BLOBS as usize], [Replicas { zone: 1, all: 1 }; BLOBS as usize]);
    assert_eq!(counts[BLOBS as usize], Replicas::default());
    assert_eq!(two.find(digest(7)).await.unwrap().votes[0].statement, statement);

    running[0].kill().await;
    for number in 0..BLOBS {
        assert_eq!(holders(&two, digest(number)).await, [peer(1)], "blob {number} with one tracker dead");
    }
    assert_eq!(two.replicas(&digests).await.unwrap(), counts);
}

#[tokio::test]
async fn while_both_owners_are_dead_all_nodes_take_leases_from_the_same_third() {
    let (mut running, addresses) = start(4).await;
    let blob = digest(1);
    let places = order(&blob, &addresses);
    running[places[0]].kill().await;
    running[places[1]].kill().await;
    let lease = || LeaseRequest { missing: vec![0..1], ..LeaseRequest::new(blob, 1) };
    let (one, two) = (client(&addresses, 1), client(&addresses, 2));
    let LeaseReply::Granted(granted) = one.lease(lease()).await.unwrap() else { panic!("nobody else asks") };
    assert!(matches!(two.lease(lease()).await.unwrap(), LeaseReply::Wait(_)), "there is one piece, and one has it");
    let lessees = |place: usize| client(&addresses[place..=place], 9);
    assert_eq!(lessees(places[2]).find(blob).await.unwrap().lessees, [peer(1)]);
    assert_eq!(lessees(places[3]).find(blob).await.unwrap().lessees, []);
    one.settle(lapwing_p2p::discovery::Settlement::new(granted.id, blob, 1)).await.unwrap();
    assert_eq!(two.lease(lease()).await.unwrap(), LeaseReply::Exhausted, "its end was told to who granted it");
}

#[tokio::test]
async fn a_tracker_that_hangs_is_not_waited_for() {
    let (_running, addresses) = start(3).await;
    let one = holder(&addresses, 1).await;
    let gates = [Gate::before(addresses[0]).await, Gate::before(addresses[1]).await, Gate::before(addresses[2]).await];
    let ways = gates.each_ref().map(|gate| gate.address);
    let config = ClientConfig { deadline: ENDLESS, ..config(&ways, 2) };
    let two = TrackerClient::new(config).unwrap();
    until_current(&two).await;
    // The owners by the gates' names are others than by the trackers'. Whoever is asked of what nobody announced to it asks
    // its other owner; so these are announced through the gates.
    let blobs: Vec<Digest> = (100..140).map(digest).filter(|digest| order(digest, &ways)[0] == 0).collect();
    let three = client(&ways, 3);
    for &blob in &blobs {
        three.announce(blob, Some(Holding::Complete)).await.unwrap();
    }
    until_current(&three).await;
    gates[0].set_open(false);
    // More often than the budget would allow if each were hedged.
    for &blob in blobs.iter().cycle().take(100) {
        assert_eq!(soon("an answer of the other owner", holders(&two, blob)).await, [peer(3)]);
    }
    gates[0].set_open(true);
    until("the hanging one's answer", || async { two.is_current() }).await;
    drop(one);
}

#[tokio::test]
async fn a_lease_that_comes_too_late_is_given_back() {
    // Its leases never expire: time stands still.
    let still = Tracker::with_clock(Arc::new(|| Duration::from_secs(1)));
    let slow = Running::start_on("127.0.0.1:0".parse().unwrap(), still).await;
    let quick = Running::start().await;
    let gate = Gate::before(slow.address).await;
    let ways = [gate.address, quick.address];
    let asker = TrackerClient::new(ClientConfig { deadline: ENDLESS, ..config(&ways, 1) }).unwrap();
    until_current(&asker).await;
    let blob = (0..).map(digest).find(|digest| order(digest, &ways)[0] == 0).unwrap();
    let lease = || LeaseRequest { missing: vec![0..1], ..LeaseRequest::new(blob, 1) };
    gate.set_open(false);
    let granted = soon("a lease of the other owner", asker.lease(lease())).await.unwrap();
    assert!(matches!(granted, LeaseReply::Granted(_)));

    let other = client(&[slow.address], 2);
    until_current(&other).await;
    assert!(matches!(other.lease(lease()).await.unwrap(), LeaseReply::Wait(_)), "the slow one granted it, too");
    gate.set_open(true);
    until("the lease to be given back", || async {
        matches!(other.lease(lease()).await.unwrap(), LeaseReply::Granted(_))
    })
    .await;
}

#[tokio::test]
async fn an_owner_that_has_lost_its_memory_does_not_hide_what_the_other_knows() {
    let (mut running, addresses) = start(3).await;
    let one = holder(&addresses, 1).await;
    let quick = ClientConfig { heartbeat: Duration::from_millis(20), ..config(&addresses, 2) };
    let two = TrackerClient::new(quick).unwrap();
    until_current(&two).await;
    let blob = digest(1);
    let first = order(&blob, &addresses)[0];
    running[first].kill().await;
    // The holder's process hangs, so that it cannot tell the new tracker.
    drop(one);
    running[first] = Running::start_on(addresses[first], Tracker::new()).await;
    until("the new one to know the asker", || async {
        two.is_current() && running[first].tracker.snapshot().nodes == 1
    })
    .await;
    assert_eq!(running[first].holders(), 0);
    assert_eq!(holders(&two, blob).await, [peer(1)]);
}

#[tokio::test]
async fn one_of_many_that_come_back_tells_at_once_what_it_pulls_and_all_else_later() {
    // Its line stands still, as its time does.
    let still = Tracker::with_clock(Arc::new(|| Duration::from_secs(1)));
    let running = Running::start_on("127.0.0.1:0".parse().unwrap(), still).await;
    let tracker = TrackerServiceClient::connect(format!("http://{}", running.address)).await.unwrap();
    let mut calls = JoinSet::new();
    for lane in 0..50 {
        let mut tracker = tracker.clone();
        calls.spawn(async move {
            for instance in 0..800 {
                let caller =
                    Caller { node: vec![lane; 32], group: "default".to_owned(), instance, ..Caller::default() };
                tracker.heartbeat(HeartbeatRequest { caller: Some(caller) }).await.unwrap();
            }
        });
    }
    soon("forty thousand to be registered", calls.join_all()).await;

    let one = client(&[running.address], 200);
    let (pulled, held) = (digest(1), digest(2));
    one.announce(pulled, Some(Holding::Partial)).await.unwrap();
    one.announce(held, Some(Holding::Complete)).await.unwrap();
    // What is announced while the listing waits is told, too.
    until("the first announcements", || async { running.holders() == 2 }).await;
    one.announce(digest(3), Some(Holding::Complete)).await.unwrap();
    until("the next announcement", || async { running.holders() == 3 }).await;
    assert!(!one.is_current(), "the listing itself waits for its turn");

    // As after a restart: all that it held before is told with the listing, and what it pulls at once.
    let caller = Caller { node: vec![200; 32], group: "default".to_owned(), instance: 1, ..Caller::default() };
    tracker.clone().heartbeat(HeartbeatRequest { caller: Some(caller) }).await.unwrap();
    assert_eq!(running.holders(), 0);
    let found = soon("an answer", one.find(pulled)).await.unwrap();
    assert_eq!(found.holders, []);
    until("what it pulls to be told", || async { running.holders() > 0 }).await;
    let two = client(&[running.address], 201);
    assert_eq!(holders(&two, pulled).await, [peer(200)]);
    assert_eq!(holders(&two, held).await, []);
}

#[tokio::test]
async fn trackers_come_and_go_without_a_restart() {
    let (mut running, addresses) = start(4).await;
    let one = holder(&addresses[..3], 1).await;
    assert_eq!(running[..3].iter().map(Running::holders).sum::<usize>(), 2 * BLOBS as usize);

    one.use_trackers(&names(&addresses)).unwrap();
    until_current(&one).await;
    let mut expected = [0; 4];
    for number in 0..BLOBS {
        order(&digest(number), &addresses)[..2].iter().for_each(|&place| expected[place] += 1);
    }
    assert_eq!(
        running.iter().map(Running::holders).collect::<Vec<_>>(),
        expected,
        "told to one, withdrawn from others"
    );
    let two = client(&addresses, 2);
    for number in 0..BLOBS {
        assert_eq!(holders(&two, digest(number)).await, [peer(1)]);
    }

    for client in [&one, &two] {
        client.use_trackers(&names(&addresses[1..])).unwrap();
    }
    until_current(&one).await;
    assert_eq!(running[1..].iter().map(Running::holders).sum::<usize>(), 2 * BLOBS as usize);
    until("the one left out to be left", || async { running[0].tracker.snapshot().nodes == 0 }).await;
    running[0].kill().await;
    for number in 0..BLOBS {
        assert_eq!(holders(&two, digest(number)).await, [peer(1)]);
    }
    // And what was announced since is told to the new set only.
    let later = digest(BLOBS);
    one.announce(later, Some(Holding::Partial)).await.unwrap();
    until_current(&one).await;
    assert_eq!(holders(&two, later).await, [peer(1)]);
    assert!(one.use_trackers(&["nonsense".to_owned()]).is_err());
    assert_eq!(holders(&two, later).await, [peer(1)], "a bad set changes nothing");
}
