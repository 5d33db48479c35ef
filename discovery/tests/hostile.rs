//! What a tracker does with requests that no honest node sends: it says what is wrong, changes nothing, and goes on.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as the test itself may")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lapwing_discovery::limits::{MAX_ENTRIES_PER_MESSAGE, MAX_REQUEST_BYTES, MAX_SYNC_MESSAGES};
use lapwing_discovery::proto::tracker_service_client::TrackerServiceClient;
use lapwing_discovery::proto::{
    AnnounceRequest, Caller, FindReply, FindRequest, HeartbeatRequest, Holding, HoldingState, LeaseRequest,
    LeaveRequest, ReplicasRequest, ReportRequest, Run, SeedsRequest, SettleRequest, StateRequest, Statement,
    StatementKind, SyncRequest, lease_reply::Outcome,
};
use lapwing_discovery::server::{Tracker, serve};
use lapwing_evidence::{Evidence, count, seed};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::limits::{MAX_BLOB_LENGTH, MAX_LAYER_INDEX_LENGTH, MAX_METAINFO_LENGTH, MAX_RUNS};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

type Client = TrackerServiceClient<Channel>;

struct Running {
    tracker: Tracker,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start_on(address: &str) -> Running {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tracker = Tracker::new();
    let serving = serve(listener, tracker.clone(), std::future::pending());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Running { tracker, address, task }
}

async fn start() -> (Running, Client) {
    let running = start_on("127.0.0.1:0").await;
    let client = Client::connect(format!("http://{}", running.address)).await.unwrap();
    (running, client)
}

fn caller(node: u8) -> Caller {
    Caller { node: vec![node; 32], group: "default".to_owned(), piece_port: 7081, ..Caller::default() }
}

fn holding(digest: Vec<u8>, state: i32) -> Holding {
    Holding { digest, state }
}

const PARTIAL: i32 = HoldingState::Partial as i32;

/// The refusal names the field, and nobody was registered.
fn refused<T: std::fmt::Debug>(running: &Running, outcome: Result<T, Status>, code: Code, words: &str) {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(words), "{status} does not say {words:?}");
    assert_eq!(running.tracker.snapshot().nodes, 0, "{words}");
}

#[tokio::test]
async fn callers_are_checked() {
    let (running, mut client) = start().await;
    let cases = [
        (None, "caller: missing"),
        (Some(Caller { node: vec![1; 31], ..caller(1) }), "caller.node: expected 32 bytes, got 31"),
        (Some(Caller { node: Vec::new(), ..caller(1) }), "caller.node: expected 32 bytes, got 0"),
        (Some(Caller { node: vec![1; 10_000], ..caller(1) }), "caller.node: expected 32 bytes, got 10000"),
        (Some(Caller { group: String::new(), ..caller(1) }), "group"),
        (Some(Caller { group: "../x".to_owned(), ..caller(1) }), "group"),
        (Some(Caller { group: "g".repeat(1000), ..caller(1) }), "group"),
        (Some(Caller { zone: "a\nb".to_owned(), ..caller(1) }), "zone"),
        (Some(Caller { rack: "r".repeat(64), ..caller(1) }), "rack"),
        (Some(Caller { piece_port: 65_536, ..caller(1) }), "piece_port: 65536 is no TCP port"),
    ];
    for (caller, words) in cases {
        let outcome = client.heartbeat(HeartbeatRequest { caller }).await;
        refused(&running, outcome, Code::InvalidArgument, words);
    }
    client.heartbeat(HeartbeatRequest { caller: Some(caller(1)) }).await.unwrap();
    assert_eq!(running.tracker.snapshot().nodes, 1);
}

#[tokio::test]
async fn digests_states_and_counts_are_checked() {
    let (running, mut client) = start().await;
    let caller = || Some(caller(1));
    for (bad, words) in [
        (holding(vec![1; 33], PARTIAL), "holdings.digest: expected 32 bytes, got 33"),
        (holding(vec![1; 32], 0), "holdings.state: 0 is no state"),
        (holding(vec![1; 32], 99), "holdings.state: 99 is no state"),
    ] {
        let outcome = client.announce(AnnounceRequest { caller: caller(), holdings: vec![bad] }).await;
        refused(&running, outcome, Code::InvalidArgument, words);
    }
    let many = vec![holding(vec![1; 32], PARTIAL); MAX_ENTRIES_PER_MESSAGE + 1];
    let outcome = client.announce(AnnounceRequest { caller: caller(), holdings: many }).await;
    refused(&running, outcome, Code::ResourceExhausted, "holdings: 4097 entries, at most 4096");

    let statement = Statement {
        subject: vec![1; 32],
        kind: StatementKind::Metainfo.into(),
        object: vec![2; 32],
        length: MAX_BLOB_LENGTH + 1,
    };
    for (bad, words) in [
        (statement.clone(), "statement.length"),
        (Statement { kind: 0, length: 1, ..statement.clone() }, "statement.kind: 0"),
        (Statement { object: vec![2; 20], length: 1, ..statement }, "statement.object: expected 32 bytes"),
    ] {
        let outcome = client.state(StateRequest { caller: caller(), statements: vec![bad] }).await;
        refused(&running, outcome, Code::InvalidArgument, words);
    }
    let outcome = client.find(FindRequest { caller: caller(), digest: b"sha256:00".to_vec() }).await;
    refused(&running, outcome, Code::InvalidArgument, "digest: expected 32 bytes, got 9");
    let outcome = client.report(ReportRequest { caller: caller(), peer: vec![] }).await;
    refused(&running, outcome, Code::InvalidArgument, "peer: expected 32 bytes, got 0");
}

