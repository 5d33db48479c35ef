//! Every bound on what this crate takes from outside, in one place.

/// Longest blob, in bytes: 1 TiB. Also keeps piece counts within 2^20.
pub const MAX_BLOB_LENGTH: u64 = 1 << 40;

/// Most runs of missing pieces named in one lease request.
pub const MAX_RUNS: usize = 64;
