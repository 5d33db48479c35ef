//! Where the time and the bytes of a blob's way to this machine went, for `lapwing explain`.
//!
//! A [`Timeline`] belongs to one pull of one blob: for each [`Track`] so many cells, each of which says for how long something was done in
//! it and how many bytes came. Cells widen as the pull goes on, so that a timeline's size does not depend on how long it takes or how many
//! pieces there are ([`lanes`]). [`Timelines`] keeps the newest [`MAX_TIMELINES`](crate::limits::MAX_TIMELINES).
//!
//! Taking something down is a few additions under the lock of that one timeline, which nobody holds longer. Bytes and piece work
//! are taken down once for each piece or each read of a socket, everything else by a [`Span`] that ends when it is dropped.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use crate::digest::Digest;
use crate::discovery::Holder;
use crate::identity::PeerId;
use crate::limits::{MAX_OPEN_SPANS, MAX_PEERS_PLACED, MAX_TIMELINES};

pub mod lanes;

use lanes::Lanes;
pub use lanes::{CELLS, Lane};

/// What is asked for again after so long is pulled anew.
const SAME_PULL: Duration = Duration::from_secs(2);
/// The same of a blob that is not complete: its client may have lost its connection.
const SAME_BLOB: Duration = Duration::from_secs(60);
/// A speed limit that holds bytes back again so soon has not let them go meanwhile: it is looked at by the tick.
const SAME_PAUSE: Duration = Duration::from_millis(250);
/// After so long what comes to a layer that is mounted on demand belongs to its use, and widens no cells any more.
const USE_AFTER: Duration = Duration::from_secs(10);

/// What a pull's time is spent on, or where its bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Track {
    /// The registry is asked for manifests.
    Resolve,
    /// The registry is asked whether the client may have the blob.
    Authorize,
    /// A tracker is asked who has it.
    Find,
    /// A tracker is asked for a lease, or has said when to ask again.
    Lease,
    /// The hashes of its pieces are on their way.
    Metainfo,
    /// The origin was asked for bytes and has sent none yet.
    OriginAnswer,
    /// The origin sends; its bytes.
    Origin,
    /// A speed limit of this node holds bytes back.
    Limit,
    /// Bytes of peers in this node's zone.
    Near,
    /// Bytes of peers in other zones.
    Far,
    /// Bytes of seeds.
    Seed,
    /// Hashing.
    Verify,
    /// Writing pieces to the disk.
    Write,
    /// Decompressing.
    Inflate,
    /// The layer's index is looked for, or built.
    Index,
    /// containerd waits for the layer to be unpacked, or mounted in the place of that.
    Unpack,
    /// Mounting.
    Mount,
    /// Reads of a mounted layer wait for bytes.
    Fault,
    /// The client has been given bytes and asks for no more.
    Client,
    /// A client takes the blob; the bytes it was given.
    Transfer,
}

impl Track {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 20] = [
        Self::Resolve,
        Self::Authorize,
        Self::Find,
        Self::Lease,
        Self::Metainfo,
        Self::OriginAnswer,
        Self::Origin,
        Self::Limit,
        Self::Near,
        Self::Far,
        Self::Seed,
        Self::Verify,
        Self::Write,
        Self::Inflate,
        Self::Index,
        Self::Unpack,
        Self::Mount,
        Self::Fault,
        Self::Client,
        Self::Transfer,
    ];

    /// A name that does not change.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Authorize => "authorize",
            Self::Find => "find",
            Self::Lease => "lease",
            Self::Metainfo => "metainfo",
            Self::OriginAnswer => "origin_answer",
            Self::Origin => "origin",
            Self::Limit => "limit",
            Self::Near => "peers_near",
            Self::Far => "peers_far",
            Self::Seed => "seeds",
            Self::Verify => "verify",
            Self::Write => "write",
            Self::Inflate => "inflate",
            Self::Index => "index",
            Self::Unpack => "unpack",
            Self::Mount => "mount",
            Self::Fault => "fault",
            Self::Client => "client",
            Self::Transfer => "transfer",
        }
    }

    /// Whether it is somebody who pulls, and not what follows from that, or what a mounted layer's use brings.
    const fn is_pull(self) -> bool {
        matches!(
            self,
            Self::Resolve | Self::Authorize | Self::Index | Self::Unpack | Self::Mount | Self::Client | Self::Transfer
        )
    }
}

