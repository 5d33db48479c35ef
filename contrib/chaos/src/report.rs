//! `target/chaos.json`, and the same as a table.

use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::Table;
use serde::Serialize;

use crate::verdict::Verdict;

const PATH: &str = "target/chaos.json";

/// The whole campaign so far.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    seed: u64,
    /// How much of the campaign was asked for.
    scale: f64,
    checks: Vec<Verdict>,
}

impl Report {
    pub(crate) fn new(seed: u64, scale: f64) -> Self {
        Self { seed, scale, checks: Vec::new() }
    }

    pub(crate) fn add(&mut self, verdict: Verdict) {
        self.checks.push(verdict);
    }

    pub(crate) fn passed(&self) -> bool {
        self.checks.iter().all(|verdict| verdict.passed)
    }

    /// Replaces the file in one step.
    pub(crate) fn write(&self) -> Result<()> {
        let aside = Path::new(PATH).with_extension("json.tmp");
        std::fs::create_dir_all("target")?;
        std::fs::write(&aside, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&aside, PATH).with_context(|| format!("cannot write {PATH}"))
    }

    pub(crate) fn print(&self) {
        let mut table = Table::new();
        table.set_header([
            "",
            "check",
            "faults",
            "MB before",
            "MB after",
            "wrong",
            "leaks",
            "failed",
            "longest",
            "took",
            "",
        ]);
        let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        for verdict in &self.checks {
            table.add_row([
                verdict.check.to_string(),
                verdict.name.to_owned(),
                verdict.faults.values().sum::<u64>().to_string(),
                megabytes(verdict.bytes_before),
                megabytes(verdict.bytes_after),
                verdict.wrong_bytes.to_string(),
                verdict.leaks.len().to_string(),
                format!("{} of {}", verdict.failed_operations, verdict.operations),
                format!("{:.2} s", verdict.longest_stall_ms as f64 / 1e3),
                format!("{:.0} s", verdict.seconds),
                if verdict.passed { "passed".to_owned() } else { "FAILED".to_owned() },
            ]);
        }
        eprintln!("{table}");
        for verdict in self.checks.iter().filter(|verdict| !verdict.passed) {
            for why in &verdict.because {
                eprintln!("check {}: {why}", verdict.check);
            }
        }
    }
}
