//! Every client of containerd pulls through Lapwing: whole on the first node of a fresh cluster, lazily on the next.
//!
//! containerd, nerdctl and crictl run with the files of `contrib/`, so what a client needs to be told is what stands there.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::{
    Flavour, LapwingSettings, Machine, MachineOptions, Need, Site, check, image, lapwing_binary, require, wait,
};
use serde_json::Value;

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(90);
/// Far below the small image's size, above what manifests, configurations and chatter need.
const ALMOST_NOTHING_BYTES: u64 = 200_000;

/// Who pulls and runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Ctr,
    Nerdctl,
    Crictl,
    /// CRI without the transfer service.
    CrictlLocal,
    /// Of containerd 1.7.
    Ctr17,
    /// With containerd 1.7.
    Nerdctl17,
    /// With containerd 1.7.
    Crictl17,
    DebianCtr,
    DebianCrictl,
}

impl Client {
    fn options(self, cluster: &Cluster, snapshotter: &str) -> MachineOptions {
        let flavour = match self {
            Self::Ctr | Self::Nerdctl | Self::Crictl | Self::CrictlLocal => Flavour::V2,
            Self::Ctr17 | Self::Nerdctl17 | Self::Crictl17 => Flavour::V17,
            Self::DebianCtr | Self::DebianCrictl => Flavour::Debian,
        };
        MachineOptions {
            flavour,
            cri_lapwing: snapshotter == "lapwing",
            cri_local_pull: self == Self::CrictlLocal,
            pause: Some(cluster.pause.clone()),
            ..MachineOptions::lapwing(settings(&cluster.site))
        }
    }

    fn needs(self) -> Vec<Need> {
        let pinned_17 = matches!(self, Self::Ctr17 | Self::Nerdctl17 | Self::Crictl17);
        NEEDS.into_iter().chain(pinned_17.then_some(Need::Containerd17)).collect()
    }

    /// By containerd 2.x's own way of pulling, which asks Lapwing's differ.
    fn uses_the_transfer_service(self) -> bool {
        matches!(self, Self::Ctr | Self::Nerdctl | Self::Crictl)
    }

    fn namespace(self) -> &'static str {
        match self {
            Self::Crictl | Self::CrictlLocal | Self::Crictl17 | Self::DebianCrictl => "k8s.io",
            _ => "default",
        }
    }

    fn pull(self, on: &Machine, image: &str, snapshotter: &str) {
        match self {
            Self::Ctr | Self::Ctr17 | Self::DebianCtr => drop(on.containerd.pull(image, snapshotter).unwrap()),
            Self::Nerdctl | Self::Nerdctl17 => drop(nerdctl(on, snapshotter, &["pull", "--quiet", image])),
            Self::Crictl | Self::CrictlLocal | Self::Crictl17 | Self::DebianCrictl => {
                drop(on.containerd.cri_pull(image).unwrap());
            }
        }
    }

    fn run(self, on: &Machine, image: &str, snapshotter: &str) -> String {
        match self {
            Self::Ctr | Self::Ctr17 | Self::DebianCtr => on.containerd.run(image, snapshotter, "main", &[]).unwrap(),
            Self::Nerdctl | Self::Nerdctl17 => {
                nerdctl(on, snapshotter, &["run", "--rm", "--pull=never", "--net=none", image])
            }
            Self::Crictl | Self::CrictlLocal | Self::Crictl17 | Self::DebianCrictl => {
                let pod = on.containerd.cri_pod("one").unwrap();
                let container = on.containerd.cri_container("one", &pod, image, &[]).unwrap();
                let output = on.containerd.cri_output(&container, SOON).unwrap();
                on.containerd.cri_remove_pod(&pod).unwrap();
                output
            }
        }
    }
}

/// `lapwing` is the default of the shipped nerdctl.toml.
fn nerdctl(on: &Machine, snapshotter: &str, args: &[&str]) -> String {
    let mut command = on.containerd.nerdctl().unwrap();
    if snapshotter != "lapwing" {
        command.arg(format!("--snapshotter={snapshotter}"));
    }
    check(command.args(args)).unwrap()
}

/// The tests ask what is done, not how fast on a busy machine: a Prepare may wait longer than by default.
fn settings(site: &Site) -> LapwingSettings {
    site.settings().patient()
}

