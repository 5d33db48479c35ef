//! One blob as its readers see it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Node;
use super::aside::Aside;
use super::blame::Blame;
use super::error::ReadError;
use super::origins::Origins;
use super::trust::Trust;
use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::layout::{PieceIndex, PieceLayout};
use crate::origin::OriginError;
use crate::store::{Pin, StoreError, StoredBlob};
use crate::swarm::{Event, Priority, WantId};
use crate::verify::piece_hash;

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
    /// Whether the whole matched its digest.
    pub(super) verified: bool,
    /// Grows when pieces that may have been given to readers turn out wrong.
    pub(super) revocations: u32,
    /// Grows with each failure.
    pub(super) failures: u64,
    /// The last failure: for those who waited when it came.
    pub(super) failure: Option<ReadError>,
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
    pub(super) progress: watch::Sender<Progress>,
    pub(super) origins: Mutex<Origins>,
    pub(super) origin_error: Mutex<Option<OriginError>>,
    pub(super) hashing: AtomicBool,
    pub(super) loading_metainfo: AtomicBool,
    /// Counts how often pieces were taken back.
    pub(super) drops: AtomicU64,
    pub(super) disk_faults: AtomicU32,
    /// Pieces of a former process that nobody has held against their hash since.
    pub(super) unchecked: Mutex<Bitfield>,
    pub(super) first_lessee: AtomicBool,
    pub(super) unflushed_bytes: AtomicU64,
    pub(super) bytes_from_peers: AtomicU64,
    pub(super) bytes_from_origin: AtomicU64,
    pub(super) last_open: Mutex<Instant>,
    _pin: Pin,
    all: WantId,
    wants_all: Mutex<Option<Priority>>,
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
            progress: watch::Sender::new(Progress { verified: stored.is_verified(), ..Progress::default() }),
            origins: Mutex::default(),
            origin_error: Mutex::new(None),
            hashing: AtomicBool::new(false),
            loading_metainfo: AtomicBool::new(false),
            drops: AtomicU64::new(0),
            disk_faults: AtomicU32::new(0),
            unchecked: Mutex::new(stored.have()),
            first_lessee: AtomicBool::new(false),
            unflushed_bytes: AtomicU64::new(0),
            bytes_from_peers: AtomicU64::new(0),
            bytes_from_origin: AtomicU64::new(0),
            last_open: Mutex::new(Instant::now()),
            all: node.next_want(),
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
        self.progress.borrow().verified
    }

    /// Bytes of the blob; waits until their pieces are here, each checked. Taken back when the future is dropped.
    pub async fn read(self: &Arc<Self>, range: Range<u64>, priority: Priority) -> Result<Bytes, ReadError> {
        self.check(&range)?;
        let pieces = self.layout.pieces(range.clone());
        for _ in 0..READ_TRIES {
            if self.missing(&pieces) > 0 {
                let _wanting = self.want(pieces.clone(), priority);
                self.arrival(pieces.clone()).await?;
            }
            if let Some(bytes) = self.read_stored(range.clone()).await? {
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
        let Some(node) = self.node.upgrade() else { return };
        {
            let mut wanted = lock(&self.wants_all);
            if wanted.is_some_and(|wanted| wanted <= priority) {
                return;
            }
            *wanted = Some(priority);
        }
        let pieces = 0..self.layout.piece_count();
        node.want(self, self.all, pieces, priority);
    }

    /// Lets all of it come and waits until the digest matched.
    pub async fn verified(self: &Arc<Self>) -> Result<(), ReadError> {
        if self.is_verified() {
            return Ok(());
        }
        self.want_all(Priority::Bulk);
        self.arrival(0..self.layout.piece_count()).await?;
        self.proof().await
    }

    /// Whether this node was granted the lease of piece 0: by convention it builds what derives from the blob.
    pub fn was_first_lessee(&self) -> bool {
        self.first_lessee.load(Ordering::Relaxed)
    }

    /// Where its bytes came from.
    pub fn sources(&self) -> Sources {
        Sources {
            bytes_from_peers: self.bytes_from_peers.load(Ordering::Relaxed),
            bytes_from_origin: self.bytes_from_origin.load(Ordering::Relaxed),
        }
    }

    fn check(&self, range: &Range<u64>) -> Result<(), ReadError> {
        if range.start > range.end || range.end > self.length() {
            return Err(ReadError::OutOfRange { digest: self.digest, range: range.clone(), length: self.length() });
        }
        Ok(())
    }

    fn want(self: &Arc<Self>, pieces: Range<u32>, priority: Priority) -> Option<Wanting> {
        let node = self.node.upgrade()?;
        let id = node.next_want();
        node.want(self, id, pieces, priority);
        Some(Wanting { blob: Arc::clone(self), id })
    }

    fn missing(&self, pieces: &Range<u32>) -> usize {
        match pieces.len() {
            0..16 => pieces.clone().filter(|&piece| !self.stored.has(PieceIndex(piece))).count(),
            _ => {
                let have = self.stored.have();
                pieces.clone().filter(|&piece| !have.get(PieceIndex(piece))).count()
            }
        }
    }

    /// Waits until all `pieces` are here. The deadline starts anew with each of them that comes.
    async fn arrival(&self, pieces: Range<u32>) -> Result<(), ReadError> {
        let mut progress = self.progress.subscribe();
        let failures = progress.borrow_and_update().failures;
        let mut missing = self.missing(&pieces);
        while missing > 0 {
            let deadline = Instant::now() + self.read_deadline()?;
            loop {
                match tokio::time::timeout_at(deadline, progress.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(ReadError::ShutDown),
                    Err(_) => return Err(self.late(self.bytes(&pieces))),
                }
                self.failure_since(failures, &progress.borrow_and_update())?;
                let left = self.missing(&pieces);
                if left != missing {
                    missing = left;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Waits until the digest of the whole was computed and matched; everything is here.
    async fn proof(self: &Arc<Self>) -> Result<(), ReadError> {
        let mut progress = self.progress.subscribe();
        let failures = progress.borrow().failures;
        if let Some(node) = self.node.upgrade() {
            // It ended if the disk failed before.
            node.hash_as_it_comes(self);
        }
        loop {
            {
                let now = progress.borrow_and_update();
                if now.verified {
                    return Ok(());
                }
                self.failure_since(failures, &now)?;
            }
            match tokio::time::timeout(self.read_deadline()?, progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ReadError::ShutDown),
                Err(_) => return Err(self.late(0..self.length())),
            }
        }
    }

    fn failure_since(&self, failures: u64, progress: &Progress) -> Result<(), ReadError> {
        match &progress.failure {
            Some(error) if progress.failures > failures => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn read_deadline(&self) -> Result<std::time::Duration, ReadError> {
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

    /// Bytes of pieces that are here. None if some were taken back meanwhile, or turned out to be spoilt on the disk: they
    /// have to come again.
    async fn read_stored(self: &Arc<Self>, range: Range<u64>) -> Result<Option<Bytes>, ReadError> {
        let (blob, wanted) = (Arc::clone(self), range.clone());
        let read = tokio::task::spawn_blocking(move || {
            let bytes = blob.stored.read_at(wanted.clone())?;
            let spoilt = blob.spoilt(&wanted, &bytes);
            Ok((bytes, spoilt))
        });
        match read.await.map_err(|_| ReadError::ShutDown)? {
            Ok((bytes, None)) => Ok(Some(bytes)),
            Ok((_, Some(piece))) => {
                let node = self.node.upgrade().ok_or(ReadError::ShutDown)?;
                node.disk_failed(self, piece, StoreError::Spoilt { digest: self.digest, piece: piece.0 }).await;
                Ok(None)
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
        if self.layout.piece_count() == 1 {
            return self.is_verified() && Digest::of(bytes) != self.digest;
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

    /// Takes back [`Self::want_all`]; its want is returned, to be taken back from the scheduler.
    pub(super) fn forget_want(&self) -> WantId {
        *lock(&self.wants_all) = None;
        self.all
    }

    /// Tells those who wait now that they wait in vain.
    pub(super) fn fail(&self, error: ReadError) {
        self.progress.send_modify(|progress| {
            progress.failures += 1;
            progress.failure = Some(error);
        });
    }
}

/// The state of one [`Blob::stream`].
struct BlobStream {
    blob: Arc<Blob>,
    range: Range<u64>,
    next: u64,
    priority: Priority,
    whole: bool,
    revocations: u32,
    wanting: Option<Wanting>,
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
        if self.wanting.is_none() && self.blob.missing(&rest) > 0 {
            self.wanting = self.blob.want(rest.clone(), self.priority);
        }
        let end = layout.range(PieceIndex(piece.start)).end.min(self.range.end);
        let mut tries = 0;
        let bytes = loop {
            while self.blob.missing(&piece) > 0 {
                if tries > 0 {
                    // The want of the beginning may have been taken back.
                    self.wanting = self.blob.want(rest.clone(), self.priority);
                }
                self.blob.progress_in(&rest).await?;
            }
            if self.whole && end == self.range.end {
                self.blob.proof().await?;
            }
            let read = self.blob.read_stored(self.next..end).await?;
            if self.blob.progress.borrow().revocations != self.revocations {
                return Err(ReadError::Revoked { digest: self.blob.digest });
            }
            tries += 1;
            match read {
                Some(bytes) => break bytes,
                None if tries < READ_TRIES => {}
                None => return Err(StoreError::Changed(self.blob.digest).into()),
            }
        };
        self.next = end;
        Ok(Some(bytes))
    }
}

impl Blob {
    /// Waits until any of `pieces` has come.
    async fn progress_in(&self, pieces: &Range<u32>) -> Result<(), ReadError> {
        let mut progress = self.progress.subscribe();
        let failures = progress.borrow_and_update().failures;
        let missing = self.missing(pieces);
        let first = pieces.start..pieces.start + 1;
        let deadline = Instant::now() + self.read_deadline()?;
        while self.missing(&first) > 0 && self.missing(pieces) == missing {
            match tokio::time::timeout_at(deadline, progress.changed()).await {
                Ok(Ok(())) => self.failure_since(failures, &progress.borrow_and_update())?,
                Ok(Err(_)) => return Err(ReadError::ShutDown),
                Err(_) => return Err(self.late(self.bytes(pieces))),
            }
        }
        Ok(())
    }
}
