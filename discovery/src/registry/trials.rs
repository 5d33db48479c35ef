//! Trials: orders that nodes carry out at one moment, and what they tell of it.
//!
//! Who measures gives such an order and repeats it; nodes hear with it in how long to begin, so that no two clocks need to agree. What they
//! tell is kept as it is, unread, as long as the order stands; it is over when whoever gave it says so, or is silent for [`ORDER_TTL`].
//!
//! [`ORDER_TTL`]: crate::limits::ORDER_TTL

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Order, Trial, TrialReport};
use lapwing_p2p::identity::PeerId;

use super::group::Group;
use super::{Caller, Refusal, Registration, Registry};
use crate::limits::{MAX_REPORTS_PER_ANSWER, MAX_TRIAL_BYTES, MAX_TRIALS};

/// What nodes told of a trial, and whether others told something too.
pub(super) type Reports = (Registration, Vec<TrialReport>, bool);

/// A trial that stands.
#[derive(Debug)]
pub(super) struct StandingTrial {
    job: u64,
    begins: Duration,
    remove: bool,
    over: bool,
    /// In the order of their keys, so that they can be listed in parts.
    reports: BTreeMap<PeerId, TrialReport>,
}

impl StandingTrial {
    /// To a node that hears of it now.
    pub(super) fn told(&self, now: Duration) -> Trial {
        let Self { job, begins, remove, .. } = *self;
        Trial { job, begins_in: begins.saturating_sub(now), remove }
    }

    /// Orders of trials that are over are told to nobody any more.
    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    fn bytes(&self) -> usize {
        self.reports.values().map(|report| report.report.len()).sum()
    }
}

impl Group {
    /// What becomes of the trial of an order; `None`: nothing changes.
    pub(super) fn trial(&mut self, now: Duration, order: &Order, over: bool) -> Result<Option<StandingTrial>, Refusal> {
        let Some(Trial { job, begins_in, remove }) = order.trial else { return Ok(None) };
        let standing = &mut self.orders.standing;
        if let Some(known) = standing.get_mut(&order.digest).and_then(|standing| standing.trial.as_mut()) {
            if known.job == job {
                known.over |= over;
                return Ok(None);
            }
            if !known.over {
                return Err(Refusal::Full { what: "trials of one blob at a time", limit: 1 });
            }
        }
        if standing.values().filter(|standing| standing.trial.is_some()).count() >= MAX_TRIALS {
            return Err(Refusal::Full { what: "trials", limit: MAX_TRIALS });
        }
        Ok(Some(StandingTrial { job, begins: now + begins_in, remove, over, reports: BTreeMap::new() }))
    }
}

impl Registry {
    /// What `caller` tells of a trial, in the place of what it told before. Says whether that is over, or none of its.
    pub fn tell_trial(
        &mut self,
        now: Duration,
        caller: &Caller,
        (digest, job, report): (Digest, u64, Vec<u8>),
    ) -> Result<(Registration, bool), Refusal> {
        let call = self.enter(now, caller)?;
        let registration = call.registration;
        let standing = &mut call.group.orders.standing;
        let kept: usize =
            standing.values().filter_map(|standing| standing.trial.as_ref()).map(StandingTrial::bytes).sum();
        let its = standing.get_mut(&digest).filter(|standing| standing.is_for(&caller.node));
        let Some(trial) = its.and_then(|standing| standing.trial.as_mut()).filter(|trial| trial.job == job) else {
            return Ok((registration, true));
        };
        if kept + report.len() > MAX_TRIAL_BYTES && !trial.reports.contains_key(&caller.node) {
            return Err(Refusal::Full { what: "bytes of what nodes tell of trials", limit: MAX_TRIAL_BYTES });
        }
        let (address, zone) = (caller.place.address, caller.place.zone.to_string());
        trial.reports.insert(caller.node, TrialReport { peer: caller.node, address, zone, report });
        Ok((registration, trial.over))
    }

