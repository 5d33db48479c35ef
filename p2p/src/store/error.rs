//! What can go wrong in the chunk store, and what to do about it.

use std::io;
use std::path::Path;

use crate::digest::Digest;
use crate::layout::TooLong;
use crate::limits::MAX_OPERATOR_PINS;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused an operation on a file.
    #[error("chunk store: cannot {action} {path}: {source}; check the disk and who owns the directory")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full, or the quota or free-space floor is reached and nothing more can be evicted.
    #[error("chunk store {path}: no room: {reason}")]
    NoSpace {
        /// Where the room is missing.
        path: String,
        /// What is exhausted, and what to do.
        reason: String,
    },
    /// The blob is stored with another length.
    #[error(
        "blob {digest} is stored with {stored} bytes, asked for with {asked}; whoever stated {asked} is wrong, or remove the blob and fetch it anew"
    )]
    LengthMismatch {
        /// The blob.
        digest: Digest,
        /// Its length here.
        stored: u64,
        /// The length asked for.
        asked: u64,
    },
    /// The bytes are not those of the digest.
    #[error("blob {digest} hashes to {actual}: at least one piece is wrong; drop the pieces and fetch them again")]
    DigestMismatch {
        /// The digest it was asked for by.
        digest: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// A piece that is needed has not arrived.
    #[error("blob {digest}: piece {piece} is not here; fetch it first")]
    Missing {
        /// The blob.
        digest: Digest,
        /// The first piece that is missing.
        piece: u32,
    },
    /// A piece of the wrong length, or one past the end of the blob.
    #[error("blob {digest}: piece {piece} was given {found} bytes, expected {expected}; whoever sent it is wrong")]
    PieceLength {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: u32,
        /// The bytes given.
        found: u64,
        /// The bytes it has by the blob's layout; zero past its end.
        expected: u64,
    },
    /// A range that is not within the blob.
    #[error("blob {digest}: bytes {start}..{end} are not within its {length} bytes")]
    OutOfRange {
        /// The blob.
        digest: Digest,
        /// First byte asked for.
        start: u64,
        /// Byte after the last one asked for.
        end: u64,
        /// Length of the blob.
        length: u64,
    },
    /// Somebody needs the blob.
    #[error("blob {0} is in use by a mount or a download; try again when that has ended")]
    InUse(Digest),
    /// An operator pinned the blob.
    #[error("blob {0} is pinned; `lapwing unpin {0}` lets it go")]
    Pinned(Digest),
    /// There are as many pins as there may be.
    #[error("blob {0} is not pinned: {MAX_OPERATOR_PINS} others are; unpin some of them first")]
    TooManyPins(Digest),
    /// The blob was removed or evicted while this handle to it was held.
    #[error("blob {0} was removed from the store; open it again")]
    Removed(Digest),
    /// Pieces were dropped while the blob was hashed.
    #[error("blob {0}: pieces were dropped while it was hashed; verify it again when they are back")]
    Changed(Digest),
    /// The disk gives other bytes than were written.
    #[error("blob {digest}: piece {piece} on the disk is not what was written; check the disk")]
    Spoilt {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: u32,
    },
    /// The blob is longer than any may be.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// Others could have put files into the store.
    #[error("chunk store {path}: {reason}")]
    Insecure {
        /// The directory.
        path: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A store in memory without a bound.
    #[error("a chunk store in memory needs a quota; set store.quota")]
    NoQuota,
    /// A store in memory has as many blobs as it may have descriptors, all of them in use.
    #[error("{0} blobs are in memory and in use, with one descriptor each; raise LimitNOFILE, or keep blobs on disk")]
    TooManyBlobs(usize),
    /// Another process has the store.
    #[error("chunk store {0} is in use by another process; stop it, or give this one a root of its own")]
    Locked(String),
}

impl StoreError {
    /// The error for a failed operation on `path`; a full disk becomes [`StoreError::NoSpace`].
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.display().to_string();
        if is_full(&source) {
            let reason =
                format!("{source}; free space on this filesystem, or set a smaller quota or a higher free-space floor");
            return Self::NoSpace { path, reason };
        }
        Self::Io { action, path, source }
    }
}

/// Whether the system says that there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
