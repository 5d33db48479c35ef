//! containerd's diff service (`containerd.services.diff.v1`), for what it fetched and is about to unpack.
//!
//! A layer that can be mounted as it is is not unpacked: its snapshot stands for it ([`Shared::adopt`](super::Shared)), and what containerd
//! is told is the layer's diffID, which it holds against the image's configuration. Everything else is passed on to containerd's own diff
//! service, since a client that asks for this one has no other to go to. Where that is configured to ask this one first, it
//! comes back, and is answered UNIMPLEMENTED, after which containerd unpacks by itself. Differences are not computed here.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::timeline::{Timelines, Track};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, async_trait};

use super::proto::Descriptor;
use super::proto::diff::diff_server::Diff;
use super::proto::diff::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use super::rpc::namespace_of;
use super::{Snapshotter, blocking};
use crate::limits::MAX_UNPACKS;
use crate::remote::{Fallback, chain_id};

/// What containerd calls a tar that is a layer.
const TAR_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media types of layers that are a tar, without what says how it is compressed.
const LAYER_TYPES: [&str; 4] = [
    TAR_TYPE,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const COMPRESSIONS: [&str; 2] = ["gzip", "zstd"];

/// Whoever unpacks layers into mounts: containerd itself.
pub trait Unpacker: Send + Sync + 'static {
    /// Does what the request asks for, in one of containerd's namespaces.
    fn unpack(&self, namespace: String, request: ApplyRequest) -> BoxFuture<'_, Result<ApplyResponse, Status>>;
}

/// See the module's documentation.
pub struct Diffs {
    snapshotter: Snapshotter,
    unpacker: Arc<dyn Unpacker>,
    /// What was passed on and is not done: it may come back.
    passed_on: Arc<Mutex<HashSet<Passed>>>,
    timelines: Option<Arc<Timelines>>,
}

/// A namespace, a layer, and where it goes.
type Passed = (String, String, String);

impl Diffs {
    /// For snapshots of `snapshotter`; all else is left to `unpacker`.
    pub fn new(snapshotter: Snapshotter, unpacker: Arc<dyn Unpacker>) -> Self {
        Self { snapshotter, unpacker, passed_on: Arc::default(), timelines: None }
    }

    /// Takes down how long containerd waited for each layer.
    #[must_use]
    pub fn taken_down(self, timelines: Arc<Timelines>) -> Self {
        Self { timelines: Some(timelines), ..self }
    }

    async fn adopted(&self, request: &ApplyRequest) -> Result<Descriptor, Fallback> {
        let (layer, length) = layer_of(request)?;
        let shared = &self.snapshotter.0;
        let refused = |reason, message: &str| Fallback { reason, message: message.to_owned() };
        let layers = shared.layers.layers().ok_or_else(|| refused("off", "lazy mounts are switched off"))?;
        let mounts = request.mounts.clone();
        let extraction = blocking(shared, move |shared| shared.extraction(&mounts)).await?;
        let extraction =
            extraction.ok_or_else(|| refused("foreign", "the mounts are no snapshot being extracted here"))?;
        let fetched = layers.fetched(&layer, length).await?;
        let chain = chain_id(extraction.parent_chain_id.as_deref(), &fetched.diff_id);
        if chain != extraction.chain_id {
            let message = format!("{layer} gives chain {chain}, not {}", extraction.chain_id);
            return Err(Fallback { reason: "wrong_chain", message });
        }
        blocking(shared, move |shared| shared.adopt(&extraction, &layer)).await?;
        Ok(Descriptor {
            media_type: TAR_TYPE.to_owned(),
            digest: fetched.diff_id.to_string(),
            size: i64::try_from(fetched.tar_length).unwrap_or(i64::MAX),
            annotations: Default::default(),
        })
    }

    async fn pass_on(&self, passed: Passed, request: ApplyRequest) -> Result<ApplyResponse, Status> {
        let _under_way = UnderWay::new(&self.passed_on, passed.clone())?;
        self.unpacker.unpack(passed.0, request).await
    }
}

/// The layer that is to be unpacked, and its length, if it is a tar of some kind.
fn layer_of(request: &ApplyRequest) -> Result<(Digest, u64), Fallback> {
    let refused = |message: String| Fallback { reason: "media_type", message };
    let diff = request.diff.as_ref().ok_or_else(|| refused("the request names no layer".to_owned()))?;
    let compressed =
        diff.media_type.rsplit_once(['+', '.']).filter(|(_, compression)| COMPRESSIONS.contains(compression));
    let base = compressed.map_or(diff.media_type.as_str(), |(base, _)| base);
    if !LAYER_TYPES.contains(&base) || !request.payloads.is_empty() {
        return Err(refused(format!("{:?} is no layer that can be mounted as it is", diff.media_type)));
    }
    let digest = diff.digest.parse().map_err(|error| refused(format!("{:?}: {error}", diff.digest)))?;
    let length = u64::try_from(diff.size).map_err(|_| refused(format!("a layer of {} bytes", diff.size)))?;
    Ok((digest, length))
}

