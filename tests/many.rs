//! Five nodes pull many images of ten layers at once: nothing stands still for good, memory and descriptors stay bounded, and the node
//! idles afterwards.
//!
//! `LAPWING_TEST_IMAGES` says how many; `make test-long` takes a hundred.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapwing_lab::{Machine, Need, Site, image, require, wait};

const NEEDS: [Need; 7] = Need::LAZY_PULLS;
const DEADLINE: Duration = Duration::from_secs(300);
const NODES: usize = 5;
const LAYERS: usize = 10;
/// Pulls that a node has under way at once.
const AT_ONCE: usize = 4;
/// What a node may have taken at most; what grows with the number of images breaks it.
const MOST_MEMORY_KIB: u64 = 256 << 10;
const MOST_DESCRIPTORS: usize = 1024;
/// Hundredths of a second of CPU that an idle node may take in two seconds of its life.
const IDLE_TICKS: u64 = 10;

fn images() -> u64 {
    std::env::var("LAPWING_TEST_IMAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// What the kernel says of the node's process: `VmHWM` in KiB, open descriptors, and ticks of CPU time.
fn vital(pid: u32) -> (u64, usize, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak = peak.trim().trim_end_matches(" kB").parse().unwrap();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // proc_pid_stat(5): fields 14 and 15; the name before the third may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<u64>().unwrap();
    (peak, open, ticks(14) + ticks(15))
}

/// Open descriptors by what they are: `tar`, `socket:`, `data` of a blob.
fn kinds(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // One that was closed meanwhile.
        let Ok(target) = fs::read_link(descriptor.unwrap().path()) else { continue };
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = name.split(['[', ' ']).next().unwrap_or_default().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

fn pull_all(machine: &Machine, references: &[String]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(reference) = references.get(next.fetch_add(1, Ordering::Relaxed)) {
                    machine.containerd.pull(reference, "lapwing").unwrap();
                }
            });
        }
    });
}

#[test]
fn many_images_are_pulled_by_five_nodes_at_once() {
    const NAME: &str = "many_images_are_pulled_by_five_nodes_at_once";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let push = |seed: u64| {
        let image = image::noise(1000 + seed, &[1; LAYERS]).unwrap();
        site.registry.push(&image.layout, &format!("many:{seed}")).unwrap()
    };
    let references: Vec<String> = (0..images()).map(push).collect();
    let worker = |number: usize| site.worker(&format!("node{number}"), None, site.settings()).unwrap();
    let mut machines: Vec<Machine> = (0..NODES).map(worker).collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for machine in &machines {
            scope.spawn(|| pull_all(machine, &references));
        }
    });
    println!("{} images pulled by {NODES} nodes in {:.0} s", references.len(), began.elapsed().as_secs_f64());
    for machine in &mut machines {
        let pid = machine.lapwing.as_mut().unwrap().process().pid();
        let (peak, open, mut before) = vital(pid);
        println!("{}: {peak} KiB of memory at most, {open} descriptors, {before} ticks of CPU", machine.host.name());
        println!("{:?}", kinds(pid));
        assert!(peak < MOST_MEMORY_KIB, "{peak} KiB of memory");
        assert!(open < MOST_DESCRIPTORS, "{open} descriptors: {:?}", kinds(pid));
        wait::until_true("the node to idle", DEADLINE, || {
            std::thread::sleep(Duration::from_secs(2));
            let now = vital(pid).2;
            now - std::mem::replace(&mut before, now) <= IDLE_TICKS
        })
        .unwrap();
    }
}
