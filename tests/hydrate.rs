//! A lazily pulled image, whose layers containerd does not have, is given them: then it can be exported, pushed and run by others; and
//! with the image all of it goes again.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::image::{self, SMALL_OUTPUT};
use lapwing_lab::{
    Flavour, LapwingSettings, Machine, MachineOptions, Need, Registry, RegistryOptions, Site, check, lapwing_binary,
    output, require, wait,
};

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(90);

fn settings(site: &Site) -> LapwingSettings {
    site.settings().patient()
}

fn ctr(machine: &Machine, args: &[&str]) -> String {
    check(machine.containerd.ctr().unwrap().args(args)).unwrap()
}

fn exports(machine: &Machine, reference: &str) -> bool {
    let file = machine.host.dir().join("export.tar");
    let mut command = machine.containerd.ctr().unwrap();
    output(command.args(["images", "export"]).arg(&file).arg(reference)).unwrap().status.success()
}

/// Lines of a table without its head.
fn rows(table: &str) -> Vec<&str> {
    table.lines().skip(1).collect()
}

/// A worker with the containerd of this `flavour`, which is asked what it is.
fn worker(site: &Site, name: &str, flavour: Flavour) -> Machine {
    let options = MachineOptions { flavour, ..MachineOptions::lapwing(settings(site)) };
    let machine = Machine::start(&site.network, name, &site.registry, options).unwrap();
    let version = ctr(&machine, &["version"]);
    let expected = if flavour == Flavour::V17 { "v1.7." } else { "v2." };
    assert_eq!(version.matches(expected).count(), 2, "client and server: {version}");
    machine
}

#[test]
fn a_hydrated_image_works_with_the_rest_and_goes_as_a_whole() {
    works_with_the_rest("a_hydrated_image_works_with_the_rest_and_goes_as_a_whole", Flavour::V2);
}

#[test]
fn a_hydrated_image_works_with_the_rest_of_containerd_17() {
    const NAME: &str = "a_hydrated_image_works_with_the_rest_of_containerd_17";
    if require(NAME, &[Need::Containerd17]) {
        works_with_the_rest(NAME, Flavour::V17);
    }
}

fn works_with_the_rest(name: &str, flavour: Flavour) {
    if !require(name, &NEEDS) {
        return;
    }
    let site = Site::new(name, None).unwrap();
    let second = Registry::start(&site.network.host("second", None).unwrap(), RegistryOptions::default()).unwrap();
    let small = image::small().unwrap();
    let reference = site.registry.push(&small, "lab/small:1").unwrap();
    let whole = worker(&site, "whole", flavour);
    whole.containerd.pull(&reference, "overlayfs").unwrap();
    wait::until_true("the layers to be indexed", SOON, || {
        whole.lapwing.as_ref().unwrap().log().unwrap().matches("built the index of a layer").count()
            >= small.layers.len()
    })
    .unwrap();
    let lazy = worker(&site, "lazy", flavour);
    // ctr of 1.7 would pull whole.
    check(lazy.containerd.nerdctl().unwrap().args(["pull", "--quiet", &reference])).unwrap();
    assert_eq!(lazy.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap(), 2.0);
    assert!(!exports(&lazy, &reference), "the layers are not there");

    let hydrate = |image: &str| output(lazy.host.command(lapwing_binary().unwrap()).args(["hydrate", image])).unwrap();
    let sent = site.registry.sent_bytes().unwrap();
    let done = hydrate(&reference);
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && told.starts_with("2 blobs") && told.contains("1 were there"), "{done:?}");
    assert!(site.registry.sent_bytes().unwrap() - sent < 200_000, "the layers come from the swarm");
    let again = String::from_utf8_lossy(&hydrate(&reference).stdout).into_owned();
    assert!(again.starts_with("0 blobs") && again.contains("3 were there"), "{again}");
    let unknown = hydrate("no.example/such:1");
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("images ls"), "{unknown:?}");

    let content = ctr(&lazy, &["content", "ls"]);
    let host = site.registry.name().rsplit_once(':').unwrap().0.to_owned();
    let source = format!("containerd.io/distribution.source.{host}=lab/small");
    for layer in &small.layers {
        let row = content.lines().find(|row| row.starts_with(&layer.digest)).unwrap();
        assert!(row.contains(&source), "{row}");
    }
    // Nothing of it depends on the lease, which has ended: a garbage collection leaves it.
    assert_eq!(rows(&ctr(&lazy, &["leases", "ls"])), [""; 0]);
    ctr(&lazy, &["images", "tag", &reference, "no.example/other:1"]);
    ctr(&lazy, &["images", "rm", "--sync", "no.example/other:1"]);
    assert!(exports(&lazy, &reference));
    let saved = lazy.host.dir().join("saved.tar");
    check(lazy.containerd.nerdctl().unwrap().arg("save").arg("-o").arg(&saved).arg(&reference)).unwrap();
    assert!(std::fs::metadata(&saved).unwrap().len() > small.layers.iter().map(|layer| layer.size).sum());
    ctr(&lazy, &["images", "convert", "--uncompress", &reference, "no.example/converted:1"]);
    let pushed = format!("{}/lab/pushed:1", second.name());
    ctr(&lazy, &["images", "tag", &reference, &pushed]);
    ctr(&lazy, &["images", "push", "--local", "--plain-http", &pushed]);
    let plain = Machine::start(&site.network, "plain", &second, MachineOptions::plain()).unwrap();
    let runs_elsewhere = |pushed: &str, name: &str| {
        plain.containerd.pull(pushed, "overlayfs").unwrap();
        assert_eq!(plain.containerd.run(pushed, "overlayfs", name, &[]).unwrap().trim(), SMALL_OUTPUT);
    };
    runs_elsewhere(&pushed, "main");
    if flavour == Flavour::V2 {
        // By the transfer service.
        let transferred = format!("{}/lab/transferred:1", second.name());
        ctr(&lazy, &["images", "tag", &reference, &transferred]);
        ctr(&lazy, &["images", "push", "--plain-http", &transferred]);
        runs_elsewhere(&transferred, "transferred");
        ctr(&lazy, &["images", "rm", &transferred]);
    }
    for snapshotter in ["lapwing", "overlayfs"] {
        let printed = lazy.containerd.run(&reference, snapshotter, snapshotter, &[]).unwrap();
        assert_eq!(printed.trim(), SMALL_OUTPUT, "by {snapshotter}");
    }

    ctr(&lazy, &["images", "rm", "--sync", &reference, &pushed, "no.example/converted:1"]);
    assert_eq!(rows(&ctr(&lazy, &["content", "ls"])), [""; 0]);
    for snapshotter in ["lapwing", "overlayfs"] {
        assert_eq!(rows(&ctr(&lazy, &["snapshots", "--snapshotter", snapshotter, "ls"])), [""; 0], "of {snapshotter}");
    }
}
