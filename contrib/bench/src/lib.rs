//! What benchmarks share.

use anyhow::{Result, ensure};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The directory with the programs of another system, which `contrib/bench/peers/build.sh` builds once; an error says why it cannot here.
pub fn programs(name: &str) -> Result<PathBuf> {
    let script = Path::new("contrib/bench/peers/build.sh");
    ensure!(script.exists(), "{} is not here; run this in the project's directory", script.display());
    let built = Command::new(script).arg(name).stderr(Stdio::piped()).output()?;
    let told = String::from_utf8_lossy(&built.stderr);
    // What comes before the last line may name places of this machine.
    let why = told.lines().next_back().unwrap_or_default();
    ensure!(built.status.success(), "{name} cannot be built here: {why}");
    Ok(PathBuf::from(String::from_utf8(built.stdout)?.trim()))
}

/// A line of /proc/PID/status that counts KiB, in MB; 0 for a process that is gone.
pub fn status_mb(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0 / 1e6
}

/// Median and range of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number the upper of the two in the middle.
    pub median: f64,
    /// The least of all.
    pub least: f64,
    /// The greatest of all.
    pub most: f64,
}

impl Spread {
    /// None without any value.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        Some(Self { median: values[values.len() / 2], least, most })
    }
}
