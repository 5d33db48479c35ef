//! What the proxy counts.

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Labels of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    /// `swarm`, `direct`, `tunnel`, `intercept`, `refused`.
    way: &'static str,
    /// HTTP status.
    status: u16,
}

/// The counters of the proxy.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProxyMetrics {
    /// `lapwing_proxy_answers_total{way,status}`
    answers: Family<AnswerLabels, Counter>,
}

impl ProxyMetrics {
    /// Makes the counters and puts them into `registry`, whose prefix should be `lapwing`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("proxy_answers", "Answers of the forward proxy", metrics.answers.clone());
        metrics
    }

    pub(super) fn count(&self, way: &'static str, status: StatusCode) {
        self.answers.get_or_create(&AnswerLabels { way, status: status.as_u16() }).inc();
    }
}
