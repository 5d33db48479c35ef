//! Discovery and the origin: when to ask whom, and what an answer changes.
//!
//! The origin is asked only for pieces that somebody wants and no connected peer has, and only with a lease. Without
//! one in four cases: discovery has been silent for [`SILENCE`](silence::SILENCE); nothing at all came for long, though discovery did not
//! ask for patience; discovery says that others have everything, and none of them gives any of it; or all the blob's
//! bytes were proven wrong, so that other nodes' are not taken any more.
//!
//! * `lease/asking.rs`: what a request for a lease tells
//! * `lease/imports.rs`: pieces of other zones
//! * `lease/silence.rs`: whether discovery answers
//! * `lease/unleased.rs`: what is fetched without a lease, and by which of the nodes

mod asking;
mod imports;
mod silence;
mod unleased;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use self::asking::Pace;
use self::imports::Import;
pub(super) use self::silence::Silence;
use super::blob::{FAULT_PATIENCE, FindState, Transfer, Transfers};
use super::{Action, FoundPeers, MANY, Swarm, TransferId};
use crate::digest::Digest;
use crate::discovery::{Holding, Lease, LeaseKind, LeaseReply, Settlement, Trouble};
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::MAX_RUNS;
use crate::origin::OriginError;

/// Pauses between questions to discovery while a blob arrives: the swarm forms in the first moments.
const FIND_PAUSES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3)];
/// The last of these pauses for who trades with as many peers as it may: more names would not help it.
const SETTLED_PAUSE: Duration = Duration::from_secs(10);
/// Shortest pause between two questions about one blob.
const FIND_FLOOR: Duration = Duration::from_millis(100);
/// How long complete holders may take to connect before the origin is asked; also how long metainfo may take.
const GRACE: Duration = Duration::from_secs(1);
const METAINFO_GRACE: Duration = Duration::from_secs(5);
/// Without any piece for so long the origin is asked without a lease.
const STALL: Duration = Duration::from_secs(15);
/// Discovery may put that off, while it says that others fetch, until nothing came for so long; and longer only where
/// the origin asked for a pause. Less than a read waits: a discovery that never says anything else must not fail one.
const PATIENCE: Duration = Duration::from_secs(45);
/// Pauses between questions to a discovery that did not answer, and to one that is taken for dead.
const SILENT_PAUSE: Duration = Duration::from_millis(250);
const DEAD_PAUSE: Duration = Duration::from_secs(1);
/// How long readers wait for peers after the origin has refused for good.
const REFUSED_GRACE: Duration = Duration::from_secs(5);
const BACKOFF_FLOOR: Duration = Duration::from_millis(200);
const BACKOFF_CEILING: Duration = Duration::from_secs(10);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
const WAIT_FLOOR: Duration = Duration::from_millis(20);
const WAIT_CEILING: Duration = Duration::from_secs(5);
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);
const EXHAUSTED_PAUSE_OF_MANY: Duration = Duration::from_secs(3);
/// Pause before a further copy is asked for again where none is allowed, or it does not pay.
const NO_COPY_PAUSE: Duration = Duration::from_secs(3);

/// What the scheduler knows of a blob's origin.
#[derive(Debug, Default)]
pub(super) struct OriginSide {
    pub(super) known: bool,
    pub(super) transfers: Transfers,
    pub(super) grace_until: Duration,
    metainfo_until: Duration,
    asking: bool,
    asked: Duration,
    ask_after: Duration,
    pause_until: Duration,
    failures: u32,
    whole_only: bool,
    refused: Option<(OriginError, Duration)>,
    /// Since when discovery has said that others have all that is missing here, and no peer gave any of it: they are
    /// banned here, out of reach, or gone without a word.
    forsaken_since: Option<Duration>,
    told_at: Option<Duration>,
    /// When a peer gave a piece last, or the pull began.
    fed: Duration,
    /// Whether a transfer has ended well.
    delivered: bool,
    /// Whether the pieces that reads wait for were named in the last request.
    pub(super) urgent_told: bool,
    /// Until when discovery asked for patience.
    patient_until: Duration,
    /// Until when the origin wants to be left alone, as discovery says.
    paused_until: Duration,
    /// Whether the last request was for a further copy, and when the next may be.
    asked_copy: bool,
    copy_after: Duration,
    /// Pieces brought from the origin that no peer is known to have taken yet.
    unshared: Vec<u32>,
    /// Peers that said that they do not have the blob, or were set aside, and until when that counts.
    useless: BTreeMap<PeerId, Duration>,
    pub(super) imports: Vec<Import>,
    pace: Pace,
}

