//! Layer index, EROFS metadata writer, lazy mounts and the containerd snapshots service.

pub mod source;
pub mod tree;
