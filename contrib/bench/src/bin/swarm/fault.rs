//! What goes wrong in a scenario.

use crate::stage::Stage;
use anyhow::Result;

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None.
    None,
    /// The last node is killed when half of all bytes have come.
    PeerKilled,
    /// The tracker is killed then.
    TrackerKilled,
    /// A ninth peer claims to have everything, and corrupts every piece that it sends.
    Corrupting,
    /// The last node's link has one per cent of its rates from the start.
    Crawling,
}

impl Fault {
    /// The node that is not measured: it is the fault.
    pub(crate) fn exempt(self, nodes: usize) -> Option<usize> {
        matches!(self, Self::PeerKilled | Self::Crawling).then(|| nodes - 1)
    }

    /// Does what is to happen at half.
    pub(crate) fn strike(self, stage: &mut Stage) -> Result<()> {
        match self {
            Self::None | Self::Corrupting | Self::Crawling => Ok(()),
            Self::PeerKilled => stage.nodes.last_mut().map_or(Ok(()), |node| node.lapwing.kill9()),
            Self::TrackerKilled => stage.tracker.kill9(),
        }
    }
}
