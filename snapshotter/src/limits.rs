//! Every number that bounds what comes from outside.

// Snapshots service and its graph.

/// Longest key or name of a snapshot, in bytes; containerd's own store (bolt) refuses longer ones.
pub const MAX_SNAPSHOT_NAME_BYTES: usize = 32_768;
/// Longest label, key and value together, in bytes; containerd refuses longer ones.
pub const MAX_LABEL_BYTES: usize = 4096;
/// Most snapshots below one another. The kernel's overlayfs takes 500 lower directories.
pub const MAX_SNAPSHOT_CHAIN: usize = 500;
/// Most filters in one List.
pub const MAX_FILTERS: usize = 128;
/// Longest filter, in bytes: room for a few labels of the greatest length.
pub const MAX_FILTER_BYTES: usize = 32_768;
/// Most selectors in one filter.
pub const MAX_FILTER_SELECTORS: usize = 64;
/// Most memory for one compiled regular expression of a filter, in bytes.
pub const MAX_FILTER_REGEX_BYTES: usize = 256 * 1024;
/// Snapshots in one message of a List stream, as containerd's own service sends them.
pub const LIST_BATCH: usize = 100;
