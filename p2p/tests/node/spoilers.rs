//! Swarms of which one peer in a hundred, some, or all spoil what they send, each in its own way, with an origin beside them and without:
//! a reader gets the right bytes or an error, and what is wrong ends in the node that received it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use lapwing_evidence::{Evidence, count, seed};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, NodeConfig, Priority};

use crate::hostile::{LENGTH, Liar, SPOILT, Spoil, relay};
use crate::support::{Handle, MemoryOrigin, Tracker, content, start_with};

const WHOLE: u64 = LENGTH as u64;
/// How many peers have the blob, if only one in a hundred lies, or does not.
const CROWD: usize = 100;
const FEW: usize = 12;
/// Wrong pieces for which a peer is banned.
const ISOLATED_AFTER: u64 = 3;
/// Pieces that may come of one peer after those, since they were asked for before.
const UNDER_WAY: u64 = 1;
const PATIENCE: Duration = Duration::from_secs(60);

/// What a swarm is like.
#[derive(Debug, Clone, Copy)]
struct Mix {
    percent: usize,
    origin: bool,
}

impl Mix {
    fn spoilers(self) -> usize {
        (self.peers() * self.percent).div_ceil(100)
    }

    fn peers(self) -> usize {
        if matches!(self.percent, 1 | 99) { CROWD } else { FEW }
    }

    /// Whether anybody has the right bytes.
    fn can_be_read(self) -> bool {
        self.origin || self.percent < 100
    }
}

struct Started {
    node: Arc<Node>,
    metrics: Arc<Metrics>,
    _root: tempfile::TempDir,
}

async fn node(tracker: &Arc<Tracker>, deadline: Duration) -> Started {
    let root = tempfile::tempdir().unwrap();
    let (metrics, identity) = (Arc::new(Metrics::default()), Arc::new(Identity::generate().unwrap()));
    let adjust = |config: &mut NodeConfig| config.read_deadline = deadline;
    let node = start_with(tracker, root.path(), identity, Arc::clone(&metrics), adjust).await;
    Started { node, metrics, _root: root }
}

/// Peers that all pass on what `signer` stated, and how each of them spoils it.
async fn peers(
    tracker: &Tracker,
    bytes: &Bytes,
    mix: Mix,
    signer: &Arc<Identity>,
    random: &mut fastrand::Rng,
) -> Vec<(Arc<Liar>, Spoil)> {
    let mut peers = Vec::new();
    for number in 0..mix.peers() {
        let ways = [&SPOILT[..], &[Spoil::AnotherIndex]].concat();
        let way = if number < mix.spoilers() { ways[random.usize(..ways.len())] } else { Spoil::Nothing };
        peers.push((relay(tracker, bytes, way, false, Some(Arc::clone(signer))).await, way));
    }
    peers
}

/// Lets a node read among `mix`, and another one from that node alone at the same time.
async fn swarm(mix: Mix, number: u64, evidence: &mut Evidence) {
    let mut random = fastrand::Rng::with_seed(seed().wrapping_mul(1000) + number);
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, random.u64(..));
    let digest = Digest::of(&bytes);
    let signer = Arc::new(Identity::generate().unwrap());
    let peers = peers(&tracker, &bytes, mix, &signer, &mut random).await;
    tracker.add_lessee(digest, signer.id());
    let deadline = if mix.can_be_read() { PATIENCE } else { Duration::from_secs(2) };
    let reader = node(&tracker, deadline).await;
    // Knows of the reader, and of nobody else.
    let beside = Arc::new(Tracker::default());
    beside.register(reader.node.id(), reader.node.local_addr());
    beside.add_holder(digest, reader.node.id(), Holding::Partial);
    beside.add_lessee(digest, signer.id());
    // Signs what it has from the origin.
    beside.add_lessee(digest, reader.node.id());
    let next = node(&beside, deadline).await;

    let origin = mix.origin.then(|| Arc::new(Handle(MemoryOrigin::new(bytes.clone()))) as _);
    let blob = reader.node.open(digest, WHOLE, origin).unwrap();
    let passed_on = next.node.open(digest, WHOLE, None).unwrap();
    let begun = std::time::Instant::now();
    let (read, handed) = tokio::join!(blob.read(0..WHOLE, Priority::Bulk), passed_on.read(0..WHOLE, Priority::Bulk));
    evidence.ended(begun.elapsed(), read.is_ok());
    evidence.ended(begun.elapsed(), handed.is_ok());
    for (who, read) in [("reader", &read), ("next", &handed)] {
        assert_eq!(read.is_ok(), mix.can_be_read(), "{mix:?}, {number}: {who}: {:?}", read.as_ref().err());
        let served = read.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        assert!(evidence.compare(&bytes, served), "{mix:?}, {number}: the {who} got wrong bytes");
    }
    for (peer, way) in &peers {
        let sent = peer.sent.load(Ordering::Relaxed);
        match way {
            Spoil::Nothing => {}
            _ => evidence.faults(&format!("{way:?}"), sent),
        }
    }
    let (bad, bans) = (reader.metrics.bad_pieces.get(), reader.metrics.bans.get());
    assert!(bad <= mix.spoilers() as u64 * (ISOLATED_AFTER + UNDER_WAY), "{mix:?}, {number}: {bad} bad pieces");
    assert!(bans <= mix.spoilers() as u64, "{mix:?}, {number}: {bans} bans, somebody honest among them");
    if mix.percent == 100 {
        assert!(bad > 0, "{mix:?}, {number}: nobody lied");
    }
    let most = evidence.record().figures.get("bad_pieces_for_each_ban").copied().unwrap_or(0.0);
    if bans > 0 {
        evidence.figure("bad_pieces_for_each_ban", most.max(bad as f64 / bans as f64));
    }
    // What was bad stayed where it came to.
    let came = (next.metrics.bad_pieces.get(), next.metrics.bans.get(), next.metrics.digest_mismatches.get());
    assert_eq!(came, (0, 0, 0), "{mix:?}, {number}: a corrupt piece left the node that received it");
    if !mix.can_be_read() {
        assert_eq!(reader.metrics.served_bytes.get(), 0, "{mix:?}, {number}: something was passed on");
        assert_eq!(reader.node.store().get(&digest).unwrap().have_bytes(), 0, "{mix:?}, {number}: something was kept");
    }
    for started in [next, reader] {
        started.node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_part_of_a_swarm_spoils_pieces_none_of_them_goes_on() {
    let mut evidence = Evidence::new(4, "swarms of which 1 to 100 % spoil what they send");
    let honest = Mix { percent: 0, origin: false };
    let before = {
        let mut quiet = Evidence::new(4, "the same without anybody who lies");
        swarm(honest, 0, &mut quiet).await;
        quiet.record().bytes_after
    };
    evidence.served_before(before);
    let mut number = 0;
    let few = [(1, true), (10, false), (50, true), (90, false), (100, true), (100, false)];
    let all = [1, 10, 25, 50, 90, 99, 100].into_iter().flat_map(|percent| [(percent, true), (percent, false)]);
    let rounds = count(0, 10) as usize;
    let many = std::iter::repeat_n(all, rounds).flatten();
    for (percent, origin) in few.into_iter().take(if rounds == 0 { few.len() } else { 0 }).chain(many) {
        number += 1;
        swarm(Mix { percent, origin }, number, &mut evidence).await;
    }
    let taken: u64 = evidence.record().faults.values().sum();
    assert!(taken >= 20, "{taken} spoilt pieces: too few to mean anything");
    eprintln!("{:?}", evidence.record());
}
