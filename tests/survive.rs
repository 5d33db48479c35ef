//! Containers on lazily mounted layers read on, and read right, whatever becomes of Lapwing's processes.
//!
//! `LAPWING_TEST_KILLS` says how often the node is killed under readers, and `LAPWING_TEST_IMAGES` how many images of twenty layers are
//! mounted meanwhile; `make test-long` takes twenty and five.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use lapwing_evidence::{Evidence, count};
use lapwing_lab::image::{self, Noise};
use lapwing_lab::{LapwingSettings, Need, check, lapwing_binary, require, wait};
use lapwing_snapshotter::fuse::{self, HolderProgram, holder};
use lapwing_snapshotter::lazy::{LazyMounts, MountError, Options};
use lapwing_snapshotter::mountpoint;

#[path = "survive/manager.rs"]
mod manager;
#[path = "survive/readers.rs"]
mod readers;
#[path = "survive/rig.rs"]
mod rig;

use manager::ServiceManager;
use readers::Readers;
use rig::{DEADLINE, NEEDS, Rig};

const LAYERS: usize = 20;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Layers mounted that way.
fn by(backend: &str) -> impl FnOnce(LapwingSettings) -> LapwingSettings {
    move |settings| settings.with("lazy", &format!("backend = {backend:?}"))
}

fn small() -> Vec<Noise> {
    vec![image::noise(30, &[2, 2]).unwrap()]
}

#[test]
fn readers_go_on_when_the_node_is_killed() {
    the_node_is_killed("readers_go_on_when_the_node_is_killed", "erofs");
}

#[test]
fn readers_go_on_when_the_node_is_killed_on_fuse_trees() {
    the_node_is_killed("readers_go_on_when_the_node_is_killed_on_fuse_trees", "fuse");
}

fn the_node_is_killed(test: &str, backend: &str) {
    if !require(test, &NEEDS) {
        return;
    }
    let images = (0..number("LAPWING_TEST_IMAGES", count(1, 5).into()))
        .map(|seed| image::noise(40 + seed, &[1; LAYERS]).unwrap());
    let mut rig = Rig::new(test, images.collect(), by(backend));
    rig.pull_and_run();
    let mounts = rig.mounts();
    assert_eq!(mounts.len(), rig.images.len() * LAYERS + 1, "a mount for each layer, and their data");
    let readers = Readers::start(&rig.roots());
    readers.wait_for_reads(2);
    let mut evidence = Evidence::new(11, "the node is killed under readers of lazy mounts");
    evidence.figure("mounts", mounts.len() as f64);
    let served = readers.bytes().0;
    evidence.served_before(served);
    let mut stalls = Vec::new();
    let mut handles = Vec::new();
    for _ in 0..number("LAPWING_TEST_KILLS", count(5, 20).into()) {
        readers.take_stall();
        rig.node().kill9().unwrap();
        evidence.fault("kill -9 of the node");
        rig.node().restart().unwrap();
        readers.wait_for_reads(5);
        let stall = readers.take_stall();
        stalls.push(stall);
        evidence.ended(stall, readers.failures().is_empty());
        assert_eq!(readers.failures(), Vec::<String>::new());
        handles.push(rig.node().process().descriptors());
    }
    evidence.served_after(readers.bytes().0 - served);
    evidence.served_wrong(readers.bytes().1);
    let (first, last) = (handles[0], *handles.last().unwrap());
    if last > first + 16 {
        evidence.leak(format!("the node has {last} descriptors after the last kill and had {first} after the first"));
    }
    // That they need the node at all, or all of this would show nothing.
    rig.node().kill9().unwrap();
    readers.wait_until_stuck();
    rig.node().restart().unwrap();
    readers.wait_for_reads(5);
    assert_eq!(readers.stop(), Vec::<String>::new());
    eprintln!("{test}: {} mounts, longest stall for each kill: {stalls:.2?}", mounts.len());
    rig.assert_containers_read_right();
    assert_eq!(rig.mounts(), mounts, "nothing was mounted or unmounted");
    let log = rig.node().log().unwrap();
    assert!(!log.contains("replacing a former mount"), "{log}");
    assert_eq!(log.matches("a descriptor holder keeps").count(), 1, "one holder all the time");
    rig.assert_new_container_runs("new");
}

#[test]
fn readers_go_on_through_an_upgrade_and_without_a_holder_but_not_without_both() {
    upgrade_and_no_holder("readers_go_on_through_an_upgrade_and_without_a_holder_but_not_without_both", "erofs");
}

