//! What kubelet reads of a node whose images are pulled lazily: the image filesystem and what is used of it, the sizes of images, and what
//! containers have written.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use lapwing_lab::wait::Poll;
use lapwing_lab::{
    Containerd, ContainerdOptions, Flavour, Lapwing, LapwingSettings, Machine, MachineOptions, Need, RegistryHosts,
    Site, check, image, require, wait,
};
use serde_json::Value;

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(90);
/// Of `/odd/noise` in the small image, and of what the container writes.
const NOISE_BYTES: u64 = 3 << 20;

fn settings(site: &Site) -> LapwingSettings {
    site.settings().patient()
}

/// A node that has pulled the image through CRI for overlayfs, and published its indexes.
fn seeded(site: &Site, reference: &str, flavour: Flavour) -> Machine {
    let options = MachineOptions { flavour, cri_lapwing: false, ..MachineOptions::lapwing(settings(site)) };
    let machine = Machine::start(&site.network, "whole", &site.registry, options).unwrap();
    machine.containerd.cri_pull(reference).unwrap();
    let layers = image::small().unwrap().layers.len();
    wait::until_true("the layers to be indexed", SOON, || {
        let log = machine.lapwing.as_ref().unwrap().log().unwrap();
        log.matches("built the index of a layer").count() >= layers
    })
    .unwrap();
    machine
}

/// A machine whose CRI uses Lapwing, and looks at its snapshots each second, not every ten.
fn lazy_machine(site: &Site, pause: String, flavour: Flavour) -> Machine {
    let host = site.network.host("lazy", None).unwrap();
    let lapwing = Lapwing::start(&host, settings(site).registry(&site.registry.name())).unwrap();
    let mirrors = vec![Lapwing::mirror_url()];
    let options = ContainerdOptions {
        flavour,
        snapshotter: Some(Lapwing::snapshotter(&host)),
        registries: vec![RegistryHosts {
            name: site.registry.name(),
            url: site.registry.url(),
            mirrors,
            headers: Vec::new(),
        }],
        cri_snapshotter: "lapwing".into(),
        pause: Some(pause),
        ..ContainerdOptions::default()
    };
    let file = Containerd::configure(&host, &options).unwrap();
    let mut config: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let plugin = if flavour == Flavour::V2 { "io.containerd.cri.v1.images" } else { "io.containerd.grpc.v1.cri" };
    config["plugins"][plugin].as_table_mut().unwrap().insert("stats_collect_period".into(), 1.into());
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let containerd = Containerd::start_configured(&host, options).unwrap();
    Machine { containerd, lapwing: Some(lapwing), host }
}

fn crictl(machine: &Machine, args: &[&str]) -> Value {
    let (command, args) = args.split_first().unwrap();
    let shown = check(machine.containerd.crictl().unwrap().args([command, "-o", "json"]).args(args)).unwrap();
    serde_json::from_str(&shown).unwrap()
}

/// A containerd that answers may still be starting CRI.
fn wait_for_cri(machine: &Machine) {
    let ready = || Ok(Poll::retry(check(machine.containerd.crictl().unwrap().arg("imagefsinfo"))));
    wait::until("CRI to answer", SOON, ready).unwrap();
}

/// Numbers of 64 bits are text in the JSON of protobuf.
fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

/// Bytes and inodes in use of the image filesystem, which is where `root` is.
fn image_filesystem(machine: &Machine, root: &Path) -> (u64, u64) {
    let info = crictl(machine, &["imagefsinfo"]);
    let filesystem = &info["status"]["imageFilesystems"][0];
    assert_eq!(filesystem["fsId"]["mountpoint"].as_str(), root.to_str(), "{info}");
    (number(&filesystem["usedBytes"]["value"]), number(&filesystem["inodesUsed"]["value"]))
}

