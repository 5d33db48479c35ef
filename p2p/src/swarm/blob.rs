//! What the scheduler knows of one blob.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use super::Priority;
use super::event::{TransferId, WantId};
use super::lease::OriginSide;
use super::seed::SeedSide;
use crate::bitfield::Bitfield;
use crate::discovery::Holding;
use crate::identity::PeerId;
use crate::layout::{PieceIndex, PieceLayout};

/// Pieces that somebody waits for.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) pieces: Range<u32>,
    pub(super) priority: Priority,
    pub(super) since: Duration,
}

/// A connected peer that takes part in the blob.
#[derive(Debug)]
pub(super) struct Trade {
    pub(super) have: Bitfield,
    /// Not asked before: it was slow, or nobody vouches for its pieces.
    pub(super) unusable_until: Duration,
}

/// A peer that discovery named.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) address: SocketAddr,
    pub(super) holding: Holding,
    /// Place in discovery's order, nearest first.
    pub(super) rank: u32,
    /// Whether the last attempt to reach it failed.
    pub(super) failed: bool,
    pub(super) dial_after: Duration,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) peer: PeerId,
    pub(super) since: Duration,
}

/// The state of asking discovery.
#[derive(Debug, Default)]
pub(super) struct FindState {
    pub(super) asking: bool,
    pub(super) next: Duration,
    pub(super) last: Duration,
    pub(super) count: u32,
    pub(super) answered: bool,
}

#[derive(Debug)]
pub(super) struct BlobState {
    pub(super) layout: PieceLayout,
    pub(super) have: Bitfield,
    pub(super) verified: bool,
    pub(super) origin_only: bool,
    pub(super) verifiable: bool,
    pub(super) metainfo_pending: bool,
    pub(super) wants: BTreeMap<WantId, Want>,
    pub(super) trades: BTreeMap<PeerId, Trade>,
    pub(super) greeted: BTreeSet<PeerId>,
    pub(super) known: BTreeMap<PeerId, Known>,
    pub(super) flights: BTreeMap<u32, Vec<Flight>>,
    pub(super) fresh: Vec<PieceIndex>,
    pub(super) fresh_due: Option<Duration>,
    pub(super) find: FindState,
    pub(super) announced: Option<Holding>,
    pub(super) origin: OriginSide,
    pub(super) seed: SeedSide,
    pub(super) last_progress: Duration,
}

impl BlobState {
    pub(super) fn new(layout: PieceLayout, have: Bitfield, verified: bool) -> Self {
        Self {
            layout,
            have,
            verified,
            origin_only: false,
            verifiable: layout.piece_count() <= 1,
            metainfo_pending: false,
            wants: BTreeMap::new(),
            trades: BTreeMap::new(),
            greeted: BTreeSet::new(),
            known: BTreeMap::new(),
            flights: BTreeMap::new(),
            fresh: Vec::new(),
            fresh_due: None,
            find: FindState::default(),
            announced: None,
            origin: OriginSide::default(),
            seed: SeedSide::default(),
            last_progress: Duration::ZERO,
        }
    }

    /// Whether somebody wants a piece that is not here.
    pub(super) fn is_active(&self) -> bool {
        !self.have.is_full() && self.wants.values().any(|want| self.missing(&want.pieces).next().is_some())
    }

    pub(super) fn missing(&self, pieces: &Range<u32>) -> impl Iterator<Item = PieceIndex> + '_ {
        pieces.clone().map(PieceIndex).filter(|&piece| !self.have.get(piece))
    }

    pub(super) fn piece_bytes(&self, piece: PieceIndex) -> u64 {
        let range = self.layout.range(piece);
        range.end - range.start
    }

    /// The peers that can be asked for pieces now.
    pub(super) fn usable(&self, now: Duration) -> impl Iterator<Item = PeerId> + '_ {
        let open = self.verifiable && !self.origin_only;
        self.trades.iter().filter(move |(_, trade)| open && trade.unusable_until <= now).map(|(&peer, _)| peer)
    }

    /// Those of them that have `piece`.
    pub(super) fn holders(&self, piece: PieceIndex, now: Duration) -> impl Iterator<Item = PeerId> + '_ {
        self.usable(now).filter(move |peer| self.trades[peer].have.get(piece))
    }

    /// Whether a transfer from the origin brings `piece` soon.
    pub(super) fn in_transfer(&self, piece: PieceIndex, now: Duration, patience: Duration) -> bool {
        self.origin
            .transfers
            .values()
            .any(|transfer| transfer.pieces.contains(&piece.0) && now < transfer.last_progress + patience)
    }

    /// Missing pieces of wants that nobody has and nothing brings, ascending runs; only those that `select` affirms.
    pub(super) fn unserved(&self, now: Duration, max_runs: usize, select: impl Fn(&Want) -> bool) -> Vec<Range<u32>> {
        let mut pieces = BTreeSet::new();
        let mut runs = 0;
        for want in self.wants.values().filter(|want| select(want)) {
            let late = want.priority == Priority::Fault && now >= want.since + FAULT_PATIENCE;
            let mut last = None;
            for piece in self.missing(&want.pieces) {
                let coming = self.flights.contains_key(&piece.0) || self.holders(piece, now).next().is_some();
                if (coming && !late) || self.origin.transfers.values().any(|t| t.pieces.contains(&piece.0)) {
                    continue;
                }
                if last.is_none_or(|last| last + 1 != piece.0) {
                    runs += 1;
                    if runs > max_runs {
                        break;
                    }
                }
                last = Some(piece.0);
                pieces.insert(piece.0);
            }
        }
        into_runs(pieces.into_iter(), max_runs)
    }
}

/// How long a blocked read waits for peers before the origin is asked as well.
pub(super) const FAULT_PATIENCE: Duration = Duration::from_secs(1);

/// Joins ascending indexes to at most `max` runs.
pub(super) fn into_runs(pieces: impl Iterator<Item = u32>, max: usize) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for piece in pieces {
        let full = runs.len() == max;
        match runs.last_mut() {
            Some(run) if run.end == piece => run.end += 1,
            _ if full => break,
            _ => runs.push(piece..piece + 1),
        }
    }
    runs
}

/// One transfer from the origin.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) lease: Option<(u64, Range<u32>)>,
    pub(super) pieces: Range<u32>,
    pub(super) started: Duration,
    /// How long the origin took to its first byte.
    pub(super) first_byte: Option<Duration>,
    pub(super) last_progress: Duration,
}

pub(super) type Transfers = BTreeMap<TransferId, Transfer>;
