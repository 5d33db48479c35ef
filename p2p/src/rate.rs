//! Speed limits: how many bytes may go where in a second, and whose turn it is when they are scarce.
//!
//! A [`Bucket`] fills at its rate and may be overdrawn by one request: who finds it not in debt takes what it needs, and
//! the next waits until the debt is paid. So pieces longer than a second's worth still go, and within any span of time
//! there go at most `rate * span + burst + one request` bytes. [`Buckets`] are those of one direction: one of the node,
//! one of each blob and one of each peer; bytes go only when none of the three is in debt.
//!
//! Uploads to peers and requests to peers are held back by the scheduler itself ([`crate::swarm`]), whose order is also
//! the order in which they get what a limit allows. Transfers from origins are not in its hand once begun: they pass a
//! [`Gate`], the most urgent first.
//!
//! Pure: the time is passed in, as a duration since any fixed moment.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use crate::digest::Digest;
use crate::identity::PeerId;
use crate::swarm::Priority;

/// A bucket that nobody draws from gathers what comes in so long.
const BURST: Duration = Duration::from_millis(250);
/// How soon those try again who could go but for somebody more urgent.
const RETRY: Duration = Duration::from_millis(1);
/// Buckets of blobs or peers kept before the full ones, which are as good as new, are thrown away.
const PRUNE_ABOVE: usize = 1024;

const NANOS: i128 = 1_000_000_000;

/// Bytes per second in one direction; zero for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// Of the whole node.
    pub node: u64,
    /// Of each blob.
    pub per_blob: u64,
    /// With each peer.
    pub per_peer: u64,
}

/// All limits of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Pieces sent to peers.
    pub upload: Rates,
    /// Pieces asked of peers.
    pub download: Rates,
    /// Bytes taken from origins; `per_peer` says nothing here.
    pub origin: Rates,
}

/// A token bucket. It counts in billionths of a byte, so that no rounding adds up.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: i128,
    at: Duration,
}

impl Bucket {
    const fn full(rate: u64, now: Duration) -> Self {
        Self { level: capacity(rate), at: now }
    }

    fn level(&self, rate: u64, now: Duration) -> i128 {
        // 2^64 bytes per second for 2^64 seconds stay within an i128.
        let gained = i128::from(rate) * now.saturating_sub(self.at).as_nanos() as i128;
        (self.level + gained).min(capacity(rate))
    }

    /// Time until it is not in debt.
    fn wait(&self, rate: u64, now: Duration) -> Duration {
        let debt = self.level(rate, now).min(0).unsigned_abs();
        Duration::from_nanos(u64::try_from(debt.div_ceil(u128::from(rate.max(1)))).unwrap_or(u64::MAX))
    }

    fn take(&mut self, rate: u64, now: Duration, bytes: u64) {
        self.level = self.level(rate, now) - i128::from(bytes) * NANOS;
        self.at = self.at.max(now);
    }
}

const fn capacity(rate: u64) -> i128 {
    rate as i128 * BURST.as_nanos() as i128
}

/// The buckets of one direction.
#[derive(Debug)]
pub struct Buckets {
    rates: Rates,
    node: Bucket,
    blobs: HashMap<Digest, Bucket>,
    peers: HashMap<PeerId, Bucket>,
    /// Whether somebody was held back since the last account, and before it.
    refused: Cell<bool>,
    held: bool,
    accounted: Duration,
    throttled: Duration,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            rates: Rates::default(),
            node: Bucket { level: 0, at: Duration::ZERO },
            blobs: HashMap::new(),
            peers: HashMap::new(),
            refused: Cell::new(false),
            held: false,
            accounted: Duration::ZERO,
            throttled: Duration::ZERO,
        }
    }
}

impl Buckets {
    /// Sets the limits from now on. Debts stay, and are paid at the new rate.
    pub fn set(&mut self, now: Duration, rates: Rates) {
        // What was gained so far was gained at the old rates.
        self.node.take(self.rates.node, now, 0);
        self.blobs.values_mut().for_each(|bucket| bucket.take(self.rates.per_blob, now, 0));
        self.peers.values_mut().for_each(|bucket| bucket.take(self.rates.per_peer, now, 0));
        if self.rates.node == 0 {
            self.node = Bucket::full(rates.node, now);
        }
        if rates.per_blob == 0 {
            self.blobs.clear();
        }
        if rates.per_peer == 0 {
            self.peers.clear();
        }
        self.rates = rates;
    }

