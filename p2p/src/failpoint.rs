//! Points of the write path at which a test may end the process, as `kill -9` would.
//!
//! `LAPWING_FAILPOINT=<point>` or `<point>:<n>` in the environment: the process kills itself when it reaches that point
//! for the n-th time. `LAPWING_FAILPOINT_LOG=<file>` appends the name of each point that is reached, a line each: so tests
//! learn which there are, and none is forgotten. Only in builds with debug assertions; in others the calls are empty.

#[cfg(debug_assertions)]
mod armed {
    use std::fs::File;
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Plan {
        point: String,
        /// Arrivals that are still to be let through.
        left: AtomicU32,
    }

    fn plan() -> Option<&'static Plan> {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        let read = || {
            let text = std::env::var("LAPWING_FAILPOINT").ok()?;
            let (point, count) = text.split_once(':').unwrap_or((&text, "1"));
            let left = AtomicU32::new(count.parse::<u32>().ok()?.saturating_sub(1));
            Some(Plan { point: point.to_owned(), left })
        };
        PLAN.get_or_init(read).as_ref()
    }

    fn log() -> Option<&'static File> {
        static LOG: OnceLock<Option<File>> = OnceLock::new();
        let open = || {
            let path = std::env::var_os("LAPWING_FAILPOINT_LOG")?;
            File::options().append(true).create(true).open(path).ok()
        };
        LOG.get_or_init(open).as_ref()
    }

    fn note(point: [&str; 2]) {
        if let Some(mut log) = log() {
            let separator = if point[1].is_empty() { "" } else { "." };
            // One write, so that lines of several threads do not mix. A test that misses the line says so.
            let _ = log.write_all(format!("{}{separator}{}\n", point[0], point[1]).as_bytes());
        }
    }

    fn is_due(matches: impl Fn(&str) -> bool) -> bool {
        let Some(plan) = plan().filter(|plan| matches(&plan.point)) else { return false };
        plan.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }

    fn die() -> ! {
        // Nothing is flushed, no destructor runs.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }

    /// Ends the process if `point` is the one to fail at.
    pub(crate) fn reach(point: &str) {
        note([point, ""]);
        if is_due(|planned| planned == point) {
            die();
        }
    }

    /// The same for a step in the making of a file: the point is `<file>.<step>`.
    pub(crate) fn reach_step(file: &str, step: &str) {
        note([file, step]);
        let here = |planned: &str| planned.strip_suffix(step).and_then(|rest| rest.strip_suffix('.')) == Some(file);
        if is_due(here) {
            die();
        }
    }

    /// Ends the process after `write`, which does a part of what was to be done.
    pub(crate) fn reach_half(file: &str, write: impl FnOnce()) {
        note([file, "half"]);
        let here = |planned: &str| planned.strip_suffix(".half") == Some(file);
        if is_due(here) {
            write();
            die();
        }
    }
}

#[cfg(not(debug_assertions))]
mod armed {
    #[inline(always)]
    pub(crate) fn reach(_point: &str) {}

    #[inline(always)]
    pub(crate) fn reach_step(_file: &str, _step: &str) {}

    #[inline(always)]
    pub(crate) fn reach_half(_file: &str, _write: impl FnOnce()) {}
}

pub(crate) use armed::{reach, reach_half, reach_step};