impl FindState {
    /// A peer is gone: others may be wanted soon.
    pub(super) fn unsettle(&mut self) {
        self.next = self.next.min(self.last + FIND_PAUSES[FIND_PAUSES.len() - 1]);
    }
}

impl OriginSide {
    pub(super) fn progress(&mut self, piece: PieceIndex, now: Duration) {
        let transfer = self.transfers.values_mut().find(|transfer| transfer.pieces.contains(&piece.0));
        if let Some(transfer) = transfer {
            transfer.last_progress = now;
        }
        self.unshared.push(piece.0);
    }

    /// Whether nothing came for so long that discovery is not waited for any more.
    fn is_stalled(&self, now: Duration, last_progress: Duration, last_arrival: Option<Duration>) -> bool {
        // While other blobs arrive, this one may only have to wait for its turn.
        let its_turn = last_arrival.map_or(Duration::ZERO, |arrival| arrival + STALL);
        let patient = self.patient_until.max(its_turn).min(last_progress + PATIENCE);
        let paused = (self.paused_until + STALL).min(last_progress + 2 * MAX_RETRY_AFTER);
        now >= patient.max(paused).max(last_progress + STALL)
    }

    /// Whether transfers, an answer or a pause keep a pull from being considered, and nobody need be told of a refusal.
    pub(super) fn is_waiting(&self, now: Duration) -> bool {
        let forsaken = self.forsaken_since.is_some_and(|since| now >= since + STALL);
        let busy = self.transfers.len() + self.imports.len() >= self.streams();
        self.known && self.refused.is_none() && !forsaken && (busy || self.asking || now < self.ask_after)
    }

    /// Discovery asks for patience: others fetch, or the origin asked for a pause, which then is longer than others.
    fn wait(&mut self, now: Duration, pause: Duration) {
        let pause = pause.min(MAX_RETRY_AFTER);
        self.patient_until = now + pause + WAIT_CEILING;
        if pause > WAIT_CEILING {
            self.paused_until = now + pause;
        }
    }

    /// A peer gave a piece: discovery is right that there are some.
    pub(super) fn peer_gave(&mut self, now: Duration) {
        self.forsaken_since = None;
        self.fed = now;
    }

    /// Somebody wants pieces who wanted none before.
    pub(super) fn begin(&mut self, now: Duration) {
        self.fed = now;
    }

    /// Transfers at once: two, so that one covers the silence between the other's end and its successor's first byte.
    /// One at a time leaves a node that is alone 15 % below the bound even where the origin answers within 2 ms.
    const fn streams(&self) -> usize {
        if self.whole_only { 1 } else { 2 }
    }
}

impl Swarm {
    pub(super) fn origin_known(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.origin.known = true;
        blob.origin.refused = None;
        blob.origin.failures = 0;
        blob.origin.pause_until = Duration::ZERO;
        if blob.is_active() {
            self.announce(digest, Holding::Partial);
            self.ask_seed_if_due(digest);
            self.consider_origin(digest);
        }
    }

    /// Somebody wants pieces that are missing: take part.
    pub(super) fn join(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let offers = blob.origin.known || !blob.have.is_empty();
        if self.now >= blob.find.last + FIND_PAUSES[FIND_PAUSES.len() - 1] {
            blob.find.next = self.now;
            blob.find.count = 0;
        }
        self.find_if_due(digest);
        self.ask_seed_if_due(digest);
        if offers {
            self.announce(digest, Holding::Partial);
        }
        if self.discovery_is_down() {
            self.ask_everybody(digest);
        }
        self.connect(digest);
        self.consider_origin(digest);
    }

    pub(super) fn find_if_due(&mut self, digest: Digest) {
        let now = self.now;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if blob.find.asking || now < blob.find.next || !blob.is_active() {
            return;
        }
        blob.find.asking = true;
        blob.find.last = now;
        self.actions.push(Action::Find(digest));
    }

