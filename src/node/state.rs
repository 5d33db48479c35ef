//! The node's state as its admin listener tells it and `lapwing ls` reads it.

use serde::{Deserialize, Serialize};

/// Everything of a node that `lapwing ls` shows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeState {
    pub blobs: Vec<BlobState>,
    pub layers: Vec<LayerState>,
}

/// A blob of the chunk store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlobState {
    pub digest: String,
    pub length_bytes: u64,
    pub held_bytes: u64,
    pub verified: bool,
    pub peers: usize,
    pub bytes_from_peers: u64,
    pub bytes_from_origin: u64,
}

/// A layer of an image that passed the mirror or was asked for by the snapshotter.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LayerState {
    pub digest: String,
    /// Registry and repository it was seen in.
    pub image: String,
    /// `searching`, `whole`, `pending` (mounted lazily, not complete), `proved` (complete, digest and diffID matched).
    pub state: String,
    pub length_bytes: u64,
    pub fetched_bytes: u64,
    /// Why it is not lazy.
    pub reason: String,
}
