//! A cluster with an authority, by real processes: joining, sharing, renewing, being expelled, and being a stranger.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lapwing_lab::{
    Lab, Lapwing, LapwingSettings, Need, Network, Registry, RegistryOptions, image, lapwing_binary, require, wait,
};
use rustix::process::Signal;

const NEEDS: [Need; 4] = [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("skopeo")];
const PATIENCE: Duration = Duration::from_secs(120);

struct Cluster {
    network: Network,
    registry: Registry,
    layers: Vec<String>,
    authority: PathBuf,
    tracker: Lapwing,
    _lab: Lab,
}

fn lapwing(arguments: &[&str]) -> String {
    let output = Command::new(lapwing_binary().unwrap()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Cluster {
    fn start(name: &str, lifetime: &str) -> Self {
        let lab = Lab::new(name).unwrap();
        let network = lab.network().unwrap();
        let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
        let layout = image::small().unwrap();
        registry.push(&layout, "small:1").unwrap();
        let layers = layout.layers.iter().map(|layer| layer.digest.clone()).collect();
        let authority = lab.dir().join("authority");
        lapwing(&["ca", "init", authority.to_str().unwrap(), "--cluster", "lab.example"]);
        let settings = LapwingSettings::tracker()
            .encrypted()
            .with("tracker", "# insecure is for clusters without an authority")
            .with("identity", &format!("issuer = {authority:?}\nlifetime = {lifetime:?}"));
        let tracker = Lapwing::start(&network.host("tracker", None).unwrap(), settings).unwrap();
        Self { network, registry, layers, authority, tracker, _lab: lab }
    }

    fn node(&self) -> LapwingSettings {
        LapwingSettings::node(&[self.tracker.tracker_address()])
            .registry(&self.registry.name())
            .with("lazy", "enabled = false")
            .encrypted()
    }

    /// A machine that joins by a token that it finds in a file.
    fn join(&self, name: &str, roles: &str, settings: LapwingSettings) -> Lapwing {
        let host = self.network.host(name, None).unwrap();
        let token = host.dir().join("token");
        let authority = self.authority.to_str().unwrap();
        std::fs::write(&token, lapwing(&["ca", "token", authority, "--roles", roles])).unwrap();
        let directory = host.dir().join("identity");
        let identity = format!("directory = {directory:?}\ntoken_file = {token:?}");
        Lapwing::start(&host, settings.with("identity", &identity)).unwrap()
    }

    fn member(&self, name: &str) -> Lapwing {
        self.join(name, "node", self.node())
    }

    fn seed(&self, name: &str) -> Lapwing {
        let settings = LapwingSettings::seed(&[self.tracker.tracker_address()]);
        self.join(name, "seed", settings.registry(&self.registry.name()).encrypted())
    }

    fn pull(&self, node: &Lapwing, layer: usize) {
        let answer = node.mirror_blob(&self.registry.name(), "small", &self.layers[layer]).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

fn from_peers(node: &Lapwing) -> u64 {
    node.piece_bytes("peer").unwrap()
}

/// What `lapwing` logged of itself.
fn peer_id(node: &Lapwing) -> String {
    let log = node.log().unwrap();
    let ready = log.lines().rfind(|line| line.contains("node is ready")).unwrap_or_else(|| panic!("{log}"));
    let plain: String = ready.replace(['"', '='], " ");
    plain.split_whitespace().find(|word| word.len() == 64).unwrap_or_else(|| panic!("{ready}")).to_owned()
}

/// Two members share; a stranger that reaches everything, and knows the digest and where the members are, gets nothing.
#[test]
fn members_share_and_a_stranger_gets_nothing() {
    if !require("members_share_and_a_stranger_gets_nothing", &NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("members", "1h");
    let seed = cluster.seed("seed");
    let one = cluster.member("one");
    let mut two = cluster.member("two");
    cluster.pull(&one, 0);
    cluster.pull(&one, 1);
    assert!(seed.piece_bytes("origin").unwrap() > 0, "{}", seed.log().unwrap());
    assert_eq!(one.piece_bytes("origin").unwrap(), 0, "the seed fetched it: {}", one.log().unwrap());
    cluster.pull(&two, 0);
    assert!(from_peers(&two) > 0, "{}", two.log().unwrap());
    assert_eq!(two.piece_bytes("origin").unwrap(), 0);
    let listed = lapwing(&["ca", "members", cluster.authority.to_str().unwrap(), "--json"]);
    assert!([&one, &two].iter().all(|node| listed.contains(&peer_id(node))), "{listed}");

    let host = cluster.network.host("stranger", None).unwrap();
    let mut stranger = Lapwing::start(&host, cluster.node()).unwrap();
    cluster.pull(&stranger, 0);
    assert_eq!(from_peers(&stranger), 0, "it was told nothing");

    // What a member remembers of its peers, in the hands of the stranger, who so knows whom to dial.
    two.stop().unwrap();
    stranger.stop().unwrap();
    cluster.tracker.kill9().unwrap();
    std::fs::copy(two.root().join("peers"), stranger.root().join("peers")).unwrap();
    two.restart().unwrap();
    stranger.restart().unwrap();
    for node in [&two, &stranger] {
        cluster.pull(node, 1);
    }
    assert!(from_peers(&two) > 0, "the file does name a peer that has it: {}", two.log().unwrap());
    assert_eq!(from_peers(&stranger), 0);
    assert!(stranger.piece_bytes("origin").unwrap() > 0);
}

/// The file's inode: who replaces it gives it another.
#[test]
fn a_machine_whose_root_was_emptied_joins_again_by_its_token() {
    if !require("a_machine_whose_root_was_emptied_joins_again_by_its_token", &NEEDS) {
        return;
    }
    let cluster = Cluster::start("emptied", "1h");
    let mut member = cluster.member("member");
    cluster.pull(&member, 0);
    let before = peer_id(&member);
    member.stop().unwrap();
    // Its certificate stays, in a directory of its own; the key that it is for goes.
    std::fs::remove_dir_all(member.root()).unwrap();
    std::fs::create_dir(member.root()).unwrap();
    member.restart().unwrap();
    assert_ne!(peer_id(&member), before);
    cluster.pull(&member, 0);
}

fn inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).unwrap().ino()
}

/// Certificates are renewed while nodes run, and run out for a node that was revoked.
#[test]
fn a_daemon_that_crashes_leaves_no_memory_behind() {
    if !require("a_daemon_that_crashes_leaves_no_memory_behind", &[Need::Root, Need::CoreDumps]) {
        return;
    }
    let host = Lab::new("crash").unwrap().network().unwrap().host("tracker", None).unwrap();
    let mut tracker = Lapwing::start(&host, LapwingSettings::tracker()).unwrap();
    tracker.process().signal(Signal::ABORT).unwrap();
    let status = tracker.process().wait(PATIENCE).unwrap();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
    assert!(!status.core_dumped(), "{status}");
}

#[test]
fn certificates_are_renewed_until_their_node_is_revoked() {
    if !require("certificates_are_renewed_until_their_node_is_revoked", &NEEDS) {
        return;
    }
    let cluster = Cluster::start("renewal", "10s");
    let (one, two) = (cluster.member("one"), cluster.member("two"));
    let certificate = |node: &Lapwing| node.root().parent().unwrap().join("identity/certificate.pem");
    for _ in 0..3 {
        let before = [&one, &two].map(|node| inode(&certificate(node)));
        wait::until_true("both certificates to be replaced", PATIENCE, || {
            before[0] != inode(&certificate(&one)) && before[1] != inode(&certificate(&two))
        })
        .unwrap();
    }
    cluster.pull(&one, 0);
    cluster.pull(&two, 0);
    let shared = from_peers(&two);
    assert!(shared > 0, "{}", two.log().unwrap());

    let authority = cluster.authority.to_str().unwrap();
    lapwing(&["ca", "revoke", authority, &peer_id(&two)]);
    wait::until_true("its certificate to run out", PATIENCE, || two.log().unwrap().contains("has run out")).unwrap();
    wait::until_true("its connections to end", PATIENCE, || two.metric("lapwing_peers", "").unwrap() == 0.0).unwrap();
    cluster.pull(&one, 1);
    cluster.pull(&two, 1);
    assert_eq!(from_peers(&two), shared, "{}", two.log().unwrap());
    assert!(two.piece_bytes("origin").unwrap() > 0);
}
