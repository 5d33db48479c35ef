//! What all blobs of one origin's site share: its streams, its pauses, and what is known of its speed.
//!
//! A site is the server behind origins, as nodes name it. Its streams go to the blob with the fewest, among those that
//! wait, and of that blob to the peer with the fewest. A pause that it asked for holds for everybody; after it, one
//! stream tries before the others follow. One node's word pauses a site for [`MAX_PAUSE_BY_ONE`] at most, since any node
//! may lie; when another node then hears the same, it is believed in full.

use std::collections::HashMap;
use std::time::Duration;

use lapwing_p2p::identity::PeerId;

use crate::limits::{
    IMPORT_STREAMS, LEASE_STREAMS, MAX_PAUSE, MAX_PAUSE_BY_ONE, MAX_SITES, MIN_PACE_BYTES, RUNS_PER_FIRST_BYTE,
    SITE_IDLE, SLOW_ANSWER, SLOW_STREAMS,
};

/// What an operator may set of one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SitePolicy {
    /// How many copies' worth of bytes may be fetched of a blob, at least one. More than one only where it makes the swarm faster.
    pub copies: u32,
    /// Most streams at once, over all blobs; none for the usual number, which grows where the site answers slowly.
    pub streams: Option<u32>,
    /// Only nodes of that zone fetch from it; empty for all. Has no effect on nodes without a zone.
    pub zone: String,
}

impl Default for SitePolicy {
    fn default() -> Self {
        Self { copies: 1, streams: None, zone: String::new() }
    }
}

/// The policies of all sites.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeasePolicy {
    /// For sites that have none of their own.
    pub usual: SitePolicy,
    /// By the site's name: host, or host:port, in lower case.
    pub sites: HashMap<String, SitePolicy>,
}

impl LeasePolicy {
    fn of(&self, site: &str) -> &SitePolicy {
        self.sites.get(site).unwrap_or(&self.usual)
    }
}

/// A site's number, for as long as it has streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SiteId(u32);

/// Names a blob among those of a site.
pub(super) type BookId = u64;

#[derive(Debug, Default)]
struct Turn {
    live: u32,
    /// Until then somebody waits for a stream of that blob.
    waits_until: Duration,
}

/// One site.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) policy: SitePolicy,
    turns: HashMap<BookId, Turn>,
    live_of: HashMap<PeerId, u32>,
    live: u32,
    paused_until: Duration,
    paused_by: Option<PeerId>,
    /// After a pause, until something has come: one stream only.
    probing: bool,
    last_used: Duration,
    first_byte: Option<Duration>,
    /// Smoothed time that one MiB takes on one stream, after its first byte.
    mib_time: Option<Duration>,
}

impl Site {
    fn new(policy: SitePolicy) -> Self {
        Self {
            policy,
            turns: HashMap::new(),
            live_of: HashMap::new(),
            live: 0,
            paused_until: Duration::ZERO,
            paused_by: None,
            probing: false,
            last_used: Duration::ZERO,
            first_byte: None,
            mib_time: None,
        }
    }

    /// Streams that may be opened now.
    pub(super) fn free(&self, piece_bytes: u64, run: u32) -> usize {
        let limit = match self.policy.streams {
            _ if self.probing => 1,
            Some(streams) => streams.max(1) as usize,
            None if self.is_slow_to_answer(piece_bytes, run) => SLOW_STREAMS,
            None => LEASE_STREAMS,
        };
        limit.saturating_sub(self.live as usize)
    }

