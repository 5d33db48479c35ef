//! The snapshots service over its real socket: ordinary and remote snapshots, restarts and kills.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

#[path = "snapshots/adopted.rs"]
mod adopted;
#[path = "snapshots/killed.rs"]
mod killed;
#[path = "snapshots/ordinary.rs"]
mod ordinary;
#[path = "snapshots/remote.rs"]
mod remote;
#[path = "snapshots/rig.rs"]
mod rig;
