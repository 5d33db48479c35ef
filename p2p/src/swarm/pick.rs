//! Requests to peers: which piece, of whom, when again.

use std::ops::Range;
use std::time::Duration;

use super::blob::{BlobState, FAULT_PATIENCE, Want};
use super::table::{Flight, Slot, Trade};
use super::{Action, Priority, Swarm, WantId};
use crate::bitfield::pieces_of;
use crate::digest::Digest;
use crate::identity::PeerId;
use crate::layout::PieceIndex;

/// Requests under way when a read is blocked.
const FAULT_BUDGET_PIECES: u32 = 16;
const FAULT_BUDGET_BYTES: u64 = 8 << 20;
/// Requests under way to a peer that has not delivered yet.
const UNPROVEN_REQUESTS: u32 = 2;
/// How long a piece that the origin is sending is not asked of peers, counted from its last progress.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(3);
/// A hedge is not sent earlier than that.
const HEDGE_FLOOR: Duration = Duration::from_millis(200);
/// A request is given up after that long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// What a piece is thought to take before the first one came.
const FIRST_GUESS: Duration = Duration::from_millis(300);

/// A moving mean of durations.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mean(Option<Duration>);

impl Mean {
    pub(super) fn add(&mut self, sample: Duration) {
        self.0 = Some(self.0.map_or(sample, |mean| mean * 7 / 8 + sample / 8));
    }

    pub(super) fn get(&self) -> Option<Duration> {
        self.0
    }
}

/// A want of which something is missing; in the order in which they are served.
pub(super) type OpenWant = (Priority, Duration, Digest, u32, WantId);

/// A peer that could be asked, and when it should have delivered one more piece; less is better.
type Candidate = (Duration, u32, Slot);

impl Swarm {
    /// Sends requests as far as the budget goes, most urgent wants first.
    pub(super) fn fill_requests(&mut self) {
        if !self.has_budget(Priority::Fault) {
            return;
        }
        let pulls = self.has_budget(Priority::Bulk);
        let mut wants = std::mem::take(&mut self.open_wants);
        wants.clear();
        for digest in &self.busy {
            let Some(blob) = self.blobs.get_mut(digest) else { continue };
            blob.return_peers(self.now);
            let blob = &*blob;
            if blob.takes_from_peers() && !blob.trades.is_empty() {
                let may_go = |want: &Want| !want.open().is_empty() && (pulls || want.priority == Priority::Fault);
                let open = blob.wants.iter().filter(|(_, want)| may_go(want));
                wants.extend(open.map(|(&id, want)| (want.priority, want.since, *digest, want.pieces.start, id)));
            }
        }
        wants.sort_unstable();
        for &(priority, _, digest, _, id) in &wants {
            while self.has_budget(priority) && self.download_limit.is_open(self.now, &digest) {
                let Some((piece, slot)) = self.choose(&digest, id) else { break };
                self.request(digest, piece, slot, priority == Priority::Fault, false);
            }
        }
        self.open_wants = wants;
    }

    /// A peer has got something that is missing here: it is asked for it if there is budget. What others have has not
    /// changed.
    pub(super) fn ask_for_news(&mut self, slot: Slot, digest: Digest) {
        if self.blobs.get(&digest).is_some_and(|blob| blob.has_far) {
            self.fill_requests();
        }
        while self.has_budget(Priority::Fault)
            && let Some((piece, urgent)) = self.choose_of(slot, digest, self.has_budget(Priority::Bulk))
        {
            self.request(digest, piece, slot, urgent, false);
        }
        self.download_limit.account(self.now);
    }

    /// What that peer should be asked for next, for a pull or only for a read that waits: of the most urgent want of which
    /// it has something. Whether it is urgent.
    fn choose_of(&mut self, slot: Slot, digest: Digest, pulls: bool) -> Option<(PieceIndex, bool)> {
        let blob = self.blobs.get(&digest)?;
        let may_go = |want: &Want| !want.open().is_empty() && (pulls || want.priority == Priority::Fault);
        let goes = blob.usable().contains(&slot) && blob.wants.values().any(may_go);
        if !goes || !self.download_limit.is_open(self.now, &digest) {
            return None;
        }
        let due = self.when_due(slot, !pulls)?;
        let salt = self.rng.u32(..) | 1;
        let blob = self.blobs.get(&digest)?;
        let mut wants: Vec<&Want> = blob.wants.values().filter(|want| may_go(want)).collect();
        wants.sort_by_key(|want| (want.priority, want.since));
        wants.iter().find_map(|want| {
            let (piece, _) = self.choose_from(blob, want, &[(due, 0, slot)], salt)?;
            Some((piece, want.priority == Priority::Fault))
        })
    }

