//! How far the tracker slows its nodes down. Pure.
//!
//! A node that is registered anew tells everything it holds. After a restart these are all nodes of a cluster: each gets a
//! place in a line that moves at a pace the tracker can bear, and is told how long that is. Beyond that, a tracker that is
//! called more often than it likes names a pause to everybody.

use std::time::Duration;

use crate::limits::{CALM_CALLS_PER_S, LISTINGS_PER_S, MAX_LISTING_PAUSE, NODE_TTL};

/// What the tracker has to do.
#[derive(Debug)]
pub(super) struct Load {
    started: Duration,
    /// When the last place in the line is.
    line_ends: Duration,
    /// The second that is counted.
    second: u64,
    calls: u32,
    /// Calls in the second before.
    calls_before: u32,
}

impl Load {
    pub(super) const fn new(now: Duration) -> Self {
        Self { started: now, line_ends: now, second: now.as_secs(), calls: 0, calls_before: 0 }
    }

    /// A call came, and registered its caller anew if `newcomer`. Returns the pause that is named to the caller.
    pub(super) fn called(&mut self, now: Duration, newcomer: bool) -> Duration {
        let second = now.as_secs();
        if second != self.second {
            self.calls_before = if second == self.second + 1 { self.calls } else { 0 };
            (self.second, self.calls) = (second, 0);
        }
        self.calls = self.calls.saturating_add(1);
        let pressed = self.pressure();
        if !newcomer {
            return pressed;
        }
        // However many came: who is beyond the longest pause lists with the last within it.
        let place = self.line_ends.clamp(now, now + MAX_LISTING_PAUSE);
        self.line_ends = place + Duration::from_secs(1) / LISTINGS_PER_S;
        (place - now).max(pressed)
    }

    /// Whether nodes may hold much that it does not know of yet.
    pub(super) fn is_settling(&self, now: Duration) -> bool {
        now.saturating_sub(self.started) < NODE_TTL || self.line_ends > now
    }

    /// A second for every time that calls come more often than they should.
    fn pressure(&self) -> Duration {
        let calls = self.calls.max(self.calls_before);
        Duration::from_secs((calls / CALM_CALLS_PER_S).into()).min(MAX_LISTING_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    #[test]
    fn nodes_that_come_back_together_are_spread_at_the_pace_of_the_line() {
        let mut load = Load::new(START);
        assert_eq!(load.called(START, true), Duration::ZERO, "the first one need not wait");
        // A quarter of a million within a second is more than a cluster has; nobody waits longer than the bound.
        let pauses: Vec<Duration> =
            (1..50_000).map(|node| load.called(START + Duration::from_micros(4 * node), true)).collect();
        let due = |second: u64| {
            let lists = |(node, pause): (usize, &Duration)| (Duration::from_micros(4 * node as u64) + *pause).as_secs();
            pauses.iter().enumerate().map(lists).filter(|at| *at == second).count()
        };
        let window = 50_000 / u64::from(LISTINGS_PER_S);
        assert!((0..window).all(|second| due(second) <= LISTINGS_PER_S as usize + 2));
        assert!((1..window - 1).all(|second| due(second) + 2 >= LISTINGS_PER_S as usize), "nobody waits in vain");
        assert!(pauses.iter().all(|pause| *pause <= MAX_LISTING_PAUSE));
        assert!(load.is_settling(START + Duration::from_secs(window - 1)));
        assert!(!load.is_settling(START + NODE_TTL + MAX_LISTING_PAUSE));
    }

    #[test]
    fn nodes_that_come_one_by_one_never_wait() {
        let mut load = Load::new(START);
        for node in 0..10_000 {
            let now = START + Duration::from_millis(node);
            assert_eq!(load.called(now, true), Duration::ZERO);
        }
    }

    #[test]
    fn too_many_calls_name_a_pause_to_all_until_a_second_after_they_stop() {
        let mut load = Load::new(START);
        let calm: Vec<_> = (0..CALM_CALLS_PER_S - 1).map(|_| load.called(START, false)).collect();
        assert!(calm.iter().all(Duration::is_zero));
        let _: Vec<_> = (0..2 * CALM_CALLS_PER_S).map(|_| load.called(START, false)).collect();
        let second = Duration::from_secs(1);
        assert!(load.called(START, false) >= 2 * second);
        assert!(load.called(START + second, false) >= 2 * second, "the second before counts");
        assert_eq!(load.called(START + 2 * second, false), Duration::ZERO);
    }
}
