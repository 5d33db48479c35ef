//! An image of several platforms starts lazily like any other: only this machine's is looked at; and what is pulled again under another tag
//! is there already.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::image::{self, Blob, Layout};
use lapwing_lab::{LapwingSettings, Machine, MachineOptions, Need, Site, check, require, wait};
use lapwing_p2p::digest::Digest;
use serde_json::{Value, json};

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(120);
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn settings(site: &Site) -> LapwingSettings {
    site.settings().patient()
}

fn machine(site: &Site, name: &str) -> Machine {
    Machine::start(&site.network, name, &site.registry, MachineOptions::lapwing(settings(site))).unwrap()
}

/// This machine's architecture, as images name it.
fn ours() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn entry(image: &Layout, architecture: &str) -> Value {
    let (digest, size) = (&image.manifest.digest, image.manifest.size);
    json!({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}})
}

/// The image as one for another machine, in that repository: by its config, too.
fn of_another(site: &Site, repository: &str, image: Layout) -> Layout {
    site.registry.push(&image, &format!("{repository}:foreign")).unwrap();
    let read =
        |blob: &Blob| -> Value { serde_json::from_slice(&std::fs::read(image.blob_path(blob)).unwrap()).unwrap() };
    let (mut config, mut manifest) = (read(&image.config), read(&image.manifest));
    config["architecture"] = "s390x".into();
    let config = config.to_string();
    let blob = |bytes: &str| Blob { digest: Digest::of(bytes.as_bytes()).to_string(), size: bytes.len() as u64 };
    let named = blob(&config);
    site.registry.push_blob(repository, &named.digest, named.size, config.as_bytes()).unwrap();
    manifest["config"]["digest"] = named.digest.clone().into();
    manifest["config"]["size"] = named.size.into();
    let manifest = manifest.to_string();
    let changed = Layout { manifest: blob(&manifest), config: named, ..image };
    site.registry.push_manifest(repository, &changed.manifest.digest, MANIFEST, manifest.as_bytes()).unwrap();
    changed
}

fn ctr(machine: &Machine, args: &[&str]) -> String {
    check(machine.containerd.ctr().unwrap().args(args)).unwrap()
}

#[test]
fn an_image_of_several_platforms_starts_lazily_and_again_under_another_tag() {
    const NAME: &str = "an_image_of_several_platforms_starts_lazily_and_again_under_another_tag";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let (mine, foreign) = (image::small().unwrap(), image::noise(81, &[1]).unwrap().layout);
    let foreign = of_another(&site, "lab/multi", foreign);
    site.registry.push(&mine, "lab/multi:mine").unwrap();
    let manifests = [entry(&foreign, "s390x"), entry(&mine, ours())];
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string();
    let [one, two] = ["1", "2"].map(|tag| {
        site.registry.push_manifest("lab/multi", tag, INDEX, index.as_bytes()).unwrap();
        format!("{}/lab/multi:{tag}", site.registry.name())
    });
    let whole = machine(&site, "whole");
    whole.containerd.pull(&one, "overlayfs").unwrap();
    let log = || whole.lapwing.as_ref().unwrap().log().unwrap();
    wait::until_true("both layers to be indexed", SOON, || log().matches("built the index of a layer").count() == 2)
        .unwrap();
    assert!(log().contains(&foreign.config.digest), "containerd reads the configs of all platforms");
    assert!(!log().contains(&foreign.layers[0].digest), "the registry was not asked for another platform's layer");

    let lazy = machine(&site, "lazy");
    let claimed = || lazy.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
    let run = |reference: &str, name: &str| {
        let printed = lazy.containerd.run(reference, "lapwing", name, &[]).unwrap();
        assert_eq!(printed.trim(), image::SMALL_OUTPUT, "{name}");
    };
    lazy.containerd.pull(&one, "lapwing").unwrap();
    assert_eq!(claimed(), 2.0);
    run(&one, "first");
    lazy.containerd.pull(&two, "lapwing").unwrap();
    assert_eq!(claimed(), 2.0, "the same layers");
    ctr(&lazy, &["images", "rm", "--sync", &one]);
    run(&two, "second");
    ctr(&lazy, &["images", "rm", "--sync", &two]);
    let left = ctr(&lazy, &["snapshots", "--snapshotter", "lapwing", "ls"]);
    assert_eq!(left.lines().skip(1).count(), 0, "{left}");
}