    /// A peer has an upload slot that nobody asks for: it is asked for one more, even a little beyond the budget, since the
    /// requests that fill it may wait for slots elsewhere.
    pub(super) fn invited(&mut self, peer: PeerId, digest: Digest) {
        let Some(slot) = self.peers.slot(&peer) else { return };
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.return_peers(self.now);
        let policy = &self.config.policy;
        let overdraft_bytes = blob.layout.piece_length() * u64::from(policy.overdraft);
        let has_budget = self.in_flight < policy.budget_pieces + policy.overdraft
            || self.in_flight_bytes < policy.budget_bytes + overdraft_bytes;
        if has_budget && let Some((piece, urgent)) = self.choose_of(slot, digest, true) {
            self.request(digest, piece, slot, urgent, false);
        }
    }

    const fn has_budget(&self, priority: Priority) -> bool {
        let (pieces, bytes) = match priority {
            Priority::Fault => (FAULT_BUDGET_PIECES, FAULT_BUDGET_BYTES),
            _ => (self.config.policy.budget_pieces, self.config.policy.budget_bytes),
        };
        self.in_flight < pieces || self.in_flight_bytes < bytes
    }

    /// The next request for that want. A read that waits takes its next piece from whoever is quickest; a pull first
    /// takes the peer that is least busy with this node, then the rarest piece that peer has. Choosing the piece first
    /// would send everybody to the one holder of what is new while other uplinks idle.
    fn choose(&mut self, digest: &Digest, want: WantId) -> Option<(PieceIndex, Slot)> {
        let blob = self.blobs.get(digest)?;
        let want = blob
            .wants
            .get(&want)
            .filter(|want| blob.has_work(want) || (blob.has_far && want.priority == Priority::Fault))?;
        let urgent = want.priority == Priority::Fault;
        let mut salt = self.rng.u32(..) | 1;
        let mut open = std::mem::take(&mut self.candidates);
        open.clear();
        for &slot in blob.usable() {
            if let Some(due) = self.when_due(slot, urgent) {
                salt = salt.wrapping_mul(0x9e37_79b1);
                open.push((due, salt, slot));
            }
        }
        open.sort_unstable();
        let chosen = self.choose_from(blob, want, &open, salt).or_else(|| self.choose_far(*digest, blob, want));
        self.candidates = open;
        chosen
    }

    /// What a read waits for and no peer of this zone has comes from another, whatever it costs.
    fn choose_far(&self, digest: Digest, blob: &BlobState, want: &Want) -> Option<(PieceIndex, Slot)> {
        if want.priority != Priority::Fault || !blob.has_far {
            return None;
        }
        let range = want.open();
        let words = range.start / 64..range.end.div_ceil(64);
        let offered =
            |index| blob.unasked(index, &range) & blob.far_word(index, self.now) & !blob.availability.word(index);
        let mut pieces = words.flat_map(|index| pieces_of(index, offered(index)));
        pieces.find_map(|piece| {
            let waits = !blob.in_transfer(piece, self.now, TRANSFER_PATIENCE);
            Some((piece, self.importer_of(digest, piece).filter(|_| waits)?))
        })
    }

    fn choose_from(&self, blob: &BlobState, want: &Want, open: &[Candidate], salt: u32) -> Option<(PieceIndex, Slot)> {
        if open.is_empty() {
            return None;
        }
        if want.priority < Priority::Bulk {
            return self.first_in_order(blob, &want.open(), open);
        }
        let Range { start, end } = want.open();
        // From the first missing piece on, and not that many missing ones: what has long been common would never come.
        let border = end.min(start.saturating_add(self.config.policy.window));
        // A peer that has nothing near is asked for what is far: its uplink would idle otherwise.
        open.iter().find_map(|candidate| {
            let &(_, _, slot) = candidate;
            let near = self.rarest_of(blob, &(start..border), blob.trades.get(slot)?, salt);
            let near = near.map(|piece| (piece, slot));
            near.or_else(|| self.first_in_order(blob, &(border..end), std::slice::from_ref(candidate)))
        })
    }

