//! What a machine's containerd holds already is there for all nodes, from where it is: pulled without Lapwing, in any namespace, before the
//! node starts or while it runs; and it is gone when containerd removes it.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::image::{self, Layout, Noise};
use lapwing_lab::{
    Containerd, ContainerdOptions, Flavour, Lapwing, Machine, MachineOptions, Need, RegistryHosts, Site, check,
    lapwing_binary, require, wait,
};
use serde_json::Value;

const NEEDS: [Need; 6] = [
    Need::Root,
    Need::Disk,
    Need::Tools,
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("runc"),
];
const DEADLINE: Duration = Duration::from_secs(120);
/// Far below any layer here, above what manifests and chatter need.
const ALMOST_NOTHING_BYTES: u64 = 200_000;

fn node(machine: &Machine) -> &Lapwing {
    machine.lapwing.as_ref().unwrap()
}

fn metric(machine: &Machine, name: &str) -> u64 {
    node(machine).metric(name, "").unwrap() as u64
}

/// A worker whose containerd asks the registry alone, with a node that nobody told of any pull.
fn bystander(site: &Site, name: &str, flavour: Flavour) -> Machine {
    let options = MachineOptions {
        flavour,
        mirror: false,
        cri_lapwing: false,
        ..MachineOptions::lapwing(site.whole_settings().with("containerd", "verify_rate = \"1GiB\""))
    };
    Machine::start(&site.network, name, &site.registry, options).unwrap()
}

fn pull_plainly(machine: &Machine, namespace: &str, reference: &str) {
    let mut ctr = machine.containerd.ctr().unwrap();
    ctr.args(["--namespace", namespace, "images", "pull", "--snapshotter", "overlayfs", "--hosts-dir"]);
    check(ctr.arg(machine.containerd.hosts_dir()).arg(reference)).unwrap();
}

/// Puts a blob into containerd that no registry has; its digest.
fn build(machine: &Machine, namespace: &str) -> String {
    let file = machine.host.path("built");
    std::fs::write(&file, b"built here, and not for others").unwrap();
    let mut ctr = machine.containerd.ctr().unwrap();
    ctr.args(["--namespace", namespace, "content", "ingest", "built"]);
    let mut fed = std::process::Command::new("sh");
    fed.args(["-c", "exec \"$@\" <\"$0\""]).arg(&file).arg(ctr.get_program()).args(ctr.get_args());
    check(&mut fed).unwrap();
    let mut ctr = machine.containerd.ctr().unwrap();
    let held = check(ctr.args(["--namespace", namespace, "content", "ls", "--quiet"])).unwrap();
    let digest = format!("{}", lapwing_p2p::digest::Digest::of(b"built here, and not for others"));
    assert!(held.contains(&digest), "{held}");
    digest
}

/// The image's record, and what only it kept.
fn remove_image(machine: &Machine, namespace: &str, reference: &str) {
    let mut ctr = machine.containerd.ctr().unwrap();
    check(ctr.args(["--namespace", namespace, "images", "rm", "--sync", reference])).unwrap();
}

/// How many nodes the tracker names as having all of a blob.
fn holders(site: &Site, digest: &str) -> usize {
    let answer = site.tracker.admin(&format!("/api/v1/holders/{digest}")).unwrap();
    let groups: Value = serde_json::from_str(&answer.text()).unwrap();
    groups.as_array().unwrap().iter().map(|group| group["complete"].as_u64().unwrap() as usize).sum()
}

fn blobs(image: &Layout) -> impl Iterator<Item = &image::Blob> {
    image.layers.iter().chain([&image.config, &image.manifest])
}

fn wait_held(site: &Site, image: &Layout, nodes: usize) {
    for blob in blobs(image) {
        let what = format!("{nodes} nodes to hold {}", blob.digest);
        wait::until_true(&what, DEADLINE, || holders(site, &blob.digest) == nodes).unwrap();
    }
}

