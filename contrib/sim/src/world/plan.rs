//! What does not change during a run.

use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};

use super::due::Part;
use crate::pipe::ps_per_byte;
use crate::scenario::Scenario;

/// The scenario, and what follows from it.
pub(super) struct Plan {
    pub(super) scenario: Scenario,
    pub(super) digests: Vec<Digest>,
    pub(super) layouts: Vec<PieceLayout>,
    pub(super) ids: Vec<PeerId>,
    pub(super) latency_ns: u64,
    down_ps_per_byte: u64,
}

impl Plan {
    pub(super) fn new(scenario: Scenario, ids: Vec<PeerId>) -> Self {
        let layout = |&length: &u64| PieceLayout::new(length).expect("the blobs of scenarios are far below the limit");
        let layouts: Vec<PieceLayout> = scenario.blobs.iter().map(layout).collect();
        Self {
            digests: (0..layouts.len()).map(|blob| Digest::of(&blob.to_be_bytes())).collect(),
            layouts,
            ids,
            latency_ns: nanos(scenario.latency),
            down_ps_per_byte: ps_per_byte(scenario.rates.down),
            scenario,
        }
    }

    pub(super) fn blob(&self, digest: &Digest) -> u16 {
        let found = self.digests.iter().position(|known| known == digest);
        found.expect("nobody speaks of blobs that are not simulated") as u16
    }

    pub(super) fn part(&self, digest: &Digest, piece: PieceIndex) -> Part {
        Part { blob: self.blob(digest), piece: piece.0 }
    }

    pub(super) fn piece_bytes(&self, part: Part) -> u64 {
        let range = self.layouts[usize::from(part.blob)].range(PieceIndex(part.piece));
        range.end - range.start
    }

    /// How long bytes take to pass a downlink.
    pub(super) const fn down_ns(&self, bytes: u64) -> u64 {
        bytes * self.down_ps_per_byte / 1000
    }

    /// In which zone a node is.
    pub(super) fn zone(&self, node: u32) -> u8 {
        u8::from(self.scenario.zone_link.is_some() && node % 2 == 1)
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
