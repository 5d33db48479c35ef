//! From a manifest and its config to the chain ids of an image.

use std::collections::HashMap;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::limits::MAX_BLOB_LENGTH;
use lapwing_plugins::registry::{RegistryName, RepositoryName};
use lapwing_snapshotter::remote::chain_id;
use lapwing_snapshotter::toc::Announced;
use oci_spec::image::{Descriptor, ImageManifest, MediaType};
use serde::Deserialize;

use super::LayerRecord;
use crate::limits::MAX_IMAGE_LAYERS;
use crate::platform;

/// SOCI's index of the image, in the manifests that `soci convert` writes.
const SOCI_ANNOTATION: &str = "com.amazon.soci.index-digest";

/// A manifest that passed the mirror.
pub(crate) struct Image {
    pub registry: RegistryName,
    pub repo: RepositoryName,
    pub manifest: Digest,
    pub config: Digest,
    /// Length of the config in bytes.
    pub config_length: u64,
    /// The SOCI index that the manifest names.
    soci: Option<Digest>,
    /// Base first.
    layers: Vec<Layer>,
    /// Base first; empty until the config is known.
    diff_ids: Vec<Digest>,
    /// What a container of it is started with unless its creator says otherwise; empty until the config is known.
    arguments: Vec<String>,
    /// As the config says.
    platform: Option<String>,
}

struct Layer {
    digest: Digest,
    length: u64,
    media_type: String,
    toc: Option<Announced>,
}

/// Why a manifest or config teaches nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAnImage {
    /// An index, an artifact, or something that is not the JSON it says.
    #[error("not the manifest of an image: {0}")]
    Manifest(String),
    /// A config that does not fit its manifest.
    #[error("config does not fit: {0}")]
    Config(String),
}

impl Image {
    /// Parses the manifest of one image. Indexes are refused: the manifest of the platform that is asked for follows.
    pub(crate) fn parse(registry: RegistryName, repo: RepositoryName, manifest: &[u8]) -> Result<Self, NotAnImage> {
        let wrong = |reason: String| NotAnImage::Manifest(reason);
        let shape: Shape = serde_json::from_slice(manifest).map_err(|error| wrong(error.to_string()))?;
        // GHSA-5j5w-g665-5m35: what can be read as both is read as neither.
        if shape.manifests.is_some() || shape.fs_layers.is_some() {
            return Err(wrong("it lists manifests or is of schema 1".to_owned()));
        }
        let parsed: ImageManifest = serde_json::from_slice(manifest).map_err(|error| wrong(error.to_string()))?;
        if parsed.layers().len() > MAX_IMAGE_LAYERS {
            return Err(wrong(format!("{} layers", parsed.layers().len())));
        }
        if !is_config(parsed.config().media_type()) {
            return Err(wrong(format!("its config is of type {}", parsed.config().media_type())));
        }
        let layers = parsed.layers().iter().filter(|layer| is_layer(layer.media_type()));
        let layers = layers.map(layer).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        Ok(Self {
            registry,
            repo,
            manifest: Digest::of(manifest),
            config: digest(parsed.config()).map_err(wrong)?,
            config_length: parsed.config().size(),
            soci: annotation(parsed.annotations().as_ref(), SOCI_ANNOTATION).and_then(|digest| digest.parse().ok()),
            layers,
            diff_ids: Vec::new(),
            arguments: Vec::new(),
            platform: None,
        })
    }

    /// Takes up the diff ids of the config.
    pub(crate) fn with_config(mut self, config: &[u8]) -> Result<Self, NotAnImage> {
        let wrong = |reason: String| NotAnImage::Config(reason);
        if Digest::of(config) != self.config {
            return Err(wrong(format!("it is not {}", self.config)));
        }
        let parsed: Config = serde_json::from_slice(config).map_err(|error| wrong(error.to_string()))?;
        let (layers, diff_ids) = (self.layers.len(), parsed.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(wrong(format!("{layers} layers, {diff_ids} diff ids")));
        }
        let diff_ids = parsed.rootfs.diff_ids.iter().map(|id| id.parse::<Digest>());
        self.diff_ids = diff_ids.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
        self.platform = parsed.os.zip(parsed.architecture).map(|(os, architecture)| format!("{os}/{architecture}"));
        let Process { entrypoint, cmd } = parsed.config.unwrap_or_default();
        self.arguments = entrypoint.into_iter().flatten().chain(cmd.into_iter().flatten()).collect();
        Ok(self)
    }

