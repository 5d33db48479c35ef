//! Calls to a tracker, with changes in their bytes: each is answered or refused by name, the tracker goes on, and what honest nodes told it stays.
//!
//! The corpus is a valid call of each kind. `LAPWING_TEST_FUZZ_SECONDS` says for how long calls go on (otherwise a fixed number of them),
//! `LAPWING_TEST_FUZZ_SEED` from which number on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _};
use lapwing_discovery::proto::tracker_service_client::TrackerServiceClient;
use lapwing_discovery::proto::{
    AnnounceRequest, Caller, FailOrderRequest, FindRequest, HeartbeatRequest, Holding, HoldingState, LeaseRequest,
    LeaveRequest, OrderRequest, OrderedBlob, OrdersRequest, ReplicasRequest, ReportRequest, Run, SeedsRequest,
    SettleRequest, StateRequest, Statement, StatementKind, SyncRequest, TellTrialRequest, Trial, TrialReportsRequest,
};
use lapwing_discovery::server::{Tracker, serve};
use lapwing_evidence::Evidence;
use lapwing_evidence::fuzz::{Inputs, SEED};
use lapwing_evidence::random::Random;
use lapwing_p2p::digest::Digest;
use prost::Message;
use tokio::net::TcpListener;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Messages as the bytes they are.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

/// A valid call: its name, and its message.
fn calls(random: &mut Random) -> Vec<(&'static str, Vec<u8>)> {
    let caller = Some(Caller {
        node: vec![random.below(20) as u8; 32],
        group: random.pick(&["default", "other"]).to_string(),
        piece_port: 7081,
        zone: "a".into(),
        rack: "r1".into(),
        instance: random.draw(),
        seed: random.one_in(5),
        seed_port: 0,
    });
    let digest = vec![random.below(30) as u8; 32];
    let state = *random.pick(&[HoldingState::Partial, HoldingState::Complete]);
    let holdings = vec![Holding { digest: digest.clone(), state: state.into() }; 1 + random.below(3)];
    let kind = StatementKind::try_from(1 + random.below(5) as i32).unwrap();
    let statement =
        Statement { subject: digest.clone(), kind: kind.into(), object: vec![random.draw() as u8; 32], length: 900 };
    let run = Run { first: 0, end: 1 + random.below(16) as u32 };
    let lease = LeaseRequest {
        caller: caller.clone(),
        digest: digest.clone(),
        length: 16 << 16,
        missing: vec![run],
        urgent: Vec::new(),
        site: "registry.example".into(),
        importable: vec![run],
        rare: vec![0],
        remaining_ms: 1000,
        unshared: 3,
        useless: vec![vec![9; 32]],
    };
    let settle = SettleRequest {
        caller: caller.clone(),
        digest: digest.clone(),
        lease: random.draw() % 100,
        fetched: 1,
        first_byte_ms: Some(10),
        trouble: random.below(5) as i32,
        pause_ms: 1000,
    };
    let blob = OrderedBlob {
        digest: digest.clone(),
        length: 1 << 20,
        registry: "registry.example".into(),
        repository: "library/thing".into(),
        index: random.one_in(2),
        trial: random.one_in(2).then_some(Trial { job: 7, begins_in_ms: 100, remove: true }),
    };
    let order = OrderRequest { caller: caller.clone(), blob: Some(blob), job: 7, nodes: 3, over: random.one_in(9) };
    let fail = FailOrderRequest { caller: caller.clone(), digest: digest.clone(), reason: "no room".into() };
    let tell = TellTrialRequest { caller: caller.clone(), digest: digest.clone(), job: 7, report: vec![1; 200] };
    let reports = TrialReportsRequest { caller: caller.clone(), digest: digest.clone(), job: 7, after: Vec::new() };
    let sync = SyncRequest {
        caller: caller.clone(),
        holdings: holdings.clone(),
        statements: vec![statement.clone()],
        whole: random.one_in(2),
    };
    vec![
        ("Announce", AnnounceRequest { caller: caller.clone(), holdings }.encode_to_vec()),
        ("Sync", sync.encode_to_vec()),
        ("Find", FindRequest { caller: caller.clone(), digest: digest.clone() }.encode_to_vec()),
        ("Replicas", ReplicasRequest { caller: caller.clone(), digests: vec![digest.clone(); 3] }.encode_to_vec()),
        ("Seeds", SeedsRequest { caller: caller.clone() }.encode_to_vec()),
        ("Lease", lease.encode_to_vec()),
        ("Settle", settle.encode_to_vec()),
        ("State", StateRequest { caller: caller.clone(), statements: vec![statement] }.encode_to_vec()),
        ("Heartbeat", HeartbeatRequest { caller: caller.clone() }.encode_to_vec()),
        ("Order", order.encode_to_vec()),
        ("Orders", OrdersRequest { caller: caller.clone(), after: random.draw() % 10 }.encode_to_vec()),
        ("FailOrder", fail.encode_to_vec()),
        ("TellTrial", tell.encode_to_vec()),
        ("TrialReports", reports.encode_to_vec()),
        ("Report", ReportRequest { caller: caller.clone(), peer: vec![random.below(20) as u8; 32] }.encode_to_vec()),
        ("Leave", LeaveRequest { caller }.encode_to_vec()),
    ]
}

