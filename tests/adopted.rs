//! The first pull of an image that nobody has indexed: containerd fetches its layers and asks to unpack them, and they are mounted as they were fetched.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use lapwing_discovery::client::{ClientConfig, TrackerClient};
use lapwing_lab::{
    BASIC_PASSWORD, BASIC_USER, Containerd, ContainerdOptions, Host, Lapwing, LapwingSettings, Machine, Need,
    RegistryHosts, Site, TokenGate, check, image, lapwing_binary, require, tree, wait,
};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::StatementKind;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::node::{Node, NodeConfig, Security};
use lapwing_p2p::store::{ChunkStore, StoreConfig};
use serde_json::Value;
use tokio::sync::oneshot;

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(120);

fn metric(machine: &Machine, name: &str) -> f64 {
    machine.lapwing.as_ref().unwrap().metric(name, "").unwrap()
}

/// Layers mounted in the place of being unpacked, and layers of which the index was there when their turn came.
fn not_unpacked(machine: &Machine) -> (f64, f64) {
    (metric(machine, "lapwing_snapshot_layers_adopted_total"), metric(machine, "lapwing_snapshot_layers_claimed_total"))
}

/// The layers that `lapwing ls --json` shows in this state.
fn in_state(machine: &Machine, state: &str) -> usize {
    let shown = machine.host.check(lapwing_binary().unwrap(), &["ls", "--json"]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown["layers"].as_array().unwrap().iter().filter(|layer| layer["state"] == state).count()
}

fn settings(site: &Site, complete_after: &str) -> LapwingSettings {
    let settings = LapwingSettings::node(&[site.tracker.tracker_address()]);
    settings.with("lazy", &format!("complete_after = {complete_after:?}"))
}

/// Names below `<root>/layers` of this node.
fn kept_layers(machine: &Machine) -> usize {
    std::fs::read_dir(machine.lapwing.as_ref().unwrap().root().join("layers")).unwrap().count()
}

fn is_what_containerd_unpacks_and_outlives_everybody(name: &str, backend: &str) {
    if !require(name, &NEEDS) {
        return;
    }
    let mut site = Site::new(name, None).unwrap();
    let reference = site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let settings = settings(&site, "0").with("lazy", &format!("backend = {backend:?}"));
    let mut machine = site.worker("first", None, settings).unwrap();
    machine.containerd.pull(&reference, "lapwing").unwrap();
    let (adopted, claimed) = not_unpacked(&machine);
    assert!(adopted >= 1.0 && adopted + claimed == 2.0, "{adopted} adopted, {claimed} claimed");
    let root = machine.lapwing.as_ref().unwrap().root();
    let unpacked =
        machine.host.check("find", &[root.join("snapshots").to_str().unwrap(), "-xdev", "-type", "f"]).unwrap();
    assert!(unpacked.trim().ends_with("graph.redb"), "nothing is unpacked: {unpacked}");
    // Nothing completes layers later here: their tars came out of the pass that made their indexes.
    assert_eq!(in_state(&machine, "proved"), 2);

    machine.containerd.pull(&reference, "overlayfs").unwrap();
    let mut unpacked = machine.walk_image(&reference, "overlayfs").unwrap();
    // The registry is gone, and so is what the node had in memory: all is read from its own store.
    site.registry.process().kill9().unwrap();
    machine.lapwing.as_mut().unwrap().kill9().unwrap();
    machine.lapwing.as_mut().unwrap().restart().unwrap();
    machine.containerd.wait_for_snapshotter().unwrap();
    let output = machine.containerd.run(&reference, "lapwing", "main", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    let shown = machine.walk_image(&reference, "lapwing").unwrap();
    // No tar of the image names the root; unpacked it is as old as the unpacking.
    unpacked.get_mut(Path::new("")).unwrap().mtime = shown[Path::new("")].mtime;
    assert_eq!(tree::differences(&unpacked, &shown, 40), "", "left: overlayfs, right: as it was fetched");

    assert_eq!(kept_layers(&machine), 2);
    let mount = machine.host.dir().join("mount-lapwing");
    check(
        machine.containerd.ctr().unwrap().args(["images", "unmount", "--rm", "--snapshotter", "lapwing"]).arg(&mount),
    )
    .unwrap();
    check(machine.containerd.ctr().unwrap().args(["images", "rm", "--sync", &reference])).unwrap();
    wait::until_true("what was kept of the layers to be deleted", SOON, || kept_layers(&machine) == 0).unwrap();
}

#[test]
fn what_was_fetched_is_what_containerd_unpacks_and_outlives_node_and_registry() {
    const NAME: &str = "what_was_fetched_is_what_containerd_unpacks_and_outlives_node_and_registry";
    is_what_containerd_unpacks_and_outlives_everybody(NAME, "erofs");
}

#[test]
fn what_was_fetched_is_what_containerd_unpacks_on_fuse_trees() {
    const NAME: &str = "what_was_fetched_is_what_containerd_unpacks_on_fuse_trees";
    is_what_containerd_unpacks_and_outlives_everybody(NAME, "fuse");
}

/// Nodes that pull one image at once: the index of each layer is made by one of them, or by those that could not wait for it.
#[test]
fn nodes_that_start_together_unpack_nothing_and_prove_what_they_have() {
    const NAME: &str = "nodes_that_start_together_unpack_nothing_and_prove_what_they_have";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let reference = site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let settings = settings(&site, "1s");
    let machines: Vec<_> =
        ["one", "two", "three"].iter().map(|name| site.worker(name, None, settings.clone()).unwrap()).collect();
    let pulls: Vec<_> =
        machines.iter().map(|machine| machine.containerd.start_pull(&reference, "lapwing").unwrap()).collect();
    for mut pull in pulls {
        assert!(pull.wait(SOON).unwrap().success());
    }
    for machine in &machines {
        let (adopted, claimed) = not_unpacked(machine);
        assert_eq!(adopted + claimed, 2.0, "{adopted} adopted, {claimed} claimed");
        assert_eq!(machine.containerd.run(&reference, "lapwing", "main", &[]).unwrap().trim(), image::SMALL_OUTPUT);
        wait::until_true("both layers to be proved", SOON, || in_state(machine, "proved") == 2).unwrap();
    }
    // What was deleted, and came again, is proved again.
    let machine = &machines[0];
    check(machine.containerd.ctr().unwrap().args(["images", "rm", "--sync", &reference])).unwrap();
    wait::until_true("what was kept of the layers to be deleted", SOON, || kept_layers(machine) == 0).unwrap();
    machine.containerd.pull(&reference, "lapwing").unwrap();
    wait::until_true("both layers to be proved again", SOON, || in_state(machine, "proved") == 2).unwrap();
}

/// The node has no right to the image: what its client fetched is all that it needs.
#[test]
fn an_image_that_only_its_client_may_pull_is_mounted_as_it_was_fetched() {
    const NAME: &str = "an_image_that_only_its_client_may_pull_is_mounted_as_it_was_fetched";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    site.registry.push(&image::small().unwrap(), "lab/private:1").unwrap();
    let gate = TokenGate::start(&site.registry, Duration::from_secs(3600)).unwrap();
    let reference = format!("{}/lab/private:1", gate.name());
    let host = site.network.host("node", None).unwrap();
    let lapwing = Lapwing::start(&host, site.settings().registry(&gate.name())).unwrap();
    let (name, url) = (gate.name(), format!("http://{}", gate.name()));
    let options = ContainerdOptions {
        snapshotter: Some(Lapwing::snapshotter(&host)),
        registries: vec![RegistryHosts { name, url, mirrors: vec![Lapwing::mirror_url()], headers: Vec::new() }],
        ..ContainerdOptions::default()
    };
    let machine = Machine { containerd: Containerd::start(&host, options).unwrap(), lapwing: Some(lapwing), host };
    let mut command = machine.containerd.ctr().unwrap();
    command.args(["images", "pull", "--user", &format!("{BASIC_USER}:{BASIC_PASSWORD}"), "--snapshotter", "lapwing"]);
    check(command.arg("--hosts-dir").arg(machine.containerd.hosts_dir()).arg(&reference)).unwrap();
    assert_eq!(not_unpacked(&machine), (2.0, 0.0), "the node itself could not have claimed them");
    let output = machine.containerd.run(&reference, "lapwing", "main", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
}

/// A node, of this test's own, that states what it likes; it ends when this is dropped.
struct Liar(Option<(oneshot::Sender<()>, JoinHandle<anyhow::Result<()>>)>);

impl Liar {
    /// States `index` of the layer on `host`, until the tracker knows.
    fn start(host: &Host, tracker: String, layer: Digest, index: Vec<u8>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (told, stated) = std::sync::mpsc::channel();
        let host = host.clone();
        let state = async move |listen: SocketAddr, root: PathBuf| {
            let identity = Arc::new(Identity::generate()?);
            let settings =
                NodeConfig { security: Security::Plaintext, ..NodeConfig::new(listen, Arc::clone(&identity)) };
            let client = ClientConfig { piece_port: listen.port(), ..ClientConfig::new(vec![tracker], identity.id()) };
            let store = ChunkStore::open(&root, StoreConfig::default())?;
            let node = Node::start(settings, store, TrackerClient::new(client)?, Arc::default()).await?;
            node.publish(StatementKind::LayerIndex, layer, index.into()).await?;
            told.send(())?;
            let _ = stopped.await;
            node.shutdown().await;
            anyhow::Ok(())
        };
        let thread = std::thread::spawn(move || {
            let listen = SocketAddr::from((host.address(), 7081));
            host.within(|| tokio::runtime::Runtime::new()?.block_on(state(listen, host.dir().join("liar"))))
        });
        let liar = Self(Some((stop, thread)));
        stated.recv_timeout(SOON).unwrap();
        liar
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

/// Somebody in the swarm says of a layer that it is another: what is pulled whole is what the registry has all the same.
#[test]
fn an_index_that_lies_keeps_no_image_from_being_pulled() {
    const NAME: &str = "an_index_that_lies_keeps_no_image_from_being_pulled";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let layout = image::small().unwrap();
    let reference = site.registry.push(&layout, "lab/small:1").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("index");
    let mut command = std::process::Command::new(lapwing_binary().unwrap());
    check(command.args(["index", "build", "-o"]).arg(&path).arg(layout.blob_path(&layout.layers[0]))).unwrap();
    let mut index = std::fs::read(&path).unwrap();
    // The diffID begins there (`lapwing_snapshotter::index`).
    index[56] ^= 1;
    let layer: Digest = layout.layers[0].digest.parse().unwrap();
    let host = site.network.host("liar", None).unwrap();
    let _liar = Liar::start(&host, site.tracker.tracker_address(), layer, index);

    let machine = site.worker("honest", None, site.settings()).unwrap();
    machine.containerd.pull(&reference, "lapwing").unwrap();
    let node = machine.lapwing.as_ref().unwrap();
    let unpacked = node.metric("lapwing_snapshot_layers_unpacked_total", "reason=\"unproved\"").unwrap();
    assert_eq!(unpacked, 1.0, "the lie was found out by reading the layer");
    let output = machine.containerd.run(&reference, "lapwing", "main", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    assert_eq!(in_state(&machine, "quarantined"), 1);
}
