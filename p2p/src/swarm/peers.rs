//! Connections: whom to dial, what was said, who is refused.

use std::time::Duration;

use super::blob::{BlobState, Known, Trade};
use super::pick::Mean;
use super::upload::Granted;
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
/// Pause before the same peer is dialled again.
const REDIAL: Duration = Duration::from_secs(5);
/// A connection on which nothing was traded for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) in_flight: u32,
    pub(super) mean: Mean,
    pub(super) last_active: Duration,
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
        if self.is_banned(self.now, &peer) {
            self.actions.push(Action::Close { peer, reason: CloseReason::Banned });
            return;
        }
        self.peers.insert(peer, Peer { in_flight: 0, mean: Mean::default(), last_active: self.now });
        let joined = self.blobs.iter().filter(|(_, blob)| blob.is_active() && blob.known.contains_key(&peer));
        let digests: Vec<Digest> = joined.map(|(&digest, _)| digest).collect();
        digests.into_iter().for_each(|digest| self.greet(peer, digest));
    }

    pub(super) fn peer_down(&mut self, peer: PeerId) {
        let digests: Vec<Digest> = self.blobs.keys().copied().collect();
        for digest in digests {
            self.leave_trade(peer, digest);
            if let Some(blob) = self.blobs.get_mut(&digest) {
                blob.greeted.remove(&peer);
            }
        }
        self.uploads.peer_gone(peer);
        self.peers.remove(&peer);
        self.seed_lost(peer);
    }

    pub(super) fn dial_failed(&mut self, peer: PeerId) {
        self.dialing.remove(&peer);
        self.seed_lost(peer);
        let now = self.now;
        for blob in self.blobs.values_mut() {
            if let Some(known) = blob.known.get_mut(&peer) {
                (known.failed, known.dial_after) = (true, now + REDIAL);
            }
            blob.end_grace_if_nobody_comes();
        }
    }

    fn leave_trade(&mut self, peer: PeerId, digest: Digest) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if blob.trades.remove(&peer).is_none() {
            return;
        }
        let pieces: Vec<u32> = blob.flights.keys().copied().collect();
        pieces.into_iter().for_each(|piece| self.end_flight(digest, PieceIndex(piece), peer));
    }

    /// Says hello again to all who take part: pieces are lost here, and who has them did not say so while they were here.
    pub(super) fn greet_again(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get(&digest) else { return };
        for &peer in blob.greeted.iter().filter(|peer| self.peers.contains_key(peer)) {
            self.actions.push(Action::SayHello { peer, digest, have: blob.have.clone() });
        }
    }

    /// Says hello once per connection and blob.
    fn greet(&mut self, peer: PeerId, digest: Digest) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if self.peers.contains_key(&peer) && blob.greeted.insert(peer) {
            self.actions.push(Action::SayHello { peer, digest, have: blob.have.clone() });
        }
    }

    pub(super) fn hello(&mut self, peer: PeerId, digest: Digest, have: Bitfield) {
        let limit = self.config.max_peers_per_blob * 2;
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.last_active = self.now;
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        if have.len() != blob.layout.piece_count() {
            return;
        }
        if !blob.trades.contains_key(&peer) && blob.trades.len() >= limit {
            self.actions.push(Action::SayNotHere { peer, digest, piece: None });
            return;
        }
        if blob.trades.contains_key(&peer) && blob.greeted.contains(&peer) && !blob.origin_only {
            // It lost pieces. It was not told of those that it had.
            let pieces: Vec<PieceIndex> = blob.have.iter().filter(|&piece| !have.get(piece)).collect();
            if !pieces.is_empty() {
                self.actions.push(Action::SayHave { peer, digest, pieces });
            }
        }
        blob.trades.insert(peer, Trade { have, unusable_until: Duration::ZERO });
        blob.end_grace_if_nobody_comes();
        self.greet(peer, digest);
        self.consider_origin(digest);
    }

    pub(super) fn peer_has(&mut self, peer: PeerId, digest: Digest, pieces: &[PieceIndex]) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.last_active = self.now;
        }
        if let Some(trade) = self.blobs.get_mut(&digest).and_then(|blob| blob.trades.get_mut(&peer)) {
            for &piece in pieces {
                trade.have.set(piece);
            }
        }
    }

    pub(super) fn not_here(&mut self, peer: PeerId, digest: Digest, piece: Option<PieceIndex>) {
        let Some(piece) = piece else {
            self.leave_trade(peer, digest);
            let now = self.now;
            if let Some(blob) = self.blobs.get_mut(&digest) {
                blob.known.remove(&peer);
                blob.origin.note_useless(peer, now);
                blob.end_grace_if_nobody_comes();
            }
            return self.consider_origin(digest);
        };
        self.end_flight(digest, piece, peer);
        if let Some(trade) = self.blobs.get_mut(&digest).and_then(|blob| blob.trades.get_mut(&peer)) {
            trade.have.clear(piece);
        }
    }

    pub(super) fn requested(&mut self, peer: PeerId, digest: Digest, piece: PieceIndex, urgent: bool) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.last_active = self.now;
        }
        let here = self.blobs.get(&digest).is_some_and(|blob| blob.have.get(piece) && !blob.origin_only);
        if !here || !self.uploads.request(self.now, peer, digest, piece, urgent) {
            self.actions.push(Action::SayNotHere { peer, digest, piece: Some(piece) });
        }
    }

    pub(super) fn grant_uploads(&mut self) {
        let (now, blobs) = (self.now, &self.blobs);
        let pieces_of = |peer: PeerId, digest: Digest| {
            let trade = blobs.get(&digest).and_then(|blob| blob.trades.get(&peer));
            trade.map_or(0, |trade| trade.have.count())
        };
        loop {
            let limit = &self.upload_limit;
            let open = |peer, digest| limit.is_open(now, &digest) && limit.is_open_to(now, &peer);
            let Some(granted) = self.uploads.grant(now, &mut self.rng, pieces_of, open) else { break };
            let Granted { peer, digest, piece } = granted;
            let bytes = blobs.get(&digest).map_or(0, |blob| blob.piece_bytes(piece));
            self.upload_limit.take(now, &digest, Some(&peer), bytes);
            self.actions.push(Action::Upload { peer, digest, piece });
        }
        self.upload_limit.account(now);
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
            self.peer_down(peer);
        }
    }

    /// Whether the peer gave wrong pieces before.
    pub(super) fn is_charged(&self, peer: &PeerId) -> bool {
        self.offences.get(peer).is_some_and(|offence| offence.charges > 0)
    }

    pub(super) fn unusable(&mut self, peer: PeerId, digest: Digest, piece: PieceIndex) {
        self.end_flight(digest, piece, peer);
        self.set_unusable(digest, peer);
    }

    pub(super) fn set_unusable(&mut self, digest: Digest, peer: PeerId) {
        let until = self.now + UNUSABLE;
        if let Some(trade) = self.blobs.get_mut(&digest).and_then(|blob| blob.trades.get_mut(&peer)) {
            trade.unusable_until = until;
        }
    }

    /// Remembers what discovery named.
    pub(super) fn learn(&mut self, digest: Digest, holders: &[Holder]) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        blob.known.values_mut().for_each(|known| known.rank = u32::MAX);
        for (holder, rank) in holders.iter().zip(0..).filter(|(holder, _)| holder.peer != self.me) {
            if blob.known.len() >= MAX_KNOWN_HOLDERS && !blob.known.contains_key(&holder.peer) {
                continue;
            }
            let Holder { peer, address, holding, .. } = *holder;
            let known = Known { address, holding, rank, failed: false, dial_after: Duration::ZERO };
            let known = blob.known.entry(peer).or_insert(known);
            (known.address, known.holding, known.rank) = (address, holding, rank);
        }
    }

    /// Greets or dials known holders, nearest first, up to the limit.
    pub(super) fn connect(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.get(&digest) else { return };
        if !blob.is_active() || blob.origin_only {
            return;
        }
        let mut room = self.config.max_peers_per_blob.saturating_sub(blob.trades.len());
        let mut by_rank: Vec<_> = blob.known.iter().filter(|(peer, _)| !blob.trades.contains_key(peer)).collect();
        by_rank.sort_by_key(|(_, known)| known.rank);
        let mut greet = Vec::new();
        let mut dial = Vec::new();
        for (&peer, known) in by_rank {
            if room == 0 {
                break;
            }
            if self.peers.contains_key(&peer) {
                greet.push(peer);
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
        let peers: Vec<PeerId> = self.peers.keys().copied().take(self.config.max_peers_per_blob).collect();
        peers.into_iter().for_each(|peer| self.greet(peer, digest));
    }

    pub(super) fn close_idle_peers(&mut self) {
        let idle: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, state)| state.in_flight == 0 && self.now >= state.last_active + IDLE)
            .map(|(&peer, _)| peer)
            .collect();
        for peer in idle {
            self.actions.push(Action::Close { peer, reason: CloseReason::Idle });
            self.peer_down(peer);
        }
    }
}

impl BlobState {
    /// The origin need not wait for complete holders once all of them are here or have failed.
    fn end_grace_if_nobody_comes(&mut self) {
        let coming = self.known.iter().any(|(peer, known)| {
            known.holding == Holding::Complete && !self.trades.contains_key(peer) && !known.failed
        });
        if !coming {
            self.origin.grace_until = Duration::ZERO;
        }
    }
}
