//! The names of everything that is counted of preheating.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::jobs::JobState;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The counters and gauges of preheating.
#[derive(Debug, Clone, Default)]
pub(crate) struct PreheatMetrics {
    /// `lapwing_preheat_jobs`: jobs that run.
    pub(super) running: Gauge,
    /// `lapwing_preheat_jobs_ended_total{outcome}`: `done`, `failed`, `canceled`.
    ended: Family<OutcomeLabel, Counter>,
    /// `lapwing_preheat_blobs_total{outcome}`: `done`, `failed`.
    blobs: Family<OutcomeLabel, Counter>,
    /// `lapwing_preheat_notifications_total{outcome}`: `accepted`, `unauthorized`, `malformed`, `busy`, `unknown`.
    notifications: Family<OutcomeLabel, Counter>,
}

impl PreheatMetrics {
    /// Makes them and puts them into `registry`, whose prefix should be `lapwing`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("preheat_jobs", "Preheating jobs that run", metrics.running.clone());
        registry.register("preheat_jobs_ended", "Preheating jobs that have ended", metrics.ended.clone());
        registry.register("preheat_blobs", "Blobs of preheating jobs that have ended", metrics.blobs.clone());
        let help = "Notifications of registries";
        registry.register("preheat_notifications", help, metrics.notifications.clone());
        metrics
    }

    pub(super) fn ended(&self, state: JobState) {
        let outcome = match state {
            JobState::Running => return,
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Canceled => "canceled",
        };
        self.ended.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn notification(&self, outcome: &'static str) {
        self.notifications.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn blob(&self, is_done: bool) {
        let outcome = if is_done { "done" } else { "failed" };
        self.blobs.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
