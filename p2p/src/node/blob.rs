//! One blob as its readers see it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Node;
use super::aside::Aside;
use super::blame::Blame;
use super::error::ReadError;
use super::following::Followed;
use super::origins::Origins;
use super::passing::Passing;
use super::trust::Trust;
use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::layout::{PieceIndex, PieceLayout};
use crate::origin::OriginError;
use crate::store::{Pin, StoreError, StoredBlob};
use crate::swarm::{Event, Priority, WantId};
use crate::timeline::Timeline;
use crate::verify::{StreamVerifier, VerifyError, piece_hash};

/// How often a reader asks again for pieces that came when there was no room for them.
const RECALL: Duration = Duration::from_millis(500);

/// Where the bytes of a blob came from, since this process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sources {
    /// Bytes of pieces from other nodes.
    pub bytes_from_peers: u64,
    /// Bytes of pieces from the origin.
    pub bytes_from_origin: u64,
}

/// What readers wait on.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// How often pieces had been dropped when the whole matched its digest. As long as that is so, readers may have all of it, though a
    /// crash may take it yet.
    pub(super) matched: Option<u64>,
    /// Whether it did, and that was written down, unless for want of room.
    pub(super) verified: bool,
    /// Grows when pieces that may have been given to readers turn out wrong.
    pub(super) revocations: u32,
    /// How often readers were told that they wait in vain.
    told: Told,
    /// The last failure: for those who waited when it came.
    failure: Option<ReadError>,
    /// The last refusal.
    refusal: Option<ReadError>,
}

impl Progress {
    fn of(stored: &StoredBlob) -> Self {
        let (drops, verified) = (stored.drops(), stored.is_verified());
        Self { matched: verified.then_some(drops), verified, ..Self::default() }
    }

    /// Whether what is here now was proven, and that written down.
    fn is_verified(&self, stored: &StoredBlob) -> bool {
        self.verified && self.matched == Some(stored.drops())
    }

    fn fail(&mut self, error: ReadError) {
        self.told.failures += 1;
        self.failure = Some(error);
    }

    fn refuse(&mut self, error: ReadError) {
        self.told.refusals += 1;
        self.refusal = Some(error);
    }
}

/// What was told: who compares it with what it was when they began to wait knows what concerns them.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// To all who wait.
    failures: u64,
    /// That a piece cannot be stored: only who waits for the whole blob to be stored minds.
    refusals: u64,
}

/// A blob that can be read while it arrives. While somebody holds it, its pieces are not evicted.
pub struct Blob {
    pub(super) digest: Digest,
    pub(super) layout: PieceLayout,
    pub(super) node: Weak<Node>,
    pub(super) stored: Arc<StoredBlob>,
    pub(super) trust: Mutex<Trust>,
    pub(super) aside: Mutex<Aside>,
    pub(super) blame: Mutex<Blame>,
    pub(super) passing: Mutex<Passing>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) origins: Mutex<Origins>,
    pub(super) origin_error: Mutex<Option<OriginError>>,
    /// Whether its pieces are worth packing, once one was tried.
    pub(super) packable: OnceLock<bool>,
    pub(super) hashing: AtomicBool,
    pub(super) loading_metainfo: AtomicBool,
    pub(super) disk_faults: AtomicU32,
    /// Pieces of a former process that nobody has held against their hash since.
    pub(super) unchecked: Mutex<Bitfield>,
    pub(super) first_lessee: AtomicBool,
    pub(super) unflushed_bytes: AtomicU64,
    pub(super) bytes_from_peers: AtomicU64,
    pub(super) bytes_from_origin: AtomicU64,
    pub(super) last_open: Mutex<Instant>,
    pub(super) timeline: Mutex<Arc<Timeline>>,
    /// Its traced pull, if somebody follows it.
    pub(super) followed: Mutex<Weak<Followed>>,
    _pin: Pin,
    /// The present attempt at having all of it, with its own want: what is known of an earlier one says nothing of it.
    wants_all: Mutex<Option<(Priority, WantId)>>,
}

/// How often pieces that were taken back while they were read are waited for.
const READ_TRIES: u32 = 4;

/// Wants pieces as long as it lives.
struct Wanting {
    blob: Arc<Blob>,
    id: WantId,
}