    /// The rarest missing piece of `range` that `trade` has; ties by lot.
    fn rarest_of(&self, blob: &BlobState, range: &Range<u32>, trade: &Trade, salt: u32) -> Option<PieceIndex> {
        let mut best: Option<(u16, u32, PieceIndex)> = None;
        for index in range.start / 64..range.end.div_ceil(64) {
            for piece in pieces_of(index, blob.unasked(index, range) & trade.have.word(index)) {
                let rank = (blob.availability.of(piece), (piece.0 + 1).wrapping_mul(salt), piece);
                if best.is_none_or(|best| rank < best) && !blob.in_transfer(piece, self.now, TRANSFER_PATIENCE) {
                    best = Some(rank);
                }
            }
        }
        best.map(|(_, _, piece)| piece)
    }

    /// The first missing piece of `range` that a candidate has, of the best of these.
    fn first_in_order(&self, blob: &BlobState, range: &Range<u32>, open: &[Candidate]) -> Option<(PieceIndex, Slot)> {
        for index in range.start / 64..range.end.div_ceil(64) {
            for piece in pieces_of(index, blob.unasked(index, range) & blob.availability.word(index)) {
                let has = |slot: Slot| blob.trades.get(slot).is_some_and(|trade| trade.have.get(piece));
                if let Some(&(_, _, slot)) = open.iter().find(|(_, _, slot)| has(*slot))
                    && !blob.in_transfer(piece, self.now, TRANSFER_PATIENCE)
                {
                    return Some((piece, slot));
                }
            }
        }
        None
    }

    /// When a peer should have delivered one more piece, by what it owes already and how quick it was; none if it may not
    /// be asked for more. A peer that has given nothing yet gets few requests at a time, and one that gave wrong pieces or
    /// let requests time out a single one, so that it costs little. What is urgent may be asked of the former beside these: pieces
    /// may wait for it, as they do for metainfo.
    pub(super) fn when_due(&self, slot: Slot, urgent: bool) -> Option<Duration> {
        let state = self.peers.at(slot)?;
        let limit = match state.mean.get() {
            _ if state.strikes > 0 || self.is_charged(slot) => 1,
            None => UNPROVEN_REQUESTS + u32::from(urgent),
            Some(_) => u32::MAX,
        };
        let mean = state.mean.get().or(self.mean.get()).unwrap_or(FIRST_GUESS);
        let per_peer = self.download_limit.rates().per_peer > 0;
        let may_go = |peer: PeerId| self.download_limit.is_open_to(self.now, &peer);
        let open = state.in_flight < limit && (!per_peer || self.peers.name(slot).is_some_and(may_go));
        open.then(|| mean * (state.in_flight + 1))
    }

    /// Another holder that should deliver first.
    fn another(&self, blob: &BlobState, piece: PieceIndex, than: Slot) -> Option<Slot> {
        let has = |slot: Slot| blob.trades.get(slot).is_some_and(|trade| trade.have.get(piece));
        let holders = blob.usable().iter().filter(|slot| **slot != than && has(**slot));
        let due = holders.filter_map(|&slot| Some((self.when_due(slot, false)?, slot)));
        due.min().map(|(_, slot)| slot)
    }

