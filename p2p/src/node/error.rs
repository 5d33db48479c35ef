//! What readers of a blob and callers of the node are told.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Digest;
use crate::layout::TooLong;
use crate::origin::OriginError;
use crate::store::StoreError;
use crate::tls::TlsError;

/// Why a node did not start, or could not publish.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The piece wire's address is taken or not ours.
    #[error("piece wire cannot listen on {address}: {source}; choose another address or stop who has it")]
    Bind {
        /// The address as configured.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The chunk store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no TLS for the piece wire.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why a blob was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The chunk store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob is longer than any may be.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// No bytes are asked for, under a name that is not the empty blob's.
    #[error("blob {0} cannot be empty: its digest is not that of no bytes; whoever stated its length is wrong")]
    NotEmpty(Digest),
    /// The blob is open with another length.
    #[error("blob {digest} is open with {open} bytes, asked for with {asked}; whoever stated {asked} is wrong")]
    LengthMismatch {
        /// The blob.
        digest: Digest,
        /// Its length as it was opened first.
        open: u64,
        /// The length asked for now.
        asked: u64,
    },
}

/// Why bytes of a blob could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The origin gave nothing, and no peer has it.
    #[error("blob {digest}: no peer has it, and {source}")]
    Origin {
        /// The blob.
        digest: Digest,
        /// What the origin said.
        source: OriginError,
    },
    /// Nothing came in time.
    #[error(
        "blob {digest}: bytes {}..{} did not arrive within {waited:?} from {peers} peers or the origin; check the network, the tracker and the registry",
        range.start, range.end
    )]
    Deadline {
        /// The blob.
        digest: Digest,
        /// The bytes waited for.
        range: Range<u64>,
        /// How long.
        waited: Duration,
        /// Connected peers that take part in this blob.
        peers: usize,
    },
    /// All bytes came, from where they are published, and they are not the blob.
    #[error(
        "blob {digest} hashes to {actual} with all its bytes from {from}: what is served there under this name is something else; push it anew, or check what stands between"
    )]
    DigestMismatch {
        /// The blob.
        digest: Digest,
        /// What came.
        actual: Digest,
        /// From where.
        from: String,
    },
    /// Bytes that this stream gave already turned out wrong.
    #[error("blob {digest}: bytes given already did not match the digest in the end and were dropped; read it again")]
    Revoked {
        /// The blob.
        digest: Digest,
    },
    /// The chunk store failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// A range that is not within the blob.
    #[error("blob {digest}: bytes {}..{} are not within its {length} bytes", range.start, range.end)]
    OutOfRange {
        /// The blob.
        digest: Digest,
        /// The bytes asked for.
        range: Range<u64>,
        /// Length of the blob.
        length: u64,
    },
    /// The node is going down.
    #[error("the node is shutting down; ask its successor")]
    ShutDown,
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}