/// One pull of one blob.
#[derive(Debug)]
pub struct Timeline {
    began: Instant,
    clock: SystemTime,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    length: u64,
    /// Bytes that were here when it began; `None` until the blob was opened.
    held: Option<u64>,
    lanes: Lanes,
    /// What is under way: a number, what, since when.
    open: Vec<(u64, Track, Duration)>,
    next: u64,
    /// From when until when a tracker said to wait for a lease.
    pause: Option<(Duration, Duration)>,
    /// Until when a speed limit held bytes back.
    held_back: Option<Duration>,
    /// Of peers that discovery named: whether they are seeds, or stand in another zone.
    places: HashMap<PeerId, Track>,
    /// The last moment in which somebody pulled; none has when this is `None`.
    pulled: Option<Duration>,
    /// Whether it is mounted on demand.
    mounted: bool,
    complete: Option<Duration>,
}

/// A timeline at one moment.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// When it began.
    pub began: SystemTime,
    /// The same, to be compared with other timelines.
    pub at: Instant,
    /// How long ago that was.
    pub age: Duration,
    /// Length of the blob in bytes; 0 if it was not opened.
    pub length: u64,
    /// Bytes of it that were here before; `None` if it was not opened.
    pub held: Option<u64>,
    /// When all of it was here and matched its digest.
    pub complete: Option<Duration>,
    /// The last moment in which somebody pulled; none has when this is `None`.
    pub pulled: Option<Duration>,
    /// Whether something is under way that belongs to a pull.
    pub active: bool,
    /// How long a cell is.
    pub cell: Duration,
    /// By [`Track`], in the order of [`Track::ALL`].
    pub lanes: Vec<Lane>,
}

impl Recorded {
    /// One of the lanes.
    pub fn lane(&self, track: Track) -> &Lane {
        &self.lanes[track as usize]
    }
}

impl Timeline {
    /// A pull that begins now.
    pub fn begin() -> Arc<Self> {
        Self::begin_at(Instant::now())
    }

    /// A pull that began a moment ago.
    pub fn begin_at(began: Instant) -> Arc<Self> {
        let clock = SystemTime::now().checked_sub(began.elapsed()).unwrap_or_else(SystemTime::now);
        Arc::new(Self { began, clock, state: Mutex::default() })
    }

    /// The blob was opened: its length, and how much of it is here.
    pub fn opened(&self, length: u64, held: u64) {
        let mut state = self.lock();
        state.length = length;
        state.held.get_or_insert(held);
    }

    /// All of it is here and matched its digest.
    pub fn completed(&self) {
        let now = self.now();
        self.lock().complete.get_or_insert(now);
    }

    /// Something was done from `start` to `end`.
    pub fn add(&self, track: Track, start: Instant, end: Instant) {
        let (start, end) = (self.since(start), self.since(end));
        self.lock().add(track, start, end);
    }

    /// A speed limit held bytes back from `start` to `end`: the same pause as before if that ended just then.
    pub fn held_back(&self, start: Instant, end: Instant) {
        let (start, end) = (self.since(start), self.since(end));
        let mut state = self.lock();
        let goes_on = state.held_back.is_some_and(|last| start <= last + SAME_PAUSE);
        state.held_back = state.held_back.max(Some(end));
        if goes_on {
            let late = state.is_late(start);
            state.lanes.go_on(Track::Limit, start, end, late);
        } else {
            state.add(Track::Limit, start, end);
        }
    }

    /// Bytes came.
    pub fn bytes(&self, track: Track, bytes: u64) {
        let now = self.now();
        let mut state = self.lock();
        state.settle(now);
        let late = state.is_late(now);
        state.lanes.add_bytes(track, now, bytes, late);
        if track.is_pull() {
            state.pulled = state.pulled.max(Some(now));
        }
    }

