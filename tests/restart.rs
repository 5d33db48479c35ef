//! Ends and restarts, in the middle of the work: of nodes, of the tracker, of peers, and of containerd.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use lapwing_lab::image::{self, Noise};
use lapwing_lab::wait::{self, Poll};
use lapwing_lab::{Lapwing, Machine, Mbit, Need, Process, Site, check, require};
use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};

const NEEDS: [Need; 7] = Need::LAZY_PULLS;
const DEADLINE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// What may be fetched again besides pieces that were lost: manifest, config, transfers that were cut, headers.
const SLACK_BYTES: u64 = 2 * MIB;

/// Bytes of the pieces of a blob that are on disk for good, as its bitmap file says (`p2p::store`, "bitmap").
fn durable_bytes(node: &Lapwing, digest: &str, length: u64) -> u64 {
    const HEADER: usize = 48;
    let Ok(bitmap) = std::fs::read(node.blob_dir(digest).join("pieces")) else { return 0 };
    let layout = PieceLayout::new(length).unwrap();
    let have = Bitfield::from_bytes(layout.piece_count(), &bitmap[HEADER..bitmap.len() - 4]).unwrap();
    let held = (0..layout.piece_count()).map(PieceIndex).filter(|&piece| have.get(piece));
    held.map(|piece| layout.range(piece)).map(|range| range.end - range.start).sum()
}

/// Runs the image's own command, which hashes all that is in it.
fn assert_content_right(machine: &Machine, reference: &str, container: &str, image: &Noise) {
    let output = machine.containerd.run(reference, "lapwing", container, &[]).unwrap();
    assert_eq!(output, image.sums, "{container}");
}

fn node(machine: &mut Machine) -> &mut Lapwing {
    machine.lapwing.as_mut().unwrap()
}

fn pull_again(machine: &Machine, reference: &str) {
    wait::until("a second pull to succeed", DEADLINE, || {
        Ok(Poll::retry(machine.containerd.pull(reference, "lapwing")))
    })
    .unwrap();
}

fn wait_indexed(machine: &Machine, layers: usize) {
    let node = machine.lapwing.as_ref().unwrap();
    wait::until_true("the layers to be indexed", DEADLINE, || {
        node.log().unwrap().matches("built the index of a layer").count() >= layers
    })
    .unwrap();
}

/// The mount points under `root` and how often something is mounted there, as the host sees them.
fn mounts_under(machine: &Machine, root: &Path) -> BTreeMap<String, usize> {
    let table = machine.host.check("cat", &["/proc/self/mountinfo"]).unwrap();
    let mut found = BTreeMap::new();
    for point in table.lines().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(point).starts_with(root) {
            *found.entry(point.to_owned()).or_default() += 1;
        }
    }
    found
}

#[track_caller]
fn assert_nothing_twice(machine: &Machine) {
    let root = machine.lapwing.as_ref().unwrap().root();
    let twice: Vec<_> = mounts_under(machine, &root).into_iter().filter(|(_, times)| *times > 1).collect();
    assert!(twice.is_empty(), "mounted more than once: {twice:?}");
}

#[test]
fn a_killed_node_goes_on_with_the_pieces_it_had() {
    if !require("a_killed_node_goes_on_with_the_pieces_it_had", &NEEDS) {
        return;
    }
    let image = image::noise(1, &[32]).unwrap();
    let layer = &image.layout.layers[0];
    let site = Site::new("killed-node", Some(Mbit(40))).unwrap();
    let reference = site.registry.push(&image.layout, "noise:1").unwrap();
    let mut worker = site.worker("worker", None, site.settings()).unwrap();

    let mut pull = worker.containerd.start_pull(&reference, "lapwing").unwrap();
    wait::until_true("a quarter of the layer to be on disk for good", DEADLINE, || {
        durable_bytes(node(&mut worker), &layer.digest, layer.size) > layer.size / 4
    })
    .unwrap();
    // Both, so that containerd does not go on with the registry by itself, past the node.
    pull.kill9().unwrap();
    node(&mut worker).kill9().unwrap();
    let kept = durable_bytes(node(&mut worker), &layer.digest, layer.size);
    assert!(kept < layer.size * 9 / 10, "killed too late to show anything: {kept} of {} bytes", layer.size);
    let sent = site.registry.sent_bytes().unwrap();

    node(&mut worker).restart().unwrap();
    pull_again(&worker, &reference);
    assert_content_right(&worker, &reference, "after", &image);
    let missing = layer.size - kept;
    let fetched = node(&mut worker).piece_bytes("origin").unwrap();
    assert!(fetched <= missing + SLACK_BYTES, "{fetched} bytes fetched again, {missing} were missing");
    let sent = site.registry.sent_bytes().unwrap() - sent;
    assert!(sent <= missing * 11 / 10 + SLACK_BYTES, "registry sent {sent} bytes, {missing} were missing");
}