#[test]
fn readers_go_on_through_an_upgrade_and_without_a_holder_but_not_without_both_on_fuse_trees() {
    upgrade_and_no_holder(
        "readers_go_on_through_an_upgrade_and_without_a_holder_but_not_without_both_on_fuse_trees",
        "fuse",
    );
}

fn upgrade_and_no_holder(test: &str, backend: &str) {
    if !require(test, &NEEDS) {
        return;
    }
    let mut rig = Rig::new(test, small(), by(backend));
    let program = rig.worker.host.dir().join("lapwing-program");
    std::fs::copy(lapwing_binary().unwrap(), &program).unwrap();
    let command = rig.node().command(&program);
    rig.node().restart_by(command).unwrap();
    rig.worker.containerd.wait_for_snapshotter().unwrap();
    rig.pull_and_run();
    let readers = Readers::start(&rig.roots());
    readers.wait_for_reads(2);
    let mut evidence = Evidence::new(11, "another program, and another holder, under readers of lazy mounts");
    let served = readers.bytes().0;
    evidence.served_before(served);

    // As a package manager does it: another file in the place of the one that runs.
    let fresh = program.with_extension("new");
    std::fs::copy(lapwing_binary().unwrap(), &fresh).unwrap();
    std::fs::rename(&fresh, &program).unwrap();
    rig.node().stop().unwrap();
    readers.wait_until_stuck();
    let command = rig.node().command(&program);
    rig.node().restart_by(command).unwrap();
    readers.wait_for_reads(5);
    assert_eq!(readers.failures(), Vec::<String>::new());

    evidence.fault("upgrade of the program");
    let first = rig.holder().unwrap();
    rig.kill_holder();
    evidence.fault("kill -9 of the holder");
    let replaced = |rig: &mut Rig| rig.holder().is_some_and(|holder| holder != first);
    wait::until_true("another holder", DEADLINE, || replaced(&mut rig)).unwrap();
    readers.wait_for_reads(5);
    rig.node().kill9().unwrap();
    evidence.fault("kill -9 of the node");
    readers.wait_until_stuck();
    // What is mounted is served also when nothing more is to be.
    let config = rig.node().config().to_owned();
    let enabled = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, enabled.replace("[lazy]", "[lazy]\nenabled = false")).unwrap();
    rig.node().restart().unwrap();
    readers.wait_for_reads(5);
    evidence.served_after(readers.bytes().0 - served);
    evidence.served_wrong(readers.bytes().1);
    assert_eq!(readers.stop(), Vec::<String>::new());
    rig.assert_containers_read_right();
    std::fs::write(&config, enabled).unwrap();

    let mounts = rig.mounts();
    rig.node().kill9().unwrap();
    rig.kill_holder();
    let readers = Readers::start(&rig.roots());
    wait::until_true("reads to fail", DEADLINE, || !readers.failures().is_empty()).unwrap();
    let failures = readers.stop();
    // EIO of EROFS; ENOTCONN or ECONNABORTED of FUSE.
    let expected: &[&str] = if backend == "erofs" { &["os error 5)"] } else { &["os error 107)", "os error 103)"] };
    let is_expected = |failure: &String| expected.iter().any(|error| failure.contains(error));
    assert!(failures.iter().all(is_expected), "{failures:?}");
    rig.node().restart().unwrap();
    let log = rig.node().log().unwrap();
    assert!(log.contains("nobody kept the lazy mounts of the former process"), "{log}");
    assert_eq!(rig.mounts(), mounts, "the same again, none twice");
    rig.assert_new_container_runs("new");
}

#[test]
fn a_restart_needs_no_registry_no_tracker_and_no_peer() {
    const NAME: &str = "a_restart_needs_no_registry_no_tracker_and_no_peer";
    if !require(NAME, &NEEDS) {
        return;
    }
    let mut rig = Rig::new("alone", small(), |settings| settings);
    rig.pull_and_run();
    rig.assert_containers_read_right();
    let readers = Readers::start(&rig.roots());
    rig.node().kill9().unwrap();
    rig.site.tracker.kill9().unwrap();
    rig.site.registry.process().kill9().unwrap();
    rig.seed.host.set_link(false).unwrap();
    readers.wait_until_stuck();
    rig.node().restart().unwrap();
    readers.wait_for_reads(5);
    assert_eq!(readers.stop(), Vec::<String>::new());
    rig.assert_new_container_runs("new");
    rig.assert_containers_read_right();

    // The index of one layer is damaged while no node runs: that layer fails, the others go on.
    let layers = rig.images[0].1.layout.layers.clone();
    rig.node().kill9().unwrap();
    let (_, hex) = layers[1].digest.split_once(':').unwrap();
    let index = rig.node().root().join("layers").join(hex).join("index");
    let mut bytes = std::fs::read(&index).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&index, bytes).unwrap();
    rig.node().restart().unwrap();
    let readers = Readers::start(&rig.roots());
    readers.wait_for_reads(8);
    let failures = readers.stop();
    assert!(!failures.is_empty());
    assert!(
        failures.iter().all(|failure| failure.starts_with("data/01-") && failure.contains("os error 5")),
        "{failures:?}"
    );
    let log = rig.node().log().unwrap();
    let told = log.lines().any(|line| line.contains("reads of it fail with EIO") && line.contains(hex));
    assert!(told, "{log}");
}

