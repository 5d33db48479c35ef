//! The proof of the whole: a task per blob hashes the growing prefix, so that the digest is known right after the last
//! piece.
//!
//! When it does not match, somebody lied: first the pieces of others are dropped, then all, and both times what is
//! missing is fetched from the origin alone. If that does not help either, the origin itself serves something else.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::Node;
use super::blob::{Blob, Progress, lock};
use super::error::ReadError;
use crate::digest::Digest;
use crate::discovery::StatementKind;
use crate::layout::PieceIndex;
use crate::store::{StoreError, StoredBlob};
use crate::swarm::Event;
use crate::verify::{Metainfo, StreamVerifier, VerifyError};

/// Pieces hashed in one go.
const BATCH: u32 = 16;
/// Mismatches after which the origin is believed to be wrong.
const MAX_MISMATCHES: u32 = 3;

impl Node {
    /// Starts the task unless it runs or the blob is proven.
    pub(super) fn hash_as_it_comes(self: &Arc<Self>, blob: &Arc<Blob>) {
        if blob.is_verified() || blob.hashing.swap(true, Ordering::AcqRel) {
            return;
        }
        // Weak, so that the task does not keep a blob open that nobody wants any more.
        let task =
            prove(Arc::downgrade(self), Arc::downgrade(blob), Arc::clone(&blob.stored), blob.progress.subscribe());
        self.spawn(task);
    }

    async fn proven(self: &Arc<Self>, blob: &Arc<Blob>, metainfo: Metainfo) -> Result<(), StoreError> {
        let stored = Arc::clone(&blob.stored);
        let saved = tokio::task::spawn_blocking({
            let metainfo = metainfo.clone();
            move || {
                stored.mark_verified()?;
                stored.save_metainfo(&metainfo)
            }
        });
        if let Ok(saved) = saved.await {
            saved?;
        }
        let digest = blob.digest;
        let liars = lock(&blob.trust).liars(&metainfo);
        for (peer, piece) in liars {
            tracing::warn!(%digest, %peer, piece = piece.0, "peer stated a wrong hash of a piece");
            self.drive(Event::Bad { peer, digest, piece });
        }
        lock(&blob.trust).set_metainfo(metainfo.clone());
        blob.unflushed_bytes.store(0, Ordering::Relaxed);
        self.drive(Event::Verified(digest));
        blob.progress.send_modify(|progress| progress.verified = true);
        tracing::info!(%digest, from_peers = blob.sources().bytes_from_peers,
            from_origin = blob.sources().bytes_from_origin, "blob is complete and matches its digest");
        if blob.layout.piece_count() > 1
            && let Err(error) = self.publish(StatementKind::Metainfo, digest, metainfo.encode().into()).await
        {
            tracing::warn!(%digest, %error, "metainfo cannot be published");
        }
        Ok(())
    }

    async fn mismatched(self: &Arc<Self>, blob: &Arc<Blob>, actual: Digest) -> Result<(), StoreError> {
        let digest = blob.digest;
        self.metrics.digest_mismatches.inc();
        let times = blob.mismatches.fetch_add(1, Ordering::Relaxed) + 1;
        let all: Vec<PieceIndex> = (0..blob.layout.piece_count()).map(PieceIndex).collect();
        let mine = self.id();
        let of_others: Vec<PieceIndex> = {
            let trust = lock(&blob.trust);
            let other = |piece: &PieceIndex| trust.statement(*piece).is_none_or(|stated| stated.signer != mine);
            all.iter().copied().filter(other).collect()
        };
        for &piece in &of_others {
            let stated_by = lock(&blob.trust).statement(piece).map(|stated| stated.signer.to_string());
            tracing::debug!(%digest, piece = piece.0, stated_by, "piece under suspicion");
        }
        let pieces = if times == 1 && !of_others.is_empty() { of_others } else { all };
        tracing::warn!(%digest, %actual, dropped = pieces.len(), times, "blob does not match its digest");
        blob.progress.send_modify(|progress| progress.revocations += 1);
        let stored = Arc::clone(&blob.stored);
        let dropping = pieces.clone();
        let dropped = tokio::task::spawn_blocking(move || stored.drop_pieces(&dropping));
        if let Ok(dropped) = dropped.await {
            dropped?;
        }
        if times >= MAX_MISMATCHES {
            self.give_up(blob);
        }
        // Without an origin other peers may have the right bytes.
        let origin_only = lock(&blob.origin).is_some();
        self.drive(Event::Dropped { digest, pieces, origin_only });
        // Readers are told last: who tries again must not be given up with the others.
        if times >= MAX_MISMATCHES || !origin_only {
            blob.fail(ReadError::DigestMismatch { digest, actual });
        }
        Ok(())
    }
}

enum Hashed {
    More(StreamVerifier),
    Proven(Metainfo),
    Mismatch(Digest),
}

async fn prove(node: Weak<Node>, blob: Weak<Blob>, stored: Arc<StoredBlob>, mut progress: watch::Receiver<Progress>) {
    let mut verifier = StreamVerifier::new(stored.digest(), stored.layout());
    loop {
        progress.borrow_and_update();
        let (before, hashing) = (verifier.next_piece(), Arc::clone(&stored));
        let Ok(hashed) = tokio::task::spawn_blocking(move || hash_more(&hashing, verifier)).await else { return };
        let (Some(node), Some(blob)) = (node.upgrade(), blob.upgrade()) else { return };
        let outcome = match hashed {
            Ok(Hashed::More(more)) => {
                let idle = more.next_piece() == before;
                verifier = more;
                drop((node, blob));
                if idle && progress.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Ok(Hashed::Proven(metainfo)) => {
                let saved = node.proven(&blob, metainfo).await;
                blob.hashing.store(false, Ordering::Release);
                return report(&node, &blob, saved);
            }
            Ok(Hashed::Mismatch(actual)) => node.mismatched(&blob, actual).await,
            Err(error) => Err(error),
        };
        // Without pieces nothing was dropped and nothing can come: to hash again would be to spin.
        if outcome.is_err() || stored.layout().piece_count() == 0 {
            report(&node, &blob, outcome);
            // The next reader tries again.
            blob.hashing.store(false, Ordering::Release);
            return;
        }
        verifier = StreamVerifier::new(stored.digest(), stored.layout());
    }
}

fn report(node: &Arc<Node>, blob: &Blob, outcome: Result<(), StoreError>) {
    if let Err(error) = outcome {
        node.store_failed(blob, error);
    }
}

/// Hashes a few more pieces of the prefix that is here.
fn hash_more(stored: &StoredBlob, mut verifier: StreamVerifier) -> Result<Hashed, StoreError> {
    let count = stored.layout().piece_count();
    for _ in 0..BATCH {
        let next = verifier.next_piece();
        if next.0 >= count || !stored.has(next) {
            break;
        }
        verifier.push_piece(&stored.read_piece(next)?);
    }
    if verifier.next_piece().0 < count || !stored.is_complete() {
        return Ok(Hashed::More(verifier));
    }
    match verifier.finish() {
        Ok(metainfo) => Ok(Hashed::Proven(metainfo)),
        Err(VerifyError::DigestMismatch { actual, .. }) => Ok(Hashed::Mismatch(actual)),
        // Every piece was pushed once, in the length that the store read it with.
        Err(error) => unreachable!("{error}"),
    }
}
