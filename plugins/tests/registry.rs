//! How registries are talked to: an in-process registry that misbehaves on demand, and a real one.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

#[path = "registry/attacks.rs"]
mod attacks;
#[path = "registry/authorize.rs"]
mod authorize;
#[path = "registry/bodies.rs"]
mod bodies;
#[path = "registry/fake.rs"]
mod fake;
#[path = "registry/forward.rs"]
mod forward;
#[path = "registry/hostile.rs"]
mod hostile;
#[path = "registry/keychain.rs"]
mod keychain;
#[path = "registry/parallel.rs"]
mod parallel;
#[path = "registry/real.rs"]
mod real;
#[path = "registry/rebinding.rs"]
mod rebinding;
#[path = "registry/redirects.rs"]
mod redirects;
#[path = "../../p2p/tests/node/support.rs"]
#[allow(dead_code, reason = "the tests of nodes use the rest of it")]
mod support;
#[path = "registry/tokens.rs"]
mod tokens;

/// What nodes of these tests speak with each other.
const INSECURE: bool = false;