#[test]
fn systemd_keeps_the_mounts_without_a_holder() {
    const NAME: &str = "systemd_keeps_the_mounts_without_a_holder";
    if !require(NAME, &NEEDS) {
        return;
    }
    let mut rig = Rig::new("systemd", small(), |settings| settings.with("lazy", "holder = false"));
    let mut manager = ServiceManager::new(rig.worker.host.dir());
    let start = |rig: &mut Rig, manager: &ServiceManager| {
        let (config, program) = (rig.node().config().to_owned(), lapwing_binary().unwrap());
        let arguments = ["node".as_ref(), "--config".as_ref(), config.as_os_str()];
        let command = manager.command(rig.worker.host.command("/bin/sh"), &program, &arguments);
        rig.node().restart_by(command).unwrap();
    };
    rig.node().stop().unwrap();
    start(&mut rig, &manager);
    for _ in 0..2 {
        let message = manager.receive();
        assert!(message.contains("FDSTORE=1\n") && message.contains("FDPOLL=0"), "{message}");
    }
    let names: Vec<_> = manager.stored.keys().cloned().collect();
    assert!(names[0].starts_with("lapwing-fuse-") && names[1].starts_with("lapwing-record-"), "{names:?}");
    rig.pull_and_run();
    let readers = Readers::start(&rig.roots());
    readers.wait_for_reads(2);
    for stop in [true, false] {
        if stop {
            rig.node().stop().unwrap();
        } else {
            rig.node().kill9().unwrap();
        }
        readers.wait_until_stuck();
        start(&mut rig, &manager);
        readers.wait_for_reads(5);
        assert_eq!(readers.failures(), Vec::<String>::new());
        // It says so again, under the same names: systemd keeps what it has.
        manager.receive();
        manager.receive();
        assert_eq!(manager.stored.keys().cloned().collect::<Vec<_>>(), names);
    }
    assert_eq!(readers.stop(), Vec::<String>::new());
    assert_eq!(rig.holder(), None);

    // A descriptor whose mount is gone is given back.
    rig.remove_containers();
    rig.node().stop().unwrap();
    let config = rig.node().config().to_owned();
    let detach = ["detach".as_ref(), "--config".as_ref(), config.as_os_str()];
    check(rig.worker.host.command(lapwing_binary().unwrap()).args(detach)).unwrap();
    start(&mut rig, &manager);
    let said: Vec<String> = (0..4).map(|_| manager.receive()).collect();
    assert_eq!(said.iter().filter(|message| message.contains("FDSTOREREMOVE=1")).count(), 2, "{said:?}");
    assert!(names.iter().all(|name| said[..2].iter().any(|message| message.contains(name))), "{said:?}");
    rig.assert_new_container_runs("new");
}

#[test]
fn mounts_end_when_the_operator_says_so_and_nobody_uses_them() {
    the_operator_detaches("mounts_end_when_the_operator_says_so_and_nobody_uses_them", "erofs");
}

#[test]
fn mounts_end_when_the_operator_says_so_and_nobody_uses_them_on_fuse_trees() {
    the_operator_detaches("mounts_end_when_the_operator_says_so_and_nobody_uses_them_on_fuse_trees", "fuse");
}