/// One vote must not make every node fetch, and hold in memory, an object as long as the liar likes; nor an empty one.
#[tokio::test]
async fn statements_of_objects_without_or_beyond_the_length_of_their_kind_are_refused() {
    let (running, mut client) = start().await;
    let state = |kind: StatementKind, length| StateRequest {
        caller: Some(caller(1)),
        statements: vec![Statement { subject: vec![1; 32], kind: kind.into(), object: vec![2; 32], length }],
    };
    let kinds =
        [(StatementKind::Metainfo, MAX_METAINFO_LENGTH as u64), (StatementKind::LayerIndex, MAX_LAYER_INDEX_LENGTH)];
    for (kind, limit) in kinds {
        for length in [0, limit + 1] {
            refused(&running, client.state(state(kind, length)).await, Code::InvalidArgument, "statement.length");
        }
    }
    for (kind, limit) in kinds {
        client.state(state(kind, limit)).await.unwrap();
    }
}

#[tokio::test]
async fn lease_requests_are_checked() {
    let (running, mut client) = start().await;
    let run = |first, end| Run { first, end };
    let good = LeaseRequest {
        caller: Some(caller(1)),
        digest: vec![1; 32],
        length: 1 << 20,
        missing: vec![run(0, 16)],
        ..LeaseRequest::default()
    };
    for (bad, code, words) in [
        (LeaseRequest { length: u64::MAX, ..good.clone() }, Code::InvalidArgument, "length"),
        (LeaseRequest { missing: vec![run(0, 17)], ..good.clone() }, Code::InvalidArgument, "within 16 pieces"),
        (LeaseRequest { missing: vec![run(5, 5)], ..good.clone() }, Code::InvalidArgument, "missing"),
        (LeaseRequest { missing: vec![run(5, 2)], ..good.clone() }, Code::InvalidArgument, "missing"),
        (LeaseRequest { missing: vec![run(0, 4), run(3, 5)], ..good.clone() }, Code::InvalidArgument, "ascending"),
        (LeaseRequest { urgent: vec![run(u32::MAX - 1, u32::MAX)], ..good.clone() }, Code::InvalidArgument, "urgent"),
        (LeaseRequest { importable: vec![run(3, 3)], ..good.clone() }, Code::InvalidArgument, "importable"),
        (LeaseRequest { rare: vec![16], ..good.clone() }, Code::InvalidArgument, "rare: piece 16"),
        (LeaseRequest { rare: vec![0; MAX_RUNS + 1], ..good.clone() }, Code::ResourceExhausted, "rare: 65"),
        (LeaseRequest { useless: vec![vec![1; 31]], ..good.clone() }, Code::InvalidArgument, "useless"),
        (LeaseRequest { useless: vec![vec![1; 32]; 65], ..good.clone() }, Code::ResourceExhausted, "useless: 65"),
        (LeaseRequest { site: "a b".into(), ..good.clone() }, Code::InvalidArgument, "site"),
        (LeaseRequest { site: "x".repeat(256), ..good.clone() }, Code::InvalidArgument, "site"),
        (
            LeaseRequest { missing: vec![run(0, 1); MAX_RUNS + 1], ..good.clone() },
            Code::ResourceExhausted,
            "missing: 65",
        ),
    ] {
        refused(&running, client.lease(bad).await, code, words);
    }
    let Some(Outcome::Grant(grant)) = client.lease(good).await.unwrap().into_inner().outcome else { panic!() };
    let settle = |node, fetched| SettleRequest {
        caller: Some(caller(node)),
        digest: vec![1; 32],
        lease: grant.lease,
        fetched,
        ..SettleRequest::default()
    };
    let stolen = client.settle(settle(2, 1)).await.unwrap_err();
    assert_eq!((stolen.code(), stolen.message().contains("not the caller's")), (Code::InvalidArgument, true));
    let excess = client.settle(settle(1, u32::MAX)).await.unwrap_err();
    assert_eq!((excess.code(), excess.message().contains("of 2 pieces")), (Code::InvalidArgument, true));
    client.settle(settle(1, 2)).await.unwrap();
}

