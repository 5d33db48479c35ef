//! A real tracker, real seed services and real clients on loopback: which seed is asked, and what happens without it.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as the test itself may")]

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapwing_discovery::seed::{self, Fetcher, Refusal, Taken, Wanted};
use lapwing_discovery::server::{self, Tracker};
use lapwing_discovery::{ClientConfig, TrackerClient};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Discovery, Holder, Holding, SeedRequest};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::origin::Locator;
use lapwing_p2p::swarm::Priority;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A fetcher that notes what it is asked for and says what it was told to say.
struct Noting {
    asked: Mutex<Vec<Wanted>>,
    answer: Mutex<Result<Taken, Refusal>>,
}

impl Fetcher for Noting {
    fn fetch(&self, wanted: Wanted) -> BoxFuture<'_, Result<Taken, Refusal>> {
        self.asked.lock().unwrap().push(wanted);
        let answer = self.answer.lock().unwrap().clone();
        Box::pin(std::future::ready(answer))
    }
}

/// A seed: its service, and its registration at the tracker.
struct Seed {
    peer: PeerId,
    fetcher: Arc<Noting>,
    task: JoinHandle<()>,
    client: Arc<TrackerClient>,
}

impl Seed {
    async fn start(tracker: SocketAddr, number: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let seed_port = listener.local_addr().unwrap().port();
        let fetcher = Arc::new(Noting { asked: Mutex::default(), answer: Mutex::new(Ok(Taken::FETCHING)) });
        let serving = Arc::clone(&fetcher);
        let task =
            tokio::spawn(async move { seed::serve(listener, serving, None, std::future::pending()).await.unwrap() });
        let peer = PeerId::from_bytes([number; 32]);
        let config = ClientConfig { piece_port: 7081, seed_port, ..ClientConfig::new(vec![tracker.to_string()], peer) };
        let client = TrackerClient::new(config).unwrap();
        until("the tracker knows the seed", || async { client.is_current() }).await;
        Self { peer, fetcher, task, client }
    }

    fn asked(&self) -> usize {
        self.fetcher.asked.lock().unwrap().len()
    }

    fn answer(&self, answer: Result<Taken, Refusal>) {
        *self.fetcher.answer.lock().unwrap() = answer;
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let poll = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), poll).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn tracker() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(server::serve(listener, Tracker::new(), std::future::pending()));
    address
}

fn node(tracker: SocketAddr, number: u8) -> Arc<TrackerClient> {
    TrackerClient::new(ClientConfig::new(vec![tracker.to_string()], PeerId::from_bytes([number; 32]))).unwrap()
}

fn request(number: u32) -> SeedRequest {
    SeedRequest {
        digest: Digest::of(&number.to_be_bytes()),
        length: 7,
        locator: Locator { namespace: "reg.example".to_owned(), repository: "a/b".to_owned() },
        urgency: Priority::Bulk,
        failed: None,
    }
}

async fn ask(client: &TrackerClient, request: SeedRequest) -> Option<Holder> {
    client.ask_seed(request).await.unwrap()
}

#[tokio::test]
async fn all_nodes_ask_the_same_seed_for_a_blob_and_all_seeds_have_their_share() {
    let tracker = tracker().await;
    let seeds = [Seed::start(tracker, 1).await, Seed::start(tracker, 2).await, Seed::start(tracker, 3).await];
    let nodes = [node(tracker, 10), node(tracker, 11)];
    let mut chosen: HashMap<PeerId, usize> = HashMap::new();
    for number in 0..60 {
        let one = ask(&nodes[0], request(number)).await.unwrap();
        let other = ask(&nodes[1], request(number)).await.unwrap();
        assert_eq!(one.peer, other.peer);
        assert_eq!((one.address.to_string().as_str(), one.holding), ("127.0.0.1:7081", Holding::Partial));
        *chosen.entry(one.peer).or_default() += 1;
    }
    for seed in &seeds {
        assert_eq!(seed.asked(), 2 * chosen[&seed.peer]);
    }
    let wanted = seeds[0].fetcher.asked.lock().unwrap()[0].clone();
    assert_eq!((wanted.length, wanted.locator.repository.as_str(), wanted.waited_for), (7, "a/b", true));
}

#[tokio::test]
async fn a_seed_that_is_gone_busy_or_given_up_is_replaced_by_the_next() {
    let tracker = tracker().await;
    let seeds = [Seed::start(tracker, 1).await, Seed::start(tracker, 2).await];
    let client = node(tracker, 10);
    let first = ask(&client, request(1)).await.unwrap().peer;
    let (chosen, other) = if first == seeds[0].peer { (&seeds[0], &seeds[1]) } else { (&seeds[1], &seeds[0]) };

    chosen.answer(Err(Refusal::Busy(1)));
    assert_eq!(ask(&client, request(1)).await.unwrap().peer, other.peer, "busy");
    chosen.answer(Ok(Taken::complete(7)));
    let back = ask(&client, request(1)).await.unwrap();
    assert_eq!((back.peer, back.holding), (chosen.peer, Holding::Complete), "a busy one is asked again");

    let another = node(tracker, 11);
    let failed = SeedRequest { failed: Some(chosen.peer), ..request(1) };
    assert_eq!(ask(&another, failed).await.unwrap().peer, other.peer, "given up by the asker");
    assert_eq!(ask(&another, request(1)).await.unwrap().peer, other.peer, "and for a while");

    chosen.task.abort();
    until("the killed seed's port is closed", || async { chosen.task.is_finished() }).await;
    assert_eq!(ask(&client, request(1)).await.unwrap().peer, other.peer, "gone");
    other.task.abort();
    until("the other's, too", || async { other.task.is_finished() }).await;
    assert_eq!(ask(&client, request(1)).await, None, "none is left");
}

#[tokio::test]
async fn what_one_seed_may_not_have_is_not_asked_of_others() {
    let tracker = tracker().await;
    let seeds = [Seed::start(tracker, 1).await, Seed::start(tracker, 2).await];
    let client = node(tracker, 10);
    for refusal in [
        Refusal::NotListed("x".to_owned()),
        Refusal::NotAllowed("HTTP 401".to_owned()),
        Refusal::NotThere("HTTP 404".to_owned()),
    ] {
        let before = seeds[0].asked() + seeds[1].asked();
        seeds.iter().for_each(|seed| seed.answer(Err(refusal.clone())));
        assert_eq!(ask(&client, request(5)).await, None);
        assert_eq!(seeds[0].asked() + seeds[1].asked(), before + 1);
    }
}

#[tokio::test]
async fn seeds_stay_known_without_a_tracker_and_do_not_ask_each_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tracker = listener.local_addr().unwrap();
    let serving = tokio::spawn(server::serve(listener, Tracker::new(), std::future::pending()));
    let seed = Seed::start(tracker, 1).await;
    let client = node(tracker, 10);
    assert_eq!(ask(&client, request(1)).await.unwrap().peer, seed.peer);
    serving.abort();
    until("the tracker is gone", || async { client.find(Digest::of(b"x")).await.is_err() }).await;
    assert_eq!(ask(&client, request(2)).await.unwrap().peer, seed.peer);
    assert_eq!(ask(&seed.client, request(3)).await, None, "a seed fetches by itself");
}
