//! containerd and Lapwing are killed under pulls, again and again: afterwards every image runs, and nothing is left of what was cut.
//!
//! `LAPWING_TEST_KILLS` says how often each of them, and both at once, are; `make test-long` does it fifty times.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use lapwing_evidence::{Evidence, count, seed};
use lapwing_lab::image::{self, Noise};
use lapwing_lab::wait::{self, Poll};
use lapwing_lab::{Machine, Mbit, Need, Site, check, require};

const NEEDS: [Need; 7] = Need::LAZY_PULLS;
const DEADLINE: Duration = Duration::from_secs(120);
/// A pull of the larger image takes about so long.
const PULL: Duration = Duration::from_millis(1500);

#[derive(Debug, Clone, Copy)]
enum Victim {
    Containerd,
    Lapwing,
    Both,
}

fn kills() -> u32 {
    std::env::var("LAPWING_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(count(6, 50))
}

/// An image that another node has indexed, so that it starts lazily, and one that nobody has, so that it is pulled whole.
struct Images {
    lazy: (String, Noise),
    whole: (String, Noise),
}

impl Images {
    fn all(&self) -> [&(String, Noise); 2] {
        [&self.lazy, &self.whole]
    }
}

fn ctr(machine: &Machine, args: &[&str]) -> String {
    check(machine.containerd.ctr().unwrap().args(args)).unwrap()
}

fn pull(machine: &Machine, reference: &str) {
    wait::until("a pull to succeed", DEADLINE, || Ok(Poll::retry(machine.containerd.pull(reference, "lapwing"))))
        .unwrap();
}

fn run(machine: &Machine, (reference, image): &(String, Noise), name: &str) {
    assert_eq!(machine.containerd.run(reference, "lapwing", name, &[]).unwrap(), image.sums, "{name} of {reference}");
}

/// Removes both images, so that the next pull begins anew. A pull that was killed leaves a lease, by which containerd keeps what it
/// had for a day: it goes, too.
fn remove(machine: &Machine, images: &Images) {
    for lease in ctr(machine, &["leases", "ls", "--quiet"]).lines() {
        ctr(machine, &["leases", "rm", lease]);
    }
    let known = ctr(machine, &["images", "ls", "--quiet"]);
    for (reference, _) in images.all().into_iter().filter(|(reference, _)| known.contains(reference.as_str())) {
        ctr(machine, &["images", "rm", "--sync", reference]);
    }
}

/// Starts a pull and kills the victim in the middle of it, or what comes close to that.
fn kill_under_a_pull(machine: &mut Machine, reference: &str, victim: Victim, node_first: bool, moment: Duration) {
    let mut pulling = machine.containerd.start_pull(reference, "lapwing").unwrap();
    std::thread::sleep(moment);
    match victim {
        Victim::Containerd => {
            machine.containerd.process().kill9().unwrap();
            machine.containerd.restart().unwrap();
        }
        Victim::Lapwing => {
            let node = machine.lapwing.as_mut().unwrap();
            node.kill9().unwrap();
            node.restart().unwrap();
        }
        Victim::Both => {
            let node = machine.lapwing.as_mut().unwrap();
            node.kill9().unwrap();
            machine.containerd.process().kill9().unwrap();
            if node_first {
                node.restart().unwrap();
                machine.containerd.restart().unwrap();
            } else {
                // containerd asks a snapshotter that is not there yet.
                machine.containerd.restart().unwrap();
                node.restart().unwrap();
            }
        }
    }
    // It fails, or goes on with the registry; either is right.
    pulling.wait(DEADLINE).unwrap();
}

/// Bytes of the files whose digests a container of the image prints.
fn bytes_of(image: &Noise) -> u64 {
    (image.sums.lines().count() as u64) << 20
}

/// What is mounted below `root` as the machine sees it.
fn mounts_below(machine: &Machine, root: &Path) -> Vec<String> {
    let table = machine.host.check("cat", &["/proc/self/mountinfo"]).unwrap();
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(root));
    points.map(str::to_owned).collect()
}

