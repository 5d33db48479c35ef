//! Seeds: one of them fetches what nodes ask for, once, and what happens when it dies or comes back.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::{Duration, Instant};

use lapwing_evidence::{Evidence, count};
use lapwing_lab::image;
use lapwing_lab::wait;
use lapwing_lab::{Lapwing, LapwingSettings, Machine, Mbit, Need, ObjectStore, Process, Site, lapwing_binary, require};
use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};

const NEEDS: [Need; 7] = Need::LAZY_PULLS;
const DEADLINE: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;
/// What may be fetched again besides what is counted: configs, and transfers that were cut.
const SLACK_BYTES: u64 = 3 * MIB;

fn node(machine: &Machine) -> &Lapwing {
    machine.lapwing.as_ref().unwrap()
}

fn tracked_nodes(site: &Site) -> u64 {
    site.tracker.metric("lapwing_tracker_nodes", "").unwrap() as u64
}

/// A seed that the tracker knows.
fn seed(site: &Site, name: &str, rate: Option<Mbit>) -> Lapwing {
    let before = tracked_nodes(site);
    let seed = site.seed(name, rate, site.seed_settings()).unwrap();
    wait::until_true("the tracker to know the seed", DEADLINE, || tracked_nodes(site) > before).unwrap();
    seed
}

fn workers(site: &Site, count: usize, rate: Option<Mbit>) -> Vec<Machine> {
    (0..count).map(|number| site.worker(&format!("w{number}"), rate, site.whole_settings()).unwrap()).collect()
}

fn start_pulls(workers: &[Machine], reference: &str) -> Vec<Process> {
    workers.iter().map(|worker| worker.containerd.start_pull(reference, "lapwing").unwrap()).collect()
}

/// Whole pulls: containerd holds every layer against its digest.
fn assert_pulled(pulls: &mut [Process]) {
    for pull in pulls {
        let status = pull.wait(DEADLINE).unwrap();
        assert!(status.success(), "{status}: {}", pull.log_tail());
    }
}

fn origin_bytes(workers: &[Machine]) -> u64 {
    workers.iter().map(|worker| node(worker).piece_bytes("origin").unwrap()).sum()
}

fn peer_bytes(workers: &[Machine]) -> u64 {
    workers.iter().map(|worker| node(worker).piece_bytes("peer").unwrap()).sum()
}

/// Bytes of the pieces of a blob that are on disk for good, as its bitmap file says (`p2p::store`, "bitmap").
fn durable_bytes(node: &Lapwing, digest: &str, length: u64) -> u64 {
    const HEADER: usize = 48;
    let Ok(bitmap) = std::fs::read(node.blob_dir(digest).join("pieces")) else { return 0 };
    let layout = PieceLayout::new(length).unwrap();
    let have = Bitfield::from_bytes(layout.piece_count(), &bitmap[HEADER..bitmap.len() - 4]).unwrap();
    let held = (0..layout.piece_count()).map(PieceIndex).filter(|&piece| have.get(piece));
    held.map(|piece| layout.range(piece)).map(|range| range.end - range.start).sum()
}