/// What is on disk of lazy layers, as the test counts it.
fn on_disk(root: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    for layer in std::fs::read_dir(root.join("layers")).unwrap() {
        let layer = layer.unwrap().path();
        let files = std::fs::read_dir(&layer).unwrap().map(|file| file.unwrap().path());
        for file in files.chain([layer.clone()]) {
            let found = std::fs::symlink_metadata(file).unwrap();
            sum = (sum.0 + found.blocks() * 512, sum.1 + 1);
        }
    }
    sum
}

fn image_size(machine: &Machine, reference: &str) -> u64 {
    let listed = crictl(machine, &["images", reference]);
    let inspected = crictl(machine, &["inspecti", reference]);
    let size = number(&inspected["status"]["size"]);
    assert_eq!(number(&listed["images"][0]["size"]), size);
    size
}

fn what_kubelet_reads(name: &str, flavour: Flavour) {
    if !require(name, &NEEDS) {
        return;
    }
    let site = Site::new(name, None).unwrap();
    let reference = site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let pause = site.registry.push(&image::pause().unwrap(), "lab/pause:1").unwrap();
    let whole = seeded(&site, &reference, flavour);
    let mut machine = lazy_machine(&site, pause, flavour);
    let root = machine.lapwing.as_ref().unwrap().root();

    wait_for_cri(&machine);
    assert_eq!(image_filesystem(&machine, &root), (0, 0));
    machine.containerd.cri_pull(&reference).unwrap();
    let claimed = machine.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
    assert_eq!(claimed, 2.0, "both layers are lazy");
    assert_eq!(image_size(&machine, &reference), image_size(&whole, &reference));
    wait::until_true("the layers' files to be counted", SOON, || image_filesystem(&machine, &root) == on_disk(&root))
        .unwrap();
    let (unread, _) = on_disk(&root);
    assert!(unread < NOISE_BYTES, "{unread} bytes, and nobody has read anything");

    // What the mount point names is a disk with numbers of its own, and the same that Lapwing fills.
    let disk = rustix::fs::statvfs(machine.host.path(&root)).unwrap();
    assert!(disk.f_blocks > 0 && disk.f_bavail > 0 && disk.f_files > 0, "{} blocks", disk.f_blocks);
    let device = |path: &Path| std::fs::metadata(machine.host.path(path)).unwrap().dev();
    assert_eq!(device(&root), device(&root.join("layers")));

    let pod = machine.containerd.cri_pod("one").unwrap();
    let script = "cat /odd/noise >/written && /bin/sleep 1000";
    let container = machine.containerd.cri_container("one", &pod, &reference, &["/bin/sh", "-c", script]).unwrap();
    wait::until_true("what the container wrote to be counted", SOON, || {
        let stats = crictl(&machine, &["stats", "--id", &container]);
        let layer = &stats["stats"][0]["writableLayer"];
        if layer["usedBytes"].is_null() {
            return false;
        }
        assert_eq!(layer["fsId"]["mountpoint"].as_str(), root.to_str());
        number(&layer["usedBytes"]["value"]) >= NOISE_BYTES
    })
    .unwrap();
    // It was read, too. containerd measures a layer when it first sees it.
    machine.containerd.restart().unwrap();
    wait_for_cri(&machine);
    let least = on_disk(&root).0 + NOISE_BYTES;
    assert!(least >= unread + 2 * NOISE_BYTES);
    wait::until_true("what was read to be counted", SOON, || image_filesystem(&machine, &root).0 >= least).unwrap();
    machine.containerd.cri_remove_pod(&pod).unwrap();
    machine.containerd.process().expect_running().unwrap();
}

#[test]
fn kubelet_reads_what_lazy_images_take() {
    what_kubelet_reads("kubelet_reads_what_lazy_images_take", Flavour::V2);
}

#[test]
fn kubelet_reads_what_lazy_images_take_with_containerd_17() {
    const NAME: &str = "kubelet_reads_what_lazy_images_take_with_containerd_17";
    if require(NAME, &[Need::Containerd17]) {
        what_kubelet_reads(NAME, Flavour::V17);
    }
}
