//! The mirror as its clients see it: real nodes, a real tracker, an in-process registry, HTTP over loopback.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

#[path = "../../plugins/tests/registry/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of the plugins crate, which use the rest")]
mod fake;

mod blobs;
mod faults;
mod manifests;
mod outage;
mod private;
mod real_urls;
mod rig;
mod urls;
