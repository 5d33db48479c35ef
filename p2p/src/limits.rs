//! Every bound on what this crate takes from outside, in one place.

/// Longest blob, in bytes: 1 TiB. Also keeps piece counts within 2^20.
pub const MAX_BLOB_LENGTH: u64 = 1 << 40;

/// Most runs of missing pieces named in one lease request.
pub const MAX_RUNS: usize = 64;

/// Most peers named in one lease request as giving nothing.
pub const MAX_USELESS: usize = 64;

/// Connections to a node that nobody has greeted it on yet; each has five seconds to.
pub const MAX_GREETINGS: usize = 128;

/// Longest name of an origin's site, in bytes.
pub const MAX_SITE_BYTES: usize = 255;

/// Longest encoded metainfo, in bytes: that of a blob of [`MAX_BLOB_LENGTH`], just above 32 MiB.
pub const MAX_METAINFO_LENGTH: usize = crate::verify::METAINFO_HEADER_LENGTH + (1 << 20) * 32;

/// Longest encoded layer index that nodes tell each other of, in bytes: enough for layers of some 10 GB.
pub const MAX_LAYER_INDEX_LENGTH: u64 = 64 << 20;

/// Longest blob that a name may stand for, in bytes: the longest manifest of the distribution specification.
pub const MAX_REFERENT_LENGTH: u64 = 4 << 20;

/// Longest profile of an image, in bytes: one piece, so that it comes in one round trip and needs no metainfo.
pub const MAX_PROFILE_LENGTH: u64 = 256 << 10;

/// Longest bitmap file of the chunk store that is read, in bytes: that of a blob of [`MAX_BLOB_LENGTH`].
pub const MAX_BITMAP_FILE_LENGTH: u64 = 48 + (1 << 20) / 8 + 4;

/// Longest journal of the chunk store that is read, in bytes: that of a blob of [`MAX_BLOB_LENGTH`].
pub const MAX_JOURNAL_FILE_LENGTH: u64 = 64 + (1 << 20) * 16;

/// Most blobs of the chunk store whose data file is kept open though nobody uses it.
pub const MAX_IDLE_OPEN_BLOBS: usize = 512;

/// Most blobs of a chunk store in memory, each of which takes a descriptor.
pub const MAX_MEMORY_BLOBS: usize = 65_536;

/// Most blobs that are held in files of somebody else.
pub const MAX_FOREIGN_BLOBS: usize = 1 << 17;

/// Longest list of verified foreign files that is read, in bytes.
pub const MAX_FOREIGN_LEDGER_LENGTH: u64 = MAX_FOREIGN_BLOBS as u64 * 4 * 180 + (1 << 20);

/// Most pieces asked for on one connection, and not come over it, that are remembered.
pub const MAX_ASKED_PIECES: usize = 4096;

/// Longest piece, in bytes.
pub const MAX_PIECE_LENGTH: u64 = 1 << 20;

/// Most statements about pieces of one blob that are remembered after the pieces were dropped.
pub const MAX_EVIDENCE: usize = 1 << 16;

/// Most derived objects that are remembered as refuted.
pub const MAX_REFUTED_OBJECTS: usize = 1024;

/// Most derived objects that are remembered: one or two for each blob of a large cache.
pub const MAX_DERIVED_OBJECTS: usize = 1 << 17;

/// Most pieces announced in one `Have` frame.
pub const MAX_HAVES: usize = 1024;

/// Longest frame body of the piece wire that is not a piece, in bytes: a `Hello` with the bitfield of the longest blob.
pub const MAX_CONTROL_FRAME: usize = 4 + 32 + 8 + (1 << 20) / 8;

/// Longest frame body that carries a piece, in bytes.
pub const MAX_PIECE_FRAME: usize = 9 + 128 + MAX_PIECE_LENGTH as usize;

/// Most blobs that one connection may speak of.
pub const MAX_BLOBS_PER_CONNECTION: usize = 4096;

/// Most requests of one peer that wait for an upload slot.
pub const MAX_QUEUED_REQUESTS: usize = 256;

/// Most frames that wait to be written to one peer; a peer that reads slower than that is dropped.
pub const MAX_QUEUED_FRAMES: usize = 4096;

/// Most bytes of pieces that are received, checked and written at the same time, over all connections and origins.
pub const MAX_RECEIVE_BYTES: usize = 32 << 20;

/// Most bytes of receive buffers that are kept for the next piece.
pub const MAX_IDLE_RECEIVE_BYTES: usize = 8 << 20;

/// Most peers whose offences are remembered.
pub const MAX_OFFENDERS: usize = 4096;

