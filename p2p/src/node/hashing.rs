//! The proof of the whole: a task per blob hashes the growing prefix, so that the digest is known right after the last
//! piece.
//!
//! When it does not match, somebody lied. Metainfo tells which pieces are wrong, where another node has made it by now;
//! else they are found by fetching from the origin what is in doubt (see `blame`). What is dropped takes its bytes from
//! readers' sight first; a stream that has given some of them is cut.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Node;
use super::blame::Remedy;
use super::blob::{Blob, Progress, lock};
use super::error::ReadError;
use crate::digest::Digest;
use crate::discovery::StatementKind;
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::store::{StoreError, StoredBlob};
use crate::swarm::Event;
use crate::timeline::Track;
use crate::verify::{Metainfo, StreamVerifier, VerifyError};

/// Pieces hashed in one go.
const BATCH: u32 = 16;
/// How long a node whose blob came out wrong waits for metainfo of another, and as much again by lot, so that not all of
/// a swarm turn to the origin at once.
const METAINFO_WAIT: Duration = Duration::from_secs(2);
const METAINFO_PAUSE: Duration = Duration::from_millis(250);
/// Pieces that the disk does not give back, or differently, until the blob's readers are told.
const MAX_DISK_FAULTS: u32 = 3;
/// Charges for pieces of one blob: enough for a ban, and no more than one.
const MAX_CHARGES: usize = 3;

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

    /// The whole matched. False if pieces were dropped meanwhile: then it has to be hashed again.
    async fn proven(self: &Arc<Self>, blob: &Arc<Blob>, metainfo: Metainfo, drops: u64) -> Result<bool, StoreError> {
        let digest = blob.digest;
        // Pieces under a name may be dropped yet, when the origin contradicts one of them: they are believed once they are written down.
        if !digest.is_name() || blob.layout.piece_count() == 1 {
            lock(&blob.trust).set_proven(metainfo.clone());
            blob.progress.send_modify(|progress| progress.matched = Some(drops));
        }
        let saved = tokio::task::spawn_blocking({
            let (blob, metainfo) = (Arc::clone(blob), metainfo.clone());
            move || {
                if blob.stored.drops() != drops {
                    return Ok(false);
                }
                unless_full(&blob.stored, blob.stored.save_metainfo(&metainfo))?;
                match blob.stored.mark_verified(drops) {
                    Err(StoreError::Changed(_) | StoreError::Missing { .. }) => Ok(false),
                    marked => unless_full(&blob.stored, marked).map(|()| true),
                }
            }
        });
        match saved.await {
            Ok(Ok(false)) => return Ok(false),
            Ok(Err(error)) => {
                self.forget_lost(blob);
                return Err(error);
            }
            Ok(Ok(true)) if blob.stored.drops() != drops => return Ok(false),
            // The second only when the process ends.
            Ok(Ok(true)) | Err(_) => {}
        }
        self.convict(blob, &metainfo);
        lock(&blob.trust).set_proven(metainfo.clone());
        blob.unflushed_bytes.store(0, Ordering::Relaxed);
        blob.timeline().completed();
        self.drive(Event::Verified(digest));
        blob.progress.send_modify(|progress| (progress.matched, progress.verified) = (Some(drops), true));
        tracing::info!(%digest, from_peers = blob.sources().bytes_from_peers,
            from_origin = blob.sources().bytes_from_origin, "blob is complete and matches its digest");
        if (blob.layout.piece_count() > 1 || digest.is_name())
            && let Err(error) = self.publish(StatementKind::Metainfo, digest, metainfo.encode().into()).await
        {
            tracing::warn!(%digest, %error, "metainfo cannot be published");
        }
        Ok(true)
    }

    /// Charges those who stated what the truth contradicts.
    fn convict(self: &Arc<Self>, blob: &Blob, truth: &Metainfo) {
        let digest = blob.digest;
        let guilty = {
            let trust = lock(&blob.trust);
            lock(&blob.blame).guilty(self.id(), truth, trust.stated())
        };
        for (peer, pieces) in guilty {
            for piece in &pieces {
                tracing::warn!(%digest, %peer, piece = piece.0, "peer signed a wrong hash of this piece");
            }
            for piece in pieces.into_iter().take(MAX_CHARGES) {
                self.metrics.false_statements.inc();
                self.drive(Event::Bad { peer, digest, piece });
            }
        }
    }

    async fn mismatched(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        actual: Digest,
        hashes: Vec<[u8; 32]>,
    ) -> Result<(), StoreError> {
        let (digest, me) = (blob.digest, self.id());
        self.metrics.digest_mismatches.inc();
        let has_origin = lock(&blob.origins).is_known();
        let held = lock(&blob.trust).held(&hashes);
        let others = held.iter().any(|held| held.signer != Some(me));
        if others && lock(&blob.blame).is_first() {
            self.seek_metainfo(blob).await;
        }
        let by_metainfo = lock(&blob.trust).contradicted(&hashes);
        let all = || (0..blob.layout.piece_count()).map(PieceIndex);
        let (pieces, origin_only, hopeless) = match by_metainfo {
            Some(wrong) => {
                lock(&blob.blame).keep_evidence(me, &held, wrong.iter().copied());
                (wrong, false, false)
            }
            None if has_origin => match lock(&blob.blame).mismatched(me, &held, &mut fastrand::Rng::new()) {
                Remedy::Refetch(pieces) => (pieces, true, false),
                Remedy::GiveUp => (all().collect(), true, true),
            },
            None => {
                lock(&blob.blame).keep_evidence(me, &held, all());
                (all().collect(), false, true)
            }
        };
        for piece in &pieces {
            let signer = held.get(piece.0 as usize).and_then(|held| held.signer).map(|signer| signer.to_string());
            tracing::debug!(%digest, piece = piece.0, signer, "piece is in doubt");
        }
        tracing::warn!(%digest, %actual, dropped = pieces.len(), "blob does not match its digest");
        // Bytes that may have been given to readers already were wrong.
        blob.progress.send_modify(|progress| progress.revocations += 1);
        if hopeless {
            self.give_up(blob);
        }
        self.drop_pieces(blob, pieces, origin_only).await?;
        // Readers are told last: who tries again must not be given up with the others.
        if hopeless {
            let from = lock(&blob.origins).current().map_or_else(|| "its peers".to_owned(), |origin| origin.describe());
            tracing::error!(%digest, %actual, from, "what is served under this name is something else");
            blob.fail(ReadError::DigestMismatch { digest, actual, from });
        }
        Ok(())
    }

    /// Takes pieces back: from readers' sight, the disk and the scheduler, which has them fetched again if somebody
    /// wants them.
    pub(super) async fn drop_pieces(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        pieces: Vec<PieceIndex>,
        origin_only: bool,
    ) -> Result<(), StoreError> {
        self.drop_selected(blob, |_| pieces, origin_only).await
    }

    /// The same; which pieces is asked at the last moment.
    async fn drop_selected(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        select: impl FnOnce(&Blob) -> Vec<PieceIndex> + Send + 'static,
        origin_only: bool,
    ) -> Result<(), StoreError> {
        blob.progress.send_modify(|progress| progress.verified = false);
        let dropping = Arc::clone(blob);
        let dropped = tokio::task::spawn_blocking(move || {
            let pieces = select(&dropping);
            lock(&dropping.trust).forget(&pieces);
            let dropped = dropping.stored.drop_pieces(&pieces);
            (pieces, dropped)
        });
        // Fails only when the process ends.
        let Ok((pieces, dropped)) = dropped.await else { return Ok(()) };
        // Out of readers' sight they are even where the disk refuses to forget them.
        self.drive(Event::Dropped { digest: blob.digest, pieces, origin_only });
        dropped
    }

    /// A piece on this node's disk cannot be read, or is not what it was. It is fetched again; after a few the readers
    /// are told that the disk is to be looked after.
    pub(super) async fn disk_failed(self: &Arc<Self>, blob: &Arc<Blob>, piece: PieceIndex, error: StoreError) {
        let digest = blob.digest;
        self.metrics.spoilt_pieces.inc();
        tracing::error!(%digest, piece = piece.0, %error, "piece on this node's disk is lost, fetched again");
        if blob.stored.is_foreign() {
            self.doubt_foreign(&digest);
        }
        let faults = blob.disk_faults.fetch_add(1, Ordering::Relaxed) + 1;
        let dropped = self.drop_pieces(blob, vec![piece], false).await;
        if let Err(error) = dropped {
            self.store_failed(blob, error);
        } else if faults.is_multiple_of(MAX_DISK_FAULTS) || blob.stored.is_foreign() {
            // What comes cannot be written to a file of somebody else: who opens the blob anew gets another one.
            self.store_failed(blob, error);
        }
    }

    /// Asks discovery for metainfo that somebody else has made, for a while.
    async fn seek_metainfo(self: &Arc<Self>, blob: &Arc<Blob>) {
        let until = Instant::now() + METAINFO_WAIT + METAINFO_WAIT.mul_f64(fastrand::f64());
        loop {
            self.find_metainfo(blob).await;
            if lock(&blob.trust).needs_no_word() || Instant::now() >= until {
                return;
            }
            tokio::time::sleep(METAINFO_PAUSE).await;
        }
    }
}

