//! Pieces that have come before anybody trusted said what they should be: neither shown nor passed on.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::statement::PieceStatement;

/// How long a piece waits for a trusted hash.
const PATIENCE: Duration = Duration::from_secs(3);

/// One piece.
#[derive(Debug)]
pub(super) struct Undecided {
    pub(super) peer: PeerId,
    pub(super) piece: PieceIndex,
    pub(super) bytes: Bytes,
    pub(super) statement: Option<PieceStatement>,
    pub(super) since: Instant,
}

/// Those of one blob. Who adds and takes accounts for their bytes.
#[derive(Debug, Default)]
pub(super) struct Aside(Vec<Undecided>);

impl Aside {
    pub(super) fn add(&mut self, undecided: Undecided) {
        self.0.push(undecided);
    }

    /// All of them, to be judged again.
    pub(super) fn take(&mut self) -> Vec<Undecided> {
        std::mem::take(&mut self.0)
    }

    /// Those that have waited too long.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Undecided> {
        self.0.extract_if(.., |undecided| now >= undecided.since + PATIENCE).collect()
    }
}