/// A registry with the small image, of which no node of the cluster knows anything yet.
struct Cluster {
    site: Site,
    image: String,
    pause: String,
}

impl Cluster {
    fn new(name: &str) -> Self {
        let site = Site::new(name, None).unwrap();
        let image = site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
        let pause = site.registry.push(&image::pause().unwrap(), "lab/pause:1").unwrap();
        Self { site, image, pause }
    }

    fn machine(&self, name: &str, options: MachineOptions) -> Machine {
        Machine::start(&self.site.network, name, &self.site.registry, options).unwrap()
    }

    /// A node that has pulled the image whole and published its indexes.
    fn seeded(&self) -> Machine {
        let machine = self.machine("seed", MachineOptions::lapwing(settings(&self.site)));
        machine.containerd.pull(&self.image, "overlayfs").unwrap();
        wait_for_indexes(&machine);
        machine
    }

    /// What the registry sent while `work` was done.
    fn sent_during(&self, work: impl FnOnce()) -> u64 {
        let before = self.site.registry.sent_bytes().unwrap();
        work();
        self.site.registry.sent_bytes().unwrap() - before
    }
}

/// Both layers of the image are indexed by this node, and the tracker knows.
fn wait_for_indexes(machine: &Machine) {
    let node = machine.lapwing.as_ref().unwrap();
    let layers = image::small().unwrap().layers;
    wait::until_true("both layers to be indexed", SOON, || {
        let log = node.log().unwrap();
        let built = |digest: &str| log.lines().any(|line| line.contains("built the index") && line.contains(digest));
        layers.iter().all(|layer| built(&layer.digest))
    })
    .unwrap();
}

fn metric(machine: &Machine, name: &str, labels: &str) -> f64 {
    machine.lapwing.as_ref().unwrap().metric(name, labels).unwrap()
}

fn claimed(machine: &Machine) -> f64 {
    metric(machine, "lapwing_snapshot_layers_claimed_total", "")
}

/// How many of the image's layers are in containerd's content store.
fn layers_in_content_store(machine: &Machine, namespace: &str) -> usize {
    let mut command = machine.containerd.ctr().unwrap();
    let held = check(command.args(["--namespace", namespace, "content", "ls", "--quiet"])).unwrap();
    image::small().unwrap().layers.iter().filter(|layer| held.contains(&layer.digest)).count()
}

/// The image's layers as `lapwing ls --json` shows them: state and reason.
fn listed_layers(machine: &Machine) -> Vec<(String, String)> {
    let binary = lapwing_binary().unwrap();
    let state: Value = serde_json::from_str(&machine.host.check(binary, &["ls", "--json"]).unwrap()).unwrap();
    let layers = image::small().unwrap().layers;
    let ours = state["layers"].as_array().unwrap().iter();
    let ours = ours.filter(|shown| layers.iter().any(|layer| shown["digest"] == layer.digest.as_str()));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    ours.map(|layer| (text(&layer["state"]), text(&layer["reason"]))).collect()
}

/// The image's layers are fetched whole, through the mirror and into the content store, and its container runs.
fn pulls_whole(cluster: &Cluster, machine: &Machine, client: Client, snapshotter: &str) {
    let size: u64 = image::small().unwrap().layers.iter().map(|layer| layer.size).sum();
    let sent = cluster.sent_during(|| client.pull(machine, &cluster.image, snapshotter));
    assert!(sent >= size && sent < size * 6 / 5, "{sent} bytes were sent for layers of {size}");
    let through_the_mirror = metric(machine, "lapwing_mirror_bytes_total", "");
    assert!(through_the_mirror >= size as f64, "{through_the_mirror} of {size} bytes went through the mirror");
    assert_eq!(layers_in_content_store(machine, client.namespace()), 2);
    assert_eq!(client.run(machine, &cluster.image, snapshotter).trim(), image::SMALL_OUTPUT);
}