fn nothing_is_left(machine: &Machine, images: &Images) {
    remove(machine, images);
    // An image removed in step with the collector, which collects all that is garbage by then.
    pull(machine, &images.whole.0);
    remove(machine, images);
    let snapshots = machine.lapwing.as_ref().unwrap().root().join("snapshots");
    let left = || {
        let names =
            std::fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "graph.redb").collect::<Vec<_>>()
    };
    let listed = || ctr(machine, &["snapshots", "--snapshotter", "lapwing", "ls"]).lines().skip(1).count();
    let gone = || listed() == 0 && left().is_empty() && mounts_below(machine, &snapshots).is_empty();
    if wait::until_true("all snapshots to be gone", DEADLINE, gone).is_err() {
        panic!("{} snapshots, {:?}, mounted: {:?}", listed(), left(), mounts_below(machine, &snapshots));
    }
    assert_eq!(ctr(machine, &["leases", "ls", "--quiet"]), "", "leases");
    assert_eq!(ctr(machine, &["content", "ls", "--quiet"]), "", "content");
}

fn killed_under_pulls(name: &str, victim: Victim) {
    if !require(name, &NEEDS) {
        return;
    }
    let site = Site::new(name, Some(Mbit(80))).unwrap();
    let push = |seed, layers: &[usize]| {
        let image = image::noise(seed, layers).unwrap();
        (site.registry.push(&image.layout, &format!("noise:{seed}")).unwrap(), image)
    };
    let images = Images { lazy: push(31, &[2, 2]), whole: push(32, &[4, 4, 4]) };
    let former = site.worker("former", None, site.settings()).unwrap();
    former.containerd.pull(&images.lazy.0, "overlayfs").unwrap();
    let node = former.lapwing.as_ref().unwrap();
    wait::until_true("the layers to be indexed", DEADLINE, || {
        node.log().unwrap().matches("built the index of a layer").count() == 2
    })
    .unwrap();

    let settings = site.settings().with("lazy", "build_indexes = false");
    let mut worker = site.worker("worker", None, settings).unwrap();
    let mut evidence = Evidence::new(12, &format!("{victim:?} killed under pulls"));
    let pull_and_run_all = |worker: &Machine, name: &str| -> u64 {
        let all = images.all().into_iter().enumerate();
        all.map(|(number, image)| {
            pull(worker, &image.0);
            run(worker, image, &format!("{name}-{number}"));
            bytes_of(&image.1)
        })
        .sum()
    };
    evidence.served_before(pull_and_run_all(&worker, "begin"));
    remove(&worker, &images);
    let mut random = fastrand::Rng::with_seed(seed());
    for round in 0..kills() {
        let image = images.all()[round as usize % 2];
        let moment = PULL.mul_f64(random.f64());
        kill_under_a_pull(&mut worker, &image.0, victim, round / 2 % 2 == 0, moment);
        evidence.fault(&format!("kill -9 of {victim:?}"));
        if round % 3 == 2 {
            let served = evidence.operation(|| Ok::<_, Infallible>(pull_and_run_all(&worker, &format!("c{round}"))));
            evidence.served_after(served.unwrap_or_default());
            remove(&worker, &images);
        }
    }
    evidence.served_after(pull_and_run_all(&worker, "end"));
    nothing_is_left(&worker, &images);
}

#[test]
fn containerd_is_killed_under_pulls() {
    killed_under_pulls("containerd_is_killed_under_pulls", Victim::Containerd);
}

#[test]
fn lapwing_is_killed_under_pulls() {
    killed_under_pulls("lapwing_is_killed_under_pulls", Victim::Lapwing);
}

#[test]
fn both_are_killed_under_pulls() {
    killed_under_pulls("both_are_killed_under_pulls", Victim::Both);
}
