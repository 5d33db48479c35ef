//! Every bound on what this crate takes from outside, and every period, in one place.

use std::time::Duration;

// What one request may hold.

/// Largest message the tracker decodes, in bytes.
pub const MAX_REQUEST_BYTES: usize = 512 * 1024;
/// Largest message a client decodes, in bytes.
pub const MAX_REPLY_BYTES: usize = 128 * 1024;
/// Longest group name, in bytes.
pub const MAX_GROUP_BYTES: usize = lapwing_p2p::limits::MAX_GROUP_BYTES;
/// Longest zone or rack label, in bytes (as long as a Kubernetes label value).
pub const MAX_LABEL_BYTES: usize = 63;
/// Most holdings or statements in one message.
pub const MAX_ENTRIES_PER_MESSAGE: usize = 4096;
/// Most messages in one `Sync` stream.
pub const MAX_SYNC_MESSAGES: usize = 64;
/// How long one call may take, a `Sync` stream included.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that one connection may have under way at once.
pub const MAX_CALLS_PER_CONNECTION: u32 = 128;

// What the registry keeps.

/// Most groups.
pub const MAX_GROUPS: usize = 256;
/// Most nodes, over all groups.
pub const MAX_NODES: usize = 150_000;
/// Most labels of zones and racks that are kept once for all nodes of a group; more are kept by each node.
pub const MAX_LABELS: usize = 4096;
/// Most blobs that one node announces.
pub const MAX_BLOBS_PER_NODE: usize = 65_536;
/// Most holdings, over all groups.
pub const MAX_HOLDINGS: usize = 40_000_000;
/// Most statements that one node makes.
pub const MAX_STATEMENTS_PER_NODE: usize = 65_536;
/// Most distinct objects stated of one subject, kinds taken together.
pub const MAX_OBJECTS_PER_SUBJECT: usize = 8;
/// Most voters remembered for one object; more do not make it truer.
pub const MAX_VOTERS_PER_OBJECT: usize = 64;
/// Most lease books, over all groups.
pub const MAX_BOOKS: usize = 65_536;
/// Most lengths claimed for one blob; all but one are lies.
pub const MAX_LENGTHS_PER_BLOB: usize = 4;
/// Most distinct nodes that get leases of one blob, as many as one answer can name.
pub const MAX_LESSEES: usize = 512;

// What one answer holds.

/// Most holders in one answer.
pub const MAX_HOLDERS_PER_ANSWER: usize = 64;
/// Of these, one in so many is from elsewhere, in every place of that number, as long as there are such.
pub const FAR_SHARE: usize = 4;
/// How many of the holders in an answer a node usually trades with.
pub const NEIGHBOURS: usize = 16;
/// Most holders of which all are looked at for one answer. Of more, a sample is, and the asker's neighbours.
pub const MAX_HOLDERS_SCANNED: usize = 192;
/// Holders in that sample: a stretch after a random one.
pub const HOLDERS_SAMPLED: usize = 80;
/// Of those that hold all of it, the same.
pub const COMPLETE_SAMPLED: usize = 8;
/// Nodes of the asker's rack, subnet and zone, each, of which it is seen whether they hold the blob.
pub const MAX_NEIGHBOURS_SCANNED: usize = 32;
/// Most nodes, holders or leases in one answer to an operator.
pub const MAX_VIEW_ROWS: usize = 10_000;
/// Rates that an operator sees are means over so many ticks.
pub const RATE_TICKS: usize = 10;
/// Most nodes, and most blobs, in one snapshot for the admin page.
pub const MAX_SNAPSHOT_ROWS: usize = 1000;

// Nodes that fall silent or are reported.

