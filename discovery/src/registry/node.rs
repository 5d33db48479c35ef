//! What the registry keeps of one node.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use foldhash::fast::RandomState;
use lapwing_p2p::discovery::StatementKind;
use lapwing_p2p::identity::PeerId;

use super::nearness::{Place, Stand};
use crate::limits::{
    CONFIRMED_SILENCE, GRUDGE, MAX_GRUDGES_PER_NODE, MAX_REPORTS_PER_NODE, NODE_TTL, QUARANTINE, REPORT_SILENCE,
    SUSPECT_SILENCE, UNREPORTED_SILENCE,
};

/// A peer that this node reported.
#[derive(Debug)]
struct Grudge {
    against: PeerId,
    /// Which of its registrations: one that restarted is another.
    registration: u64,
    since: Duration,
    /// Whether others were spared that peer for it.
    counted: bool,
}

/// What an answer has to know of each of hundreds of nodes, apart from the rest of [`Node`]: 32 bytes, side by side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) stand: Stand,
    /// Twice the millisecond at which it is gone, unless it is heard from before; 0 if it serves nobody. Odd if somebody
    /// reported it: [`Node::serves`] knows what that means now.
    until: u64,
}

impl Standing {
    pub(super) fn of(node: &Node) -> Self {
        let mut standing = Self { stand: Stand::of(&node.place), until: 0 };
        standing.note(node);
        standing
    }

    /// Something but its place changed.
    pub(super) fn note(&mut self, node: &Node) {
        let gone_at = milliseconds(node.last_seen + NODE_TTL);
        self.until = if node.port == 0 { 0 } else { gone_at << 1 | u64::from(!node.reporters.is_empty()) };
    }

    /// As [`Node::serves`], to a millisecond; `node` is looked at only if need be.
    pub(super) fn serves<'a>(&self, now: Duration, node: impl FnOnce() -> Option<&'a Node>) -> bool {
        let reported = self.until & 1 == 1;
        milliseconds(now) < self.until >> 1 && (!reported || node().is_some_and(|node| node.serves(now)))
    }
}

const fn milliseconds(duration: Duration) -> u64 {
    duration.as_secs() * 1000 + duration.subsec_millis() as u64
}

/// One node. Numbers are those of the group's slabs.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) peer: PeerId,
    pub(super) instance: u64,
    pub(super) registration: u64,
    pub(super) place: Place,
    pub(super) port: u16,
    pub(super) seed: bool,
    /// Known from a dump or a shared store only: once it calls, it has everything to tell.
    pub(super) hearsay: bool,
    /// Of its seed service; 0 if it is no seed.
    pub(super) seed_port: u16,
    pub(super) last_seen: Duration,
    /// When the tick looks at it next; not after it has fallen silent for too long.
    pub(super) due: Duration,
    pub(super) blobs: HashSet<u32, RandomState>,
    pub(super) statements: HashSet<(u32, StatementKind)>,
    /// Blobs with a lease book that knows this node.
    pub(super) books: HashSet<u32>,
    grudges: Vec<Grudge>,
    /// Who reported it since it was last heard from: at most two that differ.
    reporters: Vec<(PeerId, IpAddr)>,
    quarantined_until: Duration,
}

impl Node {
    pub(super) fn new(peer: PeerId, instance: u64, registration: u64, place: Place, port: u16) -> Self {
        Self {
            peer,
            instance,
            registration,
            place,
            port,
            seed: false,
            hearsay: false,
            seed_port: 0,
            last_seen: Duration::ZERO,
            due: Duration::ZERO,
            blobs: HashSet::default(),
            statements: HashSet::new(),
            books: HashSet::new(),
            grudges: Vec::new(),
            reporters: Vec::new(),
            quarantined_until: Duration::ZERO,
        }
    }

    pub(super) const fn address(&self) -> SocketAddr {
        SocketAddr::new(self.place.address, self.port)
    }

    /// A call came from it.
    pub(super) fn heard(&mut self, now: Duration) {
        self.last_seen = now;
        self.reporters.clear();
        self.quarantined_until = Duration::ZERO;
    }

    pub(super) fn is_gone(&self, now: Duration) -> bool {
        now.saturating_sub(self.last_seen) >= NODE_TTL
    }

    /// Whether it is to be kept from everybody's answers: two say that it failed, or one does and it missed a heartbeat,
    /// or may just be about to.
    pub(super) fn is_set_aside(&self, now: Duration) -> bool {
        let alone = self.reporters.len() == 1 && (self.quarantined_until > now || self.is_suspect(now));
        self.reporters.len() >= 2 || alone
    }

    /// Whether a reported node loses its leases: a live one that takes part is heard from more often.
    pub(super) fn may_be_dead(&self, now: Duration) -> bool {
        !self.reporters.is_empty() && now.saturating_sub(self.last_seen) >= REPORT_SILENCE
    }

    /// Whether nobody should count on it: it is silent for longer than it should be, the sooner if it was reported.
    pub(super) fn is_suspect(&self, now: Duration) -> bool {
        let silence = now.saturating_sub(self.last_seen);
        match self.reporters.len() {
            0 => silence >= UNREPORTED_SILENCE,
            1 => silence >= SUSPECT_SILENCE,
            _ => silence >= CONFIRMED_SILENCE,
        }
    }

    /// Whether an asker may be sent to it.
    pub(super) fn serves(&self, now: Duration) -> bool {
        self.port != 0 && !self.is_gone(now) && !self.is_set_aside(now)
    }

    /// This node reports `against`, which registered under that number. True if others are to be spared that peer too: one
    /// node may bring only so many reports a minute, and one against each start of the same peer, so that a liar cannot
    /// blind the cluster. A peer that starts again and again takes up the place of one.
    pub(super) fn hold_grudge(&mut self, now: Duration, against: PeerId, registration: u64) -> bool {
        self.grudges.retain(|grudge| now.saturating_sub(grudge.since) < GRUDGE);
        if let Some(known) = self.grudges.iter_mut().find(|grudge| grudge.against == against) {
            if known.registration == registration {
                return false;
            }
            (known.registration, known.since) = (registration, now);
            return known.counted;
        }
        if self.grudges.len() >= MAX_GRUDGES_PER_NODE {
            return false;
        }
        let counted = self.grudges.iter().filter(|grudge| grudge.counted).count() < MAX_REPORTS_PER_NODE;
        self.grudges.push(Grudge { against, registration, since: now, counted });
        counted
    }

    pub(super) fn has_grudges(&self) -> bool {
        !self.grudges.is_empty()
    }

    pub(super) fn has_grudge(&self, now: Duration, against: &Self) -> bool {
        let names = |grudge: &Grudge| (grudge.against, grudge.registration) == (against.peer, against.registration);
        self.grudges.iter().any(|grudge| names(grudge) && now.saturating_sub(grudge.since) < GRUDGE)
    }

    /// Whom it has reported; some of that may be forgiven.
    pub(super) fn accused(&self) -> impl Iterator<Item = PeerId> {
        self.grudges.iter().map(|grudge| grudge.against)
    }

    /// It was reported. Two reporters differ when their addresses do, too (loopback aside): keys are cheap.
    pub(super) fn reported(&mut self, now: Duration, by: PeerId, address: IpAddr) {
        let same = |(peer, from): &(PeerId, IpAddr)| *peer == by || (*from == address && !address.is_loopback());
        if self.reporters.len() < 2 && !self.reporters.iter().any(same) {
            if self.reporters.is_empty() {
                self.quarantined_until = now + QUARANTINE;
            }
            self.reporters.push((by, address));
        }
    }
}
