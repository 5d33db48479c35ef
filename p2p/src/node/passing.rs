//! Pieces for which the store has no room: they pass through memory to the readers that wait for them.
//!
//! A reader says which pieces it needs next; a piece that cannot be stored is kept while one of them does, within
//! [`MAX_PASSING_BYTES`] over all blobs, and is never marked as present. The scheduler counts it as here, so that it is
//! not fetched again while it is wanted; a later reader that wants it takes that back ([`Passing::take_gone`]). Only what
//! readers need next is fetched meanwhile, and the origin's leases are given back as if nothing had been fetched, since
//! nothing of it can be served.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Node;
use super::blob::{AnotherAttempt, Blob, lock};
use super::error::ReadError;
use crate::layout::PieceIndex;
use crate::limits::MAX_PASSING_BYTES;
use crate::store::StoreError;
use crate::swarm::{Event, PieceSource, WantId};

/// Bytes that a stream fetches ahead of its reader while the store is full; at least two pieces.
const AHEAD_BYTES: u64 = 4 << 20;
/// For so long after the store refused a piece it counts as full.
const FULL_FOR: Duration = Duration::from_secs(2);
/// How often the log says that it is.
const SAY_AGAIN: Duration = Duration::from_secs(600);

/// What became of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is in the store.
    Stored,
    /// It is in memory only, or nowhere since nobody needs it now.
    Passed,
}

/// The pieces of one blob that are in memory only, and who needs what.
#[derive(Debug, Default)]
pub(super) struct Passing {
    needs: BTreeMap<WantId, Range<u32>>,
    pieces: BTreeMap<u32, Bytes>,
    /// Came, and are not here any more, though the scheduler believes so.
    gone: BTreeSet<u32>,
    full_at: Option<Instant>,
}

impl Passing {
    /// `reader` needs these pieces next, or none any more. Gives the bytes that are let go.
    pub(super) fn need(&mut self, reader: WantId, pieces: Option<Range<u32>>) -> u64 {
        match pieces {
            Some(pieces) => drop(self.needs.insert(reader, pieces)),
            None => drop(self.needs.remove(&reader)),
        }
        let needs = &self.needs;
        let unneeded = |piece: &u32, _: &mut Bytes| !needs.values().any(|need| need.contains(piece));
        let let_go: Vec<(u32, Bytes)> = self.pieces.extract_if(.., unneeded).collect();
        self.gone.extend(let_go.iter().map(|(piece, _)| piece));
        let_go.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Whether somebody needs anything of the blob now.
    pub(super) fn is_needed(&self) -> bool {
        !self.needs.is_empty()
    }

    /// Takes a piece that somebody needs, when there is room or a reader can do nothing without it. False if it is gone.
    fn offer(&mut self, piece: PieceIndex, bytes: &[u8], room: bool) -> bool {
        let mut needs = self.needs.values().filter(|need| need.contains(&piece.0));
        let taken = needs.any(|need| room || need.start == piece.0) && !self.pieces.contains_key(&piece.0);
        if taken {
            // A copy: the bytes given belong to the connection's or transfer's pool.
            self.pieces.insert(piece.0, Bytes::copy_from_slice(bytes));
            self.gone.remove(&piece.0);
        } else if !self.pieces.contains_key(&piece.0) {
            self.gone.insert(piece.0);
        }
        taken
    }

    /// The pieces among these that the scheduler has to be told are not here.
    pub(super) fn take_gone(&mut self, pieces: &Range<u32>) -> Vec<PieceIndex> {
        let gone: Vec<u32> = self.gone.range(pieces.clone()).copied().collect();
        for piece in &gone {
            self.gone.remove(piece);
        }
        gone.into_iter().map(PieceIndex).collect()
    }

    pub(super) fn get(&self, piece: PieceIndex) -> Option<Bytes> {
        self.pieces.get(&piece.0).cloned()
    }

    /// Whether pieces are, or were, in memory only.
    pub(super) fn is_used(&self) -> bool {
        !self.pieces.is_empty() || !self.gone.is_empty()
    }

    /// Whether the store refused a piece a moment ago.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_some_and(|at| now < at + FULL_FOR)
    }
}

/// When it was last said that the store is full.
#[derive(Debug, Default)]
pub(super) struct Fullness {
    said_at: Option<Instant>,
}

impl Node {
    /// Stores a piece, or hands it to the readers that need it when there is no room. Blocks. An error when it can be
    /// neither stored nor used, which readers have been told then.
    pub(super) fn keep_piece(
        self: &Arc<Self>,
        blob: &Blob,
        piece: PieceIndex,
        bytes: &[u8],
    ) -> Result<Kept, ReadError> {
        loop {
            let attempt = blob.attempt();
            let error = match self.write_piece(blob, piece, bytes) {
                Ok(()) => {
                    if lock(&self.fullness).said_at.take().is_some() {
                        tracing::info!(digest = %blob.digest, "the chunk store has room again");
                    }
                    return Ok(Kept::Stored);
                }
                Err(error) => error,
            };
            let full = matches!(error, StoreError::NoSpace { .. });
            let error = ReadError::from(error);
            if !full {
                self.store_failed(blob, error.clone());
                return Err(error);
            }
            match self.pass(blob, piece, bytes, attempt, &error) {
                Ok(true) => return Ok(Kept::Passed),
                Ok(false) => return Err(error),
                // Who asked for it has perhaps made room before.
                Err(AnotherAttempt) => {}
            }
        }
    }