/// Most bytes of pieces, over all blobs, that are held aside because no trusted hash of them is known yet.
pub const MAX_ASIDE_BYTES: u64 = 32 << 20;

/// Most bytes of pieces, over all blobs, that pass through memory because the store is full. A reader that can do nothing
/// without a piece gets it beyond that.
pub const MAX_PASSING_BYTES: u64 = 32 << 20;

/// Most peers of a blob that are remembered beyond those that are connected.
pub const MAX_KNOWN_HOLDERS: usize = 256;

/// Most holders that one peer names in an answer.
pub const MAX_TOLD_HOLDERS: usize = 16;

/// Most peers that are remembered over a restart.
pub const MAX_REMEMBERED_PEERS: usize = 256;

/// Longest file of remembered peers that is read, in bytes: a line has at most 113.
pub const MAX_PEERS_FILE_LENGTH: u64 = 64 << 10;

/// Most blobs that peers are asked for at the same time.
pub const MAX_SEARCHES: usize = 1024;

/// Most questions that one peer may ask at once, before [`QUESTIONS_PER_SECOND`].
pub const MAX_QUESTIONS_AT_ONCE: u32 = 256;

/// How many questions of one peer are answered in the long run: an image has some tens of blobs.
pub const QUESTIONS_PER_SECOND: u32 = 32;

/// Most piece lessees remembered of a blob.
pub const MAX_LESSEES: usize = 4096;

/// Most origins remembered of one blob.
pub const MAX_ORIGINS: usize = 4;

/// Longest file that remembers which objects derive from which blobs, in bytes.
pub const MAX_DERIVED_FILE_LENGTH: u64 = 64 << 20;

/// Most blobs that an operator may pin.
pub const MAX_OPERATOR_PINS: usize = 65_536;

/// Longest file of pins that is read, in bytes: that of [`MAX_OPERATOR_PINS`].
pub const MAX_PINS_FILE_LENGTH: u64 = MAX_OPERATOR_PINS as u64 * 72;

/// Most digests in one question of how many copies there are.
pub const MAX_REPLICA_QUESTIONS: usize = 256;

/// Longest name of a cluster, in bytes (SPIFFE-ID, 2.1: a trust domain).
pub const MAX_CLUSTER_BYTES: usize = 255;

/// Longest name of a group of nodes, in bytes.
pub const MAX_GROUP_BYTES: usize = 64;

/// Longest file of certificates or keys that is read, in bytes.
pub const MAX_PEM_BYTES: u64 = 256 << 10;

/// Most certificates in one file, and in what one side of a connection shows.
pub const MAX_CERTIFICATES: usize = 16;

/// Blobs whose last pull is remembered, with where its time went: at most 24 KiB each, and mostly a tenth of that.
pub const MAX_TIMELINES: usize = 128;

/// Things under way at the same time that are shown of one pull of one blob; more are taken down when they end.
pub const MAX_OPEN_SPANS: usize = 64;

/// Peers of which it is remembered for one pull where they stand.
pub const MAX_PEERS_PLACED: usize = 128;

/// Longest report of a node on a trial, in bytes.
pub const MAX_TRIAL_REPORT_BYTES: usize = 1024;

/// Spans a second that are recorded because other machines ask for it, beyond [`REMOTE_SPANS_AT_ONCE`]: a peer or a caller of the tracker
/// decides by itself which of its pulls are traced.
pub const REMOTE_SPANS_PER_SECOND: u32 = 50;

/// Such spans that may be begun at once.
pub const REMOTE_SPANS_AT_ONCE: u32 = 500;

/// Requests of clients a second that are recorded, beyond [`REQUEST_SPANS_AT_ONCE`].
pub const REQUEST_SPANS_PER_SECOND: u32 = 50;

/// Such requests that may be begun at once: images of hundreds of layers.
pub const REQUEST_SPANS_AT_ONCE: u32 = 500;

/// Reads of lazily mounted layers a second that are recorded because they wait, beyond [`FAULT_SPANS_AT_ONCE`].
pub const FAULT_SPANS_PER_SECOND: u32 = 10;

/// Such reads that may be begun at once.
pub const FAULT_SPANS_AT_ONCE: u32 = 100;

/// Longest text in an attribute of a span, in bytes.
pub const MAX_TRACE_TEXT: usize = 512;

/// Peers of whom one traced pull of a blob has a span each; what others give is one sum.
pub const MAX_TRACED_PEERS: usize = 32;

/// Of each kind of questions and transfers, how many of one traced pull of a blob have a span.
pub const MAX_TRACED_STEPS: u32 = 32;

/// Blobs that one peer may have traced at the same time.
pub const MAX_TRACED_BLOBS: usize = 64;
