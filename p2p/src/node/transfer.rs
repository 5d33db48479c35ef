//! One ranged transfer from an origin: its bytes become pieces, stored and served one by one as they complete.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::Node;
use super::blob::{Blob, lock};
use super::error::ReadError;
use super::passing::Kept;
use crate::layout::PieceIndex;
use crate::metrics::Source;
use crate::origin::{ByteStream, Origin, OriginError};
use crate::swarm::{Event, PieceSource, TransferId};
use crate::timeline::Track;
use crate::trace::SpanKind;
use crate::verify::piece_hash;

/// An origin that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(30);

impl Node {
    /// Fetches `pieces` and reports how it ended.
    pub(super) async fn transfer(
        self: Arc<Self>,
        blob: Arc<Blob>,
        transfer: TransferId,
        pieces: Range<u32>,
        delay: Duration,
        leased: bool,
    ) {
        tokio::time::sleep(delay).await;
        if !leased {
            self.metrics.unleased_fetches.inc();
            tracing::debug!(digest = %blob.digest, ?pieces, "fetching from the origin without a lease");
        }
        if pieces.contains(&0) {
            blob.first_lessee.store(true, Ordering::Relaxed);
        }
        let digest = blob.digest;
        let mut step = blob.step("origin.fetch", SpanKind::Client);
        step.count("lapwing.pieces", pieces.len() as u64);
        let mut came = 0;
        let outcome = self.fetch(&blob, transfer, pieces, &mut came).await;
        step.count("lapwing.bytes", came);
        if let Some(origin) = lock(&blob.origins).current() {
            step.say("lapwing.site", &origin.site());
        }
        if outcome.is_err() {
            step.fail("the origin did not deliver");
        }
        drop(step);
        if let Err(error) = &outcome {
            self.metrics.count_origin_error(error);
            tracing::debug!(%digest, %error, "transfer from the origin failed");
        }
        *lock(&blob.origin_error) = outcome.as_ref().err().cloned();
        self.drive(Event::TransferEnded { digest, transfer, outcome });
    }

