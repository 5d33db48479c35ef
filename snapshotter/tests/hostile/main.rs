//! Layers, indexes, tables of contents, images and profiles that are damaged or made to do harm: each is refused with an error, is an
//! error where it is read, or gives exactly what it should; none ends the process, and none takes more memory than is said here.
//!
//! The corpus is fixed. Beyond it, each parser is given changed inputs without end: `LAPWING_TEST_FUZZ_SECONDS` says for how long
//! (otherwise a fixed number of them), `LAPWING_TEST_FUZZ_SEED` from which number on. What fails is repeated by its number.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod bombs;
mod compressed;
mod fuzz;
mod generate;
mod judge;
mod memory;
#[path = "../toc/support.rs"]
#[allow(dead_code, reason = "shared with the tests of tables of contents")]
mod support;
mod tars;
#[path = "../ztoc/write.rs"]
mod write;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use generate::Seeds;
use judge::Verdict;
use lapwing_evidence::random::Random;
use lapwing_evidence::{Evidence, seed};

/// Resident memory that an input which is no bomb may take beyond what was there, all copies of the test's own included.
const MOST_MEMORY: u64 = 64 << 20;
/// No input takes longer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to become of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// An error, and nothing can be read.
    Refused,
    /// An error, now or where it is read, or found out by the proof.
    NotExact,
    /// All is right.
    Exact,
    /// Any of these.
    Harmless,
}

impl Expect {
    fn holds(self, verdict: &Verdict) -> bool {
        match self {
            Self::Refused => matches!(verdict, Verdict::Refused(_)),
            Self::NotExact => *verdict != Verdict::Exact,
            Self::Exact => *verdict == Verdict::Exact,
            Self::Harmless => true,
        }
    }
}

/// Inputs of one class: refused, unreadable, caught, exact.
#[derive(Default)]
struct Tally {
    counts: [usize; 4],
    memory: u64,
    longest: Duration,
}

/// Inputs that are judged, by class, and what a check of the fault campaign is told of them.
struct Corpus {
    classes: BTreeMap<&'static str, Tally>,
    evidence: Evidence,
}

impl Corpus {
    /// Begins with layers in which nothing is wrong.
    fn new(check: u8, about: &str) -> Self {
        let mut evidence = Evidence::new(check, about);
        let tar = tars::tar(&[tars::file(b"noise", &support::noise(2 << 20, seed())), tars::rich()]);
        for layer in [tar.clone(), tars::gzip(&tar), tars::frames(&tar, 100_000)] {
            assert_eq!(judge::layer(&layer), Verdict::Exact);
        }
        evidence.served_before(judge::take_compared());
        Self { classes: BTreeMap::new(), evidence }
    }

    fn judge(&mut self, class: &'static str, name: &str, expect: Expect, judge: impl FnOnce() -> Verdict) {
        self.judge_within(MOST_MEMORY, class, name, expect, judge);
    }

    fn judge_within(
        &mut self,
        most: u64,
        class: &'static str,
        name: &str,
        expect: Expect,
        judge: impl FnOnce() -> Verdict,
    ) {
        let start = Instant::now();
        let (verdict, memory) = memory::growth(judge);
        let took = start.elapsed();
        assert!(expect.holds(&verdict), "{class}: {name}: {expect:?} was expected, and it is {verdict:?}");
        assert!(memory <= most, "{class}: {name} took {} MiB: {verdict:?}", memory >> 20);
        assert!(took < PATIENCE, "{class}: {name} took {took:?}");
        if class == "bombs" {
            eprintln!("bomb: {name}: {} MiB, {took:.2?}: {:.120}", memory >> 20, format!("{verdict:?}"));
        }
        self.evidence.fault(class);
        self.evidence.ended(took, verdict == Verdict::Exact);
        self.evidence.served_after(judge::take_compared());
        let tally = self.classes.entry(class).or_default();
        tally.counts[match verdict {
            Verdict::Refused(_) => 0,
            Verdict::Unreadable(_) => 1,
            Verdict::Caught(_) => 2,
            Verdict::Exact => 3,
        }] += 1;
        tally.memory = tally.memory.max(memory);
        tally.longest = tally.longest.max(took);
    }

    fn explode(&mut self, bomb: bombs::Bomb, seeds: &Seeds) {
        let explode = (bomb.make)(seeds);
        self.judge_within(bomb.most, "bombs", bomb.name, bomb.expect, explode);
    }

    /// Tells of each class, of which something was refused, and gives how many inputs there were.
    fn finish(mut self) -> usize {
        let mut total = 0;
        for (class, Tally { counts, memory, longest }) in &self.classes {
            let [refused, unreadable, caught, exact] = counts;
            let memory = memory >> 20;
            eprintln!(
                "{class:>14}: {refused:4} refused, {unreadable:3} unreadable, {caught:3} caught by the proof, {exact:3} exact; \
                 {memory:4} MiB and {longest:.2?} at most",
            );
            assert!(*refused > 0, "{class}: nothing is refused");
            self.evidence.figure(&format!("{class}: most memory, MiB"), memory as f64);
            total += counts.iter().sum::<usize>();
        }
        total
    }
}

#[test]
fn damaged_compression_is_refused_or_right() {
    let _alone = memory::alone();
    let mut corpus = Corpus::new(14, "layers whose gzip or zstd is cut, changed, or goes on");
    for (name, expect, layer) in compressed::all() {
        corpus.judge("compression", &name, expect, || judge::layer(&layer));
    }
    let inputs = corpus.finish();
    assert!(inputs >= 140, "{inputs} inputs");
}

#[test]
fn attacks_by_tars_are_refused_or_right() {
    let _alone = memory::alone();
    let mut corpus = Corpus::new(15, "layers whose tar attacks");
    for (name, expect, tar) in attacks::all() {
        corpus.judge("tars", name, expect, || judge::layer(&tar));
        corpus.judge("tars in gzip", name, expect, || judge::layer(&tars::gzip(&tar)));
        corpus.judge("tars in zstd", name, expect, || judge::layer(&tars::frames(&tar, 4000)));
    }
    let seeds = Seeds::new();
    for bomb in bombs::entries() {
        corpus.explode(bomb, &seeds);
    }
    let inputs = corpus.finish();
    assert!(inputs >= 450, "{inputs} inputs");
}

#[test]
fn bombs_and_tables_that_lie_are_refused_or_right() {
    let _alone = memory::alone();
    let seeds = Seeds::new();
    let mut corpus =
        Corpus::new(16, "bombs, and indexes, images, profiles and tables of contents with changed numbers");
    let random = |number: u64| Random::new(number << 32);
    for number in 0..200 {
        let name = format!("changed {number}");
        let (index, which) = seeds.index(&mut random(number));
        let (layer, tar, _) = &seeds.indexed[which];
        corpus.judge("indexes", &name, Expect::Harmless, || judge::index(&index, layer, tar));
        corpus.judge("images", &name, Expect::Harmless, || judge::image(&seeds.image(&mut random(number))));
        corpus.judge("profiles", &name, Expect::Harmless, || judge::profile(&seeds.profile(&mut random(number))));
        for (class, made) in [("tables", seeds.toc(&mut random(number))), ("zTOCs", seeds.ztoc(&mut random(number)))] {
            let Some((toc, stored, layer)) = made else { continue };
            corpus.judge(class, &name, Expect::Harmless, || judge::toc(&toc, &stored, &layer));
        }
    }
    for bomb in bombs::all() {
        corpus.explode(bomb, &seeds);
    }
    let inputs = corpus.finish();
    assert!(inputs >= 700, "{inputs} inputs");
}
