//! Three independent trackers, which are killed, stopped and restarted while nodes pull: no pull fails, or waits long, and the registry
//! still sends about one copy.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::{Duration, Instant};

use lapwing_evidence::Evidence;
use lapwing_lab::image::{self, Noise};
use lapwing_lab::{Lapwing, LapwingSettings, Machine, Mbit, Need, Process, Site, require, wait};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::verify::piece_hash;
use rustix::process::Signal;

const NEEDS: [Need; 7] = Need::LAZY_PULLS;
const DEADLINE: Duration = Duration::from_secs(180);
const WORKERS: usize = 3;
const LAYER_MIB: usize = 20;
const MIB: u64 = 1 << 20;
/// What the registry may send, as copies of the image, beside what follows.
const COPIES: f64 = 1.15;
/// What it may send each time that the nodes turn to another tracker, which grants again what is under way: eight streams of about a MiB.
/// Without leases it would be a copy for each worker.
const COPIES_PER_TURN: f64 = 0.35;
/// The shares of a pull, in percent, at which a tracker that flaps goes away; it is back ten later.
const FLAPS: [u64; 4] = [5, 25, 45, 65];
const ALL_DOWN: &str = "all down at the start";
/// What a disturbance may cost: far more than it does, since machines of tests are busy.
const SLACK: Duration = Duration::from_secs(20);

/// Three trackers, a registry on a slow link, and workers that know all trackers.
struct Cluster {
    site: Site,
    others: [Lapwing; 2],
    workers: Vec<Machine>,
}

impl Cluster {
    fn new(name: &str) -> Self {
        let site = Site::new(name, Some(Mbit(40))).unwrap();
        let others = ["tracker2", "tracker3"]
            .map(|host| Lapwing::start(&site.network.host(host, None).unwrap(), LapwingSettings::tracker()).unwrap());
        let mut cluster = Self { site, others, workers: Vec::new() };
        let start = |number: usize| {
            let settings = LapwingSettings::node(&cluster.addresses());
            let settings = settings.with("lazy", "complete_after = \"0\"");
            cluster.site.worker(&format!("w{number}"), None, settings).unwrap()
        };
        cluster.workers = (0..WORKERS).map(start).collect();
        cluster
    }

    fn addresses(&self) -> [String; 3] {
        let [second, third] = &self.others;
        [&self.site.tracker, second, third].map(Lapwing::tracker_address)
    }

    fn tracker(&mut self, place: usize) -> &mut Lapwing {
        let [second, third] = &mut self.others;
        [&mut self.site.tracker, second, third].into_iter().nth(place).unwrap()
    }

    /// The trackers in the order in which nodes ask them about the layer of `image`.
    fn order(&self, image: &Noise) -> [usize; 3] {
        let digest: Digest = image.layout.layers[0].digest.parse().unwrap();
        let addresses = self.addresses();
        let weight = |place: &usize| piece_hash(&[digest.as_bytes(), addresses[*place].as_bytes()].concat());
        let mut places = [0, 1, 2];
        places.sort_by_key(|place| std::cmp::Reverse(weight(place)));
        places
    }

    fn all_back(&mut self) {
        for place in 0..3 {
            self.tracker(place).restart().unwrap();
        }
    }

    /// The sum of a metric over all workers.
    fn sum(&self, metric: &str, labels: &str) -> f64 {
        let of = |worker: &Machine| worker.lapwing.as_ref().unwrap().metric(metric, labels).unwrap();
        self.workers.iter().map(of).sum()
    }

    fn origin_bytes(&self) -> u64 {
        self.sum("lapwing_piece_bytes_total", "source=\"origin\"") as u64
    }
}

/// A pull that all workers have begun.
struct Pulling<'a> {
    cluster: &'a mut Cluster,
    /// The trackers in the order in which the nodes ask them.
    order: [usize; 3],
    before: u64,
    bytes: u64,
}

impl Pulling<'_> {
    /// Waits until the workers have that share of the image from the registry.
    fn reach(&self, percent: u64) {
        wait::until_true("the pulls to be so far", DEADLINE, || {
            self.cluster.origin_bytes() - self.before >= self.bytes * percent / 100
        })
        .unwrap();
    }

    fn tracker(&mut self, place: usize) -> &mut Lapwing {
        self.cluster.tracker(self.order[place])
    }
}

