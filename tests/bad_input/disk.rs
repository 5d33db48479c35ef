//! A disk that is full: pulls go on past the store, the log says what to do, and the store is used again once there is room.

use std::fs::File;

use lapwing_lab::{Lapwing, LapwingSettings, Machine, MachineOptions, Need, image, require, wait};

use super::{NEEDS, PATIENCE, image_of, layer_bytes, logged, mirrored_bytes, network, noise, registry, small, tar};

const MEBIBYTE: usize = 1 << 20;
/// Of the filesystem that the node's root is on.
const DISK_BYTES: u64 = 64 << 20;

#[test]
fn a_full_disk_stops_no_pull() {
    if !require("a_full_disk_stops_no_pull", &[&NEEDS[..], &[Need::Program("mkfs.ext4")]].concat()) {
        return;
    }
    let network = network("disk");
    let registry = registry(&network);
    let reference = small(&registry);
    let large = image_of(&registry, "large", |image| {
        for seed in 0..3 {
            let content = noise(seed, 30 * MEBIBYTE);
            image.layer(|out| Ok(out.write_all(&tar(&[(format!("noise{seed}").as_bytes(), &content)]))?)).unwrap();
        }
    });
    let large = (registry.push(&large, "lab/large:1").unwrap(), large);
    assert!(large.1.compressed_bytes() > DISK_BYTES);

    let host = network.host("w1", None).unwrap();
    let (disk, root) = (host.dir().join("disk"), host.dir().join("lapwing"));
    File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    std::fs::create_dir(&root).unwrap();
    host.check("mkfs.ext4", &["-q", disk.to_str().unwrap()]).unwrap();
    host.check("mount", &["-o", "loop", disk.to_str().unwrap(), root.to_str().unwrap()]).unwrap();
    let settings = LapwingSettings::up().with("store", "free_floor = \"4MiB\"");
    let machine = Machine::start_on(&host, &registry, MachineOptions::lapwing(settings)).unwrap();
    let node = machine.lapwing.as_ref().unwrap();

    // With containerd's own snapshotter: what is to be full is the store, not the container's filesystem.
    machine.containerd.pull(&large.0, "overlayfs").unwrap();
    logged(node, &["WARN", "chunk store", root.to_str().unwrap(), "no room", "free space"]);
    holds_what_it_lists(&machine, &large.1);

    // Now somebody else takes what is left.
    host.check(
        "sh",
        &["-c", "head -c 60M /dev/zero >\"$0/ballast\" 2>/dev/null; test -s \"$0/ballast\"", root.to_str().unwrap()],
    )
    .unwrap();
    machine.containerd.pull(&reference, "overlayfs").unwrap();
    let output = machine.containerd.run(&reference, "overlayfs", "full", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    assert_eq!(node.admin("/readyz").unwrap().status, 200);

    // And gives it back.
    host.check("rm", &[root.join("ballast").to_str().unwrap()]).unwrap();
    let content = noise(7, 2 * MEBIBYTE);
    let another = image_of(&registry, "another", |image| {
        image.layer(|out| Ok(out.write_all(&tar(&[(b"noise", &content)]))?)).unwrap();
    });
    let reference = registry.push(&another, "lab/another:1").unwrap();
    let before = mirrored_bytes(node);
    machine.containerd.pull(&reference, "overlayfs").unwrap();
    assert!(mirrored_bytes(node) - before >= layer_bytes(&another), "the mirror serves again");
    holds_what_it_lists(&machine, &another);
    let found = listed(node, &another.layers[0].digest).unwrap();
    assert_eq!(found["held_bytes"], another.layers[0].size, "the store stores again");
}

/// What the node says to hold whole and verified of these layers lies in its store, or in containerd's, byte for byte.
fn holds_what_it_lists(machine: &Machine, layout: &image::Layout) {
    let node = machine.lapwing.as_ref().unwrap();
    let in_containerd = machine.host.dir().join("containerd/io.containerd.content.v1.content/blobs/sha256");
    for layer in &layout.layers {
        let hex = layer.digest.strip_prefix("sha256:").unwrap();
        let in_store = node.root().join("blobs/sha256").join(&hex[..2]).join(hex).join("data");
        // The store may give a blob up between its list and the look at its file, and hold containerd's from then on.
        wait::until_true("a file for what is listed", PATIENCE, || {
            let Some(blob) = listed(node, &layer.digest) else { return true };
            assert!(blob["held_bytes"].as_u64().unwrap() <= layer.size, "{blob}");
            if blob["verified"] != true {
                return true;
            }
            let file = if blob["in_containerd"] == true { in_containerd.join(hex) } else { in_store.clone() };
            let Ok(stored) = std::fs::read(machine.host.path(&file)) else { return false };
            assert!(stored == std::fs::read(layout.blob_path(layer)).unwrap(), "{} holds other bytes", file.display());
            true
        })
        .unwrap();
    }
}

/// What the node lists of a blob.
fn listed(node: &Lapwing, digest: &str) -> Option<serde_json::Value> {
    let state: serde_json::Value = serde_json::from_slice(&node.admin("/api/v1/state").unwrap().body).unwrap();
    state["blobs"].as_array().unwrap().iter().find(|blob| blob["digest"] == digest).cloned()
}
