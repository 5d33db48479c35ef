//! Building the index of a layer that is pulled whole.
//!
//! One node of the cluster builds, in the same pass as the download: the one that was granted the lease of the first
//! piece. Should it die, any node that holds the whole layer and still finds no index after a while builds from its
//! chunk store.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::StatementKind;
use lapwing_p2p::node::{Blob, Node, Priority};
use lapwing_snapshotter::index::{Index, IndexBuilder};
use tokio::sync::{Semaphore, mpsc};

/// How long a node that could build waits for the one that should, plus as much again at random.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pieces between the swarm and the inflating thread.
const PIECES_AHEAD: usize = 8;

/// Builds missing indexes, a bounded number at a time.
pub(crate) struct Builder {
    node: Arc<Node>,
    /// Told of each layer whose index was built.
    built: Box<dyn Fn(Digest) + Send + Sync>,
    /// Inflating is CPU work: no more at once than cores.
    cores: Arc<Semaphore>,
    /// Layers under way: a client asks for one blob in many ranges.
    busy: Mutex<HashSet<Digest>>,
}

impl Builder {
    pub(crate) fn new(node: Arc<Node>, built: Box<dyn Fn(Digest) + Send + Sync>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { node, built, cores: Arc::new(Semaphore::new(cores)), busy: Mutex::default() }
    }

    /// A client has begun to pull this layer whole.
    pub(crate) fn layer_pulled(self: &Arc<Self>, blob: &Arc<Blob>) {
        let (this, blob, digest) = (Arc::clone(self), Arc::clone(blob), blob.digest());
        if !self.busy().insert(digest) {
            return;
        }
        tokio::spawn(async move {
            if let Err(message) = this.ensure_index(&blob).await {
                tracing::warn!(%digest, reason = message, "no index was built: other nodes will pull this layer whole");
            }
            this.busy().remove(&digest);
        });
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ensure_index(&self, blob: &Arc<Blob>) -> Result<(), String> {
        if self.node.derived(blob.digest(), StatementKind::LayerIndex).await.is_some() {
            return Ok(());
        }
        blob.read(0..1, Priority::Bulk).await.map_err(|error| error.to_string())?;
        if !blob.was_first_lessee() {
            blob.verified().await.map_err(|error| error.to_string())?;
            tokio::time::sleep(PATIENCE + PATIENCE.mul_f64(fastrand::f64())).await;
            if self.node.derived(blob.digest(), StatementKind::LayerIndex).await.is_some() {
                return Ok(());
            }
        }
        let index = self.build(blob).await?;
        let (layer, spans, diff_id) = (index.layer(), index.spans().len(), index.diff_id());
        let object = tokio::task::spawn_blocking(move || index.encode()).await.map_err(|error| error.to_string())?;
        let bytes = object.len();
        let name = self
            .node
            .publish(StatementKind::LayerIndex, layer, object.into())
            .await
            .map_err(|error| error.to_string())?;
        (self.built)(layer);
        tracing::info!(digest = %layer, index = %name, %diff_id, spans, bytes, "built the index of a layer");
        Ok(())
    }

    async fn build(&self, blob: &Arc<Blob>) -> Result<Index, String> {
        let _core = self.cores.acquire().await.map_err(|error| error.to_string())?;
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let (layer, length) = (blob.digest(), blob.length());
        let inflating = tokio::task::spawn_blocking(move || inflate(layer, length, receiver));
        let mut stream = Box::pin(blob.stream(0..length, Priority::Bulk));
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| error.to_string())?;
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
        inflating.await.map_err(|error| error.to_string())?
    }
}

fn inflate(layer: Digest, length: u64, mut pieces: mpsc::Receiver<bytes::Bytes>) -> Result<Index, String> {
    let mut builder = IndexBuilder::new(layer, length);
    while let Some(piece) = pieces.blocking_recv() {
        builder.push(&piece).map_err(|error| error.to_string())?;
    }
    builder.finish().map_err(|error| error.to_string())
}
