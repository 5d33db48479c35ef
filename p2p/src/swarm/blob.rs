//! What the scheduler knows of one blob.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use super::Priority;
use super::event::{TransferId, WantId};
use super::lease::OriginSide;
use super::seed::SeedSide;
use super::table::{Availability, Flights, Slot, Trade, Trades};
use crate::bitfield::{Bitfield, mask_of, pieces_of};
use crate::discovery::Holding;
use crate::identity::PeerId;
use crate::layout::{PieceIndex, PieceLayout};

/// Pieces that somebody waits for.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) pieces: Range<u32>,
    pub(super) priority: Priority,
    pub(super) since: Duration,
    /// The first of them that is missing, or their end.
    pub(super) first: u32,
}

impl Want {
    pub(super) fn new(pieces: Range<u32>, priority: Priority, since: Duration, have: &Bitfield) -> Self {
        let mut want = Self { pieces, priority, since, first: 0 };
        want.find_first(have);
        want
    }

    /// Finds the first missing piece anew.
    pub(super) fn find_first(&mut self, have: &Bitfield) {
        let first = have.first_missing(PieceIndex(self.pieces.start)).map_or(self.pieces.end, |piece| piece.0);
        self.first = first.min(self.pieces.end);
    }

    /// A piece has come.
    fn came(&mut self, piece: PieceIndex, have: &Bitfield) {
        if self.first == piece.0 {
            let first = have.first_missing(piece).map_or(self.pieces.end, |piece| piece.0);
            self.first = first.min(self.pieces.end);
        }
    }

    /// The pieces among which missing ones are.
    pub(super) fn open(&self) -> Range<u32> {
        self.first..self.pieces.end
    }
}

/// A peer that discovery named.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) address: SocketAddr,
    pub(super) holding: Holding,
    /// Place in discovery's order, nearest first.
    pub(super) rank: u32,
    /// Whether it is in another zone.
    pub(super) far: bool,
    /// Whether the last attempt to reach it failed.
    pub(super) failed: bool,
    /// Neither dialled nor greeted before.
    pub(super) dial_after: Duration,
}

/// The state of asking discovery.
#[derive(Debug, Default)]
pub(super) struct FindState {
    pub(super) asking: bool,
    pub(super) next: Duration,
    pub(super) last: Duration,
    pub(super) count: u32,
    pub(super) answered: bool,
}

#[derive(Debug)]
pub(super) struct BlobState {
    pub(super) layout: PieceLayout,
    pub(super) have: Bitfield,
    pub(super) verified: bool,
    pub(super) origin_only: bool,
    pub(super) verifiable: bool,
    pub(super) metainfo_pending: bool,
    pub(super) wants: BTreeMap<WantId, Want>,
    pub(super) trades: Trades,
    /// Those of the trades that count.
    usable: Vec<Slot>,
    /// Whether discovery named peers of other zones. Then those that it did not name are taken for such, too.
    pub(super) has_far: bool,
    /// Of the trades that count. Kept while something is missing here.
    pub(super) availability: Availability,
    /// When the first of the trades that do not count may be asked again.
    pub(super) next_return: Duration,
    pub(super) greeted: BTreeSet<Slot>,
    pub(super) known: BTreeMap<PeerId, Known>,
    pub(super) flights: Flights,
    pub(super) fresh: Vec<PieceIndex>,
    pub(super) fresh_due: Option<Duration>,
    pub(super) find: FindState,
    pub(super) announced: Option<Holding>,
    pub(super) origin: OriginSide,
    pub(super) seed: SeedSide,
    /// When a piece came last, or the blob was wanted anew.
    pub(super) last_progress: Duration,
    pub(super) last_arrival: Option<Duration>,
    /// Nothing changes in whom to connect with before.
    pub(super) connect_next: Duration,
    /// Whether it is among the scheduler's busy ones.
    pub(super) is_busy: bool,
}

impl BlobState {
    pub(super) fn new(layout: PieceLayout, have: Bitfield, verified: bool) -> Self {
        Self {
            layout,
            have,
            verified,
            origin_only: false,
            verifiable: layout.piece_count() <= 1,
            metainfo_pending: false,
            wants: BTreeMap::new(),
            trades: Trades::default(),
            usable: Vec::new(),
            has_far: false,
            availability: Availability::default(),
            next_return: Duration::MAX,
            greeted: BTreeSet::new(),
            known: BTreeMap::new(),
            flights: Flights::new(layout.piece_count()),
            fresh: Vec::new(),
            fresh_due: None,
            find: FindState::default(),
            announced: None,
            origin: OriginSide::default(),
            seed: SeedSide::default(),
            last_progress: Duration::ZERO,
            last_arrival: None,
            connect_next: Duration::ZERO,
            is_busy: false,
        }
    }

    /// Whether somebody wants a piece that is not here.
    pub(super) fn is_active(&self) -> bool {
        self.wants.values().any(|want| want.first < want.pieces.end)
    }

