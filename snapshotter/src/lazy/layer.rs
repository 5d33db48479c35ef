//! One lazily fetched layer.

use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{FutureExt as _, Shared};
use futures_util::stream::{self, StreamExt as _};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::timeline::Track;
use lapwing_p2p::trace;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::ahead::Unread;
pub use super::cache::Proof;
use super::cache::SpanCache;
use super::common::Common;
use super::readahead::ReadAhead;
use super::whole::WholeTar;
use super::{LazyError, Options};
use crate::erofs::device_length;
use crate::index::{Form, Index, IndexError, LayerProof};
use crate::limits::{MAX_PREFETCH_BYTES, MAX_READ_AHEAD_BYTES};
use crate::source::{LayerSource, SourceError, Urgency};
use crate::tar::{Scanner, TarError};

/// How long written spans may wait for their bits to be made lasting.
const COMMIT_DELAY: Duration = Duration::from_secs(1);
/// After a span missed its deadline, reads of it fail at once for so long: the kernel repeats a failed read page by
/// page, and each would wait anew.
const DEADLINE_MEMORY: Duration = Duration::from_secs(1);
/// Background fetches may take this many times the deadline of a read.
const BACKGROUND_PATIENCE: u32 = 10;
/// Compressed bytes read at once while a layer is held against its table of contents.
const PROOF_READ_BYTES: u64 = 1 << 20;
/// Spans prefetched at once for one layer.
const PREFETCH_FETCHES: usize = 4;
/// Spans read ahead at once for one layer.
const READ_AHEAD_FETCHES: usize = 4;

/// How much of a layer is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Spans of the layer.
    pub spans: usize,
    /// Spans in the cache.
    pub present: usize,
    /// What is known of the whole.
    pub proof: Proof,
}

type Outcome = Result<Bytes, LazyError>;

/// A fetch that others may wait for.
#[derive(Clone)]
struct Flight {
    number: u64,
    urgency: Urgency,
    outcome: Shared<oneshot::Receiver<Outcome>>,
}

/// The decompressed tar of a layer, brought here span by span as it is read.
pub struct LazyLayer {
    index: Arc<Index>,
    source: Arc<dyn LayerSource>,
    cache: SpanCache,
    options: Options,
    common: Arc<Common>,
    flights: Mutex<HashMap<usize, Flight>>,
    flight_number: AtomicU64,
    missed: Mutex<Option<(usize, Instant, LazyError)>>,
    ahead: Mutex<ReadAhead>,
    ahead_fetches: Arc<Semaphore>,
    unread: Unread,
    commit_due: AtomicBool,
    /// Was read as a whole by this process before anybody had it mounted.
    is_new: bool,
    prefetched: AtomicBool,
    runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for LazyLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LazyLayer").field("digest", &self.index.layer()).field("progress", &self.progress()).finish()
    }
}