    /// The limits.
    pub const fn rates(&self) -> Rates {
        self.rates
    }

    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.rates == Rates::default()
    }

    /// Whether bytes of `digest` may go now, whoever they go to or come from.
    pub fn is_open(&self, now: Duration, digest: &Digest) -> bool {
        self.refuse_unless(self.is_unlimited() || self.wait(now, digest).is_zero())
    }

    /// Whether bytes may go to or come from `peer` now, as far as its own bucket goes.
    pub fn is_open_to(&self, now: Duration, peer: &PeerId) -> bool {
        let bucket = if self.rates.per_peer == 0 { None } else { self.peers.get(peer) };
        self.refuse_unless(bucket.is_none_or(|bucket| bucket.level(self.rates.per_peer, now) >= 0))
    }

    fn refuse_unless(&self, open: bool) -> bool {
        if !open {
            self.refused.set(true);
        }
        open
    }

    /// Time until bytes of `digest` may go.
    fn wait(&self, now: Duration, digest: &Digest) -> Duration {
        let Rates { node, per_blob, .. } = self.rates;
        let of_node = if node == 0 { Duration::ZERO } else { self.node.wait(node, now) };
        let bucket = if per_blob == 0 { None } else { self.blobs.get(digest) };
        of_node.max(bucket.map_or(Duration::ZERO, |bucket| bucket.wait(per_blob, now)))
    }

    /// Counts bytes that go now.
    pub fn take(&mut self, now: Duration, digest: &Digest, peer: Option<&PeerId>, bytes: u64) {
        let Rates { node, per_blob, per_peer } = self.rates;
        if node > 0 {
            self.node.take(node, now, bytes);
        }
        if per_blob > 0 {
            take_from(&mut self.blobs, per_blob, *digest, now, bytes);
        }
        if let Some(peer) = peer.filter(|_| per_peer > 0) {
            take_from(&mut self.peers, per_peer, *peer, now, bytes);
        }
    }

    /// Adds up the time in which something was held back: called after each look at all that could go. Whether
    /// something is held back now.
    pub fn account(&mut self, now: Duration) -> bool {
        if self.held {
            self.throttled += now.saturating_sub(self.accounted);
        }
        self.accounted = now;
        self.held = self.refused.take();
        self.held
    }

    /// Whether something was held back at the last account.
    pub const fn holds_back(&self) -> bool {
        self.held
    }

    /// The time in which something was held back.
    pub const fn throttled(&self) -> Duration {
        self.throttled
    }
}

fn take_from<K: Eq + Hash>(buckets: &mut HashMap<K, Bucket>, rate: u64, key: K, now: Duration, bytes: u64) {
    buckets.entry(key).or_insert_with(|| Bucket::full(rate, now)).take(rate, now, bytes);
    // Doubling, so that many busy ones are not looked through at every call.
    if buckets.len() > PRUNE_ABOVE && buckets.len().is_power_of_two() {
        buckets.retain(|_, bucket| bucket.level(rate, now) < capacity(rate));
    }
}

/// One who waits at a [`Gate`]; in the order of their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    priority: Priority,
    number: u64,
}

/// A queue in front of [`Buckets`]: the most urgent first, then who came first. Who waits for the bucket of its own blob
/// does not keep others back.
#[derive(Debug, Default)]
pub struct Gate {
    buckets: Buckets,
    waiting: BTreeMap<Ticket, (Digest, u64)>,
    next: u64,
}

impl Gate {
    /// Sets the limits from now on.
    pub fn set(&mut self, now: Duration, rates: Rates) {
        self.buckets.set(now, rates);
    }

    /// The limits.
    pub const fn rates(&self) -> Rates {
        self.buckets.rates()
    }

    /// Joins the queue with so many bytes.
    pub fn queue(&mut self, priority: Priority, digest: Digest, bytes: u64) -> Ticket {
        let ticket = Ticket { priority, number: self.next };
        self.next += 1;
        self.waiting.insert(ticket, (digest, bytes));
        ticket
    }

    /// Goes through if it is that ticket's turn; else says when to ask again.
    pub fn pass(&mut self, now: Duration, ticket: Ticket) -> Result<(), Duration> {
        let Some(&(digest, bytes)) = self.waiting.get(&ticket) else { return Ok(()) };
        let wait = self.buckets.wait(now, &digest);
        let first = |(other, (digest, _)): (&Ticket, &(Digest, u64))| {
            *other < ticket && self.buckets.wait(now, digest).is_zero()
        };
        let passed = if !wait.is_zero() {
            Err(wait)
        } else if self.waiting.iter().any(first) {
            Err(RETRY)
        } else {
            self.waiting.remove(&ticket);
            self.buckets.take(now, &digest, None, bytes);
            Ok(())
        };
        self.account(now);
        passed
    }

    /// Leaves the queue.
    pub fn leave(&mut self, now: Duration, ticket: Ticket) {
        self.waiting.remove(&ticket);
        self.account(now);
    }

    fn account(&mut self, now: Duration) {
        self.buckets.refuse_unless(self.waiting.is_empty());
        self.buckets.account(now);
    }

    /// The time in which something waited.
    pub const fn throttled(&self) -> Duration {
        self.buckets.throttled()
    }
}

#[cfg(test)]
mod tests;
