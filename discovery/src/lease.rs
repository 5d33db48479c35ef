//! The lease book of one blob: who may fetch which pieces from the origin, so that a swarm fetches it about once.
//!
//! A pure state machine: no clock, no sockets. The policy is that of the simulations in `ARCHITECTURE.md`: short runs,
//! lowest first, at most eight streams at once over all blobs of an origin's site ([`sites`]), the next one to the asker
//! with the fewest. Of one piece at most one live lease exists at any time; a piece that a read waits for ("urgent") is
//! granted beyond the stream limit, but not while somebody else holds it. What a peer fetched stays fetched for as long
//! as that peer is there, and for those who do not find it useless.
//!
//! * While a seed asks, others get none, urgent pieces aside; a seed that fails is barred like anybody.
//! * Where further copies are allowed, and everything has been leased once, the rarest pieces are leased again.
//! * An origin without ranges gets one leaseholder, who streams all of it.
//! * Who sits on pieces that nobody took from it waits until others have had their turn.
//! * Another zone is an origin, too: [`imports`] are leases to fetch from its peers.
//!
//! Who asks the book is told apart by [`PeerId`]; that a peer died, left or restarted is told to it by
//! [`LeaseBook::forget`]. A lease that outlives its term is free for others, and its holder is barred for a while if
//! others ask. All of it is lost with the tracker: then what the swarm still lacks is leased anew.
//!
//! * `lease/choose.rs`: which run; `lease/turns.rs`: whose turn; `lease/terms.rs`: how long

mod choose;
mod imports;
mod ranges;
pub mod sites;
mod terms;
mod turns;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use lapwing_p2p::discovery::{Lease, LeaseKind, LeaseReply, LeaseRequest, Settlement, Trouble};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};

use self::imports::Zone;
use self::ranges::Runs;
use self::sites::{BookId, SiteId, Sites};
use crate::limits::{
    ASKER_ACTIVE, BOOK_IDLE, EXPIRY_BAR, MAX_LAPSED, MAX_WAIT, MIN_WAIT, UNANNOUNCED, URGENT_STREAMS, URGENT_WAIT,
};

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Its key.
    pub peer: PeerId,
    /// Its zone, or empty.
    pub zone: &'a str,
    /// Whether it keeps blobs for others.
    pub seed: bool,
    /// Where its origin is.
    pub site: SiteId,
    /// Whether it may fetch from the origin at all: it stands on the origin's side, and no zone has all of the blob.
    pub may_fetch: bool,
}

/// A settlement that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettleError {
    /// Somebody else holds that lease.
    #[error("lease {0} is not the caller's")]
    NotTheHolder(u64),
    /// More pieces than the run has.
    #[error("lease {lease} is of {count} pieces, {fetched} cannot have been fetched")]
    TooMany {
        /// The lease.
        lease: u64,
        /// Pieces in its run.
        count: u32,
        /// Pieces claimed.
        fetched: u32,
    },
}

/// Why a run is leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Nobody has it.
    First,
    /// A read waits for it.
    Urgent,
    /// A further copy.
    Copy,
    /// All of the blob, in one stream.
    Whole,
    /// Over the border of the asker's zone.
    Import,
}

/// A lease that was granted and not settled.
#[derive(Debug, Clone)]
struct Grant {
    peer: PeerId,
    site: SiteId,
    /// That of the peer, by its number in the book.
    zone: Option<usize>,
    run: Range<u32>,
    granted: Duration,
    /// How long it holds while it is not known how long a piece takes.
    term: Duration,
    purpose: Purpose,
}

impl Grant {
    const fn count(&self) -> u32 {
        self.run.end - self.run.start
    }
}

#[derive(Debug, Clone, Default)]
struct Turn {
    seed: bool,
    /// Leases it got in all, urgent ones aside.
    leases: u64,
    /// Pieces that it brought in and that nobody has taken from it, as it says.
    unshared: u32,
    asked: Duration,
    /// Until then it counts as waiting for a stream of that site.
    waits_until: Duration,
    waits_for: Option<SiteId>,
    barred_until: Duration,
    /// Leases in a row that it gave back without any piece.
    failures: u32,
}

