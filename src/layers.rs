//! Which layers this node can mount lazily, and how it comes to know.
//!
//! A layer is lazy once its index is here and believed. [`Layers`] owns that knowledge: it searches the swarm for indexes
//! as soon as a manifest passes the mirror ([`Layers::expect`]), answers the snapshotter from what it knows
//! ([`RemoteLayers`]), and builds the index of a layer that is pulled whole and that nobody has indexed ([`build`]).
//!
//! An index is believed when the swarm's statements name it, its own digest matches, and its diffID continues the chain
//! that containerd asks for; each span it describes is checked again when it is read. Kept on disk by
//! [`LazyMounts`]; everything else here is rebuilt by asking again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::StatementKind;
use lapwing_p2p::node::{Blob, Node};
use lapwing_snapshotter::index::Index;
use lapwing_snapshotter::lazy::mounts::LazyMounts;
use lapwing_snapshotter::remote::{Fallback, RemoteLayers, Target};
use tokio::sync::watch;

use crate::catalog::{Catalog, LayerRecord, chain_id};

pub(crate) mod build;
mod label;
mod source;

pub(crate) use source::{Origins, SwarmLayer};

/// How long "nobody has an index" is believed before the swarm is asked again.
const ABSENT_FOR: Duration = Duration::from_secs(5);
/// Most layers whose state is remembered; the oldest absent ones are forgotten first.
const MAX_LAYERS: usize = 10_000;

/// What is known of a layer.
#[derive(Debug, Clone)]
pub(crate) enum Knowledge {
    /// The swarm is being asked for an index.
    Searching,
    /// Can be mounted; this is the digest of its uncompressed tar.
    Ready { diff_id: Digest },
    /// Cannot be mounted now.
    Absent { reason: &'static str, message: String, since: Instant },
}

/// See the module's documentation.
pub(crate) struct Layers {
    node: Arc<Node>,
    catalog: Arc<Catalog>,
    origins: Arc<Origins>,
    mounts: Option<Arc<LazyMounts>>,
    /// Why `mounts` is missing.
    unsupported: String,
    known: Mutex<HashMap<Digest, watch::Receiver<Knowledge>>>,
}

impl Layers {
    pub(crate) fn new(
        node: Arc<Node>,
        catalog: Arc<Catalog>,
        origins: Arc<Origins>,
        mounts: Result<Arc<LazyMounts>, String>,
    ) -> Arc<Self> {
        let (mounts, unsupported) = match mounts {
            Ok(mounts) => (Some(mounts), String::new()),
            Err(reason) => (None, reason),
        };
        Arc::new(Self { node, catalog, origins, mounts, unsupported, known: Mutex::default() })
    }

    /// A layer will probably be asked for: its index is searched for now, unless that is known already.
    pub(crate) fn expect(self: &Arc<Self>, record: &LayerRecord) -> watch::Receiver<Knowledge> {
        let layer = record.layer;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(knowledge) = known.get(&layer)
            && !is_stale(&knowledge.borrow())
        {
            return knowledge.clone();
        }
        if known.len() >= MAX_LAYERS {
            known.retain(|_, knowledge| !matches!(&*knowledge.borrow(), Knowledge::Absent { .. }));
        }
        let (sender, receiver) = watch::channel(Knowledge::Searching);
        known.insert(layer, receiver.clone());
        drop(known);
        let (this, record) = (Arc::clone(self), record.clone());
        tokio::spawn(async move {
            let found = this.search(&record).await;
            if let Knowledge::Absent { reason, message, .. } = &found {
                tracing::debug!(digest = %layer, reason, message, "no index for this layer");
            }
            sender.send_replace(found);
        });
        receiver
    }

