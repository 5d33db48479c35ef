//! What the snapshots service counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counters of the snapshots service; clones count together.
#[derive(Debug, Clone, Default)]
pub struct SnapshotMetrics {
    claimed: Counter,
    fallbacks: Family<Reason, Counter>,
    adopted: Counter,
    unpacked: Family<Reason, Counter>,
}

impl SnapshotMetrics {
    /// Registers `snapshot_layers_claimed_total`, `snapshot_fallbacks_total{reason}`, `snapshot_layers_adopted_total` and
    /// `snapshot_layers_unpacked_total{reason}`.
    pub fn register(&self, registry: &mut Registry) {
        let claimed = "Layers that containerd did not fetch because they could be mounted on demand";
        registry.register("snapshot_layers_claimed", claimed, self.claimed.clone());
        let fallbacks = "Layers that containerd was left to pull whole, by reason";
        registry.register("snapshot_fallbacks", fallbacks, self.fallbacks.clone());
        let adopted = "Layers that containerd fetched and did not unpack because they could be mounted as they were";
        registry.register("snapshot_layers_adopted", adopted, self.adopted.clone());
        let unpacked = "Layers that containerd was asked to unpack by its own diff service, by reason";
        registry.register("snapshot_layers_unpacked", unpacked, self.unpacked.clone());
    }

    pub(crate) fn count_adopted(&self) {
        self.adopted.inc();
    }

    pub(crate) fn count_unpacked(&self, reason: &'static str) {
        self.unpacked.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn count_claim(&self) {
        self.claimed.inc();
    }

    pub(crate) fn count_fallback(&self, reason: &'static str) {
        self.fallbacks.get_or_create(&Reason { reason }).inc();
    }

    /// Layers claimed so far.
    pub fn claimed(&self) -> u64 {
        self.claimed.get()
    }

    /// Layers adopted so far.
    pub fn adopted(&self) -> u64 {
        self.adopted.get()
    }

    /// Layers unpacked so far for this reason.
    pub fn unpacked(&self, reason: &'static str) -> u64 {
        self.unpacked.get_or_create(&Reason { reason }).get()
    }

    /// Fallbacks so far for this reason.
    pub fn fallbacks(&self, reason: &'static str) -> u64 {
        self.fallbacks.get_or_create(&Reason { reason }).get()
    }
}
