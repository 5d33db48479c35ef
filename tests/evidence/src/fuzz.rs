//! Changed inputs without end.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::{count, seed};

/// For how many seconds inputs go on, instead of a number of them.
pub const SECONDS: &str = "LAPWING_TEST_FUZZ_SECONDS";
/// The number of the first input: what a failure names repeats it.
pub const SEED: &str = "LAPWING_TEST_FUZZ_SEED";

/// The numbers of inputs; each is the seed from which its input is drawn.
#[derive(Debug)]
pub struct Inputs {
    first: u64,
    next: u64,
    end: u64,
    until: Option<Instant>,
}

impl Inputs {
    /// `rounds` of them, in the fault campaign twenty times as many, or as many as there is time for by [`SECONDS`].
    pub fn new(rounds: u32) -> Self {
        let rounds = u64::from(count(rounds, rounds * 20));
        let first = crate::variable(SEED).unwrap_or(1 + (seed() - 1) * 1_000_000_000);
        let until = crate::variable(SECONDS).map(|seconds| Instant::now() + Duration::from_secs(seconds));
        Self { first, next: first, end: first + rounds, until }
    }

    /// Gives each to a parser, and what it says of it, with the time that took, to `ended`. A panic, or more time than `longest`, names
    /// the input.
    pub fn judge<V>(
        &mut self,
        target: &str,
        longest: Duration,
        judge: impl Fn(&mut Random) -> V,
        mut ended: impl FnMut(Duration, V),
    ) {
        for input in self {
            let start = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| judge(&mut Random::new(input))));
            let verdict = outcome.unwrap_or_else(|panic| {
                eprintln!("{target}: input {input} fails: {SEED}={input} repeats it");
                resume_unwind(panic)
            });
            let took = start.elapsed();
            assert!(took < longest, "{target}: input {input} took {took:?}");
            ended(took, verdict);
        }
    }

    /// How many there were so far.
    pub const fn drawn(&self) -> u64 {
        self.next - self.first
    }

    /// Whether there were as many as asked for, so that what is rare must have been among them.
    pub const fn is_whole(&self) -> bool {
        self.next >= self.end
    }
}

impl Iterator for Inputs {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let goes_on = self.until.map_or(self.next < self.end, |until| Instant::now() < until);
        goes_on.then(|| {
            self.next += 1;
            self.next - 1
        })
    }
}
