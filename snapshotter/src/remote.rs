//! Remote snapshots: layers that containerd need not fetch, because they can be mounted already.
//!
//! Before containerd unpacks a layer it prepares a snapshot with the label `containerd.io/snapshot.ref`, the chain id
//! that the extraction is to produce. A snapshotter that has that layer answers ALREADY_EXISTS, and containerd looks for
//! a *committed* snapshot that stores this label and has exactly the given parent (`core/metadata/snapshot.go`,
//! `createSnapshot`); if it finds none, the pull fails. So the order here is: mount, record durably, answer.
//!
//! Nothing is ever downloaded within the request, because containerd holds a lock meanwhile: [`RemoteLayers::resolve`]
//! answers from what the node knows, within a time limit. Whatever goes wrong is a [`Fallback`]: it is logged and
//! counted, and the request is answered with ordinary mounts, so that containerd pulls the layer whole.
//!
//! Labels come from image authors. Here they are compared and stored, and never become paths, addresses or credentials.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;

mod claim;
mod mounted;

pub(crate) use claim::Wish;
pub(crate) use mounted::MountedLayers;

/// What a Prepare for extraction says of its target.
#[derive(Debug)]
pub struct Target<'a> {
    /// The chain id that is wanted, a well-formed digest.
    pub chain_id: &'a str,
    /// The chain id that the parent was made for, if there is a parent and it says so.
    pub parent_chain_id: Option<String>,
    /// All labels of the request: hints from whoever made the image, not to be trusted.
    pub labels: &'a HashMap<String, String>,
    /// containerd's namespace, or empty if the request does not tell.
    pub namespace: String,
}

/// A container is about to start, or somebody looks at an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Chain id of the image: that of its uppermost layer.
    pub chain: Digest,
    /// The layers of the image that are mounted on demand, the lowest first; at least one.
    pub layers: Vec<Digest>,
    /// containerd's namespace, or empty if the request does not tell.
    pub namespace: String,
    /// What containerd's client calls the snapshot: for containers, mostly their id.
    pub key: String,
}

/// Chain id of a layer on top of `parent` (OCI image spec, "Layer ChainID").
pub fn chain_id(parent: Option<&str>, diff_id: &Digest) -> String {
    match parent {
        None => diff_id.to_string(),
        Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()).to_string(),
    }
}

/// A layer that containerd has fetched and need not unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// SHA-256 of its tar, to be held against the image's configuration by containerd.
    pub diff_id: Digest,
    /// Length of its tar, in bytes.
    pub tar_length: u64,
}

/// Why a layer cannot be mounted now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({reason})")]
pub struct Fallback {
    /// One of few words, for the metric.
    pub reason: &'static str,
    /// For the log: what is missing, and what would help.
    pub message: String,
}

/// Whoever can mount layers without unpacking them.
///
/// Contract: `resolve` decides from what is at hand, and gives up cleanly when its future is dropped, which happens
/// after the configured time. After `Ok(layer)`, `mount(layer, at)` works until the process ends, also for several
/// places at once and after a restart of the process, as long as the layer's index is kept. `mount` and `unmount` may
/// block on local disks, never on the network.
pub trait RemoteLayers: Send + Sync + 'static {
    /// The layer that turns the target's parent into its chain id, provided that it can be mounted now.
    fn resolve<'a>(&'a self, target: &'a Target<'a>) -> BoxFuture<'a, Result<Digest, Fallback>>;

    /// Makes a layer ready that containerd has fetched, `length` bytes, and is about to unpack: may wait for its index to be
    /// built, for as long as unpacking would take. After `Ok`, `mount` works as after `resolve`, though nobody else had the
    /// layer any more.
    fn fetched<'a>(&'a self, layer: &'a Digest, length: u64) -> BoxFuture<'a, Result<Fetched, Fallback>>;

    /// Mounts `layer` read-only at the directory `at`, in place of what a former process left there unless that is the layer
    /// and in working order, over the layers with the roots `lowers`, the uppermost first: what
    /// the layer does not say of its directories is taken from there. The error says what failed and what would help.
    fn mount(&self, layer: &Digest, at: &Path, lowers: &[PathBuf]) -> Result<(), String>;

    /// The directory that holds what this machine keeps of `layer`, to be counted as its snapshot's disk space; `None` if
    /// there is none.
    fn directory(&self, layer: &Digest) -> Option<PathBuf>;

    /// A snapshot was made on layers that are mounted on demand. Called within the request, which it must not hold up.
    fn started(&self, started: Started) {
        drop(started);
    }

    /// Detaches what is mounted at `at` (lazily: containers may still use it), and lets go of what served it.
    fn unmount(&self, at: &Path);
}