    /// What a container of it is started with, the program first, unless its creator says otherwise.
    pub(crate) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Digests and lengths of the layers, base first.
    pub(crate) fn layer_sizes(&self) -> impl Iterator<Item = (Digest, u64)> {
        self.layers.iter().map(|layer| (layer.digest, layer.length))
    }

    /// Whether its config names another machine's platform. Clients read manifests and configs of all platforms that an index lists, and
    /// mostly want the layers of their own.
    pub(crate) fn is_foreign(&self) -> bool {
        self.platform.as_ref().is_some_and(|platform| *platform != platform::own())
    }

    /// The layers with their chain ids, base first; none before the config is known.
    pub(crate) fn records(&self) -> Vec<LayerRecord> {
        let mut parent: Option<String> = None;
        let pairs = self.layers.iter().zip(&self.diff_ids);
        pairs
            .map(|(layer, diff_id)| {
                let chain = chain_id(parent.as_deref(), diff_id);
                let parent_chain = parent.replace(chain.clone());
                LayerRecord {
                    chain_id: chain,
                    parent_chain,
                    diff_id: *diff_id,
                    layer: layer.digest,
                    length: layer.length,
                    media_type: layer.media_type.clone(),
                    registry: self.registry.clone(),
                    repo: self.repo.clone(),
                    manifest: Some(self.manifest),
                    toc: layer.toc,
                    soci: self.soci,
                }
            })
            .collect()
    }
}

fn layer(descriptor: &Descriptor) -> Result<Layer, String> {
    let (digest, length) = (digest(descriptor)?, descriptor.size());
    if length > MAX_BLOB_LENGTH {
        return Err(format!("layer {digest} of {length} bytes is longer than the limit of {MAX_BLOB_LENGTH}"));
    }
    let toc = Announced::of(|name| annotation(descriptor.annotations().as_ref(), name));
    Ok(Layer { digest, length, media_type: descriptor.media_type().to_string(), toc })
}

fn annotation<'a>(annotations: Option<&'a HashMap<String, String>>, name: &str) -> Option<&'a str> {
    annotations?.get(name).map(String::as_str)
}

fn digest(descriptor: &Descriptor) -> Result<Digest, String> {
    descriptor.digest().to_string().parse::<Digest>().map_err(|error| error.to_string())
}

fn is_config(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageConfig => true,
        MediaType::Other(name) => name == "application/vnd.docker.container.image.v1+json",
        _ => false,
    }
}

/// What containerd counts as a layer (`images.IsLayerType`).
pub(crate) fn is_layer(media_type: &MediaType) -> bool {
    let name = media_type.to_string();
    name.starts_with("application/vnd.oci.image.layer.")
        || name.starts_with("application/vnd.docker.image.rootfs.diff.tar")
        || name.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
}

#[derive(Deserialize)]
struct Shape {
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Config {
    os: Option<String>,
    architecture: Option<String>,
    rootfs: RootFs,
    config: Option<Process>,
}

#[derive(Default, Deserialize)]
struct Process {
    #[serde(rename = "Entrypoint")]
    entrypoint: Option<Vec<String>>,
    #[serde(rename = "Cmd")]
    cmd: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

    fn descriptor(media_type: &str, digest: &str, size: u64) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }

    fn sha(text: &str) -> String {
        Digest::of(text.as_bytes()).to_string()
    }

    fn parse(manifest: &serde_json::Value) -> Result<Image, NotAnImage> {
        let bytes = serde_json::to_vec(manifest).unwrap();
        Image::parse(RegistryName::docker_hub(), "library/x".parse().unwrap(), &bytes)
    }

