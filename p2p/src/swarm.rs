//! The deterministic scheduler.

/// Which bytes go first; most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody is blocked on it.
    Fault,
    /// Somebody will be soon.
    ReadAhead,
    /// It was needed at this point the last time.
    Prefetch,
    /// A whole blob is being pulled.
    Bulk,
    /// Nobody waits.
    Background,
}
