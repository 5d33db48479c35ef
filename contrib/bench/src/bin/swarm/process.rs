//! What a process and the machine have used, from /proc.

use anyhow::{Context, Result};

/// Ticks in which /proc counts time: fixed by the kernel's interface to programs.
const TICKS_PER_S: f64 = 100.0;

/// CPU seconds used so far, kernel time included; 0 for a process that is gone.
pub(crate) fn cpu_s(pid: u32) -> f64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let fields = stat[stat.rfind(')').map_or(0, |at| at + 1)..].split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_S
}

/// The largest resident set so far, in MB; 0 for a process that is gone.
pub(crate) fn rss_max_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0 / 1e6
}

/// Time of all CPUs since boot: in all, and not used or used by niced programs only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MachineTime {
    all: f64,
    free: f64,
}

impl MachineTime {
    pub(crate) fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|ticks| ticks.parse().ok()).collect();
        let [_user, nice, _system, idle, waiting] = *ticks.first_chunk().context("/proc/stat is too short")?;
        // The last two columns, guests, are in the first two already.
        Ok(Self { all: ticks.iter().take(8).sum(), free: nice + idle + waiting })
    }

    /// The share of CPU time since `before` that was free for whoever is not niced.
    pub(crate) fn free_since(self, before: Self) -> f64 {
        (self.free - before.free) / (self.all - before.all).max(1.0)
    }
}
