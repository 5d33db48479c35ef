//! A traced pull of a blob: one span for it as long as somebody follows it, with a bounded number of spans below.
//!
//! Requests that ask for the same blob at the same time share it. Questions and transfers are spans as they happen; of each peer there is
//! one for all that it gives, whose context the peer is told; hashing, writing and the like are told in sums, from the
//! [timeline](crate::timeline), when it ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;

use super::Node;
use super::blob::{Blob, Sources, lock};
use super::connection::Link;
use crate::digest::Digest;
use crate::identity::PeerId;
use crate::limits::{MAX_TRACED_PEERS, MAX_TRACED_STEPS};
use crate::timeline::{Recorded, Timeline, Track};
use crate::trace::{self, Span, SpanKind, TraceContext};
use crate::wire::Frame;

/// What is told in sums, by what it is called there.
const SUMS: [(Track, &str); 6] = [
    (Track::Metainfo, "blob.metainfo"),
    (Track::Limit, "blob.limit"),
    (Track::Verify, "piece.verify"),
    (Track::Write, "piece.write"),
    (Track::Inflate, "layer.inflate"),
    (Track::OriginAnswer, "origin.answer"),
];

/// A traced pull; ends when the last who follows it lets it go.
pub struct Followed {
    blob: Arc<Blob>,
    timeline: Arc<Timeline>,
    before: (Sources, Recorded),
    parent: TraceContext,
    context: TraceContext,
    state: Mutex<State>,
}

struct State {
    span: Span,
    /// How many of each step there were.
    steps: HashMap<&'static str, u32>,
    peers: HashMap<PeerId, Conversation>,
    /// Peers beyond those.
    others: Given,
}

#[derive(Default)]
struct Given {
    pieces: u64,
    bytes: u64,
}

impl Given {
    fn add(&mut self, bytes: u64) {
        self.pieces += 1;
        self.bytes += bytes;
    }
}

struct Conversation {
    span: Span,
    /// The connection over which the peer was told of it.
    link: u64,
    given: Given,
}

impl Blob {
    /// Records what is done for it below `parent`, until what is returned and everybody else's is dropped.
    pub fn follow(self: &Arc<Self>, parent: Option<TraceContext>) -> Option<Arc<Followed>> {
        let parent = parent.filter(|_| trace::is_on())?;
        let mut slot = lock(&self.followed);
        if let Some(followed) = slot.upgrade() {
            return Some(followed);
        }
        let mut span = Span::step("blob.fetch", SpanKind::Internal, Some(parent));
        let context = span.context()?;
        span.say("lapwing.digest", &self.digest);
        span.count("lapwing.length", self.length());
        span.count("lapwing.bytes_here", self.stored.have_bytes());
        let timeline = self.timeline();
        let before = (self.sources(), timeline.recorded());
        let state = State { span, steps: HashMap::new(), peers: HashMap::new(), others: Given::default() };
        let followed =
            Arc::new(Followed { blob: Arc::clone(self), timeline, before, parent, context, state: Mutex::new(state) });
        *slot = Arc::downgrade(&followed);
        Some(followed)
    }

    pub(super) fn followed(&self) -> Option<Arc<Followed>> {
        if trace::is_on() { lock(&self.followed).upgrade() } else { None }
    }

    /// A step of its traced pull; empty if there is none, or there were many of that name.
    pub(super) fn step(&self, name: &'static str, kind: SpanKind) -> Span {
        self.followed().map_or(Span::NONE, |followed| followed.step(name, kind))
    }

    /// A peer gave a piece.
    pub(super) fn trace_piece(&self, peer: &PeerId, bytes: u64) {
        let Some(followed) = self.followed() else { return };
        let mut state = lock(&followed.state);
        match state.peers.get_mut(peer) {
            Some(conversation) => conversation.given.add(bytes),
            None => state.others.add(bytes),
        }
    }