    /// Whether the clock alone may change something for it.
    pub(super) fn needs_ticks(&self) -> bool {
        self.is_active() || self.fresh_due.is_some() || !self.flights.is_empty()
    }

    /// Adds a piece; false if it was here.
    pub(super) fn store(&mut self, piece: PieceIndex) -> bool {
        let fresh = self.have.set(piece);
        if fresh {
            self.wants.values_mut().for_each(|want| want.came(piece, &self.have));
            if self.have.is_full() {
                self.availability = Availability::default();
            }
        }
        fresh
    }

    /// Takes pieces away again.
    pub(super) fn unstore(&mut self, pieces: &[PieceIndex]) {
        let was_full = self.have.is_full();
        for &piece in pieces {
            self.have.clear(piece);
        }
        self.wants.values_mut().for_each(|want| want.find_first(&self.have));
        if was_full && !self.have.is_full() {
            self.availability = Availability::default();
            self.trades.values().filter(|trade| trade.counts).for_each(|trade| self.availability.add(&trade.have));
        }
    }

    pub(super) fn piece_bytes(&self, piece: PieceIndex) -> u64 {
        let range = self.layout.range(piece);
        range.end - range.start
    }

    /// A peer takes part, or says anew what it has.
    pub(super) fn enter(&mut self, slot: Slot, peer: PeerId, have: Bitfield, now: Duration) {
        self.leave(slot);
        let far = self.is_far(&peer);
        if !far && !self.have.is_full() {
            self.availability.add(&have);
        }
        let (unusable_until, untold) = (Duration::ZERO, Vec::new());
        let trade = Trade { peer, have, unusable_until, counts: !far, far, untold, last_request: now };
        self.trades.insert(slot, trade);
        self.list_usable();
    }

    fn list_usable(&mut self) {
        self.usable.clear();
        self.usable.extend(self.trades.iter().filter(|(_, trade)| trade.counts).map(|(slot, _)| slot));
    }

    fn is_far(&self, peer: &PeerId) -> bool {
        self.known.get(peer).map_or(self.has_far, |known| known.far)
    }

    /// Discovery has told which peers are in other zones.
    pub(super) fn sort_by_zone(&mut self, now: Duration) {
        for trade in self.trades.values_mut() {
            let far = self.known.get(&trade.peer).map_or(self.has_far, |known| known.far);
            if std::mem::replace(&mut trade.far, far) == far {
                continue;
            }
            let counts = !far && trade.unusable_until <= now;
            match (std::mem::replace(&mut trade.counts, counts), counts) {
                (true, false) => self.availability.remove(&trade.have),
                (false, true) if !self.have.is_full() => self.availability.add(&trade.have),
                _ => self.next_return = self.next_return.min(trade.unusable_until),
            }
        }
        self.list_usable();
    }

    /// A peer takes part no more; false if it did not.
    pub(super) fn leave(&mut self, slot: Slot) -> bool {
        let Some(trade) = self.trades.remove(slot) else { return false };
        if trade.counts {
            self.availability.remove(&trade.have);
        }
        self.list_usable();
        true
    }

    /// A peer has got pieces. Whether that changes what it can be asked for.
    pub(super) fn they_have(&mut self, slot: Slot, pieces: &[PieceIndex]) -> bool {
        let Some(trade) = self.trades.get_mut(slot) else { return false };
        let mut news = false;
        for &piece in pieces {
            if trade.have.set(piece) {
                news |= !self.have.get(piece) && !self.flights.contains_key(&piece.0);
                if trade.counts {
                    self.availability.add_piece(piece);
                }
            }
        }
        news
    }

    /// A peer does not have a piece any more.
    pub(super) fn they_lack(&mut self, slot: Slot, piece: PieceIndex) {
        let Some(trade) = self.trades.get_mut(slot) else { return };
        if trade.have.clear(piece) && trade.counts {
            self.availability.remove_piece(piece);
        }
    }

    /// A peer is not asked for a while.
    pub(super) fn set_aside(&mut self, slot: Slot, until: Duration) {
        let Some(trade) = self.trades.get_mut(slot) else { return };
        trade.unusable_until = until;
        self.next_return = self.next_return.min(until);
        if std::mem::replace(&mut trade.counts, false) {
            self.availability.remove(&trade.have);
            self.list_usable();
        }
    }

    /// Peers whose time is over may be asked again.
    pub(super) fn return_peers(&mut self, now: Duration) {
        if now < self.next_return {
            return;
        }
        self.next_return = Duration::MAX;
        for trade in self.trades.values_mut().filter(|trade| !trade.counts && !trade.far) {
            if trade.unusable_until <= now {
                trade.counts = true;
                if !self.have.is_full() {
                    self.availability.add(&trade.have);
                }
            } else {
                self.next_return = self.next_return.min(trade.unusable_until);
            }
        }
        self.list_usable();
    }

