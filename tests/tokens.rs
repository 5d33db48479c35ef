//! Registries that want tokens: lazy reads long after the token that served the pull has expired, and a token that is taken back while a
//! thousand reads wait.
//!
//! `LAPWING_TEST_TOKEN_SECONDS` and `LAPWING_TEST_TOKEN_ROUNDS` say how long a token lives and how often reads come after all of them have
//! expired; `make test-long` takes ten times a minute.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use lapwing_evidence::{Evidence, count};
use lapwing_lab::image::{self, Noise};
use lapwing_lab::{
    BASIC_AUTH, BASIC_PASSWORD, BASIC_USER, Containerd, ContainerdOptions, Lapwing, Machine, Need, RegistryHosts, Site,
    TokenGate, check, require, wait,
};
use lapwing_p2p::digest::Digest;

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(120);
/// Of a file of the noise images.
const FILE_BYTES: u64 = 1 << 20;
/// Files of which no reading of the one brings the other.
const FAR_APART: usize = 10;
const READS: usize = 1000;
const READ_BYTES: usize = 16 << 10;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A private image behind a gate, and a node that mounts it lazily and has nobody to fetch it from but the registry.
struct Private {
    machine: Machine,
    gate: TokenGate,
    noise: Noise,
    _site: Site,
}

impl Private {
    /// An image with one layer of that many files of one MiB.
    fn new(name: &str, seed: u64, files: usize, lifetime: Duration) -> Self {
        let site = Site::new(name, None).unwrap();
        let noise = image::noise(seed, &[files]).unwrap();
        site.registry.push(&noise.layout, "lab/private:1").unwrap();
        let gate = TokenGate::start(&site.registry, lifetime).unwrap();
        let reference = format!("{}/lab/private:1", gate.name());
        let mut whole = machine(&site, &gate, "whole");
        pull(&whole, &reference, "overlayfs");
        let node = whole.lapwing.as_mut().unwrap();
        wait::until_true("the layer to be indexed", SOON, || {
            node.log().unwrap().contains("built the index of a layer")
        })
        .unwrap();
        let machine = machine(&site, &gate, "lazy");
        pull(&machine, &reference, "lapwing");
        let claimed = machine.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
        assert_eq!(claimed, 1.0, "the layer is lazy");
        let mut command = machine.containerd.run_command(&["--detach"], &reference, "lapwing", "main").unwrap();
        check(command.args(["/bin/sleep", "10000"])).unwrap();
        node.stop().unwrap();
        Self { machine, gate, noise, _site: site }
    }

    fn file(&self, number: usize) -> PathBuf {
        self.machine.rootfs("main").join(format!("data/00-{number:03}"))
    }

    /// Whether this is what the image has in that file.
    fn is_right(&self, number: usize, content: &[u8]) -> bool {
        let sum = Digest::of(content).hex();
        self.noise.sums.contains(&format!("{sum}  /data/00-{number:03}"))
    }

    fn origin_bytes(&self) -> u64 {
        self.machine.lapwing.as_ref().unwrap().piece_bytes("origin").unwrap()
    }
}

/// A worker that knows the registry by its gate, whose node has credentials of its own.
fn machine(site: &Site, gate: &TokenGate, name: &str) -> Machine {
    let host = site.network.host(name, None).unwrap();
    let config = host.dir().join("docker-config.json");
    let text = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{BASIC_AUTH}\"}}}}}}", gate.name());
    std::fs::write(&config, text).unwrap();
    let settings = site.settings().patient().registry(&gate.name());
    let settings = settings.with("registries", &format!("docker_config = {:?}", config.display().to_string()));
    let lapwing = Lapwing::start(&host, settings).unwrap();
    let (name, url) = (gate.name(), format!("http://{}", gate.name()));
    let options = ContainerdOptions {
        snapshotter: Some(Lapwing::snapshotter(&host)),
        registries: vec![RegistryHosts { name, url, mirrors: vec![Lapwing::mirror_url()], headers: Vec::new() }],
        ..ContainerdOptions::default()
    };
    Machine { containerd: Containerd::start(&host, options).unwrap(), lapwing: Some(lapwing), host }
}

/// With credentials of the client's own.
fn pull(on: &Machine, reference: &str, snapshotter: &str) {
    let mut command = on.containerd.ctr().unwrap();
    command.args(["images", "pull", "--user", &format!("{BASIC_USER}:{BASIC_PASSWORD}")]);
    command.args(["--snapshotter", snapshotter, "--hosts-dir"]).arg(on.containerd.hosts_dir());
    check(command.arg(reference)).unwrap();
}

