//! The scheduler: which piece comes from whom, and who is sent what.
//!
//! Deterministic: it has no socket and no clock. [`Swarm::on_event`] takes the time and what happened, and gives what
//! is to be done; equal seeds and events give equal actions. One scheduler serves all blobs of a node, since upload
//! slots and the budget of requests are shared by them.
//!
//! The policy and its numbers come from simulation; `ARCHITECTURE.md` has the measurements. In short: every holder of a
//! part is a source; rarest first within a window of 64 pieces; a small budget of requests; the origin only for what no
//! connected peer has, and only with a lease; reads that block go before everything.
//!
//! * `pick`: requests to peers, hedges, time-outs
//! * `lease`: discovery and the origin
//! * `seed`: seeds before the origin
//! * `peers`: connections, greetings, bans
//! * `upload`: requests from peers

mod blob;
mod event;
mod lease;
#[cfg(test)]
mod limited;
mod peers;
mod pick;
mod seed;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use crate::digest::Digest;
use crate::discovery::Holding;
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::rate::{Buckets, Rates};

pub use event::{Action, CloseReason, Event, FoundPeers, PieceSource, TransferId, WantId};

use blob::{BlobState, Want};
use peers::{Offence, Peer};
use pick::Mean;
use upload::Uploads;

/// Which bytes go first; most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody is blocked on it.
    Fault,
    /// Somebody will be soon.
    ReadAhead,
    /// It was needed at this point the last time.
    Prefetch,
    /// A whole blob is being pulled.
    Bulk,
    /// Nobody waits.
    Background,
}

/// The numbers that a node may set.
#[derive(Debug, Clone, Copy)]
pub struct SwarmConfig {
    /// How many peers are sent pieces at the same time.
    pub upload_slots: u32,
    /// Most peers that one blob trades with.
    pub max_peers_per_blob: usize,
    /// Most connections that this side opens.
    pub max_connections: usize,
    /// Most transfers without a lease, over all blobs.
    pub unleased_streams: u32,
    /// How long a peer is refused after three bad pieces.
    pub ban: Duration,
    /// Whether seeds are asked to fetch blobs before the origin is. A seed itself does not.
    pub ask_seeds: bool,
    /// Seed of all random choices.
    pub seed: u64,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        Self {
            upload_slots: 2,
            max_peers_per_blob: 16,
            max_connections: 512,
            unleased_streams: 2,
            ban: Duration::from_secs(600),
            ask_seeds: false,
            seed: 0,
        }
    }
}

/// How long new pieces are gathered before peers are told.
const HAVE_BATCH: Duration = Duration::from_millis(50);
/// Blobs of at most so many pieces do not wait for a batch.
const SMALL: u32 = 8;

/// The state of one node's part in all swarms.
#[derive(Debug)]
pub struct Swarm {
    me: PeerId,
    config: SwarmConfig,
    rng: fastrand::Rng,
    now: Duration,
    blobs: BTreeMap<Digest, BlobState>,
    peers: BTreeMap<PeerId, Peer>,
    dialing: BTreeSet<PeerId>,
    offences: BTreeMap<PeerId, Offence>,
    uploads: Uploads,
    upload_limit: Buckets,
    download_limit: Buckets,
    in_flight: u32,
    in_flight_bytes: u64,
    mean: Mean,
    /// Since when discovery has not answered.
    silent_since: Option<Duration>,
    unleased: u32,
    next_transfer: u64,
    actions: Vec<Action>,
}

impl Swarm {
    /// A scheduler that knows nothing yet.
    pub fn new(me: PeerId, config: SwarmConfig) -> Self {
        Self {
            me,
            config,
            rng: fastrand::Rng::with_seed(config.seed),
            now: Duration::ZERO,
            blobs: BTreeMap::new(),
            peers: BTreeMap::new(),
            dialing: BTreeSet::new(),
            offences: BTreeMap::new(),
            uploads: Uploads::new(config.upload_slots.max(1)),
            upload_limit: Buckets::default(),
            download_limit: Buckets::default(),
            in_flight: 0,
            in_flight_bytes: 0,
            mean: Mean::default(),
            silent_since: None,
            unleased: 0,
            next_transfer: 0,
            actions: Vec::new(),
        }
    }

    /// Takes what happened at `now`, a time since any fixed moment that never goes back, and says what is to be done, in
    /// that order.
    #[must_use = "an action that nobody carries out is lost: the scheduler believes it done"]
    pub fn on_event(&mut self, now: Duration, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        self.take(event);
        self.fill_requests();
        self.download_limit.account(self.now);
        self.grant_uploads();
        std::mem::take(&mut self.actions)
    }

    /// Limits from now on what is sent to peers and what is asked of them.
    pub fn set_limits(&mut self, now: Duration, upload: Rates, download: Rates) {
        self.upload_limit.set(now, upload);
        self.download_limit.set(now, download);
    }