#[test]
fn a_pull_outlives_its_node() {
    if !require("a_pull_outlives_its_node", &NEEDS) {
        return;
    }
    let image = image::noise(2, &[8, 8]).unwrap();
    let site = Site::new("outlived-node", Some(Mbit(40))).unwrap();
    let reference = site.registry.push(&image.layout, "noise:2").unwrap();
    let mut worker = site.worker("worker", None, site.settings()).unwrap();
    let mut pull = worker.containerd.start_pull(&reference, "lapwing").unwrap();
    wait::until_true("the pull to be in the middle", DEADLINE, || {
        node(&mut worker).piece_bytes("origin").unwrap() > 4 * MIB
    })
    .unwrap();
    node(&mut worker).kill9().unwrap();
    node(&mut worker).restart().unwrap();
    // containerd goes on with the registry itself where the node broke off; what it asked of the snapshotter in that moment may fail.
    if !pull.wait(DEADLINE).unwrap().success() {
        pull_again(&worker, &reference);
    }
    assert_content_right(&worker, &reference, "after", &image);
    assert_nothing_twice(&worker);
}

/// A connection that the mirror cuts is taken up at the registry where it broke off, not begun anew; the mirror's port refuses from then on.
#[test]
fn a_pull_that_is_cut_is_resumed_at_the_registry() {
    if !require("a_pull_that_is_cut_is_resumed_at_the_registry", &NEEDS) {
        return;
    }
    let image = image::noise(2, &[8, 8]).unwrap();
    let size: u64 = image.layout.layers.iter().map(|layer| layer.size).sum();
    let site = Site::new("cut-pull", Some(Mbit(40))).unwrap();
    let reference = site.registry.push(&image.layout, "noise:2").unwrap();
    let before = site.registry.sent_bytes().unwrap();
    let mut worker = site.worker("worker", None, site.settings()).unwrap();
    let mut pull = worker.containerd.start_pull(&reference, "overlayfs").unwrap();
    wait::until_true("the pull to be in the middle", DEADLINE, || {
        node(&mut worker).metric("lapwing_mirror_bytes_total", "").unwrap() > 6.0 * MIB as f64
    })
    .unwrap();
    node(&mut worker).kill9().unwrap();
    assert!(pull.wait(DEADLINE).unwrap().success());
    let sent = site.registry.sent_bytes().unwrap() - before;
    // What the node had fetched and not given yet is fetched again.
    assert!(sent < size * 3 / 2, "{sent} bytes were sent for {size}");
    assert_eq!(worker.containerd.run(&reference, "overlayfs", "after", &[]).unwrap(), image.sums);
}

#[test]
fn pulls_go_on_without_the_tracker_and_a_new_one_learns_all() {
    if !require("pulls_go_on_without_the_tracker_and_a_new_one_learns_all", &NEEDS) {
        return;
    }
    let image = image::noise(3, &[24]).unwrap();
    let layer = &image.layout.layers[0];
    let mut site = Site::new("tracker", Some(Mbit(60))).unwrap();
    let reference = site.registry.push(&image.layout, "noise:3").unwrap();
    let mut first = site.worker("first", None, site.settings()).unwrap();
    let mut second = site.worker("second", None, site.settings()).unwrap();
    let mut pulls = [&first, &second].map(|worker| worker.containerd.start_pull(&reference, "lapwing").unwrap());
    wait::until_true("the pulls to be in the middle", DEADLINE, || {
        node(&mut first).piece_bytes("origin").unwrap() > 3 * MIB
            && node(&mut second).piece_bytes("origin").unwrap() > 3 * MIB
    })
    .unwrap();
    site.tracker.kill9().unwrap();
    for pull in &mut pulls {
        let status = pull.wait(DEADLINE).unwrap();
        assert!(status.success(), "{status}: {}", pull.log_tail());
    }
    assert_content_right(&first, &reference, "first", &image);
    assert_content_right(&second, &reference, "second", &image);

    site.tracker.restart().unwrap();
    wait::until_true("both nodes to tell the new tracker what they have", DEADLINE, || {
        let (nodes, holders) = (tracked(&site, "nodes"), tracked(&site, "holders"));
        nodes == 2 && holders >= 4
    })
    .unwrap();
    let mut third = site.worker("third", None, site.whole_settings()).unwrap();
    third.containerd.pull(&reference, "lapwing").unwrap();
    assert_content_right(&third, &reference, "third", &image);
    let (peers, origin) =
        (node(&mut third).piece_bytes("peer").unwrap(), node(&mut third).piece_bytes("origin").unwrap());
    assert!(peers >= layer.size && origin < MIB, "{peers} bytes from peers, {origin} from the registry");
}

