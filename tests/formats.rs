//! Layers with tables of contents that other tools wrote: the first node of a cluster that pulls them starts them lazily.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::path::Path;
use std::time::Duration;

use lapwing_lab::image::{self, Layout};
use lapwing_lab::tree;
use lapwing_lab::{LapwingSettings, Machine, MachineOptions, Need, Site, check, lapwing_binary, require, wait};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const ALL_FORMATS: &str = "formats = [\"estargz\", \"zstd-chunked\", \"soci\"]";
const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(120);
/// What converters add to the root of each layer.
const CONVERTERS_FILES: [&str; 3] = [".no.prefetch.landmark", ".prefetch.landmark", "stargz.index.json"];

/// A format by nerdctl's name for it, and Lapwing's.
#[derive(Clone, Copy)]
struct Format {
    option: &'static str,
    name: &'static str,
}

const ESTARGZ: Format = Format { option: "--estargz", name: "eStargz" };
const ZSTD_CHUNKED: Format = Format { option: "--zstdchunked", name: "zstd:chunked" };

/// A registry with an image that nerdctl converted, and the plain worker on which it did.
struct Converted {
    site: Site,
    worker: Machine,
    reference: String,
}

fn convert(name: &str, layout: &Layout, format: Format) -> Converted {
    let site = Site::new(name, None).unwrap();
    let original = site.registry.push(layout, "lab/image:1").unwrap();
    let worker = Machine::start(&site.network, "converter", &site.registry, MachineOptions::plain()).unwrap();
    worker.containerd.pull(&original, "overlayfs").unwrap();
    let reference = original.replace(":1", ":converted");
    let mut command = worker.containerd.nerdctl().unwrap();
    check(command.args(["image", "convert", "--oci", format.option, &original, &reference])).unwrap();
    let mut command = worker.containerd.ctr().unwrap();
    check(command.args(["images", "push", "--plain-http", &reference])).unwrap();
    Converted { site, worker, reference }
}

impl Converted {
    fn settings(&self, complete_after: &str) -> LapwingSettings {
        LapwingSettings::node(&[self.site.tracker.tracker_address()])
            .with("lazy", &format!("complete_after = \"{complete_after}\""))
            .with("lazy", ALL_FORMATS)
            .patient()
    }

    /// A worker that has pulled the image; every layer was claimed, and little came from the registry.
    fn lazily_pulled(&self, name: &str, layers: usize, settings: LapwingSettings) -> Machine {
        let machine = self.site.worker(name, None, settings).unwrap();
        machine.containerd.pull(&self.reference, "lapwing").unwrap();
        let node = machine.lapwing.as_ref().unwrap();
        let claimed = node.metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
        assert_eq!(claimed, layers as f64, "every layer is lazy: {}", node.log().unwrap());
        machine
    }
}

/// State and reason of the layers that `lapwing ls` shows.
fn listed(machine: &Machine) -> Vec<(String, String)> {
    let shown = machine.host.check(lapwing_binary().unwrap(), &["ls", "--json"]).unwrap();
    let state: Value = serde_json::from_str(&shown).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    state["layers"].as_array().unwrap().iter().map(|layer| (text(&layer["state"]), text(&layer["reason"]))).collect()
}

