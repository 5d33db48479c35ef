//! Wrong bytes, from a peer's disk and from a registry: they end in the right content from elsewhere, or in an error.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lapwing_evidence::Evidence;
use lapwing_lab::image::{self, Blob, Noise};
use lapwing_lab::wait::{self, Poll};
use lapwing_lab::{Lapwing, Machine, Mbit, Need, Registry, Response, Site, require};
use lapwing_p2p::digest::Digest;

const NEEDS: [Need; 7] = Need::LAZY_PULLS;
const DEADLINE: Duration = Duration::from_secs(120);
/// Every piece of every blob here is longer.
const STEP_BYTES: u64 = 32 << 10;
const REPOSITORY: &str = "noise";

/// Changes bytes all over a file, in each piece of a blob, and gives what it was.
fn spoil(path: &Path) -> Vec<u8> {
    let right = std::fs::read(path).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    for at in (STEP_BYTES / 2..right.len() as u64).step_by(STEP_BYTES as usize) {
        let byte = right[usize::try_from(at).unwrap()];
        file.write_all_at(&[byte ^ 0x55], at).unwrap();
    }
    right
}

fn site(name: &str, image: &Noise) -> (Site, String) {
    let site = Site::new(name, None).unwrap();
    let reference = site.registry.push(&image.layout, &format!("{REPOSITORY}:1")).unwrap();
    (site, reference)
}

/// A worker that has the whole image and has indexed it.
fn seed(site: &Site, name: &str, reference: &str, image: &Noise) -> Machine {
    let seed = site.worker(name, None, site.whole_settings()).unwrap();
    seed.containerd.pull(reference, "lapwing").unwrap();
    for layer in &image.layout.layers {
        wait::until_true("a seed to have proved a layer", DEADLINE, || {
            node(&seed)
                .log()
                .unwrap()
                .lines()
                .any(|line| line.contains("matches its digest") && line.contains(&layer.digest))
        })
        .unwrap();
    }
    seed
}

fn node(machine: &Machine) -> &Lapwing {
    machine.lapwing.as_ref().unwrap()
}

fn ask_mirror(machine: &Machine, registry: &Registry, blob: &Blob) -> Result<Response, String> {
    node(machine).mirror_blob(&registry.name(), REPOSITORY, &blob.digest).map_err(|error| format!("{error:#}"))
}

fn is_whole(answer: &Response, blob: &Blob) -> bool {
    answer.status == 200 && answer.body.len() as u64 == blob.size
}

/// Never wrong bytes with the look of right ones.
#[track_caller]
fn assert_right_or_cut(answer: &Result<Response, String>, blob: &Blob) {
    if let Ok(answer) = answer.as_ref()
        && is_whole(answer, blob)
    {
        assert_eq!(Digest::of(&answer.body).to_string(), blob.digest, "the mirror gave wrong bytes");
    }
}

#[track_caller]
fn assert_right(answer: &Result<Response, String>, blob: &Blob) {
    let answer = answer.as_ref().unwrap();
    assert!(is_whole(answer, blob), "{} and {} of {} bytes", answer.status, answer.body.len(), blob.size);
    assert_eq!(Digest::of(&answer.body).to_string(), blob.digest, "the mirror gave wrong bytes");
}

fn assert_content_right(machine: &Machine, reference: &str, container: &str, image: &Noise) {
    assert_eq!(machine.containerd.run(reference, "lapwing", container, &[]).unwrap(), image.sums, "{container}");
}

