//! Bad input and bad surroundings: each gives an error that names the thing and the remedy, or a fallback that the log tells of; nothing
//! is lost, and the node goes on.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

#[path = "bad_input/disk.rs"]
mod disk;
#[path = "bad_input/layers.rs"]
mod layers;
#[path = "bad_input/names.rs"]
mod names;
#[path = "bad_input/refusals.rs"]
mod refusals;
#[path = "bad_input/start.rs"]
mod start;
#[path = "bad_input/tracker.rs"]
mod tracker;

use std::time::Duration;

use lapwing_lab::image::{self, Entry, EntryKind, ImageConfig, Layout, LayoutWriter, TarWriter};
use lapwing_lab::{Lab, Lapwing, Need, Network, Registry, RegistryOptions, wait};

/// For whatever a busy machine does between two steps of a test.
const PATIENCE: Duration = Duration::from_secs(90);
const NEEDS: [Need; 5] =
    [Need::Root, Need::Disk, Need::Tools, Need::Program("docker-registry"), Need::Program("skopeo")];

fn network(name: &str) -> Network {
    Lab::new(name).unwrap().network().unwrap()
}

fn registry(network: &Network) -> Registry {
    Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap()
}

/// The small image, pushed.
fn small(registry: &Registry) -> String {
    registry.push(&image::small().unwrap(), "lab/small:1").unwrap()
}

/// The bytes of all layers: what a mirror gives out at least when it serves a whole pull.
fn layer_bytes(layout: &Layout) -> f64 {
    layout.layers.iter().map(|layer| layer.size).sum::<u64>() as f64
}

/// Bytes of blobs that the node's mirror gave out so far.
fn mirrored_bytes(node: &Lapwing) -> f64 {
    node.metric("lapwing_mirror_bytes_total", "").unwrap()
}

/// Waits for a line of the node's log that holds all of `parts`, and gives it.
fn logged(node: &Lapwing, parts: &[&str]) -> String {
    let find = || {
        let log = node.log().unwrap();
        let line = log.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned);
        Ok(line.map_or_else(|| wait::Poll::NotYet(log), wait::Poll::Ready))
    };
    wait::until(&format!("a log line with {parts:?}"), PATIENCE, find).unwrap()
}

/// Bytes that do not compress, and differ with `seed`.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tar with these files.
fn tar(files: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut tar = TarWriter::new(Vec::new());
    for (name, content) in files {
        tar.add(&Entry::new(name, EntryKind::File(content))).unwrap();
    }
    tar.finish().unwrap()
}

/// An image in the directory `name` of the laboratory, with the layers that `fill` adds.
fn image_of(registry: &Registry, name: &str, fill: impl FnOnce(&mut LayoutWriter)) -> Layout {
    let mut writer = LayoutWriter::new(&registry.host().dir().join(name)).unwrap();
    fill(&mut writer);
    writer.finish(&ImageConfig { working_dir: "/", ..ImageConfig::default() }).unwrap()
}
