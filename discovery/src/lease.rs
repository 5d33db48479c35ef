//! The lease book of one blob: who may fetch which pieces from the origin, so that a swarm fetches it about once.
//!
//! A pure state machine: no clock, no sockets. The policy is that of the simulations in `ARCHITECTURE.md`: runs of two
//! pieces, lowest first, at most eight streams at once, the next one to the asker with the fewest. Of one piece at most
//! one live lease exists at any time; a piece that a read waits for ("urgent") is granted beyond the stream limit, but
//! not while somebody else holds it. What a peer fetched stays fetched for as long as that peer is there.
//!
//! Who asks the book is told apart by [`PeerId`]; that a peer died, left or restarted is told to it by
//! [`LeaseBook::forget`]. A lease that outlives its term is free for others, and its holder is barred for a while if
//! others ask. All of it is lost with the tracker: then what the swarm still lacks is leased anew.

mod ranges;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use lapwing_p2p::discovery::{Lease, LeaseReply};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};

use self::ranges::Runs;
use crate::limits::{
    ASKER_ACTIVE, BOOK_IDLE, EXPIRY_BAR, FAILURE_BAR, FIRST_TERM, FLOOR_BYTES_PER_S, LEASE_RUN, LEASE_STREAMS,
    MAX_LAPSED, MAX_LESSEES, MAX_TERM, MAX_WAIT, MIN_TERM, MIN_WAIT, TERM_OVER_MEAN, URGENT_STREAMS, URGENT_WAIT,
    WAIT_PER_ASKER,
};

/// What an asker wants.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The pieces it lacks: disjoint runs, ascending, within the blob.
    pub missing: &'a [Range<u32>],
    /// The pieces that a read waits for, in the same form.
    pub urgent: &'a [Range<u32>],
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

/// A lease that was granted and not settled.
#[derive(Debug, Clone)]
struct Grant {
    peer: PeerId,
    run: Range<u32>,
    granted: Duration,
    deadline: Duration,
    urgent: bool,
}

#[derive(Debug, Clone, Default)]
struct Asker {
    /// Leases it got in all, urgent ones aside.
    leases: u64,
    asked: Duration,
    /// Until then it counts as waiting for a stream.
    waits_until: Duration,
    barred_until: Duration,
}

/// Leases of one blob.
#[derive(Debug)]
pub struct LeaseBook {
    layout: PieceLayout,
    live: BTreeMap<u64, Grant>,
    /// The pieces of `live`.
    leased: Runs,
    /// Expired leases, oldest first: their holders may still finish.
    lapsed: VecDeque<(u64, Grant)>,
    fetched: HashMap<PeerId, Runs>,
    /// The union of `fetched`.
    fetched_by_any: Runs,
    askers: HashMap<PeerId, Asker>,
    lessees: Vec<PeerId>,
    /// Smoothed time that one piece takes.
    piece_time: Option<Duration>,
    last_settled: Option<Duration>,
    last_asked: Duration,
}

