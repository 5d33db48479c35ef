//! The node's state as its admin listener tells it and `lapwing ls` reads it.

use std::collections::HashMap;

use lapwing_p2p::node::Node;
use lapwing_snapshotter::index::Form;
use lapwing_snapshotter::lazy::{LazyError, Proof};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;
use crate::layers::{Knowledge, Layers};

/// Everything of a node that `lapwing ls` shows.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NodeState {
    /// Of the chunk store, and of containerd if they are served from there.
    pub blobs: Vec<BlobState>,
    /// Layers that may be, or are, mounted lazily.
    pub layers: Vec<LayerState>,
}

impl NodeState {
    /// What a seed has to show.
    pub(crate) fn blobs_of(node: &Node) -> Self {
        let blobs = node.blobs().into_iter().map(|blob| BlobState {
            digest: blob.digest.to_string(),
            length_bytes: blob.length,
            held_bytes: blob.have,
            verified: blob.verified,
            peers: blob.peers,
            bytes_from_peers: blob.bytes_from_peers,
            bytes_from_origin: blob.bytes_from_origin,
            pinned: blob.pinned,
            in_containerd: blob.foreign,
        });
        Self { blobs: blobs.collect(), layers: Vec::new() }
    }

    pub(crate) fn gather(node: &Node, layers: &Layers, catalog: &Catalog) -> Self {
        let mounts = layers.mounts();
        let mounted: HashMap<_, _> =
            mounts.into_iter().flat_map(|mounts| mounts.mounted()).map(|layer| (layer.digest(), layer)).collect();
        let mut known: HashMap<_, _> =
            layers.snapshot().into_iter().map(|(layer, known)| (layer, Some(known))).collect();
        for layer in mounted.keys() {
            known.entry(*layer).or_insert(None);
        }
        let mut layer_states: Vec<_> = known
            .into_iter()
            .map(|(layer, knowledge)| {
                let record = catalog.by_layer(&layer);
                let shown = mounted.get(&layer).cloned().or_else(|| mounts?.layer(&layer));
                let progress = shown.as_ref().map(|layer| layer.progress());
                let lazy = |form: Form| match progress.as_ref().map(|progress| progress.proof) {
                    Some(Proof::Proved) => ("proved", by(form)),
                    Some(Proof::Quarantined) => ("quarantined", LazyError::Quarantined(layer).to_string()),
                    Some(Proof::Pending) | None => ("pending", by(form)),
                };
                let (state, reason) = match (mounted.get(&layer), knowledge) {
                    // Whatever is known for the next pull.
                    (Some(mounted), _) => lazy(mounted.index().form()),
                    (None, Some(Knowledge::Ready { form, .. })) => lazy(form),
                    (None, Some(Knowledge::Searching) | None) => ("searching", String::new()),
                    (None, Some(Knowledge::Absent { reason, message, .. })) => {
                        ("whole", format!("{reason}: {message}"))
                    }
                    (None, Some(Knowledge::Indexed)) => {
                        ("whole", "pulled before there was an index; there is one now, for the next pull".to_owned())
                    }
                };
                LayerState {
                    digest: layer.to_string(),
                    image: record.map(|record| format!("{}/{}", record.registry, record.repo)).unwrap_or_default(),
                    state: state.to_owned(),
                    spans: progress.as_ref().map_or(0, |progress| progress.spans),
                    spans_fetched: progress.as_ref().map_or(0, |progress| progress.present),
                    reason,
                }
            })
            .collect();
        layer_states.sort_by(|one, other| one.digest.cmp(&other.digest));
        Self { layers: layer_states, ..Self::blobs_of(node) }
    }
}

/// What makes a layer lazy, if that is no index of the swarm's.
fn by(form: Form) -> String {
    match form {
        Form::Built => String::new(),
        other => format!("by its {} table of contents", other.name()),
    }
}

/// A blob of the chunk store.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BlobState {
    /// What it must hash to.
    pub digest: String,
    /// Its whole length.
    pub length_bytes: u64,
    /// How much of it is here, each piece verified.
    pub held_bytes: u64,
    /// Whether all of it is here, and matched its digest.
    pub verified: bool,
    /// Nodes that are asked for it now.
    pub peers: usize,
    /// What other nodes sent since this one started.
    pub bytes_from_peers: u64,
    /// What registries sent since then.
    pub bytes_from_origin: u64,
    /// Whether an operator pinned it.
    #[serde(default)]
    pub pinned: bool,
    /// Whether it lies in containerd's content store and not in the chunk store.
    #[serde(default)]
    pub in_containerd: bool,
}

/// A layer of an image that passed the mirror or was asked for by the snapshotter.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LayerState {
    /// The compressed layer.
    pub digest: String,
    /// Registry and repository it was seen in.
    pub image: String,
    /// `searching`, `whole`, `pending` (mounted lazily, not complete), `proved` (complete, and its index is right),
    /// `quarantined` (complete, and its index is wrong: reads of it fail).
    pub state: String,
    /// Stretches of the uncompressed layer, each fetched and checked as one.
    pub spans: usize,
    /// How many of them are here.
    pub spans_fetched: usize,
    /// Why it is not lazy, or by whose table of contents it is.
    pub reason: String,
}
