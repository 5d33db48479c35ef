//! Connections: whom to dial, what was said, who is refused.

use std::collections::VecDeque;
use std::time::Duration;

use super::blob::{BlobState, Known};
use super::pick::Mean;
use super::table::Slot;
use super::upload::{Granted, RECENT};
use super::{Action, CloseReason, Swarm};
use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::discovery::{Holder, Holding};
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::{MAX_KNOWN_HOLDERS, MAX_OFFENDERS};

/// Bad pieces until a peer is banned.
const CHARGES: u32 = 3;
/// How long a peer that was slow, or whose pieces nobody vouches for, is not asked for pieces of that blob.
const UNUSABLE: Duration = Duration::from_secs(10);
/// The longest of such times: each time-out doubles it until a piece comes.
const MAX_UNUSABLE: Duration = Duration::from_secs(320);
/// How long a peer that has refused a blob is not greeted for it again.
const REFUSED: Duration = Duration::from_secs(30);
/// A peer that owed pieces when its connection broke is reported unless it is back within that. Nodes that dial each other
/// at once drop one of the two connections, which is nobody's failure: who reports a peer is not sent to it for a minute.
const RETURN: Duration = Duration::from_millis(500);
/// Pause before the same peer is dialled again.
const REDIAL: Duration = Duration::from_secs(5);
/// Shortest time between two invitations to the same peer.
const INVITATION: Duration = Duration::from_millis(50);
/// A connection on which nothing was traded for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Shortest pause between two looks at whom to connect with, as long as nothing is learnt.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) in_flight: u32,
    pub(super) mean: Mean,
    pub(super) last_active: Duration,
    /// How often it let requests time out since it last delivered; several that do within [`UNUSABLE`] are one lapse.
    pub(super) strikes: u32,
    /// The last of those times.
    struck: Duration,
    /// When it was last told of a free upload slot.
    invited: Duration,
}

impl Peer {
    /// A request to it timed out.
    pub(super) fn strike(&mut self, now: Duration) {
        if self.strikes == 0 || now >= self.struck + UNUSABLE {
            (self.strikes, self.struck) = (self.strikes + 1, now);
        }
    }
}

/// What a peer did, kept over its connections.
#[derive(Debug, Default)]
pub(super) struct Offence {
    charges: u32,
    pub(super) banned_until: Duration,
}

impl Swarm {
    pub(super) fn peer_up(&mut self, peer: PeerId) {
        self.dialing.remove(&peer);
        self.broken.remove(&peer);
        self.unreachable.remove(&peer);
        if self.is_banned(self.now, &peer) {
            self.actions.push(Action::Close { peer, reason: CloseReason::Banned });
            return;
        }
        if !self.peers.contains_key(&peer) {
            let (last_active, invited) = (self.now, Duration::ZERO);
            let state =
                Peer { in_flight: 0, mean: Mean::default(), last_active, strikes: 0, struck: Duration::ZERO, invited };
            self.peers.insert(peer, state);
        }
        let joined = self.blobs.iter().filter(|(_, blob)| blob.is_active() && blob.known.contains_key(&peer));
        let digests: Vec<Digest> = joined.map(|(&digest, _)| digest).collect();
        digests.into_iter().for_each(|digest| self.greet(peer, digest));
    }

    /// A connection is gone.
    pub(super) fn peer_down(&mut self, peer: PeerId) {
        let Some(slot) = self.peers.slot(&peer) else { return };
        if self.peers.at(slot).is_some_and(|state| state.in_flight > 0) {
            self.broken.insert(peer, self.now);
        }
        self.forget(peer, slot);
    }

    /// Reports those that broke off and have not come back.
    pub(super) fn report_lost(&mut self) {
        let now = self.now;
        let lost = self.broken.extract_if(.., |_, since| now >= *since + RETURN);
        self.actions.extend(lost.map(|(peer, _)| Action::Report(peer)));
    }

