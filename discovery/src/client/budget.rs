//! How often a node may try again, over all trackers: a token bucket. Pure.
//!
//! An attempt after a failure, and a second tracker asked because the first is slow, take a token each. Tokens come back with
//! time, and with answers: trackers that answer may be asked again at leisure, while a cluster of dead ones is not
//! knocked at more than once a second, and one that is slow because it is overloaded gets hardly more calls than if
//! nobody hedged.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{RETRIES_PER_ANSWER, RETRIES_PER_S, RETRY_TOKENS};

/// The tokens.
#[derive(Debug)]
pub(super) struct RetryBudget {
    tokens: f64,
    at: Instant,
}

impl RetryBudget {
    /// A full one.
    pub(super) const fn new(now: Instant) -> Self {
        Self { tokens: RETRY_TOKENS, at: now }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// Takes a token that may be there later only, and tells how long to wait for it.
    pub(super) fn reserve(&mut self, now: Instant) -> Duration {
        self.refill(now);
        self.tokens -= 1.0;
        Duration::from_secs_f64((-self.tokens).max(0.0) / RETRIES_PER_S)
    }

    /// A tracker answered.
    pub(super) fn answered(&mut self, now: Instant) {
        self.refill(now);
        self.tokens = (self.tokens + RETRIES_PER_ANSWER).min(RETRY_TOKENS);
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * RETRIES_PER_S).min(RETRY_TOKENS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_cluster_is_tried_once_a_second_after_the_first_burst() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(start);
        let tries = (0..60_000).filter(|&ms| budget.take(start + Duration::from_millis(ms))).count();
        let expected = RETRY_TOKENS as usize + 60;
        assert!((expected - 2..=expected).contains(&tries), "{tries} in a minute");
    }

    #[test]
    fn answers_give_tokens_back_up_to_a_full_bucket() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(start);
        while budget.take(start) {}
        (0..11).for_each(|_| budget.answered(start));
        let bought = (0..100).filter(|_| budget.take(start)).count();
        assert_eq!(bought, (11.0 * RETRIES_PER_ANSWER) as usize);
        (0..10_000).for_each(|_| budget.answered(start));
        assert_eq!((0..1000).filter(|_| budget.take(start)).count(), RETRY_TOKENS as usize);
    }

    #[test]
    fn who_reserves_waits_behind_the_others() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(start);
        while budget.take(start) {}
        let waits: Vec<_> = (0..3).map(|_| budget.reserve(start).as_secs_f64() * RETRIES_PER_S).collect();
        assert!(waits.windows(2).all(|pair| (pair[1] - pair[0] - 1.0).abs() < 1e-6), "{waits:?}");
        assert!(!budget.take(start + Duration::from_secs_f64(2.5 / RETRIES_PER_S)), "these are promised");
    }
}