    pub(super) fn find_again(&mut self, digest: Digest) {
        if let Some(blob) = self.blobs.get_mut(&digest) {
            blob.find.next = blob.find.next.min(blob.find.last + FIND_FLOOR);
        }
        self.find_if_due(digest);
    }

    pub(super) fn found(&mut self, digest: Digest, found: Option<FoundPeers>) {
        self.silence.note(found.is_some(), self.blobs.get(&digest).map(|blob| blob.find.last), self.now);
        let jitter = 750 + self.rng.u32(..500);
        let (now, down) = (self.now, self.discovery_is_down());
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let first = !blob.find.answered;
        let settled = blob.trades.len() >= self.config.max_peers_per_blob;
        let pause = match FIND_PAUSES.get(blob.find.count as usize) {
            Some(pause) => *pause,
            None if settled => SETTLED_PAUSE,
            None => FIND_PAUSES[FIND_PAUSES.len() - 1],
        };
        blob.find.asking = false;
        blob.find.answered = true;
        blob.find.count += 1;
        blob.find.next = now + pause * jitter / 1000;
        let Some(found) = found else {
            blob.find.next = now + silent_pause(down) * jitter / 1000;
            self.ask_everybody(digest);
            return self.consider_origin(digest);
        };
        self.take_up(digest, &found, first);
    }

    /// A peer names others, in the place of discovery.
    pub(super) fn told(&mut self, digest: Digest, told: &FoundPeers) {
        let Some(blob) = self.blobs.get(&digest) else { return };
        let first = blob.known.is_empty();
        let told = FoundPeers {
            holders: told.holders.clone(),
            verifiable: told.verifiable || blob.verifiable,
            metainfo_pending: told.metainfo_pending || blob.metainfo_pending,
        };
        self.take_up(digest, &told, first);
    }

    fn take_up(&mut self, digest: Digest, found: &FoundPeers, first: bool) {
        let now = self.now;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.verifiable = found.verifiable || blob.layout.piece_count() <= 1;
        blob.metainfo_pending = found.metainfo_pending;
        if first {
            blob.origin.metainfo_until = now + METAINFO_GRACE;
            if found.holders.iter().any(|holder| holder.holding == Holding::Complete && holder.peer != self.me) {
                blob.origin.grace_until = now + GRACE;
            }
        }
        self.learn(digest, &found.holders);
        self.connect(digest);
        self.consider_origin(digest);
    }

    /// Decides whether the origin, or another zone, is to be asked for something now.
    pub(super) fn consider_origin(&mut self, digest: Digest) {
        let (now, down, last_arrival) = (self.now, self.discovery_is_down(), self.last_arrival_besides(&digest));
        let Some(blob) = self.blobs.get(&digest) else { return };
        let origin = &blob.origin;
        let informed = blob.find.answered || down || blob.origin_only;
        let pending = blob.metainfo_pending && now < origin.metainfo_until;
        if !(origin.known || blob.has_far) || !informed || pending || now < origin.grace_until.max(origin.pause_until) {
            return;
        }
        if blob.have.is_full() || (blob.is_left_to_seed(now) && !blob.origin_only) {
            return;
        }
        if !down && blob.is_waiting_for_origin(now) {
            if !blob.has_unserved() {
                return self.ask_copy(digest);
            }
            if !blob.origin.is_stalled(now, blob.last_progress, last_arrival) {
                return;
            }
        }
        let missing = blob.unserved(now, MAX_RUNS, |_| true);
        let importable = blob.importable(&missing, now, MAX_RUNS);
        let may_fetch = blob.origin.known && blob.origin.refused.is_none();
        if importable.is_empty() {
            if !blob.origin.known {
                return;
            }
            if missing.is_empty() {
                return self.ask_copy(digest);
            }
            if !may_fetch {
                return self.refuse(digest);
            }
        }
        let missing = if may_fetch { missing } else { importable.clone() };
        let urgent = blob.urgent(now, &importable);
        let streams = blob.origin.streams() + if urgent.is_empty() { 0 } else { 2 };
        if blob.origin.transfers.len() + blob.origin.imports.len() >= streams {
            return;
        }
        if down || blob.origin_only || blob.origin.is_stalled(now, blob.last_progress, last_arrival) {
            return self.go_without(digest, &missing, &urgent, &importable);
        }
        if blob.origin.asking || (urgent.is_empty() && self.silence.is_just_over(now)) {
            return;
        }
        if now < blob.origin.ask_after && (urgent.is_empty() || blob.origin.urgent_told) {
            let patience = match urgent.is_empty() {
                true if last_arrival.is_some_and(|arrival| now < arrival + STALL) => PATIENCE,
                true => STALL,
                false => FAULT_PATIENCE,
            };
            if blob.origin.forsaken_since.is_some_and(|since| now >= since + patience) {
                self.go_without(digest, &missing, &urgent, &importable);
            }
            return;
        }
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        (blob.origin.asking, blob.origin.asked_copy) = (true, false);
        blob.origin.asked = self.now;
        blob.origin.urgent_told = !urgent.is_empty();
        self.ask_lease(digest, missing, urgent, importable);
    }

