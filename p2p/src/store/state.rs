//! Which pieces of a blob are in memory's view, which may be on disk, and who is writing which. No I/O.
//!
//! Two sets of bits: `have` is what readers see; `on_disk` is what the bitmap file may say, even after a replacement
//! that failed half-way, so it is only ever too large. The rule that everything rests on: **a piece's bytes change only
//! while its bit is in neither set**, and while somebody holds a claim on it.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::bitmap::Bitmap;
use super::lock;
use crate::bitfield::Bitfield;
use crate::layout::{PieceIndex, PieceLayout};

#[derive(Debug)]
pub(super) struct State {
    pub(super) have: Bitfield,
    pub(super) verified: bool,
    pub(super) pins: usize,
    /// Out of the store: nothing may be written any more.
    pub(super) removed: bool,
    /// Counts calls that took pieces away, so that a long hash run notices one.
    pub(super) drops: u64,
    on_disk: Bitfield,
    /// Counts changes of `have` and `verified`, and which of them is on disk.
    changes: u64,
    flushed: u64,
    claimed: HashSet<PieceIndex>,
    /// Counts syncs that failed: what was written before one of them may not be what the kernel shows.
    failed_syncs: u64,
}

impl State {
    /// Whether somebody would miss the blob.
    pub(super) fn in_use(&self) -> bool {
        self.pins > 0 || !self.claimed.is_empty()
    }

    /// Whether one pin alone is why it is in use.
    pub(super) fn is_pinned_once(&self) -> bool {
        self.pins == 1 && self.claimed.is_empty()
    }

    pub(super) const fn is_flushed(&self) -> bool {
        self.changes == self.flushed
    }
}

#[derive(Debug)]
pub(super) struct SharedState {
    state: Mutex<State>,
    claims_ended: Condvar,
}

/// The right to change the bytes of some pieces; it ends when dropped.
pub(super) struct PieceClaim<'a> {
    shared: &'a SharedState,
    pieces: Vec<PieceIndex>,
}

/// What the bitmap file shall say.
pub(super) struct Snapshot {
    have: Bitfield,
    verified: bool,
    change: u64,
}

impl Snapshot {
    pub(super) fn is_full(&self) -> bool {
        self.have.is_full()
    }

    pub(super) fn bitmap(&self, layout: PieceLayout) -> Bitmap {
        Bitmap { layout, have: self.have.clone(), verified: self.verified }
    }
}

