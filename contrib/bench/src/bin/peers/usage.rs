//! What processes have used, from /proc.

/// Ticks in which /proc counts time: fixed by the kernel's interface to programs.
const TICKS_PER_S: f64 = 100.0;

/// CPU seconds used so far, kernel time included; 0 for a process that is gone.
pub(crate) fn cpu_s(pid: u32) -> f64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let fields = stat[stat.rfind(')').map_or(0, |at| at + 1)..].split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_S
}

/// A line of /proc/PID/status that counts KiB, in MB; 0 for a process that is gone.
pub(crate) fn status_mb(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0 / 1e6
}
