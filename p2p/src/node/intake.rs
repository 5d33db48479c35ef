//! The way of a piece into the store: judged, written, then told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use tokio::time::Instant;

use super::Node;
use super::aside::Undecided;
use super::blob::{Blob, lock};
use super::error::ReadError;
use super::passing::Kept;
use super::trust::Verdict;
use crate::digest::Digest;
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::MAX_ASIDE_BYTES;
use crate::metrics::Source;
use crate::statement::PieceStatement;
use crate::store::StoreError;
use crate::swarm::{Event, PieceSource};
use crate::timeline::Track;

/// After so many new bytes of a blob they are made durable at once.
const FLUSH_BYTES: u64 = 64 << 20;

/// How often, and after which pause, room is sought for a piece.
const ROOM_TRIES: u32 = 10;
const ROOM_PAUSE: Duration = Duration::from_millis(30);

impl Node {
    /// Takes a piece that a peer sent. One that nobody asked for is dropped.
    pub(super) async fn take_piece(
        self: &Arc<Self>,
        peer: PeerId,
        digest: Digest,
        piece: PieceIndex,
        statement: Option<PieceStatement>,
        bytes: Bytes,
    ) {
        let Some(blob) = self.expecting(peer, &digest, piece) else { return };
        self.judge(blob, Undecided { peer, piece, bytes, statement, since: Instant::now() }).await;
    }

    /// Judges a piece and does what follows.
    async fn judge(self: &Arc<Self>, blob: Arc<Blob>, undecided: Undecided) {
        let (peer, piece) = (undecided.peer, undecided.piece);
        let digest = blob.digest;
        let judged = tokio::task::spawn_blocking({
            let (node, blob) = (Arc::clone(self), Arc::clone(&blob));
            move || {
                let timeline = blob.timeline();
                let began = std::time::Instant::now();
                let (verdict, refuted) = {
                    let mut trust = lock(&blob.trust);
                    let had_metainfo = trust.needs_no_word();
                    let verdict = trust.judge(piece, &undecided.bytes, undecided.statement.as_ref());
                    (verdict, had_metainfo && !trust.needs_no_word())
                };
                let judged = std::time::Instant::now();
                timeline.add(Track::Verify, began, judged);
                let written = match verdict {
                    Verdict::Good => {
                        // Before others see the piece: with the last one the blob is complete, and its sources are looked at.
                        let bytes = undecided.bytes.len() as u64;
                        blob.bytes_from_peers.fetch_add(bytes, Ordering::Relaxed);
                        let kept = node.keep_piece(&blob, piece, &undecided.bytes);
                        if kept.is_err() {
                            blob.bytes_from_peers.fetch_sub(bytes, Ordering::Relaxed);
                        }
                        kept
                    }
                    Verdict::Bad | Verdict::Unknown => Ok(Kept::Passed),
                };
                timeline.add(Track::Write, judged, std::time::Instant::now());
                (verdict, refuted, written, undecided)
            }
        });
        let Ok((verdict, refuted, written, undecided)) = judged.await else { return };
        if refuted {
            // What waited because it contradicted the metainfo may be good after all.
            let (node, blob) = (Arc::clone(self), Arc::clone(&blob));
            self.spawn(async move { node.judge_aside(&blob).await });
        }
        match verdict {
            Verdict::Good => {
                let Ok(kept) = written else {
                    return self.drive(Event::Unusable { peer, digest, piece });
                };
                let bytes = undecided.bytes.len() as u64;
                self.metrics.count_bytes(Source::peer, bytes);
                blob.timeline().bytes_of_peer(&peer, bytes);
                blob.trace_piece(&peer, bytes);
                self.received(&blob, piece, PieceSource::Peer(peer), bytes, kept);
            }
            Verdict::Bad => {
                self.metrics.bad_pieces.inc();
                let stated_by = undecided.statement.map(|statement| statement.signer.to_string());
                tracing::warn!(%digest, piece = piece.0, %peer, stated_by, "piece from a peer does not match, dropped");
                self.drive(Event::Bad { peer, digest, piece });
            }
            Verdict::Unknown => self.set_aside(&blob, undecided),
        }
    }

