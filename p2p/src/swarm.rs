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
//! * `blob`, `blobs`, `table`: what is known of a blob, of peers, of requests under way
//! * `policy`: the numbers

mod blob;
mod blobs;
mod event;
mod lease;
#[cfg(test)]
mod limited;
mod peers;
mod pick;
mod policy;
#[cfg(test)]
mod rules;
mod seed;
#[cfg(test)]
mod simulation;
mod table;
#[cfg(test)]
mod tests;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::discovery::{Holder, Holding};
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::rate::{Buckets, Rates};

pub use event::{Action, CloseReason, Event, FoundPeers, PieceSource, TransferId, WantId};
pub use policy::Policy;

use blob::{BlobState, Want};
use blobs::Blobs;
use lease::Silence;
use peers::Offence;
use pick::Mean;
use table::{Peers, Slot};
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
    /// The numbers of the policy; those of simulation unless a simulation varies them.
    pub policy: Policy,
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
            policy: Policy::default(),
            ask_seeds: false,
            seed: 0,
        }
    }
}

/// Blobs of at most so many pieces do not wait for a batch.
const SMALL: u32 = 8;
/// A swarm of which discovery has named so many is a large one: messages are fewer there, since their number grows with it.
const MANY: usize = 64;
/// Pieces at the beginning of a pull, and at its end, that are told soon in a large swarm, too: the first ones set uplinks going that are
/// idle, the last ones let others end. Simulated, that takes 1,000 nodes from 0.962 of the bound to 0.975, for 8 % more messages.
const ENDS: u32 = 32;
/// Between ticks of a scheduler that waits for something; where all that matters takes longer; and of one that is idle.
const TICK: Duration = Duration::from_millis(20);
const UNHURRIED_TICK: Duration = Duration::from_millis(50);
const IDLE_TICK: Duration = Duration::from_millis(500);
/// So many pieces are told to a peer that has all of them, so that it knows how far this node is.
const MANY_UNTOLD: usize = 32;
/// A complete blob may be closed though peers trade it when none has asked for a piece for so long.
const UNASKED: Duration = Duration::from_secs(60);

/// The state of one node's part in all swarms.
#[derive(Debug)]
pub struct Swarm {
    me: PeerId,
    config: SwarmConfig,
    rng: fastrand::Rng,
    now: Duration,
    blobs: Blobs,
    /// The blobs of which something is wanted and missing, under way, or to be told: all that requests and ticks are about.
    busy: Vec<Digest>,
    peers: Peers,
    dialing: BTreeSet<PeerId>,
    /// Peers whose connection broke while they owed pieces, and when: if they do not come back, they are reported.
    broken: BTreeMap<PeerId, Duration>,
    /// Peers that could not be dialled, and until when that is said of blobs for which nobody has tried it: discovery does not name them any more.
    unreachable: BTreeMap<PeerId, Duration>,
    /// When peers were told of new pieces last.
    told: Duration,
    offences: BTreeMap<PeerId, Offence>,
    uploads: Uploads,
    upload_limit: Buckets,
    download_limit: Buckets,
    in_flight: u32,
    in_flight_bytes: u64,
    mean: Mean,
    silence: Silence,
    unleased: u32,
    next_transfer: u64,
    /// When idle connections are looked for next.
    idle_check: Duration,
    /// Used by every choice of a peer.
    candidates: Vec<(Duration, u32, Slot)>,
    /// Used by every look for requests.
    open_wants: Vec<pick::OpenWant>,
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
            blobs: Blobs::default(),
            busy: Vec::new(),
            peers: Peers::default(),
            dialing: BTreeSet::new(),
            broken: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            told: Duration::ZERO,
            offences: BTreeMap::new(),
            uploads: Uploads::new(config.upload_slots.max(1), &config.policy),
            upload_limit: Buckets::default(),
            download_limit: Buckets::default(),
            in_flight: 0,
            in_flight_bytes: 0,
            mean: Mean::default(),
            silence: Silence::default(),
            unleased: 0,
            next_transfer: 0,
            idle_check: Duration::ZERO,
            candidates: Vec::new(),
            open_wants: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// Takes what happened at `now`, a time since any fixed moment that never goes back, and says what is to be done, in
    /// that order.
    #[must_use = "an action that nobody carries out is lost: the scheduler believes it done"]
    pub fn on_event(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.on_event_into(now, event, &mut actions);
        actions
    }