/// An image of every oddity, lazily on the first node that pulls it: the same as unpacked, then proved.
fn equals_what_is_unpacked(name: &str, format: Format) {
    if !require(name, &NEEDS) {
        return;
    }
    let layout = image::small_in_utf8().unwrap();
    let converted = convert(name, &layout, format);
    converted.worker.containerd.pull(&converted.reference, "overlayfs").unwrap();
    let mut unpacked = converted.worker.walk_image(&converted.reference, "overlayfs").unwrap();

    let node = converted.lazily_pulled("first", layout.layers.len(), converted.settings("0"));
    let output = node.containerd.run(&converted.reference, "lapwing", "started", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    let shown = listed(&node);
    let expected = ("pending".to_owned(), format!("by its {} table of contents", format.name));
    assert_eq!(shown, vec![expected; layout.layers.len()]);
    let mut lazy = node.walk_image(&converted.reference, "lapwing").unwrap();
    for path in CONVERTERS_FILES {
        assert!(lazy.remove(Path::new(path)).is_none(), "{path} is the converter's and not shown");
        unpacked.remove(Path::new(path));
    }
    // No tar names the root; unpacked it is as old as the unpacking.
    unpacked.get_mut(Path::new("")).unwrap().mtime = lazy[Path::new("")].mtime;
    // The tables have whole seconds.
    for (path, node) in &mut unpacked {
        if let Some(lazy) = lazy.get(path)
            && node.mtime.0 + i64::from(node.mtime.1 >= 500_000_000) == lazy.mtime.0
        {
            node.mtime = lazy.mtime;
        }
    }
    assert_eq!(tree::differences(&unpacked, &lazy, 40), "", "left: overlayfs, right: lazily mounted");
    assert!(lazy.len() > 80, "{} files were compared", lazy.len());

    let node = converted.lazily_pulled("second", layout.layers.len(), converted.settings("1s"));
    node.containerd.run(&converted.reference, "lapwing", "proved", &[]).unwrap();
    wait::until_true("the layers to be proved", SOON, || listed(&node).iter().all(|(state, _)| state == "proved"))
        .unwrap();
}

#[test]
fn an_estargz_image_is_lazy_on_its_first_pull_and_the_same_as_unpacked() {
    equals_what_is_unpacked("estargz", ESTARGZ);
}

#[test]
fn a_zstd_chunked_image_is_lazy_on_its_first_pull_and_the_same_as_unpacked() {
    equals_what_is_unpacked("zstd-chunked", ZSTD_CHUNKED);
}

/// Of a large image only what is read comes from the registry; a node that is started anew goes on from what it kept.
fn fetches_only_what_is_read(name: &str, format: Format) {
    if !require(name, &NEEDS) {
        return;
    }
    let image = image::noise(61, &[40, 20]).unwrap();
    let converted = convert(name, &image.layout, format);
    let sent = converted.site.registry.sent_bytes().unwrap();
    let mut node = converted.lazily_pulled("first", 2, converted.settings("0"));
    let read_one = |node: &Machine, container: &str| {
        let command = ["/bin/sh", "-c", "sha256sum /data/01-007"];
        node.containerd.run(&converted.reference, "lapwing", container, &command).unwrap()
    };
    let expected = image.sums.lines().find(|line| line.ends_with("/data/01-007")).unwrap();
    assert_eq!(read_one(&node, "one").trim(), expected);
    let fetched = converted.site.registry.sent_bytes().unwrap() - sent;
    assert!(fetched < 14 << 20, "{fetched} bytes of 60 MiB for a shell and one file");
    eprintln!("{}: {fetched} bytes for a start and one file of 1 MiB, of 60 MiB", format.name);

    node.lapwing.as_mut().unwrap().restart().unwrap();
    node.containerd.wait_for_snapshotter().unwrap();
    let output = node.containerd.run(&converted.reference, "lapwing", "again", &[]).unwrap();
    assert_eq!(output, image.sums, "all of it, by the table that was kept");
}

#[test]
fn of_a_large_estargz_image_only_what_is_read_is_fetched() {
    fetches_only_what_is_read("estargz-large", ESTARGZ);
}

#[test]
fn of_a_large_zstd_chunked_image_only_what_is_read_is_fetched() {
    fetches_only_what_is_read("zstd-chunked-large", ZSTD_CHUNKED);
}

#[test]
fn tables_of_contents_count_only_where_that_is_configured() {
    const NAME: &str = "tables_of_contents_count_only_where_that_is_configured";
    if !require(NAME, &NEEDS) {
        return;
    }
    let converted = convert("estargz-off", &image::small_in_utf8().unwrap(), ESTARGZ);
    let settings = LapwingSettings::node(&[converted.site.tracker.tracker_address()]);
    // Otherwise the second layer may be lazy by an index that was made while the first one was unpacked.
    let settings = settings.with("lazy", "build_indexes = false");
    let node = converted.site.worker("first", None, settings).unwrap();
    node.containerd.pull(&converted.reference, "lapwing").unwrap();
    let claimed = node.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
    assert_eq!(claimed, 0.0, "their diffIDs are not known to be right before all of them is here");
}

impl Converted {
    /// JSON that the converter's containerd holds.
    fn content(&self, digest: &Value) -> Value {
        let mut command = self.worker.containerd.ctr().unwrap();
        serde_json::from_str(&check(command.args(["content", "get", digest.as_str().unwrap()])).unwrap()).unwrap()
    }

    /// The converted image's manifest.
    fn manifest(&self) -> Value {
        let mut command = self.worker.containerd.ctr().unwrap();
        let listed = check(command.args(["images", "ls", &format!("name=={}", self.reference)])).unwrap();
        let digest = listed.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap();
        let found = self.content(&digest.into());
        if found["manifests"].is_array() { self.content(&found["manifests"][0]["digest"]) } else { found }
    }
}

/// Layers are shared between images by what their configurations say of them.
#[test]
fn a_layer_under_the_diff_id_of_another_is_found_out() {
    const NAME: &str = "a_layer_under_the_diff_id_of_another_is_found_out";
    if !require(NAME, &NEEDS) {
        return;
    }
    let converted = convert("estargz-lie", &image::noise(64, &[4]).unwrap().layout, ESTARGZ);
    let registry = &converted.site.registry;
    let mut manifest = converted.manifest();
    let mut config = converted.content(&manifest["config"]["digest"]);
    config["rootfs"]["diff_ids"][0] = sha256(b"the tar of another image's layer").into();
    let config = serde_json::to_vec(&config).unwrap();
    registry.push_blob(REPOSITORY, &sha256(&config), config.len() as u64, &config[..]).unwrap();
    manifest["config"]["digest"] = sha256(&config).into();
    manifest["config"]["size"] = config.len().into();
    registry.push_manifest(REPOSITORY, "lie", MANIFEST, &serde_json::to_vec(&manifest).unwrap()).unwrap();
    let reference = converted.reference.replace(":converted", ":lie");

    let node = converted.site.worker("first", None, converted.settings("1s")).unwrap();
    node.containerd.pull(&reference, "lapwing").unwrap();
    wait::until_true("the lie to be found out", SOON, || listed(&node).iter().any(|(state, _)| state == "quarantined"))
        .unwrap();
    let read = node.containerd.run(&reference, "lapwing", "lie", &[]);
    assert!(read.is_err(), "it is not shown any more: {read:?}");
}

#[test]
fn a_layer_whose_table_cannot_hold_its_names_is_pulled_whole() {
    const NAME: &str = "a_layer_whose_table_cannot_hold_its_names_is_pulled_whole";
    if !require(NAME, &NEEDS) {
        return;
    }
    let converted = convert("estargz-names", &image::small().unwrap(), ESTARGZ);
    let node = converted.site.worker("first", None, converted.settings("0")).unwrap();
    node.containerd.pull(&converted.reference, "lapwing").unwrap();
    let output = node.containerd.run(&converted.reference, "lapwing", "whole", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    let log = node.lapwing.as_ref().unwrap().log().unwrap();
    assert!(log.contains("a name that is not UTF-8"), "{log}");
    let mount = node.walk_image(&converted.reference, "lapwing").unwrap();
    assert!(mount.keys().any(|path| path.to_str().is_none()), "the name is as it was");
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const REPOSITORY: &str = "lab/image";

fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A worker that pulls the image; gives it with the number of layers that it claimed.
fn pulled(site: &Site, name: &str, reference: &str, line: &str, complete_after: &str) -> (Machine, f64) {
    let settings = LapwingSettings::node(&[site.tracker.tracker_address()])
        .with("lazy", &format!("complete_after = \"{complete_after}\""))
        .with("lazy", ALL_FORMATS)
        .with("lazy", line)
        .patient();
    let machine = site.worker(name, None, settings).unwrap();
    machine.containerd.pull(reference, "lapwing").unwrap();
    let claimed = machine.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
    (machine, claimed)
}

#[test]
fn an_image_with_a_soci_index_is_lazy_on_its_first_pull_and_the_same_as_unpacked() {
    const NAME: &str = "an_image_with_a_soci_index_is_lazy_on_its_first_pull_and_the_same_as_unpacked";
    if !require(NAME, &[&NEEDS[..], &[Need::Soci]].concat()) {
        return;
    }
    let layout = image::small().unwrap();
    let site = Site::new("soci", None).unwrap();
    let reference = site.registry.push_with_soci(&layout, REPOSITORY, "soci").unwrap();

    let plain = Machine::start(&site.network, "plain", &site.registry, MachineOptions::plain()).unwrap();
    plain.containerd.pull(&reference, "overlayfs").unwrap();
    let mut unpacked = plain.walk_image(&reference, "overlayfs").unwrap();
    let (node, claimed) = pulled(&site, "first", &reference, "build_indexes = false", "0");
    assert_eq!(claimed, 2.0, "every layer is lazy: {}", node.lapwing.as_ref().unwrap().log().unwrap());
    assert_eq!(node.containerd.run(&reference, "lapwing", "started", &[]).unwrap().trim(), image::SMALL_OUTPUT);
    let expected = ("pending".to_owned(), "by its SOCI table of contents".to_owned());
    assert_eq!(listed(&node), vec![expected; 2]);
    let lazy = node.walk_image(&reference, "lapwing").unwrap();
    unpacked.get_mut(Path::new("")).unwrap().mtime = lazy[Path::new("")].mtime;
    assert_eq!(tree::differences(&unpacked, &lazy, 40), "", "left: overlayfs, right: lazily mounted");

    let (node, claimed) = pulled(&site, "second", &reference, "build_indexes = false", "1s");
    assert_eq!(claimed, 2.0);
    node.containerd.run(&reference, "lapwing", "proved", &[]).unwrap();
    wait::until_true("the layers to be proved", SOON, || listed(&node).iter().all(|(state, _)| state == "proved"))
        .unwrap();
}

#[test]
fn a_soci_index_that_refers_to_an_image_counts_only_where_that_is_configured() {
    const NAME: &str = "a_soci_index_that_refers_to_an_image_counts_only_where_that_is_configured";
    if !require(NAME, &[&NEEDS[..], &[Need::Soci]].concat()) {
        return;
    }
    let image = image::noise(62, &[20]).unwrap();
    let site = Site::new("soci-referrers", None).unwrap();
    let reference = site.registry.push(&image.layout, &format!("{REPOSITORY}:1")).unwrap();
    let index = site.registry.push_soci_index(&image.layout, REPOSITORY, 1).unwrap();
    // The registry has no referrers; a tag stands for them.
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [{
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.amazon.soci.index.v1+json",
        "digest": index.digest,
        "size": index.size,
    }] });
    let tag = image.layout.manifest.digest.replace(':', "-");
    site.registry.push_manifest(REPOSITORY, &tag, INDEX, &serde_json::to_vec(&list).unwrap()).unwrap();

    let sent = site.registry.sent_bytes().unwrap();
    let (node, claimed) = pulled(&site, "believing", &reference, "soci_referrers = true", "0");
    assert_eq!(claimed, 1.0, "{}", node.lapwing.as_ref().unwrap().log().unwrap());
    let command = ["/bin/sh", "-c", "sha256sum /data/00-013"];
    let output = node.containerd.run(&reference, "lapwing", "one", &command).unwrap();
    assert_eq!(output.trim(), image.sums.lines().find(|line| line.ends_with("/data/00-013")).unwrap());
    let fetched = site.registry.sent_bytes().unwrap() - sent;
    assert!(fetched < 12 << 20, "{fetched} bytes of 20 MiB for a shell and one file");
    drop(node);

    let (_, claimed) = pulled(&site, "doubting", &reference, "build_indexes = false", "0");
    assert_eq!(claimed, 0.0, "by default nobody looks for what refers to an image");
}
