//! What a manifest or index names, and of what type it is itself.

use lapwing_p2p::digest::Digest;
use lapwing_p2p::limits::MAX_BLOB_LENGTH;
use serde::Deserialize;

use super::proofs::Given;
use crate::limits::MAX_VOUCHED;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest or index (OCI image specification 1.1, "Image Manifest", "Image Index"; docker's schema 2 has the same shape).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub media_type: String,
    pub children: Vec<Given>,
}

#[derive(Deserialize)]
struct Shape {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    digest: String,
    size: u64,
    urls: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// None for anything else, or what can be read as both.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let shape: Shape = serde_json::from_slice(bytes).ok()?;
        let (default, children) = match (shape.manifests, shape.config, shape.layers) {
            (Some(manifests), None, None) => (INDEX, manifests),
            (None, Some(config), Some(mut layers)) => {
                layers.push(config);
                (MANIFEST, layers)
            }
            _ => return None,
        };
        if children.len() > MAX_VOUCHED {
            return None;
        }
        let media_type = shape.media_type.unwrap_or_else(|| default.to_owned());
        // Those of another algorithm are for the client to fetch elsewhere.
        Some(Self { media_type, children: children.into_iter().filter_map(Descriptor::given).collect() })
    }
}

impl Descriptor {
    /// A registry takes a manifest only with the blobs that it names, so that who may read the one may read the others; but
    /// blobs that are elsewhere it takes on faith, and they may be anybody's.
    fn given(self) -> Option<Given> {
        let is_elsewhere = |kind: &str| kind.contains(".foreign.") || kind.contains(".nondistributable.");
        if self.urls.is_some() || self.media_type.as_deref().is_some_and(is_elsewhere) {
            return None;
        }
        let digest: Digest = self.digest.parse().ok()?;
        (self.size <= MAX_BLOB_LENGTH).then_some(Given { digest, length: self.size, media_type: self.media_type })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(text: &serde_json::Value) -> Option<Manifest> {
        Manifest::parse(text.to_string().as_bytes())
    }

    fn named(content: &[u8], size: u64) -> serde_json::Value {
        json!({ "mediaType": "m", "digest": Digest::of(content).to_string(), "size": size })
    }

    fn given(content: &[u8], length: u64) -> Given {
        Given { digest: Digest::of(content), length, media_type: Some("m".to_owned()) }
    }

    #[test]
    fn manifests_and_indexes_name_their_parts() {
        let manifest = json!({ "config": named(b"c", 1), "layers": [named(b"l", 2)] });
        let children = vec![given(b"l", 2), given(b"c", 1)];
        assert_eq!(parse(&manifest), Some(Manifest { media_type: MANIFEST.to_owned(), children }));
        let index = json!({ "mediaType": "its/own", "manifests": [named(b"m", 3)] });
        assert_eq!(parse(&index), Some(Manifest { media_type: "its/own".to_owned(), children: vec![given(b"m", 3)] }));
    }

    #[test]
    fn what_is_neither_or_both_names_nothing() {
        let both = json!({ "config": named(b"c", 1), "layers": [], "manifests": [named(b"m", 3)] });
        let schema_1 = json!({ "schemaVersion": 1, "fsLayers": [{ "blobSum": "sha256:00" }] });
        let many = json!({ "manifests": vec![named(b"m", 3); MAX_VOUCHED + 1] });
        for text in [both, schema_1, many, json!([]), json!({})] {
            assert_eq!(parse(&text), None);
        }
        assert_eq!(Manifest::parse(b"\xff"), None);
    }

    #[test]
    fn a_registry_does_not_vouch_for_what_is_elsewhere() {
        let mut urls = named(b"a", 1);
        urls["urls"] = json!(["https://elsewhere.example/a"]);
        let mut foreign = named(b"b", 1);
        foreign["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        let mut old = named(b"d", 1);
        old["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        let manifest = json!({ "config": named(b"c", 1), "layers": [urls, foreign, old] });
        assert_eq!(parse(&manifest).unwrap().children, [given(b"c", 1)]);
    }

    #[test]
    fn parts_that_cannot_be_had_are_left_out() {
        let sha512 = json!({ "digest": format!("sha512:{}", "0".repeat(128)), "size": 1 });
        let index = json!({ "manifests": [sha512, named(b"huge", 1 << 50), named(b"m", 3)] });
        assert_eq!(parse(&index).unwrap().children, [given(b"m", 3)]);
    }
}