    fn transfer(&mut self, digest: Digest, run: Range<u32>, lease: Option<(u64, Range<u32>)>, delay: Duration) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let transfer = TransferId(self.next_transfer);
        self.next_transfer += 1;
        let pieces = if blob.origin.whole_only { 0..blob.layout.piece_count() } else { run };
        let leased = lease.is_some();
        let started = self.now + delay;
        let state = Transfer { lease, pieces: pieces.clone(), started, first_byte: None, last_progress: started };
        blob.origin.transfers.insert(transfer, state);
        self.actions.push(Action::Transfer { digest, transfer, pieces, delay, leased });
    }

    pub(super) fn leased(&mut self, digest: Digest, reply: Option<LeaseReply>) {
        let now = self.now;
        let jitter = 750 + self.rng.u32(..500);
        self.silence.note(reply.is_some(), self.blobs.get(&digest).map(|blob| blob.origin.asked), self.now);
        let down = self.discovery_is_down();
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let origin = &mut blob.origin;
        origin.asking = false;
        let asked_copy = std::mem::take(&mut origin.asked_copy);
        match reply {
            Some(LeaseReply::Granted(lease)) => return self.granted(digest, &lease),
            Some(LeaseReply::Wait(pause)) => {
                origin.wait(now, pause);
                let pause = pause.clamp(WAIT_FLOOR, WAIT_CEILING) * jitter / 1000;
                (origin.ask_after, origin.copy_after) = (now + pause, now + pause);
            }
            Some(LeaseReply::Exhausted) if asked_copy => origin.copy_after = now + NO_COPY_PAUSE * jitter / 1000,
            Some(LeaseReply::Exhausted) => {
                origin.forsaken_since.get_or_insert(now);
                // In a large swarm what only others have takes its time, and a node that is lost is noticed by many.
                let pause = if blob.known.len() >= MANY { EXHAUSTED_PAUSE_OF_MANY } else { EXHAUSTED_PAUSE };
                origin.ask_after = now + pause * jitter / 1000;
            }
            None => {
                let pause = SILENT_PAUSE * jitter / 1000;
                (origin.ask_after, origin.copy_after) = (now + pause, now + pause);
                // Without it no lease is asked for, and only a search finds out that it is back.
                blob.find.next = blob.find.next.min(now + silent_pause(down) * jitter / 1000);
                return self.consider_origin(digest);
            }
        }
        if !asked_copy && blob.trades.len() < self.config.max_peers_per_blob {
            // Others have or fetch what is missing here: find out who they are.
            self.find_again(digest);
        }
        self.consider_origin(digest);
    }

    fn granted(&mut self, digest: Digest, lease: &Lease) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let end = lease.first.0.saturating_add(lease.count).min(blob.layout.piece_count());
        if lease.first.0 >= end {
            blob.origin.ask_after = self.now + WAIT_CEILING;
            return;
        }
        blob.origin.forsaken_since = None;
        (blob.origin.ask_after, blob.origin.copy_after) = (Duration::ZERO, Duration::ZERO);
        blob.origin.whole_only |= lease.kind == LeaseKind::Whole;
        let run = lease.first.0..end;
        match lease.kind {
            LeaseKind::Import => self.import(digest, lease, run),
            _ => self.transfer(digest, run.clone(), Some((lease.id, run)), Duration::ZERO),
        }
        self.consider_origin(digest);
    }

    /// When a piece of another blob that is pulled, too, came last; none if no other blob is.
    fn last_arrival_besides(&self, digest: &Digest) -> Option<Duration> {
        let others = self.busy.iter().filter(|other| *other != digest).filter_map(|other| self.blobs.get(other));
        others.filter_map(|blob| blob.last_arrival).max()
    }

    /// Whether discovery has been silent for so long that it is not waited for.
    pub(super) fn discovery_is_down(&self) -> bool {
        self.silence.is_known(self.now)
    }

    pub(super) fn first_byte(&mut self, digest: Digest, transfer: TransferId) {
        let now = self.now;
        let Some(origin) = self.blobs.get_mut(&digest).map(|blob| &mut blob.origin) else { return };
        if let Some(transfer) = origin.transfers.get_mut(&transfer) {
            transfer.last_progress = now;
            transfer.first_byte.get_or_insert(now.saturating_sub(transfer.started));
        }
    }

    pub(super) fn transfer_ended(&mut self, digest: Digest, transfer: TransferId, outcome: Result<(), OriginError>) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let Some(ended) = blob.origin.transfers.remove(&transfer) else { return };
        match ended.lease {
            Some((lease, run)) => {
                let fetched = run.take_while(|&piece| blob.have.get(PieceIndex(piece))).count() as u32;
                let (first_byte, trouble) = (ended.first_byte, outcome.as_ref().err().map(trouble));
                self.actions.push(Action::Settle(Settlement { lease, digest, fetched, first_byte, trouble }));
            }
            None => self.unleased -= 1,
        }
        match outcome {
            Ok(()) => {
                blob.origin.failures = 0;
                blob.origin.delivered = true;
            }
            Err(error) => self.origin_failed(digest, error),
        }
        self.consider_origin(digest);
    }

    fn origin_failed(&mut self, digest: Digest, error: OriginError) {
        let (now, lot) = (self.now, 500 + self.rng.u32(..1000));
        let Some(origin) = self.blobs.get_mut(&digest).map(|blob| &mut blob.origin) else { return };
        origin.failures += 1;
        match error {
            OriginError::Busy { retry_after, .. } => origin.pause_until = now + retry_after.min(MAX_RETRY_AFTER),
            OriginError::NoRanges { .. } if !origin.whole_only => origin.whole_only = true,
            OriginError::Unavailable { .. } | OriginError::NoRanges { .. } => {
                let backoff = BACKOFF_FLOOR * (1 << origin.failures.min(10));
                origin.pause_until = now + backoff.min(BACKOFF_CEILING) * lot / 1000;
            }
            OriginError::NotFound { .. } | OriginError::Unauthorized { .. } | OriginError::Changed { .. } => {
                origin.refused = Some((error, now));
            }
        }
    }

    /// The origin has refused for good: tell readers, unless peers may still come up with the pieces.
    fn refuse(&mut self, digest: Digest) {
        let now = self.now;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let Some((error, since)) = blob.origin.refused.clone() else { return };
        let hopeless = blob.trades.is_empty() || now >= since + REFUSED_GRACE;
        if hopeless && blob.origin.told_at.is_none_or(|told| now >= told + FIND_PAUSES[1]) {
            blob.origin.told_at = Some(now);
            self.actions.push(Action::Fail { digest, error });
        }
    }
}

const fn silent_pause(down: bool) -> Duration {
    if down { DEAD_PAUSE } else { SILENT_PAUSE }
}

/// What others should know of a failure.
const fn trouble(error: &OriginError) -> Trouble {
    match error {
        OriginError::Busy { retry_after, .. } => Trouble::Busy(*retry_after),
        OriginError::NoRanges { .. } => Trouble::NoRanges,
        OriginError::NotFound { .. } | OriginError::Unauthorized { .. } | OriginError::Changed { .. } => {
            Trouble::Refused
        }
        OriginError::Unavailable { .. } => Trouble::Unavailable,
    }
}

#[cfg(test)]
mod tests;