    /// Does what [`Self::on_event`] does; adds to `actions`, whose memory can be used again and again.
    pub fn on_event_into(&mut self, now: Duration, event: Event, actions: &mut Vec<Action>) {
        std::mem::swap(&mut self.actions, actions);
        self.now = self.now.max(now);
        // Most events are about one side of the exchange only, and the most frequent one about a single peer.
        let (asks, serves) = match &event {
            Event::Have { .. } => (false, false),
            Event::Request { .. } | Event::Cancel { .. } | Event::Sent { .. } => (false, true),
            Event::Tick | Event::PeerDown(_) | Event::NotHere { .. } => (true, true),
            _ => (true, false),
        };
        let digest = event.digest();
        self.take(event);
        if let Some(digest) = digest
            && let Some(blob) = self.blobs.get_mut(&digest).filter(|blob| !blob.is_busy && blob.needs_ticks())
        {
            blob.is_busy = true;
            self.busy.push(digest);
        }
        if asks {
            self.fill_requests();
            self.download_limit.account(self.now);
        }
        if serves {
            self.grant_uploads();
            self.invite(None);
        }
        std::mem::swap(&mut self.actions, actions);
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
        self.blobs.get(digest).is_some_and(|blob| blob.flights.of(piece).any(|flight| flight.peer == peer))
    }

    /// Whether connections with `peer` are refused for now.
    pub fn is_banned(&self, now: Duration, peer: &PeerId) -> bool {
        self.offences.get(peer).is_some_and(|offence| now < offence.banned_until)
    }

    /// Whether something is wanted, so that ticks are due every few milliseconds.
    pub fn is_busy(&self) -> bool {
        self.holds_back() || self.busy.iter().filter_map(|digest| self.blobs.get(digest)).any(BlobState::needs_ticks)
    }

    /// When the next tick is due. In a large swarm, where much is told less often and no read waits, that is later.
    pub fn tick_pause(&self) -> Duration {
        let mut pause = IDLE_TICK;
        for blob in self.busy.iter().filter_map(|digest| self.blobs.get(digest)).filter(|blob| blob.needs_ticks()) {
            let unhurried = blob.known.len() >= MANY && !blob.has_reads();
            pause = pause.min(if unhurried { UNHURRIED_TICK } else { TICK });
        }
        if self.holds_back() { pause.min(TICK) } else { pause }
    }

    /// Number of blobs of which something is wanted and missing.
    pub fn active_blobs(&self) -> usize {
        self.busy.iter().filter_map(|digest| self.blobs.get(digest)).filter(|blob| blob.is_active()).count()
    }

    /// Whether pieces of that blob are wanted and missing.
    pub fn is_active(&self, digest: &Digest) -> bool {
        self.blobs.get(digest).is_some_and(BlobState::is_active)
    }

    /// Whether nothing of that blob is missing that somebody wants, under way, or asked for by peers, so that it may be
    /// closed. Peers that trade it are told, and greet again when they want more.
    pub fn is_quiet(&self, digest: &Digest) -> bool {
        let asked = |last: Duration| self.now < last + UNASKED;
        self.is_idle(digest)
            && self.blobs.get(digest).is_none_or(|blob| {
                !blob.trades.values().any(|trade| asked(trade.last_request) && !trade.have.is_full())
            })
    }

    /// The same, whether or not peers asked lately and may come back.
    pub fn is_idle(&self, digest: &Digest) -> bool {
        self.blobs.get(digest).is_none_or(|blob| {
            !blob.is_active()
                && blob.flights.is_empty()
                && blob.origin.transfers.is_empty()
                && !blob.find.asking
                && self.uploads.is_quiet(digest)
        })
    }

