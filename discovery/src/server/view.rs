//! What the admin listener asks of a tracker in its own process.

use std::sync::PoisonError;
use std::time::Duration;

use lapwing_p2p::digest::Digest;

use super::Tracker;
use crate::registry::{BlobView, GroupCounts, MemberFilter, Members, Place, TrackerSnapshot};

impl Tracker {
    /// How much there is, without any rows.
    pub fn counts(&self) -> TrackerSnapshot {
        self.registry().counts()
    }

    /// The groups by name.
    pub fn group_counts(&self) -> Vec<GroupCounts> {
        self.registry().group_counts()
    }

    /// The nodes that `filter` asks for.
    pub fn members(&self, filter: &MemberFilter) -> Members {
        let now = (self.clock)();
        self.registry().members(now, filter)
    }

    /// Blobs that somebody fetches from the origin now, or has just fetched, with their groups: at most `limit`.
    pub fn under_way(&self, limit: usize) -> Vec<(String, Digest)> {
        self.registry().under_way(limit)
    }

    /// Who has `digest`, in one group or in all where somebody has, nearest to `from` first, at most `limit` of each.
    pub fn holders_of(&self, digest: Digest, group: Option<&str>, from: &Place, limit: usize) -> Vec<BlobView> {
        let now = (self.clock)();
        self.registry().holders_of(now, digest, group, from, limit)
    }

    /// Calls per second by method, over the last [`RATE_TICKS`](crate::limits::RATE_TICKS) ticks.
    pub fn rates(&self) -> Vec<(&'static str, f64)> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).per_second()
    }

    pub(super) fn sample_rates(&self, now: Duration) {
        let counts = self.metrics.calls_by_method();
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).sample(now, counts);
    }
}