/// Pulls through the machine's mirror: nothing but the right to it is asked of the registry, and all of it is the image's.
fn comes_from_peers(site: &Site, machine: &Machine, reference: &str, image: &Noise) {
    let from_peers = || node(machine).piece_bytes("peer").unwrap();
    let (sent, before) = (site.registry.sent_bytes().unwrap(), from_peers());
    machine.containerd.pull(reference, "overlayfs").unwrap();
    let sent = site.registry.sent_bytes().unwrap() - sent;
    assert!(sent < ALMOST_NOTHING_BYTES, "the registry sent {sent} bytes");
    assert_eq!(node(machine).piece_bytes("origin").unwrap(), 0);
    let size: u64 = image.layout.layers.iter().map(|layer| layer.size).sum();
    let came = from_peers() - before;
    assert!(came >= size, "{came} of {size} bytes came from peers");
    let output = machine.containerd.run(reference, "overlayfs", "main", &[]).unwrap();
    assert_eq!(output, image.sums);
}

/// Descriptors of the node that keep files of containerd's from giving their space back.
fn open_and_deleted(machine: &mut Machine) -> usize {
    let pid = machine.lapwing.as_mut().unwrap().process().pid();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let files = files.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let files = files.map(|file| file.to_string_lossy().into_owned());
    files.filter(|file| file.contains("io.containerd.content") && file.ends_with("(deleted)")).count()
}

fn listed_in_containerd(machine: &Machine) -> usize {
    let state = machine.host.check(lapwing_binary().unwrap(), &["ls", "--json"]).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    state["blobs"].as_array().unwrap().iter().filter(|blob| blob["in_containerd"] == true).count()
}

#[test]
fn what_containerd_holds_is_there_for_all_and_goes_with_it() {
    const NAME: &str = "what_containerd_holds_is_there_for_all_and_goes_with_it";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let images: Vec<Noise> = [31, 32, 33].map(|seed| image::noise(seed, &[3, 2]).unwrap()).into();
    let push = |image: &Noise, name: &str| site.registry.push(&image.layout, &format!("lab/{name}:1")).unwrap();
    let names = [push(&images[0], "before"), push(&images[1], "while"), push(&images[2], "after")];
    let mut holder = bystander(&site, "holder", Flavour::V2);
    let puller = site.worker("puller", None, site.whole_settings()).unwrap();

    // Pulled before the node starts, and while it runs, in another namespace.
    holder.lapwing.as_mut().unwrap().stop().unwrap();
    pull_plainly(&holder, "default", &names[0]);
    holder.lapwing.as_mut().unwrap().restart().unwrap();
    wait_held(&site, &images[0].layout, 1);
    comes_from_peers(&site, &puller, &names[0], &images[0]);
    let built = build(&holder, "other");
    pull_plainly(&holder, "other", &names[1]);
    wait_held(&site, &images[1].layout, 1);
    // The holder's own mirror serves it, too.
    let layer = &images[1].layout.layers[0];
    let served = node(&holder).mirror_blob(&site.registry.name(), "lab/while", &layer.digest).unwrap();
    assert_eq!((served.status, served.body.len() as u64), (200, layer.size));
    assert_eq!(node(&holder).piece_bytes("origin").unwrap(), 0);
    comes_from_peers(&site, &puller, &names[1], &images[1]);

    assert_eq!(holders(&site, &built), 0, "what no registry has is nobody else's");

    // Held where it is: the store has nothing but metainfo, and each byte was hashed once.
    let size = |image: &Noise| blobs(&image.layout).map(|blob| blob.size).sum::<u64>();
    let both = size(&images[0]) + size(&images[1]);
    assert!(metric(&holder, "lapwing_store_bytes") < 50_000);
    wait::until_true("the held bytes to be counted", DEADLINE, || metric(&holder, "lapwing_foreign_bytes") == both)
        .unwrap();
    let count = 2 * blobs(&images[0].layout).count();
    assert_eq!(metric(&holder, "lapwing_foreign_blobs") as usize, count);
    assert_eq!(listed_in_containerd(&holder), count);
    assert_eq!(metric(&holder, "lapwing_foreign_hashed_bytes_total"), both);
    // The puller's store has all but the manifests, which go through the mirror alone.
    wait_held(&site, &images[1].layout, 2);
    assert_eq!(metric(&puller, "lapwing_foreign_hashed_bytes_total"), manifest_bytes(&images[..2]));

    // containerd restarts under it, and pulls another one; nothing is hashed again, nor when the node restarts.
    holder.containerd.restart().unwrap();
    pull_plainly(&holder, "default", &names[2]);
    wait_held(&site, &images[2].layout, 1);
    let all = both + size(&images[2]);
    assert_eq!(metric(&holder, "lapwing_foreign_hashed_bytes_total"), all);
    holder.lapwing.as_mut().unwrap().stop().unwrap();
    for image in &images[..2] {
        // The puller has the layers in its store, and the manifest in its containerd.
        wait_held(&site, &image.layout, 1);
    }
    holder.lapwing.as_mut().unwrap().restart().unwrap();
    wait::until_true("all to be held again", DEADLINE, || metric(&holder, "lapwing_foreign_bytes") == all).unwrap();
    assert_eq!(metric(&holder, "lapwing_foreign_hashed_bytes_total"), 0);
    comes_from_peers(&site, &puller, &names[2], &images[2]);

    // Removed there, it is withdrawn, and its space is free; what the other namespace has stays.
    remove_image(&holder, "default", &names[0]);
    wait_held(&site, &images[0].layout, 1);
    wait::until_true("the space to be free", DEADLINE, || open_and_deleted(&mut holder) == 0).unwrap();
    wait_held(&site, &images[1].layout, 2);
    wait_held(&site, &images[2].layout, 2);
    remove_image(&holder, "other", &names[1]);
    wait_held(&site, &images[1].layout, 1);
    assert_eq!(listed_in_containerd(&holder), count / 2);
}

