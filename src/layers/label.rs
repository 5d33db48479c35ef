//! The layer that containerd's labels hint at.
//!
//! Labels come from clients and image authors (containerd `pkg/snapshotters/annotations.go`): they say where to look, and
//! what is found there must still continue the chain. They are never paths, URLs or credentials.

use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::Reference;
use lapwing_snapshotter::remote::Target;

use crate::catalog::LayerRecord;

const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";

/// A record made of the labels alone, or `None` if they are missing or malformed.
pub(super) fn record(target: &Target<'_>) -> Option<LayerRecord> {
    let layer: Digest = target.labels.get(LAYER_DIGEST)?.parse().ok()?;
    let reference: Reference = target.labels.get(IMAGE_REF)?.parse().ok()?;
    Some(LayerRecord {
        chain_id: target.chain_id.to_owned(),
        parent_chain: target.parent_chain_id.clone(),
        // Filled in from the index, which is then held against the chain.
        diff_id: layer,
        layer,
        length: 0,
        media_type: String::new(),
        registry: reference.registry,
        repo: reference.repo,
        manifest: None,
    })
}
