//! The shell of sockets and tasks around the swarm.

mod blob;
mod config;
mod error;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Digest;
use crate::discovery::{Discovery, StatementKind};
use crate::identity::PeerId;
use crate::metrics::Metrics;
use crate::origin::Origin;
use crate::store::ChunkStore;

pub use crate::swarm::Priority;
pub use blob::{Blob, Sources};
pub use config::NodeConfig;
pub use error::{NodeError, OpenError, ReadError};

/// One line of [`Node::blobs`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobStatus {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Bytes of the pieces that are here.
    pub have: u64,
    /// Whether the whole blob matched its digest.
    pub verified: bool,
    /// Connected peers that trade it.
    pub peers: usize,
    /// Bytes that came from peers since the start.
    pub bytes_from_peers: u64,
    /// Bytes that came from the origin since the start.
    pub bytes_from_origin: u64,
    /// Whether something wants bytes of it now.
    pub active: bool,
}

/// A node of the swarm.
pub struct Node {
    config: NodeConfig,
    store: Arc<ChunkStore>,
    local_addr: SocketAddr,
}

impl Node {
    /// Binds the piece wire and announces the complete blobs of the store.
    pub async fn start(
        config: NodeConfig,
        store: Arc<ChunkStore>,
        discovery: Arc<dyn Discovery>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, NodeError> {
        let _ = (config, store, discovery, metrics);
        todo!()
    }

    /// Where the piece wire listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Its name.
    pub fn id(&self) -> PeerId {
        self.config.identity.id()
    }

    /// Its chunk store.
    pub fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// Opens a blob; it joins the swarm at the first want. All opens of a digest share one state; a later origin
    /// replaces an older one, since its credentials are fresher.
    pub fn open(
        self: &Arc<Self>,
        digest: Digest,
        length: u64,
        origin: Option<Arc<dyn Origin>>,
    ) -> Result<Arc<Blob>, OpenError> {
        let _ = (digest, length, origin);
        todo!()
    }

    /// Stores an object that derives from the blob `subject`, announces it and states it; its digest is returned.
    pub async fn publish(&self, kind: StatementKind, subject: Digest, object: Bytes) -> Result<Digest, NodeError> {
        let _ = (kind, subject, object);
        todo!()
    }

    /// The object of that kind that derives from `subject`: a local one, or that with most votes.
    pub async fn derived(self: &Arc<Self>, subject: Digest, kind: StatementKind) -> Option<Arc<Blob>> {
        let _ = (subject, kind);
        todo!()
    }

    /// Flushes, withdraws from discovery, and closes all connections.
    pub async fn shutdown(&self) {
        todo!()
    }

    /// What it holds and does.
    pub fn blobs(&self) -> Vec<BlobStatus> {
        todo!()
    }
}
