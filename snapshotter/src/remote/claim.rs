//! Answers a Prepare for extraction: claims the layer, or says why not.

use std::sync::Arc;
use std::time::SystemTime;

use lapwing_p2p::digest::Digest;

use super::{Fallback, RemoteLayers, Target};
use crate::graph::{Claimed, Kind, Labels, NewSnapshot, RemoteSnapshot};
use crate::service::{Shared, SnapshotError, blocking};

/// What a snapshot that is unpacked beside others gets for its parent when it is committed (containerd's `core/unpack`).
const PARENT_LABEL: &str = "containerd.io/snapshot/parent-chain-id";

/// A Prepare with a target.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) chain_id: String,
    pub(crate) parent: String,
    pub(crate) labels: Arc<Labels>,
    pub(crate) namespace: String,
}

impl From<SnapshotError> for Fallback {
    fn from(error: SnapshotError) -> Self {
        Self { reason: "local", message: error.to_string() }
    }
}

impl Wish {
    /// Ok once a committed snapshot for the wish is mounted and recorded durably.
    ///
    /// When the time is over the wish may still be granted behind the caller's back; the snapshot is then unknown to
    /// containerd, which removes it at its next garbage collection.
    pub(crate) async fn grant(self, shared: &Arc<Shared>) -> Result<(), Fallback> {
        let Some(layers) = shared.layers.layers().cloned() else {
            return Err(Fallback { reason: "off", message: "lazy mounts are switched off".to_owned() });
        };
        let allowed = shared.config.resolve_timeout;
        let timeout = || Fallback { reason: "timeout", message: format!("no decision within {allowed:?}") };
        tokio::time::timeout(allowed, self.try_grant(shared, &*layers)).await.unwrap_or_else(|_| Err(timeout()))
    }

    async fn try_grant(self, shared: &Arc<Shared>, layers: &dyn RemoteLayers) -> Result<(), Fallback> {
        if self.chain_id.parse::<Digest>().is_err() {
            let message = format!("{:?} is no chain id (sha256 expected)", self.chain_id);
            return Err(Fallback { reason: "chain-id", message });
        }
        if self.parent.is_empty() && self.labels.get(PARENT_LABEL).is_some_and(|parent| !parent.is_empty()) {
            let message = "containerd gives it its parent only when it is committed".to_owned();
            return Err(Fallback { reason: "parent-later", message });
        }
        let wish = self.clone();
        let found = blocking(shared, move |shared| wish.look_up(shared)).await?;
        let parent_chain_id = match found {
            Found::Remote => return Ok(()),
            Found::Parent(chain_id) => chain_id,
        };
        let target = Target {
            chain_id: &self.chain_id,
            parent_chain_id,
            labels: &self.labels,
            namespace: self.namespace.clone(),
        };
        let layer = layers.resolve(&target).await?;
        blocking(shared, move |shared| self.mount(shared, &layer)).await?;
        Ok(())
    }

    fn look_up(&self, shared: &Shared) -> Result<Found, SnapshotError> {
        // What a client fetched with rights of its own is its namespace's; for others, who mounts layers must say.
        let found = shared.graph.remote(&self.chain_id, &self.parent)?;
        if let Some(remote) = found.filter(|remote| remote.is_claimed() || remote.is_of(&self.namespace)) {
            shared.ensure_chain(&shared.graph.parent_chain(&remote.name)?)?;
            return Ok(Found::Remote);
        }
        Ok(Found::Parent(shared.graph.chain_id(&self.parent)?))
    }

    fn mount(&self, shared: &Shared, layer: &Digest) -> Result<(), SnapshotError> {
        let ancestors = shared.graph.parent_chain(&self.parent)?;
        shared.ensure_chain(&ancestors)?;
        let id = shared.graph.allocate_id();
        shared.directories.create(id, Kind::Committed, None)?;
        let recorded = shared.ensure_mounted(id, layer, &ancestors).and_then(|()| {
            let new = NewSnapshot { id, parent: &self.parent, labels: &self.labels, now: SystemTime::now() };
            Ok(shared.graph.insert_remote(&RemoteSnapshot::name_for(id), layer, &new)?)
        });
        match recorded {
            Ok(Claimed::Inserted) => {
                tracing::info!(digest = %layer, snapshot = id, chain_id = %self.chain_id, "layer mounted on demand");
                Ok(())
            }
            Ok(Claimed::ThereAlready) => {
                shared.discard(id, true);
                Ok(())
            }
            Err(error) => {
                shared.discard(id, true);
                Err(error)
            }
        }
    }
}

enum Found {
    /// A remote snapshot, mounted.
    Remote,
    /// None; the parent was made for this chain id.
    Parent(Option<String>),
}