/// A node that was silent for so long is forgotten; with the tick, within 60 s.
pub const NODE_TTL: Duration = Duration::from_secs(55);
/// Between two heartbeats of a node, before jitter: three may get lost.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often the tracker looks for what has expired.
pub const TICK: Duration = Duration::from_secs(1);
/// Most holdings of silent nodes forgotten in one tick, since the state is locked meanwhile; nobody is sent to the others
/// either. What is left is done by further ticks, which follow soon.
pub const MAX_EXPIRED_HOLDINGS_PER_TICK: usize = 8192;
/// The tick that goes on with that comes so soon.
pub const BACKLOG_TICK: Duration = Duration::from_millis(20);
/// How long one reporter alone keeps a peer from everybody's answers.
pub const QUARANTINE: Duration = Duration::from_secs(10);
/// How long a report keeps the peer from the reporter's own answers.
pub const GRUDGE: Duration = Duration::from_secs(60);
/// Reports of one node within [`GRUDGE`] that count for others.
pub const MAX_REPORTS_PER_NODE: usize = 8;
/// Grudges that are remembered of one node.
pub const MAX_GRUDGES_PER_NODE: usize = 256;
/// A node that was silent for so long, well beyond a heartbeat, is not counted on: it loses its leases, and what it
/// fetched or holds may be leased again.
pub const UNREPORTED_SILENCE: Duration = Duration::from_secs(30);
/// The same with one reporter: it has missed a heartbeat.
pub const SUSPECT_SILENCE: Duration = Duration::from_secs(20);
/// The same with two reporters: one that takes part in a cold start is heard from many times a second.
pub const CONFIRMED_SILENCE: Duration = Duration::from_secs(1);

// What a tracker keeps for its next start.

/// Holdings in one slice of a dump: the state is locked for one slice at a time.
pub const DUMP_SLICE_HOLDINGS: usize = 16_384;
/// Between two dumps, before jitter.
pub const DUMP_PERIOD: Duration = Duration::from_secs(60);
/// An older dump says little of who is there.
pub const MAX_DUMP_AGE: Duration = Duration::from_secs(600);

// The shared store.

/// What nodes tell is collected for so long before it is written.
pub const STORE_FLUSH: Duration = Duration::from_millis(100);
/// That a node lives is written so often at most.
pub const STORE_BEAT: Duration = Duration::from_secs(5);
/// How long an answer of the store is used before it is asked for again.
pub const STORE_ANSWER_AGE: Duration = Duration::from_millis(500);
/// How long a call waits for the store before it is answered from memory.
pub const STORE_PATIENCE: Duration = Duration::from_millis(250);
/// How long the store may take to answer a question.
pub const STORE_FIND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the store may take to write a batch, and to forget what has expired.
pub const STORE_WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Most holders of one blob asked of the store at a time.
pub const MAX_STORED_HOLDERS: usize = 1024;
/// The same where many blobs are asked for at once, to count copies.
pub const MAX_STORED_COPIES: usize = 64;
/// Questions to the store under way at once; more are answered from memory.
pub const MAX_STORE_QUESTIONS: usize = 256;
/// Most changes in one batch, if it has more than one node.
pub const MAX_STORE_BATCH: usize = 8192;
/// Most changes that wait to be written; of more, nodes are written whole.
pub const MAX_STORE_PENDING: usize = 262_144;
/// Holdings of one node that the store was found to lack, kept until the node calls again.
pub const MAX_STORE_LACKING: usize = 1024;
/// First pause after the store failed, before jitter.
pub const STORE_BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest pause between attempts at a store that fails.
pub const STORE_BACKOFF_MAX: Duration = Duration::from_secs(15);
/// What was seen later by so much was seen later, whatever two clocks of one tracker make of it.
pub const STORE_CLOCK_SLACK: Duration = Duration::from_secs(1);

// Leases.

