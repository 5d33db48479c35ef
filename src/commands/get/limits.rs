//! What `lapwing get` takes from outside, at most.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Where a node's mirror listens, if its configuration does not say otherwise.
pub(super) const USUAL_NODE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7080);
/// Bytes of the record beside a part of a file.
pub(super) const MAX_RECORD: u64 = 64 << 10;
/// Bytes of a file with headers.
pub(super) const MAX_HEADER_FILE: u64 = 64 << 10;
/// Bytes of a node's refusal that are read and shown.
pub(super) const MAX_REFUSAL: usize = 16 << 10;
/// Bytes of a file name.
pub(super) const MAX_NAME: usize = 255 - ".part.json".len();
/// Time for the node on this machine to take a connection: it does so at once, or is not there.
pub(super) const NODE_CONNECT: Duration = Duration::from_secs(1);
/// Longest pause between two tries.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of a directory listing.
pub(super) const MAX_LISTING: usize = 16 << 20;
/// Files of one run with `-r`.
pub(super) const MAX_FILES: usize = 100_000;
/// Directories within directories.
pub(super) const MAX_DEPTH: usize = 32;
/// Manifests of an index, and blobs of an image.
pub(super) const MAX_IMAGE_BLOBS: usize = 1024;
