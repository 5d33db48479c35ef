//! The chunk store as its callers and an operator see it.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up shall stop")]

mod concurrency;
mod crash;
mod disk_full;
mod eviction;
mod mounts;
mod recovery;
mod reference;
