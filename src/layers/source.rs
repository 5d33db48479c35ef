//! A layer's compressed bytes, out of the swarm.

use std::ops::Range;
use std::sync::Arc;

use crate::catalog::LayerRecord;
use crate::outage::{Outage, Place};
use axum::http::HeaderValue;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::{Node, Priority};
use lapwing_p2p::origin::Origin;
use lapwing_plugins::registry::{
    Credential, Denied, ForwardMethod, ForwardRequest, Reference, Registries, RegistryName, RepositoryName, Resource,
};
use lapwing_snapshotter::source::{LayerSource, SourceError, Urgency};

const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"];

/// Where blobs were published, with this node's own credentials.
pub(crate) struct Origins {
    registries: Arc<Registries>,
    outage: Option<Arc<Outage>>,
}

impl Origins {
    pub(crate) const fn new(registries: Arc<Registries>, outage: Option<Arc<Outage>>) -> Self {
        Self { registries, outage }
    }

    /// Asks the registry whether this node may read the layer there, which also tells its length. A layer that could only
    /// be read as long as peers have it, or that a stranger merely names, is not to be mounted.
    pub(crate) async fn allow(&self, record: &LayerRecord) -> Result<LayerRecord, (&'static str, String)> {
        let (registry, repo) = (&record.registry, &record.repo);
        if !self.registries.is_listed(registry) {
            return Err(("unlisted_registry", format!("list {registry} under registries.hosts for lazy starts")));
        }
        let before = || {
            let place = Place::new(registry, repo, &Credential::Configured);
            self.outage.as_ref()?.blob(&place, record.layer)
        };
        match self.registries.authorize(registry, repo, record.layer, &Credential::Configured).await {
            Ok(grant) => Ok(LayerRecord { length: grant.length, ..record.clone() }),
            Err(Denied::Unavailable { .. }) if let Some(length) = before() => {
                tracing::warn!(digest = %record.layer, %repo, "the registry is away: this layer is mounted by what it said before");
                Ok(LayerRecord { length, ..record.clone() })
            }
            Err(denied) => Err(("not_readable", format!("this node cannot read the layer by itself: {denied}"))),
        }
    }

    /// A manifest, with its digest checked.
    pub(crate) async fn manifest(&self, record: &LayerRecord, digest: Digest) -> Result<Bytes, String> {
        let body = self.ask(record, Resource::Manifest(Reference::Digest(digest))).await?;
        let body = body.ok_or_else(|| format!("the registry has no manifest {digest}"))?;
        if Digest::of(&body) == digest {
            Ok(body)
        } else {
            Err(format!("the registry has another manifest for {digest}"))
        }
    }

    /// What refers to a manifest (OCI distribution 1.1, "Listing Referrers", with the tags of registries that have none).
    pub(crate) async fn referrers(&self, record: &LayerRecord, subject: Digest) -> Result<Option<Bytes>, String> {
        match self.ask(record, Resource::Referrers(subject)).await? {
            Some(body) => Ok(Some(body)),
            None => {
                let tag = format!("sha256-{}", subject.hex()).parse().map_err(|error| format!("{error}"))?;
                self.ask(record, Resource::Manifest(tag)).await
            }
        }
    }

    /// A body, or none where the registry has nothing of that name.
    async fn ask(&self, record: &LayerRecord, resource: Resource) -> Result<Option<Bytes>, String> {
        let request = ForwardRequest {
            method: ForwardMethod::Get,
            registry: record.registry.clone(),
            repository: record.repo.clone(),
            resource,
            query: None,
            accept: MANIFEST_TYPES.map(HeaderValue::from_static).into(),
            credential: Credential::Configured,
        };
        let answer = self.registries.forward(&request).await.map_err(|error| error.to_string())?;
        match answer.status.as_u16() {
            200 => Ok(Some(answer.body)),
            404 => Ok(None),
            status => Err(format!("registry {} answers HTTP {status}", record.registry)),
        }
    }

    /// The origin of a blob, if its registry is one that the node talks to.
    pub(crate) fn of(
        &self,
        registry: &RegistryName,
        repo: &RepositoryName,
        digest: Digest,
        length: u64,
    ) -> Option<Arc<dyn Origin>> {
        match self.registries.origin(registry, repo, digest, length, Credential::Configured) {
            Ok(origin) => Some(Arc::new(origin)),
            Err(error) => {
                tracing::warn!(%digest, repo = repo.as_str(), %error, "this layer can only come from peers");
                None
            }
        }
    }
}

/// One layer as the swarm brings it.
pub(crate) struct SwarmLayer {
    node: Arc<Node>,
    digest: Digest,
    length: u64,
    origin: Option<Arc<dyn Origin>>,
}

impl SwarmLayer {
    pub(crate) fn new(node: Arc<Node>, digest: Digest, length: u64, origin: Option<Arc<dyn Origin>>) -> Self {
        Self { node, digest, length, origin }
    }
}

impl LayerSource for SwarmLayer {
    fn read(&self, range: Range<u64>, urgency: Urgency) -> BoxFuture<'_, Result<Bytes, SourceError>> {
        let priority = match urgency {
            Urgency::Fault => Priority::Fault,
            Urgency::ReadAhead => Priority::ReadAhead,
            Urgency::Prefetch => Priority::Prefetch,
            Urgency::Background => Priority::Background,
        };
        async move {
            let failed = |error: &dyn std::fmt::Display| SourceError(format!("layer {}: {error}", self.digest));
            let blob = self.node.open(self.digest, self.length, self.origin.clone()).map_err(|error| failed(&error))?;
            blob.read(range, priority).await.map_err(|error| failed(&error))
        }
        .boxed()
    }
}