    /// The limits of what is sent to peers and of what is asked of them.
    pub fn limits(&self) -> (Rates, Rates) {
        (self.upload_limit.rates(), self.download_limit.rates())
    }

    /// Whether a limit holds something back, so that ticks are due every few milliseconds.
    pub const fn holds_back(&self) -> bool {
        self.upload_limit.holds_back() || self.download_limit.holds_back()
    }

    /// For how long limits have held uploads back, and requests.
    pub fn throttled(&self) -> (Duration, Duration) {
        (self.upload_limit.throttled(), self.download_limit.throttled())
    }

    /// How urgently some of `pieces` are wanted; none if nobody wants them any more.
    pub fn urgency(&self, digest: &Digest, pieces: &Range<u32>) -> Option<Priority> {
        let overlaps = |want: &&Want| want.pieces.start < pieces.end && pieces.start < want.pieces.end;
        self.blobs.get(digest)?.wants.values().filter(overlaps).map(|want| want.priority).min()
    }

    /// Whether a piece from `peer` is waited for.
    pub fn expects(&self, peer: PeerId, digest: &Digest, piece: PieceIndex) -> bool {
        let flights = self.blobs.get(digest).and_then(|blob| blob.flights.get(&piece.0));
        flights.is_some_and(|flights| flights.iter().any(|flight| flight.peer == peer))
    }

    /// Whether connections with `peer` are refused for now.
    pub fn is_banned(&self, now: Duration, peer: &PeerId) -> bool {
        self.offences.get(peer).is_some_and(|offence| now < offence.banned_until)
    }

    /// Whether something is wanted, so that ticks are due every few milliseconds.
    pub fn is_busy(&self) -> bool {
        self.active_blobs() > 0 || self.holds_back() || self.blobs.values().any(|blob| blob.fresh_due.is_some())
    }

    /// Number of blobs of which something is wanted and missing.
    pub fn active_blobs(&self) -> usize {
        self.blobs.values().filter(|blob| blob.is_active()).count()
    }

    /// Whether pieces of that blob are wanted and missing.
    pub fn is_active(&self, digest: &Digest) -> bool {
        self.blobs.get(digest).is_some_and(BlobState::is_active)
    }

    /// Whether nothing of that blob is missing that somebody wants, traded or under way, so that it may be closed.
    pub fn is_quiet(&self, digest: &Digest) -> bool {
        self.blobs.get(digest).is_none_or(|blob| {
            !blob.is_active() && blob.trades.is_empty() && blob.origin.transfers.is_empty() && !blob.find.asking
        })
    }