/// Leases of one blob.
#[derive(Debug)]
pub struct LeaseBook {
    id: BookId,
    layout: PieceLayout,
    live: BTreeMap<u64, Grant>,
    /// The pieces of `live`.
    leased: Runs,
    /// Leases that expired or were taken away, oldest first: their holders may still finish.
    lapsed: VecDeque<(u64, Grant)>,
    fetched: HashMap<PeerId, Runs>,
    /// The union of `fetched`.
    fetched_by_any: Runs,
    /// Pieces leased for further copies, whether they came or not; one that was leased so twice counts twice.
    copied: u64,
    askers: HashMap<PeerId, Turn>,
    lessees: Vec<PeerId>,
    zones: Vec<Zone>,
    /// The origin serves no ranges of this blob.
    whole: bool,
    /// Smoothed time that one piece takes from the origin.
    piece_time: Option<Duration>,
    /// The same over a border.
    import_time: Option<Duration>,
    last_settled: Option<Duration>,
    last_asked: Duration,
}

impl LeaseBook {
    /// An empty book for a blob cut like this, among those of `sites`.
    pub fn new(layout: PieceLayout, sites: &mut Sites) -> Self {
        Self {
            id: sites.next_book(),
            layout,
            live: BTreeMap::new(),
            leased: Runs::default(),
            lapsed: VecDeque::new(),
            fetched: HashMap::new(),
            fetched_by_any: Runs::default(),
            copied: 0,
            askers: HashMap::new(),
            lessees: Vec::new(),
            zones: Vec::new(),
            whole: false,
            piece_time: None,
            import_time: None,
            last_settled: None,
            last_asked: Duration::ZERO,
        }
    }

