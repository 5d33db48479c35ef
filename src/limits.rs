//! What everybody outside is held to, in one place: clients of the HTTP listeners, registries with what they answer, peers with what they pass on. Preheating
//! and `lapwing get` have their own beside them.

use std::num::NonZeroUsize;
use std::time::Duration;

/// Clients of the mirror at once. Idle ones are let go, so that only as many as really ask take places.
pub(crate) const MAX_MIRROR_CONNECTIONS: usize = 4096;

/// Clients of the admin listener at once, readers of the dashboard included.
pub(crate) const MAX_ADMIN_CONNECTIONS: usize = 256;

/// Piccolo's agents at once: each calls for a moment every few minutes, and asks when its node pulls.
pub(crate) const MAX_AGENT_CONNECTIONS: usize = 4096;

/// Most bytes of the head of a request.
pub(crate) const MAX_HEAD_BYTES: usize = 64 << 10;

/// Most headers of a request.
pub(crate) const MAX_HEADERS: usize = 100;

/// How long the head of a request may take, counted from the end of the answer before it.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may neither send a byte nor take one while an answer is under way.
pub(crate) const MAX_SILENCE: Duration = Duration::from_secs(300);

/// How long a listener that cannot accept waits until it tries again: mostly there are no descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// `Accept` headers passed on.
pub(crate) const MAX_ACCEPT: usize = 32;

/// Longest query passed on, in bytes.
pub(crate) const MAX_QUERY_BYTES: usize = 4096;

/// Longest URL that the forward proxy takes, in bytes.
pub(crate) const MAX_URL_BYTES: usize = 16 << 10;

/// Hosts whose certificates are kept, made as clients of the forward proxy ask for them.
pub(crate) const MAX_PROXIED_HOSTS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Readers of the dashboard at the same time.
pub(crate) const MAX_DASHBOARD_LISTENERS: usize = 16;

/// Frames that wait for a reader of the dashboard before it is dropped.
pub(crate) const MAX_DASHBOARD_WAITING: usize = 4;

/// Layers of an image; overlayfs mounts fewer.
pub(crate) const MAX_IMAGE_LAYERS: usize = 512;

/// Manifests of an index that are looked at, and blobs of an image.
pub(crate) const MAX_IMAGE_BLOBS: usize = 1024;

/// Things that a manifest may name; one that names more vouches for none.
pub(crate) const MAX_VOUCHED: usize = 4096;

/// Images learnt at the same time; more pass unlearnt.
pub(crate) const MAX_LEARNING: usize = 64;

/// SOCI indexes of an image that are looked into.
pub(crate) const MAX_REFERRERS: usize = 4;

/// Indexes of one layer that are tried when others turn out wrong.
pub(crate) const MAX_INDEX_CANDIDATES: usize = 4;

/// Profiles of one image that are taken from others.
pub(crate) const MAX_PROFILE_CANDIDATES: usize = 3;

/// Longest answer of a collector of traces that is read, in bytes.
pub(crate) const MAX_COLLECTOR_ANSWER: usize = 64 << 10;

/// Entries of a seed's storage read at start; what is beyond them waits for somebody to ask.
pub(crate) const MAX_SEED_ENTRIES: usize = 4096;

/// Longest of them, in bytes.
pub(crate) const MAX_SEED_ENTRY_BYTES: u64 = 1024;
