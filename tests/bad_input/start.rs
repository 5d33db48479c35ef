//! What keeps a daemon from starting: the configuration, addresses and files that are taken, places that do not do.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use lapwing_lab::{
    Host, Lapwing, LapwingSettings, Machine, MachineOptions, Need, image, lapwing_binary, require, wait,
};

use super::{NEEDS, PATIENCE, layer_bytes, logged, mirrored_bytes, network, registry, small};

/// Runs a daemon that must end by itself, and gives what it said.
fn refused(host: &Host, command: &str, config: &str) -> String {
    let file = host.dir().join("refused.toml");
    std::fs::write(&file, config).unwrap();
    let ended = host.run(
        "timeout",
        &["60", lapwing_binary().unwrap().to_str().unwrap(), command, "--config", file.to_str().unwrap()],
    );
    let ended = ended.unwrap();
    let error = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "lapwing {command} with\n{config}\nsaid:\n{error}");
    error
}

fn root(host: &Host) -> String {
    format!("root = {:?}\n", host.dir().join("lapwing"))
}

#[test]
fn a_daemon_with_a_bad_configuration_does_not_start() {
    if !require("a_daemon_with_a_bad_configuration_does_not_start", &[Need::Root, Need::Disk]) {
        return;
    }
    let host = network("config").host("w1", None).unwrap();
    for command in ["node", "tracker", "up"] {
        let error = refused(&host, command, "[mirror]\nlisten = \"127.0.0.1:7080\"\nlisten_too = \"127.0.0.1:1\"\n");
        assert!(error.contains("refused.toml:3: ") && error.contains("listen_too"), "{error}");
        assert!(error.contains("`lapwing config`"), "{error}");
        let error = refused(&host, command, "root = \"lapwing\"\n");
        assert!(error.contains("key root") && error.contains("absolute path"), "{error}");
        let error = refused(&host, command, "[log]\nlevel = \"lapwing=loudly\"\n");
        assert!(error.contains("key log.level") && error.contains("loudly"), "{error}");
    }
    assert!(!Path::new("lapwing").exists());
    let file = host.dir().join("file");
    std::fs::write(&file, "").unwrap();
    let error = refused(&host, "node", &format!("root = {:?}\n", file.join("below")));
    assert!(error.contains("key root") && error.contains(file.to_str().unwrap()), "{error}");
}

#[test]
fn a_taken_address_is_named_with_its_key() {
    if !require("a_taken_address_is_named_with_its_key", &[Need::Root, Need::Disk]) {
        return;
    }
    let host = network("taken").host("w1", None).unwrap();
    for (table, port) in [("mirror", 7080), ("peer", 7081), ("admin", 7082), ("tracker", 7070)] {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let taken = host.within(|| Ok(TcpListener::bind(address)?)).unwrap();
        let error = refused(&host, "up", &root(&host));
        assert!(error.contains(&format!("{table}.listen")) && error.contains(&address.to_string()), "{table}: {error}");
        assert!(error.contains("choose another address"), "{table}: {error}");
        drop(taken);
    }
}

/// A second node finds its socket or its store in use; the first one goes on undisturbed.
#[test]
fn what_a_running_node_uses_is_not_taken_from_it() {
    if !require("what_a_running_node_uses_is_not_taken_from_it", &[Need::Root, Need::Disk]) {
        return;
    }
    let host = network("second").host("w1", None).unwrap();
    let first = Lapwing::start(&host, LapwingSettings::node(&[])).unwrap();
    let elsewhere =
        "[mirror]\nlisten = \"127.0.0.1:0\"\n[peer]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n";
    let error = refused(&host, "node", &format!("root = {:?}\n{elsewhere}", host.dir().join("other")));
    assert!(error.contains("/run/lapwing/snapshotter.sock") && error.contains("another process"), "{error}");
    assert!(error.contains("choose another socket"), "{error}");
    let socket = "[snapshotter]\nsocket = \"/run/lapwing/other.sock\"\n";
    let error = refused(&host, "node", &format!("{}{elsewhere}{socket}", root(&host)));
    assert!(error.contains(host.dir().join("lapwing").to_str().unwrap()), "{error}");
    assert_eq!(first.admin("/readyz").unwrap().status, 200);
}

/// EROFS cannot lie on tmpfs. The node says so once; FUSE alone shows lazy layers, and where only EROFS may, containerd pulls whole.
#[test]
fn a_root_on_tmpfs_is_told_and_served() {
    if !require("a_root_on_tmpfs_is_told_and_served", &NEEDS) {
        return;
    }
    let network = network("tmpfs");
    let registry = registry(&network);
    let reference = small(&registry);
    let start = |name: &str, settings: LapwingSettings| {
        let host = network.host(name, None).unwrap();
        let root = host.dir().join("lapwing");
        std::fs::create_dir(&root).unwrap();
        host.check("mount", &["-t", "tmpfs", "-o", "size=200m,mode=700", "lab", root.to_str().unwrap()]).unwrap();
        let settings = settings.with("store", "free_floor = \"16MiB\"");
        (Machine::start_on(&host, &registry, MachineOptions::lapwing(settings)).unwrap(), root)
    };
    let (machine, root) = start("w1", LapwingSettings::up().with("lazy", "backend = \"erofs\""));
    let node = machine.lapwing.as_ref().unwrap();
    logged(node, &["WARN", "layers cannot be mounted lazily here", root.to_str().unwrap(), "ext4"]);
    machine.containerd.pull(&reference, "lapwing").unwrap();
    let output = machine.containerd.run(&reference, "lapwing", "whole", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    assert!(mirrored_bytes(node) >= layer_bytes(&image::small().unwrap()), "the layers came through the mirror");
    let reasons = node.metric("lapwing_snapshot_fallbacks_total", "reason=\"unsupported\"").unwrap();
    assert!(reasons >= 1.0, "the fallback is counted");

    let layers = image::small().unwrap().layers.len();
    let indexed = || node.log().unwrap().matches("built the index of a layer").count() >= layers;
    wait::until_true("the layers to be indexed", PATIENCE, indexed).unwrap();
    let tracker = node.tracker_address();
    let (other, root) = start("w2", LapwingSettings::node(&[tracker]).patient());
    let node = other.lapwing.as_ref().unwrap();
    logged(node, &["WARN", "FUSE alone does", root.to_str().unwrap(), "ext4"]);
    other.containerd.pull(&reference, "lapwing").unwrap();
    assert_eq!(node.metric("lapwing_snapshot_layers_claimed_total", "").unwrap(), layers as f64);
    let output = other.containerd.run(&reference, "lapwing", "lazy", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
}