#[test]
fn lazy_reads_outlive_the_token_that_served_the_pull() {
    const NAME: &str = "lazy_reads_outlive_the_token_that_served_the_pull";
    if !require(NAME, &NEEDS) {
        return;
    }
    let lifetime = Duration::from_secs(from_environment("LAPWING_TEST_TOKEN_SECONDS", 2));
    let rounds = from_environment("LAPWING_TEST_TOKEN_ROUNDS", count(2, 20).into()) as usize;
    let image = Private::new(NAME, 61, (rounds + 1) * FAR_APART + 1, lifetime);
    let mut evidence = Evidence::new(10, "reads of a mounted layer whose tokens have all expired");
    let last = std::fs::read(image.file((rounds + 1) * FAR_APART)).unwrap();
    assert!(image.is_right((rounds + 1) * FAR_APART, &last));
    evidence.served_before(last.len() as u64);
    // Backwards, since what follows is read ahead.
    for number in (1..=rounds).rev().map(|round| round * FAR_APART) {
        wait::until_true("all tokens to expire", lifetime + SOON, || image.gate.all_expired()).unwrap();
        let (issued, before) = (image.gate.issued(), image.origin_bytes());
        evidence.fault("all tokens expired in the middle of a layer");
        let content = evidence.operation(|| std::fs::read(image.file(number))).unwrap();
        assert!(image.is_right(number, &content), "file {number}");
        evidence.served_after(content.len() as u64);
        assert!(image.gate.issued() > issued, "nothing is given without a token");
        let came = image.origin_bytes() - before;
        assert!(came > FILE_BYTES / 2, "{came} bytes came from the registry");
    }
}

#[test]
fn a_token_that_is_taken_back_is_replaced_once_for_a_thousand_reads() {
    const NAME: &str = "a_token_that_is_taken_back_is_replaced_once_for_a_thousand_reads";
    if !require(NAME, &NEEDS) {
        return;
    }
    let files = 32;
    let image = Private::new(NAME, 62, files, Duration::from_secs(3600));
    // One read, so that the node has a token of its own for the rest.
    let first = std::fs::read(image.file(0)).unwrap();
    assert!(image.is_right(0, &first));
    let mut evidence = Evidence::new(10, "a token taken back under a thousand readers");
    evidence.served_before(first.len() as u64);
    evidence.fault("a token taken back");
    let (issued, refused) = (image.gate.issued(), image.gate.refused());
    let open: Vec<File> = (1..files).map(|number| File::open(image.file(number)).unwrap()).collect();
    let blocks = FILE_BYTES as usize / READ_BYTES;
    // Each of the reads has another block.
    let place = |read: usize| (read % open.len(), read / open.len() % blocks);
    let (together, mut contents) = (Barrier::new(READS), vec![vec![0; FILE_BYTES as usize]; open.len()]);
    image.gate.revoke_after(5);
    std::thread::scope(|scope| {
        let start = |read: usize| {
            let (open, together) = (&open, &together);
            let reader = std::thread::Builder::new().stack_size(128 << 10);
            let run = move || {
                let (file, block) = place(read);
                let mut bytes = vec![0; READ_BYTES];
                together.wait();
                let begun = Instant::now();
                let read = open[file].read_exact_at(&mut bytes, (block * READ_BYTES) as u64);
                read.map(|()| (bytes, begun.elapsed()))
            };
            reader.spawn_scoped(scope, run).unwrap()
        };
        let readers: Vec<_> = (0..READS).map(start).collect();
        for (read, reader) in readers.into_iter().enumerate() {
            let (file, block) = place(read);
            let (bytes, took) = reader.join().unwrap().unwrap();
            evidence.ended(took, true);
            contents[file][block * READ_BYTES..][..READ_BYTES].copy_from_slice(&bytes);
        }
    });
    assert!(image.gate.refused() > refused + 1, "the token was taken back under the reads");
    evidence.faults("401", image.gate.refused() - refused);
    evidence.figure("token requests for 1000 readers", (image.gate.issued() - issued) as f64);
    assert_eq!(image.gate.issued() - issued, 1, "one token request for all reads");
    for (file, read) in contents.iter_mut().enumerate() {
        let whole = std::fs::read(image.file(file + 1)).unwrap();
        assert!(image.is_right(file + 1, &whole));
        for block in (0..READS).map(place).filter(|(of, _)| *of == file).map(|(_, block)| block) {
            let part = block * READ_BYTES..(block + 1) * READ_BYTES;
            assert!(evidence.compare(&whole[part.clone()], &read[part]), "block {block} of file {file}");
        }
    }
}
