//! The names of everything the mirror counts.

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

/// Labels of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AnswerLabels {
    /// `manifest`, `blob`, `referrers`, `tags`, `ping`, `url`, `other`.
    kind: &'static str,
    /// HTTP status.
    status: u16,
}

/// The counters of the mirror.
#[derive(Debug, Clone, Default)]
pub(crate) struct MirrorMetrics {
    /// `lapwing_mirror_answers_total{kind,status}`
    answers: Family<AnswerLabels, Counter>,
    /// `lapwing_mirror_bytes_total`: bytes of blobs given to clients.
    bytes: Counter,
    /// `lapwing_mirror_cut_total`: answers cut in their middle.
    cut: Counter,
    /// `lapwing_mirror_outage_answers_total{kind}`
    outage: Family<OutageLabels, Counter>,
}

/// Labels of an answer that a registry should have given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutageLabels {
    /// `manifest`, `blob`.
    kind: &'static str,
}

impl MirrorMetrics {
    /// Makes the counters and puts them into `registry`, whose prefix should be `lapwing`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("mirror_answers", "Answers of the mirror", metrics.answers.clone());
        registry.register("mirror_cut", "Blob transfers of the mirror cut in their middle", metrics.cut.clone());
        let help = "Answers of the mirror in the place of a registry that is away";
        registry.register("mirror_outage_answers", help, metrics.outage.clone());
        let help = "Bytes of blobs that the mirror gave to clients";
        registry.register_with_unit("mirror", help, Unit::Bytes, metrics.bytes.clone());
        metrics
    }

    pub(super) fn count_answer(&self, kind: &'static str, status: StatusCode) {
        self.answers.get_or_create(&AnswerLabels { kind, status: status.as_u16() }).inc();
    }

    pub(super) fn count_outage(&self, kind: &'static str) {
        self.outage.get_or_create(&OutageLabels { kind }).inc();
    }

    pub(super) fn count_bytes(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    pub(super) fn count_cut(&self) {
        self.cut.inc();
    }
}
