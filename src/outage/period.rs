//! Until when it counts that a registry said so.
//!
//! What nodes tell each other of a name carries no time, and never has to be taken back: the time is part of the name. A
//! fourth of the longest staleness is a *period*; what a registry says is stated under the period in which it said so, and who
//! asks asks for the last four. So what is found is at most that old, and what was confirmed up to three fourths of it ago is
//! found for certain. Nodes with another setting do not understand each other.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{Reference, RegistryName, RepositoryName};

/// How many periods are asked for.
const PERIODS: u64 = 4;

/// The division of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Periods {
    /// In seconds, at least one.
    length: u64,
}

/// One of them, counted from the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Period(u64);

impl Periods {
    pub(super) fn new(max_stale: Duration) -> Self {
        Self { length: (max_stale.as_secs() / PERIODS).max(1) }
    }

    pub(super) fn at(self, now: SystemTime) -> Period {
        Period(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / self.length)
    }

    /// Those that still count at `now`, the last first.
    pub(super) fn valid(self, now: SystemTime) -> impl Iterator<Item = Period> {
        let Period(last) = self.at(now);
        (last.saturating_sub(PERIODS - 1)..=last).rev().map(Period)
    }

    /// How long ago it began.
    pub(super) fn age(self, period: Period, now: SystemTime) -> Duration {
        let begin = Duration::from_secs(period.0.saturating_mul(self.length));
        now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(begin)
    }

    /// What stands in the place of a digest for a manifest, asked for by that reference without credentials in that period.
    pub(super) fn subject(
        self,
        period: Period,
        registry: &RegistryName,
        repo: &RepositoryName,
        reference: &Reference,
    ) -> Digest {
        let separator = if matches!(reference, Reference::Tag(_)) { ':' } else { '@' };
        let name = format!("outage {} {} {registry}/{repo}{separator}{reference}", self.length, period.0);
        Digest::name(name.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_found_is_older_than_allowed_and_what_is_three_fourths_as_old_is_found() {
        for max_stale in [60, 61, 86_400] {
            let periods = Periods::new(Duration::from_secs(max_stale));
            for seconds in 1_000_000..1_000_200 {
                let now = UNIX_EPOCH + Duration::from_secs(seconds);
                let valid: Vec<Period> = periods.valid(now).collect();
                assert_eq!(valid.len(), 4);
                assert!(valid.iter().all(|period| periods.age(*period, now).as_secs() < max_stale));
                assert!(valid.contains(&periods.at(now - Duration::from_secs(max_stale / 4 * 3))));
                assert!(!valid.contains(&periods.at(now - Duration::from_secs(max_stale))));
            }
        }
    }

    #[test]
    fn every_part_of_the_name_counts() {
        let (hour, day) = (Periods::new(Duration::from_secs(3600)), Periods::new(Duration::from_secs(86_400)));
        let tag = |name: &str| name.parse::<Reference>().unwrap();
        let name = |periods: Periods, period, registry: &str, repo: &str, reference: &Reference| {
            periods.subject(Period(period), &registry.parse().unwrap(), &repo.parse().unwrap(), reference)
        };
        let one = name(hour, 7, "reg.example", "a/b", &tag("v1"));
        assert!(one.is_name());
        assert_eq!(one, name(hour, 7, "reg.example", "a/b", &tag("v1")));
        for other in [
            name(day, 7, "reg.example", "a/b", &tag("v1")),
            name(hour, 8, "reg.example", "a/b", &tag("v1")),
            name(hour, 7, "reg.example:5000", "a/b", &tag("v1")),
            name(hour, 7, "reg.example", "a/c", &tag("v1")),
            name(hour, 7, "reg.example", "a/b", &tag("v2")),
            name(hour, 7, "reg.example", "a/b", &Reference::Digest(Digest::of(b"v1"))),
        ] {
            assert_ne!(one, other);
        }
    }
}
