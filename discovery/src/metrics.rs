//! What the tracker counts. Every metric name stands here.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::registry::TrackerSnapshot;

/// Every call there is.
pub(crate) const METHODS: [&str; 20] = [
    "find",
    "announce",
    "sync",
    "lease",
    "settle",
    "state",
    "heartbeat",
    "replicas",
    "seeds",
    "order",
    "orders",
    "fail_order",
    "tell_trial",
    "trial_reports",
    "report",
    "leave",
    "piccolo_findkey",
    "piccolo_advertise",
    "piccolo_sync",
    "piccolo_keepalive",
];

const OUTCOMES: [&str; 6] =
    ["ok", "invalid_argument", "resource_exhausted", "out_of_range", "deadline_exceeded", "other"];

/// What a call was, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    outcome: &'static str,
}

/// What was asked of the shared store, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreCall {
    method: &'static str,
    outcome: &'static str,
}

/// The metrics of the store that a tracker shares with others.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoreMetrics {
    pub(crate) up: Gauge,
    pub(crate) unwritten: Gauge,
    calls: Family<StoreCall, Counter>,
}

impl StoreMetrics {
    pub(crate) fn count(&self, method: &'static str, outcome: &'static str) {
        self.calls.get_or_create(&StoreCall { method, outcome }).inc();
    }
}

/// The tracker's metrics. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    nodes: Gauge,
    blobs: Gauge,
    holders: Gauge,
    calls: Family<Call, Counter>,
    pub(crate) leases_granted: Counter,
    pub(crate) leases_expired: Counter,
    pub(crate) nodes_expired: Counter,
    pub(crate) store: Option<StoreMetrics>,
}

impl Metrics {
    /// Makes the metrics known to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let tracker = registry.sub_registry_with_prefix("lapwing_tracker");
        tracker.register("nodes", "Registered nodes", self.nodes.clone());
        tracker.register("blobs", "Blobs that somebody holds or fetches", self.blobs.clone());
        tracker.register("holders", "Pairs of a blob and a node that holds some or all of it", self.holders.clone());
        tracker.register("calls", "Calls by method and outcome (a gRPC code)", self.calls.clone());
        tracker.register("leases_granted", "Origin leases granted", self.leases_granted.clone());
        tracker.register("leases_expired", "Origin leases that outlived their term", self.leases_expired.clone());
        tracker.register("nodes_expired", "Nodes forgotten because they fell silent", self.nodes_expired.clone());
        if let Some(store) = &self.store {
            tracker.register("store_up", "Whether the shared store answers", store.up.clone());
            tracker.register("store_unwritten", "Changes that wait to be written to it", store.unwritten.clone());
            tracker.register(
                "store_calls",
                "Calls of it by method and outcome (ok, failed, late, lost, busy)",
                store.calls.clone(),
            );
        }
    }

    pub(crate) fn count_call(&self, method: &'static str, code: Code) {
        debug_assert!(METHODS.contains(&method), "{method} is not among METHODS");
        self.calls.get_or_create(&Call { method, outcome: outcome(code) }).inc();
    }

    /// Calls so far, whatever came of them, in the order of [`METHODS`].
    pub(crate) fn calls_by_method(&self) -> [u64; METHODS.len()] {
        METHODS.map(|method| {
            let count = |outcome| self.calls.get(&Call { method, outcome }).map_or(0, |counter| counter.get());
            OUTCOMES.into_iter().map(count).sum()
        })
    }

    pub(crate) fn set_sizes(&self, counts: &TrackerSnapshot) {
        self.nodes.set(counts.nodes as i64);
        self.blobs.set(counts.blobs as i64);
        self.holders.set(counts.holders as i64);
    }
}

const fn outcome(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::InvalidArgument => "invalid_argument",
        Code::ResourceExhausted => "resource_exhausted",
        Code::OutOfRange => "out_of_range",
        Code::DeadlineExceeded => "deadline_exceeded",
        _ => "other",
    }
}