/// No layer is fetched: both are claimed, and the container runs.
fn pulls_lazily(cluster: &Cluster, machine: &Machine, client: Client) {
    let sent = cluster.sent_during(|| {
        client.pull(machine, &cluster.image, "lapwing");
        assert_eq!(claimed(machine), 2.0, "both layers are lazy");
    });
    assert_eq!(layers_in_content_store(machine, client.namespace()), 0);
    assert!(sent < ALMOST_NOTHING_BYTES, "the registry sent {sent} bytes");
    assert_eq!(client.run(machine, &cluster.image, "lapwing").trim(), image::SMALL_OUTPUT);
    let states = listed_layers(machine);
    assert!(states.len() == 2 && states.iter().all(|(state, _)| state == "pending"), "{states:?}");
}

/// On a fresh cluster the first node pulls with overlayfs, the second lazily.
fn overlayfs_then_lazy(name: &str, client: Client) {
    if !require(name, &client.needs()) {
        return;
    }
    let cluster = Cluster::new(name);
    let first = cluster.machine("first", client.options(&cluster, "overlayfs"));
    pulls_whole(&cluster, &first, client, "overlayfs");
    assert_eq!(claimed(&first), 0.0);
    wait_for_indexes(&first);
    let second = cluster.machine("second", client.options(&cluster, "lapwing"));
    pulls_lazily(&cluster, &second, client);
}

/// On a fresh cluster the first node pulls with Lapwing's snapshotter: nobody has an index, so the layers are fetched, and then mounted as
/// they are or unpacked, whatever the client's way is. The second pulls lazily.
fn fallback_then_lazy(name: &str, client: Client) {
    if !require(name, &client.needs()) {
        return;
    }
    let cluster = Cluster::new(name);
    let first = cluster.machine("first", client.options(&cluster, "lapwing"));
    pulls_whole(&cluster, &first, client, "lapwing");
    let fallbacks = metric(&first, "lapwing_snapshot_fallbacks_total", "reason=\"no_index\"");
    assert!(fallbacks >= 1.0, "{fallbacks} fallbacks were counted");
    wait_for_indexes(&first);
    // The log's reason, and after the index was built what it means for the next pull.
    let log = first.lapwing.as_ref().unwrap().log().unwrap();
    assert!(log.contains("reason=\"no_index\""), "the fallback is logged");
    let states = listed_layers(&first);
    let adopted = metric(&first, "lapwing_snapshot_layers_adopted_total", "");
    if client.uses_the_transfer_service() {
        // The second may have been indexed when its Prepare came.
        assert!(adopted >= 1.0, "no layer was mounted in the place of being unpacked");
        // All of both is here: what made their indexes wrote their tars.
        assert!(states.len() == 2 && states.iter().all(|(state, _)| state == "proved"), "{states:?}");
    } else {
        let pulled_whole = |(state, why): &(String, String)| state == "whole" && why.starts_with("pulled before");
        assert!(adopted == 0.0 && states.iter().any(pulled_whole), "{adopted} adopted, {states:?}");
    }
    let second = cluster.machine("second", client.options(&cluster, "lapwing"));
    pulls_lazily(&cluster, &second, client);
}

#[test]
fn ctr_pulls_by_overlayfs_then_lazily() {
    overlayfs_then_lazy("ctr_pulls_by_overlayfs_then_lazily", Client::Ctr);
}

#[test]
fn ctr_falls_back_then_pulls_lazily() {
    fallback_then_lazy("ctr_falls_back_then_pulls_lazily", Client::Ctr);
}

#[test]
fn nerdctl_pulls_by_overlayfs_then_lazily() {
    overlayfs_then_lazy("nerdctl_pulls_by_overlayfs_then_lazily", Client::Nerdctl);
}

#[test]
fn nerdctl_falls_back_then_pulls_lazily() {
    fallback_then_lazy("nerdctl_falls_back_then_pulls_lazily", Client::Nerdctl);
}

#[test]
fn crictl_pulls_by_overlayfs_then_lazily() {
    overlayfs_then_lazy("crictl_pulls_by_overlayfs_then_lazily", Client::Crictl);
}

#[test]
fn crictl_falls_back_then_pulls_lazily() {
    fallback_then_lazy("crictl_falls_back_then_pulls_lazily", Client::Crictl);
}

#[test]
fn cri_without_the_transfer_service_pulls_by_overlayfs_then_lazily() {
    overlayfs_then_lazy("cri_without_the_transfer_service_pulls_by_overlayfs_then_lazily", Client::CrictlLocal);
}

