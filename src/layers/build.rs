//! Building the index of a layer that is pulled whole.
//!
//! One node of the cluster builds, in the same pass as the download: the one that was granted the lease of the first
//! piece. Should it die, any node that holds the whole layer and still finds no index after a while builds from its
//! chunk store; sooner where containerd waits for the index in the place of unpacking the layer ([`Builder::index_now`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::StatementKind;
use lapwing_p2p::node::{Blob, Node, Priority};
use lapwing_p2p::timeline::{Timeline, Track};
use lapwing_p2p::trace::{self, Span, SpanKind};
use lapwing_snapshotter::index::{Index, IndexBuilder};
use lapwing_snapshotter::lazy::{TarWriter, WholeTar};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use super::tars::Tars;

/// How long a node that could build waits for the one that should, plus as much again at random.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where somebody waits: the node that should is done when the others have the layer, or a moment later.
const HASTE: Duration = Duration::from_millis(500);
/// Pieces between the swarm and the inflating thread.
const PIECES_AHEAD: usize = 8;

/// Builds missing indexes, a bounded number at a time.
pub(crate) struct Builder {
    node: Arc<Node>,
    /// Told of each layer whose index was built, and of that index' name.
    built: Box<dyn Fn(Digest, Digest) + Send + Sync>,
    /// Where the tars go that come out of the pass; none if nobody would use them.
    tars: Option<Arc<Tars>>,
    /// Inflating is CPU work: no more at once than cores.
    cores: Arc<Semaphore>,
    /// Layers under way: a client asks for one blob in many ranges.
    busy: Mutex<HashMap<Digest, Arc<Job>>>,
}

/// An index under way.
#[derive(Default)]
struct Job {
    /// Somebody waits.
    hurry: Notify,
    /// Set once, at the end.
    outcome: watch::Sender<Option<Result<(), String>>>,
}

impl Builder {
    pub(crate) fn new(node: Arc<Node>, built: Box<dyn Fn(Digest, Digest) + Send + Sync>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { node, built, tars: None, cores: Arc::new(Semaphore::new(cores)), busy: Mutex::default() }
    }

    /// Gives the tars of the layers to `tars` as well.
    pub(crate) fn keeping(self, tars: Option<Arc<Tars>>) -> Self {
        Self { tars, ..self }
    }

    /// A client has begun to pull this layer whole.
    pub(crate) fn layer_pulled(self: &Arc<Self>, blob: &Arc<Blob>) {
        self.job(blob);
    }

    /// Waits for the index of a layer that is here whole: that of the node that should build it if it is there in a moment, else one
    /// that is built here.
    pub(crate) async fn index_now(self: &Arc<Self>, blob: &Arc<Blob>) -> Result<(), String> {
        let job = self.job(blob);
        job.hurry.notify_one();
        let mut outcome = job.outcome.subscribe();
        let settled = outcome.wait_for(Option::is_some).await.map_err(|error| error.to_string())?;
        settled.clone().unwrap_or(Ok(()))
    }

    /// Waits until a layer has an index that is here, too, and stated. A blob that is no layer needs none.
    pub(crate) async fn index_ahead(self: &Arc<Self>, blob: &Arc<Blob>) -> Result<(), String> {
        let head = blob.read(0..blob.length().min(512), Priority::Bulk).await.map_err(|error| error.to_string())?;
        if !is_layer(&head) {
            return Ok(());
        }
        self.index_now(blob).await?;
        // It may be another node's, which may be gone.
        let index = self.node.derived(blob.digest(), StatementKind::LayerIndex).await;
        if let Some(index) = index
            && super::comes(&index, super::NOBODY).await.is_ok()
        {
            return Ok(());
        }
        self.build_and_publish(blob).await
    }

