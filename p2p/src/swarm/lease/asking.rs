//! What a request for a lease tells discovery.

use std::ops::Range;
use std::time::Duration;

use super::OriginSide;
use crate::digest::Digest;
use crate::discovery::LeaseRequest;
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::{MAX_RUNS, MAX_USELESS};
use crate::swarm::blob::BlobState;
use crate::swarm::{Action, Priority, Swarm};

/// How long a peer counts as useless after it said or did so.
const USELESS: Duration = Duration::from_secs(30);
/// Over how long the pace of arrivals is measured.
const PACE_WINDOW: Duration = Duration::from_secs(2);

/// How quickly pieces of a blob arrive.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    since: Duration,
    came: u32,
    per_second: Option<f64>,
}

impl Pace {
    fn note(&mut self, now: Duration) {
        self.came += 1;
        let span = now.saturating_sub(self.since);
        if span >= PACE_WINDOW {
            let pace = f64::from(self.came) / span.as_secs_f64();
            // A window that began long ago, before anything was wanted, tells nothing.
            self.per_second = (span < 2 * PACE_WINDOW).then_some(pace);
            (self.since, self.came) = (now, 0);
        }
    }

    /// How long so many pieces will take.
    fn time_for(&self, pieces: u32) -> Option<Duration> {
        let pace = self.per_second.filter(|pace| *pace > 0.0)?;
        Some(Duration::from_secs_f64((f64::from(pieces) / pace).min(1e6)))
    }
}

impl OriginSide {
    /// A piece came, from anywhere.
    pub(in crate::swarm) fn note_piece(&mut self, now: Duration) {
        self.pace.note(now);
    }

    /// A peer gives nothing of the blob for now.
    pub(in crate::swarm) fn note_useless(&mut self, peer: PeerId, now: Duration) {
        self.useless.retain(|_, until| *until > now);
        if self.useless.len() < MAX_USELESS {
            self.useless.insert(peer, now + USELESS);
        }
    }
}

impl Swarm {
    /// Asks for a lease of what is missing.
    pub(super) fn ask_lease(&mut self, digest: Digest, missing: Vec<Range<u32>>, urgent: Vec<Range<u32>>) {
        let useless = self.useless(&digest);
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let unshared = blob.count_unshared();
        let request = LeaseRequest::new(digest, blob.layout.length());
        self.actions.push(Action::Lease(LeaseRequest { missing, urgent, unshared, useless, ..request }));
    }

    /// Peers have all that is missing. Asks whether some of it may be fetched from the origin all the same, for a whole
    /// pull: where the uplinks of all are slower than the origin, that ends it sooner.
    pub(super) fn ask_copy(&mut self, digest: Digest) {
        let (now, down) = (self.now, self.discovery_is_down());
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let origin = &blob.origin;
        let busy = origin.asking || origin.transfers.len() >= origin.streams() || origin.whole_only;
        if busy || down || blob.origin_only || origin.refused.is_some() || now < origin.copy_after {
            return;
        }
        let missing = blob.layout.piece_count() - blob.have.count();
        let Some(remaining) = origin.pace.time_for(missing) else { return };
        let rare = blob.rarest_missing();
        if rare.is_empty() {
            return;
        }
        let unshared = blob.count_unshared();
        let request = LeaseRequest::new(digest, blob.layout.length());
        (blob.origin.asking, blob.origin.asked_copy) = (true, true);
        self.actions.push(Action::Lease(LeaseRequest { rare, remaining: Some(remaining), unshared, ..request }));
    }

    /// The peers that discovery named and that give nothing of the blob: out of reach, refused, or without it.
    fn useless(&self, digest: &Digest) -> Vec<PeerId> {
        let Some(blob) = self.blobs.get(digest) else { return Vec::new() };
        let failed = blob.known.iter().filter(|(peer, known)| known.failed || self.is_banned(self.now, peer));
        let said = blob.origin.useless.iter().filter(|(_, until)| **until > self.now);
        let mut useless: Vec<PeerId> = failed.map(|(peer, _)| *peer).chain(said.map(|(peer, _)| *peer)).collect();
        useless.sort_unstable();
        useless.dedup();
        useless.truncate(MAX_USELESS);
        useless
    }
}

impl BlobState {
    /// How many of the pieces that came from the origin no peer is known to have taken.
    fn count_unshared(&mut self) -> u32 {
        let trades = &self.trades;
        self.origin.unshared.retain(|piece| !trades.values().any(|trade| trade.have.get(PieceIndex(*piece))));
        self.origin.unshared.len() as u32
    }

    /// Of the pieces that whole pulls lack and nothing brings, those that the fewest peers have: all of the rarest kinds,
    /// in order, up to the bound.
    fn rarest_missing(&self) -> Vec<PieceIndex> {
        let pulls = self.wants.values().filter(|want| want.priority >= Priority::Bulk);
        let wanted = |piece: &PieceIndex| {
            !self.have.get(*piece)
                && !self.flights.contains_key(&piece.0)
                && !self.origin.transfers.values().any(|transfer| transfer.pieces.contains(&piece.0))
        };
        let pieces = pulls.flat_map(|want| want.pieces.clone()).map(PieceIndex).filter(wanted);
        let holders = |piece: PieceIndex| self.availability.of(piece);
        let mut rarest: Vec<(u16, PieceIndex)> = pieces.map(|piece| (holders(piece), piece)).collect();
        rarest.sort_unstable();
        rarest.dedup();
        rarest.truncate(MAX_RUNS);
        rarest.into_iter().map(|(_, piece)| piece).collect()
    }
}
