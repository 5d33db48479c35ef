//! Whether a check passed: what its tests saw, held to what it asks for.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::campaign::Check;
use crate::programs::Ended;

/// A check's line in `target/chaos.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) check: u8,
    pub(crate) name: &'static str,
    pub(crate) passed: bool,
    /// Why not.
    pub(crate) because: Vec<String>,
    /// How often each kind of fault was injected.
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) bytes_before: u64,
    pub(crate) bytes_after: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) leaks: Vec<String>,
    /// What was asked for under faults, and how much of it ended in a named error.
    pub(crate) operations: u64,
    pub(crate) failed_operations: u64,
    pub(crate) longest_stall_ms: u64,
    pub(crate) figures: BTreeMap<String, f64>,
    /// Tests that this machine cannot run.
    pub(crate) skipped: Vec<String>,
    pub(crate) seconds: f64,
}

/// Judges how the programs of `check` ended, at `scale` of the campaign; `left` is what they left on the machine.
pub(crate) fn judge(check: &Check, scale: f64, ended: Ended, left: Vec<String>) -> Verdict {
    let mut verdict = Verdict {
        check: check.number,
        name: check.name,
        passed: false,
        because: ended.failures,
        faults: BTreeMap::new(),
        bytes_before: 0,
        bytes_after: 0,
        wrong_bytes: 0,
        leaks: left,
        operations: 0,
        failed_operations: 0,
        longest_stall_ms: 0,
        figures: BTreeMap::new(),
        skipped: ended.skipped,
        seconds: ended.seconds,
    };
    for record in ended.records {
        for (kind, times) in record.faults {
            *verdict.faults.entry(kind).or_default() += times;
        }
        verdict.bytes_before += record.bytes_before;
        verdict.bytes_after += record.bytes_after;
        verdict.wrong_bytes += record.wrong_bytes;
        verdict.leaks.extend(record.leaks);
        verdict.operations += record.operations;
        verdict.failed_operations += record.failed;
        verdict.longest_stall_ms = verdict.longest_stall_ms.max(record.longest_stall_ms);
        verdict.figures.extend(record.figures);
        if record.check != check.number {
            verdict.because.push(format!("a test of check {} is listed here: {}", record.check, record.about));
        }
    }
    let faults: u64 = verdict.faults.values().sum();
    let least = (check.faults as f64 * scale.min(1.0)).floor() as u64;
    let mut ask = |holds: bool, why: String| {
        if !holds {
            verdict.because.push(why);
        }
    };
    ask(faults >= least.max(1), format!("only {faults} faults of {least} were injected"));
    ask(
        verdict.bytes_before >= check.traffic,
        format!(
            "{} bytes were served before the faults: too few to mean anything, {} are",
            verdict.bytes_before, check.traffic
        ),
    );
    ask(verdict.wrong_bytes == 0, format!("{} wrong bytes were served", verdict.wrong_bytes));
    ask(verdict.leaks.is_empty(), format!("left behind: {}", verdict.leaks.join(", ")));
    ask(
        u128::from(verdict.longest_stall_ms) <= check.patience.as_millis(),
        format!("something took {} ms, and {} are the most", verdict.longest_stall_ms, check.patience.as_millis()),
    );
    ask(verdict.skipped.is_empty(), "parts of it cannot run on this machine".into());
    verdict.passed = verdict.because.is_empty();
    verdict
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lapwing_evidence::Record;

    use super::*;

    const CHECK: Check =
        Check { number: 4, name: "", programs: &[], faults: 100, traffic: 1000, patience: Duration::from_secs(60) };

    fn sound() -> Record {
        let faults = BTreeMap::from([("a bit turned over".to_owned(), 100)]);
        Record { check: 4, faults, bytes_before: 1000, bytes_after: 5000, operations: 100, ..Record::default() }
    }

    fn because(change: impl FnOnce(&mut Record), scale: f64) -> Vec<String> {
        let mut record = sound();
        change(&mut record);
        judge(&CHECK, scale, Ended { records: vec![record], ..Ended::default() }, Vec::new()).because
    }

    #[test]
    fn a_check_passes_by_enough_faults_under_enough_traffic() {
        assert!(because(|_| (), 1.0).is_empty());
        assert_eq!(because(|record| record.bytes_before = 999, 1.0).len(), 1);
        assert_eq!(because(|record| record.faults.clear(), 1.0).len(), 1);
    }

    #[test]
    fn a_part_of_the_campaign_needs_a_part_of_the_faults_and_the_whole_traffic() {
        let tenth = |record: &mut Record| record.faults = BTreeMap::from([(String::new(), 10)]);
        assert!(because(tenth, 0.1).is_empty());
        assert_eq!(because(tenth, 0.2).len(), 1);
        assert_eq!(because(|record| record.bytes_before = 100, 0.1).len(), 1);
    }

    #[test]
    fn each_wrong_byte_leak_and_long_stall_fails_it() {
        assert_eq!(because(|record| record.wrong_bytes = 1, 1.0).len(), 1);
        assert_eq!(because(|record| record.leaks.push("a mount".into()), 1.0).len(), 1);
        assert_eq!(because(|record| record.longest_stall_ms = 60_001, 1.0).len(), 1);
        assert_eq!(because(|record| record.check = 5, 1.0).len(), 1);
    }

    #[test]
    fn failures_leftovers_and_skipped_tests_fail_it() {
        let of = |ended: Ended, left: Vec<String>| {
            judge(&CHECK, 1.0, Ended { records: vec![sound()], ..ended }, left).passed
        };
        assert!(of(Ended::default(), Vec::new()));
        assert!(!of(Ended { failures: vec!["a panic".into()], ..Ended::default() }, Vec::new()));
        assert!(!of(Ended { skipped: vec!["needs FUSE".into()], ..Ended::default() }, Vec::new()));
        assert!(!of(Ended::default(), vec!["a process".into()]));
    }
}
