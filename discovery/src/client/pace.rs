//! When a tracker is to be told something next: after failures, between signs of life, and as slowly as it asks. Pure.
//!
//! A loaded tracker names a pause with its replies. It lengthens the time between heartbeats and the time in which
//! announcements are collected, both within bounds that keep a node known and its blobs found; and full listings, which a
//! tracker that restarted wants from all nodes at once, are spread over it. Everything has jitter.

use std::time::Duration;

use tokio::time::Instant;

use super::link::jittered;
use crate::limits::{
    ANNOUNCE_BATCH, BACKOFF_MAX, BACKOFF_MIN, MAX_LISTING_PAUSE, MAX_SLOWED_BATCH, MAX_SLOWED_HEARTBEAT,
    MIN_SYNC_INTERVAL,
};

/// The times of one tracker.
#[derive(Debug)]
pub(super) struct Pace {
    heartbeat: Duration,
    /// What the tracker asked for last.
    pause: Duration,
    backoff: Duration,
    heartbeat_at: Instant,
    listing_at: Instant,
}

impl Pace {
    /// Everything is due.
    pub(super) const fn new(now: Instant, heartbeat: Duration) -> Self {
        Self { heartbeat, pause: Duration::ZERO, backoff: BACKOFF_MIN, heartbeat_at: now, listing_at: now }
    }

    /// When the tracker is to hear from this node at the latest.
    pub(super) const fn heartbeat_at(&self) -> Instant {
        self.heartbeat_at
    }

    /// When it may be told everything, if it is to be.
    pub(super) const fn listing_at(&self) -> Instant {
        self.listing_at
    }

    /// The tracker names a pause; it is believed as far as it does no harm.
    pub(super) fn asked(&mut self, pause: Duration) {
        self.pause = pause.min(MAX_LISTING_PAUSE);
    }

    /// The tracker was told something.
    pub(super) fn told(&mut self, now: Instant) {
        self.backoff = BACKOFF_MIN;
        let slowed = self.pause.min(MAX_SLOWED_HEARTBEAT);
        self.heartbeat_at = now + jittered(self.heartbeat.max(slowed));
    }

    /// The tracker was told everything.
    pub(super) fn listed(&mut self, now: Instant) {
        // Two nodes with one key would otherwise make each other tell everything all the time.
        self.listing_at = self.listing_at.max(now + MIN_SYNC_INTERVAL);
    }

    /// The tracker has to be told everything: in the latter half of the pause it named, so that those it named a longer one
    /// come later. Returns whether that is not at once.
    pub(super) fn postpone_listing(&mut self, now: Instant) -> bool {
        let at = now + self.pause.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.listing_at = self.listing_at.max(at);
        !self.pause.is_zero()
    }

    /// The tracker could not be told something. Returns how long to wait at least: full jitter, as it is called, between
    /// nothing and a bound that doubles.
    pub(super) fn failed(&mut self) -> Duration {
        let bound = self.backoff;
        self.backoff = (bound * 2).min(BACKOFF_MAX);
        bound.mul_f64(fastrand::f64())
    }

    /// How long announcements are collected.
    pub(super) fn batch(&self) -> Duration {
        self.pause.clamp(ANNOUNCE_BATCH, MAX_SLOWED_BATCH).mul_f64(1.0 + fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{HEARTBEAT, NODE_TTL, UNREPORTED_SILENCE};

    #[test]
    fn a_pause_slows_within_what_keeps_a_node_known_and_its_blobs_found() {
        let now = Instant::now();
        for pause in [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(60), Duration::MAX] {
            let mut pace = Pace::new(now, HEARTBEAT);
            pace.asked(pause);
            for _ in 0..200 {
                pace.told(now);
                let heartbeat = pace.heartbeat_at() - now;
                assert!(heartbeat < UNREPORTED_SILENCE && heartbeat < NODE_TTL, "{heartbeat:?} with {pause:?}");
                assert!(heartbeat >= HEARTBEAT.mul_f64(0.79));
                assert!(pace.batch() < Duration::from_secs(1), "announced within a second");
            }
        }
        let mut pace = Pace::new(now, HEARTBEAT);
        assert!(pace.batch() <= 2 * ANNOUNCE_BATCH);
        pace.asked(Duration::from_secs(60));
        assert!(pace.batch() >= MAX_SLOWED_BATCH);
    }

    #[test]
    fn listings_are_spread_over_the_pause_and_never_put_off_again() {
        let now = Instant::now();
        let pause = Duration::from_secs(40);
        let mut latest = Duration::ZERO;
        for _ in 0..500 {
            let mut pace = Pace::new(now, HEARTBEAT);
            assert!(!pace.postpone_listing(now), "at once unless asked otherwise");
            pace.asked(pause);
            assert!(pace.postpone_listing(now));
            let wait = pace.listing_at() - now;
            assert!((pause / 2..=pause).contains(&wait));
            latest = latest.max(wait);
            pace.asked(Duration::ZERO);
            pace.postpone_listing(now);
            assert_eq!(pace.listing_at() - now, wait);
        }
        assert!(latest > pause * 9 / 10);
        let mut pace = Pace::new(now, HEARTBEAT);
        pace.asked(Duration::MAX);
        pace.postpone_listing(now);
        assert!(pace.listing_at() - now <= MAX_LISTING_PAUSE);
    }

    #[test]
    fn pauses_after_failures_grow_to_a_bound_and_begin_anew_after_success() {
        let now = Instant::now();
        let mut pace = Pace::new(now, HEARTBEAT);
        let longest = |bound: Duration, pauses: &[Duration]| {
            assert!(pauses.iter().all(|pause| *pause <= bound));
            pauses.iter().max().copied().unwrap_or_default()
        };
        assert!(pace.failed() <= BACKOFF_MIN);
        assert!(pace.failed() <= 2 * BACKOFF_MIN);
        let _: Vec<_> = (0..20).map(|_| pace.failed()).collect();
        let late: Vec<_> = (0..200).map(|_| pace.failed()).collect();
        assert!(longest(BACKOFF_MAX, &late) > BACKOFF_MAX / 2);
        assert!(late.iter().any(|pause| *pause < BACKOFF_MAX / 2), "full jitter");
        pace.told(now);
        assert!(pace.failed() <= BACKOFF_MIN);
    }
}
