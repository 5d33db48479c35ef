//! `lapwing bench`: nodes over limited links fetch an image at one moment, and its figures are those that registry and nodes count themselves.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::process::Output;
use std::time::Duration;

use lapwing_lab::{Host, Lapwing, LapwingSettings, Mbit, Need, Rates, Site, image, lapwing_binary, require, wait};
use serde_json::{Value, json};

const NEEDS: [Need; 5] =
    [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("tc"), Need::Program("ip")];
const DEADLINE: Duration = Duration::from_secs(120);
const REGISTRY: Mbit = Mbit(80);
const NODE: Rates = Rates::of(Mbit(120), Mbit(240));
const NODES: usize = 4;

fn settings(site: &Site) -> LapwingSettings {
    let settings = LapwingSettings::node(&[site.tracker.tracker_address()]).registry(&site.registry.name());
    settings.with("snapshotter", "enabled = false").with("lazy", "enabled = false")
}

fn start(site: &Site, name: &str, settings: LapwingSettings) -> (Host, Lapwing) {
    let host = site.network.host_at(name, NODE).unwrap();
    let node = Lapwing::start(&host, settings).unwrap();
    (host, node)
}

fn known(site: &Site, nodes: usize) {
    wait::until_true("the tracker to know the nodes", DEADLINE, || {
        site.tracker.metric("lapwing_tracker_nodes", "").unwrap() >= nodes as f64
    })
    .unwrap();
}