    /// A piece is asked of the peer at the other end of `link`, which is told first if that belongs to a trace.
    pub(super) fn trace_request(&self, peer: PeerId, link: &Link) {
        let Some(followed) = self.followed() else { return };
        let Some(blob) = link.number(&self.digest) else { return };
        let Some(context) = followed.converse(peer, link.id) else { return };
        if link.takes_traces {
            let (trace, span) = context.ids();
            link.send(Frame::Traced { blob, trace, span });
        }
    }
}

impl Followed {
    /// The span of the pull.
    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// For whom it was begun.
    pub fn parent(&self) -> TraceContext {
        self.parent
    }

    fn step(&self, name: &'static str, kind: SpanKind) -> Span {
        let mut state = lock(&self.state);
        let steps = state.steps.entry(name).or_default();
        *steps += 1;
        if *steps > MAX_TRACED_STEPS { Span::NONE } else { Span::step(name, kind, Some(self.context)) }
    }

    /// The context that the peer has to be told; none if it was told over that connection.
    fn converse(&self, peer: PeerId, link: u64) -> Option<TraceContext> {
        let mut state = lock(&self.state);
        if let Some(known) = state.peers.get_mut(&peer) {
            let told = std::mem::replace(&mut known.link, link) == link;
            return known.span.context().filter(|_| !told);
        }
        if state.peers.len() >= MAX_TRACED_PEERS {
            return None;
        }
        let mut span = Span::step("peer.fetch", SpanKind::Client, Some(self.context));
        span.say("lapwing.peer", &peer);
        let context = span.context();
        state.peers.insert(peer, Conversation { span, link, given: Given::default() });
        context
    }

    fn sum_up(&self) {
        let after = self.timeline.recorded();
        for (track, name) in SUMS {
            let (before, lane) = (self.before.1.lane(track), after.lane(track));
            let (count, busy) = (lane.count - before.count.min(lane.count), lane.busy.saturating_sub(before.busy));
            if count == 0 {
                continue;
            }
            let start = lane.first.unwrap_or_default().max(self.before.1.age);
            let (start, end) = (after.began + start, after.began + lane.last.max(start));
            let busy = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
            drop(
                Span::done(name, Some(self.context), start, end)
                    .count("lapwing.count", count)
                    .count("lapwing.busy_us", busy),
            );
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.sum_up();
        let (before, now) = (self.before.0, self.blob.sources());
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let left_out: u32 = state.steps.values().map(|count| count.saturating_sub(MAX_TRACED_STEPS)).sum();
        let span = &mut state.span;
        span.count("lapwing.bytes_from_peers", now.bytes_from_peers.saturating_sub(before.bytes_from_peers));
        span.count("lapwing.bytes_from_origin", now.bytes_from_origin.saturating_sub(before.bytes_from_origin));
        span.count("lapwing.steps_left_out", left_out.into());
        if state.others.pieces > 0 {
            span.count("lapwing.pieces_of_other_peers", state.others.pieces);
            span.count("lapwing.bytes_of_other_peers", state.others.bytes);
        }
        let mut told = Vec::new();
        for (peer, Conversation { mut span, link, given }) in state.peers.drain() {
            span.count("lapwing.pieces", given.pieces);
            span.count("lapwing.bytes", given.bytes);
            told.push((peer, link));
        }
        // In a task: whoever drops this may hold the node's lock.
        if let (Some(node), Ok(runtime)) = (self.blob.node.upgrade(), Handle::try_current()) {
            let digest = self.blob.digest;
            runtime.spawn(async move { node.tell_untraced(digest, &told) });
        }
    }
}

impl Node {
    /// Tells peers that what is asked of them belongs to no trace any more.
    fn tell_untraced(&self, digest: Digest, told: &[(PeerId, u64)]) {
        let inner = lock(&self.inner);
        if inner.blobs.get(&digest).is_some_and(|blob| blob.followed().is_some()) {
            // Somebody follows it again: they have been told of that.
            return;
        }
        for (peer, id) in told {
            let Some(link) = inner.links.get(peer).filter(|link| link.id == *id && link.takes_traces) else { continue };
            if let Some(blob) = link.number(&digest) {
                link.send(Frame::Traced { blob, trace: [0; 16], span: [0; 8] });
            }
        }
    }
}
