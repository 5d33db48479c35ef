//! Peer exchange: whom to ask who has a blob while no tracker answers, and whom to believe what. Pure: no sockets, no clock.
//!
//! A node remembers peers of its group that it was connected to and where they listen ([`remembered`] keeps them over a
//! restart). When discovery is silent about a blob that is wanted, it asks some of those that are connected, and dials some
//! of those that are not; who is dialled is asked as soon as it has said where it is. Each peer is asked once in a search.
//!
//! An answer is believed only if it was asked for, and as a hint: an address must be one that a tracker may name, too, and
//! whoever is dialled there must prove to be the peer that was named. A peer is told what this node has or knows of a
//! blob that it can name by digest, like from a tracker, if it is of the same group, and not more often than
//! [`QUESTIONS_PER_SECOND`].

pub(crate) mod remembered;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::digest::Digest;
use crate::discovery::{Found, Holder, Statement, StatementKind, Vote, may_dial};
use crate::identity::PeerId;
use crate::limits::{MAX_QUESTIONS_AT_ONCE, MAX_REMEMBERED_PEERS, MAX_SEARCHES, QUESTIONS_PER_SECOND};
use crate::wire::telling::Telling;

/// Connected peers that are asked at once.
const ASKED: usize = 8;
/// Peers that are dialled for a search, if fewer are connected.
const DIALLED: usize = 4;
/// How long answers are taken, and newly connected peers asked.
const PATIENCE: Duration = Duration::from_secs(10);
/// A peer that could not be reached is not dialled again for so long.
const REDIAL: Duration = Duration::from_secs(30);

/// Something to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask a connected peer.
    Ask { peer: PeerId, digest: Digest },
    /// Connect to a remembered one.
    Dial { peer: PeerId, address: SocketAddr },
}

/// An answer that is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Disbelief {
    #[error("it was not asked")]
    Unasked,
    #[error("it names {0} holders that no peer can be")]
    Impossible(usize),
}

/// A connected peer that can be asked.
#[derive(Debug)]
struct Linked {
    link: u64,
    address: SocketAddr,
    /// Whether it is of this node's group.
    ours: bool,
    /// Questions that it may ask now, as of `counted`.
    questions: f64,
    counted: Duration,
}

/// A blob that is searched for.
#[derive(Debug)]
struct Search {
    until: Duration,
    asked: BTreeSet<PeerId>,
    waiting: BTreeSet<PeerId>,
    /// Who named which metainfo.
    votes: BTreeMap<(Digest, u64), BTreeSet<PeerId>>,
}

/// What a node knows of peers beside discovery.
#[derive(Debug)]
pub(crate) struct Exchange {
    me: PeerId,
    group: [u8; 32],
    linked: BTreeMap<PeerId, Linked>,
    /// Most recently met last.
    remembered: VecDeque<(PeerId, SocketAddr)>,
    /// Not dialled before that.
    barred: BTreeMap<PeerId, Duration>,
    searches: BTreeMap<Digest, Search>,
    random: fastrand::Rng,
    changed: bool,
}

impl Exchange {
    /// Of this node, which is in that group, with what it remembers, most recently met last.
    pub(crate) fn new(me: PeerId, group: [u8; 32], remembered: Vec<(PeerId, SocketAddr)>, seed: u64) -> Self {
        let skip = remembered.len().saturating_sub(MAX_REMEMBERED_PEERS);
        let others = remembered.into_iter().skip(skip).filter(|(peer, _)| *peer != me);
        Self {
            me,
            group,
            linked: BTreeMap::new(),
            remembered: others.collect(),
            barred: BTreeMap::new(),
            searches: BTreeMap::new(),
            random: fastrand::Rng::with_seed(seed),
            changed: false,
        }
    }

    /// Which group this node is of, as it says it to peers.
    pub(crate) const fn group(&self) -> [u8; 32] {
        self.group
    }

    /// A connected peer said where it listens and of which group it is.
    pub(crate) fn met(
        &mut self,
        now: Duration,
        peer: PeerId,
        link: u64,
        address: SocketAddr,
        group: [u8; 32],
    ) -> Vec<Step> {
        let (ours, questions) = (group == self.group, f64::from(MAX_QUESTIONS_AT_ONCE));
        let linked = Linked { link, address, ours, questions, counted: now };
        match self.linked.get_mut(&peer) {
            // Saying it again does not refill what it may ask.
            Some(known) if known.link == link => (known.address, known.ours) = (address, ours),
            _ => drop(self.linked.insert(peer, linked)),
        }
        if !ours {
            self.forget(peer);
            return Vec::new();
        }
        if address.port() != 0 {
            self.remember(peer, address);
        }
        self.barred.remove(&peer);
        let searches = self.searches.iter_mut().filter(|(_, search)| now < search.until);
        let news = searches.filter_map(|(&digest, search)| {
            let asks = search.asked.len() < ASKED + DIALLED && search.ask(peer);
            asks.then_some(Step::Ask { peer, digest })
        });
        news.collect()
    }

    /// A connection has ended.
    pub(crate) fn parted(&mut self, peer: PeerId, link: u64) {
        if self.linked.get(&peer).is_some_and(|linked| linked.link == link) {
            self.linked.remove(&peer);
            for search in self.searches.values_mut() {
                search.waiting.remove(&peer);
            }
        }
    }

    /// A peer could not be reached.
    pub(crate) fn unreachable(&mut self, now: Duration, peer: PeerId) {
        if self.remembered.iter().any(|(known, _)| *known == peer) {
            self.barred.insert(peer, now + REDIAL);
        }
    }