fn lapwing(host: &Host, args: &[&str]) -> (i32, Output) {
    let output = host.run(lapwing_binary().unwrap(), args).unwrap();
    (output.status.code().unwrap(), output)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn held(node: &Lapwing, digests: &[String]) -> usize {
    let state: Value = serde_json::from_str(&node.admin("/api/v1/state").unwrap().text()).unwrap();
    let blobs = state["blobs"].as_array().unwrap();
    digests.iter().filter(|digest| blobs.iter().any(|blob| blob["digest"] == **digest)).count()
}

#[test]
fn the_figures_of_a_swarm_are_those_that_registry_and_nodes_count() {
    if !require("the_figures_of_a_swarm_are_those_that_registry_and_nodes_count", &NEEDS) {
        return;
    }
    let site = Site::new("bench", Some(REGISTRY)).unwrap();
    let nodes: Vec<_> = (0..NODES).map(|number| start(&site, &format!("n{number}"), settings(&site))).collect();
    let (fresh, known_image) = (image::noise(91, &[16, 8]).unwrap(), image::noise(92, &[1]).unwrap());
    let reference = site.registry.push(&fresh.layout, "fresh:1").unwrap();
    let known_reference = site.registry.push(&known_image.layout, "known:1").unwrap();
    known(&site, NODES);
    for (host, _) in &nodes {
        let (code, output) = lapwing(host, &["preheat", &known_reference, "--to", "here"]);
        assert_eq!(code, 0, "{}", said(&output));
    }
    let origin = || -> u64 { nodes.iter().map(|(_, node)| node.piece_bytes("origin").unwrap()).sum() };
    let served = |(_, node): &(Host, Lapwing)| node.metric("lapwing_served_bytes_total", "").unwrap();
    let (sent_before, origin_before) = (site.registry.sent_bytes().unwrap(), origin());
    let served_before: f64 = nodes.iter().map(served).sum();

    let links = ["--registry", "80Mbit", "--up", "120Mbit", "--down", "240Mbit"];
    let (host, image) = (nodes[0].0.clone(), reference.clone());
    let measuring = std::thread::spawn(move || {
        lapwing(&host, &[&["bench", &image, "--remove", "--json", "--timeout", "2m"], &links[..]].concat())
    });
    // Meanwhile another node is asked to measure what all of them have.
    let (code, output) = lapwing(&nodes[1].0, &["bench", &known_reference]);
    let text = said(&output);
    assert!(code == 5 && text.contains("4 had all of it before") && text.contains("Nothing was measured"), "{text}");
    let (code, output) = lapwing(&nodes[0].0, &["bench", &known_reference]);
    assert!(code == 3 && said(&output).contains("is being measured"), "{}", said(&output));

    let (code, output) = measuring.join().unwrap();
    assert_eq!(code, 0, "{}", said(&output));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    eprintln!("{}", said(&output));
    let layers: Vec<String> = fresh.layout.layers.iter().map(|layer| layer.digest.clone()).collect();
    let bytes = number(&figures["image_bytes"]);
    assert!((24e6..30e6).contains(&bytes), "{bytes}");
    assert_eq!((&figures["nodes"], &figures["measured"]), (&json!(NODES), &json!(NODES)));
    assert_eq!((&figures["held"], &figures["silent"], &figures["blobs"]), (&json!(0), &json!(0), &json!(3)));
    assert!((number(&figures["lacked_bytes"]) - bytes * NODES as f64).abs() < 1.0);

    // 80 Mbit/s are 10 MB/s; the links of the nodes carry more.
    let (bound, last) = (number(&figures["bound_seconds"]), number(&figures["last_seconds"]));
    assert!((bound - bytes / 10e6).abs() < 0.01 && figures["bound_by"] == "registry", "{bound}");
    let efficiency = number(&figures["efficiency"]);
    assert!((efficiency - bound / last).abs() < 1e-6 && (0.02..1.1).contains(&efficiency), "{efficiency}");
    assert!(number(&figures["median_seconds"]) <= last);

    let near = |name: &str, told: f64, counted: f64, part: f64| {
        assert!((told - counted).abs() <= counted * part, "{name}: told {told}, counted {counted}");
    };
    near("from origin", number(&figures["bytes_from_registry"]), (origin() - origin_before) as f64, 0.02);
    let sent = (site.registry.sent_bytes().unwrap() - sent_before) as f64;
    near("copies", number(&figures["registry_copies"]), sent / bytes, 0.15);
    let told_of_nodes = number(&figures["bytes_from_nodes"]);
    near("all", told_of_nodes + number(&figures["bytes_from_registry"]), bytes * NODES as f64, 0.05);
    let served = nodes.iter().map(served).sum::<f64>() - served_before;
    let sent: f64 = figures["node_figures"].as_array().unwrap().iter().map(|node| number(&node["sent_bytes"])).sum();
    near("sent", sent, served, 0.05);
    for node in figures["node_figures"].as_array().unwrap() {
        let (up, down) = (number(&node["peak_up_mbit"]), number(&node["peak_down_mbit"]));
        assert!((0.1..150.0).contains(&up) && (0.1..300.0).contains(&down), "{node}");
        assert!(node["counted"] == "measured" && node["removed"] == true && node["limited_by"].is_string(), "{node}");
    }
    for (_, node) in &nodes {
        assert_eq!(held(node, &layers), 0, "what the run brought is removed");
        assert_eq!(held(node, &[known_image.layout.layers[0].digest.clone()]), 1, "and nothing else");
    }
}

#[test]
fn nodes_that_take_no_orders_are_told_of_and_what_must_not_be_is_refused() {
    if !require("nodes_that_take_no_orders_are_told_of_and_what_must_not_be_is_refused", &NEEDS) {
        return;
    }
    let site = Site::new("bench-no", None).unwrap();
    let (host, node) = start(&site, "n", settings(&site).with("preheat", "accept = false"));
    known(&site, 1);
    let noise = image::noise(93, &[1]).unwrap();
    let reference = site.registry.push(&noise.layout, "noise:1").unwrap();
    let (code, output) = lapwing(&host, &["bench", &reference]);
    let text = said(&output);
    assert!(code == 1 && text.contains("takes no orders") && text.contains("1 could not have it"), "{text}");
    assert_eq!(held(&node, &[noise.layout.layers[0].digest.clone()]), 0);

    for (expected, hint, args) in [
        (3, "is not listed", &["bench", "other.example/a:1"][..]),
        (3, "does not have it", &["bench", &format!("{}/nothing:1", site.registry.name())]),
        (3, "no node or seed answers", &["bench", "a", "--admin", "127.0.0.1:1"]),
        (2, "rate of a link", &["bench", "a", "--up", "fast"]),
        (2, "number of nodes", &["bench", "a", "--nodes", "0"]),
    ] {
        let (code, output) = lapwing(&host, args);
        assert!(code == expected && said(&output).contains(hint), "{args:?}: {code} {}", said(&output));
    }
}