    /// For how long nobody is to ask it.
    pub(super) fn pause(&self, now: Duration) -> Option<Duration> {
        self.paused_until.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Streams of that peer, over all blobs.
    pub(super) fn live_of(&self, peer: PeerId) -> u32 {
        self.live_of.get(&peer).copied().unwrap_or(0)
    }

    /// Other blobs with a better claim to a stream.
    pub(super) fn before(&self, now: Duration, book: BookId) -> usize {
        let mine = self.turns.get(&book).map_or(0, |turn| turn.live);
        self.turns.iter().filter(|(id, turn)| **id != book && turn.waits_until >= now && turn.live < mine).count()
    }

    pub(super) fn waits(&mut self, book: BookId, until: Duration) {
        let turn = self.turns.entry(book).or_default();
        turn.waits_until = turn.waits_until.max(until);
    }

    /// The wait for a first byte, if it is one to make up for: below that it may be a busy link or machine as well.
    fn slow_first_byte(&self) -> Option<Duration> {
        self.first_byte.filter(|first_byte| *first_byte >= SLOW_ANSWER)
    }

    /// How many pieces make up for the wait for a first byte; at least one.
    pub(super) fn run_for_first_byte(&self, piece_bytes: u64) -> u32 {
        let (Some(first_byte), Some(piece)) = (self.slow_first_byte(), self.piece_time(piece_bytes)) else { return 1 };
        let pieces = RUNS_PER_FIRST_BYTE * first_byte.as_secs_f64() / piece.as_secs_f64().max(1e-6);
        (pieces.ceil() as u32).max(1)
    }

    /// Whether a stream waits for its first byte for half the time that its run takes.
    fn is_slow_to_answer(&self, piece_bytes: u64, run: u32) -> bool {
        let (Some(first_byte), Some(piece)) = (self.slow_first_byte(), self.piece_time(piece_bytes)) else {
            return false;
        };
        first_byte * 2 >= piece * run
    }

    /// What one piece takes on one stream, the wait for its first byte aside.
    pub(super) fn piece_time(&self, piece_bytes: u64) -> Option<Duration> {
        self.mib_time.map(|mib| mib.mul_f64(piece_bytes as f64 / f64::from(1 << 20)))
    }

    /// A run of so many bytes came within `took`.
    pub(super) fn delivered(&mut self, bytes: u64, took: Duration, first_byte: Option<Duration>) {
        self.probing = false;
        self.paused_by = None;
        let first_byte = first_byte.filter(|first_byte| *first_byte <= took);
        if let Some(first_byte) = first_byte {
            // The least of all: on a link that is full, first bytes wait in its queue, and more and longer transfers would
            // only make the queue longer.
            self.first_byte = Some(self.first_byte.map_or(first_byte, |least| least.min(first_byte)));
        }
        if bytes < MIN_PACE_BYTES {
            return;
        }
        let moving = took.saturating_sub(first_byte.unwrap_or_default());
        let mib = moving.mul_f64(f64::from(1 << 20) / bytes.max(1) as f64);
        self.mib_time = Some(smooth(self.mib_time, mib));
    }

    /// The site told `peer` to stay away for so long.
    pub(super) fn asked_for_pause(&mut self, now: Duration, peer: PeerId, pause: Duration) {
        let heard_by_others = self.paused_by.is_some_and(|other| other != peer);
        let limit = if heard_by_others { MAX_PAUSE } else { MAX_PAUSE_BY_ONE };
        self.paused_until = self.paused_until.max(now + pause.min(limit));
        self.paused_by.get_or_insert(peer);
        self.probing = true;
    }
}

fn smooth(mean: Option<Duration>, sample: Duration) -> Duration {
    mean.map_or(sample, |mean| (mean * 3 + sample) / 4)
}

/// All sites of a group of nodes.
#[derive(Debug, Default)]
pub struct Sites {
    policy: LeasePolicy,
    by_name: HashMap<String, SiteId>,
    sites: HashMap<SiteId, Site>,
    next: u32,
    books: BookId,
}

impl Sites {
    /// None yet, under that policy.
    pub fn new(policy: LeasePolicy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// The site of that name. Those beyond the bound share one.
    pub fn id(&mut self, now: Duration, name: &str) -> SiteId {
        let known = self.by_name.contains_key(name);
        let name = if known || self.by_name.len() < MAX_SITES { name } else { "" };
        let id = match self.by_name.get(name) {
            Some(id) => *id,
            None => {
                let id = SiteId(self.next);
                self.next += 1;
                self.by_name.insert(name.to_owned(), id);
                self.sites.insert(id, Site::new(self.policy.of(name).clone()));
                id
            }
        };
        if let Some(site) = self.sites.get_mut(&id) {
            site.last_used = now;
        }
        id
    }

    /// The border of a zone, which is a site like an origin's. No origin's site has such a name.
    pub(super) fn border(&mut self, now: Duration, zone: &str) -> SiteId {
        let id = self.id(now, &format!("border of {zone}"));
        if let Some(site) = self.sites.get_mut(&id) {
            site.policy = SitePolicy { streams: Some(IMPORT_STREAMS), ..SitePolicy::default() };
        }
        id
    }

    pub(super) fn next_book(&mut self) -> BookId {
        self.books += 1;
        self.books
    }

    /// Whether a node of that zone may fetch from it.
    pub fn is_on_side(&self, id: SiteId, zone: &str) -> bool {
        let side = self.sites.get(&id).map_or("", |site| &site.policy.zone);
        side.is_empty() || zone.is_empty() || side == zone
    }

    pub(super) fn get(&self, id: SiteId) -> Option<&Site> {
        self.sites.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SiteId) -> Option<&mut Site> {
        self.sites.get_mut(&id)
    }

    /// A stream begins.
    pub(super) fn open(&mut self, id: SiteId, book: BookId, peer: PeerId) {
        let Some(site) = self.sites.get_mut(&id) else { return };
        site.live += 1;
        site.turns.entry(book).or_default().live += 1;
        *site.live_of.entry(peer).or_default() += 1;
    }

    /// A stream ends.
    pub(super) fn close(&mut self, id: SiteId, book: BookId, peer: PeerId) {
        let Some(site) = self.sites.get_mut(&id) else { return };
        site.live = site.live.saturating_sub(1);
        if let Some(turn) = site.turns.get_mut(&book) {
            turn.live = turn.live.saturating_sub(1);
        }
        if let Some(live) = site.live_of.get_mut(&peer) {
            *live = live.saturating_sub(1);
            if *live == 0 {
                site.live_of.remove(&peer);
            }
        }
    }

    /// Forgets turns that nobody waits for, and sites that nobody uses.
    pub fn tick(&mut self, now: Duration) {
        for site in self.sites.values_mut() {
            site.turns.retain(|_, turn| turn.live > 0 || turn.waits_until >= now);
        }
        self.sites.retain(|_, site| site.live > 0 || site.paused_until > now || now < site.last_used + SITE_IDLE);
        let sites = &self.sites;
        self.by_name.retain(|_, id| sites.contains_key(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const MIB: u64 = 1 << 20;

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    #[test]
    fn a_pause_holds_for_seconds_on_one_word_and_in_full_on_two() {
        let mut site = Site::new(SitePolicy::default());
        site.asked_for_pause(S, peer(1), 200 * S);
        assert_eq!(site.pause(S), Some(MAX_PAUSE_BY_ONE));
        assert_eq!(site.free(MIB, 2), 1, "one stream tries afterwards");
        let later = S + MAX_PAUSE_BY_ONE;
        assert_eq!(site.pause(later), None);
        site.asked_for_pause(later, peer(1), 200 * S);
        assert_eq!(site.pause(later), Some(MAX_PAUSE_BY_ONE), "the same node again");
        site.asked_for_pause(later, peer(2), 200 * S);
        assert_eq!(site.pause(later), Some(200 * S));
        site.delivered(MIB, S, None);
        assert_eq!(site.free(MIB, 2), LEASE_STREAMS);
    }

    #[test]
    fn a_site_that_answers_slowly_gets_longer_runs_and_more_streams_unless_they_are_set() {
        let mut site = Site::new(SitePolicy::default());
        assert_eq!(site.run_for_first_byte(MIB), 1);
        site.delivered(2 * MIB, 2 * S + S / 100, Some(S / 100));
        assert_eq!((site.run_for_first_byte(MIB), site.free(MIB, 2)), (1, LEASE_STREAMS));
        for _ in 0..20 {
            site.delivered(2 * MIB, 3 * S, Some(S));
        }
        assert_eq!(
            (site.run_for_first_byte(MIB), site.free(MIB, 2)),
            (1, LEASE_STREAMS),
            "it is the link that is full"
        );
        let mut site = Site::new(SitePolicy::default());
        for _ in 0..20 {
            site.delivered(2 * MIB, 3 * S, Some(S));
        }
        assert!((9..=11).contains(&site.run_for_first_byte(MIB)), "{}", site.run_for_first_byte(MIB));
        assert_eq!((site.free(MIB, 1), site.free(MIB, 10)), (SLOW_STREAMS, LEASE_STREAMS), "long runs make up for it");
        site.policy.streams = Some(3);
        assert_eq!(site.free(MIB, 1), 3);
    }

    #[test]
    fn a_small_blob_tells_nothing_of_the_pace_and_an_answer_below_the_bound_is_not_slow() {
        let mut site = Site::new(SitePolicy::default());
        // An image's configuration: all of it comes with the first byte.
        for _ in 0..20 {
            site.delivered(MIN_PACE_BYTES - 1, 2 * SLOW_ANSWER, Some(2 * SLOW_ANSWER));
        }
        assert_eq!((site.piece_time(MIB), site.run_for_first_byte(MIB)), (None, 1));
        let answers_after = |first_byte| {
            let mut site = Site::new(SitePolicy::default());
            site.delivered(MIB, S / 10 + first_byte, Some(first_byte));
            (site.run_for_first_byte(MIB), site.free(MIB, 2))
        };
        assert_eq!(answers_after(SLOW_ANSWER - S / 1000), (1, LEASE_STREAMS));
        assert_eq!(answers_after(SLOW_ANSWER), (20, SLOW_STREAMS));
    }

    #[test]
    fn idle_sites_are_forgotten_and_their_number_is_bounded() {
        let mut sites = Sites::default();
        for n in 0..2 * MAX_SITES {
            sites.id(S, &format!("host{n}"));
        }
        assert!(sites.by_name.len() <= MAX_SITES + 1);
        let used = sites.id(S, "host0");
        sites.open(used, 1, peer(1));
        sites.tick(S + SITE_IDLE);
        assert_eq!(sites.sites.len(), 1);
        sites.close(used, 1, peer(1));
        sites.tick(S + SITE_IDLE);
        assert!(sites.sites.is_empty() && sites.by_name.is_empty());
    }
}
