//! What processes have used, from /proc, and files.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Ticks in which /proc counts time: fixed by the kernel's interface to programs.
const TICKS_PER_S: f64 = 100.0;

/// CPU seconds used so far, kernel time included; 0 for a process that is gone.
pub(crate) fn cpu_s(pid: u32) -> f64 {
    let fields = stat(pid).unwrap_or_default();
    fields.iter().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_S
}

/// Bytes on disk of the files below `dir`, each inode once; what goes meanwhile is left out.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut total = 0;
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if seen.insert((metadata.dev(), metadata.ino())) {
                total += metadata.blocks() * 512;
            }
        }
    }
    total
}

/// A process and all that came of it and still run.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let of = |pid: u32| Some((parent(pid)?, pid));
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let links: Vec<(u32, u32)> = pids.filter_map(of).collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&above) = found.get(next) {
        found.extend(links.iter().filter(|(parent, _)| *parent == above).map(|(_, pid)| *pid));
        next += 1;
    }
    found
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The fields of /proc/PID/stat from the third on, which is the state: the second, the name, may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.get(stat.rfind(')')? + 1..)?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}
