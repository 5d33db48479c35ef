//! What talks to foreign systems, each behind a trait owned by the crate that calls it.
//!
//! * [`registry`]: OCI registries as origins of blobs, as judges of who may have them, and as the place manifests
//!   come from
//! * [`http`]: plain URLs as origins, with the semantics of an HTTP cache
//! * [`containerd`]: what containerd on this machine already holds
//! * [`storage`]: what a seed keeps completed blobs in: the local disk, object stores
//! * [`tracker_store`]: what trackers share: Redis, MySQL
//! * [`limits`]: every bound on what those systems send
//!
//! A blob asked for at the mirror goes: [`registry::Registries::authorize`] asks the registry whether this client may
//! have it -> [`registry::Registries::origin`] gives the swarm a [`lapwing_p2p::origin::Origin`] to fetch ranges from.

pub mod containerd;
pub mod http;
pub mod limits;
pub mod registry;
pub mod storage;
pub mod tracker_store;
