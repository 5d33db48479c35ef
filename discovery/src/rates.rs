//! How often each call comes: means over the last seconds, from counters that are looked at once a tick. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::RATE_TICKS;
use crate::metrics::METHODS;

/// Calls so far, in the order of [`METHODS`].
type Counts = [u64; METHODS.len()];

/// The counters as they were at the last ticks, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    samples: VecDeque<(Duration, Counts)>,
}

impl Rates {
    /// Notes how the counters stand. Two looks at the same moment are one.
    pub(crate) fn sample(&mut self, now: Duration, counts: Counts) {
        if self.samples.back().is_some_and(|(at, _)| *at >= now) {
            return;
        }
        if self.samples.len() > RATE_TICKS {
            self.samples.pop_front();
        }
        self.samples.push_back((now, counts));
    }

    /// Calls per second by method; nothing before the second tick.
    pub(crate) fn per_second(&self) -> Vec<(&'static str, f64)> {
        let (Some((start, before)), Some((end, after))) = (self.samples.front(), self.samples.back()) else {
            return Vec::new();
        };
        let seconds = end.saturating_sub(*start).as_secs_f64();
        if seconds <= 0.0 {
            return Vec::new();
        }
        let rate =
            |(at, method): (usize, &'static str)| (method, after[at].saturating_sub(before[at]) as f64 / seconds);
        METHODS.into_iter().enumerate().map(rate).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_mean_of_the_last_ticks() {
        let mut rates = Rates::default();
        assert!(rates.per_second().is_empty(), "nothing is known yet");
        let mut counts = [0; METHODS.len()];
        for second in 0..30_u64 {
            counts[0] += if second < 15 { 1000 } else { 40 };
            rates.sample(Duration::from_secs(second), counts);
            rates.sample(Duration::from_secs(second), [u64::MAX; METHODS.len()]);
        }
        let told = rates.per_second();
        assert_eq!(told[0], ("find", 40.0), "what was long ago counts no more");
        assert!(told[1..].iter().all(|(_, rate)| *rate == 0.0), "{told:?}");
        assert_eq!(rates.samples.len(), RATE_TICKS + 1);
    }
}
