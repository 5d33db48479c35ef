//! `lapwing explain`, `lapwing rm` and `lapwing gc` on real nodes: what they say agrees with what was counted, and what is gone is gone.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::{
    Host, Lab, Lapwing, LapwingSettings, Machine, MachineOptions, Need, Registry, RegistryOptions, image,
    lapwing_binary, require, wait,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

fn json(host: &Host, args: &[&str]) -> Value {
    let output = host.run(lapwing_binary().unwrap(), args).unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn explained(host: &Host, name: &str) -> Value {
    json(host, &["explain", name, "--json"])
}

/// The explanation once nothing of the pull is under way.
fn ended(host: &Host, name: &str) -> Value {
    wait::until_true("the pull to end", SOON, || explained(host, name)["state"] == "ended").unwrap();
    let pull = explained(host, name);
    let shares: f64 = pull["limited_by"].as_array().unwrap().iter().map(|share| share["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 0.01, "every moment has a cause: {pull}");
    pull
}

/// As a client without containerd pulls.
fn pull(host: &Host, node: &Lapwing, registry: &Registry, layout: &image::Layout) -> Value {
    let url = format!("http://127.0.0.1:7080/v2/small/manifests/1?ns={}", registry.name());
    host.check("curl", &["-sSf", "-H", "Accept: application/vnd.oci.image.manifest.v1+json", &url]).unwrap();
    for layer in &layout.layers {
        assert_eq!(node.mirror_blob(&registry.name(), "small", &layer.digest).unwrap().status, 200);
    }
    ended(host, "small:1")
}

fn phase<'a>(pull: &'a Value, name: &str) -> Option<&'a Value> {
    pull["phases"].as_array().unwrap().iter().find(|phase| phase["name"] == name)
}

fn bytes(pull: &Value, from: &str) -> u64 {
    pull["bytes"][from].as_u64().unwrap()
}

#[test]
fn a_cold_pull_and_a_lazy_start_are_explained_by_what_was_counted() {
    const NAME: &str = "a_cold_pull_and_a_lazy_start_are_explained_by_what_was_counted";
    if !require(NAME, &Need::LAZY_PULLS) {
        return;
    }
    let network = Lab::new("explain").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let layout = image::small().unwrap();
    let reference = registry.push(&layout, "small:1").unwrap();
    let tracker = Lapwing::start(&network.host("tracker", None).unwrap(), LapwingSettings::tracker()).unwrap();
    let settings = LapwingSettings::node(&[tracker.tracker_address()]).with("lazy", "complete_after = \"0\"");

    let first_host = network.host("first", None).unwrap();
    let options = MachineOptions::lapwing(settings.clone());
    let first = Machine::start_on(&first_host, &registry, options).unwrap();
    first.containerd.pull(&reference, "lapwing").unwrap();
    let cold = ended(&first_host, "small:1");
    let node = first.lapwing.as_ref().unwrap();
    assert_eq!(bytes(&cold, "origin"), node.piece_bytes("origin").unwrap(), "{cold}");
    assert_eq!(bytes(&cold, "origin"), cold["length_bytes"].as_u64().unwrap(), "nothing was here: {cold}");
    for from in ["peers_near", "peers_far", "seeds", "here_before"] {
        assert_eq!(bytes(&cold, from), 0, "{from}: {cold}");
    }
    for name in
        ["resolve", "authorize", "lease", "origin_answer", "origin", "verify", "write", "inflate", "unpack", "transfer"]
    {
        assert!(phase(&cold, name).is_some_and(|phase| phase["count"].as_u64() > Some(0)), "{name}: {cold}");
    }
    let given = node.metric("lapwing_mirror_bytes_total", "").unwrap() as u64;
    assert_eq!(phase(&cold, "transfer").unwrap()["bytes"].as_u64(), Some(given));
    wait::until_true("both layers to be indexed", SOON, || {
        node.log().unwrap().matches("built the index of a layer").count() == 2
    })
    .unwrap();

    let second_host = network.host("second", None).unwrap();
    let second = Machine::start_on(&second_host, &registry, MachineOptions::lapwing(settings.patient())).unwrap();
    second.containerd.pull(&reference, "lapwing").unwrap();
    let pulled = ended(&second_host, "small:1");
    let layers: Vec<_> = pulled["blobs"].as_array().unwrap().iter().filter(|blob| blob["kind"] == "layer").collect();
    assert!(layers.len() == 2 && layers.iter().all(|layer| layer["state"] == "mounted"), "{pulled}");
    second.containerd.run(&reference, "lapwing", "lazy", &[]).unwrap();
    let node = second.lapwing.as_ref().unwrap();
    wait::until_true("the faults to be told", SOON, || {
        let waited = node.metric("lapwing_lazy_waited_reads_total", "").unwrap() as u64;
        waited > 0 && explained(&second_host, "small:1")["faults"].as_u64() == Some(waited)
    })
    .unwrap();
    let started = explained(&second_host, "small:1");
    let from_peers = node.piece_bytes("peer").unwrap();
    // The rest are indexes and metainfo, which are blobs of their own.
    assert!(bytes(&started, "peers_near") > 0 && bytes(&started, "peers_near") <= from_peers, "{started} {from_peers}");
    assert_eq!(bytes(&started, "origin"), node.piece_bytes("origin").unwrap(), "{started}");
    assert!(
        (started["seconds"].as_f64().unwrap() - pulled["seconds"].as_f64().unwrap()).abs() < 0.01,
        "use is no pull"
    );
    assert!(started["faults_seconds"].as_f64().unwrap() > 0.0, "{started}");

    let shown = second_host.check(lapwing_binary().unwrap(), &["explain", "small:1"]).unwrap();
    assert!(shown.contains("what limited it") && shown.contains("reads of mounted layers waited"), "{shown}");
    let list = json(&second_host, &["explain", "--json"]);
    assert_eq!(list[0]["name"], reference.as_str(), "{list}");
    let unknown = second_host.run(lapwing_binary().unwrap(), &["explain", "other:1"]).unwrap();
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(!unknown.status.success() && said.contains("no pull of \"other:1\" is remembered"), "{said}");

    // What is mounted stays; what only lies here goes.
    let mounted = layers[0]["digest"].as_str().unwrap();
    let refused = second_host.run(lapwing_binary().unwrap(), &["rm", mounted]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("in use by a mount"), "{said}");
    let collected = json(&second_host, &["gc", "--json"]);
    assert!(collected["in_use"].as_u64() >= Some(1), "{collected}");
    second.containerd.run(&reference, "lapwing", "again", &[]).unwrap();
}

#[test]
fn warm_pulls_come_from_peers_by_zone() {
    const NAME: &str = "warm_pulls_come_from_peers_by_zone";
    if !require(
        NAME,
        &[Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("skopeo"), Need::Program("curl")],
    ) {
        return;
    }
    let network = Lab::new("explain-zones").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let layout = image::small().unwrap();
    registry.push(&layout, "small:1").unwrap();
    let tracker = Lapwing::start(&network.host("tracker", None).unwrap(), LapwingSettings::tracker()).unwrap();
    let start = |name: &str, zone: &str| {
        let settings = LapwingSettings::node(&[tracker.tracker_address()]).registry(&registry.name());
        let settings = settings.with("lazy", "enabled = false").with("tracker", &format!("zone = {zone:?}"));
        let host = network.host(name, None).unwrap();
        let node = Lapwing::start(&host, settings).unwrap();
        (host, node)
    };
    let of_layers = |pull: &Value| -> u64 {
        let blobs = pull["blobs"].as_array().unwrap().iter().filter(|blob| blob["kind"] == "layer");
        blobs.map(|blob| blob["length_bytes"].as_u64().unwrap()).sum()
    };
    let (first_host, first) = start("first", "z1");
    pull(&first_host, &first, &registry, &layout);
    let (near_host, near) = start("near", "z1");
    let (far_host, far) = start("far", "z2");
    let warm = pull(&near_host, &near, &registry, &layout);
    assert!(bytes(&warm, "peers_near") >= of_layers(&warm) && bytes(&warm, "peers_far") == 0, "{warm}");
    assert!(bytes(&warm, "peers_near") <= near.piece_bytes("peer").unwrap(), "{warm}");
    let crossed = pull(&far_host, &far, &registry, &layout);
    assert!(bytes(&crossed, "peers_far") >= of_layers(&crossed) && bytes(&crossed, "peers_near") == 0, "{crossed}");
}

#[test]
fn what_is_removed_is_gone_and_pulled_anew() {
    const NAME: &str = "what_is_removed_is_gone_and_pulled_anew";
    let needs =
        [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("skopeo"), Need::Program("curl")];
    if !require(NAME, &needs) {
        return;
    }
    let network = Lab::new("explain-rm").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let layout = image::small().unwrap();
    registry.push(&layout, "small:1").unwrap();
    // Without peers, which would be waited for.
    let settings = LapwingSettings::node(&[]).registry(&registry.name()).with("lazy", "enabled = false");
    let host = network.host("alone", None).unwrap();
    let node = Lapwing::start(&host, settings).unwrap();
    let before = pull(&host, &node, &registry, &layout);
    let [lower, upper] = [&layout.layers[0].digest, &layout.layers[1].digest];
    let lapwing = |args: &[&str]| host.run(lapwing_binary().unwrap(), args).unwrap();
    assert!(lapwing(&["pin", lower, "--json"]).status.success());
    let refused = lapwing(&["rm", lower]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("is pinned: `lapwing unpin"), "{said}");
    wait::until_true("the other to be collected", SOON, || {
        let planned = json(&host, &["gc", "--dry-run", "--json"]);
        assert!(planned["done"] == false && node.blob_dir(upper).exists(), "{planned}");
        planned["blobs"].as_array().unwrap().iter().any(|blob| blob["digest"] == upper.as_str())
    })
    .unwrap();
    let collected = json(&host, &["gc", "--json"]);
    assert!(collected["pinned"] == 1 && collected["bytes"].as_u64() > Some(0), "{collected}");
    assert!(!node.blob_dir(upper).exists() && node.blob_dir(lower).exists(), "{collected}");
    assert!(lapwing(&["unpin", lower]).status.success());
    let removed = lapwing(&["rm", "small:1"]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert!(!node.blob_dir(lower).exists());
    wait::until_true("the pull to be over", SOON, || explained(&host, "small:1")["age_seconds"].as_f64() > Some(8.0))
        .unwrap();
    let again = pull(&host, &node, &registry, &layout);
    assert!(again["began_unix_ms"].as_u64() > before["began_unix_ms"].as_u64(), "{again}");
    assert_eq!(bytes(&again, "origin"), again["length_bytes"].as_u64().unwrap(), "{again}");
}