    /// Number of connected peers that take part in that blob.
    pub fn peers_of(&self, digest: &Digest) -> usize {
        self.blobs.get(digest).map_or(0, |blob| blob.trades.len())
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Opened { digest, layout, have, verified } => {
                self.blobs.entry(digest).or_insert_with(|| BlobState::new(layout, have, verified));
            }
            Event::Closed(digest) => {
                if self.is_quiet(&digest) {
                    self.blobs.remove(&digest);
                }
            }
            Event::OriginKnown(digest) => self.origin_known(digest),
            Event::Want { digest, id, pieces, priority } => {
                self.want(digest, id, Want { pieces, priority, since: self.now });
            }
            Event::Unwant { digest, id } => self.unwant(digest, id),
            Event::PeerUp(peer) => self.peer_up(peer),
            Event::PeerDown(peer) => self.peer_down(peer),
            Event::DialFailed(peer) => self.dial_failed(peer),
            Event::Hello { peer, digest, have } => self.hello(peer, digest, have),
            Event::Have { peer, digest, pieces } => self.peer_has(peer, digest, &pieces),
            Event::NotHere { peer, digest, piece } => self.not_here(peer, digest, piece),
            Event::Request { peer, digest, piece, urgent } => self.requested(peer, digest, piece, urgent),
            Event::Cancel { peer, digest, piece } => self.uploads.cancel(peer, digest, piece),
            Event::Sent { peer } => self.uploads.sent(peer),
            Event::Stored { digest, piece, source } => self.stored(digest, piece, source),
            Event::Bad { peer, digest, piece } => self.bad(peer, digest, piece),
            Event::Unusable { peer, digest, piece } => self.unusable(peer, digest, piece),
            Event::FindAgain(digest) => self.find_again(digest),
            Event::SeedAnswered { digest, seed } => self.seed_answered(digest, seed.as_ref()),
            Event::Found { digest, found } => self.found(digest, found),
            Event::Verifiable { digest, verifiable } => {
                if let Some(blob) = self.blobs.get_mut(&digest) {
                    blob.verifiable |= verifiable;
                    blob.metainfo_pending = false;
                    self.consider_origin(digest);
                }
            }
            Event::Leased { digest, reply } => self.leased(digest, reply),
            Event::FirstByte { digest, transfer } => self.first_byte(digest, transfer),
            Event::TransferEnded { digest, transfer, outcome } => self.transfer_ended(digest, transfer, outcome),
            Event::Verified(digest) => self.verified(digest),
            Event::Dropped { digest, pieces, origin_only } => self.dropped(digest, &pieces, origin_only),
            Event::Tick => self.tick(),
        }
    }

    fn want(&mut self, digest: Digest, id: WantId, want: Want) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if !blob.is_active() {
            blob.last_progress = self.now;
        }
        if want.priority == Priority::Fault {
            blob.origin.urgent_told = false;
        }
        blob.wants.insert(id, want);
        if blob.is_active() {
            self.join(digest);
        }
    }

    fn unwant(&mut self, digest: Digest, id: WantId) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.wants.remove(&id);
        let unwanted = |piece: &u32| !blob.wants.values().any(|want| want.pieces.contains(piece));
        let pieces: Vec<u32> = blob.flights.keys().copied().filter(unwanted).collect();
        for piece in pieces {
            self.cancel_flights(digest, PieceIndex(piece), None);
        }
    }

    fn stored(&mut self, digest: Digest, piece: PieceIndex, source: PieceSource) {
        let from = match source {
            PieceSource::Peer(peer) => Some(peer),
            PieceSource::Origin => None,
        };
        self.note_arrival(digest, piece, from);
        if from.is_none() {
            self.note_overtaken(digest, piece);
        }
        self.cancel_flights(digest, piece, from);
        let now = self.now;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.last_progress = now;
        match from {
            Some(_) => {
                blob.origin.peer_gave();
                blob.seed_gave(now);
            }
            None => blob.origin.progress(piece, now),
        }
        if blob.have.set(piece) {
            blob.origin.note_piece(now);
            blob.fresh.push(piece);
            let batch = if blob.layout.piece_count() <= SMALL { Duration::ZERO } else { HAVE_BATCH };
            blob.fresh_due.get_or_insert(now + batch);
            self.announce(digest, Holding::Partial);
            self.tell_news(digest);
        }
    }

    fn verified(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.verified = true;
        if std::mem::take(&mut blob.origin_only) {
            // Peers were told that the pieces are not here while they were in doubt.
            blob.fresh = blob.have.iter().collect();
            blob.fresh_due = Some(self.now);
            self.tell_news(digest);
        }
        self.announce(digest, Holding::Complete);
    }

    fn dropped(&mut self, digest: Digest, pieces: &[PieceIndex], origin_only: bool) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        for &piece in pieces {
            blob.have.clear(piece);
        }
        // What a former process left was announced without this scheduler.
        let was_complete = blob.verified || blob.announced == Some(Holding::Complete);
        let withdraws = was_complete && !blob.have.is_full();
        blob.verified = false;
        blob.origin_only |= origin_only;
        if withdraws {
            blob.announced = None;
        }
        blob.fresh.clear();
        let flying: Vec<u32> = blob.flights.keys().copied().collect();
        if origin_only {
            flying.into_iter().for_each(|piece| self.cancel_flights(digest, PieceIndex(piece), None));
        }
        self.greet_again(digest);
        if withdraws {
            self.announce(digest, Holding::Partial);
        }
        self.consider_origin(digest);
    }

    /// Announces `holding` unless that or more was announced.
    fn announce(&mut self, digest: Digest, holding: Holding) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if blob.announced == Some(Holding::Complete) || blob.announced == Some(holding) {
            return;
        }
        blob.announced = Some(holding);
        self.actions.push(Action::Announce { digest, holding });
    }

    /// Tells peers of new pieces when the batch is due.
    fn tell_news(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if blob.fresh_due.is_none_or(|due| self.now < due) {
            return;
        }
        blob.fresh_due = None;
        let fresh = std::mem::take(&mut blob.fresh);
        for (&peer, trade) in blob.trades.iter().filter(|(peer, _)| blob.greeted.contains(peer)) {
            let pieces: Vec<PieceIndex> = fresh.iter().copied().filter(|&piece| !trade.have.get(piece)).collect();
            if !pieces.is_empty() {
                self.actions.push(Action::SayHave { peer, digest, pieces });
            }
        }
    }

    fn tick(&mut self) {
        let digests: Vec<Digest> = self
            .blobs
            .iter()
            .filter(|(_, blob)| blob.is_active() || blob.fresh_due.is_some() || !blob.flights.is_empty())
            .map(|(&digest, _)| digest)
            .collect();
        for digest in digests {
            self.tell_news(digest);
            self.find_if_due(digest);
            self.connect(digest);
            self.watch_flights(digest);
            self.watch_seed(digest);
            self.consider_origin(digest);
        }
        self.close_idle_peers();
    }
}
