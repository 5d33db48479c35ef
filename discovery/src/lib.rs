//! Skeleton.
pub mod lease;
pub mod limits;
pub mod metrics;
pub mod proto;
pub mod registry;
pub mod server;
mod wire;
