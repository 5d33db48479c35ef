//! The layer that containerd's labels hint at.
//!
//! Labels come from clients and image authors (containerd `pkg/snapshotters/annotations.go`): they say where to look, and
//! what is found there must still continue the chain. They are never paths, URLs or credentials.

use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{RegistryName, RepositoryName};
use lapwing_snapshotter::remote::Target;

use crate::catalog::LayerRecord;

const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";

/// A record made of the labels alone, or `None` if they are missing or malformed.
pub(super) fn record(target: &Target<'_>) -> Option<LayerRecord> {
    let layer: Digest = target.labels.get(LAYER_DIGEST)?.parse().ok()?;
    let (registry, repo) = place(target.labels.get(IMAGE_REF)?)?;
    Some(LayerRecord {
        chain_id: target.chain_id.to_owned(),
        parent_chain: target.parent_chain_id.clone(),
        // Filled in from the index, which is then held against the chain.
        diff_id: layer,
        layer,
        length: 0,
        media_type: String::new(),
        registry,
        repo,
        manifest: None,
        // It would have to be held against a diffID, and labels name none.
        toc: None,
        soci: None,
    })
}

/// Registry and repository of an image reference, without its tag and digest.
fn place(reference: &str) -> Option<(RegistryName, RepositoryName)> {
    let name = reference.split('@').next()?;
    let (registry, path) = name.split_once('/')?;
    let repo = path.split(':').next()?;
    Some((registry.parse().ok()?, repo.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_repository_of_a_reference() {
        let cases = [
            ("docker.io/library/debian:12", "docker.io", "library/debian"),
            ("10.0.0.1:5000/a/b", "10.0.0.1:5000", "a/b"),
            ("reg.example/a:v1@sha256:00", "reg.example", "a"),
        ];
        for (reference, registry, repo) in cases {
            let (found_registry, found_repo) = place(reference).unwrap();
            assert_eq!((found_registry.as_str(), found_repo.as_str()), (registry, repo));
        }
        for bad in ["", "debian", "reg.example/../etc:1", "http://reg.example/a", "reg example/a"] {
            assert!(place(bad).is_none(), "{bad}");
        }
    }
}
