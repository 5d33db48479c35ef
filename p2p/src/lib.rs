//! Moves immutable blobs between machines: chunk store, pieces, swarm, piece wire. Knows nothing of containers.
//!
//! * [`digest`], [`layout`], [`bitfield`]: what a blob and its pieces are called
//! * [`store`]: the chunk store, the one copy of every byte on this machine
//! * [`identity`], [`statement`], [`verify`]: who states which hash, and what is believed
//! * [`membership`], [`tls`]: who belongs to the cluster, and how that is proven on a connection
//! * [`wire`]: the framing that peers speak
//! * [`swarm`]: the deterministic scheduler: events and time in, actions out
//! * [`rate`]: speed limits
//! * [`timeline`]: where the time of a pull went
//! * [`trace`]: spans that follow a pull over nodes
//! * `changes`: all that is written to disk, in one place
//! * `exchange`: whom to ask, and what to believe, while no tracker answers
//! * [`origin`], [`discovery`], [`storage`], [`foreign`]: the contracts that somebody else fulfils
//! * [`node`]: the shell of sockets and tasks around all of it
//!
//! A read of a blob goes: [`node::Blob::read`] -> pieces missing in [`store`] become wants of [`swarm`] -> its actions
//! are carried out by [`node`] over [`wire`] or [`origin`] -> each piece is checked by [`verify`], written to [`store`],
//! and wakes the reader.

pub mod bitfield;
mod changes;
pub mod digest;
pub mod discovery;
mod exchange;
mod failpoint;
pub mod foreign;
pub mod identity;
pub mod layout;
pub mod limits;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod origin;
pub mod rate;
pub mod statement;
pub mod storage;
pub mod store;
pub mod swarm;
pub mod timeline;
pub mod tls;
pub mod trace;
pub mod verify;
pub mod wire;
