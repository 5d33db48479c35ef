//! The realistic image does what the tests and the demo rely on: it is large, ordinary, and both of its programs run.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use lapwing_lab::{Flavour, Lab, Machine, MachineOptions, Mbit, Need, Registry, RegistryOptions, image, require};

#[test]
fn the_realistic_image_runs_in_plain_containerd() {
    let needs = [
        Need::Root,
        Need::Disk,
        Need::Program("docker-registry"),
        Need::Program("skopeo"),
        Need::Program("containerd"),
        Need::Program("mmdebstrap"),
        Need::Program("pigz"),
    ];
    if !require("the_realistic_image_runs_in_plain_containerd", &needs) {
        return;
    }
    let layout = image::real().unwrap();
    assert!(layout.compressed_bytes() >= 200_000_000, "{} bytes", layout.compressed_bytes());
    assert_eq!((layout.layers.len(), layout.diff_ids.len()), (3, 3));

    let network = Lab::new("real").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let reference = registry.push(&layout, "lab/real:1").unwrap();
    let flavour = if lapwing_lab::tools_dir().is_ok() { Flavour::V2 } else { Flavour::Debian };
    let options = MachineOptions { flavour, rate: Some(Mbit(1000)), ..MachineOptions::plain() };
    let worker = Machine::start(&network, "worker", &registry, options).unwrap();
    worker.containerd.pull(&reference, "overlayfs").unwrap();
    let run = |name: &str, args: &[&str]| worker.containerd.run(&reference, "overlayfs", name, args).unwrap();
    assert_eq!(run("main", &[]).trim(), image::MAIN_OUTPUT);
    assert_eq!(run("full", &["/usr/bin/python3", image::FULL_SCRIPT]).trim(), image::FULL_OUTPUT);
}
