//! Requests to peers: which piece, of whom, when again.

use std::ops::Range;
use std::time::Duration;

use super::blob::{BlobState, FAULT_PATIENCE, Flight};
use super::{Action, Priority, Swarm};
use crate::digest::Digest;
use crate::identity::PeerId;
use crate::layout::PieceIndex;

/// Requests under way over all blobs: slots times pipeline of the reference, in pieces or in bytes, whichever is more.
const BUDGET_PIECES: u32 = 4;
const BUDGET_BYTES: u64 = 1 << 20;
/// Requests under way when a read is blocked.
const FAULT_BUDGET_PIECES: u32 = 16;
const FAULT_BUDGET_BYTES: u64 = 8 << 20;
/// Requests under way to a peer that has not delivered yet.
const UNPROVEN_REQUESTS: u32 = 2;
/// Pieces, from the first missing one, within which the rarest is taken.
const WINDOW: usize = 64;
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

impl Swarm {
    /// Sends requests as far as the budget goes, most urgent wants first.
    pub(super) fn fill_requests(&mut self) {
        if self.in_flight >= FAULT_BUDGET_PIECES.max(BUDGET_PIECES) && self.in_flight_bytes >= FAULT_BUDGET_BYTES {
            return;
        }
        let mut wants: Vec<(Priority, Duration, Digest, Range<u32>)> = Vec::new();
        for (&digest, blob) in self.blobs.iter().filter(|(_, blob)| !blob.have.is_full()) {
            if blob.verifiable && !blob.origin_only && !blob.trades.is_empty() {
                let of_blob = blob.wants.values();
                wants.extend(of_blob.map(|want| (want.priority, want.since, digest, want.pieces.clone())));
            }
        }
        wants.sort_by_key(|(priority, since, digest, pieces)| (*priority, *since, *digest, pieces.start));
        for (priority, _, digest, pieces) in wants {
            while self.has_budget(priority) && self.download_limit.is_open(self.now, &digest) {
                let Some((piece, peer)) = self.choose(&digest, &pieces, priority) else { break };
                self.request(digest, piece, peer, priority == Priority::Fault, false);
            }
        }
    }

    const fn has_budget(&self, priority: Priority) -> bool {
        let (pieces, bytes) = match priority {
            Priority::Fault => (FAULT_BUDGET_PIECES, FAULT_BUDGET_BYTES),
            _ => (BUDGET_PIECES, BUDGET_BYTES),
        };
        self.in_flight < pieces || self.in_flight_bytes < bytes
    }

    /// The next request for that want. A read that waits takes its next piece from whoever is quickest; a pull first
    /// takes the peer that is least busy with this node, then the rarest piece that peer has. Choosing the piece first
    /// would send everybody to the one holder of what is new while other uplinks idle.
    fn choose(&mut self, digest: &Digest, pieces: &Range<u32>, priority: Priority) -> Option<(PieceIndex, PeerId)> {
        let salt = self.rng.u64(..) | 1;
        let (now, blob) = (self.now, self.blobs.get(digest)?);
        let mut open: Vec<PeerId> = blob.usable(now).filter(|peer| self.may_ask_more(peer)).collect();
        if open.is_empty() {
            return None;
        }
        open.sort_by_cached_key(|peer| self.busyness(peer, salt));
        let requestable = |piece: &PieceIndex| {
            !blob.flights.contains_key(&piece.0) && !blob.in_transfer(*piece, now, TRANSFER_PATIENCE)
        };
        let first_holder = |piece: PieceIndex| open.iter().copied().find(|peer| blob.trades[peer].have.get(piece));
        let in_order = |from: usize| {
            let mut missing = blob.missing(pieces).skip(from).filter(requestable);
            missing.find_map(|piece| Some((piece, first_holder(piece)?)))
        };
        if priority < Priority::Bulk {
            return in_order(0);
        }
        let holders = |piece: PieceIndex| open.iter().filter(|peer| blob.trades[*peer].have.get(piece)).count();
        let window = blob.missing(pieces).take(WINDOW).filter(requestable);
        let mut rarest: Vec<(usize, u64, PieceIndex)> = window
            .map(|piece| (holders(piece), u64::from(piece.0 + 1).wrapping_mul(salt), piece))
            .filter(|(holders, ..)| *holders > 0)
            .collect();
        rarest.sort_unstable();
        let of_peer = |&peer: &PeerId| {
            let piece = rarest.iter().map(|(_, _, piece)| *piece).find(|&piece| blob.trades[&peer].have.get(piece))?;
            Some((piece, peer))
        };
        open.iter().find_map(of_peer).or_else(|| in_order(WINDOW))
    }

    /// When a peer should have delivered one more piece, by what it owes already and how quick it was; ties by lot.
    fn busyness(&self, peer: &PeerId, salt: u64) -> (Duration, u64) {
        let usual = self.mean.get().unwrap_or(FIRST_GUESS);
        let state = self.peers.get(peer);
        let (queued, mean) = state.map_or((0, usual), |state| (state.in_flight, state.mean.get().unwrap_or(usual)));
        let name = u64::from_be_bytes(*peer.as_bytes().first_chunk().unwrap_or(&[0; 8]));
        (mean * (queued + 1), fastrand::Rng::with_seed(name ^ salt).u64(..))
    }

