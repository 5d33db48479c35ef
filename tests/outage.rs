//! The registry is unplugged after one node has pulled: with `outage.max_stale` a node that was never there before pulls and starts the
//! image, lazily; without it clients are sent on soon.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::{Duration, Instant};

use lapwing_lab::{LapwingSettings, Machine, MachineOptions, Need, Site, image, require, wait};

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(90);

/// Longer than this test lets anything wait: who waits for the connection fails it.
const CONNECT: &str = "connect_timeout_seconds = 600";

fn settings(site: &Site, max_stale: &str) -> LapwingSettings {
    let settings = site.settings().patient();
    settings.with("registries", CONNECT).with("outage", &format!("max_stale = \"{max_stale}\""))
}

fn machine(site: &Site, name: &str, max_stale: &str) -> Machine {
    let options = MachineOptions::lapwing(settings(site, max_stale));
    Machine::start(&site.network, name, &site.registry, options).unwrap()
}

/// Both layers of the small image are indexed by this node.
fn wait_for_indexes(machine: &Machine) {
    let node = machine.lapwing.as_ref().unwrap();
    wait::until_true("both layers to be indexed", SOON, || {
        let log = node.log().unwrap();
        let built = |digest: &str| log.lines().any(|line| line.contains("built the index") && line.contains(digest));
        image::small().unwrap().layers.iter().all(|layer| built(&layer.digest))
    })
    .unwrap();
}

#[test]
fn a_node_pulls_lazily_from_others_while_the_registry_is_unplugged() {
    const NAME: &str = "a_node_pulls_lazily_from_others_while_the_registry_is_unplugged";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let name = site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let first = machine(&site, "first", "1h");
    first.containerd.pull(&name, "overlayfs").unwrap();
    wait_for_indexes(&first);
    site.registry.host().set_link(false).unwrap();

    let second = machine(&site, "second", "1h");
    second.containerd.pull(&name, "lapwing").unwrap();
    let node = second.lapwing.as_ref().unwrap();
    assert_eq!(node.metric("lapwing_snapshot_layers_claimed_total", "").unwrap(), 2.0, "both layers are lazy");
    let output = second.containerd.run(&name, "lapwing", "main", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    let stood_in = |kind: &str| node.metric("lapwing_mirror_outage_answers_total", kind).unwrap();
    assert!(stood_in("kind=\"manifest\"") >= 1.0, "the manifest was answered in the registry's place");
    assert!(node.log().unwrap().contains("the registry is away: its last word is given"), "it is logged");

    let whole = machine(&site, "whole", "1h");
    whole.containerd.pull(&name, "overlayfs").unwrap();
    assert_eq!(whole.containerd.run(&name, "overlayfs", "main", &[]).unwrap().trim(), image::SMALL_OUTPUT);
}

#[test]
fn without_the_policy_a_client_is_sent_on_soon() {
    const NAME: &str = "without_the_policy_a_client_is_sent_on_soon";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let name = site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let first = machine(&site, "first", "1h");
    first.containerd.pull(&name, "overlayfs").unwrap();
    site.registry.host().set_link(false).unwrap();

    let second = machine(&site, "second", "0");
    let url = format!("{}/v2/lab/small/manifests/1?ns={}", lapwing_lab::Lapwing::mirror_url(), site.registry.name());
    let ask = ["--silent", "--output", "/dev/null", "--max-time", "300", "--write-out", "%{http_code}", &url];
    let began = Instant::now();
    assert_eq!(second.host.check("curl", &ask).unwrap(), "502");
    eprintln!("{NAME}: sent on after {:.2} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < Duration::from_secs(60), "the connection's own timeout was waited for");
    let log = second.lapwing.as_ref().unwrap().log().unwrap();
    assert!(log.contains("registry cannot be reached"), "{log}");
}