    /// There is no room for a piece whose writing began during `attempt`. Whether readers need any of the blob.
    pub(super) fn pass(
        self: &Arc<Self>,
        blob: &Blob,
        piece: PieceIndex,
        bytes: &[u8],
        attempt: Option<WantId>,
        full: &ReadError,
    ) -> Result<bool, AnotherAttempt> {
        let length = bytes.len() as u64;
        let (needed, taken, want) = {
            let mut passing = lock(&blob.passing);
            let needed = passing.is_needed();
            // What only should come in is not fetched any more; streams ask for less from now on.
            let want = blob.end_attempt(attempt, !needed, full)?;
            passing.full_at = Some(Instant::now());
            let room = self.passing_bytes.load(Ordering::Relaxed) + length <= MAX_PASSING_BYTES;
            let taken = needed && passing.offer(piece, bytes, room);
            if taken {
                // Under the lock, as what is let go: never less than nothing.
                self.passing_bytes.fetch_add(length, Ordering::Relaxed);
            }
            (needed, taken, want)
        };
        if taken {
            self.metrics.bypassed_bytes.inc_by(length);
        }
        self.say_full(blob, full);
        self.unwant(blob, want);
        Ok(needed)
    }

    fn say_full(&self, blob: &Blob, full: &ReadError) {
        let mut fullness = lock(&self.fullness);
        let now = Instant::now();
        if fullness.said_at.is_none_or(|at| now >= at + SAY_AGAIN) {
            fullness.said_at = Some(now);
            tracing::warn!(digest = %blob.digest, error = %full, "no room: pieces pass through memory to their readers and are not kept");
        }
    }

    /// A piece came: tell the scheduler, then the readers.
    pub(super) fn received(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        piece: PieceIndex,
        source: PieceSource,
        bytes: u64,
        kept: Kept,
    ) {
        match kept {
            Kept::Stored => self.arrived(blob, piece, source, bytes),
            Kept::Passed => self.arrived(blob, piece, source, 0),
        }
    }
}

impl Blob {
    /// Whether the store refused a piece of it a moment ago.
    pub(super) fn is_full(&self) -> bool {
        lock(&self.passing).is_full(Instant::now())
    }

    /// Whether a piece can be read, from the store or from memory.
    pub(super) fn is_here(&self, piece: PieceIndex) -> bool {
        self.stored.has(piece) || lock(&self.passing).get(piece).is_some()
    }

    /// Whether some of these pieces have to be fetched, or kept in memory, for a reader.
    pub(super) fn must_want(&self, pieces: &Range<u32>) -> bool {
        self.missing(pieces) > 0 || lock(&self.passing).is_used()
    }

    /// The pieces of `rest` that a reader at its beginning needs next.
    pub(super) fn next_of(&self, rest: &Range<u32>) -> Range<u32> {
        let count = (AHEAD_BYTES / self.layout.piece_length()).max(2) as u32;
        rest.start..rest.end.min(rest.start + count)
    }

    /// See [`Passing::need`].
    pub(super) fn need(&self, reader: WantId, pieces: Option<Range<u32>>) {
        let mut passing = lock(&self.passing);
        let let_go = passing.need(reader, pieces);
        if let_go > 0
            && let Some(node) = self.node.upgrade()
        {
            node.passing_bytes.fetch_sub(let_go, Ordering::Relaxed);
        }
    }

    /// Tells the scheduler which of these pieces it must not take for stored.
    pub(super) fn recall(&self, pieces: &Range<u32>) {
        let gone = lock(&self.passing).take_gone(pieces);
        if !gone.is_empty()
            && let Some(node) = self.node.upgrade()
        {
            node.drive(Event::Dropped { digest: self.digest, pieces: gone, origin_only: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: WantId = WantId(1);
    const TWO: WantId = WantId(2);

    fn offer(passing: &mut Passing, piece: u32, room: bool) -> bool {
        passing.offer(PieceIndex(piece), &[piece as u8; 10], room)
    }

    #[test]
    fn a_piece_is_here_as_long_as_somebody_needs_it() {
        let mut passing = Passing::default();
        assert!(!offer(&mut passing, 3, true), "nobody needs it");
        assert_eq!(passing.need(ONE, Some(2..5)), 0);
        assert_eq!(passing.need(TWO, Some(4..6)), 0);
        assert!(offer(&mut passing, 3, true) && offer(&mut passing, 4, true) && !offer(&mut passing, 4, true));
        assert_eq!(passing.need(ONE, Some(5..8)), 10, "the other one needs 4 still");
        assert!(passing.get(PieceIndex(3)).is_none() && passing.get(PieceIndex(4)).is_some());
        assert_eq!(passing.need(TWO, None), 10);
        assert_eq!(passing.take_gone(&(0..4)), [PieceIndex(3)]);
        assert_eq!(passing.take_gone(&(0..9)), [PieceIndex(4)]);
        assert!(!passing.is_used());
    }

    #[test]
    fn without_room_a_reader_gets_the_piece_that_it_waits_for_and_no_other() {
        let mut passing = Passing::default();
        passing.need(ONE, Some(2..5));
        assert!(!offer(&mut passing, 3, false));
        assert!(offer(&mut passing, 2, false));
        assert_eq!(passing.take_gone(&(0..9)), [PieceIndex(3)]);
    }
}