    /// Begins with a layer's index, unless that is under way.
    fn job(self: &Arc<Self>, blob: &Arc<Blob>) -> Arc<Job> {
        let (this, blob, digest) = (Arc::clone(self), Arc::clone(blob), blob.digest());
        let mut busy = self.busy();
        if let Some(job) = busy.get(&digest) {
            return Arc::clone(job);
        }
        let job = Arc::new(Job::default());
        busy.insert(digest, Arc::clone(&job));
        drop(busy);
        let done = Arc::clone(&job);
        tokio::spawn(trace::within(trace::current(), async move {
            let outcome = this.ensure_index(&blob, &done.hurry).await;
            if let Err(message) = &outcome {
                tracing::warn!(%digest, reason = message, "no index was built: other nodes will pull this layer whole");
            }
            this.busy().remove(&digest);
            done.outcome.send_replace(Some(outcome));
        }));
        job
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<Job>>> {
        lock(&self.busy)
    }

    async fn ensure_index(&self, blob: &Arc<Blob>, hurry: &Notify) -> Result<(), String> {
        if self.node.derived(blob.digest(), StatementKind::LayerIndex).await.is_some() {
            return Ok(());
        }
        blob.read(0..1, Priority::Bulk).await.map_err(|error| error.to_string())?;
        if !blob.was_first_lessee() {
            blob.verified().await.map_err(|error| error.to_string())?;
            tokio::select! {
                () = tokio::time::sleep(PATIENCE + PATIENCE.mul_f64(fastrand::f64())) => {}
                () = hurry.notified() => tokio::time::sleep(HASTE.mul_f64(1.0 + fastrand::f64())).await,
            }
            if self.node.derived(blob.digest(), StatementKind::LayerIndex).await.is_some() {
                return Ok(());
            }
        }
        self.build_and_publish(blob).await
    }

    /// Builds the index of a layer that is here, whoever else has one: it may be out of reach, or wrong.
    pub(crate) async fn build_and_publish(&self, blob: &Arc<Blob>) -> Result<(), String> {
        let mut span = Span::step("layer.build_index", SpanKind::Internal, trace::current());
        span.say("lapwing.digest", &blob.digest());
        let built = self.build(blob).await;
        if built.is_err() {
            span.fail("no index was built");
        }
        drop(span);
        let (index, tar) = built?;
        let (layer, spans, diff_id) = (index.layer(), index.spans().len(), index.diff_id());
        let object = tokio::task::spawn_blocking(move || index.encode()).await.map_err(|error| error.to_string())?;
        let bytes = object.len();
        let name = self
            .node
            .publish(StatementKind::LayerIndex, layer, object.into())
            .await
            .map_err(|error| error.to_string())?;
        if let (Some(tars), Some(tar)) = (&self.tars, tar) {
            tars.keep(layer, tar);
        }
        (self.built)(layer, name);
        tracing::info!(digest = %layer, index = %name, %diff_id, spans, bytes, "built the index of a layer");
        Ok(())
    }

    /// The index, and the tar where it was to be kept and could be.
    async fn build(&self, blob: &Arc<Blob>) -> Result<(Index, Option<WholeTar>), String> {
        let _core = self.cores.acquire().await.map_err(|error| error.to_string())?;
        let tar = match &self.tars {
            Some(tars) => tars.writer().await,
            None => None,
        };
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let (layer, length) = (blob.digest(), blob.length());
        let timeline = blob.timeline();
        let inflating = tokio::task::spawn_blocking(move || inflate(layer, length, receiver, tar, &timeline));
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

fn inflate(
    layer: Digest,
    length: u64,
    mut pieces: mpsc::Receiver<bytes::Bytes>,
    tar: Option<TarWriter>,
    timeline: &Timeline,
) -> Result<(Index, Option<WholeTar>), String> {
    let mut builder = IndexBuilder::new(layer, length);
    let tar = Arc::new(Mutex::new(tar));
    if lock(&tar).is_some() {
        let writing = Arc::clone(&tar);
        builder = builder.telling(move |output| {
            if let Some(tar) = &mut *lock(&writing) {
                tar.push(output);
            }
        });
    }
    while let Some(piece) = pieces.blocking_recv() {
        let began = Instant::now();
        builder.push(&piece).map_err(|error| error.to_string())?;
        timeline.add(Track::Inflate, began, Instant::now());
    }
    let index = builder.finish().map_err(|error| error.to_string())?;
    let tar = lock(&tar).take();
    Ok((index, tar.and_then(TarWriter::finish)))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a blob that begins so can be a layer: gzip (RFC 1952), zstd (RFC 8878), or a tar header (POSIX ustar).
pub(crate) fn is_layer(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
        || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || head.get(257..262) == Some(b"ustar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_told_by_its_first_bytes() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for head in [&[0x1f, 0x8b, 8][..], &[0x28, 0xb5, 0x2f, 0xfd], &tar] {
            assert!(is_layer(head));
        }
        for head in [&b"{\"architecture\":"[..], b"", &[0x1f]] {
            assert!(!is_layer(head));
        }
    }
}
