//! What a peer is given on behalf of its trace: one span for each blob, below the peer's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::identity::PeerId;
use crate::limits::MAX_TRACED_BLOBS;
use crate::node::blob::lock;
use crate::trace::{Span, TraceContext};

/// A peer that asks for nothing so long has ended without saying so.
const SILENT: Duration = Duration::from_secs(30);

/// The traced blobs of one connection, for the task that reads and the one that writes.
#[derive(Clone)]
pub(super) struct Servings {
    peer: PeerId,
    blobs: Arc<Mutex<HashMap<Digest, Serving>>>,
}

struct Serving {
    span: Span,
    last: Instant,
    pieces: u64,
    bytes: u64,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.span.count("lapwing.pieces", self.pieces);
        self.span.count("lapwing.bytes", self.bytes);
    }
}

impl Servings {
    pub(super) fn of(peer: PeerId) -> Self {
        Self { peer, blobs: Arc::default() }
    }

    /// The peer said to which span its requests belong; without one, to none any more.
    pub(super) fn traced(&self, digest: Digest, context: Option<TraceContext>) {
        let mut blobs = lock(&self.blobs);
        blobs.remove(&digest);
        blobs.retain(|_, serving| serving.last.elapsed() < SILENT);
        if context.is_none() || blobs.len() >= MAX_TRACED_BLOBS {
            return;
        }
        let mut span = Span::serve("peer.serve", context);
        if span.context().is_some() {
            span.say("lapwing.peer", &self.peer);
            span.say("lapwing.digest", &digest);
            blobs.insert(digest, Serving { span, last: Instant::now(), pieces: 0, bytes: 0 });
        }
    }

    /// A piece was sent.
    pub(super) fn sent(&self, digest: &Digest, bytes: u64) {
        if let Some(serving) = lock(&self.blobs).get_mut(digest) {
            serving.pieces += 1;
            serving.bytes += bytes;
            serving.last = Instant::now();
        }
    }

    /// Nothing was to be sent for a while: ends what is forgotten.
    pub(super) fn idle(&self) {
        lock(&self.blobs).retain(|_, serving| serving.last.elapsed() < SILENT);
    }
}
