//! Real nodes whose tracker is killed: what others hold is still found.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use lapwing_lab::{Lab, Lapwing, LapwingSettings, Need, Registry, RegistryOptions, image, require};

/// The first node has a blob that the second pulls when the tracker is dead and the second was started anew: it knows of
/// the first from its own disk alone.
#[test]
fn a_node_finds_a_blob_though_its_tracker_is_dead() {
    let needs = [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("skopeo")];
    if !require("a_node_finds_a_blob_though_its_tracker_is_dead", &needs) {
        return;
    }
    let network = Lab::new("exchange").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let layout = image::small().unwrap();
    registry.push(&layout, "small:1").unwrap();
    let mut tracker = Lapwing::start(&network.host("tracker", None).unwrap(), LapwingSettings::tracker()).unwrap();
    let settings = LapwingSettings::node(&[tracker.tracker_address()])
        .registry(&registry.name())
        .with("lazy", "enabled = false")
        .encrypted();
    let first = Lapwing::start(&network.host("first", None).unwrap(), settings.clone()).unwrap();
    let mut second = Lapwing::start(&network.host("second", None).unwrap(), settings).unwrap();
    let [common, other] = [&layout.layers[0], &layout.layers[1]];
    let pull = |node: &Lapwing, digest: &str| {
        let answer = node.mirror_blob(&registry.name(), "small", digest).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    pull(&first, &common.digest);
    pull(&first, &other.digest);
    pull(&second, &common.digest);
    second.stop().unwrap();
    assert!(std::fs::read_to_string(second.root().join("peers")).unwrap().lines().count() == 2, "they met");
    tracker.kill9().unwrap();
    second.restart().unwrap();

    pull(&second, &other.digest);
    assert!(second.metric("lapwing_told_holders_total", "").unwrap() >= 1.0, "{}", second.log().unwrap());
    assert!(second.piece_bytes("peer").unwrap() > 0, "{}", second.log().unwrap());
}