async fn send(channel: &Channel, name: &str, message: Vec<u8>) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::try_from(format!("/lapwing.tracker.v1.TrackerService/{name}")).unwrap();
    match name {
        "Sync" => client.client_streaming(Request::new(tokio_stream::iter([message])), path, Raw).await.map(drop),
        _ => client.unary(Request::new(message), path, Raw).await.map(drop),
    }
}

/// Whether a refusal names what is wrong; anything else is a tracker that fell over it.
fn is_named(status: &Status) -> bool {
    let by_the_tracker = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::ResourceExhausted
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::PermissionDenied
    );
    // What tonic says of bytes that are no message.
    by_the_tracker && !status.message().is_empty() || status.message().contains("decode")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_calls_are_answered_or_refused_and_what_others_told_stays() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tracker = Tracker::new();
    let serving = serve(listener, tracker.clone(), std::future::pending());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut honest = TrackerServiceClient::new(channel.clone());
    let node = Digest::of(b"an honest node");
    let caller =
        Caller { node: node.as_bytes().to_vec(), group: "honest".into(), piece_port: 7081, ..Caller::default() };
    let asker = Caller { node: vec![0xaa; 32], ..caller.clone() };
    let held = |number: u8| vec![number; 32];
    let holdings = (0..30).map(|number| Holding { digest: held(number), state: HoldingState::Complete.into() });
    let announce = AnnounceRequest { caller: Some(caller), holdings: holdings.collect() };
    honest.announce(announce.clone()).await.unwrap();

    // No change makes this group, or this node, out of those of the corpus.
    let mut evidence = Evidence::new(19, "trackers' calls that are changed at random");
    let (mut answered, mut refused, mut inputs) = (0, 0, Inputs::new(6000));
    for input in inputs.by_ref() {
        let mut random = Random::new(input);
        let corpus = calls(&mut random);
        let (name, mut message) = random.pick(&corpus).clone();
        let other = random.pick(&corpus).1.clone();
        match random.below(3) {
            0 => random.nudge(&mut message),
            1 => random.mutate(&mut message, &other),
            // Protocol Buffers take the last of a field that is there twice, and join messages.
            _ => message.extend(other),
        }
        let begun = Instant::now();
        let call = tokio::time::timeout(Duration::from_secs(10), send(&channel, name, message)).await;
        let outcome = call.unwrap_or_else(|_| panic!("{name}: input {input} ({SEED}={input}) has no answer"));
        evidence.ended(begun.elapsed(), outcome.is_ok());
        match outcome {
            Ok(()) => answered += 1,
            Err(status) if is_named(&status) => refused += 1,
            Err(status) => panic!("{name}: input {input} ({SEED}={input}): {status:?}"),
        }
        if input % 500 == 0 {
            // An honest node speaks now and then, as it does.
            honest.announce(announce.clone()).await.unwrap();
        }
    }
    evidence.faults("a changed call", inputs.drawn());
    for number in 0..30 {
        let find = FindRequest { caller: Some(asker.clone()), digest: held(number) };
        let found = honest.find(find).await.unwrap().into_inner();
        let holders: Vec<_> = found.holders.iter().map(|holder| &holder.node[..]).collect();
        assert_eq!(holders, [node.as_bytes()], "blob {number}");
    }
    let left = tracker.snapshot();
    eprintln!(
        "{} calls: {answered} answered, {refused} refused; {} nodes in {} groups, {} blobs",
        inputs.drawn(),
        left.nodes,
        left.groups,
        left.blobs
    );
    assert!(!inputs.is_whole() || (answered > 0 && refused > 0), "changes do too much or too little");
    task.abort();
}