    /// Whether one more request may go to `peer`. A peer that has given nothing yet gets few at a time, and one that
    /// gave wrong pieces a single one, so that a liar costs little before it is banned.
    fn may_ask_more(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|state| {
            let limit = match (self.is_charged(peer), state.mean.get()) {
                (true, _) => 1,
                (false, None) => UNPROVEN_REQUESTS,
                (false, Some(_)) => u32::MAX,
            };
            state.in_flight < limit && self.download_limit.is_open_to(self.now, peer)
        })
    }

    /// Another holder that should deliver first.
    fn another(&self, blob: &BlobState, piece: PieceIndex, than: PeerId) -> Option<PeerId> {
        let open = blob.holders(piece, self.now).filter(|&peer| peer != than && self.may_ask_more(&peer));
        open.min_by_key(|peer| self.busyness(peer, 0))
    }

    fn request(&mut self, digest: Digest, piece: PieceIndex, peer: PeerId, urgent: bool, hedge: bool) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.flights.entry(piece.0).or_default().push(Flight { peer, since: self.now });
        self.in_flight += 1;
        self.in_flight_bytes += blob.piece_bytes(piece);
        self.download_limit.take(self.now, &digest, Some(&peer), blob.piece_bytes(piece));
        if let Some(state) = self.peers.get_mut(&peer) {
            state.in_flight += 1;
            state.last_active = self.now;
        }
        self.actions.push(Action::Request { peer, digest, piece, urgent, hedge });
    }

    /// Learns how long the piece took.
    pub(super) fn note_arrival(&mut self, digest: Digest, piece: PieceIndex, from: Option<PeerId>) {
        let Some(peer) = from else { return };
        let flights = self.blobs.get(&digest).and_then(|blob| blob.flights.get(&piece.0));
        let Some(flight) = flights.and_then(|flights| flights.iter().find(|flight| flight.peer == peer)) else {
            return;
        };
        let took = self.now.saturating_sub(flight.since);
        self.mean.add(took);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.mean.add(took);
            state.last_active = self.now;
        }
    }

    /// The origin brought a piece that peers were asked for long before: they are not asked for a while, so that a peer
    /// that vanished without a word does not delay every read.
    pub(super) fn note_overtaken(&mut self, digest: Digest, piece: PieceIndex) {
        let flights = self.blobs.get(&digest).and_then(|blob| blob.flights.get(&piece.0));
        let slow = flights.into_iter().flatten().filter(|flight| self.now >= flight.since + FAULT_PATIENCE);
        let slow: Vec<PeerId> = slow.map(|flight| flight.peer).collect();
        slow.into_iter().for_each(|peer| self.set_unusable(digest, peer));
    }

    /// Ends all requests for a piece; every peer but `arrived` is told.
    pub(super) fn cancel_flights(&mut self, digest: Digest, piece: PieceIndex, arrived: Option<PeerId>) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let bytes = blob.piece_bytes(piece);
        for flight in blob.flights.remove(&piece.0).unwrap_or_default() {
            self.landed(flight.peer, bytes);
            if Some(flight.peer) != arrived {
                self.actions.push(Action::Cancel { peer: flight.peer, digest, piece });
            }
        }
    }

    /// Ends the request for a piece to one peer, which is not told.
    pub(super) fn end_flight(&mut self, digest: Digest, piece: PieceIndex, peer: PeerId) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let bytes = blob.piece_bytes(piece);
        let Some(flights) = blob.flights.get_mut(&piece.0) else { return };
        let before = flights.len();
        flights.retain(|flight| flight.peer != peer);
        let ended = before - flights.len();
        if flights.is_empty() {
            blob.flights.remove(&piece.0);
        }
        (0..ended).for_each(|_| self.landed(peer, bytes));
    }

    fn landed(&mut self, peer: PeerId, bytes: u64) {
        self.in_flight -= 1;
        self.in_flight_bytes -= bytes;
        if let Some(state) = self.peers.get_mut(&peer) {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
    }

    /// Asks a second peer for what is late, and gives up what is very late.
    pub(super) fn watch_flights(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get(&digest) else { return };
        let late = (self.mean.get().unwrap_or(FIRST_GUESS) * 3).max(HEDGE_FLOOR);
        let mut given_up = Vec::new();
        let mut hedges = Vec::new();
        for (&piece, flights) in &blob.flights {
            let piece = PieceIndex(piece);
            let expired = flights.iter().filter(|flight| self.now >= flight.since + REQUEST_TIMEOUT.max(late * 3));
            given_up.extend(expired.map(|flight| (piece, flight.peer)));
            let [only] = flights.as_slice() else { continue };
            if self.now >= only.since + late
                && let Some(peer) = self.another(blob, piece, only.peer)
            {
                let urgent = blob.wants.values().any(|w| w.priority == Priority::Fault && w.pieces.contains(&piece.0));
                hedges.push((piece, peer, urgent));
            }
        }
        for (piece, peer, urgent) in hedges {
            // Hedges are second requests: they may not fill the budget of first ones many times over.
            if self.in_flight < FAULT_BUDGET_PIECES && self.download_limit.is_open(self.now, &digest) {
                self.request(digest, piece, peer, urgent, true);
            }
        }
        for (piece, peer) in given_up {
            self.end_flight(digest, piece, peer);
            self.actions.push(Action::Cancel { peer, digest, piece });
            self.set_unusable(digest, peer);
        }
    }
}