/// Everything that answers to a digest, as it goes over the wire, less the number that each lease has of its own, and the pause that a busy
/// tracker asks of whoever calls just then.
async fn told_of(client: &mut Client, caller: &Caller, digest: &Digest) -> Vec<Vec<u8>> {
    let (caller, digest) = (Some(caller.clone()), digest.as_bytes().to_vec());
    let find = FindRequest { caller: caller.clone(), digest: digest.clone() };
    let mut found = client.find(find).await.unwrap().into_inner();
    let replicas = ReplicasRequest { caller: caller.clone(), digests: vec![digest.clone()] };
    let mut replicas = client.replicas(replicas).await.unwrap().into_inner();
    let mut seeds = client.seeds(SeedsRequest { caller: caller.clone() }).await.unwrap().into_inner();
    let missing = vec![Run { first: 0, end: 16 }];
    let lease = LeaseRequest { caller, digest, length: 1 << 20, missing, ..LeaseRequest::default() };
    let mut lease = client.lease(lease).await.unwrap().into_inner();
    if let Some(Outcome::Grant(grant)) = &mut lease.outcome {
        grant.lease = 0;
    }
    (found.pause_ms, replicas.pause_ms, seeds.pause_ms, lease.pause_ms) = (0, 0, 0, 0);
    vec![found.encode_to_vec(), replicas.encode_to_vec(), seeds.encode_to_vec(), lease.encode_to_vec()]
}

/// Nodes of another group are told the same of what a group has and of what nobody has, and it takes as long.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_another_group_learn_not_even_that_a_digest_exists() {
    const DIGESTS: u32 = 40;
    let mut evidence = Evidence::new(20, "nodes of another group that ask a tracker");
    let (_running, mut client) = start().await;
    let held = |number: u32| Digest::of(format!("a group has {number} of {}", seed()).as_bytes());
    let nowhere = |number: u32| Digest::of(format!("nobody has {number} of {}", seed()).as_bytes());
    // A busy group: each digest is held by thirty nodes, stated, and leased.
    for node in 1..=30 {
        let holdings =
            (0..DIGESTS).map(|number| holding(held(number).as_bytes().to_vec(), HoldingState::Complete.into()));
        let announce = AnnounceRequest { caller: Some(caller(node)), holdings: holdings.collect() };
        client.announce(announce).await.unwrap();
    }
    for number in 0..DIGESTS {
        let statement = Statement {
            subject: held(number).as_bytes().to_vec(),
            kind: StatementKind::Metainfo.into(),
            object: vec![2; 32],
            length: 2000,
        };
        client.state(StateRequest { caller: Some(caller(1)), statements: vec![statement] }).await.unwrap();
    }
    let own = client.find(FindRequest { caller: Some(caller(2)), digest: held(3).as_bytes().to_vec() }).await.unwrap();
    assert!(own.get_ref().holders.len() >= 20 && own.get_ref().votes.len() == 1, "the group itself is told");

    let strangers = count(20, 1000);
    let (mut existing, mut missing) = (Vec::new(), Vec::new());
    for number in 0..strangers {
        let mut id = vec![0xee; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let stranger = Caller { node: id, group: "other".to_owned(), ..caller(0) };
        let (there, gone) = (held(number % DIGESTS), nowhere(number % DIGESTS));
        let answers = [told_of(&mut client, &stranger, &there).await, told_of(&mut client, &stranger, &gone).await];
        evidence.faults("questions of a node of another group", 8);
        assert_eq!(answers[0], answers[1], "stranger {number} can tell {there} from what nobody has");
        let found = FindReply::decode(&answers[0][0][..]).unwrap();
        // Who of them had a lease before: each has one of both digests.
        let own = found.lessees.iter().all(|lessee| lessee[4..] == [0xee; 28]);
        assert!(found.holders.is_empty() && found.votes.is_empty() && own, "a stranger is told of somebody: {found:?}");
        // In turns, and each as often the first of two.
        for round in 0..20 {
            let mut ask = async |digest: &Digest| {
                let find = FindRequest { caller: Some(stranger.clone()), digest: digest.as_bytes().to_vec() };
                let begun = Instant::now();
                let answer = client.find(find).await;
                (begun.elapsed(), answer.is_ok())
            };
            let mut took = Vec::new();
            for turn in 0..2 {
                let is_there = (round + turn) % 2 == 0;
                let (time, answered) = ask(if is_there { &there } else { &gone }).await;
                evidence.ended(time, answered);
                took.push((is_there, time));
            }
            for (is_there, time) in took {
                if is_there { existing.push(time) } else { missing.push(time) }
            }
        }
        client.leave(LeaveRequest { caller: Some(stranger) }).await.unwrap();
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e6
    };
    let (existing, missing) = (median(&mut existing), median(&mut missing));
    eprintln!("asked by {strangers} strangers: {existing:.1} us of what exists, {missing:.1} us of what does not");
    evidence.figure("strangers", strangers.into());
    evidence.figure("median answer of an existing digest, us", existing);
    evidence.figure("median answer of a missing digest, us", missing);
    assert!((0.5..2.0).contains(&(existing / missing)), "{existing} us against {missing} us");
}