    /// What nodes told of a trial, of those after the one that is named, at most [`MAX_REPORTS_PER_ANSWER`].
    pub fn trial_reports(
        &mut self,
        now: Duration,
        caller: &Caller,
        (digest, job, after): (Digest, u64, Option<PeerId>),
    ) -> Result<Reports, Refusal> {
        let call = self.enter(now, caller)?;
        let known = call.group.orders.standing.get(&digest).and_then(|standing| standing.trial.as_ref());
        let Some(trial) = known.filter(|trial| trial.job == job) else {
            return Ok((call.registration, Vec::new(), false));
        };
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = trial.reports.range((start, Bound::Unbounded)).map(|(_, report)| report.clone());
        let reports: Vec<TrialReport> = rest.by_ref().take(MAX_REPORTS_PER_ANSWER).collect();
        Ok((call.registration, reports, rest.next().is_some()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lapwing_p2p::discovery::OrderRequest;
    use lapwing_p2p::origin::Locator;

    use super::*;
    use crate::limits::ORDER_TTL;
    use crate::registry::Place;

    const NOW: Duration = Duration::from_secs(1000);
    const WAIT: Duration = Duration::from_secs(25);

    fn caller(number: u8) -> Caller {
        Caller {
            node: PeerId::from_bytes([number; 32]),
            instance: 1,
            group: "default".to_owned(),
            place: Place { zone: "z".into(), rack: "".into(), address: IpAddr::from([10, 0, 0, number]) },
            port: 7081,
            seed: false,
            seed_port: 0,
            reached_at: IpAddr::from([10, 255, 255, 1]),
        }
    }

    fn order(content: &[u8], job: u64) -> OrderRequest {
        let locator = Locator { namespace: "reg.example".to_owned(), repository: "app".to_owned() };
        let trial = Some(Trial { job, begins_in: WAIT, remove: true });
        let order = Order { digest: Digest::of(content), length: 7, locator, index: false, trial };
        OrderRequest { order, job, nodes: None, over: false }
    }

    fn registry(nodes: u8) -> Registry {
        let mut registry = Registry::new(1);
        for number in 1..=nodes {
            registry.heartbeat(NOW, &caller(number)).unwrap();
        }
        registry
    }

    fn told(registry: &mut Registry, now: Duration) -> Vec<Trial> {
        registry.orders(now, &caller(1), 0).unwrap().1.iter().filter_map(|order| order.trial).collect()
    }

    fn tell(registry: &mut Registry, now: Duration, number: u8, job: u64, report: &[u8]) -> bool {
        registry.tell_trial(now, &caller(number), (Digest::of(b"a"), job, report.to_vec())).unwrap().1
    }

    #[test]
    fn whenever_they_hear_of_it_all_begin_at_one_moment() {
        let mut registry = registry(1);
        registry.order(NOW, &caller(1), order(b"a", 5)).unwrap();
        let later = NOW + Duration::from_secs(10);
        registry.order(later, &caller(1), order(b"a", 5)).unwrap();
        let begins = |trials: Vec<Trial>| trials.iter().map(|trial| trial.begins_in).collect::<Vec<_>>();
        assert_eq!(begins(told(&mut registry, later)), [Duration::from_secs(15)]);
        assert_eq!(begins(told(&mut registry, later + WAIT)), [Duration::ZERO]);
        assert!(registry.order(later, &caller(1), order(b"a", 6)).is_err(), "one at a time");
        registry.order(later, &caller(1), OrderRequest { over: true, ..order(b"a", 5) }).unwrap();
        assert_eq!(told(&mut registry, later), [], "it is over");
        registry.order(later, &caller(1), order(b"a", 6)).unwrap();
        assert_eq!(told(&mut registry, later)[0].job, 6);
        registry.order(later, &caller(1), OrderRequest { over: true, ..order(b"a", 6) }).unwrap();
        let mut preheat = order(b"a", 7);
        preheat.order.trial = None;
        registry.order(later, &caller(1), preheat.clone()).unwrap();
        assert_eq!(registry.orders(later, &caller(1), 0).unwrap().1, [preheat.order], "an order like any other again");
    }

    #[test]
    fn what_nodes_tell_is_kept_while_the_order_stands() {
        let mut registry = registry(3);
        assert!(tell(&mut registry, NOW, 1, 5, b"x"), "nobody knows it");
        registry.order(NOW, &caller(1), order(b"a", 5)).unwrap();
        assert!(!tell(&mut registry, NOW, 1, 5, b"ready"));
        assert!(!tell(&mut registry, NOW, 2, 5, b"two"));
        assert!(!tell(&mut registry, NOW, 1, 5, b"one"));
        assert!(tell(&mut registry, NOW, 3, 4, b"of another"));
        let reports = |registry: &mut Registry, job, after| {
            let (_, reports, more) = registry.trial_reports(NOW, &caller(3), (Digest::of(b"a"), job, after)).unwrap();
            (reports.into_iter().map(|report| report.report).collect::<Vec<_>>(), more)
        };
        assert_eq!(reports(&mut registry, 5, None), (vec![b"one".to_vec(), b"two".to_vec()], false));
        assert_eq!(reports(&mut registry, 5, Some(caller(1).node)), (vec![b"two".to_vec()], false));
        assert_eq!(reports(&mut registry, 4, None), (Vec::new(), false));
        registry.order(NOW, &caller(1), OrderRequest { over: true, ..order(b"a", 5) }).unwrap();
        assert!(tell(&mut registry, NOW, 1, 5, b"removed"), "over");
        assert_eq!(reports(&mut registry, 5, None).0[0], b"removed");

        let mut silent = self::registry(1);
        silent.order(NOW, &caller(1), order(b"a", 5)).unwrap();
        let later = NOW + ORDER_TTL;
        silent.heartbeat(later, &caller(1)).unwrap();
        silent.tick(later);
        assert!(tell(&mut silent, later, 1, 5, b"x"), "who gave it is gone");
    }

    #[test]
    fn reports_are_listed_in_parts_and_trials_are_bounded() {
        let nodes = u8::try_from(MAX_REPORTS_PER_ANSWER + 1).unwrap();
        let mut registry = registry(nodes);
        registry.order(NOW, &caller(1), order(b"a", 5)).unwrap();
        for number in 1..=nodes {
            tell(&mut registry, NOW, number, 5, &[number]);
        }
        let question = (Digest::of(b"a"), 5, None);
        let (_, reports, more) = registry.trial_reports(NOW, &caller(1), question).unwrap();
        assert_eq!((reports.len(), more), (MAX_REPORTS_PER_ANSWER, true));
        for number in 1..MAX_TRIALS {
            registry.order(NOW, &caller(1), order(&number.to_le_bytes(), 5)).unwrap();
        }
        assert!(matches!(registry.order(NOW, &caller(1), order(b"z", 5)), Err(Refusal::Full { .. })));
    }
}