#[test]
fn three_nodes_and_a_seed_take_one_copy_and_the_seed_alone_takes_it() {
    if !require("three_nodes_and_a_seed_take_one_copy_and_the_seed_alone_takes_it", &NEEDS) {
        return;
    }
    let image = image::noise(61, &[24, 16]).unwrap();
    let site = Site::new("seed-cold", Some(Mbit(100))).unwrap();
    let reference = site.registry.push(&image.layout, "noise:1").unwrap();
    let seed = seed(&site, "seed", Some(Mbit(200)));
    let workers = workers(&site, 3, Some(Mbit(200)));
    let sent = site.registry.sent_bytes().unwrap();
    let mut pulls = start_pulls(&workers, &reference);
    assert_pulled(&mut pulls);

    let copy: u64 = image.layout.layers.iter().map(|layer| layer.size).sum();
    let fetched = seed.piece_bytes("origin").unwrap();
    assert_eq!(origin_bytes(&workers), 0, "nodes fetched from the registry themselves");
    assert!((copy..=copy + copy / 100).contains(&fetched), "the seed fetched {fetched} of {copy} bytes");
    let sent = site.registry.sent_bytes().unwrap() - sent;
    assert!(sent as f64 <= copy as f64 * 1.15, "registry sent {sent} bytes for a copy of {copy}");
    wait::until_true("the seed to index the layers", DEADLINE, || {
        seed.log().unwrap().matches("built the index of a layer").count() >= image.layout.layers.len()
    })
    .unwrap();
    // What keeps a node's blobs and bounds its speed does so on a seed, and its API describes itself.
    let lapwing = |args: &[&str]| seed.host().check(lapwing_binary().unwrap(), args).unwrap();
    let layer = &image.layout.layers[0];
    lapwing(&["pin", &layer.digest]);
    let state: serde_json::Value = serde_json::from_slice(&seed.admin("/api/v1/state").unwrap().body).unwrap();
    let pinned = |digest: &str| {
        state["blobs"].as_array().unwrap().iter().any(|blob| blob["digest"] == digest && blob["pinned"] == true)
    };
    assert!(pinned(&layer.digest) && !pinned(&image.layout.layers[1].digest), "{state}");
    assert!(lapwing(&["limits", "--json", "--upload", "20MiB"]).contains("20MiB"));
    let api: serde_json::Value = serde_json::from_slice(&seed.admin("/api/v1/openapi.json").unwrap().body).unwrap();
    assert!(api["components"]["schemas"]["BlobState"].is_object(), "{api}");
}

#[test]
fn pulls_finish_by_leases_when_the_only_seed_dies() {
    if !require("pulls_finish_by_leases_when_the_only_seed_dies", &NEEDS) {
        return;
    }
    let image = image::noise(62, &[24]).unwrap();
    let site = Site::new("seed-dies", Some(Mbit(60))).unwrap();
    let reference = site.registry.push(&image.layout, "noise:2").unwrap();
    let mut seed = seed(&site, "seed", None);
    let workers = workers(&site, 2, None);
    let mut pulls = start_pulls(&workers, &reference);
    let layer = &image.layout.layers[0];
    wait::until_true("a quarter of the layer to have come", DEADLINE, || peer_bytes(&workers) > layer.size / 2)
        .unwrap();
    let fetched_by_seed = seed.piece_bytes("origin").unwrap();
    seed.kill9().unwrap();
    assert!(fetched_by_seed < layer.size * 9 / 10, "killed too late to show anything");
    assert_pulled(&mut pulls);
    let by_leases = origin_bytes(&workers);
    assert!(by_leases > 0, "nobody fetched what the seed did not");
    let all = fetched_by_seed + by_leases;
    assert!(all <= layer.size * 11 / 10 + SLACK_BYTES, "{all} bytes were fetched for a layer of {}", layer.size);
}

/// A pull of two nodes that have nobody but the seed, which dies when the first of them has that share of the layer; nothing for none. What
/// containers read is what the image has.
fn pull_while_the_seed_dies(
    site: &Site,
    seed: &mut Lapwing,
    workers: &[Machine],
    number: u64,
    percent: Option<u64>,
    evidence: &mut Evidence,
) {
    let image = image::noise(number, &[24]).unwrap();
    let reference = site.registry.push(&image.layout, &format!("noise:{number}")).unwrap();
    let layer = &image.layout.layers[0];
    // A seed that has just come back may leave the first pieces to the nodes.
    let had = |workers: &[Machine]| peer_bytes(workers) + origin_bytes(workers);
    let (before, origin) = (had(&workers[..1]), origin_bytes(workers));
    let begun = Instant::now();
    let mut pulls = start_pulls(workers, &reference);
    if let Some(percent) = percent {
        let has = || had(&workers[..1]) - before;
        wait::until_true("so much of the layer to have come", DEADLINE, || has() * 100 >= layer.size * percent)
            .unwrap();
        seed.kill9().unwrap();
        evidence.fault(&format!("the only seed killed at {percent} %"));
        evidence.figure(
            &format!("percent that a node had when the seed died at {percent} %"),
            (has() * 100 / layer.size) as f64,
        );
    }
    assert_pulled(&mut pulls);
    evidence.ended(begun.elapsed(), true);
    for worker in workers {
        let output = worker.containerd.run(&reference, "lapwing", &format!("c{number}"), &[]).unwrap();
        assert_eq!(output, image.sums, "{percent:?} %");
        if percent.is_some() { evidence.served_after(layer.size) } else { evidence.served_before(layer.size) }
    }
    if percent == Some(1) {
        assert!(origin_bytes(workers) > origin + layer.size / 2, "nobody fetched what the seed did not");
    }
    if percent.is_some() {
        seed.restart().unwrap();
        wait::until_true("the tracker to know the seed again", DEADLINE, || tracked_nodes(site) > workers.len() as u64)
            .unwrap();
    }
}

