//! What a node does by the clock: ticks for the scheduler, flushes, expiry, closing what nobody uses.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;

use super::Node;
use super::blob::{Blob, lock};
use crate::digest::Digest;
use crate::layout::PieceIndex;
use crate::store::StoreError;
use crate::swarm::Event;

const FLUSH: Duration = Duration::from_secs(2);
/// A blob that nobody holds stays open for so long, since peers often come back to it; the less long the more there are.
const LINGER: Duration = Duration::from_secs(60);
/// How many blobs linger for all of [`LINGER`]: each takes a descriptor and some memory.
const AT_EASE: usize = 256;
/// However many there are.
const SHORTEST_LINGER: Duration = Duration::from_secs(5);
/// A blob that nobody holds and of which nothing comes for so long, and for as long as blobs linger, is not fetched further.
const STALLED: Duration = Duration::from_secs(5);

pub(super) async fn accept(node: Arc<Node>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => node.spawn(Arc::clone(&node).accepted(stream, address)),
            Err(error) => {
                tracing::warn!(%error, "piece wire cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

pub(super) async fn tick(node: Arc<Node>) {
    loop {
        let (busy, pause) = node.tick();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.wake.notified(), if !busy => {}
        }
    }
}

pub(super) async fn flush(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(FLUSH) => {}
            () = node.flush_now.notified() => {}
        }
        node.flush_all().await;
        let open = lock(&node.inner).blobs.len();
        node.close_unused(linger_of(open));
        node.store.close_surplus();
        node.buffers.trim();
    }
}

/// How long a blob that nobody holds stays open among so many.
fn linger_of(open: usize) -> Duration {
    let share = AT_EASE as f64 / open.max(AT_EASE) as f64;
    LINGER.mul_f64(share).max(SHORTEST_LINGER)
}

impl Node {
    /// Whether something is wanted, and when the next tick is due.
    fn tick(self: &Arc<Self>) -> (bool, Duration) {
        self.drive(Event::Tick);
        if self.aside_bytes.load(Ordering::Relaxed) > 0 {
            let now = Instant::now();
            for blob in self.open_blobs() {
                self.drop_expired_aside(&blob, now);
            }
        }
        self.count_throttled();
        let inner = lock(&self.inner);
        self.metrics.active_blobs.set(inner.swarm.active_blobs() as i64);
        (inner.swarm.is_busy(), inner.swarm.tick_pause())
    }

    /// Makes durable what has come. A failure is told to the blob's readers.
    pub(super) async fn flush_all(self: &Arc<Self>) {
        for blob in self.unflushed() {
            let node = Arc::clone(self);
            // Fails only when the process ends.
            let _ = tokio::task::spawn_blocking(move || node.flush_blob(&blob)).await;
        }
    }

    /// Blobs of which pieces came since they were last made durable; they count as durable from now on.
    pub(super) fn unflushed(&self) -> Vec<Arc<Blob>> {
        let came = |blob: &Arc<Blob>| blob.unflushed_bytes.swap(0, Ordering::Relaxed) > 0;
        self.open_blobs().into_iter().filter(came).collect()
    }

    pub(super) fn flush_blob(self: &Arc<Self>, blob: &Blob) {
        let before = blob.stored.have().count();
        let Err(error) = blob.stored.flush() else { return };
        if matches!(error, StoreError::NoSpace { .. }) && blob.stored.have().count() >= before {
            // What came can be read; the bitmap says so once there is room again.
            tracing::debug!(digest = %blob.digest, %error, "pieces are not durable yet");
            return;
        }
        self.forget_lost(blob);
        self.store_failed(blob, error);
    }

    /// The store has forgotten what it could not make durable: it has to come again.
    pub(super) fn forget_lost(self: &Arc<Self>, blob: &Blob) {
        let have = blob.stored.have();
        let lost: Vec<PieceIndex> =
            (0..blob.layout.piece_count()).map(PieceIndex).filter(|piece| !have.get(*piece)).collect();
        if lost.is_empty() {
            return;
        }
        blob.progress.send_modify(|progress| progress.verified = false);
        lock(&blob.trust).forget(&lost);
        self.drive(Event::Dropped { digest: blob.digest, pieces: lost, origin_only: false });
    }

    /// Removes a blob from the chunk store, and from discovery; false if it was not there. Refused while somebody uses it, or an
    /// operator pinned it. Blocks on the disk.
    pub fn remove(self: &Arc<Self>, digest: &Digest) -> Result<bool, StoreError> {
        self.let_go();
        self.store.remove(digest)
    }

    /// Removes every blob that nobody uses and no operator pinned, each with the bytes of its pieces and what came of it:
    /// somebody may begin to use it meanwhile. Blocks on the disk.
    pub fn remove_unused(self: &Arc<Self>) -> Vec<(Digest, u64, Result<bool, StoreError>)> {
        self.let_go();
        let unused = self.store.removable().into_iter();
        unused.map(|(digest, bytes)| (digest, bytes, self.store.remove(&digest))).collect()
    }

