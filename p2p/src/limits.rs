//! Every bound on what this crate takes from outside, in one place.

/// Longest blob, in bytes: 1 TiB. Also keeps piece counts within 2^20.
pub const MAX_BLOB_LENGTH: u64 = 1 << 40;

/// Most runs of missing pieces named in one lease request.
pub const MAX_RUNS: usize = 64;

/// Longest encoded metainfo, in bytes: that of a blob of [`MAX_BLOB_LENGTH`], just above 32 MiB.
pub const MAX_METAINFO_LENGTH: usize = crate::verify::METAINFO_HEADER_LENGTH + (1 << 20) * 32;

/// Longest bitmap file of the chunk store that is read, in bytes: that of a blob of [`MAX_BLOB_LENGTH`].
pub const MAX_BITMAP_FILE_LENGTH: u64 = 48 + (1 << 20) / 8 + 4;

/// Most blobs of the chunk store whose data file is kept open though nobody uses it.
pub const MAX_IDLE_OPEN_BLOBS: usize = 512;