fn manifest_bytes(images: &[Noise]) -> u64 {
    images.iter().map(|image| image.layout.manifest.size).sum()
}

/// containerd 1.x says nothing of blobs, but of images.
#[test]
fn an_old_containerd_is_followed_by_its_images() {
    const NAME: &str = "an_old_containerd_is_followed_by_its_images";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let image = image::noise(34, &[2]).unwrap();
    let reference = site.registry.push(&image.layout, "lab/old:1").unwrap();
    let mut holder = bystander(&site, "holder", Flavour::Debian);
    pull_plainly(&holder, "default", &reference);
    // The same in two namespaces goes with the second.
    pull_plainly(&holder, "other", &reference);
    wait_held(&site, &image.layout, 1);
    let puller = site.worker("puller", None, site.whole_settings()).unwrap();
    comes_from_peers(&site, &puller, &reference, &image);
    wait_held(&site, &image.layout, 2);
    remove_image(&holder, "default", &reference);
    remove_image(&holder, "other", &reference);
    wait_held(&site, &image.layout, 1);
    wait::until_true("the space to be free", DEADLINE, || open_and_deleted(&mut holder) == 0).unwrap();
    assert_eq!(listed_in_containerd(&holder), 0);
}

/// A blob that came through the mirror is in containerd, too. When the store needs room, its own copy of that goes before older blobs that
/// are nowhere else; peers are served from containerd's, until that is removed.
#[test]
fn what_containerd_has_too_makes_way_first() {
    const NAME: &str = "what_containerd_has_too_makes_way_first";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let shapes: [(u64, &[usize]); 3] = [(35, &[3, 2]), (36, &[4]), (37, &[4])];
    let images = shapes.map(|(seed, layers)| image::noise(seed, layers).unwrap());
    let push = |at: usize| site.registry.push(&images[at].layout, &format!("lab/image{at}:1")).unwrap();
    let names = [push(0), push(1), push(2)];
    let settings = site.whole_settings().with("containerd", "verify_rate = \"1GiB\"");
    let mut holder = site.worker("holder", None, settings.with("store", "quota = \"14MiB\"")).unwrap();
    let layers = |at: usize| images[at].layout.layers.iter().map(|layer| layer.digest.clone());
    let wait_layers = |at: usize, nodes: usize| {
        for layer in layers(at) {
            wait::until_true("holders of a layer", DEADLINE, || holders(&site, &layer) == nodes).unwrap();
        }
    };

    // The oldest is in the store alone.
    holder.containerd.pull(&names[0], "overlayfs").unwrap();
    remove_image(&holder, "default", &names[0]);
    wait_layers(0, 1);
    holder.containerd.pull(&names[1], "overlayfs").unwrap();
    // What the node holds in containerd it holds after the listing.
    holder.lapwing.as_mut().unwrap().stop().unwrap();
    holder.lapwing.as_mut().unwrap().restart().unwrap();
    wait::until_true("containerd to be listed", DEADLINE, || metric(&holder, "lapwing_foreign_blobs") > 0).unwrap();
    let in_containerd = |layer: &str| {
        let state = holder.host.check(lapwing_binary().unwrap(), &["ls", "--json"]).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let blobs = state["blobs"].as_array().unwrap();
        blobs.iter().find(|blob| blob["digest"] == layer).is_some_and(|blob| blob["in_containerd"] == true)
    };
    assert!(layers(1).all(|layer| !in_containerd(&layer)), "the store has its own copy");

    // The third does not fit.
    holder.containerd.pull(&names[2], "overlayfs").unwrap();
    for layer in layers(1) {
        wait::until_true("the own copy to make way", DEADLINE, || in_containerd(&layer)).unwrap();
    }
    let evicted = metric(&holder, "lapwing_evicted_bytes_total");
    assert!(evicted >= 4 << 20, "{evicted} bytes");
    wait_layers(0, 1);
    wait_layers(1, 1);
    let puller = site.worker("puller", None, site.whole_settings()).unwrap();
    comes_from_peers(&site, &puller, &names[1], &images[1]);
    remove_image(&holder, "default", &names[1]);
    wait_layers(1, 1);
    assert!(layers(1).all(|layer| !in_containerd(&layer)));
    wait_layers(0, 1);
}