fn tracked(site: &Site, what: &str) -> u64 {
    site.tracker.metric(&format!("lapwing_tracker_{what}"), "").unwrap() as u64
}

#[test]
fn a_pull_goes_on_when_its_peer_dies() {
    if !require("a_pull_goes_on_when_its_peer_dies", &NEEDS) {
        return;
    }
    let image = image::noise(4, &[24]).unwrap();
    let layer = &image.layout.layers[0];
    let site = Site::new("peer-dies", None).unwrap();
    let reference = site.registry.push(&image.layout, "noise:4").unwrap();
    let mut seed = site.worker("seed", None, site.settings()).unwrap();
    seed.containerd.pull(&reference, "lapwing").unwrap();
    wait_indexed(&seed, 1);
    seed.host.set_rate(Mbit(40)).unwrap();

    let mut worker = site.worker("worker", None, site.whole_settings()).unwrap();
    let mut pull = worker.containerd.start_pull(&reference, "lapwing").unwrap();
    wait::until_true("a quarter to have come from the peer", DEADLINE, || {
        node(&mut worker).piece_bytes("peer").unwrap() > layer.size / 4
    })
    .unwrap();
    node(&mut seed).kill9().unwrap();
    let status = pull.wait(DEADLINE).unwrap();
    assert!(status.success(), "{status}: {}", pull.log_tail());
    assert_content_right(&worker, &reference, "after", &image);
    let (peers, origin) =
        (node(&mut worker).piece_bytes("peer").unwrap(), node(&mut worker).piece_bytes("origin").unwrap());
    assert!(peers < layer.size, "the peer died too late to show anything");
    assert!(peers + origin <= layer.size + SLACK_BYTES, "{peers} bytes from the peer, {origin} from the registry");
}

/// What a node states of a layer outlives it for some minutes: whoever believes that does not wait for it, layer after layer.
#[test]
fn an_index_that_went_with_its_node_is_built_anew_at_once() {
    if !require("an_index_that_went_with_its_node_is_built_anew_at_once", &NEEDS) {
        return;
    }
    let image = image::noise(5, &[4, 3, 2]).unwrap();
    let site = Site::new("index-gone", None).unwrap();
    let reference = site.registry.push(&image.layout, "noise:5").unwrap();
    let mut seed = site.worker("seed", None, site.settings()).unwrap();
    let worker = site.worker("worker", None, site.settings()).unwrap();
    seed.containerd.pull(&reference, "lapwing").unwrap();
    wait_indexed(&seed, 3);
    node(&mut seed).kill9().unwrap();

    let mut pull = worker.containerd.start_pull(&reference, "lapwing").unwrap();
    // A read of nobody's bytes is given up after a minute; there are three layers.
    let status = pull.wait(Duration::from_secs(50)).unwrap();
    assert!(status.success(), "{status}: {}", pull.log_tail());
    wait_indexed(&worker, 3);
    assert_content_right(&worker, &reference, "after", &image);
}

/// A seed, and a worker on which all layers of the image are mounted lazily and a container of it idles.
fn lazy_worker(site: &Site, reference: &str, image: &Noise) -> (Machine, Machine) {
    let seed = site.worker("seed", None, site.settings()).unwrap();
    seed.containerd.pull(reference, "lapwing").unwrap();
    wait_indexed(&seed, image.layout.layers.len());
    let settings = site.settings().patient().with("lazy", "read_deadline = \"10s\"");
    let mut worker = site.worker("worker", None, settings).unwrap();
    worker.containerd.pull(reference, "lapwing").unwrap();
    let claimed = node(&mut worker).metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
    assert_eq!(claimed as usize, image.layout.layers.len(), "all layers are lazy");
    let mut command = worker.containerd.run_command(&["--detach"], reference, "lapwing", "idle").unwrap();
    check(command.args(["sleep", "600"])).unwrap();
    (seed, worker)
}

