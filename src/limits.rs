//! What the clients of the HTTP listeners are held to, in one place.

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
