//! What a request for a lease tells discovery.

use std::ops::Range;
use std::time::Duration;

use super::OriginSide;
use crate::bitfield::pieces_of;
use crate::digest::Digest;
use crate::discovery::LeaseRequest;
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::{MAX_RUNS, MAX_USELESS};
use crate::swarm::blob::{BlobState, FAULT_PATIENCE, Want, into_runs};
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
    /// Asks for a lease of what is missing; where everything was fetched before, perhaps for a further copy.
    pub(super) fn ask_lease(
        &mut self,
        digest: Digest,
        missing: Vec<Range<u32>>,
        urgent: Vec<Range<u32>>,
        importable: Vec<Range<u32>>,
    ) {
        let useless = self.useless(&digest);
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let request = blob.request(digest);
        self.actions.push(Action::Lease(LeaseRequest { missing, urgent, importable, useless, ..request }));
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
        if !blob.knows_pace() {
            return;
        }
        let request = blob.request(digest);
        if request.rare.is_empty() {
            return;
        }
        (blob.origin.asking, blob.origin.asked_copy) = (true, true);
        blob.origin.asked = now;
        self.actions.push(Action::Lease(request));
    }

    /// A peer cannot be dialled, for whatever blob.
    pub(in crate::swarm) fn note_unreachable(&mut self, peer: PeerId) {
        self.unreachable.retain(|_, until| *until > self.now);
        if self.unreachable.len() < MAX_USELESS {
            self.unreachable.insert(peer, self.now + USELESS);
        }
    }

    /// The peers that give nothing of the blob: banned here, out of reach, or without it. Who trades
    /// with as many as it may does not count those that it could not reach or that had no room for it: what they have
    /// comes through others.
    pub(super) fn useless(&self, digest: &Digest) -> Vec<PeerId> {
        let Some(blob) = self.blobs.get(digest) else { return Vec::new() };
        let settled = blob.trades.len() >= self.config.max_peers_per_blob;
        let failed = blob.known.iter().filter(|(peer, known)| {
            (known.failed && !settled && !blob.trades.contains_key(peer)) || self.is_banned(self.now, peer)
        });
        let late = blob.trades.iter().filter(|(slot, trade)| {
            !trade.counts && !trade.far && self.peers.at(*slot).is_some_and(|state| state.strikes > 0)
        });
        let said = blob.origin.useless.iter().filter(|(_, until)| !settled && **until > self.now);
        let mut useless: Vec<PeerId> = failed.map(|(peer, _)| *peer).chain(said.map(|(peer, _)| *peer)).collect();
        useless.extend(late.map(|(_, trade)| trade.peer));
        useless.sort_unstable();
        useless.dedup();
        useless.truncate(MAX_USELESS);
        // What was found out for other blobs goes for this one: such a peer may have fetched it, too.
        let unreachable = self.unreachable.iter().filter(|(_, until)| !settled && **until > self.now);
        let more: Vec<PeerId> = unreachable.map(|(peer, _)| *peer).filter(|peer| !useless.contains(peer)).collect();
        useless.extend(more.into_iter().take(MAX_USELESS - useless.len()));
        useless.sort_unstable();
        useless
    }
}

impl BlobState {
    /// Whether it is known how long the rest will take.
    fn knows_pace(&self) -> bool {
        self.origin.pace.time_for(1).is_some()
    }

    /// What every request tells.
    fn request(&mut self, digest: Digest) -> LeaseRequest {
        let unshared = self.count_unshared();
        let missing = self.layout.piece_count() - self.have.count();
        let remaining = self.origin.pace.time_for(missing);
        let rare = if remaining.is_some() { self.rarest_missing() } else { Vec::new() };
        LeaseRequest { unshared, remaining, rare, ..LeaseRequest::new(digest, self.layout.length()) }
    }

    /// What reads wait for and nobody gives. What another zone's peers offer is asked of them, unless that takes long.
    pub(super) fn urgent(&self, now: Duration, importable: &[Range<u32>]) -> Vec<Range<u32>> {
        let urgent = self.unserved(now, MAX_RUNS, |want| want.priority == Priority::Fault);
        let is_late = |want: &Want| want.priority == Priority::Fault && now >= want.since + FAULT_PATIENCE;
        if importable.is_empty() || self.wants.values().any(is_late) {
            return urgent;
        }
        let offered = |piece: &u32| importable.iter().any(|run| run.contains(piece));
        into_runs(urgent.into_iter().flatten().filter(|piece| !offered(piece)), MAX_RUNS)
    }

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
        let transfers = &self.origin.transfers;
        let coming = |piece: u32| transfers.values().any(|transfer| transfer.pieces.contains(&piece));
        let mut rarest: Vec<(u16, PieceIndex)> = Vec::new();
        for range in pulls.map(Want::open) {
            let words = range.start / 64..range.end.div_ceil(64);
            let pieces = words.flat_map(|index| pieces_of(index, self.unasked(index, &range)));
            let pieces = pieces.filter(|piece| !coming(piece.0));
            rarest.extend(pieces.map(|piece| (self.availability.of(piece), piece)));
        }
        // One want may lie within another.
        let most = MAX_RUNS * self.wants.len();
        if rarest.len() > most {
            rarest.select_nth_unstable(most);
            rarest.truncate(most);
        }
        rarest.sort_unstable();
        rarest.dedup();
        rarest.truncate(MAX_RUNS);
        rarest.into_iter().map(|(_, piece)| piece).collect()
    }
}
