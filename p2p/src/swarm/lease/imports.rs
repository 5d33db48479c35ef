//! Imports: pieces that only peers of another zone have.
//!
//! Between zones the links are narrow, so that a piece is to cross once: a node asks peers of other zones only for the
//! pieces of an import lease, one transfer each, and gives them to its own zone. Reads that block are an exception. While
//! discovery is dead, or nothing came for long, a node takes a little without a lease, as it would from the origin.

use std::ops::Range;
use std::time::Duration;

use crate::bitfield::{mask_of, pieces_of};
use crate::digest::Digest;
use crate::discovery::{Lease, Settlement};
use crate::layout::PieceIndex;
use crate::swarm::blob::{BlobState, into_runs};
use crate::swarm::table::{Slot, Trade};
use crate::swarm::{Action, Swarm};

/// Pieces imported at once without a lease.
const UNLEASED_IMPORTS: u32 = 2;
/// How long an import without a lease may take.
const UNLEASED_TERM: Duration = Duration::from_secs(30);

/// A run under import.
#[derive(Debug)]
pub(in crate::swarm) struct Import {
    /// None if nobody allowed it.
    lease: Option<u64>,
    run: Range<u32>,
    until: Duration,
}

impl BlobState {
    /// Peers of other zones that can be asked for pieces now.
    pub(in crate::swarm) fn usable_far(&self, now: Duration) -> impl Iterator<Item = (Slot, &Trade)> + '_ {
        let open = self.takes_from_peers() && self.has_far;
        self.trades.iter().filter(move |(_, trade)| open && trade.far && trade.unusable_until <= now)
    }

    /// What peers of other zones offer, as [`Bitfield::word`](crate::bitfield::Bitfield::word) gives it.
    pub(in crate::swarm) fn far_word(&self, index: u32, now: Duration) -> u64 {
        self.usable_far(now).fold(0, |word, (_, trade)| word | trade.have.word(index))
    }

    /// Those of `missing` that peers of other zones offer.
    pub(super) fn importable(&self, missing: &[Range<u32>], now: Duration, max_runs: usize) -> Vec<Range<u32>> {
        if !self.has_far {
            return Vec::new();
        }
        let words = missing.iter().flat_map(|run| (run.start / 64..run.end.div_ceil(64)).map(move |at| (run, at)));
        let offered = words.flat_map(|(run, at)| pieces_of(at, mask_of(at, run) & self.far_word(at, now)));
        into_runs(offered.map(|piece| piece.0), max_runs)
    }
}

impl Swarm {
    pub(super) fn import(&mut self, digest: Digest, lease: &Lease, run: Range<u32>) {
        let until = self.now + lease.term;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.origin.imports.push(Import { lease: Some(lease.id), run, until });
        self.tend_imports(digest);
    }

    /// Takes a little from another zone though nobody allowed it.
    pub(super) fn import_unleased(&mut self, digest: Digest, importable: &[Range<u32>]) {
        let lot = self.rng.usize(..importable.len().max(1));
        let (Some(run), until) = (importable.get(lot).cloned(), self.now + UNLEASED_TERM) else { return };
        let start = run.start + self.rng.u32(..run.end - run.start);
        let run = start..run.end.min(start + UNLEASED_IMPORTS);
        let Some(blob) = self.blobs.get_mut(&digest).filter(|blob| blob.origin.imports.is_empty()) else { return };
        blob.origin.imports.push(Import { lease: None, run, until });
        self.tend_imports(digest);
    }

    /// Asks for what is under import and was not asked for, and ends imports that are complete, late or hopeless.
    pub(in crate::swarm) fn tend_imports(&mut self, digest: Digest) {
        let now = self.now;
        let Some(blob) = self.blobs.get(&digest).filter(|blob| !blob.origin.imports.is_empty()) else { return };
        let pieces = blob.origin.imports.iter().flat_map(|import| import.run.clone()).map(PieceIndex);
        let open = |piece: &PieceIndex| {
            let is_wanted = blob.wants.values().any(|want| want.pieces.contains(&piece.0));
            is_wanted && !blob.have.get(*piece) && !blob.flights.contains_key(&piece.0)
        };
        let wanted: Vec<PieceIndex> = pieces.filter(open).collect();
        for piece in wanted {
            if let Some(slot) = self.importer_of(digest, piece) {
                self.request(digest, piece, slot, false, false);
            }
        }
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let (have, flights) = (&blob.have, &blob.flights);
        let goes_on = |import: &Import| {
            let missing = || import.run.clone().filter(|piece| !have.get(PieceIndex(*piece)));
            now < import.until && missing().any(|piece| flights.contains_key(&piece))
        };
        let ended: Vec<Import> = blob.origin.imports.extract_if(.., |import| !goes_on(import)).collect();
        let any_ended = !ended.is_empty();
        for Import { lease, run, .. } in ended {
            self.end_import(digest, lease, run);
        }
        if any_ended {
            self.consider_origin(digest);
        }
    }

    fn end_import(&mut self, digest: Digest, lease: Option<u64>, run: Range<u32>) {
        let Some(blob) = self.blobs.get(&digest) else { return };
        let fetched = run.clone().take_while(|&piece| blob.have.get(PieceIndex(piece))).count() as u32;
        // What is still on its way from afar is somebody else's to fetch now.
        let far = |slot: Slot| blob.trades.get(slot).is_some_and(|trade| trade.far);
        let late = blob.flights.iter().filter(|flight| run.contains(&flight.piece) && far(flight.slot));
        let late: Vec<(u32, Slot)> = late.map(|flight| (flight.piece, flight.slot)).collect();
        for (piece, slot) in late {
            for flight in self.end_flights(digest, |flight| flight.piece == piece && flight.slot == slot) {
                self.actions.push(Action::Cancel { peer: flight.peer, digest, piece: PieceIndex(piece) });
            }
        }
        if let Some(lease) = lease {
            self.actions.push(Action::Settle(Settlement::new(lease, digest, fetched)));
        }
    }

    /// The peer of another zone that should deliver the piece first.
    pub(in crate::swarm) fn importer_of(&self, digest: Digest, piece: PieceIndex) -> Option<Slot> {
        let blob = self.blobs.get(&digest)?;
        let holders = blob.usable_far(self.now).filter(|(_, trade)| trade.have.get(piece));
        let due = holders.filter_map(|(slot, _)| Some((self.when_due(slot, false)?, slot)));
        due.min().map(|(_, slot)| slot)
    }
}