/// Fewest pieces in a run, where so many are free in a row.
pub const LEASE_RUN: u32 = 2;
/// A run has at least so many bytes, as long as every stream gets several runs of the blob.
pub const RUN_BYTES: u64 = 1 << 20;
/// Runs that a blob is cut into at least, for each stream, before [`RUN_BYTES`] make them longer.
pub const RUNS_PER_STREAM: u32 = 16;
/// Most bytes in a run, where the origin answers slowly.
pub const MAX_RUN_BYTES: u64 = 16 << 20;
/// Where the origin answers slowly, a run takes so many times as long as the wait for its first byte.
pub const RUNS_PER_FIRST_BYTE: f64 = 10.0;
/// An origin's first byte that takes less is not made up for: a full link or a busy machine may be all there is to it.
pub const SLOW_ANSWER: Duration = Duration::from_millis(200);
/// A run of fewer bytes says nothing of a site's pace: an image's configuration comes whole with its first byte.
pub const MIN_PACE_BYTES: u64 = 64 << 10;
/// Streams from the origin's site at once, over all blobs.
pub const LEASE_STREAMS: usize = 8;
/// The same where half of them wait for their first byte.
pub const SLOW_STREAMS: usize = 16;
/// Import leases over the border of one zone at once, over all blobs.
pub const IMPORT_STREAMS: u32 = 4;
/// Most pieces in the run of an import lease: the importer asks for all of them at once.
pub const IMPORT_RUN: u32 = 1;
/// Most zones told apart in one blob's leases.
pub const MAX_ZONES_PER_BLOB: usize = 64;
/// Urgent leases of one blob at once, beyond the streams.
pub const URGENT_STREAMS: usize = 32;
/// Shortest term of a lease.
pub const MIN_TERM: Duration = Duration::from_secs(2);
/// Shortest term while it is not known how long a piece takes.
pub const FIRST_TERM: Duration = Duration::from_secs(5);
/// Longest term of a lease of a run.
pub const MAX_TERM: Duration = Duration::from_secs(120);
/// Longest term of a lease of a whole blob.
pub const MAX_WHOLE_TERM: Duration = Duration::from_secs(3600);
/// Bytes per second that an origin's site is trusted to make in all while it is not known how long a piece takes.
pub const FLOOR_BYTES_PER_S: u64 = 256 * 1024;
/// A lease is revoked when a piece takes so many times the mean.
pub const TERM_OVER_MEAN: u32 = 5;
/// How long the holder of an expired lease gets no other of that blob while others ask.
pub const EXPIRY_BAR: Duration = Duration::from_secs(20);
/// The same for one who gave a lease back without any piece; doubled for each time in a row.
pub const FAILURE_BAR: Duration = Duration::from_secs(2);
/// Longest bar for failures in a row.
pub const MAX_FAILURE_BAR: Duration = Duration::from_secs(32);
/// The same for one to whom the origin refuses the blob.
pub const REFUSAL_BAR: Duration = Duration::from_secs(60);
/// A peer that brought in more than so many times the mean of pieces that nobody took from it gets no further one.
pub const UNSHARED_OVER_MEAN: u32 = 2;
/// As many pieces that nobody took may be with anybody.
pub const UNSHARED_FLOOR: u32 = 4;
/// A further copy must save time: the rest must take so many times as long as a piece under lease.
pub const COPY_PAYS: u32 = 4;
/// While a seed asked for leases of a blob within so long, or holds one, others get none.
pub const SEED_ACTIVE: Duration = Duration::from_secs(3);
/// Most sites of origins in a group.
pub const MAX_SITES: usize = 1024;
/// A site that nobody asked leases for so long is forgotten.
pub const SITE_IDLE: Duration = Duration::from_secs(600);
/// Longest pause of a site.
pub const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Longest pause of a site on one node's word.
pub const MAX_PAUSE_BY_ONE: Duration = Duration::from_secs(30);
/// A reported node that was silent for so long loses its leases: one that takes part is heard from more often.
pub const REPORT_SILENCE: Duration = Duration::from_secs(1);
/// Shortest pause before an asker is to ask again.
pub const MIN_WAIT: Duration = Duration::from_millis(30);
/// Longest pause before an asker is to ask again, unless the origin asked for a longer one.
pub const MAX_WAIT: Duration = Duration::from_secs(2);
/// Every further asker of the same blob lengthens the pause by so much: about a thousand polls per second and blob.
pub const WAIT_PER_ASKER: Duration = Duration::from_millis(1);
/// Pause of one whose urgent piece is with somebody else.
pub const URGENT_WAIT: Duration = Duration::from_millis(30);
/// How long an asker counts as waiting for a turn.
pub const ASKER_ACTIVE: Duration = Duration::from_secs(5);
/// Expired leases of a blob that are remembered, so that a late settlement counts.
pub const MAX_LAPSED: usize = 64;
/// A blob nobody asked leases for so long is forgotten.
pub const BOOK_IDLE: Duration = Duration::from_secs(600);

// Seeds.