/// Begins to read a file in the container that was running before.
fn start_read(worker: &Machine, exec: &str, file: &str) -> Process {
    let mut command = worker.containerd.ctr().unwrap();
    command.args(["task", "exec", "--exec-id", exec, "idle", "sha256sum", file]);
    worker.host.spawn(exec, &mut command).unwrap()
}

#[track_caller]
fn assert_read_right(mut read: Process, file: &str, image: &Noise) {
    let ended = read.wait(DEADLINE).unwrap();
    let right = image.sums.lines().find(|line| line.ends_with(file)).unwrap();
    assert!(ended.success() && read.log_tail().contains(right), "{ended}: {}", read.log_tail());
}

fn read_in_running_container(worker: &Machine, exec: &str, file: &str, image: &Noise) {
    assert_read_right(start_read(worker, exec, file), file, image);
}

#[test]
fn lazy_layers_stay_mounted_over_a_restart() {
    if !require("lazy_layers_stay_mounted_over_a_restart", &NEEDS) {
        return;
    }
    let image = image::noise(5, &[6, 6]).unwrap();
    let site = Site::new("lazy-restart", None).unwrap();
    let reference = site.registry.push(&image.layout, "noise:5").unwrap();
    let (_seed, mut worker) = lazy_worker(&site, &reference, &image);
    read_in_running_container(&worker, "before", "/data/00-000", &image);

    for (round, way) in ["SIGTERM", "SIGKILL"].into_iter().enumerate() {
        match way {
            "SIGTERM" => node(&mut worker).stop().unwrap(),
            _ => node(&mut worker).kill9().unwrap(),
        }
        let file = format!("/data/00-00{}", round + 1);
        let meanwhile = start_read(&worker, &format!("down{round}"), &file);
        node(&mut worker).restart().unwrap();
        assert_read_right(meanwhile, &file, &image);
        assert_nothing_twice(&worker);
        read_in_running_container(&worker, &format!("up{round}"), &format!("/data/01-00{round}"), &image);
        worker.containerd.wait_for_snapshotter().unwrap();
        // No pull: the snapshots are there, and a container of them starts.
        assert_content_right(&worker, &reference, &format!("new{round}"), &image);
        assert_nothing_twice(&worker);
    }
}

#[test]
fn containerd_restarts_under_lazy_layers() {
    if !require("containerd_restarts_under_lazy_layers", &NEEDS) {
        return;
    }
    let image = image::noise(5, &[6, 6]).unwrap();
    let site = Site::new("containerd", None).unwrap();
    let reference = site.registry.push(&image.layout, "noise:5").unwrap();
    let (_seed, mut worker) = lazy_worker(&site, &reference, &image);
    let root = node(&mut worker).root();
    let before = mounts_under(&worker, &root);
    worker.containerd.restart().unwrap();
    read_in_running_container(&worker, "again", "/data/01-000", &image);
    assert_content_right(&worker, &reference, "new", &image);
    assert_eq!(mounts_under(&worker, &root), before, "the same mounts as before the restart");
    pull_again(&worker, &reference);
    assert_eq!(mounts_under(&worker, &root), before, "a pull of what is there mounts nothing");
}

#[test]
fn lazy_reads_go_on_when_their_peer_vanishes() {
    if !require("lazy_reads_go_on_when_their_peer_vanishes", &NEEDS) {
        return;
    }
    let image = image::noise(5, &[6, 6]).unwrap();
    let site = Site::new("vanishes", None).unwrap();
    let reference = site.registry.push(&image.layout, "noise:5").unwrap();
    let (seed, mut worker) = lazy_worker(&site, &reference, &image);
    let before = node(&mut worker).piece_bytes("origin").unwrap();
    // No packet says that it is gone, and the tracker counts on it for a while.
    seed.host.set_link(false).unwrap();
    assert_content_right(&worker, &reference, "alone", &image);
    assert!(node(&mut worker).piece_bytes("origin").unwrap() > before, "the registry served instead");
}