    /// When a piece of that blob came last, if something of it is wanted and missing.
    pub fn waits_since(&self, digest: &Digest) -> Option<Duration> {
        self.blobs.get(digest).filter(|blob| blob.is_active()).map(|blob| blob.last_progress)
    }

    /// Whom this node knows to have some or all of a blob that is open: where discovery or a peer named it, and who trades
    /// it with this node now.
    pub fn holders_of(&self, digest: &Digest) -> (Vec<Holder>, Vec<(PeerId, Holding)>) {
        let Some(blob) = self.blobs.get(digest) else { return Default::default() };
        let named = blob.known.iter().filter(|(_, known)| !known.failed);
        let named = named.map(|(&peer, known)| Holder::new(peer, known.address, known.holding));
        let trading = blob.trades.iter().filter(|(_, trade)| !trade.have.is_empty());
        let holding = |have: &Bitfield| if have.is_full() { Holding::Complete } else { Holding::Partial };
        (named.collect(), trading.map(|(_, trade)| (trade.peer, holding(&trade.have))).collect())
    }

    /// Number of connected peers that take part in that blob.
    pub fn peers_of(&self, digest: &Digest) -> usize {
        self.blobs.get(digest).map_or(0, |blob| blob.trades.len())
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Opened { digest, layout, have, verified } => {
                self.blobs.open(digest, || BlobState::new(layout, have, verified));
            }
            Event::Closed(digest) => self.closed(digest),
            Event::OriginKnown(digest) => self.origin_known(digest),
            Event::Want { digest, id, pieces, priority } => {
                self.want(digest, id, pieces, priority);
            }
            Event::Unwant { digest, id } => self.unwant(digest, id),
            Event::PeerUp(peer) => self.peer_up(peer),
            Event::PeerDown(peer) => self.peer_down(peer),
            Event::DialFailed(peer) => self.dial_failed(peer),
            Event::Hello { peer, digest, have } => self.hello(peer, digest, have),
            Event::Have { peer, digest, pieces } => self.peer_has(peer, digest, &pieces),
            Event::NotHere { peer, digest, piece } => self.not_here(peer, digest, piece),
            Event::Request { peer, digest, piece, urgent } => self.requested(peer, digest, piece, urgent),
            Event::Cancel { peer, digest, piece } => {
                if let Some(slot) = self.peers.slot(&peer) {
                    self.uploads.cancel(slot, digest, piece);
                }
            }
            Event::Free { peer, digest } => self.invited(peer, digest),
            Event::Sent { peer } => {
                if let Some(slot) = self.peers.slot(&peer) {
                    self.uploads.sent(self.now, slot);
                }
            }
            Event::Stored { digest, piece, source } => self.stored(digest, piece, source),
            Event::Bad { peer, digest, piece } => self.bad(peer, digest, piece),
            Event::Unusable { peer, digest, piece } => self.unusable(peer, digest, piece),
            Event::FindAgain(digest) => self.find_again(digest),
            Event::SeedAnswered { digest, seed } => self.seed_answered(digest, seed.as_ref()),
            Event::Found { digest, found } => self.found(digest, found),
            Event::Told { digest, told } => self.told(digest, &told),
            Event::Verifiable { digest, verifiable } => {
                if let Some(blob) = self.blobs.get_mut(&digest) {
                    blob.verifiable |= verifiable;
                    if std::mem::take(&mut blob.metainfo_pending) && verifiable {
                        self.forgive_unverifiable(digest);
                    }
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

    fn closed(&mut self, digest: Digest) {
        if !self.is_quiet(&digest) {
            return;
        }
        if let Some(blob) = self.blobs.remove(&digest) {
            let tell = |trade: &table::Trade| Action::SayNotHere { peer: trade.peer, digest, piece: None };
            self.actions.extend(blob.trades.values().map(tell));
        }
        self.busy.retain(|busy| *busy != digest);
    }

    fn want(&mut self, digest: Digest, id: WantId, pieces: Range<u32>, priority: Priority) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if !blob.is_active() {
            blob.last_progress = self.now;
            blob.origin.begin(self.now);
        }
        if priority == Priority::Fault {
            blob.origin.urgent_told = false;
        }
        let pieces = pieces.start..pieces.end.min(blob.layout.piece_count());
        blob.wants.insert(id, Want::new(pieces, priority, self.now, &blob.have));
        if blob.is_active() {
            self.join(digest);
        }
    }

    fn unwant(&mut self, digest: Digest, id: WantId) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.wants.remove(&id);
        let unwanted = |piece: &u32| !blob.wants.values().any(|want| want.pieces.contains(piece));
        let pieces: Vec<u32> = blob.flights.iter().map(|flight| flight.piece).filter(unwanted).collect();
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
        blob.last_arrival = Some(now);
        match from {
            Some(_) => {
                blob.origin.peer_gave(now);
                blob.seed_gave(now);
            }
            None => blob.origin.progress(piece, now),
        }
        if blob.store(piece) {
            blob.origin.note_piece(now);
            blob.fresh.push(piece);
            let (pieces, done) = (blob.layout.piece_count(), blob.have.count());
            let at_an_end = done.min(pieces - done) < ENDS;
            let batch = match (pieces, blob.known.len()) {
                (0..=SMALL, _) => Duration::ZERO,
                _ if at_an_end => self.config.policy.have_batch,
                (_, 0..MANY) => self.config.policy.have_batch,
                _ => self.config.policy.have_batch_of_many,
            };
            // The first of a batch is told at once.
            let due = if batch.is_zero() { now } else { now.max(self.told + batch) };
            blob.fresh_due = Some(blob.fresh_due.map_or(due, |before| before.min(due)));
            self.announce(digest, Holding::Partial);
            self.tell_news(digest);
        }
        self.tend_imports(digest);
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
        blob.unstore(pieces);
        // What a former process left was announced without this scheduler.
        let was_complete = blob.verified || blob.announced == Some(Holding::Complete);
        let withdraws = was_complete && !blob.have.is_full();
        blob.verified = false;
        blob.origin_only |= origin_only;
        if withdraws {
            blob.announced = None;
        }
        blob.fresh.clear();
        blob.trades.values_mut().for_each(|trade| trade.untold.clear());
        let flying: Vec<u32> = blob.flights.iter().map(|flight| flight.piece).collect();
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

    /// Tells peers of new pieces when the batch is due. Batches of all blobs begin together, so that what is told of several is one
    /// message to who trades them.
    fn tell_news(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if blob.fresh_due.is_none_or(|due| self.now < due) {
            return;
        }
        blob.fresh_due = None;
        self.told = self.now;
        let fresh = std::mem::take(&mut blob.fresh);
        let greeted = &blob.greeted;
        for (_, trade) in blob.trades.iter_mut().filter(|(slot, _)| greeted.contains(slot)) {
            trade.untold.extend_from_slice(&fresh);
            if fresh.iter().any(|&piece| !trade.have.get(piece)) || trade.untold.len() >= MANY_UNTOLD {
                let pieces = std::mem::take(&mut trade.untold);
                self.actions.push(Action::SayHave { peer: trade.peer, digest, pieces });
            }
        }
        self.invite(Some(digest));
    }

    fn tick(&mut self) {
        let blobs = &mut self.blobs;
        self.busy.retain(|digest| {
            blobs.get_mut(digest).is_some_and(|blob| {
                blob.is_busy = blob.needs_ticks();
                blob.is_busy
            })
        });
        for at in 0..self.busy.len() {
            let digest = self.busy[at];
            if let Some(blob) = self.blobs.get_mut(&digest) {
                blob.return_peers(self.now);
            }
            self.tell_news(digest);
            self.find_if_due(digest);
            self.connect(digest);
            self.watch_flights(digest);
            self.tend_imports(digest);
            self.watch_seed(digest);
            self.consider_origin(digest);
        }
        self.report_lost();
        self.close_idle_peers();
    }
}