    /// Discovery is silent about a blob that is wanted.
    pub(crate) fn search(&mut self, now: Duration, digest: Digest) -> Vec<Step> {
        self.searches.retain(|_, search| now < search.until);
        if self.searches.contains_key(&digest) || self.searches.len() >= MAX_SEARCHES {
            return Vec::new();
        }
        let mut search =
            Search { until: now + PATIENCE, asked: BTreeSet::new(), waiting: BTreeSet::new(), votes: BTreeMap::new() };
        let ours = self.linked.iter().filter(|(_, linked)| linked.ours).map(|(&peer, _)| peer);
        let asked = self.random.choose_multiple(ours, ASKED);
        for &peer in &asked {
            search.ask(peer);
        }
        let room = ASKED.saturating_sub(asked.len()).min(DIALLED);
        self.searches.insert(digest, search);
        let may_dial =
            |peer: &PeerId| !self.linked.contains_key(peer) && self.barred.get(peer).is_none_or(|until| now >= *until);
        let known = self.remembered.iter().filter(|(peer, _)| may_dial(peer));
        let dialled = self.random.choose_multiple(known.copied(), room);
        for (peer, _) in &dialled {
            // Whatever comes of it: not for every blob again.
            self.barred.insert(*peer, now + REDIAL);
        }
        let asks = asked.into_iter().map(|peer| Step::Ask { peer, digest });
        asks.chain(dialled.into_iter().map(|(peer, address)| Step::Dial { peer, address })).collect()
    }

    /// What to make of an answer: holders, and the metainfo that peers named so far. Nothing if nobody has it.
    pub(crate) fn answered(
        &mut self,
        now: Duration,
        peer: PeerId,
        telling: &Telling,
    ) -> Result<Option<Found>, Disbelief> {
        let digest = telling.digest;
        let search = self.searches.get_mut(&digest).filter(|search| now < search.until).ok_or(Disbelief::Unasked)?;
        let linked = self.linked.get(&peer).ok_or(Disbelief::Unasked)?;
        if !search.waiting.remove(&peer) {
            return Err(Disbelief::Unasked);
        }
        let is_local = linked.address.ip().is_loopback();
        let possible = |address: &SocketAddr| address.port() != 0 && may_dial(address.ip(), is_local);
        let absurd = telling.others.iter().filter(|other| !possible(&other.address)).count();
        if absurd > 0 {
            return Err(Disbelief::Impossible(absurd));
        }
        let mut seen = BTreeSet::from([self.me, peer]);
        let own = telling.own.map(|holding| Holder::new(peer, linked.address, holding));
        let others = telling.others.iter().filter(|other| seen.insert(other.peer));
        let others = others.map(|other| Holder::new(other.peer, other.address, other.holding));
        let holders: Vec<Holder> = own.into_iter().chain(others).collect();
        if telling.own == Some(crate::discovery::Holding::Complete)
            && let Some(metainfo) = telling.metainfo
        {
            search.votes.entry(metainfo).or_default().insert(peer);
        }
        if holders.is_empty() {
            return Ok(None);
        }
        Ok(Some(Found { holders, votes: search.tally(digest), lessees: Vec::new() }))
    }

    /// Whether a peer that asks is answered; it is counted.
    pub(crate) fn may_ask(&mut self, now: Duration, peer: PeerId) -> bool {
        let Some(linked) = self.linked.get_mut(&peer).filter(|linked| linked.ours) else { return false };
        let since = now.saturating_sub(linked.counted).as_secs_f64();
        let most = f64::from(MAX_QUESTIONS_AT_ONCE);
        linked.questions = (linked.questions + since * f64::from(QUESTIONS_PER_SECOND)).min(most);
        linked.counted = now;
        let may = linked.questions >= 1.0;
        linked.questions -= f64::from(u8::from(may));
        may
    }

    /// Where a connected peer listens.
    pub(crate) fn address_of(&self, peer: &PeerId) -> Option<SocketAddr> {
        self.linked.get(peer).map(|linked| linked.address)
    }

    /// What is to be remembered, most recently met last, if that changed since it was taken.
    pub(crate) fn take_changed(&mut self) -> Option<Vec<(PeerId, SocketAddr)>> {
        std::mem::take(&mut self.changed).then(|| self.remembered.iter().copied().collect())
    }

    fn remember(&mut self, peer: PeerId, address: SocketAddr) {
        self.changed |= self.remembered.back() != Some(&(peer, address));
        self.remembered.retain(|(known, _)| *known != peer);
        if self.remembered.len() >= MAX_REMEMBERED_PEERS
            && let Some((oldest, _)) = self.remembered.pop_front()
        {
            self.barred.remove(&oldest);
        }
        self.remembered.push_back((peer, address));
    }

    fn forget(&mut self, peer: PeerId) {
        let before = self.remembered.len();
        self.remembered.retain(|(known, _)| *known != peer);
        self.changed |= self.remembered.len() != before;
        self.barred.remove(&peer);
    }
}

impl Search {
    /// Whether that peer is to be asked.
    fn ask(&mut self, peer: PeerId) -> bool {
        self.asked.insert(peer) && self.waiting.insert(peer)
    }

    fn tally(&self, subject: Digest) -> Vec<Vote> {
        let mut votes: Vec<Vote> = self
            .votes
            .iter()
            .map(|(&(object, length), peers)| Vote {
                statement: Statement { subject, kind: StatementKind::Metainfo, object, length },
                nodes: peers.len() as u32,
            })
            .filter(|vote| vote.statement.is_possible())
            .collect();
        votes.sort_by_key(|vote| std::cmp::Reverse(vote.nodes));
        votes
    }
}

#[cfg(test)]
mod tests;