#[test]
fn the_only_seed_dies_at_the_start_in_the_middle_and_at_the_end_of_a_transfer() {
    if !require("the_only_seed_dies_at_the_start_in_the_middle_and_at_the_end_of_a_transfer", &NEEDS) {
        return;
    }
    let mut evidence = Evidence::new(8, "the only seed killed at 1, 50 and 99 % of a transfer");
    let site = Site::new("seed-dies-at", Some(Mbit(60))).unwrap();
    let mut seed = seed(&site, "seed", None);
    let workers = workers(&site, 2, None);
    pull_while_the_seed_dies(&site, &mut seed, &workers, 660, None, &mut evidence);
    for round in 0..u64::from(count(1, 8)) {
        for (place, percent) in [1, 50, 99].into_iter().enumerate() {
            let number = 661 + 3 * round + place as u64;
            pull_while_the_seed_dies(&site, &mut seed, &workers, number, Some(percent), &mut evidence);
        }
    }
}

#[test]
fn another_seed_takes_over_from_one_that_dies() {
    if !require("another_seed_takes_over_from_one_that_dies", &NEEDS) {
        return;
    }
    let image = image::noise(63, &[24]).unwrap();
    let site = Site::new("seeds-two", Some(Mbit(60))).unwrap();
    let reference = site.registry.push(&image.layout, "noise:3").unwrap();
    let mut seeds = vec![seed(&site, "seed1", None), seed(&site, "seed2", None)];
    let workers = workers(&site, 2, None);
    let mut pulls = start_pulls(&workers, &reference);
    let layer = &image.layout.layers[0];
    wait::until_true("a quarter of the layer to have come", DEADLINE, || peer_bytes(&workers) > layer.size / 2)
        .unwrap();
    let fetched: Vec<u64> = seeds.iter().map(|seed| seed.piece_bytes("origin").unwrap()).collect();
    assert!(fetched.iter().any(|bytes| *bytes < MIB), "two seeds fetched one layer: {fetched:?}");
    let responsible = usize::from(fetched[1] > fetched[0]);
    let mut dead = seeds.remove(responsible);
    dead.kill9().unwrap();
    assert!(fetched[responsible] < layer.size * 9 / 10, "killed too late to show anything");
    assert_pulled(&mut pulls);

    let (other, by_nodes) = (seeds[0].piece_bytes("origin").unwrap(), origin_bytes(&workers));
    let all = fetched[responsible] + other + by_nodes;
    assert!(other > MIB && other > 2 * by_nodes, "the other seed took over {other} bytes, nodes fetched {by_nodes}");
    assert!(all <= layer.size * 11 / 10 + SLACK_BYTES, "{all} bytes were fetched for a layer of {}", layer.size);
}

