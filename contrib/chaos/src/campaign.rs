//! The twenty checks: which tests each is made of, and what they must have seen for it to mean something.

mod failing;
mod hostile;
mod restarts;

use std::time::Duration;

/// Tests of one program.
#[derive(Debug)]
pub(crate) struct Program {
    /// The crate.
    pub(crate) package: &'static str,
    /// The test target, or `lib` for the crate's own.
    pub(crate) target: &'static str,
    /// Parts of the tests' names.
    pub(crate) tests: &'static [&'static str],
}

/// One check of the campaign.
#[derive(Debug)]
pub(crate) struct Check {
    /// 1 to 20.
    pub(crate) number: u8,
    /// What is done to Lapwing.
    pub(crate) name: &'static str,
    pub(crate) programs: &'static [Program],
    /// Least faults, at scale 1.
    pub(crate) faults: u64,
    /// Least bytes that must have been served before the faults.
    pub(crate) traffic: u64,
    /// Longest that an operation may take, faults included.
    pub(crate) patience: Duration,
}

const fn tests(package: &'static str, target: &'static str, tests: &'static [&'static str]) -> Program {
    Program { package, target, tests }
}

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

/// All of them, by number.
pub(crate) fn checks() -> Vec<&'static Check> {
    let mut checks: Vec<_> = [failing::CHECKS, hostile::CHECKS, restarts::CHECKS].into_iter().flatten().collect();
    checks.sort_by_key(|check| check.number);
    checks
}
