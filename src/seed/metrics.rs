//! The names of everything a seed counts beside what a node counts.

use lapwing_discovery::seed::{Refusal, Taken};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

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
}

impl SeedMetrics {
    /// Makes them and puts them into `registry`, whose prefix should be `lapwing`.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("seed_requests", "Requests of nodes to fetch a blob", metrics.requests.clone());
        registry.register("seed_fetches", "Blobs that are being fetched", metrics.fetches.clone());
        let help = "Blobs that were taken on and could not be fetched";
        registry.register("seed_given_up", help, metrics.given_up.clone());
        metrics
    }

    pub(super) fn count_request(&self, answer: &Result<Taken, Refusal>) {
        let outcome = match answer {
            Ok(Taken::Fetching) => "fetching",
            Ok(Taken::Complete) => "complete",
            Err(Refusal::Busy(_)) => "busy",
            Err(Refusal::NotListed(_)) => "not_listed",
            Err(Refusal::NotAllowed(_)) => "not_allowed",
            Err(Refusal::NotThere(_)) => "not_there",
        };
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
