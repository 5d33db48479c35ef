//! A private image: who has no right to it gets nothing of what a node has, however he asks; who has one gets it from other nodes, after the
//! registry said yes, or after a node of the group saw it say so, where the operator wants that. No token leaves the node it was given to.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapwing_evidence::Evidence;
use lapwing_lab::image::{self, Blob};
use lapwing_lab::{
    BASIC_AUTH, BASIC_PASSWORD, BASIC_USER, Containerd, ContainerdOptions, Host, Lapwing, LapwingSettings, Machine,
    Need, RegistryHosts, Site, TokenGate, check, output, require, wait,
};
use lapwing_p2p::digest::Digest;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RawProtocol, RecvFlags, SocketType};

const NEEDS: [Need; 5] =
    [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("skopeo"), Need::Program("curl")];
const SOON: Duration = Duration::from_secs(120);
const PROXY: &str = "http://127.0.0.1:7084";
const REPOSITORY: &str = "lab/private";
/// Of the tokens of which it is tried that they end.
const LIFETIME: Duration = Duration::from_secs(40);
/// What no secret begins or ends with by chance.
const WINDOW: usize = 16;

/// What `curl` got: the status, and the digest of the body.
fn ask(host: &Host, url: &str, more: &[&str]) -> (String, String) {
    let body = host.dir().join("body");
    let _ = std::fs::remove_file(&body);
    let mut curl = host.command("curl");
    curl.args(["--silent", "--max-time", "60", "--write-out", "%{http_code}", "--output"]).arg(&body).args(more);
    let told = output(curl.arg(url)).unwrap();
    (String::from_utf8(told.stdout).unwrap(), Digest::of(&std::fs::read(&body).unwrap_or_default()).to_string())
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// A token of the gate, as a client gets one.
fn token(host: &Host, gate: &TokenGate) -> String {
    let (user, url) = (format!("{BASIC_USER}:{BASIC_PASSWORD}"), format!("http://{}/token", gate.name()));
    let answer = host.check("curl", &["--silent", "--fail", "--user", &user, &url]).unwrap();
    serde_json::from_str::<serde_json::Value>(&answer).unwrap()["token"].as_str().unwrap().to_owned()
}

/// What a host sends to others and gets from them, from now on.
struct Recorder {
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Vec<u8>>>,
}

impl Recorder {
    fn start(host: &Host) -> Self {
        // packet(7): all protocols, in network order.
        let all = RawProtocol::new(u32::from(3_u16.to_be())).map(Protocol::from_raw);
        let open = || Ok(rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, all)?);
        let socket = host.within(open).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(100))).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let (mut frames, mut buffer) = (Vec::new(), vec![0; 1 << 17]);
            while !until.load(Ordering::SeqCst) {
                if let Ok((length, _)) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                    // Ethernet, then IPv4's source: what stays on the machine is the client's own.
                    let stays = buffer[26] == 127;
                    frames.extend((!stays).then(|| buffer[..length].to_vec()));
                }
            }
            frames
        });
        Self { ended, thread }
    }

    fn frames(self) -> Vec<Vec<u8>> {
        self.ended.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// Whether any part of `what` that is long enough to tell it stands in a frame.
fn shows(frames: &[Vec<u8>], what: &[u8]) -> bool {
    let parts: std::collections::HashSet<&[u8]> = what.windows(WINDOW).collect();
    frames.iter().any(|frame| frame.windows(WINDOW).any(|part| parts.contains(part)))
}

/// A node as the tracker knows it.
fn node_id(node: &Lapwing) -> Vec<u8> {
    let log = node.log().unwrap();
    let ready = log.lines().find(|line| line.contains("node is ready")).unwrap().replace(['"', '='], " ");
    let hex = ready.split_whitespace().find(|word| word.len() == 64).unwrap();
    (0..32).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// A private image of one layer.
struct Private {
    gate: TokenGate,
    layer: Blob,
    bytes: Vec<u8>,
    reference: String,
    site: Site,
}

impl Private {
    fn new(name: &str, seed: u64, lifetime: Duration) -> Self {
        let site = Site::new(name, None).unwrap();
        let noise = image::noise(seed, &[1]).unwrap();
        site.registry.push(&noise.layout, &format!("{REPOSITORY}:1")).unwrap();
        let gate = TokenGate::start_telling(&site.registry, lifetime).unwrap();
        let layer = noise.layout.layers[0].clone();
        let bytes = std::fs::read(noise.layout.blob_path(&layer)).unwrap();
        let reference = format!("{}/{REPOSITORY}:1", gate.name());
        Self { gate, layer, bytes, reference, site }
    }

    fn settings(&self) -> LapwingSettings {
        // Nothing that is sent hides from who looks for it.
        self.site.whole_settings().registry(&self.gate.name()).with("peer", "compression = false")
    }

    fn node(&self, name: &str, settings: LapwingSettings) -> (Host, Lapwing) {
        let host = self.site.network.host(name, None).unwrap();
        let lapwing = Lapwing::start(&host, settings).unwrap();
        (host, lapwing)
    }

    /// The layer by a node's mirror.
    fn url(&self, repository: &str) -> String {
        format!("{}/v2/{repository}/blobs/{}?ns={}", Lapwing::mirror_url(), self.layer.digest, self.gate.name())
    }
}

#[test]
fn what_one_node_saw_granted_counts_at_others_where_the_operator_says_so_and_no_token_travels() {
    const NAME: &str = "what_one_node_saw_granted_counts_at_others_where_the_operator_says_so_and_no_token_travels";
    if !require(NAME, &NEEDS) {
        return;
    }
    let image = Private::new(NAME, 71, LIFETIME);
    let key = image.site.tracker.root().with_file_name("rights-key");
    std::fs::write(&key, "a secret of this group that nobody guesses\n").unwrap();
    let sharing = || image.settings().with("trust", &format!("rights_key_file = {:?}", key.display().to_string()));
    let at_the_tracker = Recorder::start(image.site.tracker.host());
    let (first, _first) = image.node("first", sharing());
    let (second, node) = image.node("second", sharing());
    let (third, _third) = image.node("third", image.settings());

    let begun = Instant::now();
    let (token, other) = (token(&first, &image.gate), token(&second, &image.gate));
    let (mine, stranger, guessed) = (bearer(&token), bearer(&other), bearer("guessed"));
    let given = ("200".to_owned(), image.layer.digest.clone());
    assert_eq!(ask(&first, &image.url(REPOSITORY), &["--header", &mine]), given);
    // From here on nobody can ask the registry.
    image.site.registry.host().set_link(false).unwrap();
    let at_the_second = Recorder::start(&second);
    let status = |host: &Host, header: &str| ask(host, &image.url(REPOSITORY), &["--header", header]).0;
    wait::until_true("the second node to hear of it", SOON, || status(&second, &mine) == "200").unwrap();
    assert_eq!(ask(&second, &image.url(REPOSITORY), &["--header", &mine]), given);
    assert_eq!(node.piece_bytes("origin").unwrap(), 0);
    assert!(node.log().unwrap().contains("another node's proof stands for the registry's yes"));
    for header in [&stranger, &guessed, "Accept: */*"] {
        assert_eq!(status(&second, header), "502", "it was granted to somebody else: {header}");
    }
    let elsewhere = ask(&second, &image.url("lab/other"), &["--header", &mine]).0;
    assert_eq!(elsewhere, "502", "another repository");
    assert_eq!(status(&third, &mine), "502", "a node that was not told to believe others");

    let frames = at_the_second.frames();
    assert!(shows(&frames, &image.bytes), "what is sent is seen");
    assert!(!shows(&frames, token.as_bytes()) && !shows(&frames, BASIC_AUTH.as_bytes()));
    assert!(!shows(&frames, Digest::of(mine.split_once(": ").unwrap().1.as_bytes()).as_bytes()), "nor its hash");
    let frames = at_the_tracker.frames();
    assert!(shows(&frames, node_id(&node).as_slice()), "what the tracker is told is seen");
    assert!(!shows(&frames, token.as_bytes()) && !shows(&frames, BASIC_AUTH.as_bytes()));

    wait::until_true("the right to end with the token", SOON, || status(&second, &mine) == "502").unwrap();
    assert!(begun.elapsed() + Duration::from_secs(2) > LIFETIME, "not before");
}

/// A worker whose containerd knows the registry by its gate, and whose node has a proxy.
fn worker(image: &Private, name: &str) -> Machine {
    let host = image.site.network.host(name, None).unwrap();
    let settings = image.settings().with("proxy", "listen = \"127.0.0.1:7084\"");
    let lapwing = Lapwing::start(&host, settings).unwrap();
    let (name, url) = (image.gate.name(), format!("http://{}", image.gate.name()));
    let options = ContainerdOptions {
        snapshotter: Some(Lapwing::snapshotter(&host)),
        registries: vec![RegistryHosts { name, url, mirrors: vec![Lapwing::mirror_url()], headers: Vec::new() }],
        ..ContainerdOptions::default()
    };
    Machine { containerd: Containerd::start(&host, options).unwrap(), lapwing: Some(lapwing), host }
}

#[test]
fn a_tenant_without_rights_gets_nothing_of_a_private_image_that_cri_pulled() {
    const NAME: &str = "a_tenant_without_rights_gets_nothing_of_a_private_image_that_cri_pulled";
    if !require(NAME, &[&NEEDS[..], &[Need::Tools]].concat()) {
        return;
    }
    let mut evidence = Evidence::new(20, "clients without rights to a private image, by mirror, proxy and CRI");
    let image = Private::new(NAME, 72, Duration::from_secs(3600));
    let creds = format!("{BASIC_USER}:{BASIC_PASSWORD}");
    let pull = |on: &Machine, more: &[&str]| {
        let mut crictl = on.containerd.crictl().unwrap();
        output(crictl.arg("pull").args(more).arg(&image.reference)).unwrap()
    };
    let first = worker(&image, "first");
    let pulled = pull(&first, &["--creds", &creds]);
    assert!(pulled.status.success(), "{pulled:?}");
    let through = first.lapwing.as_ref().unwrap().metric("lapwing_mirror_bytes_total", "").unwrap();
    assert!(through >= image.layer.size as f64, "{through} bytes went through the mirror");
    evidence.served_before(image.layer.size);

    // With rights: the registry is asked, and gives no byte of it.
    let second = worker(&image, "second");
    let (issued, recorder) = (image.gate.issued(), Recorder::start(&second.host));
    let pulled = pull(&second, &["--creds", &creds]);
    assert!(pulled.status.success(), "{pulled:?}");
    let node = second.lapwing.as_ref().unwrap();
    assert_eq!(node.piece_bytes("origin").unwrap(), 0);
    assert!(node.piece_bytes("peer").unwrap() >= image.layer.size);
    assert!(image.gate.issued() > issued, "by a token of its own");
    let registry = image.site.registry.host().address().octets();
    let (there, between): (Vec<_>, Vec<_>) =
        recorder.frames().into_iter().partition(|frame| frame.windows(4).take(40).any(|part| part == registry));
    assert!(shows(&there, BASIC_AUTH.as_bytes()), "what is sent is seen");
    assert!(shows(&between, &image.bytes) && !shows(&there, &image.bytes), "the bytes came from the other node");
    assert!(!shows(&between, BASIC_AUTH.as_bytes()) && !shows(&between, b"Authorization: Bearer"));

    // Without: every byte is on both nodes.
    for machine in [&first, &second] {
        check(machine.containerd.crictl().unwrap().args(["rmi", &image.reference])).unwrap();
        for more in [&[][..], &["--creds", "somebody:else"]] {
            let refused = pull(machine, more);
            evidence.fault("a pull without rights");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains("401"), "{more:?}: {said}");
        }
        let direct = format!("http://{}/v2/{REPOSITORY}/blobs/{}", image.gate.name(), image.layer.digest);
        let guessed = bearer("guessed");
        for header in ["Accept: */*", &guessed] {
            evidence.faults("a request without rights", 2);
            let begun = Instant::now();
            let (status, body) = ask(&machine.host, &image.url(REPOSITORY), &["--header", header]);
            evidence.ended(begun.elapsed(), status == "200");
            assert!(status == "401" && body != image.layer.digest, "mirror: {header}: {status}");
            let by_proxy = ask(&machine.host, &direct, &["--proxy", PROXY, "--header", header]).0;
            assert_eq!(by_proxy, "401", "proxy: {header}");
        }
        let mine = bearer(&token(&machine.host, &image.gate));
        let given = ("200".to_owned(), image.layer.digest.clone());
        assert_eq!(ask(&machine.host, &image.url(REPOSITORY), &["--header", &mine]), given);
        evidence.served_after(image.layer.size);
    }
}
