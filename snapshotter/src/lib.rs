//! Layer index, EROFS metadata writer, lazy mounts and the containerd snapshots service.

pub mod filter;
pub mod graph;
pub mod index;
mod inflate;
pub mod limits;
pub mod remote;
pub mod service;
pub mod source;
pub mod tar;
pub mod tree;