    fn set_aside(self: &Arc<Self>, blob: &Arc<Blob>, mut undecided: Undecided) {
        let bytes = undecided.bytes.len() as u64;
        let (peer, piece, digest) = (undecided.peer, undecided.piece, blob.digest);
        if self.aside_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_ASIDE_BYTES {
            self.aside_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.metrics.unverifiable_pieces.inc();
            return self.drive(Event::Unusable { peer, digest, piece });
        }
        // It may wait long: the receive buffer goes back.
        undecided.bytes = Bytes::copy_from_slice(&undecided.bytes);
        lock(&blob.aside).add(undecided);
        self.drive(Event::FindAgain(digest));
    }

    /// Judges again what waited, now that more is known. Boxed, since judging may lead to it again.
    pub(super) fn judge_aside<'a>(self: &'a Arc<Self>, blob: &'a Arc<Blob>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let waiting = lock(&blob.aside).take();
            for undecided in waiting {
                self.aside_bytes.fetch_sub(undecided.bytes.len() as u64, Ordering::Relaxed);
                let (peer, piece, since) = (undecided.peer, undecided.piece, undecided.since);
                if self.expecting(peer, &blob.digest, piece).is_some() {
                    // Keeps its age: judging does not buy time.
                    self.judge(Arc::clone(blob), Undecided { since, ..undecided }).await;
                }
            }
        })
    }

    /// Gives up on what waited too long.
    pub(super) fn drop_expired_aside(self: &Arc<Self>, blob: &Blob, now: Instant) {
        let expired = lock(&blob.aside).expired(now);
        for undecided in expired {
            self.aside_bytes.fetch_sub(undecided.bytes.len() as u64, Ordering::Relaxed);
            self.metrics.unverifiable_pieces.inc();
            let (peer, piece, digest) = (undecided.peer, undecided.piece, blob.digest);
            tracing::debug!(%digest, piece = piece.0, %peer, "nobody trusted states the hash of this piece, dropped");
            self.drive(Event::Unusable { peer, digest, piece });
        }
    }

    /// A piece is in the store: tell the scheduler, then the readers.
    pub(super) fn arrived(self: &Arc<Self>, blob: &Arc<Blob>, piece: PieceIndex, source: PieceSource, bytes: u64) {
        lock(&blob.unchecked).clear(piece);
        self.note_piece();
        self.drive(Event::Stored { digest: blob.digest, piece, source });
        let before = blob.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before < FLUSH_BYTES && before + bytes >= FLUSH_BYTES {
            self.flush_now.notify_one();
        }
        blob.progress.send_modify(|_| {});
    }

    /// Writes a piece. Where there is no room, blobs that are only kept open for who may come back are closed, so that the
    /// store may evict them, and it is tried again for a moment: tasks of a blob just finished may hold it still. Blocks.
    pub(super) fn write_piece(
        self: &Arc<Self>,
        blob: &Blob,
        piece: PieceIndex,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let mut written = blob.stored.write_piece(piece, bytes);
        // Who found no room a moment ago does not look for it at length with each piece.
        let tries = if blob.is_full() { 0 } else { ROOM_TRIES };
        for _ in 0..tries {
            if !matches!(written, Err(StoreError::NoSpace { .. })) {
                break;
            }
            self.unflushed().into_iter().for_each(|blob| self.flush_blob(&blob));
            self.close_unused(Duration::ZERO);
            written = blob.stored.write_piece(piece, bytes);
            if written.is_err() {
                std::thread::sleep(ROOM_PAUSE);
            }
        }
        written.map(drop)
    }

    /// The store could not take a piece: readers are told what to do about it, and what only should come in is not fetched any more.
    pub(super) fn store_failed(self: &Arc<Self>, blob: &Blob, error: impl Into<ReadError>) {
        let error = error.into();
        tracing::warn!(digest = %blob.digest, %error, "piece cannot be stored");
        self.give_up(blob);
        blob.fail(error);
    }
}