/// UNIMPLEMENTED for what was passed on and comes back.
fn refuse_back(under_way: &HashSet<Passed>, passed: &Passed) -> Result<(), Status> {
    match under_way.contains(passed) {
        true => Err(Status::unimplemented("this layer is unpacked by containerd itself")),
        false => Ok(()),
    }
}

/// Takes a request down for as long as it is passed on.
struct UnderWay {
    all: Arc<Mutex<HashSet<Passed>>>,
    passed: Passed,
}

impl UnderWay {
    fn new(all: &Arc<Mutex<HashSet<Passed>>>, passed: Passed) -> Result<Self, Status> {
        let mut under_way = all.lock().unwrap_or_else(PoisonError::into_inner);
        refuse_back(&under_way, &passed)?;
        if under_way.len() >= MAX_UNPACKS {
            return Err(Status::resource_exhausted(format!("{MAX_UNPACKS} layers are being unpacked: try again")));
        }
        under_way.insert(passed.clone());
        Ok(Self { all: Arc::clone(all), passed })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.passed);
    }
}

fn passed(metadata: &MetadataMap, request: &ApplyRequest) -> Passed {
    let digest = request.diff.as_ref().map(|diff| diff.digest.clone()).unwrap_or_default();
    (namespace_of(metadata), digest, format!("{:?}", request.mounts))
}

#[async_trait]
impl Diff for Diffs {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let passed = passed(&metadata, &request);
        refuse_back(&self.passed_on.lock().unwrap_or_else(PoisonError::into_inner), &passed)?;
        let layer = passed.1.parse::<Digest>().ok().zip(self.timelines.as_ref());
        let _unpacking = layer.map(|(layer, timelines)| timelines.of(&layer).span(Track::Unpack));
        let metrics = &self.snapshotter.0.metrics;
        match self.adopted(&request).await {
            Ok(applied) => {
                tracing::info!(digest = %passed.1, diff_id = %applied.digest, "layer mounted in the place of being unpacked");
                metrics.count_adopted();
                Ok(Response::new(ApplyResponse { applied: Some(applied) }))
            }
            Err(Fallback { reason, message }) => {
                tracing::info!(digest = %passed.1, reason, message, "layer is unpacked by containerd");
                metrics.count_unpacked(reason);
                Ok(Response::new(self.pass_on(passed, request).await?))
            }
        }
    }

    async fn diff(&self, _: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        Err(Status::unimplemented("differences are computed by containerd itself"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(media_type: &str) -> ApplyRequest {
        let digest = Digest::of(b"layer").to_string();
        let diff = Descriptor { media_type: media_type.to_owned(), digest, size: 5, ..Descriptor::default() };
        ApplyRequest { diff: Some(diff), ..ApplyRequest::default() }
    }

    #[test]
    fn tars_are_layers_and_nothing_else() {
        for media_type in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            assert_eq!(layer_of(&request(media_type)), Ok((Digest::of(b"layer"), 5)), "{media_type}");
        }
        for media_type in [
            "",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.layer.v1.tar+encrypted",
            "application/vnd.erofs.layer.v1",
            "application/vnd.oci.image.manifest.v1+json",
        ] {
            assert!(layer_of(&request(media_type)).is_err(), "{media_type}");
        }
        let mut negative = request(TAR_TYPE);
        negative.diff.as_mut().unwrap().size = -1;
        let mut processed = request(TAR_TYPE);
        processed.payloads.insert("io.containerd.ocicrypt.v1.Payload".to_owned(), prost_types::Any::default());
        for request in [negative, processed, ApplyRequest::default()] {
            assert!(layer_of(&request).is_err());
        }
    }

    #[test]
    fn what_comes_back_is_known_until_it_is_done() {
        let all = Arc::default();
        let passed = |layer: &str| ("default".to_owned(), layer.to_owned(), String::new());
        let first = UnderWay::new(&all, passed("one")).unwrap();
        assert_eq!(UnderWay::new(&all, passed("one")).err().unwrap().code(), tonic::Code::Unimplemented);
        let _other = UnderWay::new(&all, passed("two")).unwrap();
        drop(first);
        assert!(UnderWay::new(&all, passed("one")).is_ok());
    }
}
