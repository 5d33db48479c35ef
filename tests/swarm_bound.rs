//! Nodes that pull a blob together over limited links: the registry sends about one copy, and no single fault fails a pull.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapwing_lab::{CorruptingPeer, Host, Lapwing, LapwingSettings, Mbit, Need, Rates, Response, Site, require, wait};
use lapwing_p2p::digest::Digest;

const NEEDS: [Need; 5] =
    [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("tc"), Need::Program("ip")];
const DEADLINE: Duration = Duration::from_secs(120);
const REPOSITORY: &str = "swarm";
/// Slow enough that there is time for a fault while the blob arrives.
const REGISTRY: Mbit = Mbit(80);
const NODE: Rates = Rates::of(Mbit(120), Mbit(240));
/// What the registry may send, as copies of the blob, headers of all protocols included. On an idle machine it is 1.01; where processes wait
/// for the CPU a lease or two outlive their terms, and their pieces are fetched twice.
const COPIES: f64 = 1.1;
/// The tests of this file run one after the other: they are about bandwidth, and side by side they would compete for the CPU.
static ALONE: Mutex<()> = Mutex::new(());

struct Node {
    lapwing: Lapwing,
    host: Host,
}

/// Nodes, none of which has the blob that the registry holds.
struct Swarm {
    nodes: Vec<Node>,
    site: Site,
    content: Vec<u8>,
    digest: Digest,
    _alone: MutexGuard<'static, ()>,
}

impl Swarm {
    fn start(name: &str, nodes: usize, mib: usize) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut content = vec![0; mib << 20];
        fastrand::Rng::with_seed(mib as u64).fill(&mut content);
        let digest = Digest::of(&content);
        let site = Site::new(name, Some(REGISTRY)).unwrap();
        let length = content.len() as u64;
        site.registry.push_blob(REPOSITORY, &digest.to_string(), length, content.as_slice()).unwrap();
        let settings = LapwingSettings::node(&[site.tracker.tracker_address()])
            .registry(&site.registry.name())
            .with("snapshotter", "enabled = false")
            .with("lazy", "enabled = false");
        let start = |number: usize| {
            let host = site.network.host_at(&format!("n{number}"), NODE).unwrap();
            Node { lapwing: Lapwing::start(&host, settings.clone()).unwrap(), host }
        };
        let nodes = (0..nodes).map(start).collect();
        Self { nodes, site, content, digest, _alone: alone }
    }

    /// All nodes pull at the same moment; `fault` is called when half of all bytes have come. Every node gives the right bytes
    /// but those that `exempt` names.
    fn pull(&mut self, exempt: Option<usize>, fault: impl FnOnce(&mut Self)) {
        let registry = self.site.registry.name();
        let received =
            |swarm: &Self| -> u64 { swarm.nodes.iter().map(|node| node.host.received_bytes().unwrap()).sum() };
        let (before, goal) = (received(self), (self.nodes.len() * self.content.len() / 2) as u64);
        let mut pulls = Vec::new();
        for node in &self.nodes {
            let path = format!("/v2/{REPOSITORY}/blobs/{}?ns={registry}", self.digest);
            let host = node.host.clone();
            let mirror = Lapwing::mirror_url().strip_prefix("http://").unwrap().parse().unwrap();
            pulls.push(std::thread::spawn(move || host.http_get(mirror, &path)));
        }
        wait::until_true("half of the bytes to come", DEADLINE, || received(self) >= before + goal).unwrap();
        fault(self);
        for (number, pull) in pulls.into_iter().enumerate() {
            let answer = pull.join().unwrap();
            if exempt != Some(number) {
                self.expect_right(number, &answer.unwrap());
            }
        }
    }

    #[track_caller]
    fn expect_right(&self, number: usize, answer: &Response) {
        let (length, log) = (answer.body.len(), self.nodes[number].lapwing.log().unwrap());
        assert!(answer.status == 200 && length == self.content.len(), "n{number}: {}, {length}: {log}", answer.status);
        assert!(answer.body == self.content, "n{number} gave wrong bytes");
    }

    fn sum(&self, metric: &str) -> f64 {
        self.nodes.iter().map(|node| node.lapwing.metric(metric, "").unwrap()).sum()
    }
}

#[test]
fn nodes_that_start_together_take_one_copy_from_the_registry() {
    if !require("nodes_that_start_together_take_one_copy_from_the_registry", &NEEDS) {
        return;
    }
    let mut swarm = Swarm::start("bound", 6, 32);
    let sent = swarm.site.registry.sent_bytes().unwrap();
    swarm.pull(None, |_| {});
    let copies = (swarm.site.registry.sent_bytes().unwrap() - sent) as f64 / swarm.content.len() as f64;
    assert!((1.0..=COPIES).contains(&copies), "the registry sent {copies:.3} copies to 6 nodes");
}

#[test]
fn a_peer_that_is_killed_at_half_fails_no_other_pull() {
    if !require("a_peer_that_is_killed_at_half_fails_no_other_pull", &NEEDS) {
        return;
    }
    let mut swarm = Swarm::start("peer-killed", 5, 24);
    swarm.pull(Some(4), |swarm| swarm.nodes[4].lapwing.kill9().unwrap());
}

#[test]
fn a_tracker_that_is_killed_at_half_fails_no_pull() {
    if !require("a_tracker_that_is_killed_at_half_fails_no_pull", &NEEDS) {
        return;
    }
    let mut swarm = Swarm::start("tracker-killed", 5, 24);
    swarm.pull(None, |swarm| swarm.site.tracker.kill9().unwrap());
}

#[test]
fn a_peer_that_corrupts_every_piece_is_isolated_after_three() {
    if !require("a_peer_that_corrupts_every_piece_is_isolated_after_three", &NEEDS) {
        return;
    }
    let mut swarm = Swarm::start("corrupting", 5, 24);
    let host = swarm.site.network.host_at("liar", NODE).unwrap();
    let tracker = swarm.site.tracker.tracker_address();
    let liar = CorruptingPeer::start(&host, &tracker, swarm.content.clone()).unwrap();
    swarm.pull(None, |_| {});
    assert!(swarm.sum("lapwing_bad_pieces_total") >= 1.0, "the corrupting peer was never asked");
    for (number, node) in swarm.nodes.iter().enumerate() {
        let bad = node.lapwing.metric("lapwing_bad_pieces_total", "").unwrap();
        assert!(bad <= 3.0, "n{number} took {bad} bad pieces before it refused their sender");
    }
    assert_eq!(swarm.sum("lapwing_digest_mismatches_total"), 0.0, "wrong pieces never got into the store");
    liar.stop().unwrap();
}
