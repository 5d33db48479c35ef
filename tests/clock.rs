//! The wall clock jumps by an hour and by ten years, forward and back, on nodes and the tracker while nodes pull and read: every pull ends
//! right, a lazy mount goes on, and what is stored stays.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::{Duration, Instant};

use lapwing_evidence::{Evidence, count, seed};
use lapwing_lab::image::{self, Noise};
use lapwing_lab::{Clock, Lapwing, Machine, Mbit, Need, Process, Site, check, require, wait};
use lapwing_p2p::digest::Digest;

const DEADLINE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
const PULLED_MIB: usize = 6;
const HOUR: i64 = 3600;
const TEN_YEARS: i64 = 10 * 365 * 24 * HOUR + 3 * 24 * HOUR;
const JUMPS: [(&str, i64); 4] = [
    ("an hour forward", HOUR),
    ("an hour back", -HOUR),
    ("ten years forward", TEN_YEARS),
    ("ten years back", -TEN_YEARS),
];

/// Two nodes and a tracker with clocks of their own, and a mount that is there all the time.
struct Rig {
    lazy: Noise,
    workers: Vec<Machine>,
    /// Of the workers, then of the tracker.
    clocks: Vec<Clock>,
    site: Site,
    pulled: u64,
}

impl Rig {
    fn new(name: &str, lazy_files: usize) -> Self {
        let mut site = Site::new(name, Some(Mbit(40))).unwrap();
        let lazy = image::noise(900, &[lazy_files]).unwrap();
        let reference = site.registry.push(&lazy.layout, "noise:lazy").unwrap();
        let mut workers: Vec<_> = (0..2)
            .map(|number| site.worker(&format!("w{number}"), None, site.settings().encrypted()).unwrap())
            .collect();
        let mut clocks: Vec<_> =
            workers.iter_mut().map(|worker| Clock::give(worker.lapwing.as_mut().unwrap()).unwrap()).collect();
        clocks.push(Clock::give(&mut site.tracker).unwrap());
        for worker in &workers {
            worker.containerd.wait_for_snapshotter().unwrap();
        }
        workers[0].containerd.pull(&reference, "overlayfs").unwrap();
        let node = workers[0].lapwing.as_ref().unwrap();
        let indexed = || node.log().unwrap().contains("built the index of a layer");
        wait::until_true("the layer to be indexed", DEADLINE, indexed).unwrap();
        workers[1].containerd.pull(&reference, "lapwing").unwrap();
        let mut command = workers[1].containerd.run_command(&["--detach"], &reference, "lapwing", "main").unwrap();
        check(command.args(["/bin/sleep", "10000"])).unwrap();
        Self { lazy, workers, clocks, site, pulled: 0 }
    }

    fn node(&self, worker: usize) -> &Lapwing {
        self.workers[worker].lapwing.as_ref().unwrap()
    }

    /// A file of the mount that nobody has read.
    fn read(&self, file: usize) -> u64 {
        let content = std::fs::read(self.workers[1].rootfs("main").join(format!("data/00-{file:03}"))).unwrap();
        let sum = Digest::of(&content).hex();
        assert!(self.lazy.sums.contains(&format!("{sum}  /data/00-{file:03}")), "file {file} is wrong");
        content.len() as u64
    }

    /// Both nodes pull an image that none has, and clocks are set meanwhile; gives the layer and how many bytes were held to what they
    /// should be.
    fn pull(&mut self, set: impl FnOnce(&[Clock])) -> (String, u64) {
        self.pulled += 1;
        let image = image::noise(900 + self.pulled, &[PULLED_MIB]).unwrap();
        let reference = self.site.registry.push(&image.layout, &format!("noise:{}", self.pulled)).unwrap();
        let taken = || self.workers.iter().map(|worker| received(worker.lapwing.as_ref().unwrap())).sum::<u64>();
        let before = taken();
        let start = |worker: &Machine| worker.containerd.start_pull(&reference, "lapwing").unwrap();
        let mut pulls: Vec<Process> = self.workers.iter().map(start).collect();
        wait::until_true("the pulls to be under way", DEADLINE, || taken() - before > PULLED_MIB as u64 * MIB / 3)
            .unwrap();
        set(&self.clocks);
        for pull in &mut pulls {
            let status = pull.wait(DEADLINE).unwrap();
            assert!(status.success(), "{status}: {}", pull.log_tail());
        }
        for worker in &self.workers {
            let name = format!("c{}", self.pulled);
            assert_eq!(worker.containerd.run(&reference, "lapwing", &name, &[]).unwrap(), image.sums);
        }
        (image.layout.layers[0].digest.clone(), (self.workers.len() * PULLED_MIB) as u64 * MIB)
    }