    /// The blobs that [`Self::remove_unused`] would remove now, with the bytes of their pieces. Changes nothing.
    pub fn removable(&self) -> Vec<(Digest, u64)> {
        let lingering: Vec<_> = {
            let (inner, now) = (lock(&self.inner), Instant::now());
            let unused = |(digest, blob): &(&Digest, &Arc<Blob>)| {
                is_unheld(blob, now, Duration::ZERO) && inner.swarm.is_quiet(digest)
            };
            inner.blobs.iter().filter(unused).map(|(_, blob)| Arc::clone(&blob.stored)).collect()
        };
        self.store.removable_without(&lingering)
    }

    /// Closes what is only kept open for who may come back. What does not come is given up when it always is.
    fn let_go(self: &Arc<Self>) {
        self.unflushed().into_iter().for_each(|blob| self.flush_blob(&blob));
        self.close_quiet(Duration::ZERO, None);
    }

    /// As [`Self::remove`], also from under peers that asked for the blob within the last minute and may come back for more. Those go
    /// elsewhere. What is just being sent or fetched refuses still.
    pub fn remove_from_peers(self: &Arc<Self>, digest: &Digest) -> Result<bool, StoreError> {
        self.unflushed().into_iter().for_each(|blob| self.flush_blob(&blob));
        self.close_quiet(Duration::ZERO, Some(digest));
        self.store.remove(digest)
    }

    /// Closes blobs that nobody has held for so long, wants or trades, so that their pieces may be evicted.
    pub(super) fn close_unused(self: &Arc<Self>, linger: Duration) {
        self.give_up_stalled(linger.max(STALLED));
        self.close_quiet(linger, None);
    }

    /// `though_asked`: whether peers may come back for this one does not matter.
    fn close_quiet(self: &Arc<Self>, linger: Duration, though_asked: Option<&Digest>) {
        let mut inner = lock(&self.inner);
        let now = Instant::now();
        // What somebody else removed frees no space as long as it is open.
        let linger = |blob: &Blob| if blob.stored.is_removed() { Duration::ZERO } else { linger };
        let unused =
            |blob: &Arc<Blob>| is_unheld(blob, now, linger(blob)) && blob.unflushed_bytes.load(Ordering::Relaxed) == 0;
        let closing: Vec<_> = inner
            .blobs
            .iter()
            .filter(|(digest, blob)| {
                let is_quiet = inner.swarm.is_quiet(digest);
                unused(blob) && (is_quiet || though_asked == Some(*digest) && inner.swarm.is_idle(digest))
            })
            .map(|(&digest, _)| digest)
            .collect();
        let mut barren = Vec::new();
        for digest in closing {
            let blob = inner.blobs.remove(&digest);
            if blob.as_ref().is_some_and(|blob| blob.stored.is_removed()) {
                // While it was open it may have been announced in part.
                let node = Arc::clone(self);
                self.spawn(async move { node.tell_holding(digest).await });
            }
            if blob.is_some_and(|blob| blob.layout.piece_count() > 0 && blob.stored.have().is_empty()) {
                barren.push(digest);
            }
            self.dispatch(&mut inner, Event::Closed(digest));
        }
        drop(inner);
        self.remove_barren(barren);
    }

    /// Wants no more of blobs that nobody has held for so long and of which nothing came for as long: whoever asked for all
    /// of them has been told why it does not come, or is gone.
    fn give_up_stalled(self: &Arc<Self>, patience: Duration) {
        let mut inner = lock(&self.inner);
        let (now, elapsed) = (Instant::now(), self.elapsed());
        let stalled =
            |digest: &Digest| inner.swarm.waits_since(digest).is_some_and(|since| elapsed >= since + patience);
        let vain: Vec<_> = inner
            .blobs
            .iter()
            .filter(|(digest, blob)| is_unheld(blob, now, patience) && stalled(digest))
            .filter_map(|(&digest, blob)| Some((digest, blob.forget_want()?)))
            .collect();
        for (digest, id) in vain {
            tracing::debug!(%digest, "nobody waits for this blob and it does not come, given up");
            self.dispatch(&mut inner, Event::Unwant { digest, id });
        }
    }

    /// Removes blobs of which no piece came: failed pulls would leave a directory each, which nothing evicts.
    fn remove_barren(self: &Arc<Self>, digests: Vec<Digest>) {
        if digests.is_empty() {
            return;
        }
        let node = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            for digest in digests {
                // Somebody may have come back to it.
                if let Err(error) = node.store.remove_unwritten(&digest) {
                    tracing::debug!(%digest, %error, "a blob without a piece stays");
                }
            }
        });
    }
}

/// Whether nobody has held the blob for so long. The node's own handle is the only one then, and new ones are given out
/// under the node's lock alone, which the caller has.
fn is_unheld(blob: &Arc<Blob>, now: Instant, linger: Duration) -> bool {
    Arc::strong_count(blob) == 1 && now >= *lock(&blob.last_open) + linger
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_blobs_are_open_the_sooner_one_that_nobody_holds_is_closed() {
        assert_eq!([0, 1, AT_EASE].map(linger_of), [LINGER; 3]);
        assert_eq!(linger_of(4 * AT_EASE), LINGER / 4);
        assert_eq!(linger_of(1 << 20), SHORTEST_LINGER);
    }
}
