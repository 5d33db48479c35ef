//! Layers that containerd has fetched through the mirror and would unpack now: mounted instead.
//!
//! The index comes from the pass that was made over the layer as it came ([`Builder`](super::build::Builder)). One of another node is held against the whole
//! layer before anything is shown, as containerd would have held it by unpacking; the layer is then complete. Nothing else is needed: the
//! blob is in the chunk store, and held there until all of it is in the layer's own file, so that neither registry nor peers are asked again.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::Blob;
use lapwing_snapshotter::index::Form;
use lapwing_snapshotter::lazy::{LazyError, LazyLayer, LazyMounts, Proof};
use lapwing_snapshotter::remote::{Fallback, Fetched};

use super::kept::KeptKind;
use super::{Knowledge, Layers, NOBODY_BUT_HERE};
use crate::catalog::LayerRecord;

/// How long the digest of a blob that is here may take.
const PROOF: Duration = Duration::from_secs(120);

const fn fallback(reason: &'static str, message: String) -> Fallback {
    Fallback { reason, message }
}

impl Layers {
    /// See [`RemoteLayers::fetched`](lapwing_snapshotter::remote::RemoteLayers::fetched).
    pub(super) async fn make_ready(&self, layer: Digest, length: u64) -> Result<Fetched, Fallback> {
        if let Some(reason) = &self.unsupported {
            return Err(fallback("unsupported", reason.clone()));
        }
        let mounts = self.mounts.as_ref().ok_or_else(|| fallback("unsupported", String::new()))?;
        if let Some(tars) = self.tars.get() {
            tars.asked();
        }
        // Until the mount holds it: nobody else may have it, or give it to this node.
        self.interest.promised(layer, self.node.store().hold(layer));
        let blob = self.here(layer, length).await?;
        let unknown = || format!("no manifest with {layer} passed the mirror");
        let record = self.catalog.by_layer(&layer).filter(|record| record.length == length);
        let record = record.ok_or_else(|| fallback("unknown_layer", unknown()))?;
        let lazy = match self.kept.kind(&layer) {
            Some(KeptKind::Index) => reopened(mounts, layer).await?,
            _ => self.indexed(mounts, &record, &blob).await?,
        };
        self.proved(&lazy).await
    }

    /// The blob, all of it in the store's own files.
    async fn here(&self, layer: Digest, length: u64) -> Result<Arc<Blob>, Fallback> {
        let missing = || fallback("not_here", format!("{layer} did not come through this node, or was evicted"));
        let stored = self.node.store().get(&layer).ok_or_else(missing)?;
        if !stored.is_complete() || stored.is_foreign() {
            return Err(missing());
        }
        let blob = self.node.open(layer, length, None).map_err(|error| fallback("not_here", error.to_string()))?;
        // Clients that fetch in parts may have all of them before the digest of the whole is known.
        match tokio::time::timeout(PROOF, blob.verified()).await {
            Ok(Ok(())) => Ok(blob),
            Ok(Err(error)) => Err(fallback("not_here", error.to_string())),
            Err(_) => {
                Err(fallback("timeout", format!("{layer} could not be held against its digest within {PROOF:?}")))
            }
        }
    }

    /// What containerd is told of a layer, which it takes for proved: so all of the layer must have been read, when its index was built here, or now.
    async fn proved(&self, layer: &Arc<LazyLayer>) -> Result<Fetched, Fallback> {
        let (index, digest) = (layer.index(), layer.digest());
        // What a table of contents tells of a layer is not its tar, and some tell nothing of it.
        if index.form() != Form::Built {
            return Err(fallback("by_contents", format!("{digest} is mounted by its {} table", index.form().name())));
        }
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).copied();
        let is_ours = made.is_some() && self.kept.object(&digest).map(|(name, _)| name) == made;
        if !is_ours {
            match layer.complete_all().await {
                Ok(()) => self.judged(digest, true).await,
                Err(error) => {
                    if matches!(error, LazyError::Quarantined(_)) {
                        self.judged(digest, false).await;
                    }
                    return Err(fallback("unproved", error.to_string()));
                }
            }
        }
        if layer.progress().proof == Proof::Quarantined {
            return Err(fallback("quarantined", LazyError::Quarantined(digest).to_string()));
        }
        Ok(Fetched { diff_id: index.diff_id(), tar_length: index.tar_length() })
    }

    async fn indexed(
        &self,
        mounts: &Arc<LazyMounts>,
        record: &LayerRecord,
        blob: &Arc<Blob>,
    ) -> Result<Arc<LazyLayer>, Fallback> {
        let builder = self.builder.get();
        if let Some(builder) = builder {
            builder.index_now(blob).await.map_err(|message| fallback("no_index", message))?;
        }
        let mut found = self.by_swarm(mounts, record, NOBODY_BUT_HERE).await;
        // Whoever stated it is gone, or it is wrong.
        if let (Knowledge::Absent { .. }, Some(builder)) = (&found, builder) {
            builder.build_and_publish(blob).await.map_err(|message| fallback("no_index", message))?;
            found = self.by_swarm(mounts, record, NOBODY_BUT_HERE).await;
        }
        if let Knowledge::Absent { reason, message, .. } = found {
            return Err(fallback(reason, message));
        }
        // It must be there after a restart, too.
        let kept = self.kept.kind(&record.layer) == Some(KeptKind::Index);
        let lost = || fallback("not_mountable", "it was given up meanwhile".to_owned());
        mounts.layer(&record.layer).filter(|_| kept).ok_or_else(lost)
    }
}

async fn reopened(mounts: &Arc<LazyMounts>, layer: Digest) -> Result<Arc<LazyLayer>, Fallback> {
    let mounts = Arc::clone(mounts);
    let reopened = tokio::task::spawn_blocking(move || mounts.reopen(&layer)).await;
    let reopened =
        reopened.map_err(|error| error.to_string()).and_then(|layer| layer.map_err(|error| error.to_string()));
    reopened.map_err(|message| fallback("not_mountable", message))
}