impl LazyLayer {
    /// Opens a layer whose cache is in `directory` (made if missing). `common` is what it shares with others.
    /// Must be called within a tokio runtime; blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub fn open(
        directory: &Path,
        index: Arc<Index>,
        source: Arc<dyn LayerSource>,
        options: Options,
        common: Arc<Common>,
    ) -> Result<Arc<Self>, LazyError> {
        Self::open_with(directory, index, source, options, common, None)
    }

    /// [`Self::open`] with the layer's tar, if that came out of the pass that made this very index.
    pub(super) fn open_with(
        directory: &Path,
        index: Arc<Index>,
        source: Arc<dyn LayerSource>,
        options: Options,
        common: Arc<Common>,
        whole: Option<&WholeTar>,
    ) -> Result<Arc<Self>, LazyError> {
        let layer = index.layer();
        let whole = whole.filter(|whole| index.form() == Form::Built && whole.length() == index.tar_length());
        let fingerprint = fingerprint(&index);
        let cache = std::fs::create_dir_all(directory)
            .and_then(|()| {
                let length = device_length(index.tar_length());
                SpanCache::open(directory, fingerprint, index.spans().len(), length, &common)
            })
            .map_err(|error| LazyError::Cache {
                layer,
                path: directory.display().to_string(),
                cause: error.to_string(),
            })?;
        let taken = whole.map(|whole| cache.take(whole));
        if let Some(Err(error)) = &taken {
            tracing::warn!(digest = %layer, %error, "the tar of a layer cannot be taken up: it will be inflated as it is read");
        }
        let opened = Arc::new(Self {
            index,
            source,
            cache,
            options,
            common,
            flights: Mutex::default(),
            flight_number: AtomicU64::new(0),
            missed: Mutex::default(),
            ahead: Mutex::default(),
            ahead_fetches: Arc::new(Semaphore::new(READ_AHEAD_FETCHES)),
            unread: Unread::default(),
            commit_due: AtomicBool::new(false),
            is_new: matches!(taken, Some(Ok(()))),
            prefetched: AtomicBool::new(false),
            runtime: tokio::runtime::Handle::current(),
        });
        if opened.is_new {
            opened.schedule_commit();
        }
        Ok(opened)
    }

    /// The layer's digest.
    pub fn digest(&self) -> Digest {
        self.index.layer()
    }

    /// The layer's index.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Length of the data file: the tar's, rounded up to whole blocks of 512 bytes.
    pub fn device_length(&self) -> u64 {
        device_length(self.index.tar_length())
    }

    /// How much is here.
    pub fn progress(&self) -> Progress {
        Progress { spans: self.index.spans().len(), present: self.cache.present(), proof: self.cache.proof() }
    }

    /// The local file with the whole tar, once all of it is proved and on disk to stay.
    pub fn complete(&self) -> Option<PathBuf> {
        (self.cache.settled() && self.cache.proof() == Proof::Proved).then(|| self.cache.tar_path())
    }

    /// Whether all of it came before anybody had it mounted by this process.
    pub(super) const fn is_new(&self) -> bool {
        self.is_new
    }

    /// Makes what is in the cache last. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub fn commit(&self) -> std::io::Result<()> {
        self.cache.commit()
    }

    /// Gives the files in its directory up, before they are deleted. Blocks on the disk.
    pub(super) fn retire(&self) {
        self.cache.retire();
    }

    /// The bytes of `range` if all of it is in the cache. Blocks on the local disk only.
    pub fn read_cached(self: &Arc<Self>, range: Range<u64>) -> Option<Bytes> {
        let spans = self.spans_of(&range);
        if self.cache.proof() == Proof::Quarantined || !spans.clone().all(|span| self.cache.has(span)) {
            return None;
        }
        self.note_read(spans, &range);
        self.read_ahead(&range);
        self.cache.read(range.start, (range.end - range.start) as usize).ok()
    }

    /// The bytes of `range` (within [`LazyLayer::device_length`]): from the cache, or fetched now. Behind the end of the
    /// tar there are zeros.
    ///
    /// # Errors
    ///
    /// When the bytes do not come before the deadline or are not the right ones; nothing of a failure is kept but a
    /// missed deadline, for a second.
    pub async fn read(self: &Arc<Self>, range: Range<u64>) -> Outcome {
        self.refuse_quarantined()?;
        let spans = self.spans_of(&range);
        self.note_read(spans.clone(), &range);
        let waits = !spans.clone().all(|span| self.cache.has(span));
        let _waiting = waits.then(|| {
            self.options.metrics.count_waited();
            let mut span = trace::Span::fault("lazy.read");
            span.say("lapwing.digest", &self.digest());
            span.count("lapwing.bytes", range.end - range.start);
            (span, self.options.timelines.of(&self.digest()).span(Track::Fault))
        });
        let flights: Vec<_> = spans.map(|span| (span, self.span(span, Urgency::Fault))).collect();
        // After these: else a reader close behind would have what this one waits for read ahead, and fetched twice.
        self.read_ahead(&range);
        let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
        for (span, bytes) in flights {
            let bytes = bytes.await.inspect_err(|error| self.log(span, error))?;
            let output = &self.index.spans()[span].output;
            let from = range.start.max(output.start) - output.start;
            let to = range.end.min(output.end) - output.start;
            if out.is_empty() && to - from == range.end - range.start {
                return Ok(bytes.slice(from as usize..to as usize));
            }
            out.extend_from_slice(&bytes[from as usize..to as usize]);
        }
        out.resize((range.end - range.start) as usize, 0);
        Ok(out.freeze())
    }

    /// Fetches a span because somebody will probably read it; returns once it is here. Gives its compressed bytes, or none if it was here
    /// or on its way already.
    ///
    /// # Errors
    ///
    /// When it cannot be had; who reads it tries again.
    pub async fn prefetch(self: &Arc<Self>, span: usize) -> Result<Option<u64>, LazyError> {
        self.refuse_quarantined()?;
        let spans = self.index.spans();
        if span >= spans.len() || self.cache.has(span) || lock(&self.flights).contains_key(&span) {
            return Ok(None);
        }
        self.unread.set(span, spans.len());
        if let Err(error) = self.span(span, Urgency::Prefetch).await {
            self.unread.take(span);
            return Err(error);
        }
        let compressed = spans[span].compressed.end - spans[span].compressed.start;
        self.options.metrics.count_prefetched(compressed);
        Ok(Some(compressed))
    }

    /// Brings the whole layer here, span after span, and proves the index: the tar must have the image's diffID, and say
    /// what the file table says.
    ///
    /// # Errors
    ///
    /// When bytes cannot be had (call again later), or when the tar is another than the image's: then the layer is
    /// quarantined, and all reads of it fail from now on.
    pub async fn complete_all(self: &Arc<Self>) -> Result<(), LazyError> {
        self.refuse_quarantined()?;
        if self.cache.settled() && self.cache.proof() == Proof::Proved {
            return Ok(());
        }
        // Where it is proved and all here, it only has to last.
        if self.cache.proof() != Proof::Proved || self.cache.present() < self.index.spans().len() {
            let is_tar = self.index.form() == Form::Built;
            let right = if is_tar { self.complete_tar().await? } else { self.complete_device().await? };
            self.cache.set_proof(if right { Proof::Proved } else { Proof::Quarantined });
        }
        let layer = self.clone();
        self.blocking(move || layer.cache.commit()).await.map_err(|error| self.cache_error(&error))?;
        self.refuse_quarantined()?;
        tracing::info!(digest = %self.digest(), spans = self.index.spans().len(), "layer complete and proved");
        Ok(())
    }

    /// Brings all spans of a layer whose device is its tar, and says whether the index is right.
    async fn complete_tar(self: &Arc<Self>) -> Result<bool, LazyError> {
        let (mut hasher, mut scanner) = (Sha256::new(), Ok(Scanner::default()));
        let mut spans = self.all_spans();
        while let Some(bytes) = spans.next().await {
            let bytes = bytes?;
            let hashed = move || (hasher.chain_update(&bytes), scanner.and_then(|scanner| scanned(scanner, &bytes)));
            (hasher, scanner) = self.blocking(hashed).await;
        }
        let is_tar = Digest::from_bytes(hasher.finalize().into()) == self.index.diff_id();
        let is_table = scanner.and_then(Scanner::finish).is_ok_and(|entries| entries == self.index.entries());
        Ok(is_tar && is_table)
    }

    /// Holds a layer against the table that its index came from, then brings all of its spans, each of which is checked.
    async fn complete_device(self: &Arc<Self>) -> Result<bool, LazyError> {
        let expected = match self.prove_by_layer().await? {
            Ok(expected) => expected,
            Err(lie) => {
                tracing::error!(digest = %self.digest(), lie, "a layer is not what its table of contents says");
                return Ok(false);
            }
        };
        let mut hasher = blake3::Hasher::new();
        let mut spans = self.all_spans();
        while let Some(bytes) = spans.next().await {
            match bytes {
                // The layer is right and the span is not: it is the table that lies.
                Err(LazyError::Corrupt(error)) => {
                    tracing::error!(digest = %self.digest(), %error, "a table of contents has a wrong digest");
                    return Ok(false);
                }
                bytes => {
                    let bytes = bytes?;
                    hasher = self
                        .blocking(move || {
                            hasher.update(&bytes);
                            hasher
                        })
                        .await;
                }
            }
        }
        let right = self.index.form().is_virtual() || *hasher.finalize().as_bytes() == expected;
        if !right {
            tracing::error!(digest = %self.digest(), "checkpoints of a table of contents give other bytes than the layer's");
        }
        Ok(right)
    }

    /// Reads the whole compressed layer; gives what the table says wrongly of it, or the hash of a device that is the tar.
    async fn prove_by_layer(self: &Arc<Self>) -> Result<Result<[u8; 32], String>, LazyError> {
        let length = self.index.layer_length();
        let (mut hasher, mut proof) = (Sha256::new(), Ok(LayerProof::new(&self.index)));
        for start in (0..length).step_by(PROOF_READ_BYTES as usize) {
            let range = start..length.min(start + PROOF_READ_BYTES);
            let bytes = self.bounded_read(range, Urgency::Background, self.index.spans().len()).await?;
            let pushed = move || (hasher.chain_update(&bytes), proof.and_then(|proof| pushed(proof, &bytes)));
            (hasher, proof) = self.blocking(pushed).await;
        }
        // Only of the right bytes anything can be said: the swarm mends wrong ones, and they are asked for again.
        let is_layer = Digest::from_bytes(hasher.finalize().into()) == self.digest();
        let index = self.index.clone();
        match self.blocking(move || proof.and_then(|proof| proof.finish(&index))).await {
            Ok(verdict) => Ok(verdict),
            Err(IndexError::BadGzip { .. } | IndexError::BadZstd { .. } | IndexError::BadTar { .. }) if is_layer => {
                Ok(Err("the layer cannot be unpacked".to_owned()))
            }
            // Wrong bytes, or right ones beyond a limit, of which nothing can be said.
            Err(error) => Err(self.unanswered(self.index.spans().len(), &error.to_string())),
        }
    }

    fn all_spans(self: &Arc<Self>) -> impl stream::Stream<Item = Outcome> + Unpin + use<'_> {
        let spans = stream::iter(0..self.index.spans().len()).map(|span| self.span(span, Urgency::Background));
        spans.buffered(self.options.background_spans.max(1))
    }

    /// Begins to fetch what the layer's maker wants at start-up, once.
    pub fn prefetch_landmark(self: &Arc<Self>) {
        let wanted = self.index.prefetch();
        if wanted == 0 || self.prefetched.swap(true, Ordering::AcqRel) {
            return;
        }
        let layer = self.clone();
        self.runtime.spawn(async move {
            let mut left = MAX_PREFETCH_BYTES;
            let bounded = layer.index.spans().iter().take(wanted).take_while(|span| {
                let fits = left.checked_sub(span.compressed.end - span.compressed.start);
                left = fits.unwrap_or(0);
                fits.is_some()
            });
            let spans = bounded.count();
            // A failure is met again, and told, by the read that needs the span.
            let fetches = stream::iter(0..spans).map(|span| layer.prefetch(span));
            fetches.buffered(PREFETCH_FETCHES).for_each(|_| std::future::ready(())).await;
            tracing::debug!(digest = %layer.digest(), spans, "prefetched what comes before the landmark");
        });
    }

    fn refuse_quarantined(&self) -> Result<(), LazyError> {
        if self.cache.proof() != Proof::Quarantined {
            return Ok(());
        }
        Err(LazyError::Quarantined(self.digest()))
    }

    /// Counts and, while containers start, takes down that somebody reads `range`, which lies in `spans`.
    fn note_read(&self, spans: Range<usize>, range: &Range<u64>) {
        let recorder = self.common.recorder();
        // Offsets of a device that is not the tar mean nothing to nodes that have another index.
        let now = (recorder.is_running() && !self.index.form().is_virtual()).then(Instant::now);
        for span in spans {
            if self.unread.take(span) {
                self.options.metrics.count_hit();
            }
            if let Some(now) = now {
                let output = &self.index.spans()[span].output;
                let part = range.start.max(output.start)..range.end.min(output.end);
                recorder.on_read(&self.digest(), span, &part, now.into_std());
            }
        }
    }

    fn spans_of(&self, range: &Range<u64>) -> Range<usize> {
        let spans = self.index.spans();
        let first = spans.partition_point(|span| span.output.end <= range.start);
        let end = spans.partition_point(|span| span.output.start < range.end);
        first..end.max(first)
    }

    /// The bytes of one span. A fetch that it takes starts now, and goes on when the future is dropped.
    fn span(self: &Arc<Self>, span: usize, urgency: Urgency) -> impl Future<Output = Outcome> + use<> {
        let layer = self.clone();
        let flight = (!self.cache.has(span)).then(|| self.flight(span, urgency));
        async move {
            let flight = match flight {
                Some(flight) => flight,
                None => match layer.cached_span(span).await {
                    Some(bytes) => return Ok(bytes),
                    None => layer.flight(span, urgency),
                },
            };
            flight?.outcome.await.unwrap_or_else(|_| Err(layer.unanswered(span, "the fetch ended without an answer")))
        }
    }

    /// A span from the cache; forgotten where it cannot be read back.
    async fn cached_span(self: &Arc<Self>, span: usize) -> Option<Bytes> {
        if !self.cache.has(span) {
            return None;
        }
        let layer = self.clone();
        let output = self.index.spans()[span].output.clone();
        self.blocking(move || {
            layer.cache.read(output.start, (output.end - output.start) as usize).inspect_err(|error| {
                tracing::warn!(digest = %layer.digest(), span, %error, "a cached span cannot be read; fetched again");
                layer.cache.forget(span);
            })
        })
        .await
        .ok()
    }

    /// Joins the fetch of a span that is under way at least as urgently, or starts one.
    fn flight(self: &Arc<Self>, span: usize, urgency: Urgency) -> Result<Flight, LazyError> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&span).filter(|flight| flight.urgency <= urgency) {
            return Ok(flight.clone());
        }
        if let Some((_, _, error)) =
            lock(&self.missed).as_ref().filter(|(missed, at, _)| *missed == span && at.elapsed() < DEADLINE_MEMORY)
        {
            return Err(error.clone());
        }
        let number = self.flight_number.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let flight = Flight { number, urgency, outcome: receiver.shared() };
        flights.insert(span, flight.clone());
        drop(flights);
        let layer = self.clone();
        self.runtime.spawn(async move {
            let outcome = layer.fetch(span, urgency).await;
            {
                let mut flights = lock(&layer.flights);
                if flights.get(&span).is_some_and(|flight| flight.number == number) {
                    flights.remove(&span);
                }
            }
            // Nobody may be waiting any more.
            let _ = sender.send(outcome);
        });
        Ok(flight)
    }

    async fn fetch(self: &Arc<Self>, span: usize, urgency: Urgency) -> Outcome {
        // Another flight may have landed since the asker looked.
        if let Some(bytes) = self.cached_span(span).await {
            return Ok(bytes);
        }
        let compressed = self.compressed(span, urgency).await?;
        let patient = match urgency {
            Urgency::Fault | Urgency::ReadAhead => None,
            Urgency::Prefetch | Urgency::Background => Some(self.common.patient.clone().acquire_owned().await),
        };
        let permit = self.common.inflations.clone().acquire_owned().await;
        let layer = self.clone();
        let bytes = self
            .blocking(move || {
                let _permits = (permit, patient);
                layer.inflate(span, &compressed)
            })
            .await?;
        self.schedule_commit();
        Ok(bytes)
    }

    async fn compressed(&self, span: usize, urgency: Urgency) -> Outcome {
        self.bounded_read(self.index.spans()[span].compressed.clone(), urgency, span).await
    }

    /// Bytes of the layer for a span (or, behind the last, for the proof of the whole).
    async fn bounded_read(&self, range: Range<u64>, urgency: Urgency, span: usize) -> Outcome {
        let expected = range.end - range.start;
        let waited = match urgency {
            Urgency::Fault | Urgency::ReadAhead => self.options.deadline,
            Urgency::Prefetch | Urgency::Background => self.options.deadline * BACKGROUND_PATIENCE,
        };
        let layer = self.digest();
        match tokio::time::timeout(waited, self.source.read(range, urgency)).await {
            Ok(Ok(bytes)) if bytes.len() as u64 == expected => Ok(bytes),
            Ok(Ok(_)) => Err(self.unanswered(span, "the source gave another number of bytes than asked")),
            Ok(Err(cause)) => Err(LazyError::Source { layer, span, cause }),
            Err(_) => {
                let error = LazyError::Deadline { layer, span, waited };
                *lock(&self.missed) = Some((span, Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Inflates, checks and caches a span. Blocks on the CPU and the disk.
    fn inflate(&self, span: usize, compressed: &[u8]) -> Outcome {
        let output = &self.index.spans()[span].output;
        let length = (output.end - output.start) as usize;
        if self.cache.has(span)
            && let Ok(bytes) = self.cache.read(output.start, length)
        {
            return Ok(bytes);
        }
        let began = std::time::Instant::now();
        let bytes = self.index.inflate_span(span, compressed)?;
        self.options.timelines.of(&self.digest()).add(Track::Inflate, began, std::time::Instant::now());
        if let Err(error) = self.cache.write(span, output.start, &bytes) {
            // A full disk costs the cache, not the read.
            tracing::warn!(digest = %self.digest(), span, %error, "a span cannot be cached");
        }
        Ok(bytes.into())
    }

    fn schedule_commit(self: &Arc<Self>) {
        if self.commit_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let layer = self.clone();
        self.runtime.spawn(async move {
            if layer.cache.present() < layer.index.spans().len() {
                tokio::time::sleep(COMMIT_DELAY).await;
            }
            layer.commit_due.store(false, Ordering::Release);
            let cache = layer.clone();
            if let Err(error) = layer.blocking(move || cache.cache.commit()).await {
                tracing::warn!(digest = %layer.digest(), %error, "the span bitmap cannot be written");
            }
        });
    }

    fn read_ahead(self: &Arc<Self>, range: &Range<u64>) {
        let window = lock(&self.ahead).on_read(range, MAX_READ_AHEAD_BYTES);
        if window.is_empty() {
            return;
        }
        for span in self.spans_of(&window) {
            if self.cache.has(span) || lock(&self.flights).contains_key(&span) {
                continue;
            }
            let Ok(permit) = self.ahead_fetches.clone().try_acquire_owned() else { return };
            let fetch = self.span(span, Urgency::ReadAhead);
            self.runtime.spawn(async move {
                // A failure is met again, and told, by the read that needs the span.
                let _ = fetch.await;
                drop(permit);
            });
        }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match tokio::task::spawn_blocking(work).await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime goes away; nobody waits for the value any more.
                Err(_) => std::future::pending().await,
            },
        }
    }

    fn unanswered(&self, span: usize, cause: &str) -> LazyError {
        LazyError::Source { layer: self.digest(), span, cause: SourceError(cause.to_owned()) }
    }

    fn cache_error(&self, error: &std::io::Error) -> LazyError {
        let path = self.cache.tar_path().display().to_string();
        LazyError::Cache { layer: self.digest(), path, cause: error.to_string() }
    }

    fn log(&self, span: usize, error: &LazyError) {
        tracing::warn!(digest = %self.digest(), span, %error, "a read of a lazy layer fails with EIO");
    }
}

/// Names a span table, so that a bitmap is never read against another.
fn fingerprint(index: &Index) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(index.layer().as_bytes());
    hasher.update(index.diff_id().as_bytes());
    for span in index.spans() {
        span.identify(&mut hasher);
    }
    *hasher.finalize().as_bytes()
}

fn pushed(mut proof: LayerProof, bytes: &[u8]) -> Result<LayerProof, IndexError> {
    proof.push(bytes)?;
    Ok(proof)
}

fn scanned(mut scanner: Scanner, bytes: &[u8]) -> Result<Scanner, TarError> {
    scanner.push(bytes)?;
    Ok(scanner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_core::future::BoxFuture;

    use super::*;
    use crate::index::IndexBuilder;

    struct Whole(Bytes);

    impl LayerSource for Whole {
        fn read(&self, range: Range<u64>, _: Urgency) -> BoxFuture<'_, Result<Bytes, SourceError>> {
            let part = self.0.slice(range.start as usize..range.end as usize);
            Box::pin(async { Ok(part) })
        }
    }

    fn index_of(tar: &[u8]) -> Index {
        let mut builder = IndexBuilder::new(Digest::of(tar), tar.len() as u64);
        builder.push(tar).unwrap();
        builder.finish().unwrap()
    }

    async fn completed(directory: &Path, index: Index, tar: &[u8]) -> Result<(), LazyError> {
        std::fs::create_dir(directory).unwrap();
        let source = Arc::new(Whole(Bytes::copy_from_slice(tar)));
        let layer =
            LazyLayer::open(directory, Arc::new(index), source, Options::default(), Arc::new(Common::new(1))).unwrap();
        layer.complete_all().await
    }

    #[tokio::test]
    async fn a_file_table_that_the_tar_does_not_say_is_quarantined() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("file"), "content").unwrap();
        let made = std::process::Command::new("tar").arg("-C").arg(scratch.path()).args(["-cf", "-", "file"]).output();
        let tar = made.unwrap().stdout;
        let honest = completed(&scratch.path().join("honest"), index_of(&tar), &tar).await;
        assert!(honest.is_ok(), "{honest:?}");
        let mut entries = index_of(&tar).entries().to_vec();
        entries[0].mode = 0o4777;
        let liar = index_of(&tar).with_entries(entries);
        let lied = completed(&scratch.path().join("lied"), liar, &tar).await;
        assert!(matches!(lied, Err(LazyError::Quarantined(_))), "{lied:?}");
    }
}
