//! What `lapwing hydrate` asks of the node: `PUT /api/v1/hydrate`. Puts the blobs of an image that containerd's content store lacks there,
//! because its layers were mounted lazily, out of the chunk store and the swarm, so that whatever reads the content store works:
//! export, push, convert, another snapshotter.
//!
//! The bytes go from the node to containerd's socket and nowhere else: who may ask learns no more than which digests an image has. What
//! is missing here is fetched with the node's own credentials, as lazy reads are.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use axum::{Json, Router};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::{Node, Priority};
use lapwing_plugins::containerd::Containerd;
use lapwing_plugins::containerd::image::{Lease, Namespace};
use lapwing_plugins::registry::{RegistryName, RepositoryName};
use oci_spec::image::{Descriptor, ImageManifest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, LayerRecord};
use crate::layers::Origins;
use crate::limits::MAX_IMAGE_BLOBS;
use crate::platform::is_for;

const SOURCE: &str = "containerd.io/distribution.source.";
const REFERENCE: &str = "containerd.io/gc.ref.content";

/// What is to be done.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Wanted {
    /// The image's name, as containerd has it.
    pub image: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Of an image for several platforms, that one ("linux/arm64"); else all that were pulled.
    pub platform: Option<String>,
}

/// What was done.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Hydrated {
    /// Blobs that were there before.
    pub present: usize,
    /// Blobs that were put there.
    pub written: usize,
    /// Their length together.
    pub written_bytes: u64,
}

/// Where blobs come from and go to.
pub(crate) struct Hydration {
    pub node: Arc<Node>,
    pub origins: Arc<Origins>,
    pub catalog: Arc<Catalog>,
    pub containerd: Containerd,
}

/// Where an image was pulled from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    registry: RegistryName,
    repo: RepositoryName,
}

pub(crate) fn routes(hydration: Hydration) -> Router {
    Router::new().route("/api/v1/hydrate", put(hydrate)).with_state(Arc::new(hydration))
}

async fn hydrate(State(hydration): State<Arc<Hydration>>, Json(wanted): Json<Wanted>) -> Response {
    match hydration.run(&wanted).await {
        Ok(done) => {
            let Hydrated { written, written_bytes, .. } = done;
            tracing::info!(image = wanted.image, namespace = wanted.namespace, written, written_bytes, "hydrated");
            Json(done).into_response()
        }
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{error:#}\n")).into_response(),
    }
}

impl Hydration {
    async fn run(&self, wanted: &Wanted) -> anyhow::Result<Hydrated> {
        let namespace = Namespace::new(self.containerd.clone(), wanted.namespace.clone());
        let image = namespace.image(&wanted.image).await?.with_context(|| {
            let Wanted { image, namespace, .. } = wanted;
            format!("containerd has no image {image:?} in the namespace {namespace:?}; `ctr -n {namespace} images ls` shows its names")
        })?;
        let lease = namespace.lease().await?;
        let mut done = Hydrated::default();
        for manifest in manifests(&namespace, image.digest, &wanted.image, wanted.platform.as_deref()).await? {
            self.hydrate(&namespace, &lease, manifest, &wanted.image, &mut done).await?;
        }
        lease.end().await?;
        Ok(done)
    }

    async fn hydrate(
        &self,
        namespace: &Namespace,
        lease: &Lease,
        manifest: Digest,
        image: &str,
        done: &mut Hydrated,
    ) -> anyhow::Result<()> {
        let bytes = namespace.read_small(&manifest).await?.context("the manifest went meanwhile")?;
        let parsed: ImageManifest =
            serde_json::from_slice(&bytes).with_context(|| format!("{manifest} is not the manifest of an image"))?;
        let labels = namespace.labels(&manifest).await?.unwrap_or_default();
        let place = place_of(&labels, image);
        let blobs: Vec<&Descriptor> = std::iter::once(parsed.config()).chain(parsed.layers()).collect();
        anyhow::ensure!(blobs.len() <= MAX_IMAGE_BLOBS, "{manifest} names more than {MAX_IMAGE_BLOBS} blobs");
        for blob in &blobs {
            let digest: Digest = blob.digest().to_string().parse()?;
            if namespace.labels(&digest).await?.is_some() {
                done.present += 1;
                continue;
            }
            // Where the mirror saw the layer pass is exact; containerd notes hosts without their ports.
            let seen =
                self.catalog.by_layer(&digest).map(|LayerRecord { registry, repo, .. }| Place { registry, repo });
            self.put(lease, digest, blob.size(), seen.as_ref().or(place.as_ref()), sources(&labels)).await?;
            done.written += 1;
            done.written_bytes += blob.size();
        }
        let unreferenced = references(&labels, &blobs);
        if !unreferenced.is_empty() {
            // Else the garbage collection takes what was written when the lease ends.
            namespace.add_labels(&manifest, unreferenced).await?;
        }
        Ok(())
    }

    async fn put(
        &self,
        lease: &Lease,
        digest: Digest,
        length: u64,
        place: Option<&Place>,
        labels: HashMap<String, String>,
    ) -> anyhow::Result<()> {
        let origin = place.and_then(|Place { registry, repo }| self.origins.of(registry, repo, digest, length));
        let blob = self.node.open(digest, length, origin)?;
        let stream = blob.stream(0..length, Priority::Bulk);
        lease.write(digest, length, labels, stream).await?;
        Ok(())
    }
}

/// The manifests of `image` that are there, of that platform or of all.
pub(crate) async fn manifests(
    namespace: &Namespace,
    target: Digest,
    image: &str,
    platform: Option<&str>,
) -> anyhow::Result<Vec<Digest>> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Option<Vec<Descriptor>>,
    }
    let bytes = namespace.read_small(&target).await?.with_context(|| format!("containerd does not have {target}"))?;
    let index: Index = serde_json::from_slice(&bytes).with_context(|| format!("{target} is no manifest or index"))?;
    let Some(children) = index.manifests else { return Ok(vec![target]) };
    let mut found = Vec::new();
    for child in
        children.iter().take(MAX_IMAGE_BLOBS).filter(|child| platform.is_none_or(|wanted| is_for(child, wanted)))
    {
        let digest: Digest = child.digest().to_string().parse()?;
        if namespace.labels(&digest).await?.is_some() {
            found.push(digest);
        }
    }
    anyhow::ensure!(
        !found.is_empty(),
        "no manifest of {image} for {} is in containerd; pull it for that platform first",
        platform.unwrap_or("any platform"),
    );
    Ok(found)
}