impl Drop for Wanting {
    fn drop(&mut self) {
        self.blob.need(self.id, None);
        if let Some(node) = self.blob.node.upgrade() {
            node.drive(Event::Unwant { digest: self.blob.digest, id: self.id });
        }
    }
}

/// Locks, also after another thread panicked: every change under these locks is complete at each step.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blob {
    pub(super) fn new(node: &Arc<Node>, pin: Pin) -> Self {
        let stored = Arc::clone(pin.blob());
        let (digest, layout) = (stored.digest(), stored.layout());
        Self {
            digest,
            layout,
            node: Arc::downgrade(node),
            trust: Mutex::new(Trust::new(digest, layout)),
            aside: Mutex::new(Aside::default()),
            blame: Mutex::new(Blame::default()),
            passing: Mutex::default(),
            progress: watch::Sender::new(Progress::of(&stored)),
            origins: Mutex::default(),
            origin_error: Mutex::new(None),
            packable: OnceLock::new(),
            hashing: AtomicBool::new(false),
            loading_metainfo: AtomicBool::new(false),
            disk_faults: AtomicU32::new(0),
            unchecked: Mutex::new(stored.have()),
            first_lessee: AtomicBool::new(false),
            unflushed_bytes: AtomicU64::new(0),
            bytes_from_peers: AtomicU64::new(0),
            bytes_from_origin: AtomicU64::new(0),
            last_open: Mutex::new(Instant::now()),
            timeline: Mutex::new(node.timelines.of(&digest)),
            followed: Mutex::default(),
            wants_all: Mutex::new(None),
            stored,
            _pin: pin,
        }
    }

    /// Its name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.layout.length()
    }

    /// Whether all of it is here and matched the digest.
    pub fn is_verified(&self) -> bool {
        self.progress.borrow().is_verified(&self.stored)
    }

    /// Bytes of the blob; waits until their pieces are here, each checked. Taken back when the future is dropped.
    pub async fn read(self: &Arc<Self>, range: Range<u64>, priority: Priority) -> Result<Bytes, ReadError> {
        self.check(&range)?;
        let pieces = self.layout.pieces(range.clone());
        for _ in 0..READ_TRIES {
            // Until they are read: they may be in memory only.
            let _wanting = if self.must_want(&pieces) {
                let told = self.told();
                let wanting = self.want(pieces.clone(), pieces.clone(), priority);
                self.arrival(pieces.clone(), told).await?;
                wanting
            } else {
                None
            };
            if let Some((bytes, _)) = self.read_here(range.clone()).await? {
                return Ok(bytes);
            }
        }
        Err(StoreError::Changed(self.digest).into())
    }

    /// The bytes in order, in chunks of at most one piece, as they arrive. When the range is the whole blob, the last
    /// piece is only given after the digest matched: wrong bytes cut the stream instead of completing it.
    pub fn stream(
        self: &Arc<Self>,
        range: Range<u64>,
        priority: Priority,
    ) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + use<> + 'static {
        let reader = BlobStream {
            next: range.start,
            whole: range == (0..self.length()),
            revocations: self.progress.borrow().revocations,
            wanting: None,
            wanted: 0..0,
            verifier: None,
            blob: Arc::clone(self),
            priority,
            range,
        };
        futures_util::stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            match reader.next_chunk().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Lets all of it come; returns at once.
    pub fn want_all(self: &Arc<Self>, priority: Priority) {
        self.attempt_all(priority);
    }

    /// The same; gives what had gone wrong before.
    fn attempt_all(self: &Arc<Self>, priority: Priority) -> Told {
        let Some(node) = self.node.upgrade() else { return self.told() };
        let (id, told) = {
            let mut wanted = lock(&self.wants_all);
            let told = self.told();
            let id = match *wanted {
                Some((at, _)) if at <= priority => return told,
                Some((_, id)) => id,
                None => node.next_want(),
            };
            *wanted = Some((priority, id));
            (id, told)
        };
        node.want(self, id, 0..self.layout.piece_count(), priority);
        told
    }

    /// Waits until all of it is here and the digest matched, which is remembered from then on; somebody must want it.
    pub async fn completed(self: &Arc<Self>) -> Result<(), ReadError> {
        if self.is_verified() {
            return Ok(());
        }
        self.completed_since(self.told()).await
    }

    async fn completed_since(self: &Arc<Self>, told: Told) -> Result<(), ReadError> {
        tokio::select! {
            arrived = self.arrival(0..self.layout.piece_count(), told) => arrived?,
            refused = self.refusal(told) => return Err(refused),
        }
        self.proof(|progress| progress.is_verified(&self.stored).then_some(())).await
    }

    /// Lets all of it come and waits until the digest matched, which is remembered from then on.
    pub async fn verified(self: &Arc<Self>) -> Result<(), ReadError> {
        if self.is_verified() {
            return Ok(());
        }
        let told = self.attempt_all(Priority::Bulk);
        self.completed_since(told).await
    }

    /// Whether this node was granted the lease of piece 0: by convention it builds what derives from the blob.
    pub fn was_first_lessee(&self) -> bool {
        self.first_lessee.load(Ordering::Relaxed)
    }

    /// Whether a node that is connected has some of it.
    pub fn is_offered(&self) -> bool {
        self.node.upgrade().is_some_and(|node| !lock(&node.inner).swarm.holders_of(&self.digest).1.is_empty())
    }

    /// Where its bytes came from.
    pub fn sources(&self) -> Sources {
        Sources {
            bytes_from_peers: self.bytes_from_peers.load(Ordering::Relaxed),
            bytes_from_origin: self.bytes_from_origin.load(Ordering::Relaxed),
        }
    }

    /// Where the time and bytes of its last pull went.
    pub fn timeline(&self) -> Arc<Timeline> {
        Arc::clone(&lock(&self.timeline))
    }

    /// Whether a piece of this or another blob came lately, and nothing is known against this one: its turn will come.
    pub fn may_come_later(&self, lately: Duration) -> bool {
        let busy = self.node.upgrade().is_some_and(|node| node.since_last_piece().is_some_and(|since| since <= lately));
        busy && lock(&self.origin_error).is_none()
    }

    fn check(&self, range: &Range<u64>) -> Result<(), ReadError> {
        if range.start > range.end || range.end > self.length() {
            return Err(ReadError::OutOfRange { digest: self.digest, range: range.clone(), length: self.length() });
        }
        Ok(())
    }

    /// Wants `pieces`, of which those in `next` are needed first.
    fn want(self: &Arc<Self>, pieces: Range<u32>, next: Range<u32>, priority: Priority) -> Option<Wanting> {
        let node = self.node.upgrade()?;
        let id = node.next_want();
        self.need(id, Some(next));
        node.want(self, id, pieces, priority);
        Some(Wanting { blob: Arc::clone(self), id })
    }

    pub(super) fn missing(&self, pieces: &Range<u32>) -> usize {
        let passing = lock(&self.passing);
        let passes = |piece: PieceIndex| passing.get(piece).is_some();
        let pieces_of = pieces.clone().map(PieceIndex);
        match pieces.len() {
            0..16 => pieces_of.filter(|&piece| !self.stored.has(piece) && !passes(piece)).count(),
            _ => {
                let have = self.stored.have();
                pieces_of.filter(|&piece| !have.get(piece) && !passes(piece)).count()
            }
        }
    }

    /// Waits until a piece cannot be stored.
    async fn refusal(&self, before: Told) -> ReadError {
        let mut progress = self.progress.subscribe();
        match progress.wait_for(|now| now.told.refusals > before.refusals).await {
            Ok(now) => now.refusal.clone().unwrap_or(ReadError::ShutDown),
            Err(_) => ReadError::ShutDown,
        }
    }

    /// Waits until all `pieces` are here. The deadline starts anew with each of them that comes.
    async fn arrival(&self, pieces: Range<u32>, before: Told) -> Result<(), ReadError> {
        let mut progress = self.progress.subscribe();
        self.failure_since(before, &progress.borrow_and_update())?;
        let mut missing = self.missing(&pieces);
        while missing > 0 {
            let deadline = Instant::now() + self.read_deadline()?;
            loop {
                let again = deadline.min(Instant::now() + RECALL);
                match tokio::time::timeout_at(again, progress.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(ReadError::ShutDown),
                    Err(_) if Instant::now() < deadline => self.recall(&pieces),
                    Err(_) => return Err(self.late(self.bytes(&pieces))),
                }
                self.failure_since(before, &progress.borrow_and_update())?;
                let left = self.missing(&pieces);
                if left != missing {
                    missing = left;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Waits until the digest of the whole was computed, and as much is known of it as `proven` asks for; everything is here.
    async fn proof<T>(self: &Arc<Self>, proven: impl Fn(&Progress) -> Option<T>) -> Result<T, ReadError> {
        let mut progress = self.progress.subscribe();
        let before = self.told();
        if let Some(node) = self.node.upgrade() {
            // It ended if the disk failed before.
            node.hash_as_it_comes(self);
        }
        loop {
            {
                let now = progress.borrow_and_update();
                if let Some(proof) = proven(&now) {
                    return Ok(proof);
                }
                self.failure_since(before, &now)?;
            }
            match tokio::time::timeout(self.read_deadline()?, progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ReadError::ShutDown),
                Err(_) => return Err(self.late(0..self.length())),
            }
        }
    }

    fn told(&self) -> Told {
        self.progress.borrow().told
    }

    fn failure_since(&self, before: Told, progress: &Progress) -> Result<(), ReadError> {
        match &progress.failure {
            Some(error) if progress.told.failures > before.failures => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn read_deadline(&self) -> Result<Duration, ReadError> {
        self.node.upgrade().map(|node| node.config.read_deadline).ok_or(ReadError::ShutDown)
    }

    fn bytes(&self, pieces: &Range<u32>) -> Range<u64> {
        self.layout.range(PieceIndex(pieces.start)).start..self.layout.range(PieceIndex(pieces.end)).start
    }

    fn late(&self, range: Range<u64>) -> ReadError {
        let digest = self.digest;
        if let Some(source) = lock(&self.origin_error).clone() {
            return ReadError::Origin { digest, source };
        }
        let (waited, peers) = self
            .node
            .upgrade()
            .map_or_else(Default::default, |node| (node.config.read_deadline, node.peers_of(&digest)));
        ReadError::Deadline { digest, range, waited, peers }
    }

    /// Bytes of pieces that are here, and whether some of them are in memory only. None if some were taken back meanwhile, or turned out to be spoilt on the disk: they
    /// have to come again.
    async fn read_here(self: &Arc<Self>, range: Range<u64>) -> Result<Option<(Bytes, bool)>, ReadError> {
        let (blob, wanted) = (Arc::clone(self), range.clone());
        let read = tokio::task::spawn_blocking(move || {
            let (bytes, in_memory) = blob.read_blocking(wanted.clone())?;
            let spoilt = blob.spoilt(&wanted, &bytes);
            Ok((bytes, in_memory, spoilt))
        });
        match read.await.map_err(|_| ReadError::ShutDown)? {
            Ok((bytes, in_memory, None)) => Ok(Some((bytes, in_memory))),
            Ok((_, _, Some(piece))) => {
                let node = self.node.upgrade().ok_or(ReadError::ShutDown)?;
                let spoilt = || StoreError::Spoilt { digest: self.digest, piece: piece.0 };
                node.disk_failed(self, piece, spoilt()).await;
                // It does not come again into a file of somebody else.
                if self.stored.is_foreign() { Err(spoilt().into()) } else { Ok(None) }
            }
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The first piece wholly within `range`, whose bytes these are, that is not what it was when it came.
    fn spoilt(&self, range: &Range<u64>, bytes: &[u8]) -> Option<PieceIndex> {
        self.layout.pieces(range.clone()).map(PieceIndex).find(|&piece| {
            let Range { start, end } = self.layout.range(piece);
            let whole = range.start <= start && end <= range.end;
            let of_piece = || &bytes[(start - range.start) as usize..(end - range.start) as usize];
            whole && self.differs(piece, of_piece())
        })
    }

    /// Whether a piece on the disk is known to have been something else when it came.
    fn differs(&self, piece: PieceIndex, bytes: &[u8]) -> bool {
        if self.layout.piece_count() == 1 && !self.digest.is_name() {
            let matched = self.progress.borrow().matched == Some(self.stored.drops());
            return matched && Digest::of(bytes) != self.digest;
        }
        let expected = lock(&self.trust).expected(piece);
        expected.is_some_and(|expected| expected != piece_hash(bytes))
    }

    /// Whether the piece is still what it was when it came, if a former process took it in and nobody has looked since.
    /// Blocks.
    pub(super) fn is_intact(&self, piece: PieceIndex) -> Result<bool, StoreError> {
        if !lock(&self.unchecked).get(piece) {
            return Ok(true);
        }
        let bytes = self.stored.read_piece(piece)?;
        let intact = !self.differs(piece, &bytes);
        if intact {
            lock(&self.unchecked).clear(piece);
        }
        Ok(intact)
    }

    fn read_blocking(&self, range: Range<u64>) -> Result<(Bytes, bool), StoreError> {
        let pieces = || self.layout.pieces(range.clone()).map(PieceIndex);
        let passing: BTreeMap<PieceIndex, Bytes> = {
            let passing = lock(&self.passing);
            pieces().filter_map(|piece| Some((piece, passing.get(piece)?))).collect()
        };
        if passing.is_empty() {
            return Ok((self.stored.read_at(range)?, false));
        }
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        for piece in pieces() {
            let whole = self.layout.range(piece);
            let part = whole.start.max(range.start)..whole.end.min(range.end);
            match passing.get(&piece) {
                Some(all) => bytes
                    .extend_from_slice(&all[(part.start - whole.start) as usize..(part.end - whole.start) as usize]),
                None => bytes.extend_from_slice(&self.stored.read_at(part)?),
            }
        }
        Ok((bytes.into(), true))
    }

    /// The present attempt at having all of it.
    pub(super) fn attempt(&self) -> Option<WantId> {
        lock(&self.wants_all).map(|(_, id)| id)
    }

    /// Takes back [`Self::want_all`]; its want is returned, to be taken back from the scheduler.
    pub(super) fn forget_want(&self) -> Option<WantId> {
        lock(&self.wants_all).take().map(|(_, id)| id)
    }

    /// A piece whose writing began during `attempt` found no room: takes back [`Self::want_all`] and tells those who wait
    /// now, all of them or only who waits for the whole blob to be stored. Not done when another attempt has begun
    /// meanwhile, of which this says nothing.
    pub(super) fn end_attempt(
        &self,
        attempt: Option<WantId>,
        all: bool,
        full: &ReadError,
    ) -> Result<Option<WantId>, AnotherAttempt> {
        let mut wanted = lock(&self.wants_all);
        if wanted.is_some_and(|(_, id)| Some(id) != attempt) {
            return Err(AnotherAttempt);
        }
        // Under the lock: who begins another attempt now is not told.
        self.progress.send_modify(|progress| {
            let error = full.clone();
            if all { progress.fail(error) } else { progress.refuse(error) }
        });
        Ok(wanted.take().map(|(_, id)| id))
    }

    /// Tells those who wait now that they wait in vain.
    pub(super) fn fail(&self, error: ReadError) {
        self.progress.send_modify(|progress| progress.fail(error));
    }
}

/// Somebody asked for the whole blob anew.
#[derive(Debug)]
pub(super) struct AnotherAttempt;

/// The state of one [`Blob::stream`].
struct BlobStream {
    blob: Arc<Blob>,
    range: Range<u64>,
    next: u64,
    priority: Priority,
    whole: bool,
    revocations: u32,
    wanting: Option<Wanting>,
    /// What `wanting` wants.
    wanted: Range<u32>,
    /// Has taken in all that was given, once some of it was in memory only: the store cannot prove the whole then.
    verifier: Option<StreamVerifier>,
}

impl BlobStream {
    async fn next_chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        self.blob.check(&self.range)?;
        if self.next >= self.range.end {
            return Ok(None);
        }
        let layout = self.blob.layout;
        let rest = layout.pieces(self.next..self.range.end);
        let piece = rest.start..rest.start + 1;
        let end = layout.range(PieceIndex(piece.start)).end.min(self.range.end);
        let last = self.whole && end == self.range.end;
        let mut tries = 0;
        let (bytes, in_memory) = loop {
            self.arrival(&rest, tries > 0).await?;
            let must_match = last && self.verifier.is_none();
            let matched = match must_match && self.blob.stored.has(PieceIndex(piece.start)) {
                true => Some(self.match_of_whole().await?),
                false => None,
            };
            let read = self.blob.read_here(self.next..end).await?;
            if self.blob.progress.borrow().revocations != self.revocations {
                return Err(ReadError::Revoked { digest: self.blob.digest });
            }
            tries += 1;
            match read {
                // Others may have taken the place of the bytes that matched; or the piece was stored after it had been looked for.
                Some((_, in_memory)) if must_match && !in_memory && matched != Some(self.blob.stored.drops()) => {}
                Some(read) => break read,
                None => {}
            }
            if tries >= READ_TRIES {
                return Err(StoreError::Changed(self.blob.digest).into());
            }
        };
        if self.whole && (in_memory || self.verifier.is_some()) {
            self.take_in(PieceIndex(piece.start), bytes.clone()).await?;
        }
        if last {
            self.prove()?;
        }
        self.next = end;
        Ok(Some(bytes))
    }

    /// Waits until the first of `rest` is here. `again`: it was, and the want of it may have been taken back since.
    async fn arrival(&mut self, rest: &Range<u32>, again: bool) -> Result<(), ReadError> {
        let first = rest.start..rest.start + 1;
        loop {
            if again {
                self.wanted = 0..0;
            }
            self.ask(rest);
            self.blob.recall(&first);
            if self.blob.missing(&first) == 0 {
                return Ok(());
            }
            self.blob.progress_in(rest).await?;
        }
    }

    /// Sees to it that the rest is wanted, or what is needed next of it while it cannot be stored.
    fn ask(&mut self, rest: &Range<u32>) {
        let next = self.blob.next_of(rest);
        let reach = if self.blob.is_full() { next.end } else { rest.end };
        if let Some(wanting) = &self.wanting
            && self.wanted.end == reach
        {
            return wanting.blob.need(wanting.id, Some(next));
        }
        if self.wanting.is_some() || self.blob.must_want(rest) {
            self.wanted = rest.start..reach;
            // The new one before the old one goes: what is under way stays wanted.
            self.wanting = self.blob.want(self.wanted.clone(), next, self.priority);
        }
    }

    async fn take_in(&mut self, piece: PieceIndex, bytes: Bytes) -> Result<(), ReadError> {
        let (stored, verifier) = (Arc::clone(&self.blob.stored), self.verifier.take());
        let hash = move || {
            let mut verifier = verifier.unwrap_or_else(|| StreamVerifier::new(stored.digest(), stored.layout()));
            while verifier.next_piece() < piece {
                verifier.push_piece(&stored.read_piece(verifier.next_piece())?);
            }
            verifier.push_piece(&bytes);
            Ok::<_, StoreError>(verifier)
        };
        self.verifier = Some(tokio::task::spawn_blocking(hash).await.map_err(|_| ReadError::ShutDown)??);
        Ok(())
    }

    /// Waits until the whole matched, and says how often pieces had been dropped then. That the disk holds it for good is nothing to a
    /// reader, and takes several flushes more.
    async fn match_of_whole(&self) -> Result<u64, ReadError> {
        let stored = &self.blob.stored;
        self.blob.proof(|progress| progress.matched.filter(|drops| *drops == stored.drops())).await
    }

    /// The whole matches its digest: the store's bytes did when the last of them were read, or those that were given do.
    fn prove(&mut self) -> Result<(), ReadError> {
        match self.verifier.take().map(StreamVerifier::finish) {
            None => Ok(()),
            Some(Ok(_)) => {
                tracing::info!(digest = %self.blob.digest, "blob matches its digest, and is not kept for want of room");
                Ok(())
            }
            Some(Err(VerifyError::DigestMismatch { expected: digest, actual })) => {
                let origin = lock(&self.blob.origins).current().map(|origin| origin.describe());
                let from = origin.unwrap_or_else(|| "other nodes".to_owned());
                Err(ReadError::DigestMismatch { digest, actual, from })
            }
            Some(Err(error)) => unreachable!("every piece was taken in once, in its length: {error}"),
        }
    }
}

impl Blob {
    /// Waits until any of `pieces` has come.
    async fn progress_in(&self, pieces: &Range<u32>) -> Result<(), ReadError> {
        let mut progress = self.progress.subscribe();
        let before = progress.borrow_and_update().told;
        let missing = self.missing(pieces);
        let first = pieces.start..pieces.start + 1;
        let full = self.is_full();
        let deadline = Instant::now() + self.read_deadline()?;
        while self.missing(&first) > 0 && self.missing(pieces) == missing && self.is_full() == full {
            match tokio::time::timeout_at(deadline, progress.changed()).await {
                Ok(Ok(())) => self.failure_since(before, &progress.borrow_and_update())?,
                Ok(Err(_)) => return Err(ReadError::ShutDown),
                Err(_) => return Err(self.late(self.bytes(pieces))),
            }
        }
        Ok(())
    }
}