#[test]
fn cri_without_the_transfer_service_falls_back_then_pulls_lazily() {
    fallback_then_lazy("cri_without_the_transfer_service_falls_back_then_pulls_lazily", Client::CrictlLocal);
}

#[test]
fn nerdctl_with_containerd_17_pulls_by_overlayfs_then_lazily() {
    overlayfs_then_lazy("nerdctl_with_containerd_17_pulls_by_overlayfs_then_lazily", Client::Nerdctl17);
}

#[test]
fn nerdctl_with_containerd_17_falls_back_then_pulls_lazily() {
    fallback_then_lazy("nerdctl_with_containerd_17_falls_back_then_pulls_lazily", Client::Nerdctl17);
}

#[test]
fn crictl_with_containerd_17_pulls_by_overlayfs_then_lazily() {
    overlayfs_then_lazy("crictl_with_containerd_17_pulls_by_overlayfs_then_lazily", Client::Crictl17);
}

#[test]
fn crictl_with_containerd_17_falls_back_then_pulls_lazily() {
    fallback_then_lazy("crictl_with_containerd_17_falls_back_then_pulls_lazily", Client::Crictl17);
}

#[test]
fn ctr_of_containerd_17_pulls_whole() {
    pulls_whole_twice("ctr_of_containerd_17_pulls_whole", Client::Ctr17);
}

#[test]
fn debian_crictl_pulls_by_overlayfs_then_lazily() {
    overlayfs_then_lazy("debian_crictl_pulls_by_overlayfs_then_lazily", Client::DebianCrictl);
}

#[test]
fn debian_crictl_falls_back_then_pulls_lazily() {
    fallback_then_lazy("debian_crictl_falls_back_then_pulls_lazily", Client::DebianCrictl);
}

/// `ctr` of containerd 1.x unpacks by itself and never says which layer a snapshot is for: it pulls whole even where the indexes are there.
#[test]
fn debian_ctr_pulls_whole() {
    pulls_whole_twice("debian_ctr_pulls_whole", Client::DebianCtr);
}

/// Whole on the second node, too, but from the first.
fn pulls_whole_twice(name: &str, client: Client) {
    if !require(name, &client.needs()) {
        return;
    }
    let cluster = Cluster::new(name);
    let first = cluster.machine("first", client.options(&cluster, "lapwing"));
    pulls_whole(&cluster, &first, client, "lapwing");
    wait_for_indexes(&first);
    let second = cluster.machine("second", client.options(&cluster, "lapwing"));
    let sent = cluster.sent_during(|| client.pull(&second, &cluster.image, "lapwing"));
    assert!(sent < ALMOST_NOTHING_BYTES, "the first node sends the layers, not the registry: {sent} bytes");
    assert_eq!((claimed(&second), layers_in_content_store(&second, "default")), (0.0, 2));
    assert_eq!(client.run(&second, &cluster.image, "lapwing").trim(), image::SMALL_OUTPUT);
}

/// `ctr image pull --local` of containerd 2.x is the same: no snapshot is asked for by its chain id.
#[test]
fn ctr_pulls_whole_without_the_transfer_service() {
    const NAME: &str = "ctr_pulls_whole_without_the_transfer_service";
    if !require(NAME, &NEEDS) {
        return;
    }
    let cluster = Cluster::new(NAME);
    let _seed = cluster.seeded();
    let second = cluster.machine("second", Client::Ctr.options(&cluster, "lapwing"));
    let mut command = second.containerd.ctr().unwrap();
    command.args(["images", "pull", "--local", "--snapshotter", "lapwing", "--hosts-dir"]);
    check(command.arg(second.containerd.hosts_dir()).arg(&cluster.image)).unwrap();
    assert_eq!((claimed(&second), layers_in_content_store(&second, "default")), (0.0, 2));
    assert_eq!(Client::Ctr.run(&second, &cluster.image, "lapwing").trim(), image::SMALL_OUTPUT);
}