    fn forget(&mut self, peer: PeerId, slot: Slot) {
        for digest in self.blobs.digests() {
            self.leave_trade(slot, digest);
            if let Some(blob) = self.blobs.get_mut(&digest) {
                blob.greeted.remove(&slot);
                blob.connect_next = Duration::ZERO;
                blob.find.unsettle();
            }
        }
        self.uploads.peer_gone(slot);
        self.peers.remove(&peer);
        self.seed_lost(peer);
    }

    pub(super) fn dial_failed(&mut self, peer: PeerId) {
        self.dialing.remove(&peer);
        self.broken.remove(&peer);
        self.seed_lost(peer);
        self.note_unreachable(peer);
        let now = self.now;
        for blob in self.blobs.values_mut() {
            if let Some(known) = blob.known.get_mut(&peer) {
                (known.failed, known.dial_after) = (true, now + REDIAL);
                blob.connect_next = Duration::ZERO;
            }
            blob.end_grace_if_nobody_comes();
        }
        self.actions.push(Action::Report(peer));
    }

    fn leave_trade(&mut self, slot: Slot, digest: Digest) {
        if self.blobs.get_mut(&digest).is_some_and(|blob| blob.leave(slot)) {
            self.end_flights(digest, |flight| flight.slot == slot);
        }
    }

    /// Says hello again to all who take part: pieces are lost here, and who has them did not say so while they were here.
    pub(super) fn greet_again(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get(&digest) else { return };
        for peer in blob.greeted.iter().filter_map(|&slot| self.peers.name(slot)) {
            self.actions.push(Action::SayHello { peer, digest, have: blob.have.clone() });
        }
    }