#[test]
fn a_restarted_seed_goes_on_by_itself_and_fetches_nothing_twice() {
    if !require("a_restarted_seed_goes_on_by_itself_and_fetches_nothing_twice", &NEEDS) {
        return;
    }
    let image = image::noise(64, &[24]).unwrap();
    let site = Site::new("seed-restart", Some(Mbit(60))).unwrap();
    let reference = site.registry.push(&image.layout, "noise:4").unwrap();
    let mut seed = seed(&site, "seed", None);
    let mut workers = workers(&site, 1, None);
    let mut pulls = start_pulls(&workers, &reference);
    let layer = &image.layout.layers[0];
    wait::until_true("a quarter of the layer to be on the seed's disk for good", DEADLINE, || {
        durable_bytes(&seed, &layer.digest, layer.size) > layer.size / 4
    })
    .unwrap();
    // Nobody is left that could ask for it, or that has any of it.
    pulls.iter_mut().for_each(|pull| pull.kill9().unwrap());
    drop(pulls);
    drop(workers.remove(0));
    seed.kill9().unwrap();
    let kept = durable_bytes(&seed, &layer.digest, layer.size);
    assert!(kept < layer.size * 9 / 10, "killed too late to show anything: {kept} of {} bytes", layer.size);

    seed.restart().unwrap();
    wait::until_true("the seed to complete the layer by itself", DEADLINE, || {
        durable_bytes(&seed, &layer.digest, layer.size) == layer.size
    })
    .unwrap();
    let fetched = seed.piece_bytes("origin").unwrap();
    let missing = layer.size - kept;
    assert!(fetched <= missing + SLACK_BYTES, "{fetched} bytes fetched again, {missing} were missing");

    let late = [site.worker("late", None, site.whole_settings()).unwrap()];
    let mut pulls = start_pulls(&late, &reference);
    assert_pulled(&mut pulls);
    assert_eq!(origin_bytes(&late), 0);
}

/// A seed that keeps its blobs in `store`.
fn storing_settings(site: &Site, store: &ObjectStore) -> LapwingSettings {
    let options = [
        ("endpoint", store.endpoint()),
        ("bucket", ObjectStore::BUCKET.to_owned()),
        ("region", ObjectStore::REGION.to_owned()),
        ("access_key_id", ObjectStore::ACCESS_KEY.to_owned()),
        ("secret_access_key", ObjectStore::SECRET_KEY.to_owned()),
        ("disable_config_load", "true".to_owned()),
        ("disable_ec2_metadata", "true".to_owned()),
    ];
    let settings = site.seed_settings().with("seed.storage", "service = \"s3\"");
    options
        .iter()
        .fold(settings, |settings, (key, value)| settings.with("seed.storage.options", &format!("{key} = {value:?}")))
}

#[test]
fn a_seed_on_an_empty_disk_has_everything_in_its_object_store() {
    if !require("a_seed_on_an_empty_disk_has_everything_in_its_object_store", &[&NEEDS[..], &[Need::S3]].concat()) {
        return;
    }
    let image = image::noise(65, &[20, 12]).unwrap();
    let mut site = Site::new("seed-bucket", None).unwrap();
    let reference = site.registry.push(&image.layout, "noise:5").unwrap();
    let store = ObjectStore::start_on(&site.network.host("objects", None).unwrap()).unwrap();
    let mut seed = site.seed("seed", None, storing_settings(&site, &store)).unwrap();
    wait::until_true("the tracker to know the seed", DEADLINE, || tracked_nodes(&site) == 1).unwrap();
    let mut first = workers(&site, 1, None);
    let mut pulls = start_pulls(&first, &reference);
    assert_pulled(&mut pulls);
    let layers = &image.layout.layers;
    wait::until_true("the layers to be in the object store", DEADLINE, || {
        let keys = store.keys();
        layers.iter().all(|layer| keys.iter().any(|key| key.ends_with(layer.digest.trim_start_matches("sha256:"))))
    })
    .unwrap();
    drop(pulls);
    first[0].lapwing.as_mut().unwrap().stop().unwrap();
    seed.stop().unwrap();
    // Otherwise it believes for a while that those who went hold everything.
    site.tracker.restart().unwrap();
    std::fs::remove_dir_all(seed.root()).unwrap();
    std::fs::create_dir(seed.root()).unwrap();
    seed.restart().unwrap();
    wait::until_true("the tracker to know the seed again", DEADLINE, || tracked_nodes(&site) == 1).unwrap();
    let late = [site.worker("late", None, site.whole_settings()).unwrap()];
    let mut pulls = start_pulls(&late, &reference);
    assert_pulled(&mut pulls);
    let copy: u64 = layers.iter().map(|layer| layer.size).sum();
    let read = seed.metric("lapwing_seed_storage_read_bytes_total", "").unwrap() as u64;
    assert!(read >= copy * 9 / 10, "{read} bytes came out of the object store, for layers of {copy}");
}
