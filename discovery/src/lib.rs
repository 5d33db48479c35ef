//! Discovery: who holds which blob, who states what of it, and who may fetch what from its origin.
//!
//! A node has a [`TrackerClient`], which fulfils [`lapwing_p2p::discovery::Discovery`]; a cluster has one or several
//! trackers ([`server`]). Everything a tracker knows is soft: nodes announce it, and announce it again when it is lost.
//!
//! * [`client`]: a node's side: keeps the trackers up to date, asks them, goes on without them
//! * [`server`]: the gRPC service, a thin shell; [`proto`] is generated from the `.proto` file, `wire` checks messages
//! * [`registry`]: the tracker's state: groups, nodes, holders, votes. Pure: no sockets, no clock
//! * [`lease`]: of one blob, who may fetch which pieces from the origin. Pure as well
//! * [`seed`]: asking seeds to fetch blobs for all: the service, and which of several is asked
//! * [`authority`]: letting nodes into a cluster; `transport`: TLS between its members, below the calls
//! * [`piccolo`]: Piccolo's agents as nodes of the tracker, by HTTP
//! * [`store`]: what several trackers keep together, where an operator wants that
//! * [`limits`], [`metrics`]: every bound and period; every metric name
//!
//! A search goes: [`TrackerClient`]'s `find` -> the first owner of the digest (`client/owners.rs`) whose circuit is closed, and
//! the next one where that is slow to answer (`client/asking.rs`) -> `server/service.rs`, which
//! takes the caller's address from the connection and checks the message -> [`registry::Registry::find`], which registers
//! the caller if need be, passes over holders that are silent, reported or the caller itself, and orders the others by
//! [`registry::distance`] -> `client/answers.rs`, which believes only what a peer could be. The reply also carries the
//! caller's registration; when that changed, the client's task sends everything it holds again.

pub mod authority;
pub mod client;
pub mod lease;
pub mod limits;
pub mod metrics;
pub mod piccolo;
pub mod proto;
mod rates;
pub mod registry;
mod rendezvous;
pub mod seed;
pub mod server;
pub mod store;
mod traced;
mod transport;
mod wire;

pub use self::client::{ClientConfig, InvalidConfig, TrackerClient, TrackerSource};
