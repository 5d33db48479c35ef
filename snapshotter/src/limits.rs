//! Every number that bounds what comes from outside.

use std::num::NonZeroUsize;

// Snapshots service and its graph.

/// Longest key or name of a snapshot, in bytes; containerd's own store (bolt) refuses longer ones.
pub const MAX_SNAPSHOT_NAME_BYTES: usize = 32_768;
/// Longest label, key and value together, in bytes; containerd refuses longer ones.
pub const MAX_LABEL_BYTES: usize = 4096;

/// Most ranges of a mapping of ids: the kernel's own limit (`user_namespaces(7)`).
pub const MAX_ID_RANGES: usize = 340;
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

// Layer index: see `index` and `tar`.

/// Most entries in one layer.
pub const MAX_ENTRIES: usize = 1 << 20;
/// Most memory that the file table of one layer may take, in bytes.
pub const MAX_TABLE_BYTES: usize = 256 << 20;
/// Longest path or link target, in bytes (Linux PATH_MAX less the NUL).
pub const MAX_PATH_BYTES: usize = 4095;
/// Longest name between two slashes, in bytes (Linux NAME_MAX).
pub const MAX_NAME_BYTES: usize = 255;
/// Longest name of an extended attribute, in bytes (Linux XATTR_NAME_MAX).
pub const MAX_XATTR_NAME_BYTES: usize = 255;
/// Longest value of an extended attribute, in bytes (Linux XATTR_SIZE_MAX).
pub const MAX_XATTR_VALUE_BYTES: usize = 64 << 10;
/// Longest PAX header, GNU long name or long link in a tar, in bytes (as in Go's archive/tar, which containerd uses).
pub const MAX_TAR_META_BYTES: u64 = 1 << 20;
/// Most stretches of data in one sparse file.
pub const MAX_EXTENTS: usize = 1 << 20;
/// Longest file in a layer, in bytes (the kernel's MAX_LFS_FILESIZE).
pub const MAX_FILE_BYTES: u64 = i64::MAX as u64;
/// Longest decompressed tar, in bytes.
pub const MAX_TAR_BYTES: u64 = 1 << 40;
/// Most output per byte of input over the whole layer, once [`BOMB_FREE_BYTES`] have come out.
pub const MAX_RATIO: u64 = 1000;
/// Output that is never called a bomb, in bytes.
pub const BOMB_FREE_BYTES: u64 = 64 << 20;
/// Longest span of a gzip layer or plain tar, in bytes of output; also bounds its compressed bytes.
pub const MAX_SPAN_BYTES: u64 = 64 << 20;
/// Longest span of a zstd layer, in bytes of output.
pub const MAX_ZSTD_SPAN_BYTES: u64 = 32 << 20;
/// Most spans in one layer.
pub const MAX_SPANS: usize = 1 << 20;
/// Longest description of what is wrong with something from outside, in bytes: what is cited of it goes into logs.
pub const MAX_PROBLEM_BYTES: usize = 300;
/// Longest encoded index, in bytes.
pub const MAX_INDEX_BYTES: usize = 512 << 20;

// Tables of contents that others made: see `toc`.

/// Longest table of contents of a layer as it is stored in the layer, in bytes.
pub const MAX_TOC_STORED_BYTES: u64 = 64 << 20;
/// Longest table of contents itself, in bytes: several hundred thousand files.
pub const MAX_TOC_BYTES: usize = 256 << 20;
/// Longest zTOC of SOCI, in bytes: of a layer whose tar has some 30 GB, with spans of 4 MiB.
pub const MAX_ZTOC_BYTES: u64 = 256 << 20;
/// Most chunks that one table of contents may name.
pub const MAX_TOC_CHUNKS: usize = 1 << 20;
/// Most memory for the extended attributes of one entry of a table, as it is read, in bytes.
pub const MAX_TOC_XATTR_BYTES: usize = 2 << 20;
/// Longest description that is kept with a table, in bytes.
pub const MAX_TOC_DESCRIPTION_BYTES: usize = 4096;
/// Most compressed bytes that are fetched because a layer's maker wants them at start-up.
pub const MAX_PREFETCH_BYTES: u64 = 256 << 20;

