//! Waiting for a condition, always with a deadline and a name for what is waited for.

use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

const FIRST_POLL: Duration = Duration::from_millis(2);
const SLOWEST_POLL: Duration = Duration::from_millis(100);

/// What one look at a condition found.
#[derive(Debug)]
pub enum Poll<T> {
    /// It holds.
    Ready(T),
    /// It does not hold yet, and why not.
    NotYet(String),
}

impl<T> Poll<T> {
    /// An error that may pass is a reason to wait.
    pub fn retry(result: Result<T>) -> Self {
        result.map_or_else(|error| Self::NotYet(format!("{error:#}")), Self::Ready)
    }
}

/// Polls `condition` until it is ready; an error ends the waiting at once. After `deadline`, an error that names `what` and the last reason
/// for not being ready.
pub fn until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<Poll<T>>) -> Result<T> {
    let start = Instant::now();
    let mut pause = FIRST_POLL;
    loop {
        let reason = match condition().with_context(|| format!("while waiting for {what}"))? {
            Poll::Ready(value) => return Ok(value),
            Poll::NotYet(reason) => reason,
        };
        if start.elapsed() >= deadline {
            bail!("waited {deadline:?} for {what}: {reason}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(SLOWEST_POLL);
    }
}

/// [`until`] for a condition that is only true or false.
pub fn until_true(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until(what, deadline, || Ok(if condition() { Poll::Ready(()) } else { Poll::NotYet("not yet".into()) }))
}