#[tokio::test]
async fn oversized_messages_are_refused_before_they_are_read() {
    let (running, mut client) = start().await;
    let huge = holding(vec![1; MAX_REQUEST_BYTES], PARTIAL);
    let outcome = client.announce(AnnounceRequest { caller: Some(caller(1)), holdings: vec![huge] }).await;
    // tonic's code for a message above the limit.
    refused(&running, outcome, Code::OutOfRange, "message length too large");
    client.heartbeat(HeartbeatRequest { caller: Some(caller(1)) }).await.unwrap();
}

#[tokio::test]
async fn a_listing_is_taken_whole_or_not_at_all() {
    let (running, mut client) = start().await;
    let message = |caller: Caller, digest: u8, state: HoldingState| SyncRequest {
        caller: Some(caller),
        holdings: vec![holding(vec![digest; 32], state.into())],
        statements: Vec::new(),
        whole: false,
    };
    let good = message(caller(1), 1, HoldingState::Complete);
    for (stream, code, words) in [
        (Vec::new(), Code::InvalidArgument, "no message"),
        (vec![good.clone(), message(caller(2), 2, HoldingState::Complete)], Code::InvalidArgument, "caller changed"),
        (vec![good.clone(), message(caller(1), 2, HoldingState::Gone)], Code::InvalidArgument, "GONE"),
        (vec![good.clone(); MAX_SYNC_MESSAGES + 1], Code::ResourceExhausted, "more than 64 messages"),
        (
            (0..17)
                .map(|_| SyncRequest {
                    caller: Some(caller(1)),
                    holdings: vec![holding(vec![1; 32], PARTIAL); MAX_ENTRIES_PER_MESSAGE],
                    statements: Vec::new(),
                    whole: false,
                })
                .collect(),
            Code::ResourceExhausted,
            "at most 65536 blobs",
        ),
    ] {
        refused(&running, client.sync(tokio_stream::iter(stream)).await, code, words);
    }
    client.sync(tokio_stream::iter([good])).await.unwrap();
    assert_eq!(running.tracker.snapshot().holders, 1);
}

#[tokio::test]
async fn bytes_that_are_no_protocol_end_their_own_connection_only() {
    let (running, mut client) = start().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff"]
    {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        // Closed or reset: either ends the reading.
        let _ = stream.read_to_end(&mut answer).await;
    }
    client.heartbeat(HeartbeatRequest { caller: Some(caller(1)) }).await.unwrap();
}

#[tokio::test]
async fn a_socket_for_both_families_sees_plain_addresses() {
    let running = start_on("[::]:0").await;
    let port = running.address.port();
    let mut v4 = Client::connect(format!("http://127.0.0.1:{port}")).await.unwrap();
    let mut v6 = Client::connect(format!("http://[::1]:{port}")).await.unwrap();
    v4.heartbeat(HeartbeatRequest { caller: Some(caller(4)) }).await.unwrap();
    v6.heartbeat(HeartbeatRequest { caller: Some(caller(6)) }).await.unwrap();
    let mut addresses: Vec<String> =
        running.tracker.snapshot().members.iter().map(|member| member.address.to_string()).collect();
    addresses.sort();
    assert_eq!(addresses, ["127.0.0.1:7081", "[::1]:7081"]);
}

#[tokio::test]
async fn calls_and_sizes_are_counted() {
    let (running, mut client) = start().await;
    let holdings = vec![holding(vec![1; 32], PARTIAL), holding(vec![2; 32], PARTIAL)];
    client.announce(AnnounceRequest { caller: Some(caller(1)), holdings }).await.unwrap();
    client.find(FindRequest { caller: None, digest: vec![1; 32] }).await.unwrap_err();
    running.tracker.tick();
    let mut registry = prometheus_client::registry::Registry::default();
    running.tracker.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "lapwing_tracker_nodes 1",
        "lapwing_tracker_blobs 2",
        "lapwing_tracker_holders 2",
        r#"lapwing_tracker_calls_total{method="announce",outcome="ok"} 1"#,
        r#"lapwing_tracker_calls_total{method="find",outcome="invalid_argument"} 1"#,
        "lapwing_tracker_leases_granted_total 0",
    ] {
        assert!(text.lines().any(|is| is == line), "{line} is not in\n{text}");
    }
}