/// Parts that are asked for at once share one copy from the registry, in whichever way the layers are shown afterwards.
#[test]
fn layers_that_containerd_fetches_in_parallel_parts_come_once() {
    const NAME: &str = "layers_that_containerd_fetches_in_parallel_parts_come_once";
    if !require(NAME, &NEEDS) {
        return;
    }
    let cluster = Cluster::new(NAME);
    let noise = image::noise(61, &[12, 2]).unwrap();
    let reference = cluster.site.registry.push(&noise.layout, "lab/parts:1").unwrap();
    let size: u64 = noise.layout.layers.iter().map(|layer| layer.size).sum();
    // Goes on serving.
    let mut first = None;
    for snapshotter in ["overlayfs", "lapwing"] {
        let options =
            MachineOptions { layer_fetch_buffer: Some(1 << 20), ..Client::Ctr.options(&cluster, snapshotter) };
        let machine = cluster.machine(snapshotter, options);
        let sent = cluster.sent_during(|| Client::Ctr.pull(&machine, &reference, snapshotter));
        let copies = if snapshotter == "overlayfs" { 1 } else { 0 };
        assert!(sent >= size * copies && sent < size * copies + size / 10, "{sent} bytes were sent for {size}");
        let output = machine.containerd.run(&reference, snapshotter, "sums", &[]).unwrap();
        assert_eq!(output.trim(), noise.sums.trim());
        if snapshotter == "overlayfs" {
            let parts = metric(&machine, "lapwing_mirror_answers_total", "kind=\"blob\",status=\"206\"");
            assert!(parts >= 12.0, "layers of 14 MiB came in {parts} parts");
            first = Some(machine);
        }
    }
    drop(first);
}

/// Where containerd does not say which layer a snapshot is of, the manifests that passed the mirror do.
#[test]
fn pulls_are_lazy_without_annotations() {
    const NAME: &str = "pulls_are_lazy_without_annotations";
    if !require(NAME, &NEEDS) {
        return;
    }
    let cluster = Cluster::new(NAME);
    let _seed = cluster.seeded();
    for (host, client) in [("ctr", Client::Ctr), ("local", Client::CrictlLocal), ("debian", Client::DebianCrictl)] {
        let options = MachineOptions { annotations: false, ..client.options(&cluster, "lapwing") };
        pulls_lazily(&cluster, &cluster.machine(host, options), client);
    }
}

/// Where no manifest passes the mirror, containerd's annotations say which layer a snapshot is of.
#[test]
fn pulls_are_lazy_without_the_mirror() {
    const NAME: &str = "pulls_are_lazy_without_the_mirror";
    if !require(NAME, &NEEDS) {
        return;
    }
    let cluster = Cluster::new(NAME);
    let _seed = cluster.seeded();
    for (host, client) in [("ctr", Client::Ctr), ("crictl", Client::Crictl), ("debian", Client::DebianCrictl)] {
        let options = MachineOptions { mirror: false, ..client.options(&cluster, "lapwing") };
        let machine = cluster.machine(host, options);
        pulls_lazily(&cluster, &machine, client);
        assert_eq!(metric(&machine, "lapwing_mirror_answers_total", ""), 0.0, "nobody asked the mirror");
    }
}

/// The shipped hosts.toml by itself, as `_default`: every request goes to the mirror, which knows the registry by `?ns=`.
#[test]
fn the_shipped_hosts_file_serves_every_registry() {
    const NAME: &str = "the_shipped_hosts_file_serves_every_registry";
    if !require(NAME, &NEEDS) {
        return;
    }
    let cluster = Cluster::new(NAME);
    let machine = cluster.machine("first", Client::Ctr.options(&cluster, "lapwing"));
    let hosts = machine.containerd.hosts_dir();
    std::fs::remove_dir_all(&hosts).unwrap();
    std::fs::create_dir_all(hosts.join("_default")).unwrap();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/containerd/hosts.toml");
    std::fs::copy(shipped, hosts.join("_default/hosts.toml")).unwrap();
    // The registry itself would be asked by https, which it does not speak: only the mirror can have answered.
    pulls_whole(&cluster, &machine, Client::Ctr, "lapwing");
}

/// What is mounted on this machine by Lapwing for layers: EROFS, one for each.
fn layer_mounts(machine: &Machine) -> Vec<String> {
    let mounts = machine.host.check("cat", &["/proc/mounts"]).unwrap();
    let of_layers = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("erofs"));
    of_layers.map(str::to_owned).collect()
}

