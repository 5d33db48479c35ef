//! Every bound on what registries and clients send, in one place.

use std::time::Duration;

/// How long containerd may take to accept a connection.
pub const CONTAINERD_CONNECT: Duration = Duration::from_secs(5);

/// How long containerd may take for one call; a listing of many blobs on a busy disk is the longest.
pub const CONTAINERD_CALL: Duration = Duration::from_secs(60);

/// Longest message of containerd's, in bytes; its own limit.
pub const MAX_CONTAINERD_MESSAGE: usize = 16 << 20;

/// Longest runtime specification of a container that is read, in bytes.
pub const MAX_CONTAINER_SPEC: usize = 4 << 20;

/// Most of containerd's namespaces that are looked into.
pub const MAX_CONTAINERD_NAMESPACES: usize = 1024;

/// Longest repository name, in bytes (distribution spec, "Pulling manifests").
pub const MAX_REPOSITORY_LENGTH: usize = 255;

/// Longest tag, in bytes (distribution spec).
pub const MAX_TAG_LENGTH: usize = 128;

/// Longest `host[:port]` of a registry, in bytes: a DNS name, a colon, five digits.
pub const MAX_HOST_LENGTH: usize = 253 + 6;

/// Longest `WWW-Authenticate` header taken apart, in bytes.
pub const MAX_CHALLENGE_LENGTH: usize = 4 * 1024;

/// Most parameters of one challenge.
pub const MAX_CHALLENGE_PARAMETERS: usize = 16;

/// Longest answer of a token endpoint, in bytes.
pub const MAX_TOKEN_ANSWER: usize = 128 * 1024;

/// Longest bearer token, in bytes.
pub const MAX_TOKEN_LENGTH: usize = 64 * 1024;

/// Tokens kept; the least recently used goes first.
pub const MAX_TOKENS: usize = 1024;

/// A token is used at most this long, whatever its issuer says.
pub const MAX_TOKEN_AGE: Duration = Duration::from_secs(60 * 60);

/// How long a token without `expires_in` holds (distribution spec, "Token Authentication Specification").
pub const DEFAULT_TOKEN_AGE: Duration = Duration::from_secs(60);

/// Longest manifest, index, tag list or referrers answer relayed, in bytes (the distribution spec's own limit).
pub const MAX_MANIFEST_LENGTH: usize = 4 * 1024 * 1024;

/// Longest image config read for its diff ids, in bytes.
pub const MAX_CONFIG_LENGTH: u64 = 8 * 1024 * 1024;

/// Most redirects followed for one request.
pub const MAX_REDIRECTS: usize = 3;

/// Longest redirect target, in bytes.
pub const MAX_LOCATION_LENGTH: usize = 16 * 1024;

/// Longest pause a registry can ask for.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(10 * 60);

/// Pause after a 429 that names none.
pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Positive answers of registries remembered (one per registry, repository, digest and credential).
pub const MAX_GRANTS: usize = 16 * 1024;

/// How long a positive answer is remembered at most.
pub const GRANT_AGE: Duration = Duration::from_secs(5 * 60);

/// Registries reached by the rule for unlisted ones whose connections are kept.
pub const MAX_UNLISTED: usize = 256;

/// Addresses of a registry that are tried to find out whether it can be reached; the first of them.
pub const MAX_KNOCKED_ADDRESSES: usize = 8;

/// Longest credential or configuration file read, in bytes.
pub const MAX_CREDENTIAL_FILE: u64 = 1024 * 1024;

/// Files read of a directory with credentials, the first by name.
pub const MAX_CREDENTIAL_FILES: usize = 64;

/// Longest answer of a program that gives credentials, in bytes.
pub const MAX_CREDENTIAL_ANSWER: u64 = 1024 * 1024;

/// How long such a program may take.
pub const CREDENTIAL_PROGRAM_TIMEOUT: Duration = Duration::from_secs(20);

/// Credential providers used, the first of the configuration.
pub const MAX_CREDENTIAL_PROVIDERS: usize = 32;

/// Answers of credential providers kept.
pub const MAX_KEPT_CREDENTIALS: usize = 1024;

/// An answer of a credential provider is kept at most this long, whatever it says.
pub const MAX_CREDENTIAL_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// A resource counts as fresh at most this long, whatever its server says: 30 days.
pub const MAX_FRESHNESS: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Longest value of one header of a URL's answer that is kept, in bytes.
pub const MAX_KEPT_HEADER: usize = 4 * 1024;

/// Most headers of a URL's answer that are kept.
pub const MAX_KEPT_HEADERS: usize = 32;

/// Longest URL fetched, in bytes.
pub const MAX_URL_LENGTH: usize = 8 * 1024;

/// Most query parameters that one request may leave out of a URL's name.
pub const MAX_FILTERED_QUERY: usize = 32;

/// Most URLs whose metadata is kept, in memory and on disk; the least recently used goes first.
pub const MAX_KEPT_URLS: usize = 4096;

/// Longest file with the metadata of a URL, in bytes.
pub const MAX_KEPT_FILE: u64 = 256 * 1024;
// Storage of seeds.

/// Parts in which a blob is sent to an object store, in bytes: S3 takes at most 10,000 of them, and at least 5 MiB each.
pub const STORAGE_PART: usize = 8 << 20;

/// Most parts of an upload (the limit of S3), which bounds a blob together with the length of a part.
pub const MAX_STORAGE_PARTS: u64 = 10_000;

/// Parts of one blob under way at once.
pub const STORAGE_PARTS_AT_ONCE: usize = 3;

/// How long one call to an object store may take, and each step of a transfer.
pub const STORAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a call to an object store is tried again that failed in passing.
pub const STORAGE_RETRIES: usize = 3;

/// Most blobs in one answer to a listing.
pub const MAX_LISTED: usize = 10_000;

// Stores that trackers share.

/// Longest time to connect to such a store.
pub const TRACKER_STORE_CONNECT: Duration = Duration::from_secs(2);

/// Longest wait for its answer to one message.
pub const TRACKER_STORE_REPLY: Duration = Duration::from_secs(5);

/// Commands in one message to Redis.
pub const TRACKER_PIPELINE: usize = 2000;

/// Holdings that Redis deletes in one step; it does nothing else meanwhile.
pub const TRACKER_SWEEP: usize = 500;

/// How long Redis keeps the record of a node that nobody hears from or forgets.
pub const TRACKER_RECORD_AGE: Duration = Duration::from_secs(600);

/// Most silent nodes forgotten at a time.
pub const MAX_EXPIRED_TRACKER_NODES: usize = 64;

/// Most databases in `tracker.store.urls`.
pub const MAX_TRACKER_DATABASES: usize = 64;

/// Connections to each of those databases.
pub const TRACKER_STORE_CONNECTIONS: u32 = 8;

/// Nodes written in one transaction.
pub const TRACKER_NODES_AT_ONCE: usize = 64;

/// How often a transaction is tried that conflicts with another tracker's.
pub const TRACKER_WRITE_TRIES: u32 = 5;

/// Most holdings deleted at a time.
pub const TRACKER_DELETE: u64 = 20_000;