/// What containerd noted of where the manifest came from, which holds for its blobs, too.
fn sources(labels: &HashMap<String, String>) -> HashMap<String, String> {
    labels.iter().filter(|(key, _)| key.starts_with(SOURCE)).map(|(key, repos)| (key.clone(), repos.clone())).collect()
}

/// From where the manifest was pulled, as containerd noted, in labels that leave ports out; else from where the image's name says.
fn place_of(labels: &HashMap<String, String>, image: &str) -> Option<Place> {
    let place = |registry: &str, repo: &str| Some(Place { registry: registry.parse().ok()?, repo: repo.parse().ok()? });
    let noted = labels.iter().filter_map(|(key, repos)| Some((key.strip_prefix(SOURCE)?, repos.split(',').next()?)));
    let (registry, rest) = image.split_once('/').unwrap_or(("", image));
    let rest = rest.split('@').next().unwrap_or(rest);
    let repo = rest.rsplit_once(':').map_or(rest, |(repo, _)| repo);
    // The one that the name says, if the manifest was pulled from several.
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let named = labels.get(&format!("{SOURCE}{host}")).and_then(|_| place(registry, repo));
    named
        .or_else(|| noted.filter_map(|(registry, repo)| place(registry, repo)).next())
        .or_else(|| place(registry, repo))
}

/// Labels by which a manifest keeps those of its blobs that it does not keep yet.
fn references(labels: &HashMap<String, String>, blobs: &[&Descriptor]) -> HashMap<String, String> {
    let kept: Vec<&String> =
        labels.iter().filter(|(key, _)| key.starts_with(REFERENCE)).map(|(_, digest)| digest).collect();
    let named = blobs.iter().map(|blob| blob.digest().to_string()).enumerate();
    named
        .filter(|(_, digest)| !kept.contains(&digest))
        .map(|(number, digest)| (format!("{REFERENCE}.lapwing.{number}"), digest))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: &str) -> Descriptor {
        let digest = Digest::of(platform.as_bytes());
        let text = format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":7{platform}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_place_is_where_it_was_pulled_from() {
        let place = |registry: &str, repo: &str| {
            Some(Place { registry: registry.parse().unwrap(), repo: repo.parse().unwrap() })
        };
        let labels = |pairs: &[(&str, &str)]| -> HashMap<_, _> {
            pairs.iter().map(|(host, repos)| (format!("{SOURCE}{host}"), (*repos).to_owned())).collect()
        };
        let name = "reg.example:5000/team/app:1.0";
        assert_eq!(place_of(&HashMap::new(), name), place("reg.example:5000", "team/app"));
        assert_eq!(place_of(&labels(&[("other.example", "a/b,c/d")]), name), place("other.example", "a/b"));
        let both = labels(&[("other.example", "a/b"), ("reg.example", "team/app")]);
        assert_eq!(place_of(&both, name), place("reg.example:5000", "team/app"));
        let digest = format!("reg.example/app@{}", Digest::of(b"m"));
        assert_eq!(place_of(&HashMap::new(), &digest), place("reg.example", "app"));
        assert_eq!(place_of(&HashMap::new(), "no registry"), None);
    }

    #[test]
    fn what_the_manifest_keeps_already_is_not_labelled_again() {
        let (one, two) = (descriptor(""), descriptor(r#","platform":{"os":"linux","architecture":"arm"}"#));
        let labels = HashMap::from([(format!("{REFERENCE}.l.0"), one.digest().to_string())]);
        let added = references(&labels, &[&one, &two]);
        assert_eq!(added, HashMap::from([(format!("{REFERENCE}.lapwing.1"), two.digest().to_string())]));
    }
}
