//! The names of everything a seed counts beside what a node counts.

use lapwing_discovery::seed::{Refusal, Taken};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Labels of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    /// `fetching`, `complete`, `busy`, `not_listed`, `not_allowed`, `not_there`.
    outcome: &'static str,
}

/// The counters and gauges of a seed.
#[derive(Debug, Clone, Default)]
pub(super) struct SeedMetrics {
    /// `lapwing_seed_requests_total{outcome}`: requests of nodes to fetch a blob.
    requests: Family<OutcomeLabel, Counter>,
    /// `lapwing_seed_fetches`: blobs that are being fetched.
    pub(super) fetches: Gauge,
    /// `lapwing_seed_given_up_total`: blobs that were taken on and could not be fetched.
    pub(super) given_up: Counter,
    /// `lapwing_seed_storage_read_bytes_total`: bytes that came out of the storage.
    pub(super) storage_read: Counter,
    /// `lapwing_seed_storage_written_bytes_total`: bytes sent to the storage.
    pub(super) storage_written: Counter,
    /// `lapwing_seed_storage_failures_total`: calls to the storage that failed.
    pub(super) storage_failures: Counter,
}

impl SeedMetrics {
    /// Makes them and puts them into `registry`, whose prefix should be `lapwing`.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("seed_requests", "Requests of nodes to fetch a blob", metrics.requests.clone());
        registry.register("seed_fetches", "Blobs that are being fetched", metrics.fetches.clone());
        let help = "Blobs that were taken on and could not be fetched";
        registry.register("seed_given_up", help, metrics.given_up.clone());
        let (read, written) = ("Bytes that came out of the storage", "Bytes sent to the storage");
        registry.register_with_unit("seed_storage_read", read, Unit::Bytes, metrics.storage_read.clone());
        registry.register_with_unit("seed_storage_written", written, Unit::Bytes, metrics.storage_written.clone());
        let help = "Calls to the storage that failed";
        registry.register("seed_storage_failures", help, metrics.storage_failures.clone());
        metrics
    }

    pub(super) fn count_request(&self, answer: &Result<Taken, Refusal>) {
        let outcome = match answer {
            Ok(Taken { complete: false, .. }) => "fetching",
            Ok(_) => "complete",
            Err(Refusal::Busy(_)) => "busy",
            Err(Refusal::NotListed(_)) => "not_listed",
            Err(Refusal::NotAllowed(_)) => "not_allowed",
            Err(Refusal::NotThere(_)) => "not_there",
        };
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
