//! How much memory this process took at most, C libraries included (proc(5): `VmHWM`, `clear_refs`).
#![allow(unsafe_code)]

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tests of this program that measure it, or take much of it, run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resident bytes by the line of that name in `/proc/self/status`.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', '\t', ' ']).split(' ').next().unwrap().parse::<u64>().unwrap() << 10
}

/// Runs `work`, and gives by how many bytes the resident memory grew in it at most.
pub(crate) fn growth<T>(work: impl FnOnce() -> T) -> (T, u64) {
    // SAFETY: malloc_trim(3) takes a number and only gives back what is free; without it, what is taken again would not count.
    unsafe { libc::malloc_trim(0) };
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let outcome = work();
    (outcome, status("VmHWM").saturating_sub(before))
}