    /// containerd's own example in `identity/chainid_test.go` of the image spec.
    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let text = |name: &str| Digest::of(name.as_bytes());
        let (one, two, three) = (text("a"), text("b"), text("c"));
        let first = chain_id(None, &one);
        assert_eq!(first, one.to_string());
        let second = chain_id(Some(&first), &two);
        assert_eq!(second, Digest::of(format!("{one} {two}").as_bytes()).to_string());
        let third = chain_id(Some(&second), &three);
        assert_eq!(third, Digest::of(format!("{second} {three}").as_bytes()).to_string());
    }

    #[test]
    fn an_image_gives_its_layers_with_their_chains() {
        let config = serde_json::to_vec(&json!({
            "rootfs": { "type": "layers", "diff_ids": [sha("d1"), sha("d2")] },
            "config": { "Entrypoint": ["/bin/python3"], "Cmd": ["main.py"] },
        }))
        .unwrap();
        let manifest = json!({
            "schemaVersion": 2,
            "config": descriptor(CONFIG, &Digest::of(&config).to_string(), config.len() as u64),
            "layers": [descriptor(GZIP, &sha("l1"), 11), descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", &sha("l2"), 22)],
        });
        let mut with_toc = manifest.clone();
        let digest = Digest::of(b"toc");
        with_toc["annotations"] = json!({ "com.amazon.soci.index-digest": digest.to_string() });
        with_toc["layers"][0]["annotations"] =
            json!({ lapwing_snapshotter::toc::ESTARGZ_ANNOTATION: digest.to_string() });
        let announced = parse(&with_toc).unwrap().with_config(&config).unwrap().records();
        assert_eq!(
            announced.iter().map(|record| record.toc).collect::<Vec<_>>(),
            [Some(Announced::EStargz { digest }), None]
        );

        assert!(announced.iter().all(|record| record.soci == Some(digest)));

        let image = parse(&manifest).unwrap().with_config(&config).unwrap();
        let records = image.records();
        assert_eq!(records.len(), 2);
        assert_eq!((records[0].toc, records[0].soci), (None, None));
        assert_eq!((records[0].chain_id.clone(), records[0].parent_chain.clone()), (sha("d1"), None));
        let chain = Digest::of(format!("{} {}", sha("d1"), sha("d2")).as_bytes()).to_string();
        assert_eq!((records[1].chain_id.clone(), records[1].parent_chain.clone()), (chain, Some(sha("d1"))));
        assert_eq!((records[1].layer.to_string(), records[1].length), (sha("l2"), 22));
        assert_eq!(records[1].media_type, "application/vnd.docker.image.rootfs.diff.tar.gzip");
        assert_eq!(image.arguments(), ["/bin/python3", "main.py"]);
        assert!(!image.is_foreign(), "it does not say for what it is");
        for (platform, is_foreign) in [("linux/s390x", true), ("windows/amd64", true), (&*platform::own(), false)] {
            let image = Image { platform: Some(platform.to_owned()), ..parse(&manifest).unwrap() };
            assert_eq!(image.is_foreign(), is_foreign, "{platform}");
        }
    }

    #[test]
    fn what_does_not_fit_teaches_nothing() {
        let config = serde_json::to_vec(&json!({ "rootfs": { "diff_ids": [sha("d1")] } })).unwrap();
        let name = Digest::of(&config).to_string();
        let image = |layers: serde_json::Value| json!({ "schemaVersion": 2, "config": descriptor(CONFIG, &name, 1), "layers": layers });
        let two = parse(&image(json!([descriptor(GZIP, &sha("a"), 1), descriptor(GZIP, &sha("b"), 1)]))).unwrap();
        assert!(matches!(two.with_config(&config), Err(NotAnImage::Config(_))), "two layers, one diff id");
        let attestation = parse(&image(json!([descriptor("application/vnd.in-toto+json", &sha("a"), 1)]))).unwrap();
        assert!(attestation.with_config(&config).is_err(), "no layers, one diff id");
        let other = parse(&image(json!([descriptor(GZIP, &sha("a"), 1)]))).unwrap();
        assert!(other.with_config(b"{}").is_err(), "another config");

        let mut both = image(json!([]));
        both["manifests"] = json!([]);
        let mut artifact = image(json!([]));
        artifact["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
        let huge = image(json!([descriptor(GZIP, &sha("a"), 1 << 50)]));
        let sha512 = image(json!([descriptor(GZIP, &format!("sha512:{}", "0".repeat(128)), 1)]));
        let index = json!({ "schemaVersion": 2, "manifests": [] });
        for manifest in [both, artifact, huge, sha512, index, json!({}), json!([])] {
            assert!(matches!(parse(&manifest), Err(NotAnImage::Manifest(_))), "{manifest}");
        }
    }
}