// Lazy mounts: see `erofs`, `fuse` and `lazy`.

/// Symbolic links followed while one path of a layer is resolved, as in containerd's `fs.RootPath`.
pub const MAX_LINKS_FOLLOWED: usize = 255;
/// Most components of paths and of links' targets that are looked at while a layer with links in its paths is applied: a second or
/// two. Ordinary paths have ten.
pub const MAX_PATH_STEPS: u64 = 1 << 28;
/// Most memory for directories of a layer that no entry of it describes, in bytes: some 250,000 of them.
pub const MAX_IMPLICIT_BYTES: u64 = 160 << 20;
/// Most chunk indexes in one EROFS image: 32 MiB of them. Only sparse files need more than one each.
pub const MAX_CHUNK_INDEXES: u64 = 1 << 22;
/// Longest value of an extended attribute, in bytes: the field in EROFS has 16 bits.
pub const MAX_EROFS_XATTR_BYTES: usize = 65_535;
/// Longest EROFS image, in bytes; a layer whose metadata is larger is pulled whole.
pub const MAX_IMAGE_BYTES: u64 = 4 << 30;
/// Reads of the data files in work at once; more wait in order.
pub const MAX_READS_IN_FLIGHT: usize = 512;
/// Longest read that the FUSE loop answers, in bytes (`max_pages` 256 as negotiated).
pub const MAX_READ_BYTES: u32 = 1 << 20;
/// Bytes fetched ahead of a sequential reader, at most.
pub const MAX_READ_AHEAD_BYTES: u64 = 8 << 20;
/// Tars and images of lazily mounted layers that are open at once.
pub const MAX_OPEN_LAYER_FILES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

// Profiles: see `profile`.

/// Most layers that a profile speaks of.
pub const MAX_PROFILE_LAYERS: usize = 512;
/// Most entry points in one profile; the one that was recorded longest ago is forgotten.
pub const MAX_PROFILE_STARTS: usize = 16;
/// Most reads in one profile, all entry points together; the latest of a start are left out.
pub const MAX_PROFILE_READS: usize = 10_240;
/// Most reads of one recording.
pub const MAX_RECORDED_READS: usize = 4096;
/// Starts of images recorded at once; others are not recorded.
pub const MAX_RECORDINGS: usize = 64;
/// Longest name of a program in a profile, in bytes.
pub const MAX_PROGRAM_BYTES: usize = 64;
/// What profiles may have fetched of an image, one part in so many of the compressed bytes of its layers ...
pub const MAX_PREFETCH_SHARE: u64 = 2;
/// ... or so much, in bytes, if that is more.
pub const MIN_PREFETCH_BYTES: u64 = 32 << 20;
/// Most compressed bytes that are fetched before what comes next in the profile's order, to have them in one row.
pub const MAX_PREFETCH_RUN_BYTES: u64 = 4 << 20;
/// Most layers that are being unpacked at once by containerd on behalf of its own requests.
pub(crate) const MAX_UNPACKS: usize = 1024;

// What the daemon asks of the mounter: see `privileged`.

/// Longest request, in bytes: a chain's directories and some hundred paths fit.
pub const MAX_PRIVILEGED_REQUEST: usize = 96 << 10;
/// Most directories in one question for attributes.
pub const MAX_INHERIT_ASKED: usize = 512;
/// Longest answer in a packet, in bytes.
pub const MAX_PRIVILEGED_ANSWER: usize = 4096;
/// Longest answer in a memory file, in bytes: tables of some hundred thousand mounts.
pub const MAX_PRIVILEGED_FILE: u64 = 64 << 20;
/// Most sockets that the mounter takes requests from.
pub const MAX_PRIVILEGED_LANES: usize = 8;