/// A worker whose CRI throws away the blob of each layer that it has unpacked.
fn discarding(site: &Site, name: &str) -> Machine {
    let host = site.network.host(name, None).unwrap();
    let settings = site.whole_settings().registry(&site.registry.name());
    let lapwing = Lapwing::start(&host, settings).unwrap();
    let (name, url) = (site.registry.name(), site.registry.url());
    let options = ContainerdOptions {
        snapshotter: Some(Lapwing::snapshotter(&host)),
        registries: vec![RegistryHosts { name, url, mirrors: vec![Lapwing::mirror_url()], headers: Vec::new() }],
        ..ContainerdOptions::default()
    };
    let file = Containerd::configure(&host, &options).unwrap();
    let mut config: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let plugins = config["plugins"].as_table_mut().unwrap();
    let images = plugins.entry("io.containerd.cri.v1.images").or_insert_with(|| toml::Table::new().into());
    images.as_table_mut().unwrap().insert("discard_unpacked_layers".into(), true.into());
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    Machine { containerd: Containerd::start_configured(&host, options).unwrap(), lapwing: Some(lapwing), host }
}

#[test]
fn what_cri_discards_once_it_is_unpacked_stays_with_the_node() {
    const NAME: &str = "what_cri_discards_once_it_is_unpacked_stays_with_the_node";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let image = image::noise(38, &[2, 1]).unwrap();
    let reference = site.registry.push(&image.layout, "lab/discarded:1").unwrap();
    let first = discarding(&site, "first");
    first.containerd.cri_pull(&reference).unwrap();
    let content = || {
        let mut ctr = first.containerd.ctr().unwrap();
        check(ctr.args(["--namespace", "k8s.io", "content", "ls", "--quiet"])).unwrap()
    };
    let discarded = || image.layout.layers.iter().all(|layer| !content().contains(&layer.digest));
    wait::until_true("containerd to discard the layers", DEADLINE, discarded).unwrap();
    assert!(content().contains(&image.layout.config.digest), "not all of the image");
    let second = site.worker("second", None, site.whole_settings()).unwrap();
    comes_from_peers(&site, &second, &reference, &image);
}
