//! The main job, on a small image: a node pulls it whole through its mirror, another starts it lazily from the first.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::{
    Lab, Lapwing, LapwingSettings, Machine, MachineOptions, Need, Registry, RegistryOptions, image, require, tree, wait,
};

#[test]
fn an_image_pulled_whole_by_one_node_starts_lazily_on_another() {
    const NAME: &str = "an_image_pulled_whole_by_one_node_starts_lazily_on_another";
    if !require(NAME, &[Need::Root, Need::Disk, Need::Fuse, Need::Erofs, Need::Tools]) {
        return;
    }
    let network = Lab::new("first-light").unwrap().network().unwrap();
    let registry_host = network.host("registry", None).unwrap();
    let registry = Registry::start(&registry_host, RegistryOptions::default()).unwrap();
    let reference = registry.push(&image::small().unwrap(), "small:1").unwrap();
    let tracker_host = network.host("tracker", None).unwrap();
    let tracker = Lapwing::start(&tracker_host, LapwingSettings::tracker()).unwrap();
    let settings = LapwingSettings::node(&[tracker.tracker_address()]).with("lazy", "complete_after = \"0\"");

    let first = Machine::start(&network, "first", &registry, MachineOptions::lapwing(settings.clone())).unwrap();
    first.containerd.pull(&reference, "lapwing").unwrap();
    let output = first.containerd.run(&reference, "lapwing", "whole", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    let node = first.lapwing.as_ref().unwrap();
    wait::until_true("both layers to be indexed", Duration::from_secs(60), || {
        node.log().unwrap().matches("built the index of a layer").count() == 2
    })
    .unwrap();

    let sent = registry.sent_bytes().unwrap();
    let second = Machine::start(&network, "second", &registry, MachineOptions::lapwing(settings)).unwrap();
    second.containerd.pull(&reference, "lapwing").unwrap();
    let output = second.containerd.run(&reference, "lapwing", "lazy", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    let node = second.lapwing.as_ref().unwrap();
    assert_eq!(node.metric("lapwing_snapshot_layers_claimed_total", "").unwrap(), 2.0, "both layers are lazy");
    assert!(registry.sent_bytes().unwrap() - sent < 200_000, "layers come from the first node, not from the registry");
    let _ = tree::digest_walk;
}