    /// Says hello once per connection and blob.
    fn greet(&mut self, peer: PeerId, digest: Digest) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if let Some(slot) = self.peers.slot(&peer)
            && blob.greeted.insert(slot)
        {
            self.actions.push(Action::SayHello { peer, digest, have: blob.have.clone() });
        }
    }

    pub(super) fn hello(&mut self, peer: PeerId, digest: Digest, have: Bitfield) {
        let limit = self.config.max_peers_per_blob * 2;
        let Some(slot) = self.touch(&peer) else { return };
        let now = self.now;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if have.len() != blob.layout.piece_count() {
            return;
        }
        if !blob.trades.contains(slot) && blob.trades.len() >= limit {
            self.actions.push(Action::SayNotHere { peer, digest, piece: None });
            return;
        }
        if blob.trades.contains(slot) && blob.greeted.contains(&slot) && !blob.origin_only {
            // It lost pieces. It was not told of those that it had.
            let pieces: Vec<PieceIndex> = blob.have.iter().filter(|&piece| !have.get(piece)).collect();
            if !pieces.is_empty() {
                self.actions.push(Action::SayHave { peer, digest, pieces });
            }
        }
        blob.enter(slot, peer, have, now);
        if let Some(known) = blob.known.get_mut(&peer) {
            known.failed = false;
        }
        blob.end_grace_if_nobody_comes();
        self.greet(peer, digest);
        self.consider_origin(digest);
    }

    /// Notes that a peer lives.
    fn touch(&mut self, peer: &PeerId) -> Option<Slot> {
        let slot = self.peers.slot(peer)?;
        if let Some(state) = self.peers.at_mut(slot) {
            state.last_active = self.now;
        }
        Some(slot)
    }

    pub(super) fn peer_has(&mut self, peer: PeerId, digest: Digest, pieces: &[PieceIndex]) {
        let Some(slot) = self.touch(&peer) else { return };
        let news = self.blobs.get_mut(&digest).is_some_and(|blob| blob.they_have(slot, pieces));
        if news {
            self.ask_for_news(slot, digest);
        }
    }

    pub(super) fn not_here(&mut self, peer: PeerId, digest: Digest, piece: Option<PieceIndex>) {
        let Some(slot) = self.peers.slot(&peer) else { return };
        let Some(piece) = piece else {
            self.leave_trade(slot, digest);
            let now = self.now;
            if let Some(blob) = self.blobs.get_mut(&digest) {
                blob.greeted.remove(&slot);
                if let Some(known) = blob.known.get_mut(&peer) {
                    // Whatever discovery says of it.
                    (known.failed, known.dial_after) = (true, now + REFUSED);
                }
                blob.origin.note_useless(peer, now);
                blob.end_grace_if_nobody_comes();
            }
            return self.consider_origin(digest);
        };
        self.end_flight(digest, piece, slot);
        if let Some(blob) = self.blobs.get_mut(&digest) {
            blob.they_lack(slot, piece);
        }
    }

    pub(super) fn requested(&mut self, peer: PeerId, digest: Digest, piece: PieceIndex, urgent: bool) {
        let Some(slot) = self.touch(&peer) else { return };
        let now = self.now;
        let here = self.blobs.get_mut(&digest).is_some_and(|blob| {
            if let Some(trade) = blob.trades.get_mut(slot) {
                trade.last_request = now;
            }
            blob.have.get(piece) && !blob.origin_only
        });
        if !here || !self.uploads.request(now, (slot, peer), digest, piece, urgent) {
            self.actions.push(Action::SayNotHere { peer, digest, piece: Some(piece) });
        }
    }

    pub(super) fn grant_uploads(&mut self) {
        let now = self.now;
        loop {
            let blobs = &self.blobs;
            let pieces_of = |slot: Slot, digest: Digest| {
                let trade = blobs.get(&digest).and_then(|blob| blob.trades.get(slot));
                trade.map_or(0, |trade| trade.have.count())
            };
            let limit = &self.upload_limit;
            let open = |peer, digest| limit.is_open(now, &digest) && limit.is_open_to(now, &peer);
            let Some(granted) = self.uploads.grant(now, &mut self.rng, pieces_of, open) else { break };
            let Granted { peer, digest, piece } = granted;
            let bytes = blobs.get(&digest).map_or(0, |blob| blob.piece_bytes(piece));
            if let (Some(slot), Some(blob)) = (self.peers.slot(&peer), self.blobs.get_mut(&digest)) {
                // It will not say so, since the piece is here.
                blob.they_have(slot, &[piece]);
            }
            self.upload_limit.take(now, &digest, Some(&peer), bytes);
            self.actions.push(Action::Upload { peer, digest, piece });
        }
        self.upload_limit.account(now);
    }

    /// Tells peers of upload slots that nobody asks for: those that lack something of a blob of which there is news here, or
    /// else of those that were served last, one blob after the other: an image's layers are complete at different times.
    pub(super) fn invite(&mut self, news: Option<Digest>) {
        let mut free = self.uploads.free() * self.config.policy.invitations;
        for at in 0..RECENT {
            if free == 0 {
                return;
            }
            let Some(digest) = news.or_else(|| self.uploads.recent(at)) else { return };
            free -= self.invite_to(digest, free);
            if news.is_some() {
                return;
            }
        }
    }

    /// Invites those that have fewest of the pieces of that blob, at most so many. Requests are bound to a peer when they
    /// are made; this brings those to an idle uplink that wait at a busy one. How many were invited.
    fn invite_to(&mut self, digest: Digest, most: u32) -> u32 {
        let (now, uploads) = (self.now, &self.uploads);
        let Some(blob) = self.blobs.get_mut(&digest).filter(|blob| !blob.origin_only && !blob.have.is_empty()) else {
            return 0;
        };
        let mut lot = self.rng.u32(..) | 1;
        let mut lacking: Vec<(u32, u32, Slot)> = Vec::new();
        for (slot, trade) in blob.trades.iter() {
            lot = lot.wrapping_mul(0x9e37_79b1);
            let waits = |peer: &Peer| now >= peer.invited + INVITATION || peer.invited.is_zero();
            if self.peers.at(slot).is_some_and(waits)
                && !trade.far
                && blob.greeted.contains(&slot)
                && uploads.has_room_for(slot)
                && trade.lacks(&blob.have)
            {
                lacking.push((trade.have.count(), lot, slot));
            }
        }
        lacking.sort_unstable();
        lacking.truncate(most as usize);
        for &(_, _, slot) in &lacking {
            if let (Some(peer), Some(trade)) = (self.peers.at_mut(slot), blob.trades.get(slot)) {
                peer.invited = now;
                self.actions.push(Action::SayFree { peer: trade.peer, digest });
            }
        }
        lacking.len() as u32
    }

    pub(super) fn bad(&mut self, peer: PeerId, digest: Digest, piece: PieceIndex) {
        self.not_here(peer, digest, Some(piece));
        if self.offences.len() >= MAX_OFFENDERS && !self.offences.contains_key(&peer) {
            let now = self.now;
            self.offences.retain(|_, offence| now < offence.banned_until);
            if self.offences.len() >= MAX_OFFENDERS {
                self.offences.pop_first();
            }
        }
        let offence = self.offences.entry(peer).or_default();
        offence.charges += 1;
        if offence.charges >= CHARGES {
            *offence = Offence { charges: 0, banned_until: self.now + self.config.ban };
            self.actions.push(Action::Banned(peer));
            self.actions.push(Action::Close { peer, reason: CloseReason::Banned });
            self.actions.push(Action::Report(peer));
            if let Some(slot) = self.peers.slot(&peer) {
                self.forget(peer, slot);
            }
        }
    }

    /// Whether the peer gave wrong pieces before.
    pub(super) fn is_charged(&self, slot: Slot) -> bool {
        let offence = || self.offences.get(&self.peers.name(slot)?);
        !self.offences.is_empty() && offence().is_some_and(|offence| offence.charges > 0)
    }

    pub(super) fn unusable(&mut self, peer: PeerId, digest: Digest, piece: PieceIndex) {
        let Some(slot) = self.peers.slot(&peer) else { return };
        self.end_flight(digest, piece, slot);
        self.set_unusable(digest, slot);
    }

    /// Isolates a peer for a while, the longer the more often it let requests time out. It returns on probation: one
    /// request at a time until it delivers.
    pub(super) fn set_unusable(&mut self, digest: Digest, slot: Slot) {
        let strikes = self.peers.at(slot).map_or(0, |state| state.strikes.saturating_sub(1));
        let until = self.now + UNUSABLE.saturating_mul(1 << strikes.min(5)).min(MAX_UNUSABLE);
        if let Some(blob) = self.blobs.get_mut(&digest) {
            blob.set_aside(slot, until);
        }
    }

    /// What peers sent could not be judged, and now can: those that did nothing else may be asked again.
    pub(super) fn forgive_unverifiable(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let peers = &self.peers;
        let is_blameless =
            |peer: &PeerId| peers.slot(peer).and_then(|slot| peers.at(slot)).is_some_and(|state| state.strikes == 0);
        for trade in blob.trades.values_mut().filter(|trade| !trade.counts && is_blameless(&trade.peer)) {
            trade.unusable_until = trade.unusable_until.min(self.now);
        }
        blob.next_return = Duration::ZERO;
    }

    /// Remembers what discovery named.
    pub(super) fn learn(&mut self, digest: Digest, holders: &[Holder]) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.known.values_mut().for_each(|known| known.rank = u32::MAX);
        for (holder, rank) in holders.iter().zip(0..).filter(|(holder, _)| holder.peer != self.me) {
            if blob.known.len() >= MAX_KNOWN_HOLDERS && !blob.known.contains_key(&holder.peer) {
                continue;
            }
            let Holder { peer, address, holding, far, .. } = *holder;
            let known = Known { address, holding, rank, far, failed: false, dial_after: Duration::ZERO };
            let known = blob.known.entry(peer).or_insert(known);
            (known.address, known.holding, known.rank, known.far) = (address, holding, rank, far);
            blob.has_far |= far;
        }
        if blob.has_far {
            blob.sort_by_zone(self.now);
        }
        blob.connect_next = Duration::ZERO;
    }

    /// Greets or dials known holders up to the limit.
    pub(super) fn connect(&mut self, digest: Digest) {
        let now = self.now;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let mut room = self.config.max_peers_per_blob.saturating_sub(blob.trades.len());
        if room == 0 || now < blob.connect_next || !blob.is_active() || blob.origin_only {
            return;
        }
        blob.connect_next = now + CONNECT_PAUSE;
        let Some(blob) = self.blobs.get(&digest) else { return };
        let strangers = blob.known.iter().filter(|(peer, _)| !blob.trades.contains_key(peer)).collect();
        let mut greet = Vec::new();
        let mut dial = Vec::new();
        for (&peer, known) in near_and_far(strangers, blob.trades.len()) {
            if room == 0 {
                break;
            }
            if let Some(slot) = self.peers.slot(&peer) {
                if !blob.greeted.contains(&slot) {
                    if known.dial_after > now {
                        continue;
                    }
                    greet.push(peer);
                }
            } else if self.dialing.contains(&peer) {
            } else if known.dial_after <= self.now
                && !self.is_banned(self.now, &peer)
                && self.peers.len() + self.dialing.len() + dial.len() < self.config.max_connections
            {
                dial.push((peer, known.address));
            } else {
                continue;
            }
            room -= 1;
        }
        greet.into_iter().for_each(|peer| self.greet(peer, digest));
        for (peer, address) in dial {
            self.dialing.insert(peer);
            if let Some(known) = self.blobs.get_mut(&digest).and_then(|blob| blob.known.get_mut(&peer)) {
                known.dial_after = self.now + REDIAL;
            }
            self.actions.push(Action::Dial { peer, address });
        }
    }

    /// Without discovery every connected peer may have it.
    pub(super) fn ask_everybody(&mut self, digest: Digest) {
        let peers: Vec<PeerId> = self.peers.iter().map(|(peer, _)| peer).take(self.config.max_peers_per_blob).collect();
        peers.into_iter().for_each(|peer| self.greet(peer, digest));
    }

    pub(super) fn close_idle_peers(&mut self) {
        if self.now < self.idle_check {
            return;
        }
        self.idle_check = self.now + IDLE / 60;
        let idle: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, state)| state.in_flight == 0 && self.now >= state.last_active + IDLE)
            .map(|(peer, _)| peer)
            .collect();
        for peer in idle {
            self.actions.push(Action::Close { peer, reason: CloseReason::Idle });
            self.peer_down(peer);
        }
    }
}

/// The order in which holders are tried by a node that has `present` peers: nearest first, but every fourth one from the
/// far end of discovery's answer, since a neighbourhood that only knows itself would be cut off from the pieces of all others.
fn near_and_far<'a>(strangers: Vec<(&'a PeerId, &'a Known)>, present: usize) -> Vec<(&'a PeerId, &'a Known)> {
    let (mut named, stale): (Vec<_>, Vec<_>) = strangers.into_iter().partition(|(_, known)| known.rank != u32::MAX);
    named.sort_by_key(|(_, known)| known.rank);
    let mut named = VecDeque::from(named);
    let pick = |place: usize| if place % 4 == 3 { named.pop_back() } else { named.pop_front() };
    let mut order: Vec<_> = (present..).map_while(pick).collect();
    order.extend(stale);
    order
}

impl BlobState {
    /// The origin need not wait for complete holders once all of them are here or have failed.
    fn end_grace_if_nobody_comes(&mut self) {
        if self.origin.grace_until.is_zero() {
            return;
        }
        let coming = self.known.iter().any(|(peer, known)| {
            known.holding == Holding::Complete && !self.trades.contains_key(peer) && !known.failed
        });
        if !coming {
            self.origin.grace_until = Duration::ZERO;
        }
    }
}