/// A proof that cannot be written down for want of room is good all the same, for as long as the process lives.
fn unless_full(stored: &StoredBlob, saved: Result<(), StoreError>) -> Result<(), StoreError> {
    match saved {
        Err(error @ StoreError::NoSpace { .. }) if stored.is_complete() => {
            tracing::warn!(digest = %stored.digest(), %error, "blob is proven, which will be forgotten");
            Ok(())
        }
        saved => saved,
    }
}

/// The pieces for which somebody else vouches.
fn pieces_of_others(blob: &Blob, mine: PeerId) -> Vec<PieceIndex> {
    let trust = lock(&blob.trust);
    let other = |piece: &PieceIndex| trust.statement(*piece).is_none_or(|stated| stated.signer != mine);
    (0..blob.layout.piece_count()).map(PieceIndex).filter(other).collect()
}

impl Node {
    /// The origin contradicts the metainfo of a blob that has no digest to tell who is right: what came from others is
    /// dropped, and the rest comes from the origin alone.
    pub(super) async fn distrust(self: &Arc<Self>, blob: &Arc<Blob>) -> Result<(), StoreError> {
        let (digest, me) = (blob.digest, self.id());
        self.metrics.digest_mismatches.inc();
        blob.progress.send_modify(|progress| progress.revocations += 1);
        // Pieces of the origin's own that come meanwhile have this node's word before they are written.
        let select = move |blob: &Blob| {
            let mut pieces = pieces_of_others(blob, me);
            // What is on its way is not to be asked for again.
            pieces.retain(|&piece| blob.stored.has(piece));
            tracing::warn!(%digest, dropped = pieces.len(), "the origin contradicts what was stated of this content");
            pieces
        };
        self.drop_selected(blob, select, true).await
    }
}

