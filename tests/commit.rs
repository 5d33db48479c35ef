//! A container on lazily mounted layers becomes an image that others run; then all of it goes.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::{
    Flavour, LapwingSettings, Machine, MachineOptions, Need, Registry, RegistryOptions, Site, check, image, require,
    wait,
};

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(90);
/// Far below the small image's size, above what manifests, configurations and chatter need.
const ALMOST_NOTHING_BYTES: u64 = 200_000;

fn settings(site: &Site) -> LapwingSettings {
    site.settings().patient()
}

fn ctr(machine: &Machine, args: &[&str]) -> String {
    check(machine.containerd.ctr().unwrap().args(args)).unwrap()
}

fn nerdctl(machine: &Machine, args: &[&str]) -> String {
    check(machine.containerd.nerdctl().unwrap().args(args)).unwrap()
}

/// Lines of a table without its head.
fn rows(table: &str) -> usize {
    table.lines().skip(1).count()
}

fn layer_mounts(machine: &Machine) -> usize {
    let mounts = machine.host.check("cat", &["/proc/mounts"]).unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(2) == Some("erofs")).count()
}

/// A node that has pulled the image whole and published its indexes.
fn seeded(site: &Site, reference: &str) -> Machine {
    let machine = site.worker("whole", None, settings(site)).unwrap();
    machine.containerd.pull(reference, "overlayfs").unwrap();
    let layers = image::small().unwrap().layers.len();
    wait::until_true("the layers to be indexed", SOON, || {
        let log = machine.lapwing.as_ref().unwrap().log().unwrap();
        log.matches("built the index of a layer").count() >= layers
    })
    .unwrap();
    machine
}

fn commits(name: &str, flavour: Flavour) {
    if !require(name, &NEEDS) {
        return;
    }
    let site = Site::new(name, None).unwrap();
    let second = Registry::start(&site.network.host("second", None).unwrap(), RegistryOptions::default()).unwrap();
    let reference = site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let _whole = seeded(&site, &reference);
    let options = MachineOptions { flavour, ..MachineOptions::lapwing(settings(&site)) };
    let lazy = Machine::start(&site.network, "lazy", &site.registry, options).unwrap();
    let before = site.registry.sent_bytes().unwrap();
    nerdctl(&lazy, &["pull", "--quiet", &reference]);
    assert_eq!(lazy.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap(), 2.0);

    // The image's entry point is a shell that takes a script.
    let write = "sha256sum /odd/noise >/mine && /bin/busybox rm /odd/noise";
    nerdctl(&lazy, &["run", "--pull=never", "--net=none", "--name=made", &reference, write]);
    let made = format!("{}/lab/made:1", second.name());
    // nerdctl fetches what containerd does not have, by way of the mirror.
    nerdctl(&lazy, &["commit", "made", &made]);
    assert!(site.registry.sent_bytes().unwrap() - before < ALMOST_NOTHING_BYTES, "the layers come from the swarm");
    let look = "test ! -e /odd/noise && cat /mine";
    let mine = nerdctl(&lazy, &["run", "--rm", "--pull=never", "--net=none", &made, look]);
    assert!(mine.contains("  /odd/noise"), "{mine}");

    ctr(&lazy, &["images", "push", "--local", "--plain-http", &made]);
    let plain = Machine::start(&site.network, "plain", &second, MachineOptions::plain()).unwrap();
    plain.containerd.pull(&made, "overlayfs").unwrap();
    assert_eq!(plain.containerd.run(&made, "overlayfs", "main", &["/bin/sh", "-c", look]).unwrap(), mine);
    let sum = ["/bin/sha256sum", "/odd/noise"];
    assert_eq!(lazy.containerd.run(&reference, "lapwing", "main", &sum).unwrap(), mine, "the image is as it was");

    nerdctl(&lazy, &["rm", "made"]);
    ctr(&lazy, &["images", "rm", "--sync", &made, &reference]);
    assert_eq!(rows(&ctr(&lazy, &["content", "ls"])), 0);
    assert_eq!(rows(&ctr(&lazy, &["snapshots", "--snapshotter", "lapwing", "ls"])), 0);
    wait::until_true("the layers to be unmounted", SOON, || layer_mounts(&lazy) == 0).unwrap();
}

#[test]
fn a_container_of_a_lazy_image_is_committed() {
    commits("a_container_of_a_lazy_image_is_committed", Flavour::V2);
}

#[test]
fn a_container_of_a_lazy_image_is_committed_with_containerd_17() {
    const NAME: &str = "a_container_of_a_lazy_image_is_committed_with_containerd_17";
    if require(NAME, &[Need::Containerd17]) {
        commits(NAME, Flavour::V17);
    }
}