#[test]
fn pieces_spoilt_on_a_peers_disk_are_replaced_by_right_ones() {
    if !require("pieces_spoilt_on_a_peers_disk_are_replaced_by_right_ones", &NEEDS) {
        return;
    }
    let mut evidence = Evidence::new(4, "a peer whose disk spoils every piece, among real nodes");
    let image = image::noise(11, &[16]).unwrap();
    let layer = &image.layout.layers[0];
    let (site, reference) = site("spoilt-disk", &image);
    let bad = seed(&site, "bad", &reference, &image);
    let good = seed(&site, "good", &reference, &image);
    let before = ask_mirror(&good, &site.registry, layer);
    assert_right(&before, layer);
    evidence.served_before(before.unwrap().body.len() as u64);
    let right = spoil(&node(&bad).blob_dir(&layer.digest).join("data"));
    site.registry.host().set_rate(Mbit(8)).unwrap();

    let reader = site.worker("reader", None, site.whole_settings()).unwrap();
    let answer = evidence.operation(|| ask_mirror(&reader, &site.registry, layer));
    assert_right(&answer, layer);
    evidence.compare(&right, &answer.unwrap().body);
    reader.containerd.pull(&reference, "lapwing").unwrap();
    assert_content_right(&reader, &reference, "reader", &image);
    let count = |name: &str| node(&reader).metric(name, "").unwrap();
    assert!(count("lapwing_bad_pieces_total") >= 1.0, "the spoilt peer was never asked");
    evidence.faults("a spoilt piece of a real node", count("lapwing_bad_pieces_total") as u64);
    assert!(count("lapwing_bans_total") >= 1.0, "a peer that only sends wrong pieces is banned");
    assert_eq!(count("lapwing_digest_mismatches_total"), 0.0, "wrong pieces never got into the store");
    assert!(node(&reader).piece_bytes("peer").unwrap() > layer.size / 2, "the honest peer served");
    drop(good);
}

#[test]
fn a_spoilt_peer_alone_ends_in_an_error_and_the_registry_heals() {
    if !require("a_spoilt_peer_alone_ends_in_an_error_and_the_registry_heals", &NEEDS) {
        return;
    }
    let image = image::noise(12, &[16]).unwrap();
    let layer = &image.layout.layers[0];
    let (site, reference) = site("spoilt-alone", &image);
    let bad = seed(&site, "bad", &reference, &image);
    spoil(&node(&bad).blob_dir(&layer.digest).join("data"));
    let reader = site.worker("reader", None, site.whole_settings().with("lazy", "read_deadline = \"5s\"")).unwrap();
    // The registry still says who may have what, and then is gone in the middle.
    site.registry.host().set_rate(Mbit(8)).unwrap();
    let cut = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask_mirror(&reader, &site.registry, layer));
        let wrong = || node(&reader).metric("lapwing_bad_pieces_total", "").unwrap() >= 1.0;
        wait::until_true("a wrong piece to be found out", DEADLINE, wrong).unwrap();
        site.registry.host().set_link(false).unwrap();
        asking.join().unwrap()
    });
    assert_right_or_cut(&cut, layer);
    assert!(!cut.is_ok_and(|answer| is_whole(&answer, layer)), "nobody had the right bytes");

    site.registry.host().set_link(true).unwrap();
    site.registry.host().set_rate(Mbit(400)).unwrap();
    wait::until("the mirror to give the blob", DEADLINE, || {
        let answer = ask_mirror(&reader, &site.registry, layer);
        assert_right_or_cut(&answer, layer);
        Ok(match answer {
            Ok(answer) if is_whole(&answer, layer) => Poll::Ready(()),
            Ok(answer) => Poll::NotYet(answer.head),
            Err(error) => Poll::NotYet(error),
        })
    })
    .unwrap();
    reader.containerd.pull(&reference, "lapwing").unwrap();
    assert_content_right(&reader, &reference, "reader", &image);
    assert_eq!(node(&reader).metric("lapwing_digest_mismatches_total", "").unwrap(), 0.0);
}

