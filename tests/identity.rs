//! A cluster with an authority, by real processes: joining, sharing, renewing, being expelled, and being a stranger.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lapwing_evidence::{Evidence, count};
use lapwing_lab::{
    Clock, Lab, Lapwing, LapwingSettings, Need, Network, Registry, RegistryOptions, image, lapwing_binary, require,
    wait,
};
use lapwing_p2p::digest::Digest;
use rustix::process::Signal;

const NEEDS: [Need; 4] = [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("skopeo")];
const PATIENCE: Duration = Duration::from_secs(120);
/// A daemon looks at its clock every ten seconds.
const AFTER_A_JUMP: Duration = Duration::from_secs(12);

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

    /// Gives how many bytes it has.
    fn pull(&self, node: &Lapwing, layer: usize) -> u64 {
        let answer = node.mirror_blob(&self.registry.name(), "small", &self.layers[layer]).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(Digest::of(&answer.body).to_string(), self.layers[layer]);
        answer.body.len() as u64
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

/// Certificates of the cluster are not good at the times to which its clocks jump, and those that it got there not when they are back.
#[test]
fn clocks_that_jump_put_nobody_out_of_the_cluster_for_good() {
    const NAME: &str = "clocks_that_jump_put_nobody_out_of_the_cluster_for_good";
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 366 * DAY;
    if !require(NAME, &[&NEEDS[..], &[Need::Program("cc")]].concat()) {
        return;
    }
    let layers = count(40, 240) as usize;
    let mut cluster = Cluster::start("clocks", "24h");
    let image = image::noise(13, &vec![1; layers]).unwrap();
    cluster.registry.push(&image.layout, "small:many").unwrap();
    cluster.layers = image.layout.layers.iter().map(|layer| layer.digest.clone()).collect();
    let (mut one, mut two) = (cluster.member("one"), cluster.member("two"));
    let clocks = [&mut one, &mut two, &mut cluster.tracker].map(|lapwing| Clock::give(lapwing).unwrap());
    let mut evidence = Evidence::new(13, "wall clocks of a cluster whose certificates are good for a day");
    let mut layer = 0;
    // Whether the second gets from the first what only that has.
    let mut shares = |evidence: &mut Evidence, one: &Lapwing, two: &Lapwing| {
        assert!(layer < layers, "the image has no more layers");
        let before = from_peers(two);
        for node in [one, two] {
            let begun = Instant::now();
            let bytes = cluster.pull(node, layer);
            evidence.ended(begun.elapsed(), true);
            evidence.served_after(bytes);
        }
        layer += 1;
        let shared = from_peers(two) > before;
        if !shared {
            std::thread::sleep(AFTER_A_JUMP / 4);
        }
        shared
    };
    assert!(shares(&mut evidence, &one, &two));
    evidence.served_before(2 << 20);
    let [all, first] = [&clocks[..], &clocks[..1]];
    // The certificates of the first have run out there, and those of the authority have not.
    let jumps = [
        ("two days ahead", 2 * DAY, all),
        ("ten years ahead", 10 * YEAR, all),
        ("ten years back", -10 * YEAR, all),
        ("one ten years ahead", 10 * YEAR, first),
        ("an hour back", -HOUR, all),
        ("one an hour ahead", HOUR, first),
    ];
    // Each takes half a minute.
    for &(name, seconds, who) in jumps.iter().cycle().take(count(1, 12) as usize) {
        for clock in who {
            clock.set(seconds).unwrap();
        }
        evidence.fault(&format!("clocks: {name}"));
        let end = Instant::now() + AFTER_A_JUMP;
        while Instant::now() < end {
            if shares(&mut evidence, &one, &two) {
                std::thread::sleep(AFTER_A_JUMP / 4);
            }
        }
        if seconds.abs() <= 2 * DAY && who.len() == all.len() {
            // Whoever has no connection from before gets one by certificates of that time.
            clocks[1].restart(&mut two).unwrap();
            wait::until_true(name, PATIENCE, || shares(&mut evidence, &one, &two))
                .unwrap_or_else(|error| panic!("{error:#}\n{}", two.log().unwrap()));
        }
        for clock in who {
            clock.set(0).unwrap();
        }
        let begun = Instant::now();
        wait::until_true(name, PATIENCE, || shares(&mut evidence, &one, &two))
            .unwrap_or_else(|error| panic!("after it: {error:#}\n{}", two.log().unwrap()));
        eprintln!("{name}: sharing again after {:.0?}", begun.elapsed());
    }
    // A machine that starts in 1970, before it has asked for the time, serves those on it.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    clocks[0].set(-now).unwrap();
    clocks[0].restart(&mut one).unwrap();
    evidence.fault("a node started in 1970");
    shares(&mut evidence, &one, &two);
    clocks[0].set(0).unwrap();
    let back = || shares(&mut evidence, &one, &two);
    wait::until_true("the nodes to share again", PATIENCE, back)
        .unwrap_or_else(|error| panic!("1970: {error:#}\n{}", one.log().unwrap()));
    for lapwing in [&one, &two, &cluster.tracker] {
        assert!(!lapwing.log().unwrap().contains("panicked"));
    }
}
