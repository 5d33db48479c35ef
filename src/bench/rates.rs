//! Rates: as people write those of links, and the highest that was seen.

use std::collections::VecDeque;
use std::str::FromStr;
use std::time::Duration;

/// Over so long a rate is taken: a few pieces of the largest size at 10 Mbit/s.
const WINDOW: Duration = Duration::from_secs(2);

/// Bytes per second, written as a link's rate: `100Mbit`, `2.5Gbit`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LinkRate(pub f64);

impl FromStr for LinkRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!("{text:?} is not the rate of a link; write a number with kbit, Mbit or Gbit, such as \"100Mbit\"")
        };
        let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(error)?;
        let (number, unit) = text.split_at(at);
        let bits = match unit {
            "kbit" => 1e3,
            "Mbit" => 1e6,
            "Gbit" => 1e9,
            _ => return Err(error()),
        };
        let number: f64 = number.parse().map_err(|_| error())?;
        let rate = number * bits / 8.0;
        if (1.0..=1e15).contains(&rate) { Ok(Self(rate)) } else { Err(error()) }
    }
}

/// The highest rate of a counter, over windows of two seconds; of what lasts less, the mean.
#[derive(Debug, Default)]
pub(crate) struct Peak {
    window: VecDeque<(Duration, u64)>,
    best: f64,
    mean: f64,
    first: Option<(Duration, u64)>,
}

impl Peak {
    /// The counter stands at `total`; `at` never goes back.
    pub(crate) fn note(&mut self, at: Duration, total: u64) {
        let first = *self.first.get_or_insert((at, total));
        self.mean = self.mean.max(rate(first, (at, total)).filter(|_| at >= first.0 + WINDOW / 4).unwrap_or_default());
        self.window.push_back((at, total));
        // The oldest that stays is just as old as the window is long, or older.
        while self.window.get(1).is_some_and(|(second, _)| *second + WINDOW <= at) {
            self.window.pop_front();
        }
        if let Some(oldest) = self.window.front().filter(|(since, _)| *since + WINDOW <= at) {
            self.best = self.best.max(rate(*oldest, (at, total)).unwrap_or_default());
        }
    }

    /// In bytes per second.
    pub(crate) fn rate(&self) -> u64 {
        (if self.best > 0.0 { self.best } else { self.mean }) as u64
    }
}

fn rate(from: (Duration, u64), to: (Duration, u64)) -> Option<f64> {
    let seconds = to.0.checked_sub(from.0)?.as_secs_f64();
    (seconds > 0.0).then(|| to.1.saturating_sub(from.1) as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_links_are_bits() {
        let rate = |text: &str| text.parse::<LinkRate>().map(|rate| rate.0);
        assert_eq!(rate("100Mbit"), Ok(12.5e6));
        assert_eq!(rate("2.5Gbit"), Ok(312.5e6));
        assert_eq!(rate("64kbit"), Ok(8000.0));
        for bad in ["", "100", "Mbit", "-1Mbit", "0Mbit", "100MiB", "1e99Gbit", "NaNMbit", "infGbit"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_highest_rate_is_that_of_two_seconds() {
        let mut peak = Peak::default();
        // A megabyte a second, three in the fifth and sixth.
        let mut total = 7_000_000;
        for tenth in 0..100_u64 {
            peak.note(Duration::from_millis(tenth * 100), total);
            total += if (40..60).contains(&tenth) { 300_000 } else { 100_000 };
        }
        assert_eq!(peak.rate(), 3_000_000);
        let mut short = Peak::default();
        (0..10).for_each(|tenth: u64| short.note(Duration::from_millis(tenth * 100), tenth * 50_000));
        assert_eq!(short.rate(), 500_000);
        assert_eq!(Peak::default().rate(), 0);
    }
}
