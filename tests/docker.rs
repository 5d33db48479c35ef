//! dockerd pulls images of docker.io through Lapwing's mirror, with the `daemon.json` that `lapwing setup docker` writes.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::path::PathBuf;
use std::time::Duration;

use lapwing_lab::{
    Docker, Host, Lapwing, LapwingSettings, Machine, MachineOptions, Need, Site, check, image, lapwing_binary, require,
    wait,
};

const NEEDS: [Need; 5] =
    [Need::Root, Need::Disk, Need::Program("dockerd"), Need::Program("docker-registry"), Need::Program("skopeo")];
/// Far below the small image's size, above what manifests, configurations and chatter need.
const ALMOST_NOTHING_BYTES: u64 = 200_000;

const SOON: Duration = Duration::from_secs(90);

/// A node to which the site's registry is docker.io.
fn settings(site: &Site) -> LapwingSettings {
    let host = format!("host = {:?}\nplain_http = true", site.registry.name());
    site.whole_settings().with("registries.hosts.\"docker.io\"", &host)
}

/// A host with a node, and with a dockerd that was told of it.
fn worker(site: &Site, name: &str) -> (Host, Lapwing, Docker) {
    let host = site.network.host(name, None).unwrap();
    let lapwing = Lapwing::start(&host, settings(site)).unwrap();
    let config = set_up(&host, &lapwing, "{\n    \"storage-driver\": \"overlay2\",\n    \"debug\": true\n}\n");
    let docker = Docker::start(&host, &config, &[]).unwrap();
    (host, lapwing, docker)
}

/// The operator's `daemon.json`, after `lapwing setup docker`.
fn set_up(host: &Host, lapwing: &Lapwing, operators: &str) -> PathBuf {
    let config = host.dir().join("daemon.json");
    std::fs::write(&config, operators).unwrap();
    let mut setup = host.command(lapwing_binary().unwrap());
    setup.args(["setup", "docker", "--config"]).arg(&config).arg("--lapwing-config").arg(lapwing.config());
    check(&mut setup).unwrap();
    config
}

/// A worker whose dockerd keeps its images in the machine's containerd, by Lapwing's snapshotter.
fn containerd_worker(site: &Site, name: &str) -> (Machine, Docker) {
    let host = format!("host = {:?}\nplain_http = true", site.registry.name());
    let settings = site.settings().with("registries.hosts.\"docker.io\"", &host);
    let options = MachineOptions::lapwing(settings.patient());
    let machine = Machine::start(&site.network, name, &site.registry, options).unwrap();
    // The distribution's runc has no namespaces of time.
    let features = "{\"containerd-snapshotter\": true, \"time-namespaces\": false}";
    let operators = format!("{{\"features\": {features}, \"storage-driver\": \"lapwing\"}}\n");
    let config = set_up(&machine.host, machine.lapwing.as_ref().unwrap(), &operators);
    let docker = Docker::start_pinned(&machine.host, &config).unwrap();
    (machine, docker)
}

/// The first machine fetches the image from the registry, the second from the first.
#[test]
fn dockerd_pulls_through_the_mirror_and_from_its_neighbour() {
    const NAME: &str = "dockerd_pulls_through_the_mirror_and_from_its_neighbour";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let small = image::small().unwrap();
    site.registry.push(&small, "library/small:1").unwrap();
    let size: u64 = small.layers.iter().map(|layer| layer.size).sum();

    let (_first, lapwing, docker) = worker(&site, "first");
    assert!(docker.run(&["info"]).unwrap().contains("http://127.0.0.1:7080"));
    // Nothing but the mirror leads to a docker.io here.
    docker.run(&["pull", "--quiet", "small:1"]).unwrap();
    let through = lapwing.metric("lapwing_mirror_bytes_total", "").unwrap();
    assert!(through >= size as f64, "{through} of {size} bytes went through the mirror");
    assert!(lapwing.piece_bytes("origin").unwrap() >= size);
    let run = |docker: &Docker| docker.run(&["run", "--rm", "--network=none", "small:1"]).unwrap();
    assert_eq!(run(&docker).trim(), image::SMALL_OUTPUT);

    let (_second, neighbour, second) = worker(&site, "second");
    let before = site.registry.sent_bytes().unwrap();
    second.run(&["pull", "--quiet", "small:1"]).unwrap();
    let sent = site.registry.sent_bytes().unwrap() - before;
    assert!(sent < ALMOST_NOTHING_BYTES, "the registry sent {sent} bytes");
    assert!(neighbour.piece_bytes("peer").unwrap() >= size, "the layers came from the first machine");
    assert_eq!(run(&second).trim(), image::SMALL_OUTPUT);
}

/// With the containerd image store the second machine starts lazily; what its containers do to the image is docker's as ever.
#[test]
fn dockerd_with_the_containerd_image_store_starts_lazily() {
    const NAME: &str = "dockerd_with_the_containerd_image_store_starts_lazily";
    if !require(NAME, &[&NEEDS[..], &[Need::Fuse, Need::Erofs, Need::Tools, Need::Dockerd]].concat()) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let small = image::small().unwrap();
    site.registry.push(&small, "library/small:1").unwrap();
    let (first, docker) = containerd_worker(&site, "first");
    assert!(docker.run(&["info"]).unwrap().contains("driver-type: io.containerd.snapshotter.v1"));
    docker.run(&["pull", "--quiet", "small:1"]).unwrap();
    let node = first.lapwing.as_ref().unwrap();
    wait::until_true("both layers to be indexed", SOON, || {
        node.log().unwrap().matches("built the index of a layer").count() >= small.layers.len()
    })
    .unwrap();
    let run = |docker: &Docker, script: &[&str]| {
        docker.run(&[&["run", "--rm", "--network=none", "small:1"], script].concat()).unwrap()
    };
    assert_eq!(run(&docker, &[]).trim(), image::SMALL_OUTPUT);

    let (second, docker) = containerd_worker(&site, "second");
    let before = site.registry.sent_bytes().unwrap();
    docker.run(&["pull", "--quiet", "small:1"]).unwrap();
    let claimed = second.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
    assert_eq!(claimed, 2.0, "both layers are lazy");
    let sent = site.registry.sent_bytes().unwrap() - before;
    assert!(sent < ALMOST_NOTHING_BYTES, "the registry sent {sent} bytes");
    assert_eq!(run(&docker, &[]).trim(), image::SMALL_OUTPUT);
    let read = run(&docker, &["sha256sum /odd/noise && echo mine >/odd/noise"]);
    assert_eq!(run(&docker, &["sha256sum /odd/noise"]), read, "the image is as it was");

    docker.run(&["rmi", "small:1"]).unwrap();
    let snapshots = || {
        let mut ctr = second.containerd.ctr().unwrap();
        check(ctr.args(["--namespace", "moby", "snapshots", "--snapshotter", "lapwing", "ls"])).unwrap()
    };
    wait::until_true("the snapshots to go", SOON, || snapshots().lines().count() == 1).unwrap();
}