/// Most seeds in one answer.
pub const MAX_SEEDS: usize = 64;
/// Largest message a seed decodes, in bytes.
pub const MAX_SEED_REQUEST_BYTES: usize = 4096;
/// Largest answer of a seed that is decoded, in bytes.
pub const MAX_SEED_REPLY_BYTES: usize = 16 * 1024;
/// Longest reason that a seed gives, in bytes.
pub const MAX_SEED_REASON_BYTES: usize = 1024;
/// Longest name of a registry in a request to a seed, in bytes: a DNS name, a colon, five digits.
pub const MAX_NAMESPACE_BYTES: usize = 259;
/// Longest name of a repository, in bytes.
pub const MAX_REPOSITORY_BYTES: usize = 255;
/// Seeds asked for one blob before it is left to leases.
pub const MAX_SEEDS_TRIED: usize = 3;
/// How long a seed may take to answer.
pub const SEED_DEADLINE: Duration = Duration::from_secs(1);
/// How long a listing of seeds is used before it is asked for again.
pub const SEED_LISTING_AGE: Duration = Duration::from_secs(2);
/// How long a seed that did not answer, or was too busy, is passed over.
pub const SEED_SUSPICION: Duration = Duration::from_secs(10);

// Orders.

/// Most orders of a group.
pub const MAX_ORDERS: usize = 4096;
/// An order that is not repeated for so long is forgotten.
pub const ORDER_TTL: Duration = Duration::from_secs(60);
/// Most orders in one answer: with names of full length they fit into [`MAX_REPLY_BYTES`].
pub const MAX_ORDERS_PER_ANSWER: usize = 128;
/// Jobs of which it is remembered that they gave the same order.
pub const MAX_JOBS_PER_ORDER: usize = 64;
/// Longest reason of such a node, in bytes.
pub const MAX_ORDER_REASON_BYTES: usize = 512;
/// Most orders of a group that are trials.
pub const MAX_TRIALS: usize = 64;
/// Most that the trackers keep of what nodes of a group tell of trials, in bytes.
pub const MAX_TRIAL_BYTES: usize = 64 << 20;
/// How long after its order a trial may begin.
pub const MAX_TRIAL_WAIT: Duration = Duration::from_secs(600);
/// Most reports on a trial in one answer: they fit into [`MAX_REPLY_BYTES`].
pub const MAX_REPORTS_PER_ANSWER: usize = 64;
/// Orders that a node has heard of and not begun with; more are heard of again.
pub const MAX_HEARD_ORDERS: usize = 1024;

// Piccolo's agents.

/// An agent that was silent for so long is forgotten: Piccolo's own DEADTIMEOUT, three of its heartbeats.
pub const AGENT_TTL: Duration = Duration::from_secs(31 * 60);
/// The registry is told of an agent that lives so often: before a node would count as silent.
pub const AGENT_REFRESH: Duration = Duration::from_secs(20);
/// Most agents of which the registry is told under one lock.
pub const MAX_AGENTS_PER_LOCK: usize = 256;
/// Most holders in one answer to an agent: Piccolo's own default.
pub const MAX_PICCOLO_HOLDERS: usize = 100;
/// Longest key, in bytes: registry, repository and tag.
pub const MAX_PICCOLO_KEY_BYTES: usize = MAX_NAMESPACE_BYTES + MAX_REPOSITORY_BYTES + 128 + 2;
/// Longest body of an agent's request, in bytes: [`MAX_BLOBS_PER_NODE`] digests.
pub const MAX_PICCOLO_BODY_BYTES: usize = 8 << 20;
/// Most bodies that are read and taken in at the same time.
pub const MAX_PICCOLO_BODIES: usize = 16;

// The client.