impl LeaseBook {
    /// An empty book for a blob cut like this.
    pub fn new(layout: PieceLayout) -> Self {
        Self {
            layout,
            live: BTreeMap::new(),
            leased: Runs::default(),
            lapsed: VecDeque::new(),
            fetched: HashMap::new(),
            fetched_by_any: Runs::default(),
            askers: HashMap::new(),
            lessees: Vec::new(),
            piece_time: None,
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

    /// Pieces that live nodes fetched from the origin.
    pub fn fetched(&self) -> u32 {
        self.fetched_by_any.count()
    }

    /// Every peer that holds or held a lease, dead ones included; at most [`MAX_LESSEES`].
    pub fn lessees(&self) -> &[PeerId] {
        &self.lessees
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

    /// Answers `peer`; a lease that is granted is called `id`, which must be new.
    pub fn ask(&mut self, now: Duration, peer: PeerId, wanted: Wanted<'_>, id: u64) -> LeaseReply {
        self.expire(now);
        self.last_asked = now;
        let asker = self.askers.entry(peer).or_default();
        asker.asked = now;
        asker.waits_until = Duration::ZERO;
        if let Some(run) = self.first_free(wanted.urgent) {
            let streams = self.live.values().filter(|grant| grant.urgent).count();
            return if streams < URGENT_STREAMS { self.grant(now, peer, run, true, id) } else { self.pause() };
        }
        if self.any_under_way(wanted.urgent) {
            return LeaseReply::Wait(URGENT_WAIT);
        }
        match self.first_free(wanted.missing) {
            Some(run) if self.has_turn(now, peer) => self.grant(now, peer, run, false, id),
            Some(_) => {
                let pause = self.pause_length();
                if let Some(asker) = self.askers.get_mut(&peer) {
                    // Twice: one late poll does not lose the turn.
                    asker.waits_until = now + 2 * pause + MIN_WAIT;
                }
                LeaseReply::Wait(pause)
            }
            None if self.any_under_way(wanted.missing) => self.pause(),
            None => LeaseReply::Exhausted,
        }
    }

    /// Ends lease `id`: the first `fetched` pieces of its run are with `peer`, the rest is free. A lease nobody knows
    /// any more is no error: the tracker may have restarted.
    pub fn settle(&mut self, now: Duration, peer: PeerId, id: u64, fetched: u32) -> Result<(), SettleError> {
        let late = self.lapsed.iter().position(|(lapsed, _)| *lapsed == id);
        let known = self.live.get(&id).or_else(|| late.and_then(|at| self.lapsed.get(at)).map(|(_, grant)| grant));
        let Some(grant) = known.cloned() else { return Ok(()) };
        if grant.peer != peer {
            return Err(SettleError::NotTheHolder(id));
        }
        let count = grant.run.end - grant.run.start;
        if fetched > count {
            return Err(SettleError::TooMany { lease: id, count, fetched });
        }
        match late {
            Some(at) => drop(self.lapsed.remove(at)),
            None => {
                self.live.remove(&id);
                self.leased.remove(grant.run.clone());
            }
        }
        if fetched > 0 {
            let run = grant.run.start..grant.run.start + fetched;
            self.fetched.entry(peer).or_default().insert(run.clone());
            self.fetched_by_any.insert(run);
            self.last_settled = Some(now);
            self.observe(now.saturating_sub(grant.granted) / fetched);
        } else {
            self.bar(peer, now + FAILURE_BAR);
        }
        Ok(())
    }

    /// Frees what outlived its term, and forgets askers that went away. Returns how many leases expired.
    pub fn expire(&mut self, now: Duration) -> usize {
        let due: Vec<u64> = self.live.iter().filter(|(_, grant)| grant.deadline <= now).map(|(id, _)| *id).collect();
        for id in &due {
            let Some(grant) = self.live.remove(id) else { continue };
            self.leased.remove(grant.run.clone());
            self.bar(grant.peer, now + EXPIRY_BAR);
            if self.last_settled.is_none_or(|settled| settled < grant.granted) {
                // Nobody got anything meanwhile: the origin is slow rather than this peer.
                self.observe((grant.deadline - grant.granted) / (grant.run.end - grant.run.start));
            }
            self.lapsed.push_back((*id, grant));
            if self.lapsed.len() > MAX_LAPSED {
                self.lapsed.pop_front();
            }
        }
        due.len()
    }

    /// Forgets askers that have not asked for a while; what they fetched stays theirs.
    pub fn forget_inactive(&mut self, now: Duration) {
        let live = &self.live;
        self.askers.retain(|peer, asker| {
            asker.barred_until > now
                || now.saturating_sub(asker.asked) < 2 * ASKER_ACTIVE
                || live.values().any(|grant| grant.peer == *peer)
        });
    }

    /// `peer` died, left, restarted or gave the blob up: its leases are free, and what only it fetched may be leased
    /// again.
    pub fn forget(&mut self, peer: PeerId) {
        self.askers.remove(&peer);
        self.lapsed.retain(|(_, grant)| grant.peer != peer);
        let leased = &mut self.leased;
        self.live.retain(|_, grant| {
            if grant.peer == peer {
                leased.remove(grant.run.clone());
            }
            grant.peer != peer
        });
        if self.fetched.remove(&peer).is_some() {
            self.fetched_by_any = Runs::default();
            for run in self.fetched.values().flat_map(Runs::iter) {
                self.fetched_by_any.insert(run);
            }
        }
    }

    /// The lowest run of at most [`LEASE_RUN`] pieces that is wanted, not fetched and not leased.
    fn first_free(&self, wanted: &[Range<u32>]) -> Option<Range<u32>> {
        wanted.iter().find_map(|run| {
            let mut rest = run.clone();
            // At most one round for each live lease, since a round passes over at least one.
            while let Some(gap) = self.fetched_by_any.first_gap(rest.clone()) {
                if let Some(free) = self.leased.first_gap(gap.clone()) {
                    return Some(free.start..free.end.min(free.start + LEASE_RUN));
                }
                rest.start = gap.end;
            }
            None
        })
    }

    /// Whether some of it is under way, and nobody has it yet. To be asked when nothing of it is free: then there are no
    /// more gaps in what is fetched than live leases.
    fn any_under_way(&self, wanted: &[Range<u32>]) -> bool {
        wanted.iter().any(|run| {
            let mut rest = run.clone();
            while let Some(gap) = self.fetched_by_any.first_gap(rest.clone()) {
                if self.leased.intersects(gap.clone()) {
                    return true;
                }
                rest.start = gap.end;
            }
            false
        })
    }

    fn leases_of(&self, peer: PeerId) -> usize {
        self.live.values().filter(|grant| grant.peer == peer && !grant.urgent).count()
    }

    /// Whether a stream is free that nobody has a better claim to.
    fn has_turn(&mut self, now: Duration, peer: PeerId) -> bool {
        let free = LEASE_STREAMS.saturating_sub(self.live.values().filter(|grant| !grant.urgent).count());
        if free == 0 || !self.may_be_lessee(peer) {
            return false;
        }
        let mine = self.askers.get(&peer).cloned().unwrap_or_default();
        let mut others = self.askers.iter().filter(|(other, asker)| **other != peer && asker.barred_until <= now);
        if mine.barred_until > now && others.clone().any(|(_, asker)| now.saturating_sub(asker.asked) < ASKER_ACTIVE) {
            return false;
        }
        let live = self.leases_of(peer);
        // One lease more than another is no reason to leave a stream idle until that one polls.
        let before_me = |(other, asker): &(&PeerId, &Asker)| {
            asker.waits_until >= now && {
                let theirs = self.leases_of(**other);
                theirs < live || (theirs == live && asker.leases + 1 < mine.leases)
            }
        };
        others.by_ref().filter(before_me).take(free).count() < free
    }

    /// Whether `peer` may become a lessee: an answer can name only so many.
    fn may_be_lessee(&mut self, peer: PeerId) -> bool {
        if self.lessees.contains(&peer) || self.lessees.len() < MAX_LESSEES {
            return true;
        }
        let gone = |peer: &PeerId| !self.askers.contains_key(peer) && !self.fetched.contains_key(peer);
        match self.lessees.iter().position(gone) {
            Some(at) => {
                self.lessees.remove(at);
                true
            }
            None => false,
        }
    }

    fn grant(&mut self, now: Duration, peer: PeerId, run: Range<u32>, urgent: bool, id: u64) -> LeaseReply {
        let count = run.end - run.start;
        let term = self.term(&run);
        if !self.lessees.contains(&peer) {
            if !self.may_be_lessee(peer) {
                return LeaseReply::Wait(MAX_WAIT);
            }
            self.lessees.push(peer);
        }
        if !urgent && let Some(asker) = self.askers.get_mut(&peer) {
            asker.leases += 1;
        }
        self.leased.insert(run.clone());
        let lease = Lease::new(id, PieceIndex(run.start), count, term);
        self.live.insert(id, Grant { peer, run, granted: now, deadline: now + term, urgent });
        LeaseReply::Granted(lease)
    }

    fn term(&self, run: &Range<u32>) -> Duration {
        let count = run.end - run.start;
        let term = match self.piece_time {
            Some(mean) => mean.saturating_mul(TERM_OVER_MEAN * count).max(MIN_TERM),
            None => {
                let bytes = self.layout.piece_length() * u64::from(count);
                Duration::from_millis(bytes * 1000 / FLOOR_BYTES_PER_S).max(FIRST_TERM)
            }
        };
        term.min(MAX_TERM)
    }

    fn observe(&mut self, piece: Duration) {
        self.piece_time = Some(self.piece_time.map_or(piece, |mean| (mean * 3 + piece) / 4));
    }

    fn bar(&mut self, peer: PeerId, until: Duration) {
        let asker = self.askers.entry(peer).or_default();
        asker.barred_until = asker.barred_until.max(until);
    }

    /// Half a piece's time, longer the more askers there are, so that polling stays cheap.
    fn pause_length(&self) -> Duration {
        let half_piece = self.piece_time.unwrap_or_default() / 2;
        let askers = u32::try_from(self.askers.len()).unwrap_or(u32::MAX);
        half_piece.clamp(MIN_WAIT, 3 * MIN_WAIT).max(WAIT_PER_ASKER.saturating_mul(askers)).min(MAX_WAIT)
    }

    fn pause(&self) -> LeaseReply {
        LeaseReply::Wait(self.pause_length())
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "pieces are wanted as lists of runs, and one run is a list")]
mod tests;