    fn has(&self, worker: usize, digest: &str) -> bool {
        let state: serde_json::Value =
            serde_json::from_slice(&self.node(worker).admin("/api/v1/state").unwrap().body).unwrap();
        state["blobs"].as_array().unwrap().iter().any(|blob| blob["digest"] == digest)
    }
}

fn received(node: &Lapwing) -> u64 {
    node.piece_bytes("origin").unwrap() + node.piece_bytes("peer").unwrap()
}

#[test]
fn clocks_that_jump_under_pulls_lose_nothing_and_hold_up_nobody() {
    const NAME: &str = "clocks_that_jump_under_pulls_lose_nothing_and_hold_up_nobody";
    if !require(NAME, &[&Need::LAZY_STARTS[..], &[Need::Program("cc")]].concat()) {
        return;
    }
    let rounds = count(1, 5) as usize;
    let mut evidence = Evidence::new(13, "wall clocks of nodes and tracker that jump under pulls and lazy reads");
    // Two files at a time: the second of them is read ahead.
    let mut rig = Rig::new("clock", (4 * rounds * JUMPS.len() + 2) * 2);
    let mut random = fastrand::Rng::with_seed(seed());
    let (first, bytes) = rig.pull(|_| ());
    evidence.served_before(bytes + rig.read(0));
    let mut file = 0;
    for round in 0..rounds {
        for (place, (name, seconds)) in JUMPS.into_iter().enumerate() {
            // All of them, and then some: one node is ten years ahead of the other.
            let who = if (round + place) % 2 == 0 {
                0..3
            } else {
                let one = random.usize(0..3);
                one..one + 1
            };
            for seconds in [seconds, 0] {
                let begun = Instant::now();
                let (_, bytes) =
                    rig.pull(|clocks| clocks[who.clone()].iter().for_each(|clock| clock.set(seconds).unwrap()));
                evidence.ended(begun.elapsed(), true);
                evidence.fault(&if seconds == 0 {
                    format!("back from {name}")
                } else {
                    format!("{name} under a pull")
                });
                file += 2;
                let begun = Instant::now();
                evidence.served_after(bytes + rig.read(file));
                evidence.ended(begun.elapsed(), true);
            }
        }
    }
    // A node that was down while its clock jumped.
    for seconds in [TEN_YEARS, -TEN_YEARS] {
        rig.clocks[0].set(seconds).unwrap();
        rig.clocks[0].restart(rig.workers[0].lapwing.as_mut().unwrap()).unwrap();
        rig.workers[0].containerd.wait_for_snapshotter().unwrap();
        evidence.fault("a node started ten years off");
        assert!(rig.has(0, &first), "{seconds}: what was pulled first is gone");
        let begun = Instant::now();
        let (_, bytes) = rig.pull(|_| ());
        evidence.ended(begun.elapsed(), true);
        evidence.served_after(bytes);
    }
    let log = rig.node(0).log().unwrap();
    assert!(!log.contains("panicked"), "{log}");
    // It did see those clocks.
    let year = |shift: i64| {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 + shift;
        format!("{}-", 1970 + since / 31_556_952)
    };
    assert!(log.contains(&year(TEN_YEARS)) && log.contains(&year(-TEN_YEARS)), "the clocks never jumped: {log}");
}