enum Hashed {
    More(StreamVerifier),
    Proven(Metainfo),
    Mismatch(Digest, Vec<[u8; 32]>),
    /// Pieces were dropped while they were hashed.
    Changed,
    Unreadable(PieceIndex, StoreError),
}

impl Hashed {
    /// What it is worth when pieces were dropped meanwhile.
    fn or_changed(self) -> Self {
        match self {
            Self::More(_) | Self::Proven(_) | Self::Mismatch(..) => Self::Changed,
            changed => changed,
        }
    }
}

async fn prove(node: Weak<Node>, blob: Weak<Blob>, stored: Arc<StoredBlob>, mut progress: watch::Receiver<Progress>) {
    // The hash of the prefix, and how often pieces had been dropped when it was begun.
    let mut begun: Option<(StreamVerifier, u64)> = None;
    loop {
        progress.borrow_and_update();
        let drops = stored.drops();
        // After a drop, what was hashed may not be what is there.
        let verifier = begun.take().filter(|(_, before)| *before == drops).map(|(verifier, _)| verifier);
        let verifier = verifier.unwrap_or_else(|| StreamVerifier::new(stored.digest(), stored.layout()));
        let (before, hashing) = (verifier.next_piece(), Arc::clone(&stored));
        let work = tokio::task::spawn_blocking(move || {
            let began = std::time::Instant::now();
            (hash_more(&hashing, verifier), began, std::time::Instant::now())
        });
        let Ok((hashed, began, ended)) = work.await else { return };
        // Right bytes may have taken the place of wrong ones, or the other way round.
        let hashed = if stored.drops() == drops { hashed } else { hashed.or_changed() };
        let (Some(node), Some(blob)) = (node.upgrade(), blob.upgrade()) else { return };
        blob.timeline().add(Track::Verify, began, ended);
        let outcome = match hashed {
            Hashed::More(more) => {
                let idle = more.next_piece() == before;
                begun = Some((more, drops));
                drop((node, blob));
                if idle && progress.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Hashed::Proven(metainfo) => match node.proven(&blob, metainfo, drops).await {
                Ok(true) => {
                    blob.hashing.store(false, Ordering::Release);
                    return;
                }
                changed => changed.map(drop),
            },
            Hashed::Changed => Ok(()),
            Hashed::Mismatch(actual, hashes) => node.mismatched(&blob, actual, hashes).await,
            Hashed::Unreadable(piece, error) => {
                node.disk_failed(&blob, piece, error).await;
                Ok(())
            }
        };
        // Without pieces nothing was dropped and nothing can come: to hash again would be to spin.
        if outcome.is_err() || stored.layout().piece_count() == 0 {
            // The next reader tries again.
            blob.hashing.store(false, Ordering::Release);
            if let Err(error) = outcome {
                node.store_failed(&blob, error);
            }
            return;
        }
    }
}

/// Hashes a few more pieces of the prefix that is here.
fn hash_more(stored: &StoredBlob, mut verifier: StreamVerifier) -> Hashed {
    let count = stored.layout().piece_count();
    for _ in 0..BATCH {
        let next = verifier.next_piece();
        if next.0 >= count || !stored.has(next) {
            break;
        }
        match stored.read_piece(next) {
            Ok(bytes) => verifier.push_piece(&bytes),
            Err(StoreError::Missing { .. }) => return Hashed::Changed,
            Err(error) => return Hashed::Unreadable(next, error),
        }
    }
    if verifier.next_piece().0 < count || !stored.is_complete() {
        return Hashed::More(verifier);
    }
    let hashes = verifier.hashes().to_vec();
    match verifier.finish() {
        Ok(metainfo) => Hashed::Proven(metainfo),
        Err(VerifyError::DigestMismatch { actual, .. }) => Hashed::Mismatch(actual, hashes),
        // Every piece was pushed once, in the length that the store read it with.
        Err(error) => unreachable!("{error}"),
    }
}