#[test]
fn lazy_reads_from_a_spoilt_peer_fail_until_the_registry_is_back() {
    if !require("lazy_reads_from_a_spoilt_peer_fail_until_the_registry_is_back", &NEEDS) {
        return;
    }
    let image = image::noise(13, &[1, 4]).unwrap();
    let layer = &image.layout.layers[1];
    let (site, reference) = site("spoilt-lazy", &image);
    let bad = seed(&site, "bad", &reference, &image);
    wait::until_true("both layers to be indexed", DEADLINE, || {
        node(&bad).log().unwrap().matches("built the index of a layer").count() == 2
    })
    .unwrap();
    let settings = site.settings().patient().with("lazy", "read_deadline = \"3s\"");
    let reader = site.worker("reader", None, settings).unwrap();
    reader.containerd.pull(&reference, "lapwing").unwrap();
    assert_eq!(node(&reader).metric("lapwing_snapshot_layers_claimed_total", "").unwrap(), 2.0, "both layers are lazy");
    // Busybox comes while all is well; the second layer only after.
    let run = |name: &str, script: &str| reader.containerd.run(&reference, "lapwing", name, &["/bin/sh", "-c", script]);
    run("well", "sha256sum /data/00-000").unwrap();
    spoil(&node(&bad).blob_dir(&layer.digest).join("data"));
    site.registry.host().set_link(false).unwrap();

    // Complaints would stand among the output.
    let script = "for f in /data/01-*; do sha256sum $f 2>/dev/null; done; echo read";
    let output = run("spoilt", script).unwrap();
    assert!(output.ends_with("read\n"), "the reads did not come to an end: {output}");
    let wrong: Vec<_> =
        output.lines().filter(|line| *line != "read" && !image.sums.lines().any(|right| right == *line)).collect();
    assert!(wrong.is_empty(), "reads gave wrong bytes: {wrong:?}");
    assert!(output.lines().count() < 5, "nobody had the right bytes of all files: {output}");
    assert!(node(&reader).metric("lapwing_bad_pieces_total", "").unwrap() >= 1.0, "the spoilt peer was never asked");

    site.registry.host().set_link(true).unwrap();
    wait::until("all files to be read", DEADLINE, || {
        Ok(match run("healed", "sha256sum /data/*") {
            Ok(output) if output == image.sums => Poll::Ready(()),
            Ok(output) => panic!("reads gave wrong bytes: {output}"),
            Err(error) => Poll::NotYet(format!("{error:#}")),
        })
    })
    .unwrap();
}

/// Where Debian's registry keeps a blob.
fn stored_by(registry: &Registry, blob: &Blob) -> PathBuf {
    let hex = blob.digest.strip_prefix("sha256:").unwrap();
    let blobs = registry.host().dir().join("registry/storage/docker/registry/v2/blobs/sha256");
    blobs.join(&hex[..2]).join(hex).join("data")
}

#[test]
fn a_registry_that_serves_wrong_bytes_is_named_and_nothing_wrong_is_kept() {
    if !require("a_registry_that_serves_wrong_bytes_is_named_and_nothing_wrong_is_kept", &NEEDS) {
        return;
    }
    let image = image::noise(14, &[12]).unwrap();
    let layer = &image.layout.layers[0];
    let (site, reference) = site("wrong-registry", &image);
    let path = stored_by(&site.registry, layer);
    let right = spoil(&path);

    let first = site.worker("first", None, site.whole_settings()).unwrap();
    let failed = first.containerd.pull(&reference, "lapwing").unwrap_err();
    wait::until_true("the node to name the blob that does not match", DEADLINE, || {
        let log = node(&first).log().unwrap();
        log.lines().any(|line| line.contains("does not match its digest") && line.contains(&layer.digest))
    })
    .unwrap_or_else(|error| panic!("{error}, after {failed:#}"));
    assert_right_or_cut(&ask_mirror(&first, &site.registry, layer), layer);
    assert!(node(&first).metric("lapwing_digest_mismatches_total", "").unwrap() >= 1.0);

    std::fs::write(&path, right).unwrap();
    let second = site.worker("second", None, site.whole_settings()).unwrap();
    for worker in [&first, &second] {
        wait::until("the pull to succeed", DEADLINE, || Ok(Poll::retry(worker.containerd.pull(&reference, "lapwing"))))
            .unwrap();
        assert_content_right(worker, &reference, "mended", &image);
        wait::until("the mirror to give the blob", DEADLINE, || {
            let answer = ask_mirror(worker, &site.registry, layer);
            assert_right_or_cut(&answer, layer);
            Ok(match answer {
                Ok(answer) if is_whole(&answer, layer) => Poll::Ready(()),
                Ok(answer) => Poll::NotYet(answer.head),
                Err(error) => Poll::NotYet(error),
            })
        })
        .unwrap();
    }
}