    /// What is known of each layer, for `lapwing ls`.
    pub(crate) fn snapshot(&self) -> Vec<(Digest, Knowledge)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(layer, knowledge)| (*layer, knowledge.borrow().clone())).collect()
    }

    pub(crate) fn mounts(&self) -> Option<&Arc<LazyMounts>> {
        self.mounts.as_ref()
    }

    /// Takes up an index that this node has just built.
    pub(crate) fn built(&self, layer: Digest) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|digest, knowledge| {
            *digest != layer || !matches!(&*knowledge.borrow(), Knowledge::Absent { .. })
        });
    }

    async fn search(self: &Arc<Self>, record: &LayerRecord) -> Knowledge {
        let layer = record.layer;
        let Some(mounts) = &self.mounts else { return absent("unsupported", self.unsupported.clone()) };
        let Some(object) = self.node.derived(layer, StatementKind::LayerIndex).await else {
            return absent("no_index", "nobody in the swarm has indexed this layer yet".into());
        };
        let bytes = match whole(&object).await {
            Ok(bytes) => bytes,
            Err(message) => return absent("index_unavailable", message),
        };
        let decoded = tokio::task::spawn_blocking(move || Index::decode(&bytes)).await;
        let index = match decoded {
            Ok(Ok(index)) if index.layer() == layer => Arc::new(index),
            Ok(Ok(index)) => return absent("index_wrong", format!("index {} is of {}", object.digest(), index.layer())),
            Ok(Err(error)) => return absent("index_wrong", format!("index {}: {error}", object.digest())),
            Err(error) => return absent("index_wrong", format!("index {}: {error}", object.digest())),
        };
        let diff_id = index.diff_id();
        let source = Arc::new(self.source(record, index.layer_length()));
        match mounts.add(index, source).await {
            Ok(()) => Knowledge::Ready { diff_id },
            Err(error) => absent("not_mountable", error.to_string()),
        }
    }

    fn source(&self, record: &LayerRecord, length: u64) -> SwarmLayer {
        let origin = self.origins.of(&record.registry, &record.repo, record.layer);
        SwarmLayer::new(Arc::clone(&self.node), record.layer, length, origin)
    }

    /// The layer that a chain id stands for: as the catalog knows it, else as the labels hint.
    fn identify(&self, target: &Target<'_>) -> Result<LayerRecord, Fallback> {
        if let Some(record) = self.catalog.by_chain(target.chain_id) {
            return Ok(record);
        }
        label::record(target).ok_or_else(|| Fallback {
            reason: "unknown_chain",
            message: format!(
                "chain {} was in no manifest that passed the mirror, and no label names its layer",
                target.chain_id
            ),
        })
    }
}

impl RemoteLayers for Layers {
    fn resolve<'a>(self: Arc<Self>, target: &'a Target<'a>) -> BoxFuture<'a, Result<Digest, Fallback>> {
        async move {
            let record = self.identify(target)?;
            let mut knowledge = self.expect(&record);
            let settled = knowledge.wait_for(|now| !matches!(now, Knowledge::Searching)).await;
            match settled.map(|now| now.clone()) {
                Ok(Knowledge::Ready { diff_id }) => {
                    let chain = chain_id(target.parent_chain_id.as_deref(), &diff_id);
                    if chain != target.chain_id {
                        let message =
                            format!("index of {} gives chain {chain} instead of {}", record.layer, target.chain_id);
                        return Err(Fallback { reason: "wrong_chain", message });
                    }
                    self.catalog.remember(&LayerRecord { diff_id, ..record.clone() });
                    Ok(record.layer)
                }
                Ok(Knowledge::Absent { reason, message, .. }) => Err(Fallback { reason, message }),
                _ => Err(Fallback { reason: "index_unavailable", message: "the search for an index ended".into() }),
            }
        }
        .boxed()
    }

    fn mount(&self, layer: &Digest, at: &Path) -> Result<(), String> {
        let mounts = self.mounts.as_ref().ok_or_else(|| self.unsupported.clone())?;
        if !mounts.holds(layer) {
            let record = self.catalog.by_layer(layer).ok_or_else(|| format!("layer {layer} is in no known image"))?;
            let source = Arc::new(self.source(&record, record.length));
            mounts.reload(layer, source).map_err(|error| error.to_string())?;
        }
        mounts.mount(layer, at).map_err(|error| error.to_string())
    }

    fn unmount(&self, at: &Path) {
        if let Some(mounts) = &self.mounts
            && let Err(error) = mounts.unmount(at)
        {
            tracing::warn!(mount = %at.display(), %error, "a lazily mounted layer could not be unmounted");
        }
    }
}

fn is_stale(knowledge: &Knowledge) -> bool {
    matches!(knowledge, Knowledge::Absent { since, .. } if since.elapsed() > ABSENT_FOR)
}

fn absent(reason: &'static str, message: String) -> Knowledge {
    Knowledge::Absent { reason, message, since: Instant::now() }
}

/// All bytes of a small derived object, verified.
async fn whole(object: &Arc<Blob>) -> Result<bytes::Bytes, String> {
    object.verified().await.map_err(|error| error.to_string())?;
    object
        .read(0..object.length(), lapwing_p2p::node::Priority::Prefetch)
        .await
        .map_err(|error| error.to_string())
}
