//! What a process has of the machine, over time.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// At one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vitals([f64; MEASURES.len()]);

/// Names, units, and what each may grow by beside a tenth.
const MEASURES: [(&str, f64); 4] =
    [("memory, MiB", 12.0), ("descriptors", 32.0), ("threads", 8.0), ("disk, MiB", 24.0)];

impl Vitals {
    /// Looks at a process, and at the directory that is its own.
    pub(crate) fn of(pid: u32, root: &Path) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?)
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64;
        Ok(Self([field("VmRSS")? / 1024.0, descriptors, field("Threads")?, blocks(root) as f64 / 2048.0]))
    }
}

/// Blocks of 512 bytes below a directory, on its own filesystem alone: what is mounted there is not the disk's. What goes meanwhile counts nothing.
fn blocks(directory: &Path) -> u64 {
    fn below(directory: &Path, device: u64) -> u64 {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
            .filter(|(_, metadata)| metadata.dev() == device)
            .map(|(path, metadata)| metadata.blocks() + if metadata.is_dir() { below(&path, device) } else { 0 })
            .sum()
    }
    std::fs::metadata(directory).map_or(0, |metadata| below(directory, metadata.dev()))
}

/// All moments so far.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Series {
    memory_mib: Vec<f64>,
    descriptors: Vec<f64>,
    threads: Vec<f64>,
    disk_mib: Vec<f64>,
}

/// One measure: its median when the process had warmed up, that is in the second quarter, and in the last.
#[derive(Debug)]
pub(crate) struct Verdict {
    measure: &'static str,
    warm: f64,
    end: f64,
    pub(crate) is_flat: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flat = if self.is_flat { "flat" } else { "GROWN" };
        write!(f, "{}: {:.1} when warm, {:.1} in the end: {flat}", self.measure, self.warm, self.end)
    }
}

impl Series {
    pub(crate) fn push(&mut self, now: &Vitals) {
        let [memory, descriptors, threads, disk] = now.0;
        self.memory_mib.push(memory);
        self.descriptors.push(descriptors);
        self.threads.push(threads);
        self.disk_mib.push(disk);
    }

    /// Whether each measure is in the end what it was when the process had warmed up.
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        let all = [&self.memory_mib, &self.descriptors, &self.threads, &self.disk_mib];
        MEASURES.iter().zip(all).map(|(&(measure, slack), values)| judge(measure, slack, values)).collect()
    }
}

fn judge(measure: &'static str, slack: f64, values: &[f64]) -> Verdict {
    let quarter = values.len() / 4;
    let warm = median(&values[quarter..quarter * 2]);
    let end = median(&values[values.len() - quarter..]);
    Verdict { measure, warm, end, is_flat: quarter > 0 && end <= warm * 1.1 + slack }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_flat(values: impl Iterator<Item = f64>) -> bool {
        judge("", 8.0, &values.collect::<Vec<_>>()).is_flat
    }

    #[test]
    fn a_warm_up_and_waves_are_flat() {
        assert!(is_flat((0..100).map(|at| if at < 20 { f64::from(at) } else { 100.0 + f64::from(at % 7) })));
    }

    #[test]
    fn what_grows_all_the_time_is_not() {
        assert!(!is_flat((0..100).map(|at| 100.0 + f64::from(at))));
        assert!(!is_flat((0..100).map(|at| if at < 60 { 100.0 } else { 130.0 })));
    }

    #[test]
    fn too_few_moments_show_nothing() {
        assert!(!is_flat([1.0, 1.0, 1.0].into_iter()));
    }
}