fn the_operator_detaches(test: &str, backend: &str) {
    if !require(test, &NEEDS) {
        return;
    }
    let mut rig = Rig::new(test, small(), by(backend));
    rig.pull_and_run();
    let holder = rig.holder().unwrap();
    let config = rig.node().config().to_owned();
    let detach = |rig: &Rig| {
        let mut command = rig.worker.host.command(lapwing_binary().unwrap());
        lapwing_lab::output(command.arg("detach").arg("--config").arg(&config)).unwrap()
    };
    let refused = detach(&rig);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stop it first"), "{refused:?}");
    rig.assert_containers_read_right();

    rig.node().stop().unwrap();
    let used = detach(&rig);
    assert!(!used.status.success());
    assert!(String::from_utf8_lossy(&used.stdout).contains("containers still use"), "{used:?}");
    assert_eq!(rig.mounts(), Vec::<String>::new());
    assert_eq!(rig.holder(), Some(holder), "kept for the containers");

    // They can still be served.
    rig.node().restart().unwrap();
    rig.assert_containers_read_right();
    let log = rig.node().log().unwrap();
    assert!(log.contains("the FUSE mount was taken away under containers that use it"), "{log}");
    rig.remove_containers();
    rig.node().stop().unwrap();
    wait::until_true("the holder to end with the last mount", DEADLINE, || rig.holder().is_none()).unwrap();
    let idle = detach(&rig);
    assert!(idle.status.success(), "{idle:?}");
    rig.node().restart().unwrap();
    rig.assert_new_container_runs("new");
}

/// A version that does not know the format of what a later one left must not serve it, nor take it away.
#[tokio::test(flavor = "multi_thread")]
async fn mounts_of_an_unknown_version_are_left_alone() {
    if !require("mounts_of_an_unknown_version_are_left_alone", &[Need::Root, Need::Fuse, Need::Disk]) {
        return;
    }
    let lab = lapwing_lab::Lab::new("version").unwrap();
    let root = lab.dir().join("root");
    let data = root.join("data");
    std::fs::create_dir_all(&data).unwrap();
    let device = fuse::open_device().unwrap();
    fuse::mount_at(device.as_fd(), &data).unwrap();
    let record = lab.dir().join("record");
    std::fs::write(&record, [&b"LWFUSE\x63\0"[..], &[0; 32]].concat()).unwrap();
    let record = std::fs::File::open(&record).unwrap().into();
    let program = HolderProgram { program: lapwing_binary().unwrap(), arguments: vec!["hold-descriptors".to_owned()] };
    let mut child = holder::start(&root, &program, device.try_clone().unwrap(), record).unwrap().child.unwrap();

    let started = LazyMounts::start(&root, Options::default());
    let still_there = is_mount_point(&data);
    // First of all: nothing is left of this test, whatever it found.
    mountpoint::detach(&data).unwrap();
    drop(device);
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    let error = started.unwrap_err();
    assert!(matches!(error, MountError::Former { .. }), "{error}");
    assert!(error.to_string().contains("its format is 99") && error.to_string().contains("lapwing detach"), "{error}");
    assert!(still_there, "what is used is not taken away");
    assert!(ended.success(), "the holder ends with its mount: {ended}");
    LazyMounts::start(&root, Options::default()).unwrap().shutdown().await;
}

fn is_mount_point(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path))
}

/// What a holder costs: a few pages, however large the program is.
#[test]
fn a_holder_is_small_protected_and_no_longer_there_than_needed() {
    const NAME: &str = "a_holder_is_small_protected_and_no_longer_there_than_needed";
    if !require(NAME, &[Need::Root, Need::Fuse, Need::Erofs, Need::Disk]) {
        return;
    }
    let network = lapwing_lab::Lab::new("holder").unwrap().network().unwrap();
    let host = network.host("node", None).unwrap();
    let mut node = lapwing_lab::Lapwing::start(&host, LapwingSettings::up()).unwrap();
    let log = node.log().unwrap();
    let pid: u32 = log.split_once("while no node runs pid=").unwrap().1.lines().next().unwrap().parse().unwrap();
    let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    wait::until_true("the holder to be ready", Duration::from_secs(60), || status().contains("lapwing-holder"))
        .unwrap();
    let field = |name: &str| -> u64 {
        let status = status();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    };
    eprintln!("{NAME}: {} KiB resident, {} of them of its own", field("VmRSS"), field("RssAnon"));
    assert!(field("RssAnon") < 2048 && field("Threads") == 1, "{}", status());
    let session: Vec<u32> = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .unwrap()
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(1)
        .take(3)
        .map(|field| field.parse().unwrap())
        .collect();
    assert_eq!(session[2], pid, "a session of its own");

    // Nothing is mounted lazily: there is nothing to keep.
    node.stop().unwrap();
    let table = host.check("cat", &["/proc/self/mountinfo"]).unwrap();
    assert!(!table.contains(node.root().join("data").to_str().unwrap()), "{table}");
    let ended =
        || !std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| !status.contains("State:\tZ"));
    wait::until_true("the holder to end", Duration::from_secs(60), ended).unwrap();
}