/// Lets all workers pull an image that none has, with trackers failing meanwhile, so that the nodes turn to another one `turns` times; returns
/// how long it took.
fn pull(cluster: &mut Cluster, seed: u64, name: &str, turns: u32, fail: impl FnOnce(&mut Pulling<'_>)) -> Duration {
    let image = image::noise(seed, &[LAYER_MIB]).unwrap();
    let reference = cluster.site.registry.push(&image.layout, &format!("noise:{seed}")).unwrap();
    let sent = cluster.site.registry.sent_bytes().unwrap();
    let (before, order, bytes) = (cluster.origin_bytes(), cluster.order(&image), image.layout.compressed_bytes());
    let unleased = cluster.sum("lapwing_origin_unleased_total", "");
    let start = Instant::now();
    let mut pulls: Vec<Process> =
        cluster.workers.iter().map(|worker| worker.containerd.start_pull(&reference, "lapwing").unwrap()).collect();
    fail(&mut Pulling { cluster, order, before, bytes });
    for (number, pull) in pulls.iter_mut().enumerate() {
        let status = pull.wait(DEADLINE).unwrap();
        assert!(status.success(), "{name}, w{number}: {status}: {}", pull.log_tail());
    }
    let took = start.elapsed();
    let sent = cluster.site.registry.sent_bytes().unwrap() - sent;
    for (number, worker) in cluster.workers.iter().enumerate() {
        let output = worker.containerd.run(&reference, "lapwing", &format!("content{seed}"), &[]).unwrap();
        assert_eq!(output, image.sums, "{name}, w{number}");
    }
    let unleased = cluster.sum("lapwing_origin_unleased_total", "") - unleased;
    let copies = sent as f64 / bytes as f64;
    eprintln!("{name}: {took:.1?}, {copies:.3} copies, {unleased} transfers without a lease");
    let bound = COPIES + f64::from(turns) * COPIES_PER_TURN;
    assert!((1.0..=bound).contains(&copies), "{name}: the registry sent {copies:.3} copies");
    took
}

#[test]
fn pulls_outlive_trackers_that_are_killed_stopped_and_restarted() {
    if !require("pulls_outlive_trackers_that_are_killed_stopped_and_restarted", &NEEDS) {
        return;
    }
    let mut cluster = Cluster::new("trackers");
    let mut evidence = Evidence::new(7, "trackers that are down at the start, in the middle, and flap");
    let served = (WORKERS * LAYER_MIB) as u64 * MIB;
    // The slower of two: what machines of tests do meanwhile differs more than trackers make it.
    let undisturbed = pull(&mut cluster, 61, "undisturbed", 0, |_| ());
    let undisturbed = undisturbed.max(pull(&mut cluster, 60, "undisturbed again", 0, |_| ()));
    evidence.served_before(2 * served);
    let mut most = Duration::ZERO;
    let mut check = |name: &str, took: Duration| {
        evidence.fault(name);
        evidence.ended(took, true);
        evidence.served_after(served);
        let added = took.saturating_sub(undisturbed);
        if name == ALL_DOWN {
            evidence.figure("seconds that losing all trackers adds: a copy for each node", added.as_secs_f64());
        } else {
            most = most.max(added);
            evidence.figure("seconds that losing some trackers adds at most", most.as_secs_f64());
        }
        assert!(took < undisturbed + SLACK, "{name}: {took:.1?}, {undisturbed:.1?} undisturbed");
    };

    let took = pull(&mut cluster, 62, "first owner killed early, second restarted", 2, |pulling| {
        pulling.reach(10);
        pulling.tracker(0).kill9().unwrap();
        pulling.reach(50);
        pulling.tracker(1).restart().unwrap();
    });
    check("killed", took);
    cluster.all_back();

    let took = pull(&mut cluster, 63, "first owner stopped, as if cut off", 1, |pulling| {
        pulling.reach(30);
        pulling.tracker(0).process().signal(Signal::STOP).unwrap();
    });
    check("stopped", took);
    for place in 0..3 {
        cluster.tracker(place).process().signal(Signal::CONT).unwrap();
    }

    let took = pull(&mut cluster, 64, "both owners killed, one after the other, and the first back", 2, |pulling| {
        pulling.reach(20);
        pulling.tracker(1).kill9().unwrap();
        pulling.reach(40);
        pulling.tracker(0).kill9().unwrap();
        pulling.reach(60);
        pulling.tracker(0).restart().unwrap();
    });
    check("both", took);
    cluster.all_back();

    for place in 0..3 {
        cluster.tracker(place).kill9().unwrap();
    }
    // Nobody says who has what, or who may vouch for it: each node fetches a copy of its own.
    let took = pull(&mut cluster, 65, ALL_DOWN, 6, |_| ());
    check(ALL_DOWN, took);
    cluster.all_back();

    let took = pull(&mut cluster, 66, "the first owner flaps", 2 * FLAPS.len() as u32, |pulling| {
        for percent in FLAPS {
            pulling.reach(percent);
            pulling.tracker(0).kill9().unwrap();
            pulling.reach(percent + 10);
            pulling.tracker(0).restart().unwrap();
        }
    });
    check("flapping", took);
}