    /// How the blob is cut.
    pub const fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// Leases that are under way.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Leases that are under way: whose, of which pieces, since when.
    pub fn under_way(&self) -> impl Iterator<Item = (PeerId, Range<u32>, Duration)> + '_ {
        self.live.values().map(|grant| (grant.peer, grant.run.clone(), grant.granted))
    }

    /// Pieces that live nodes fetched from the origin.
    pub fn fetched(&self) -> u32 {
        self.fetched_by_any.count()
    }

    /// Every peer that holds or held a lease, dead ones included; at most
    /// [`MAX_LESSEES`](crate::limits::MAX_LESSEES).
    pub fn lessees(&self) -> &[PeerId] {
        &self.lessees
    }

    /// Every peer that fetches under a lease, and for [`UNANNOUNCED`](crate::limits::UNANNOUNCED) who did and has what came; one that does
    /// both comes twice.
    pub fn fetchers(&self, now: Duration) -> impl Iterator<Item = PeerId> + '_ {
        let recently = self.last_settled.filter(|settled| now.saturating_sub(*settled) < UNANNOUNCED);
        let done = recently.into_iter().flat_map(|_| self.fetched.keys().copied());
        self.live.values().map(|grant| grant.peer).chain(done)
    }

    /// Every peer that [`Self::forget`] would change something for.
    pub fn participants(&self) -> impl Iterator<Item = PeerId> + '_ {
        let fetchers = self.fetched.keys().filter(|peer| !self.askers.contains_key(*peer));
        self.askers.keys().chain(fetchers).copied()
    }

    /// Whether nobody asked for so long that the book is of no use any more.
    pub fn is_idle(&self, now: Duration) -> bool {
        self.live.is_empty() && now.saturating_sub(self.last_asked) >= BOOK_IDLE
    }

    /// Answers `asker`; a lease that is granted is called `id`, which must be new.
    pub fn ask(
        &mut self,
        now: Duration,
        asker: Asker<'_>,
        request: &LeaseRequest,
        id: u64,
        sites: &mut Sites,
    ) -> LeaseReply {
        self.expire(now, sites);
        self.last_asked = now;
        let turn = self.askers.entry(asker.peer).or_default();
        (turn.asked, turn.waits_until) = (now, Duration::ZERO);
        (turn.seed, turn.unshared) = (asker.seed, request.unshared);
        self.withdraw_lost(asker.peer, request);
        self.zone(asker.zone);
        if let Some(reply) = self.ask_import(now, asker, request, id, sites) {
            return reply;
        }
        let had = self.had_by_others(&request.useless);
        let had = had.as_ref().unwrap_or(&self.fetched_by_any);
        let length = self.run_length(sites, asker.site);
        let urgent = self.first_free(had, &request.urgent, length);
        let urgent_under_way = self.any_under_way(had, &request.urgent);
        // What another zone's peers offer is imported, not fetched again.
        let missing = without(&request.missing, &request.importable);
        let first = self.first_free(had, &missing, length);
        let under_way = self.any_under_way(had, &missing) || self.is_elsewhere(asker, request);
        let nothing = if under_way { LeaseReply::Wait(self.pause_length()) } else { LeaseReply::Exhausted };
        if !asker.may_fetch {
            return if first.is_some() { LeaseReply::Wait(self.pause_length()) } else { nothing };
        }
        let copy = !under_way && self.copy_pays(asker, request, sites);
        if (first.is_some() || urgent.is_some() || copy)
            && let Some(pause) = sites.get(asker.site).and_then(|site| site.pause(now))
        {
            return LeaseReply::Wait(pause.max(MIN_WAIT));
        }
        if self.whole {
            return match first.or(urgent) {
                Some(_) => self.ask_whole(now, asker, id, sites),
                None => nothing,
            };
        }
        if let Some(run) = urgent {
            let streams = self.live.values().filter(|grant| grant.purpose == Purpose::Urgent).count();
            return match streams < URGENT_STREAMS {
                true => self.grant(now, asker, run, Purpose::Urgent, id, sites),
                false => LeaseReply::Wait(self.pause_length()),
            };
        }
        if urgent_under_way {
            return LeaseReply::Wait(URGENT_WAIT);
        }
        match first {
            Some(run) => self.ask_stream(now, asker, run, Purpose::First, id, sites),
            None if under_way => nothing,
            None if !copy => nothing,
            None => match self.further_copy(asker, request, sites) {
                Some(run) => self.ask_stream(now, asker, run, Purpose::Copy, id, sites),
                None => LeaseReply::Wait(self.pause_length()),
            },
        }
    }

    /// One of the site's streams for `run`, if it is the asker's turn.
    fn ask_stream(
        &mut self,
        now: Duration,
        asker: Asker<'_>,
        run: Range<u32>,
        purpose: Purpose,
        id: u64,
        sites: &mut Sites,
    ) -> LeaseReply {
        if self.has_turn(now, asker, sites) && (purpose == Purpose::Import || !self.is_behind_seed(now, asker)) {
            return self.grant(now, asker, run, purpose, id, sites);
        }
        let pause = self.pause_length();
        // Twice: one late poll does not lose the turn.
        let until = now + 2 * pause + MIN_WAIT;
        if let Some(turn) = self.askers.get_mut(&asker.peer) {
            (turn.waits_until, turn.waits_for) = (until, Some(asker.site));
        }
        if let Some(site) = sites.get_mut(asker.site) {
            site.waits(self.id, until);
        }
        LeaseReply::Wait(pause)
    }

    fn ask_whole(&mut self, now: Duration, asker: Asker<'_>, id: u64, sites: &mut Sites) -> LeaseReply {
        if self.live.values().any(|grant| grant.purpose == Purpose::Whole) {
            return LeaseReply::Wait(self.pause_length());
        }
        self.ask_stream(now, asker, 0..self.layout.piece_count(), Purpose::Whole, id, sites)
    }

    fn grant(
        &mut self,
        now: Duration,
        asker: Asker<'_>,
        run: Range<u32>,
        purpose: Purpose,
        id: u64,
        sites: &mut Sites,
    ) -> LeaseReply {
        let peer = asker.peer;
        let is_import = purpose == Purpose::Import;
        if !is_import && !self.lessees.contains(&peer) {
            if !self.may_be_lessee(peer) {
                return LeaseReply::Wait(MAX_WAIT);
            }
            self.lessees.push(peer);
        }
        if purpose != Purpose::Urgent {
            sites.open(asker.site, self.id, peer);
            if let Some(turn) = self.askers.get_mut(&peer) {
                turn.leases += 1;
            }
        }
        if purpose == Purpose::Copy {
            self.copied += u64::from(run.end - run.start);
        }
        let zone = self.zone(asker.zone);
        match zone.and_then(|zone| self.zones.get_mut(zone)).filter(|_| is_import) {
            Some(zone) => zone.coming.insert(run.clone()),
            None => self.leased.insert(run.clone()),
        }
        let term = self.first_term(&run, purpose, asker.site, sites);
        let grant = Grant { peer, site: asker.site, zone, run, granted: now, term, purpose };
        let term = self.term(&grant);
        let kind = match purpose {
            Purpose::Whole => LeaseKind::Whole,
            Purpose::Import => LeaseKind::Import,
            Purpose::First | Purpose::Urgent | Purpose::Copy => LeaseKind::Origin,
        };
        let lease = Lease { id, first: PieceIndex(grant.run.start), count: grant.count(), term, kind };
        self.live.insert(id, grant);
        LeaseReply::Granted(lease)
    }

    /// Ends a lease of `peer`'s: the first pieces of its run are with it, the rest is free. A lease nobody knows any more
    /// is no error: the tracker may have restarted.
    pub fn settle(
        &mut self,
        now: Duration,
        peer: PeerId,
        settlement: &Settlement,
        sites: &mut Sites,
    ) -> Result<(), SettleError> {
        let (id, fetched) = (settlement.lease, settlement.fetched);
        let late = self.lapsed.iter().position(|(lapsed, _)| *lapsed == id);
        let known = self.live.get(&id).or_else(|| late.and_then(|at| self.lapsed.get(at)).map(|(_, grant)| grant));
        let Some(grant) = known.cloned() else { return Ok(()) };
        if grant.peer != peer {
            return Err(SettleError::NotTheHolder(id));
        }
        if fetched > grant.count() {
            return Err(SettleError::TooMany { lease: id, count: grant.count(), fetched });
        }
        match late {
            Some(at) => drop(self.lapsed.remove(at)),
            None => self.release(id, sites),
        }
        if fetched > 0 {
            let run = grant.run.start..grant.run.start + fetched;
            if let Some(zone) = grant.zone.and_then(|zone| self.zones.get_mut(zone)) {
                zone.bring(peer, run.clone());
            }
            if grant.purpose != Purpose::Import {
                self.fetched.entry(peer).or_default().insert(run.clone());
                self.fetched_by_any.insert(run);
            }
            self.learn(now, &grant, settlement, sites);
        }
        self.judge(now, &grant, settlement, sites);
        Ok(())
    }

    /// What a settlement tells of the site, and of how far its sender can be counted on.
    fn judge(&mut self, now: Duration, grant: &Grant, settlement: &Settlement, sites: &mut Sites) {
        match settlement.trouble {
            Some(Trouble::Busy(pause)) => {
                if let Some(site) = sites.get_mut(grant.site) {
                    site.asked_for_pause(now, grant.peer, pause);
                }
            }
            Some(Trouble::NoRanges) => self.whole = true,
            Some(Trouble::Refused) => self.bar_refused(now, grant.peer),
            Some(Trouble::Unavailable) | None if settlement.fetched == 0 => self.bar_failed(now, grant.peer),
            Some(Trouble::Unavailable) | None => {
                if let Some(turn) = self.askers.get_mut(&grant.peer) {
                    turn.failures = 0;
                }
            }
        }
    }

    /// Frees what outlived its term. Returns how many leases expired.
    pub fn expire(&mut self, now: Duration, sites: &mut Sites) -> usize {
        let is_due = |grant: &Grant| grant.granted + self.term(grant) <= now;
        let due: Vec<u64> = self.live.iter().filter(|(_, grant)| is_due(grant)).map(|(id, _)| *id).collect();
        for id in &due {
            let Some(grant) = self.live.get(id).cloned() else { continue };
            let term = self.term(&grant);
            self.release(*id, sites);
            self.bar(grant.peer, now + EXPIRY_BAR);
            if self.last_settled.is_none_or(|settled| settled < grant.granted) && grant.purpose != Purpose::Whole {
                // Nobody got anything meanwhile: the origin is slow rather than this peer.
                self.observe(term / grant.count(), grant.purpose);
            }
            self.lapse(*id, grant);
        }
        due.len()
    }

    /// Takes the leases of `peer` away, since it seems to be dead: others may have them at once. Should it live after
    /// all, what it settles still counts.
    pub fn steal(&mut self, peer: PeerId, sites: &mut Sites) {
        let theirs: Vec<u64> = self.live.iter().filter(|(_, grant)| grant.peer == peer).map(|(id, _)| *id).collect();
        for id in theirs {
            let Some(grant) = self.live.get(&id).cloned() else { continue };
            self.release(id, sites);
            self.lapse(id, grant);
        }
    }

    /// Forgets askers that have not asked for a while; what they fetched stays theirs.
    pub fn forget_inactive(&mut self, now: Duration) {
        let live = &self.live;
        self.askers.retain(|peer, turn| {
            turn.barred_until > now
                || now.saturating_sub(turn.asked) < 2 * ASKER_ACTIVE
                || live.values().any(|grant| grant.peer == *peer)
        });
    }

    /// `peer` died, left, restarted or gave the blob up: its leases are free, and what only it fetched may be leased
    /// again.
    pub fn forget(&mut self, peer: PeerId, sites: &mut Sites) {
        self.askers.remove(&peer);
        self.steal(peer, sites);
        self.lapsed.retain(|(_, grant)| grant.peer != peer);
        if self.fetched.remove(&peer).is_some() {
            self.fetched_by_any = union(self.fetched.values());
        }
        self.zones.iter_mut().for_each(|zone| zone.forget(peer));
    }

    /// A lease is over: its run and its stream are free.
    fn release(&mut self, id: u64, sites: &mut Sites) {
        let Some(grant) = self.live.remove(&id) else { return };
        match grant.zone.and_then(|zone| self.zones.get_mut(zone)).filter(|_| grant.purpose == Purpose::Import) {
            Some(zone) => zone.coming.remove(grant.run.clone()),
            None => self.leased.remove(grant.run.clone()),
        }
        // A whole blob may have been leased over runs that were under way.
        let others = self.live.values().filter(|other| other.purpose != Purpose::Import);
        others.for_each(|other| self.leased.insert(other.run.clone()));
        if grant.purpose != Purpose::Urgent {
            sites.close(grant.site, self.id, grant.peer);
        }
    }

    fn lapse(&mut self, id: u64, grant: Grant) {
        self.lapsed.push_back((id, grant));
        if self.lapsed.len() > MAX_LAPSED {
            self.lapsed.pop_front();
        }
    }
}

/// `runs` less those of `others`; both ascending and disjoint.
fn without(runs: &[Range<u32>], others: &[Range<u32>]) -> Vec<Range<u32>> {
    if others.is_empty() {
        return runs.to_vec();
    }
    let mut left = Runs::default();
    runs.iter().for_each(|run| left.insert(run.clone()));
    others.iter().for_each(|run| left.remove(run.clone()));
    left.iter().collect()
}

fn union<'a>(sets: impl Iterator<Item = &'a Runs>) -> Runs {
    let mut all = Runs::default();
    sets.flat_map(Runs::iter).for_each(|run| all.insert(run));
    all
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "pieces are wanted as lists of runs, and one run is a list")]
mod tests;
