//! The tests of whole nodes that send pieces to each other, with the piece wire in plaintext.

#![allow(clippy::unwrap_used, reason = "what fails in a helper of a test fails the test")]
#![allow(dead_code, reason = "not every test of whole nodes is here")]

#[path = "node/cold.rs"]
mod cold;
#[path = "node/hostile.rs"]
mod hostile;
#[path = "node/raw.rs"]
mod raw;
#[path = "node/support.rs"]
mod support;
#[path = "node/wire.rs"]
mod wire;

const INSECURE: bool = true;
