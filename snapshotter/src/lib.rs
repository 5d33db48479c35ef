//! Layer index, EROFS metadata writer, lazy mounts and the containerd snapshots service.

pub mod erofs;
pub mod filter;
pub mod fuse;
pub mod graph;
pub mod index;
mod inflate;
pub mod lazy;
pub mod limits;
pub mod mountpoint;
pub mod privileged;
pub mod profile;
pub mod remote;
pub mod service;
mod shown;
pub mod source;
pub mod tar;
pub mod toc;
pub mod tree;