impl SharedState {
    /// The state of a blob whose bitmap file says exactly this.
    pub(super) fn new(have: Bitfield, verified: bool) -> Self {
        let state = State {
            on_disk: have.clone(),
            have,
            verified,
            pins: 0,
            removed: false,
            drops: 0,
            changes: 0,
            flushed: 0,
            claimed: HashSet::new(),
            failed_syncs: 0,
        };
        Self { state: Mutex::new(state), claims_ended: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// `None` if removed; `Some(None)` if the piece is there. Waits until no other claim is on it.
    pub(super) fn claim_for_write(&self, piece: PieceIndex) -> Option<Option<PieceClaim<'_>>> {
        let mut state = self.wait_unclaimed(&[piece]);
        if state.removed {
            return None;
        }
        if state.have.get(piece) {
            return Some(None);
        }
        state.claimed.insert(piece);
        Some(Some(PieceClaim { shared: self, pieces: vec![piece] }))
    }

    /// Takes pieces out of readers' view and claims them. Gives those that were there; `None` if removed.
    pub(super) fn claim_for_drop(
        &self,
        pieces: &[PieceIndex],
        layout: PieceLayout,
    ) -> Option<(PieceClaim<'_>, Bitfield)> {
        let mut state = self.wait_unclaimed(pieces);
        if state.removed {
            return None;
        }
        let mut dropped = Bitfield::empty(layout.piece_count());
        for &piece in pieces {
            state.claimed.insert(piece);
            if state.have.clear(piece) {
                dropped.set(piece);
            }
        }
        if !dropped.is_empty() {
            state.verified = false;
            state.drops += 1;
            state.changes += 1;
        }
        Some((PieceClaim { shared: self, pieces: pieces.to_vec() }, dropped))
    }

    fn wait_unclaimed(&self, pieces: &[PieceIndex]) -> MutexGuard<'_, State> {
        self.claims_ended
            .wait_while(self.lock(), |state| !state.removed && pieces.iter().any(|piece| state.claimed.contains(piece)))
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What a flush has to write; `Some(None)` if nothing, `None` if removed.
    pub(super) fn unflushed(&self) -> Option<Option<Snapshot>> {
        let state = self.lock();
        if state.removed {
            return None;
        }
        let snapshot = || Snapshot { have: state.have.clone(), verified: state.verified, change: state.changes };
        Some((!state.is_flushed()).then(snapshot))
    }

    /// What the bitmap file shall say instead of what it may say now, without the claimed pieces; `Some(None)` if it
    /// does not speak of them, `None` if removed.
    pub(super) fn persisted_without(&self, claim: &PieceClaim<'_>) -> Option<Option<Snapshot>> {
        let state = self.lock();
        if state.removed {
            return None;
        }
        let mut have = state.on_disk.clone();
        let cleared = claim.pieces.iter().filter(|&&piece| have.clear(piece)).count();
        // An earlier change stays unflushed: only these bits go.
        Some((cleared > 0).then_some(Snapshot { have, verified: false, change: state.flushed }))
    }

    /// The bitmap file is about to be replaced: until it is known which one is there, it may say either.
    pub(super) fn may_persist(&self, snapshot: &Snapshot) {
        let mut state = self.lock();
        for piece in snapshot.have.iter() {
            state.on_disk.set(piece);
        }
    }

    /// The bitmap file was replaced.
    pub(super) fn persisted(&self, snapshot: &Snapshot) {
        let mut state = self.lock();
        state.on_disk = snapshot.have.clone();
        state.flushed = snapshot.change;
    }

    /// The bitmap file was removed.
    pub(super) fn nothing_persisted(&self) {
        let mut state = self.lock();
        state.on_disk = Bitfield::empty(state.have.len());
        state.changes += 1;
    }

    /// Takes back every piece that no bitmap file ever spoke of; gives those. None of a removed blob, which counts no
    /// more.
    pub(super) fn forget_unflushed(&self) -> Bitfield {
        let mut state = self.lock();
        state.failed_syncs += 1;
        let mut forgotten = Bitfield::empty(state.have.len());
        if state.removed {
            return forgotten;
        }
        let lost: Vec<_> = state.have.iter().filter(|&piece| !state.on_disk.get(piece)).collect();
        for piece in lost {
            state.have.clear(piece);
            forgotten.set(piece);
        }
        state.verified = false;
        state.drops += 1;
        state.changes += 1;
        forgotten
    }

    /// Notes that the whole blob is right, unless a piece is missing or pieces were dropped since they were counted.
    pub(super) fn verify(&self, drops: u64) -> bool {
        let mut state = self.lock();
        if !state.have.is_full() || drops != state.drops {
            return false;
        }
        if !state.verified {
            state.verified = true;
            state.changes += 1;
        }
        true
    }

    /// Notes that the whole blob is not right.
    pub(super) fn unverify(&self) {
        let mut state = self.lock();
        if state.verified {
            state.verified = false;
            state.changes += 1;
        }
    }
}

impl PieceClaim<'_> {
    /// Whether the bitmap file may speak of one of the pieces.
    pub(super) fn may_be_on_disk(&self) -> bool {
        let state = self.shared.lock();
        self.pieces.iter().any(|&piece| state.on_disk.get(piece))
    }

    /// To be asked before the pieces are written, and given to [`Self::set`].
    pub(super) fn failed_syncs(&self) -> u64 {
        self.shared.lock().failed_syncs
    }

    /// Shows the pieces, now written, to readers. False, and nothing shown, if a sync failed since they were begun: the
    /// kernel may have given up on their bytes, and would say nothing of it at the next one. They have to be written again.
    pub(super) fn set(&self, failed_syncs: u64) -> bool {
        let mut state = self.shared.lock();
        if state.failed_syncs != failed_syncs {
            return false;
        }
        for &piece in &self.pieces {
            state.have.set(piece);
        }
        state.changes += 1;
        true
    }
}

impl Drop for PieceClaim<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        for piece in &self.pieces {
            state.claimed.remove(piece);
        }
        drop(state);
        self.shared.claims_ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_written_while_a_sync_failed_is_not_shown() {
        let shared = SharedState::new(Bitfield::empty(3), false);
        let claim = |piece| shared.claim_for_write(PieceIndex(piece)).unwrap().unwrap();
        let (before, during) = (claim(0), claim(1));
        assert!(before.set(before.failed_syncs()));
        drop(before);
        let begun = during.failed_syncs();
        // Its bytes are in the kernel's hands, it is not shown yet: so it is not among those that are forgotten.
        let forgotten = shared.forget_unflushed();
        assert_eq!(forgotten.iter().collect::<Vec<_>>(), [PieceIndex(0)]);
        assert!(!during.set(begun));
        assert!(shared.lock().have.is_empty());
        assert!(during.set(during.failed_syncs()), "written again");
        assert!(shared.lock().have.get(PieceIndex(1)));
    }
}