    /// Bytes of a peer came.
    pub fn bytes_of_peer(&self, peer: &PeerId, bytes: u64) {
        let track = self.lock().places.get(peer).copied().unwrap_or(Track::Near);
        self.bytes(track, bytes);
    }

    /// Begins something that ends when what is returned is dropped.
    pub fn span(self: &Arc<Self>, track: Track) -> Span {
        let since = self.now();
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        if state.open.len() < MAX_OPEN_SPANS {
            state.open.push((number, track, since));
        }
        if track.is_pull() {
            state.pulled = state.pulled.max(Some(since));
        }
        drop(state);
        Span { timeline: Arc::clone(self), track, number, since }
    }

    /// A tracker said to ask for a lease again after `pause`.
    pub fn pause(&self, pause: Duration) {
        let now = self.now();
        let mut state = self.lock();
        state.settle(now);
        let late = state.is_late(now);
        state.lanes.add(Track::Lease, now, now, late);
        state.pause = Some((now, now + pause));
    }

    /// Takes down where peers stand.
    pub fn place(&self, holders: &[Holder]) {
        let mut state = self.lock();
        for holder in holders {
            let track = match (holder.seed, holder.far) {
                (true, _) => Track::Seed,
                (false, true) => Track::Far,
                (false, false) => Track::Near,
            };
            if state.places.len() < MAX_PEERS_PLACED || state.places.contains_key(&holder.peer) {
                state.places.insert(holder.peer, track);
            }
        }
    }

    /// What is known now.
    pub fn recorded(&self) -> Recorded {
        let now = self.now();
        let mut state = self.lock();
        state.settle(now);
        let mut lanes = state.lanes.clone();
        for &(_, track, since) in &state.open {
            lanes.add(track, since, now, state.is_late(since));
        }
        Recorded {
            began: self.clock,
            at: self.began,
            age: now,
            length: state.length,
            held: state.held,
            complete: state.complete,
            pulled: state.pulled,
            active: state.is_pulled(),
            cell: lanes.cell(),
            lanes: lanes.into_lanes(),
        }
    }

    /// Whether nobody pulls any more.
    pub fn is_over(&self) -> bool {
        let now = self.now();
        let state = self.lock();
        !state.is_pulled() && now.saturating_sub(state.pulled.unwrap_or_default()) > SAME_PULL
    }

    /// Whether a client that asks for the blob now does not go on with this pull.
    fn is_past(&self) -> bool {
        let now = self.now();
        let state = self.lock();
        let pause = if state.complete.is_some() { SAME_PULL } else { SAME_BLOB };
        !state.is_pulled() && state.pulled.is_some_and(|pulled| now.saturating_sub(pulled) > pause)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// What happened before the beginning happened at the beginning.
    fn since(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete at each step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, track: Track, start: Duration, end: Duration) {
        self.settle(end);
        let late = self.is_late(start);
        self.lanes.add(track, start, end, late);
        self.mounted |= track == Track::Mount;
        if track.is_pull() {
            self.pulled = self.pulled.max(Some(end));
        }
    }

    /// A pause that was to be waited is taken down as far as it was.
    fn settle(&mut self, now: Duration) {
        if let Some((since, until)) = self.pause {
            let end = until.min(now);
            let late = self.is_late(since);
            self.lanes.go_on(Track::Lease, since, end, late);
            self.pause = (until > now).then_some((end, until));
        }
    }

    fn is_pulled(&self) -> bool {
        self.open.iter().any(|(_, track, _)| track.is_pull())
    }

    fn is_late(&self, now: Duration) -> bool {
        self.mounted && now.saturating_sub(self.pulled.unwrap_or_default()) > USE_AFTER
    }
}

/// Something under way; taken down when it is dropped.
#[derive(Debug)]
pub struct Span {
    timeline: Arc<Timeline>,
    track: Track,
    number: u64,
    since: Duration,
}

impl Drop for Span {
    fn drop(&mut self) {
        let now = self.timeline.now();
        let mut state = self.timeline.lock();
        state.open.retain(|(number, ..)| *number != self.number);
        state.add(self.track, self.since, now);
    }
}

/// The newest timelines of a node, by blob, and those that somebody has.
#[derive(Debug)]
pub struct Timelines(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    newest: LruCache<Digest, Arc<Timeline>>,
    /// Those that somebody has, such as a pull that has not come to the blob yet, are found when newer ones took their place.
    living: HashMap<Digest, Weak<Timeline>>,
    /// How many of the latter there may be before it is looked which are gone.
    prune_at: usize,
}

impl Default for Timelines {
    fn default() -> Self {
        let newest = LruCache::new(NonZeroUsize::new(MAX_TIMELINES).expect("not zero"));
        Self(Mutex::new(Kept { newest, living: HashMap::new(), prune_at: 2 * MAX_TIMELINES }))
    }
}

impl Kept {
    fn find(&self, digest: &Digest) -> Option<Arc<Timeline>> {
        self.living.get(digest).and_then(Weak::upgrade)
    }

