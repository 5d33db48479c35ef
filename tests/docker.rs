//! dockerd pulls images of docker.io through Lapwing's mirror, with the `daemon.json` that `lapwing setup docker` writes.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use lapwing_lab::{Docker, Host, Lapwing, LapwingSettings, Need, Site, check, image, lapwing_binary, require};

const NEEDS: [Need; 5] =
    [Need::Root, Need::Disk, Need::Program("dockerd"), Need::Program("docker-registry"), Need::Program("skopeo")];
/// Far below the small image's size, above what manifests, configurations and chatter need.
const ALMOST_NOTHING_BYTES: u64 = 200_000;

/// A node to which the site's registry is docker.io.
fn settings(site: &Site) -> LapwingSettings {
    let host = format!("host = {:?}\nplain_http = true", site.registry.name());
    site.whole_settings().with("registries.hosts.\"docker.io\"", &host)
}

/// A host with a node, and with a dockerd that was told of it.
fn worker(site: &Site, name: &str) -> (Host, Lapwing, Docker) {
    let host = site.network.host(name, None).unwrap();
    let lapwing = Lapwing::start(&host, settings(site)).unwrap();
    let config = host.dir().join("daemon.json");
    std::fs::write(&config, "{\n    \"storage-driver\": \"overlay2\",\n    \"debug\": true\n}\n").unwrap();
    let mut setup = host.command(lapwing_binary().unwrap());
    setup.args(["setup", "docker", "--config"]).arg(&config).arg("--lapwing-config").arg(lapwing.config());
    check(&mut setup).unwrap();
    let docker = Docker::start(&host, &config, &[]).unwrap();
    (host, lapwing, docker)
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
