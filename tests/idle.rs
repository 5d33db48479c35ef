//! A node with a hundred lazily mounted layers takes little memory when nobody reads.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::image::many_layers;
use lapwing_lab::wait::{self, Poll};
use lapwing_lab::{Need, Site, require};

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(180);
const LAYERS: usize = 100;
/// Files of a layer: 50,000 in all, as many as five images of Debian with a language have.
const FILES: usize = 500;
/// What the node may have resident of its own. Its code comes on top of that: 8 MiB of an optimised one, three times as much of one for tests.
const MOST_MEMORY_KIB: u64 = 30 << 10;

/// A number of KiB from `/proc/<pid>/<file>`.
fn kib(pid: u32, file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_node_with_a_hundred_lazy_layers_idles_small() {
    const NAME: &str = "a_node_with_a_hundred_lazy_layers_idles_small";
    if !require(NAME, &NEEDS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = many_layers(dir.path(), LAYERS, FILES).unwrap();
    let site = Site::new("idle", None).unwrap();
    let reference = site.registry.push(&layout, "lab/idle:1").unwrap();
    let first = site.worker("first", None, site.settings()).unwrap();
    first.containerd.pull(&reference, "lapwing").unwrap();
    let indexed = || first.lapwing.as_ref().unwrap().log().unwrap().matches("built the index of a layer").count();
    wait::until_true("the layers to be indexed", SOON, || indexed() == LAYERS).unwrap();

    for backend in ["erofs", "fuse"] {
        let settings = site.settings().with("lazy", &format!("backend = \"{backend}\""));
        let settings = settings.patient();
        let mut machine = site.worker(backend, None, settings).unwrap();
        machine.containerd.pull(&reference, "lapwing").unwrap();
        let claimed = machine.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
        assert_eq!(claimed, LAYERS as f64, "every layer is lazy");
        let pid = machine.lapwing.as_mut().unwrap().process().pid();
        let resident = wait::until("the node to idle with little memory", SOON, || {
            let resident = kib(pid, "status", "RssAnon");
            Ok(if resident < MOST_MEMORY_KIB { Poll::Ready(resident) } else { Poll::NotYet(format!("{resident} KiB")) })
        });
        eprintln!(
            "{backend}: {resident:?} KiB of its own, {} resident, Pss {}; {} at most",
            kib(pid, "status", "VmRSS"),
            kib(pid, "smaps_rollup", "Pss"),
            kib(pid, "status", "VmHWM")
        );
        resident.unwrap();
    }
}