    /// It is the newest now.
    fn keep(&mut self, digest: Digest, timeline: &Arc<Timeline>) {
        self.newest.put(digest, Arc::clone(timeline));
        if self.living.len() >= self.prune_at {
            self.living.retain(|_, timeline| timeline.strong_count() > 0);
            self.prune_at = 2 * self.living.len().max(MAX_TIMELINES);
        }
        self.living.insert(digest, Arc::downgrade(timeline));
    }
}

impl Timelines {
    /// The timeline of the last pull of a blob; a new one if none is known.
    pub fn of(&self, digest: &Digest) -> Arc<Timeline> {
        self.unless(digest, |_| false)
    }

    /// The timeline of the last pull of a blob.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Timeline>> {
        self.lock().find(digest)
    }

    /// Somebody begins to pull an image with this blob: a new timeline, unless it is being pulled already.
    pub fn begin(&self, digest: &Digest) -> Arc<Timeline> {
        self.unless(digest, Timeline::is_over)
    }

    /// A client asks for a blob: the timeline of the pull that this belongs to, or a new one.
    pub fn go_on(&self, digest: &Digest) -> Arc<Timeline> {
        self.unless(digest, Timeline::is_past)
    }

    fn unless(&self, digest: &Digest, over: impl Fn(&Timeline) -> bool) -> Arc<Timeline> {
        let mut timelines = self.lock();
        let present = timelines.find(digest).filter(|present| !over(present));
        let timeline = present.unwrap_or_else(Timeline::begin);
        timelines.keep(*digest, &timeline);
        timeline
    }

