//! Whole runs, small ones.

use std::time::Duration;

use lapwing_sim::report;
use lapwing_sim::scenario::{Rates, Scenario};

const RATES: Rates = Rates { origin: 100.0, up: 200.0, down: 400.0 };

fn small(seed: u64) -> Scenario {
    Scenario { seed, limit: Duration::from_secs(120), ..Scenario::cold("small", 12, RATES, 32 << 20) }
}

#[test]
fn equal_seeds_give_equal_traces() {
    let trace = |seed| report::run(Scenario { deaths: 1, ..small(seed) }).measured.trace;
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

#[test]
fn a_second_thread_changes_nothing() {
    let run = |two_threads| {
        let measured = report::run(Scenario { deaths: 1, two_threads, ..small(1) }).measured;
        (measured.trace, measured.events, measured.done_s)
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn a_cold_start_comes_near_the_bound_with_one_copy() {
    let report = report::run(small(3));
    assert_eq!(report.measured.unfinished, 0);
    assert!(report.efficiency() <= 1.0, "faster than possible: the model is wrong");
    assert!(report.efficiency() > 0.9, "{}", report.json());
    assert!(report.copies() < 1.02, "{}", report.json());
}

#[test]
fn every_fault_ends_with_all_that_live_complete() {
    let faults = [
        Scenario { deaths: 3, ..small(4) },
        Scenario { slow: 1, ..small(5) },
        Scenario { corrupt: 1, ..small(6) },
        Scenario { outage: Some(Duration::from_secs(1)..Duration::from_secs(2)), ..small(7) },
        Scenario { zone_link: Some(50.0), ..small(8) },
        Scenario { holders: 3, arrival_gap: Duration::from_millis(300), ..small(9) },
    ];
    for scenario in faults {
        let report = report::run(scenario);
        assert_eq!(report.measured.unfinished, 0, "{}", report.json());
    }
}

/// Seconds of the last node, and copies.
fn last(scenario: Scenario) -> (f64, f64) {
    let report = report::run(scenario);
    assert_eq!(report.measured.unfinished, 0, "{}", report.json());
    (report.measured.done_s.iter().copied().fold(0.0, f64::max), report.copies())
}

/// Whenever it dies, and whether it comes back empty while nodes still wait for it, later, or never.
#[track_caller]
fn loses_at_most(longest: f64, base: &Scenario) {
    let (undisturbed, _) = last(base.clone());
    for tenth in [1, 3, 5, 7, 9] {
        let dies = Duration::from_secs_f64(undisturbed * f64::from(tenth) / 10.0);
        for back in [500, 1000, 5000, 600_000].map(Duration::from_millis) {
            let (disturbed, copies) = last(Scenario { outage: Some(dies..dies + back), ..base.clone() });
            let added = disturbed - undisturbed;
            assert!(
                added < longest && copies < 1.2,
                "dead at {tenth}/10 for {back:?}: {added} s more, {copies} copies"
            );
        }
    }
}

#[test]
fn a_tracker_that_dies_adds_a_second_at_most() {
    (20..30).for_each(|seed| loses_at_most(1.0, &small(seed)));
    let larger = Scenario { limit: Duration::from_secs(120), ..Scenario::cold("larger", 32, RATES, 64 << 20) };
    (30..33).for_each(|seed| loses_at_most(1.0, &Scenario { seed, ..larger.clone() }));
    (33..36).for_each(|seed| loses_at_most(1.0, &Scenario { blobs: vec![8 << 20; 8], ..small(seed) }));
}

/// Its calls fail after two seconds only.
#[test]
fn a_tracker_that_hangs_adds_half_a_second_to_the_time_of_a_call() {
    (36..40).for_each(|seed| loses_at_most(2.5, &Scenario { hangs: Duration::from_secs(2), ..small(seed) }));
}

/// Every neighbourhood fetched all that was missing in it: a swarm of 300 took six copies and six times as long.
#[test]
fn a_large_swarm_without_its_tracker_shares_what_it_fetches() {
    let base = Scenario { limit: Duration::from_secs(120), ..Scenario::cold("large", 300, RATES, 64 << 20) };
    let (undisturbed, _) = last(base.clone());
    let outage = Some(Duration::from_secs(3)..Duration::from_secs(600));
    let (disturbed, copies) = last(Scenario { outage, ..base });
    assert!(copies < 2.0 && disturbed < 2.0 * undisturbed, "{disturbed} s instead of {undisturbed}, {copies} copies");
}

/// The reference's scenario E. A blob of 32 MiB is imported to 3 % more: its last pieces are asked for twice.
#[test]
fn one_copy_crosses_a_border_also_when_importers_die() {
    for (deaths, seed) in [(0, 10), (6, 11), (6, 12)] {
        let zones = Scenario::cold("zones", 32, RATES, 256 << 20);
        let limit = Duration::from_secs(400);
        let report = report::run(Scenario { zone_link: Some(20.0), deaths, seed, limit, ..zones });
        assert_eq!(report.measured.unfinished, 0, "{}", report.json());
        let [into, out] = report.measured.border_bytes.map(|bytes| bytes as f64 / report.scenario.bytes() as f64);
        assert!(into <= 1.02 && out < 0.01 && report.copies() < 1.02, "{}", report.json());
    }
}

#[test]
fn blobs_of_one_image_are_fetched_once_though_they_wait_for_each_other() {
    let report = report::run(Scenario { blobs: vec![8 << 20; 8], ..small(13) });
    assert_eq!(report.measured.unfinished, 0, "{}", report.json());
    assert!(report.copies() < 1.02, "{}", report.json());
}

#[test]
fn further_copies_are_fetched_where_they_help_and_only_as_many_as_allowed() {
    let rates = Rates { origin: 100.0, up: 20.0, down: 80.0 };
    let run = |copies| report::run(Scenario { copies, rates, ..small(14) });
    let (one, two) = (run(1), run(2));
    assert!(one.copies() < 1.02 && two.copies() > 1.3 && two.copies() < 2.02, "{} {}", one.json(), two.json());
    assert!(two.measured.last_s < one.measured.last_s, "{} {}", one.json(), two.json());
}
