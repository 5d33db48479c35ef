//! Whole nodes on loopback: what the swarm promises to readers.

mod cold;
mod faults;
mod hostile;
mod support;