    /// The newest, the one used last first.
    pub fn all(&self) -> Vec<(Digest, Arc<Timeline>)> {
        self.lock().newest.iter().map(|(digest, timeline)| (*digest, Arc::clone(timeline))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn after(timeline: &Timeline, ms: u64) -> Instant {
        timeline.began + Duration::from_millis(ms)
    }

    #[test]
    fn what_is_under_way_is_seen_before_it_ends() {
        let timeline = Timeline::begin();
        let span = timeline.span(Track::Transfer);
        let seen = timeline.recorded();
        assert!(seen.active && seen.lane(Track::Transfer).count == 1, "{seen:?}");
        drop(span);
        let seen = timeline.recorded();
        assert!(!seen.active && seen.lane(Track::Transfer).count == 1, "taken down once: {seen:?}");
    }

    #[test]
    fn bytes_go_to_where_their_peer_stands() {
        let timeline = Timeline::begin();
        let peer = || Identity::generate().unwrap().id();
        let (near, far, seed, unknown) = (peer(), peer(), peer(), peer());
        let holder = |peer, far, seed| Holder {
            far,
            seed,
            ..Holder::new(peer, "192.0.2.1:1".parse().unwrap(), crate::discovery::Holding::Complete)
        };
        timeline.place(&[holder(near, false, false), holder(far, true, false), holder(seed, true, true)]);
        for (peer, bytes) in [(near, 1), (far, 10), (seed, 100), (unknown, 1000)] {
            timeline.bytes_of_peer(&peer, bytes);
        }
        let seen = timeline.recorded();
        let bytes = |track| seen.lane(track).bytes;
        assert_eq!((bytes(Track::Near), bytes(Track::Far), bytes(Track::Seed)), (1001, 10, 100));
    }

    #[test]
    fn what_a_mounted_layers_use_brings_widens_no_cells() {
        let timeline = Timeline::begin();
        timeline.add(Track::Mount, after(&timeline, 0), after(&timeline, 40));
        let hour = 3_600_000;
        timeline.add(Track::Fault, after(&timeline, hour), after(&timeline, hour + 500));
        let seen = timeline.recorded();
        assert_eq!(seen.cell, Duration::from_millis(5));
        assert_eq!((seen.lane(Track::Fault).count, seen.lane(Track::Fault).busy), (1, Duration::from_millis(500)));
        assert!(seen.lane(Track::Fault).busy_in.is_empty());
    }

    #[test]
    fn a_pause_counts_as_far_as_it_was_waited() {
        let timeline = Timeline::begin();
        timeline.pause(Duration::from_secs(3600));
        std::thread::sleep(Duration::from_millis(20));
        timeline.recorded();
        let seen = timeline.recorded();
        let waited = seen.lane(Track::Lease).busy;
        assert!(waited >= Duration::from_millis(20) && waited <= seen.age, "{waited:?} of {:?}", seen.age);
        timeline.bytes(Track::Near, 1);
        assert_eq!(timeline.recorded().lane(Track::Lease).count, 1, "one pause, however often it is looked at");
        timeline.pause(Duration::from_secs(3600));
        assert_eq!(timeline.recorded().lane(Track::Lease).count, 2);
    }

    #[test]
    fn a_limit_that_holds_back_tick_after_tick_is_one_pause() {
        let timeline = Timeline::begin();
        for tick in 1..=20 {
            timeline.held_back(after(&timeline, tick * 100 - 60), after(&timeline, tick * 100));
        }
        let limit = timeline.recorded().lane(Track::Limit).clone();
        assert_eq!((limit.count, limit.busy), (1, Duration::from_millis(20 * 60)));
        timeline.held_back(after(&timeline, 5000), after(&timeline, 5100));
        assert_eq!(timeline.recorded().lane(Track::Limit).count, 2);
    }

    #[test]
    fn the_newest_are_kept_and_a_pull_under_way_is_not_begun_anew() {
        let timelines = Timelines::default();
        let digest = |number: usize| Digest::of(&number.to_be_bytes());
        let first = timelines.begin(&digest(0));
        assert!(Arc::ptr_eq(&first, &timelines.begin(&digest(0))) && Arc::ptr_eq(&first, &timelines.of(&digest(0))));
        for number in 1..=MAX_TIMELINES {
            timelines.begin(&digest(number));
        }
        assert_eq!(timelines.all().len(), MAX_TIMELINES);
        assert!(Arc::ptr_eq(&first, &timelines.get(&digest(0)).unwrap()), "somebody has it");
        drop(first);
        assert!(timelines.get(&digest(0)).is_none() && timelines.get(&digest(1)).is_some());
    }

    #[test]
    fn what_a_pull_has_not_come_to_yet_is_found_however_many_were_opened_since() {
        let timelines = Timelines::default();
        let digest = |number: usize| Digest::of(&number.to_be_bytes());
        let part = timelines.begin(&digest(0));
        for number in 1..=10 * MAX_TIMELINES {
            timelines.of(&digest(number));
        }
        assert!(Arc::ptr_eq(&part, &timelines.go_on(&digest(0))));
        assert!(Arc::ptr_eq(&part, &timelines.of(&digest(0))));
        let kept = timelines.lock();
        assert!(kept.living.len() <= 2 * MAX_TIMELINES + 1 && kept.newest.len() == MAX_TIMELINES);
    }
}
