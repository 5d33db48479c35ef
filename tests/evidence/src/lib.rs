//! What a test of the fault campaign (`make chaos`) injected and saw.
//!
//! The campaign is made of tests: each runs in `make test` with few faults and in the campaign with many ([`count`]), by a seed that
//! the campaign tells ([`seed`]). It keeps an [`Evidence`] and fails by panicking, as any test. The evidence is appended as one line of
//! JSON to the file that `LAPWING_EVIDENCE` names when it is dropped, also while the test panics; without that variable it is dropped
//! and nothing is written.
//!
//! ```
//! use lapwing_evidence::{Evidence, count, seed};
//!
//! let mut evidence = Evidence::new(4, "peers that turn a bit over");
//! evidence.served_before(1 << 20);
//! for round in 0..count(5, 500) {
//!     let _random = seed() ^ u64::from(round);
//!     evidence.fault("a bit turned over");
//!     let answer = evidence.operation(|| Ok::<_, std::io::Error>(vec![0_u8; 3]));
//!     evidence.compare(&[0, 0, 0], &answer.unwrap());
//! }
//! ```

pub mod fuzz;
pub mod random;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The file to which evidence is appended.
pub const EVIDENCE: &str = "LAPWING_EVIDENCE";
/// The campaign's seed, a number.
pub const SEED: &str = "LAPWING_CHAOS_SEED";
/// How much of the whole campaign is wanted: 1 for all of it, 0.1 for a tenth of the faults.
pub const SCALE: &str = "LAPWING_CHAOS_SCALE";

/// The seed of this run: the campaign's, otherwise always the same.
pub fn seed() -> u64 {
    variable(SEED).unwrap_or(1)
}

/// How many faults are wanted: `few` in an ordinary run of the tests, `many` in the whole campaign, and at least `few` in a part of it.
pub fn count(few: u32, many: u32) -> u32 {
    variable::<f64>(SCALE).map_or(few, |scale| few.max((f64::from(many) * scale).ceil() as u32))
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    // A campaign that was misspelt would else pass with next to no faults.
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// What one test injected and saw; a line of the file that [`EVIDENCE`] names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Number of the check it belongs to, 1 to 20.
    pub check: u8,
    /// What was tried, in words.
    pub about: String,
    /// The seed it ran with.
    pub seed: u64,
    /// How often each kind of fault was injected.
    pub faults: BTreeMap<String, u64>,
    /// Bytes that had been served, and found right, before the first fault.
    pub bytes_before: u64,
    /// Bytes served, and found right, since.
    pub bytes_after: u64,
    /// Bytes that were served and differ from the reference.
    pub wrong_bytes: u64,
    /// What was left behind: mounts, descriptors, files, tasks.
    pub leaks: Vec<String>,
    /// What was asked for while there were faults.
    pub operations: u64,
    /// How much of that ended in an error that names its cause.
    pub failed: u64,
    /// The longest that one of them took, in milliseconds.
    pub longest_stall_ms: u64,
    /// Further figures by name.
    pub figures: BTreeMap<String, f64>,
    /// Whether the test failed.
    pub panicked: bool,
}

/// A [`Record`] in the making.
#[derive(Debug)]
pub struct Evidence(Record);

impl Evidence {
    /// Nothing seen so far, of check `check`.
    pub fn new(check: u8, about: &str) -> Self {
        Self(Record { check, about: about.into(), seed: seed(), ..Record::default() })
    }

    /// A fault of this kind was injected.
    pub fn fault(&mut self, kind: &str) {
        self.faults(kind, 1);
    }

    /// The same `times` times.
    pub fn faults(&mut self, kind: &str, times: u64) {
        *self.0.faults.entry(kind.into()).or_default() += times;
    }

    /// So many bytes were served and found right before any fault.
    pub fn served_before(&mut self, bytes: u64) {
        self.0.bytes_before += bytes;
    }

    /// So many bytes were served and found right under faults, or after them.
    pub fn served_after(&mut self, bytes: u64) {
        self.0.bytes_after += bytes;
    }

    /// Holds what was served under a fault to what is right: `served` may be cut short, and be nothing else. Gives whether it is right.
    pub fn compare(&mut self, right: &[u8], served: &[u8]) -> bool {
        let same = right.iter().zip(served).filter(|(right, served)| right == served).count() as u64;
        let wrong = served.len() as u64 - same;
        self.0.bytes_after += same;
        self.0.wrong_bytes += wrong;
        wrong == 0
    }

    /// So many bytes were served and are wrong.
    pub fn served_wrong(&mut self, bytes: u64) {
        self.0.wrong_bytes += bytes;
    }

    /// Something was left behind.
    pub fn leak(&mut self, what: impl Into<String>) {
        self.0.leaks.push(what.into());
    }

    /// Asks for something while there are faults: counted, and its time taken.
    pub fn operation<T, E>(&mut self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let start = Instant::now();
        let outcome = work();
        self.ended(start.elapsed(), outcome.is_ok());
        outcome
    }

    /// An operation ended that was timed elsewhere.
    pub fn ended(&mut self, took: Duration, succeeded: bool) {
        self.0.operations += 1;
        self.0.failed += u64::from(!succeeded);
        self.0.longest_stall_ms = self.0.longest_stall_ms.max(took.as_millis() as u64);
    }

    /// Another figure; its unit is in its name.
    pub fn figure(&mut self, name: &str, value: f64) {
        self.0.figures.insert(name.into(), value);
    }

    /// What is known so far.
    pub fn record(&self) -> &Record {
        &self.0
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        let Some(path) = std::env::var_os(EVIDENCE) else { return };
        self.0.panicked = std::thread::panicking();
        let append = || -> std::io::Result<()> {
            let mut line = serde_json::to_vec(&self.0)?;
            line.push(b'\n');
            // One write, so that lines of several tests do not mix.
            File::options().append(true).create(true).open(&path)?.write_all(&line)
        };
        if let Err(error) = append() {
            eprintln!("the evidence of check {} is lost: {}: {error}", self.0.check, path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_differ_or_are_too_many_are_wrong_and_missing_ones_are_not() {
        let mut evidence = Evidence::new(1, "");
        assert!(evidence.compare(b"abcd", b"ab"));
        assert!(!evidence.compare(b"abcd", b"abXd"));
        assert!(!evidence.compare(b"ab", b"abc"));
        let record = evidence.record();
        assert_eq!((record.bytes_after, record.wrong_bytes), (2 + 3 + 2, 2));
    }

    #[test]
    fn operations_are_counted_with_their_longest() {
        let mut evidence = Evidence::new(1, "");
        evidence.ended(Duration::from_millis(30), true);
        evidence.ended(Duration::from_millis(20), false);
        let record = evidence.record();
        assert_eq!((record.operations, record.failed, record.longest_stall_ms), (2, 1, 30));
    }
}