    /// Whether peers can be asked for pieces at all.
    pub(super) const fn takes_from_peers(&self) -> bool {
        self.verifiable && !self.origin_only
    }

    /// The peers that can be asked for pieces now.
    pub(super) fn usable(&self) -> &[Slot] {
        if self.takes_from_peers() { &self.usable } else { &[] }
    }

    /// Whether a transfer from the origin brings `piece` soon.
    pub(super) fn in_transfer(&self, piece: PieceIndex, now: Duration, patience: Duration) -> bool {
        self.origin
            .transfers
            .values()
            .any(|transfer| transfer.pieces.contains(&piece.0) && now < transfer.last_progress + patience)
    }

    /// The missing pieces of `range` that are not asked for, as [`Bitfield::word`] gives them.
    pub(super) fn unasked(&self, index: u32, range: &Range<u32>) -> u64 {
        mask_of(index, range) & !self.have.word(index) & !self.flights.word(index)
    }

    /// Whether a want lacks pieces that some peer has and that are not asked for.
    pub(super) fn has_work(&self, want: &Want) -> bool {
        let range = want.open();
        let mut words = range.start / 64..range.end.div_ceil(64);
        words.any(|index| self.unasked(index, &range) & self.availability.word(index) != 0)
    }

    /// Whether nothing can come of considering the origin for a pull before it, or discovery, has answered, or a pause is
    /// over; unless all is served, or has stalled. A read that waits is always considered.
    pub(super) fn is_waiting_for_origin(&self, now: Duration) -> bool {
        !self.has_reads() && !self.origin_only && !self.has_far && self.origin.is_waiting(now)
    }

    /// Whether a read waits for something.
    pub(super) fn has_reads(&self) -> bool {
        self.wants.values().any(|want| want.priority == Priority::Fault)
    }

    /// Whether [`Self::unserved`] would find anything. Looked for from the end, where it usually is.
    pub(super) fn has_unserved(&self) -> bool {
        self.wants.values().any(|want| {
            let range = want.open();
            (range.start / 64..range.end.div_ceil(64)).rev().any(|index| self.unserved_word(index, &range, false) != 0)
        })
    }

    /// Missing pieces of wants that nobody has and nothing brings, ascending runs; only those that `select` affirms.
    pub(super) fn unserved(&self, now: Duration, max_runs: usize, select: impl Fn(&Want) -> bool) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let mut sorted = true;
        for want in self.wants.values().filter(|want| select(want)) {
            let late = want.priority == Priority::Fault && now >= want.since + FAULT_PATIENCE;
            let begins = runs.len();
            self.unserved_of(&want.open(), late, max_runs, &mut runs);
            sorted &= begins == 0 || begins == runs.len();
        }
        if !sorted {
            let pieces: BTreeSet<u32> = runs.into_iter().flatten().collect();
            runs = into_runs(pieces.into_iter(), max_runs);
        }
        runs
    }

    /// One word of it; of a read that has waited long also what peers have or were asked for.
    fn unserved_word(&self, index: u32, range: &Range<u32>, late: bool) -> u64 {
        let mut word = mask_of(index, range) & !self.have.word(index);
        if !late {
            let served = if self.takes_from_peers() { self.availability.word(index) } else { 0 };
            word &= !(served | self.flights.word(index));
        }
        for transfer in self.origin.transfers.values() {
            word &= !mask_of(index, &transfer.pieces);
        }
        word
    }

    /// Adds at most `max_runs` runs of one want.
    fn unserved_of(&self, range: &Range<u32>, late: bool, max_runs: usize, runs: &mut Vec<Range<u32>>) {
        let begins = runs.len();
        for index in range.start / 64..range.end.div_ceil(64) {
            for piece in pieces_of(index, self.unserved_word(index, range, late)) {
                let full = runs.len() - begins == max_runs;
                match runs[begins..].last_mut() {
                    Some(run) if run.end == piece.0 => run.end += 1,
                    _ if full => return,
                    _ => runs.push(piece.0..piece.0 + 1),
                }
            }
        }
    }
}

/// How long a blocked read waits for peers before the origin is asked as well.
pub(super) const FAULT_PATIENCE: Duration = Duration::from_secs(1);

/// Joins ascending indexes to at most `max` runs.
pub(super) fn into_runs(pieces: impl Iterator<Item = u32>, max: usize) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for piece in pieces {
        let full = runs.len() == max;
        match runs.last_mut() {
            Some(run) if run.end == piece => run.end += 1,
            _ if full => break,
            _ => runs.push(piece..piece + 1),
        }
    }
    runs
}

/// One transfer from the origin.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) lease: Option<(u64, Range<u32>)>,
    pub(super) pieces: Range<u32>,
    pub(super) started: Duration,
    /// How long the origin took to its first byte.
    pub(super) first_byte: Option<Duration>,
    pub(super) last_progress: Duration,
}

pub(super) type Transfers = BTreeMap<TransferId, Transfer>;