/// Most trackers in a configuration, and in use; of more that DNS or a file names, the first by name are used.
pub const MAX_TRACKERS: usize = 8;
/// How often names of trackers are resolved again, unless configured.
pub const SOURCE_REFRESH: Duration = Duration::from_secs(30);
/// How often a file of trackers is looked at, and a name asked for that has not been resolved yet.
pub const SOURCE_POLL: Duration = Duration::from_secs(1);
/// How long a name server may take to answer before it is asked again, or the next one is.
pub const DNS_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest file of trackers, in bytes.
pub const MAX_TRACKER_FILE_BYTES: u64 = 64 * 1024;
/// Announcements are collected for so long, and up to twice as long.
pub const ANNOUNCE_BATCH: Duration = Duration::from_millis(50);
/// A blob of at most so many bytes may be fetched before it has been announced.
pub const QUICK_BLOB_BYTES: u64 = 1 << 20;
/// What was fetched longer ago has been announced, or was given up.
pub const UNANNOUNCED: Duration = Duration::from_secs(2);
/// Shortest time between two full listings to one tracker.
pub const MIN_SYNC_INTERVAL: Duration = Duration::from_millis(500);
/// Longest time over which a tracker spreads full listings, and the longest pause that a client believes of it.
pub const MAX_LISTING_PAUSE: Duration = Duration::from_secs(60);
/// Longest time between two heartbeats of a node whose tracker slows it down, before jitter.
pub const MAX_SLOWED_HEARTBEAT: Duration = Duration::from_secs(24);
/// Longest time in which the announcements of such a node are collected; up to twice as long with jitter.
pub const MAX_SLOWED_BATCH: Duration = Duration::from_millis(400);
/// Full listings that a tracker wants in a second: a hundred thousand nodes are through within a minute.
pub const LISTINGS_PER_S: u32 = 2000;
/// Calls in a second from which on a tracker slows its nodes down.
pub const CALM_CALLS_PER_S: u32 = 20_000;
/// Longest pause before the first attempt after a failure.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause between attempts at a dead tracker, while the budget for attempts lasts.
pub const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// How long one call to a tracker may take, unless configured.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Longest time to connect to a tracker.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Trackers that own a digest: they are told of it, and asked about it first.
pub const OWNERS: usize = 2;
/// A tracker that has not answered a search for so long is not waited for alone: the next is asked as well.
pub const FIND_HEDGE: Duration = Duration::from_millis(300);
/// The same with a lease: two trackers that grant leave one to be given back.
pub const LEASE_HEDGE: Duration = Duration::from_millis(400);
/// While a tracker owes an answer for so long, others are asked before it.
pub const OVERDUE: Duration = Duration::from_millis(300);
/// Most attempts at once beyond those that answers and time allow, over all trackers.
pub const RETRY_TOKENS: f64 = 16.0;
/// Further attempts that each second allows.
pub const RETRIES_PER_S: f64 = 1.0;
/// Further attempts that each answer allows.
pub const RETRIES_PER_ANSWER: f64 = 0.2;
/// Most leases whose tracker is remembered, to be told of their end; of others all trackers are told.
pub const MAX_REMEMBERED_LEASES: usize = 4096;
/// Longest term or pause that a client believes.
pub const MAX_BELIEVED: Duration = Duration::from_secs(300);

/// Most complete holders of one blob that are looked at to count its copies.
pub const MAX_REPLICAS_SCANNED: usize = 1024;
/// The same to see whether a live one is there, so that nobody needs the origin.
pub const MAX_COMPLETE_SCANNED: usize = 4096;

/// TLS handshakes of callers that go on at once.
pub const MAX_HANDSHAKES: usize = 256;
/// A caller's TLS handshake ends within that.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A caller that shows no certificate that is good joins or renews within that; then it has to connect anew, as the member that it may be by
/// then.
pub const STRANGER_STAYS: Duration = Duration::from_secs(5);
/// Pause after a connection that could not be accepted.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 256;
/// Most tokens of an authority at a time.
pub const MAX_TOKENS: usize = 1024;
/// Longest file of them that is read, in bytes.
pub const MAX_TOKENS_FILE_BYTES: u64 = MAX_TOKENS as u64 * 256;
/// Longest file of who was let in that is read, in bytes: a line has about 120.
pub const MAX_LEDGER_BYTES: u64 = 256 << 20;
/// That somebody got another certificate is noted once in that time.
pub const LEDGER_PERIOD: Duration = Duration::from_secs(86_400);
/// Longest answer of an authority, in bytes.
pub const MAX_MEMBERSHIP_BYTES: usize = 256 << 10;
/// Calls to an authority that are carried out at once; more wait.
pub const MAX_ADMISSIONS: usize = 8;