    async fn fetch(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        transfer: TransferId,
        pieces: Range<u32>,
        came: &mut u64,
    ) -> Result<(), OriginError> {
        let digest = blob.digest;
        let end = blob.layout.range(PieceIndex(pieces.end - 1)).end;
        let range = blob.layout.range(PieceIndex(pieces.start)).start..end;
        let timeline = blob.timeline();
        let asked = timeline.span(Track::OriginAnswer);
        let Some((origin, stream)) = open(blob, range).await? else { return Ok(()) };
        let mut body = Body { origin: &*origin, stream, chunk: Bytes::new() };
        body.await_bytes().await?;
        drop(asked);
        let _sending = timeline.span(Track::Origin);
        let (wanted, mut first) = (pieces.clone(), true);
        for piece in pieces.map(PieceIndex) {
            let length = {
                let range = blob.layout.range(piece);
                (range.end - range.start) as usize
            };
            // An origin that is slow to answer holds no memory.
            body.await_bytes().await?;
            if std::mem::take(&mut first) {
                self.drive(Event::FirstByte { digest, transfer });
            }
            // What has to wait for a speed limit holds none either.
            self.admit_from_origin(blob, &wanted, length as u64).await;
            let mut buffer = self.buffers.take(length).await;
            let mut missing = buffer.as_mut();
            while !missing.is_empty() {
                body.await_bytes().await?;
                let filled = body.give(missing);
                self.metrics.count_bytes(Source::origin, filled as u64);
                blob.bytes_from_origin.fetch_add(filled as u64, Ordering::Relaxed);
                timeline.bytes(Track::Origin, filled as u64);
                *came += filled as u64;
                missing = &mut missing[filled..];
            }
            let bytes = Bytes::from_owner(buffer);
            let kept = self.keep(blob, piece, bytes).await.map_err(|error| unavailable(&*origin, error))?;
            let needed = kept == Kept::Stored || blob.is_here(piece);
            if !needed || !self.is_active(&digest) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Stores a piece of the origin's and vouches for it.
    async fn keep(self: &Arc<Self>, blob: &Arc<Blob>, piece: PieceIndex, bytes: Bytes) -> Result<Kept, String> {
        let length = bytes.len() as u64;
        let identity = Arc::clone(&self.config.identity);
        if blob.digest.is_name() && self.is_contradicted(blob, piece, &bytes).await {
            self.distrust(blob).await.map_err(|error| error.to_string())?;
        }
        let stored = tokio::task::spawn_blocking({
            let (node, blob) = (Arc::clone(self), Arc::clone(blob));
            move || {
                let timeline = blob.timeline();
                let began = Instant::now();
                let hash = piece_hash(&bytes);
                timeline.add(Track::Verify, began, Instant::now());
                if blob.stored.has(piece) {
                    return Ok(Kept::Stored);
                }
                let began = Instant::now();
                let kept = node.keep_piece(&blob, piece, &bytes)?;
                timeline.add(Track::Write, began, Instant::now());
                if !lock(&blob.trust).vouch(&identity, piece, hash) {
                    let digest = blob.digest;
                    tracing::warn!(%digest, piece = piece.0, "metainfo contradicts the origin, not believed any more");
                }
                Ok::<_, ReadError>(kept)
            }
        });
        match stored.await {
            Ok(Ok(kept)) => {
                self.received(blob, piece, PieceSource::Origin, length, kept);
                Ok(kept)
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the node is shutting down".to_owned()),
        }
    }
}

impl Node {
    /// Whether bytes of the origin's contradict the metainfo, which is not believed any more then. Asked before they are
    /// written: until what others gave is dropped, the blob must not become complete.
    async fn is_contradicted(self: &Arc<Self>, blob: &Arc<Blob>, piece: PieceIndex, bytes: &Bytes) -> bool {
        let (identity, blob, bytes) = (Arc::clone(&self.config.identity), Arc::clone(blob), bytes.clone());
        let judged = tokio::task::spawn_blocking(move || {
            !blob.stored.has(piece) && !lock(&blob.trust).vouch(&identity, piece, piece_hash(&bytes))
        });
        judged.await.unwrap_or(false)
    }
}

/// What an origin sends, as it comes.
struct Body<'a> {
    origin: &'a dyn Origin,
    stream: ByteStream,
    /// Came and was not given yet.
    chunk: Bytes,
}

impl Body<'_> {
    /// Waits until there is something to give.
    async fn await_bytes(&mut self) -> Result<(), OriginError> {
        while self.chunk.is_empty() {
            self.chunk = match timeout(SILENCE, self.stream.next()).await.map_err(|_| silent(self.origin))? {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Err(unavailable(self.origin, error.to_string())),
                None => return Err(unavailable(self.origin, "the body was cut short".to_owned())),
            };
        }
        Ok(())
    }

    /// Copies what is there to `room`, as much as fits.
    fn give(&mut self, room: &mut [u8]) -> usize {
        let length = room.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut room[..length]);
        length
    }
}

/// Opens a transfer at the origin in use, or at the next one where that gives nothing; none is asked twice.
async fn open(blob: &Blob, range: Range<u64>) -> Result<Option<(Arc<dyn Origin>, ByteStream)>, OriginError> {
    let (mut tried, mut last) = (Vec::new(), None);
    loop {
        let (current, known) = {
            let origins = lock(&blob.origins);
            (origins.current(), origins.is_known())
        };
        let Some(origin) = current.filter(|origin| !tried.contains(&origin.key())) else {
            // Where all have refused, a transfer that began before must not look as if it had ended well.
            let refusal = last.or_else(|| lock(&blob.origin_error).clone().filter(|_| known));
            return refusal.map_or(Ok(None), Err);
        };
        let error = match timeout(SILENCE, origin.fetch(range.clone())).await {
            Ok(Ok(stream)) => return Ok(Some((origin, stream))),
            Ok(Err(error)) => error,
            Err(_) => silent(&*origin),
        };
        tried.push(origin.key());
        let another = lock(&blob.origins).failed(&*origin, &error);
        if !another {
            return Err(error);
        }
        tracing::debug!(digest = %blob.digest, %error, "asking another origin of this blob");
        last = Some(error);
    }
}

fn silent(origin: &dyn Origin) -> OriginError {
    unavailable(origin, format!("silent for {SILENCE:?}"))
}

fn unavailable(origin: &dyn Origin, reason: String) -> OriginError {
    OriginError::Unavailable { origin: origin.describe(), reason }
}
