//! What `lapwing profile` asks of the node: `GET /api/v1/profile`, `GET /api/v1/profile/file` and `PUT /api/v1/profile/file`. An image is named as
//! containerd has it, with its namespace, or by its chain id.

use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::limits::MAX_PROFILE_LENGTH;
use lapwing_plugins::containerd::image::Namespace;
use lapwing_plugins::registry::RegistryName;
use lapwing_snapshotter::profile::Profile;
use lapwing_snapshotter::profile::merge::Extent;
use oci_spec::image::ImageManifest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Profiles;
use crate::catalog::Image;
use crate::hydrate;

/// Which image.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Wanted {
    /// Its name, or a chain id.
    pub image: String,
    /// containerd's namespace.
    pub namespace: String,
}

/// What is known of an image.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ProfileState {
    /// Chain id of the image.
    pub chain: String,
    /// Entry points, the latest first; those that this node recorded before those that others tell of.
    pub starts: Vec<StartState>,
    /// The layers that are read, the one that most is read of first.
    pub layers: Vec<LayerShare>,
}

/// One entry point.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct StartState {
    /// Name of the program; empty if not known.
    pub program: String,
    /// Tells apart what the program was started with: four hexadecimal digits.
    pub arguments: String,
    /// `here` or `swarm`.
    pub source: String,
    /// When it was recorded last, Unix time.
    pub recorded: u64,
    /// How many starts went into it.
    pub recordings: u32,
    /// Stretches that were read.
    pub reads: usize,
    /// Their bytes, decompressed.
    pub bytes: u64,
    /// When the last of them was read, after the start.
    pub last_ms: u32,
}

/// How much of a layer is read, whatever the entry point.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LayerShare {
    /// The compressed layer.
    pub digest: String,
    /// Bytes of the decompressed layer.
    pub bytes: u64,
}

pub(crate) fn routes(profiles: Arc<Profiles>) -> Router {
    Router::new()
        .route("/api/v1/profile", get(show))
        .route("/api/v1/profile/file", get(export).put(import))
        .layer(DefaultBodyLimit::max(MAX_PROFILE_LENGTH as usize))
        .with_state(profiles)
}

async fn show(State(profiles): State<Arc<Profiles>>, Query(wanted): Query<Wanted>) -> Response {
    answered(profiles.show(&wanted).await.map(Json))
}

async fn export(State(profiles): State<Arc<Profiles>>, Query(wanted): Query<Wanted>) -> Response {
    let bytes = profiles.export(&wanted).await.map(|profile| profile.encode());
    answered(bytes.map(|bytes| ([(header::CONTENT_TYPE, "application/octet-stream")], bytes)))
}

async fn import(State(profiles): State<Arc<Profiles>>, body: bytes::Bytes) -> Response {
    answered(profiles.import(&body).await.map(Json))
}

fn answered(answer: anyhow::Result<impl IntoResponse>) -> Response {
    match answer {
        Ok(answer) => answer.into_response(),
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{error:#}\n")).into_response(),
    }
}

impl Profiles {
    async fn show(&self, wanted: &Wanted) -> anyhow::Result<ProfileState> {
        let chain = self.chain(wanted).await?;
        let (own, theirs) = self.gather(chain).await;
        let sources = own.iter().map(|own| ("here", own)).chain(theirs.iter().map(|profile| ("swarm", profile)));
        let mut state = ProfileState { chain: chain.to_string(), starts: Vec::new(), layers: Vec::new() };
        let mut extent = Extent::default();
        for (source, profile) in sources {
            if source == "swarm" && own.as_ref() == Some(profile) {
                continue;
            }
            state.starts.extend(starts(source, profile));
            profile.reads().for_each(|read| drop(extent.add(&read.layer, &read.range)));
        }
        anyhow::ensure!(!state.starts.is_empty(), "{}", nothing_of(&wanted.image));
        let share = |(layer, bytes): (Digest, u64)| LayerShare { digest: layer.to_string(), bytes };
        state.layers = extent.layers().map(share).collect();
        state.layers.sort_by_key(|layer| std::cmp::Reverse(layer.bytes));
        Ok(state)
    }

    /// What this node recorded, else what most others state.
    async fn export(&self, wanted: &Wanted) -> anyhow::Result<Profile> {
        let (own, theirs) = self.gather(self.chain(wanted).await?).await;
        own.into_iter().chain(theirs).next().with_context(|| nothing_of(&wanted.image))
    }

    /// Takes a profile for one that was recorded here.
    async fn import(&self, bytes: &[u8]) -> anyhow::Result<ProfileState> {
        let Profile { chain, starts: new } = Profile::decode(bytes)?;
        let own = self.learn(chain, new).await?;
        tracing::info!(%chain, "an operator imported a profile");
        let layers = Vec::new();
        Ok(ProfileState { chain: chain.to_string(), starts: starts("here", &own), layers })
    }

    /// The chain id of an image that containerd has, of the first of its platforms that was pulled.
    async fn chain(&self, wanted: &Wanted) -> anyhow::Result<Digest> {
        if let Ok(chain) = wanted.image.parse() {
            return Ok(chain);
        }
        let Wanted { image, namespace } = wanted;
        let containerd = Namespace::new(self.containerd.clone(), namespace.clone());
        let target = containerd.image(image).await?.with_context(|| {
            format!("containerd has no image {image:?} in the namespace {namespace:?}; `ctr -n {namespace} images ls` shows its names")
        })?;
        let manifests = hydrate::manifests(&containerd, target.digest, image, None).await?;
        let manifest = manifests.first().context("an image without a manifest")?;
        let manifest = containerd.read_small(manifest).await?.context("the manifest went meanwhile")?;
        let parsed: ImageManifest = serde_json::from_slice(&manifest).context("not the manifest of an image")?;
        let config: Digest = parsed.config().digest().to_string().parse()?;
        let config =
            containerd.read_small(&config).await?.with_context(|| format!("containerd does not have {config}"))?;
        // The registry does not matter to the chain.
        let image =
            Image::parse(RegistryName::docker_hub(), "library/any".parse()?, &manifest)?.with_config(&config)?;
        let records = image.records();
        Ok(records.last().context("an image without layers")?.chain_id.parse()?)
    }
}

fn nothing_of(image: &str) -> String {
    format!(
        "no profile of {image} is known: it is recorded when a container starts on its lazily mounted layers (lazy.record_for)"
    )
}

fn starts(source: &str, profile: &Profile) -> Vec<StartState> {
    let state = |start: &lapwing_snapshotter::profile::Start| StartState {
        program: start.entry.program.clone(),
        arguments: format!("{:04x}", start.entry.tag),
        source: source.to_owned(),
        recorded: start.recorded,
        recordings: start.recordings,
        reads: start.reads.len(),
        bytes: Extent::of(&start.reads).bytes(),
        last_ms: start.reads.last().map_or(0, |read| read.at_ms),
    };
    let mut states: Vec<_> = profile.starts.iter().map(state).collect();
    states.sort_by_key(|state| std::cmp::Reverse(state.recorded));
    states
}