    pub(super) fn request(&mut self, digest: Digest, piece: PieceIndex, slot: Slot, urgent: bool, hedge: bool) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let Some(peer) = blob.trades.get(slot).map(|trade| trade.peer) else { return };
        blob.flights.push(Flight { piece: piece.0, slot, peer, since: self.now });
        self.in_flight += 1;
        self.in_flight_bytes += blob.piece_bytes(piece);
        self.download_limit.take(self.now, &digest, Some(&peer), blob.piece_bytes(piece));
        if let Some(state) = self.peers.at_mut(slot) {
            state.in_flight += 1;
            state.last_active = self.now;
        }
        self.actions.push(Action::Request { peer, digest, piece, urgent, hedge });
    }

    /// Learns how long the piece took.
    pub(super) fn note_arrival(&mut self, digest: Digest, piece: PieceIndex, from: Option<PeerId>) {
        let Some(peer) = from else { return };
        let Some(blob) = self.blobs.get(&digest) else { return };
        let Some(flight) = blob.flights.of(piece).find(|flight| flight.peer == peer) else { return };
        let took = self.now.saturating_sub(flight.since);
        self.mean.add(took);
        if let Some(state) = self.peers.at_mut(flight.slot) {
            state.mean.add(took);
            state.strikes = 0;
            state.last_active = self.now;
        }
    }

    /// The origin brought a piece that peers were asked for long before: they are not asked for a while, so that a peer
    /// that vanished without a word does not delay every read.
    pub(super) fn note_overtaken(&mut self, digest: Digest, piece: PieceIndex) {
        let Some(blob) = self.blobs.get(&digest) else { return };
        let slow = blob.flights.of(piece).filter(|flight| self.now >= flight.since + FAULT_PATIENCE);
        let slow: Vec<Slot> = slow.map(|flight| flight.slot).collect();
        slow.into_iter().for_each(|slot| self.set_unusable(digest, slot));
    }

    /// Ends all requests for a piece; every peer but `arrived` is told.
    pub(super) fn cancel_flights(&mut self, digest: Digest, piece: PieceIndex, arrived: Option<PeerId>) {
        for flight in self.end_flights(digest, |flight| flight.piece == piece.0) {
            if Some(flight.peer) != arrived {
                self.actions.push(Action::Cancel { peer: flight.peer, digest, piece });
            }
        }
    }

    /// Ends the requests that `ends` affirms; nobody is told.
    pub(super) fn end_flights(&mut self, digest: Digest, ends: impl Fn(&Flight) -> bool) -> Vec<Flight> {
        let Some(blob) = self.blobs.get_mut(&digest) else { return Vec::new() };
        let ended = blob.flights.take(ends);
        for flight in &ended {
            self.in_flight -= 1;
            self.in_flight_bytes -= blob.piece_bytes(PieceIndex(flight.piece));
            if let Some(state) = self.peers.at_mut(flight.slot) {
                state.in_flight = state.in_flight.saturating_sub(1);
            }
        }
        ended
    }

    /// Ends the request for a piece to one peer, which is not told.
    pub(super) fn end_flight(&mut self, digest: Digest, piece: PieceIndex, slot: Slot) {
        self.end_flights(digest, |flight| flight.piece == piece.0 && flight.slot == slot);
    }

    /// Asks a second peer for what is late, and gives up what is very late.
    pub(super) fn watch_flights(&mut self, digest: Digest) {
        let late = (self.mean.get().unwrap_or(FIRST_GUESS) * self.config.policy.hedge_after).max(HEDGE_FLOOR);
        let expired = REQUEST_TIMEOUT.max(late * 3);
        let Some(blob) = self.blobs.get(&digest) else { return };
        if !blob.flights.iter().any(|flight| self.now >= flight.since + late) {
            return;
        }
        let mut hedges = Vec::new();
        for flight in blob.flights.iter().filter(|flight| self.now >= flight.since + late) {
            let piece = PieceIndex(flight.piece);
            if blob.flights.of(piece).count() > 1 {
                continue;
            }
            let waits = |want: &Want| want.priority < Priority::Bulk && want.pieces.contains(&piece.0);
            let blocked = blob.wants.values().any(waits);
            // While other pieces can be asked for, a second request for this one would only take an uplink's time from them.
            if (blocked || !blob.wants.values().any(|want| blob.has_work(want)))
                && let Some(slot) = self.another(blob, piece, flight.slot)
            {
                hedges.push((piece, slot, blocked));
            }
        }
        for (piece, slot, urgent) in hedges {
            // Hedges are second requests: they may not fill the budget of first ones many times over.
            if self.in_flight < FAULT_BUDGET_PIECES && self.download_limit.is_open(self.now, &digest) {
                self.request(digest, piece, slot, urgent, true);
            }
        }
        let now = self.now;
        for flight in self.end_flights(digest, |flight| now >= flight.since + expired) {
            self.actions.push(Action::Cancel { peer: flight.peer, digest, piece: PieceIndex(flight.piece) });
            if let Some(state) = self.peers.at_mut(flight.slot) {
                state.strike(now);
            }
            self.set_unusable(digest, flight.slot);
        }
    }
}
