//! Two threads that run the parts of the world side by side, one stretch of time after the other.
//!
//! Within a stretch no longer than the least latency nothing that happens in one part is felt in another. So each part can
//! be run by whichever thread comes first, and the outcome does not depend on which one did.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// What the threads share.
#[derive(Debug, Default)]
pub(super) struct Lockstep {
    /// Number of the stretch.
    stretch: AtomicU64,
    end_ns: AtomicU64,
    /// The next part that nobody has taken.
    next: AtomicUsize,
    /// Parts of the stretch that are done.
    done: AtomicUsize,
    over: AtomicBool,
}

/// Waits without sleeping: a stretch takes some hundred microseconds.
fn wait_until(condition: impl Fn() -> bool) {
    for round in 0_u32.. {
        if condition() {
            return;
        }
        if round % 128 == 127 { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

impl Lockstep {
    /// Runs `parts` parts until `end_ns`, this thread and the helping one; `run` takes the number of a part and that time.
    pub(super) fn run(&self, parts: usize, end_ns: u64, run: &impl Fn(usize, u64)) {
        self.done.store(0, Ordering::Relaxed);
        self.end_ns.store(end_ns, Ordering::Relaxed);
        self.next.store(0, Ordering::Release);
        self.stretch.fetch_add(1, Ordering::Release);
        self.take_parts(parts, run);
        wait_until(|| self.done.load(Ordering::Acquire) == parts);
    }

    fn take_parts(&self, parts: usize, run: &impl Fn(usize, u64)) {
        loop {
            let part = self.next.fetch_add(1, Ordering::AcqRel);
            if part >= parts {
                return;
            }
            // Who took a part sees what was stored before parts could be taken, however late it comes.
            let _done = Done(self);
            run(part, self.end_ns.load(Ordering::Relaxed));
        }
    }

    /// Takes parts until all is over.
    pub(super) fn help(&self, parts: usize, run: &impl Fn(usize, u64)) {
        let mut seen = 0;
        loop {
            wait_until(|| self.stretch.load(Ordering::Acquire) != seen || self.over.load(Ordering::Acquire));
            if self.over.load(Ordering::Acquire) {
                return;
            }
            seen = self.stretch.load(Ordering::Acquire);
            self.take_parts(parts, run);
        }
    }

    /// Lets the helping thread end, when it is dropped: also when a part has panicked.
    pub(super) fn end(&self) -> impl Drop + '_ {
        End(self)
    }
}

/// Counts a part as done, also when it panics: the other thread would wait for ever.
struct Done<'a>(&'a Lockstep);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done.fetch_add(1, Ordering::Release);
    }
}

struct End<'a>(&'a Lockstep);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
    }
}
