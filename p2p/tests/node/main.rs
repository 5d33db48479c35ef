//! Whole nodes on loopback: what the swarm promises to readers.

#![allow(clippy::unwrap_used, reason = "what fails in a helper of a test fails the test")]

mod blame;
mod cold;
mod derived;
mod disk;
mod download;
mod exchange;
mod faults;
mod foreign;
mod full;
mod hostile;
mod killed;
mod limits;
mod many;
mod metainfo;
#[path = "../store/mounts.rs"]
#[allow(dead_code, reason = "the store's own tests use the rest of it")]
mod mounts;
mod named;
mod points;
mod raw;
mod room;
mod slow;
mod spoilers;
mod support;
mod wire;

/// Whether the piece wire is plaintext; `plaintext.rs` has it so.
const INSECURE: bool = false;
