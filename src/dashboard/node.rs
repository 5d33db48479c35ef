//! What the page shows of a node or seed. Numbers that are counted come from `/metrics`, which the page reads itself.

use lapwing_p2p::node::Node;
use serde_json::{Value, json};

use crate::explain::Pulls;
use crate::explain::view;
use crate::node::state::{BlobState, LayerState, NodeState};

/// Pulls, layers and blobs that are shown.
const MAX_ROWS: usize = 100;

/// The state of a node. `pulls`: none on a seed.
pub(crate) fn state(node: &Node, state: NodeState, pulls: Option<&Pulls>, quota_bytes: Option<u64>) -> Value {
    let mut pulls = pulls.map(view::list).unwrap_or_default();
    pulls.truncate(MAX_ROWS);
    let NodeState { blobs, mut layers } = state;
    // Those that are looked after first: what is wrong, what is under way.
    layers.sort_by_key(urgency);
    let (layer_count, proved) = (layers.len(), count(&layers, "proved"));
    let pending = count(&layers, "pending");
    layers.truncate(MAX_ROWS);
    let held = |blob: &BlobState| blob.held_bytes;
    let own = || blobs.iter().filter(|blob| !blob.in_containerd);
    let trackers =
        node.trackers().into_iter().map(|(address, problem)| json!({"address": address, "problem": problem}));
    json!({
        "peer": node.id().to_string(),
        "busy": node.is_busy(),
        "pulls": pulls,
        "layers": layers,
        "layer_counts": {"all": layer_count, "proved": proved, "pending": pending},
        "cache": {
            "blobs": own().count(),
            "bytes": own().map(held).sum::<u64>(),
            "pinned_blobs": own().filter(|blob| blob.pinned).count(),
            "quota_bytes": quota_bytes,
            "containerd_blobs": blobs.iter().filter(|blob| blob.in_containerd).count(),
            "containerd_bytes": blobs.iter().filter(|blob| blob.in_containerd).map(held).sum::<u64>(),
        },
        "trackers": trackers.collect::<Vec<_>>(),
    })
}

fn count(layers: &[LayerState], state: &str) -> usize {
    layers.iter().filter(|layer| layer.state == state).count()
}

fn urgency(layer: &LayerState) -> usize {
    ["quarantined", "searching", "pending", "whole", "proved"]
        .iter()
        .position(|state| *state == layer.state)
        .unwrap_or(5)
}
