//! Layers that containerd has fetched through the mirror and would unpack now: mounted instead.
//!
//! The index comes from the pass that was made over the layer as it came ([`Builder`](super::build::Builder)), here or on another node. Nothing else is needed: the
//! blob is in the chunk store, and held there until all of it is in the layer's own file, so that neither registry nor peers are asked again.

use std::sync::Arc;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::Blob;
use lapwing_snapshotter::index::Form;
use lapwing_snapshotter::lazy::{LazyLayer, LazyMounts, Proof};
use lapwing_snapshotter::remote::{Fallback, Fetched};

use super::kept::KeptKind;
use super::{Knowledge, Layers};
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
        let _not_evicted = self.node.store().hold(layer);
        self.interest.asked(layer);
        let blob = self.here(layer, length).await?;
        let unknown = || format!("no manifest with {layer} passed the mirror");
        let record = self.catalog.by_layer(&layer).filter(|record| record.length == length);
        let record = record.ok_or_else(|| fallback("unknown_layer", unknown()))?;
        if self.kept.kind(&layer) == Some(KeptKind::Index) {
            let reopened = mounts.reopen(&layer).map_err(|error| fallback("not_mountable", error.to_string()))?;
            return self.ready(&reopened);
        }
        if let Some(known) = mounts.layer(&layer) {
            return self.ready(&known);
        }
        let added = self.indexed(mounts, &record, &blob).await?;
        self.ready(&added)
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

    /// What containerd is told of a layer whose tree and diffID somebody found by reading all of it.
    fn ready(&self, layer: &LazyLayer) -> Result<Fetched, Fallback> {
        let (index, proof) = (layer.index(), layer.progress().proof);
        if proof == Proof::Quarantined {
            return Err(fallback("quarantined", format!("the index of {} was wrong", layer.digest())));
        }
        // A table of contents claims a diffID, which containerd would take for proved; and some tell nothing of the tar.
        if index.form() != Form::Built {
            let form = index.form().name();
            return Err(fallback(
                "by_contents",
                format!("{} is mounted by its {form} table of contents", layer.digest()),
            ));
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
        let builder = builder.ok_or_else(|| fallback("no_index", "lazy.build_indexes is false".to_owned()))?;
        builder.index_now(blob).await.map_err(|message| fallback("no_index", message))?;
        if let Knowledge::Absent { reason, message, .. } = self.by_swarm(mounts, record).await {
            return Err(fallback(reason, message));
        }
        mounts.layer(&record.layer).ok_or_else(|| fallback("not_mountable", "it was given up meanwhile".to_owned()))
    }
}