/// containerd's garbage collection of a lazily pulled image removes its snapshots and mounts, and not before its container is gone.
#[test]
fn removing_a_lazy_image_removes_its_mounts() {
    const NAME: &str = "removing_a_lazy_image_removes_its_mounts";
    if !require(NAME, &NEEDS) {
        return;
    }
    let cluster = Cluster::new(NAME);
    let _seed = cluster.seeded();
    let machine = cluster.machine("second", Client::Ctr.options(&cluster, "lapwing"));
    let ctr = |args: &[&str]| check(machine.containerd.ctr().unwrap().args(args)).unwrap();
    let snapshots = || ctr(&["snapshots", "--snapshotter", "lapwing", "ls"]).lines().skip(1).count();
    machine.containerd.pull(&cluster.image, "lapwing").unwrap();
    assert_eq!((snapshots(), layer_mounts(&machine).len()), (2, 2));
    let mut command = machine.containerd.run_command(&["--detach"], &cluster.image, "lapwing", "long").unwrap();
    check(command.args(["/bin/sleep", "1000"])).unwrap();

    ctr(&["images", "rm", "--sync", &cluster.image]);
    assert_eq!(layer_mounts(&machine).len(), 2, "the container keeps its layers");
    // Another image comes and goes: what was kept of it is deleted, and nothing else.
    let root = machine.lapwing.as_ref().unwrap().root();
    let kept = || std::fs::read_dir(root.join("layers")).unwrap().count();
    machine.containerd.pull(&cluster.pause, "lapwing").unwrap();
    assert_eq!(kept(), 3);
    ctr(&["images", "rm", "--sync", &cluster.pause]);
    wait::until_true("what was kept of the other image to be deleted", SOON, || kept() < 3).unwrap();
    assert_eq!(kept(), 2, "the container keeps its layers");
    let read = ctr(&["tasks", "exec", "--exec-id", "read", "long", "/bin/sha256sum", "/odd/noise"]);
    assert!(read.contains("/odd/noise"), "{read}");

    ctr(&["tasks", "rm", "--force", "long"]);
    ctr(&["containers", "rm", "long"]);
    // An image removed in step with the collector: it collects everything that is garbage by then.
    machine.containerd.pull(&cluster.pause, "overlayfs").unwrap();
    ctr(&["images", "rm", "--sync", &cluster.pause]);
    wait::until_true("the layers to be unmounted", SOON, || layer_mounts(&machine).is_empty()).unwrap();
    assert_eq!(snapshots(), 0);
    let names = |directory: &str| {
        let entries = std::fs::read_dir(root.join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    let left = names("snapshots");
    assert!(left.iter().all(|name| name == "graph.redb"), "{left:?}");
    let ours: Vec<_> = image::small().unwrap().layers.iter().map(|layer| layer.digest.replace("sha256:", "")).collect();
    wait::until_true("what was kept of the layers to be deleted", SOON, || {
        names("layers").iter().all(|name| !ours.iter().any(|own| name == own.as_str()))
    })
    .unwrap();
}

/// `lapwing up` alone on its machine, with no tracker configured: the second pull of an image is lazy, from its own store.
#[test]
fn one_machine_by_itself_pulls_whole_then_lazily() {
    const NAME: &str = "one_machine_by_itself_pulls_whole_then_lazily";
    if !require(NAME, &NEEDS) {
        return;
    }
    let cluster = Cluster::new(NAME);
    let mut options = Client::Ctr.options(&cluster, "lapwing");
    let alone = LapwingSettings::up().with("lazy", "complete_after = \"0\"");
    options.lapwing = Some(alone.patient());
    let machine = cluster.machine("alone", options);
    pulls_whole(&cluster, &machine, Client::Ctr, "lapwing");
    wait_for_indexes(&machine);
    let before = claimed(&machine);
    check(machine.containerd.ctr().unwrap().args(["images", "rm", "--sync", &cluster.image])).unwrap();
    let sent = cluster.sent_during(|| Client::Ctr.pull(&machine, &cluster.image, "lapwing"));
    assert_eq!(claimed(&machine) - before, 2.0, "both layers are lazy");
    assert!(sent < ALMOST_NOTHING_BYTES, "the registry sent {sent} bytes");
    assert_eq!(Client::Ctr.run(&machine, &cluster.image, "lapwing").trim(), image::SMALL_OUTPUT);
}
