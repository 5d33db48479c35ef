//! The service as tonic calls it.

use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, async_trait};

use super::convert::{check_labels, check_name, check_new};
use super::proto::snapshots_server::Snapshots;
use super::proto::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest, MountsResponse,
    PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
    UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest,
    ViewSnapshotResponse,
};
use super::{Snapshotter, blocking};
use crate::graph::{Info, Kind, Labels, REF_LABEL};
use crate::limits::LIST_BATCH;
use crate::remote::Wish;
use lapwing_p2p::trace::{self, Span, TRACEPARENT, TraceContext};

/// The header in which containerd passes its namespace on.
const NAMESPACE_HEADER: &str = "containerd-namespace";

/// The namespace that containerd passes on; empty if it does not.
pub(super) fn namespace_of(metadata: &MetadataMap) -> String {
    metadata.get(NAMESPACE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

type Answer<T> = Result<Response<T>, Status>;

impl Snapshotter {
    /// Whether the Prepare needs no extraction because its target is there, mounted on demand.
    async fn claimed(&self, request: &PrepareSnapshotRequest, labels: &Arc<Labels>, metadata: &MetadataMap) -> bool {
        let Some(chain_id) = labels.get(REF_LABEL).filter(|chain_id| !chain_id.is_empty()) else { return false };
        if self.0.layers.layers().is_none() {
            return false;
        }
        let wish = Wish {
            chain_id: chain_id.clone(),
            parent: request.parent.clone(),
            labels: Arc::clone(labels),
            namespace: namespace_of(metadata),
        };
        match wish.grant(&self.0).await {
            Ok(()) => {
                self.0.metrics.count_claim();
                true
            }
            Err(fallback) => {
                let (reason, message) = (fallback.reason, fallback.message);
                tracing::info!(%chain_id, parent = %request.parent, reason, message, "layer will be pulled whole");
                self.0.metrics.count_fallback(reason);
                false
            }
        }
    }
}

/// Preparing a layer of an image, as a part of containerd's trace if it says of which.
fn prepare_span(metadata: &MetadataMap, labels: &Labels) -> Span {
    let Some(chain_id) = labels.get(REF_LABEL).filter(|_| trace::is_on()) else { return Span::NONE };
    let parent = metadata.get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let mut span = Span::request("snapshot.prepare", parent.and_then(TraceContext::from_traceparent));
    span.say("lapwing.chain_id", chain_id);
    span
}

fn batches(infos: Vec<Info>) -> impl Iterator<Item = Result<ListSnapshotsResponse, Status>> {
    let mut infos = infos.into_iter().peekable();
    std::iter::from_fn(move || {
        infos.peek()?;
        Some(Ok(ListSnapshotsResponse { info: infos.by_ref().take(LIST_BATCH).map(Into::into).collect() }))
    })
}

#[async_trait]
impl Snapshots for Snapshotter {
    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let (metadata, _, mut request) = request.into_parts();
        let labels = Arc::new(std::mem::take(&mut request.labels));
        check_new(&request.key, &labels)?;
        let mut span = prepare_span(&metadata, &labels);
        if span.around(self.claimed(&request, &labels, &metadata)).await {
            span.set("lapwing.mounted", true);
            return Err(Status::already_exists(format!("target of {:?}: already exists", request.key)));
        }
        let mounts = blocking(&self.0, move |s| s.create(Kind::Active, &request.key, &request.parent, &labels)).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let request = request.into_inner();
        check_new(&request.key, &request.labels)?;
        let create = move |s: &super::Shared| s.create(Kind::View, &request.key, &request.parent, &request.labels);
        Ok(Response::new(ViewSnapshotResponse { mounts: blocking(&self.0, create).await? }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let key = request.into_inner().key;
        Ok(Response::new(MountsResponse { mounts: blocking(&self.0, move |s| s.mounts(&key)).await? }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let request = request.into_inner();
        check_name(&request.name)?;
        check_labels(&request.labels)?;
        blocking(&self.0, move |s| s.commit(&request.key, &request.name, &request.parent, &request.labels)).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        blocking(&self.0, move |s| s.remove(&key)).await?;
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let key = request.into_inner().key;
        let (_, info, _) = blocking(&self.0, move |s| Ok(s.graph.stat(&key)?)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info.into()) }))
    }

    async fn update(&self, request: Request<UpdateSnapshotRequest>) -> Answer<UpdateSnapshotResponse> {
        let request = request.into_inner();
        let wanted = request.info.unwrap_or_default();
        let paths = request.update_mask.unwrap_or_default().paths;
        check_name(&wanted.name)?;
        check_labels(&wanted.labels)?;
        let info = blocking(&self.0, move |s| s.update(&wanted.name, &wanted.labels, &paths)).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info.into()) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        let infos = blocking(&self.0, move |s| s.list(&filters)).await?;
        Ok(Response::new(Box::pin(tokio_stream::iter(batches(infos)))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let key = request.into_inner().key;
        let usage = blocking(&self.0, move |s| s.usage(&key)).await?;
        let wire = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: wire(usage.size_bytes), inodes: wire(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Answer<()> {
        self.0.directories.reap();
        Ok(Response::new(()))
    }
}
