use lapwing_p2p::digest::Digest;

use super::super::api::{RunBlob, RunNode, RunState};
use super::*;

const MIB: u64 = 1 << 20;

/// Rates as link rates, in Mbit/s.
fn links(registry: f64, up: f64, down: f64) -> Links {
    Links { registry: Some(registry * MBIT), up: Some(up * MBIT), down: Some(down * MBIT) }
}

fn done(took_ms: u64, from_origin: u64, from_near: u64) -> Report {
    Report { stage: Stage::Done, took_ms, from_origin, from_near, ..Report::default() }
}

/// Of one blob.
fn run(length: u64, reports: Vec<Report>) -> RunView {
    let node = |(number, report): (usize, Report)| RunNode {
        node: format!("n{number}"),
        address: [10, 0, 0, number as u8].into(),
        zone: String::new(),
        reports: vec![Some(report)],
    };
    RunView {
        id: String::new(),
        image: "reg.example/app:1".to_owned(),
        state: RunState::Ended,
        error: String::new(),
        begins_in_ms: 0,
        remove: false,
        expected: reports.len() as u32,
        timed_out: false,
        blobs: vec![RunBlob { digest: Digest::of(b"blob"), length_bytes: length }],
        nodes: reports.into_iter().enumerate().map(node).collect(),
    }
}

fn near(found: Option<f64>, expected: f64) {
    assert!(found.is_some_and(|found| (found - expected).abs() < 0.01), "{found:?} is not {expected}");
}

/// The same cases as in `contrib/bench`, which measures them.
#[test]
fn the_bounds_are_those_of_the_fluid_model() {
    let of = |nodes: usize, links| Figures::of(&run(256 * MIB, vec![done(60_000, 0, 0); nodes]), links);
    let cold8 = of(8, links(100.0, 200.0, 400.0));
    near(cold8.bound_seconds, 21.47);
    near(cold8.bound_one_copy_seconds, 21.47);
    assert_eq!(cold8.bound_by, Some(BoundBy::Registry));
    near(cold8.efficiency, 21.47 / 60.0);
    let cold32 = of(32, links(100.0, 40.0, 80.0));
    near(cold32.bound_seconds, 49.80);
    near(cold32.bound_one_copy_seconds, 52.01);
    assert_eq!(cold32.bound_by, Some(BoundBy::Swarm));
    near(of(8, links(1000.0, 1000.0, 10.0)).bound_seconds, 214.75);

    let held = Report { held: 256 * MIB, ..done(0, 0, 0) };
    let warm = [vec![done(6_000, 0, 256 * MIB); 4], vec![held; 4]].concat();
    let warm = Figures::of(&run(256 * MIB, warm), links(100.0, 200.0, 400.0));
    near(warm.bound_seconds, 5.37);
    assert_eq!((warm.measured, warm.held, warm.registry_copies, warm.is_whole()), (4, 4, None, true));
}

#[test]
fn only_those_that_lacked_something_and_got_it_are_measured() {
    let fast = done(2_000, 3 * MIB, MIB);
    let slow =
        Report { limited_by: vec![(Cause::PeersUpload, 2_900), (Cause::Lease, 100)], ..done(3_000, MIB, 3 * MIB) };
    let held = Report { held: 4 * MIB, took_ms: 99_000, ..done(0, 0, 0) };
    let late = Report { late: true, ..done(90_000, 0, 4 * MIB) };
    let fetching = Report { stage: Stage::Fetching, ..Report::default() };
    let reports = vec![fast.clone(), slow, held.clone(), late, fetching, Report::failed("no credentials".to_owned())];
    let mut run = run(4 * MIB, reports);
    run.expected = 7;
    let figures = Figures::of(&run, links(10.0, 10.0, 100.0));
    let counts = (figures.measured, figures.held, figures.late, figures.unfinished, figures.failed, figures.silent);
    assert_eq!(counts, (2, 1, 1, 1, 1, 1));
    assert!(!figures.is_whole());
    assert_eq!((figures.median_seconds, figures.last_seconds), (Some(2.0), Some(3.0)));
    assert_eq!((figures.lacked_bytes, figures.bytes_from_registry), (8 * MIB, 4 * MIB));
    assert_eq!(figures.limited_by[0].0, Cause::PeersUpload);
    let slowest = figures.node_figures.iter().find(|node| node.counted == Counted::Measured).unwrap();
    assert_eq!((slowest.seconds, slowest.limited_by), (3.0, Some(Cause::PeersUpload)));

    let nobody = Figures::of(&self::run(4 * MIB, vec![held; 2]), Links::default());
    assert_eq!((nobody.measured, nobody.last_seconds, nobody.efficiency), (0, None, None));
}

#[test]
fn of_an_image_that_is_here_in_part_the_rest_counts() {
    let mut run = run(4 * MIB, vec![done(2_000, 4 * MIB, 0), done(4_000, 0, 4 * MIB)]);
    run.blobs.push(RunBlob { digest: Digest::of(b"base"), length_bytes: 100 * MIB });
    let base = Report { held: 100 * MIB, took_ms: 77_000, ..done(0, 0, 0) };
    run.nodes.iter_mut().for_each(|node| node.reports.push(Some(base.clone())));
    let figures = Figures::of(&run, links(8.0, 80.0, 80.0));
    assert_eq!((figures.measured, figures.lacked_bytes, figures.registry_copies), (2, 8 * MIB, Some(1.0)));
    near(figures.bound_seconds, 4.19);
    assert_eq!(figures.last_seconds, Some(4.0));
}

#[test]
fn rates_that_nobody_gave_are_those_that_were_seen() {
    let report = |origin, took_ms| Report {
        source_from_ms: Some(1_000),
        source_until_ms: Some(3_000),
        peak_in: 4_000_000,
        peak_out: 2_000_000,
        ..done(took_ms, origin, 8_000_000 - origin)
    };
    let run = run(8_000_000, vec![report(6_000_000, 3_500), report(2_000_000, 4_000)]);
    let figures = Figures::of(&run, Links::default());
    assert_eq!(figures.registry, RateUsed { mbit: 32.0, given: false });
    assert_eq!((figures.up.mbit, figures.down.mbit), (16.0, 32.0));
    near(figures.bound_seconds, 2.0);
    near(figures.efficiency, 0.5);
    let given = Figures::of(&run, Links { registry: Some(1_000_000.0), ..Links::default() });
    assert_eq!((given.bound_by, given.registry.given), (Some(BoundBy::Registry), true));
    near(given.bound_seconds, 8.0);
}
