//! The names of everything this crate counts.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::origin::OriginError;

/// Where piece bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
pub enum Source {
    /// Another node.
    peer,
    /// A registry, web server or object store.
    origin,
}

/// Labels of the byte counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabel {
    /// Where from.
    pub source: Source,
}

/// Labels of the counter of origin errors.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// `not_found`, `unauthorized`, `busy`, `no_ranges`, `unavailable`.
    pub kind: &'static str,
}

/// Labels of the counter of throttled time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabel {
    /// `upload`, `download`, `origin`.
    pub direction: &'static str,
}

/// The counters and gauges of one node.
#[derive(Debug, Default)]
pub struct Metrics {
    /// `lapwing_piece_bytes_total{source}`: bytes of pieces taken in.
    pub piece_bytes: Family<SourceLabel, Counter>,
    /// `lapwing_served_bytes_total`: bytes of pieces sent to peers.
    pub served_bytes: Counter,
    /// `lapwing_bad_pieces_total`: pieces that did not match.
    pub bad_pieces: Counter,
    /// `lapwing_unverifiable_pieces_total`: pieces dropped because nobody trusted had stated their hash.
    pub unverifiable_pieces: Counter,
    /// `lapwing_bans_total`: peers refused for a while.
    pub bans: Counter,
    /// `lapwing_hedges_total`: pieces asked of a second peer because the first was slow.
    pub hedges: Counter,
    /// `lapwing_origin_errors_total{kind}`.
    pub origin_errors: Family<KindLabel, Counter>,
    /// `lapwing_origin_unleased_total`: origin transfers begun without a lease.
    pub unleased_fetches: Counter,
    /// `lapwing_digest_mismatches_total`: whole blobs that did not match their digest.
    pub digest_mismatches: Counter,
    /// `lapwing_throttled_seconds_total{direction}`: time in which a speed limit held something back.
    pub throttled: Family<DirectionLabel, Counter<f64, AtomicU64>>,
    /// `lapwing_false_statements_total`: hashes that peers signed and that were wrong.
    pub false_statements: Counter,
    /// `lapwing_spoilt_pieces_total`: pieces on this node's disk that could not be read or had changed.
    pub spoilt_pieces: Counter,
    /// `lapwing_told_holders_total`: holders that peers named while discovery was silent.
    pub told_holders: Counter,
    /// `lapwing_refused_answers_total`: such answers that nobody asked for, or that name what no peer can be.
    pub refused_answers: Counter,
    /// `lapwing_refused_questions_total`: such questions, of other groups or too many.
    pub refused_questions: Counter,
    /// `lapwing_active_blobs`: blobs that something wants.
    pub active_blobs: Gauge,
    /// `lapwing_peers`: connected peers.
    pub peers: Gauge,
    /// `lapwing_store_bytes`: bytes of pieces in the chunk store.
    pub store_bytes: Gauge,
    /// `lapwing_bypassed_bytes_total`: bytes of pieces that went to readers through memory, for want of room.
    pub bypassed_bytes: Counter,
    /// `lapwing_foreign_blobs`: blobs held in files of somebody else.
    pub foreign_blobs: Gauge,
    /// `lapwing_foreign_bytes`: their bytes, which count for no quota.
    pub foreign_bytes: Gauge,
    /// `lapwing_foreign_hashed_bytes_total`: bytes of such files held against their digests.
    pub foreign_hashed_bytes: Counter,
    /// `lapwing_evicted_blobs_total`: blobs evicted to make room.
    pub evicted_blobs: Counter,
    /// `lapwing_evicted_bytes_total`: bytes of pieces of those.
    pub evicted_bytes: Counter,
}

impl Metrics {
    /// Puts all of them into `registry`, whose prefix should be `lapwing`.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("bad_pieces", "Pieces that did not match their hash", &self.bad_pieces);
        counter("unverifiable_pieces", "Pieces dropped for want of a trusted hash", &self.unverifiable_pieces);
        counter("bans", "Peers refused for a while", &self.bans);
        counter("hedges", "Pieces asked of a second peer", &self.hedges);
        counter("origin_unleased", "Origin transfers begun without a lease", &self.unleased_fetches);
        counter("false_statements", "Hashes that peers signed and that were wrong", &self.false_statements);
        counter("spoilt_pieces", "Pieces lost on this disk and fetched again", &self.spoilt_pieces);
        counter("told_holders", "Holders that peers named while no tracker answered", &self.told_holders);
        counter("refused_answers", "Answers of peers about holders that are not believed", &self.refused_answers);
        counter("refused_questions", "Questions of peers about holders that are not answered", &self.refused_questions);
        counter("digest_mismatches", "Blobs that did not match their digest", &self.digest_mismatches);
        counter("evicted_blobs", "Blobs evicted to make room", &self.evicted_blobs);
        registry.register("origin_errors", "Origin transfers that failed", self.origin_errors.clone());
        registry.register("active_blobs", "Blobs that something wants", self.active_blobs.clone());
        registry.register("peers", "Connected peers", self.peers.clone());
        let throttled = "Time in which a speed limit held something back";
        registry.register_with_unit("throttled", throttled, Unit::Seconds, self.throttled.clone());
        let bytes = Unit::Bytes;
        registry.register_with_unit("piece", "Bytes of pieces taken in", bytes.clone(), self.piece_bytes.clone());
        registry.register_with_unit(
            "served",
            "Bytes of pieces sent to peers",
            bytes.clone(),
            self.served_bytes.clone(),
        );
        registry.register("foreign_blobs", "Blobs held in files of somebody else", self.foreign_blobs.clone());
        let foreign = self.foreign_bytes.clone();
        registry.register_with_unit("foreign", "Bytes held in files of somebody else", bytes.clone(), foreign);
        registry.register_with_unit(
            "foreign_hashed",
            "Bytes of files of somebody else held against their digests",
            bytes.clone(),
            self.foreign_hashed_bytes.clone(),
        );
        let bypassed = self.bypassed_bytes.clone();
        registry.register_with_unit("bypassed", "Bytes that went to readers for want of room", bytes.clone(), bypassed);
        registry.register_with_unit("evicted", "Bytes evicted to make room", bytes.clone(), self.evicted_bytes.clone());
        registry.register_with_unit("store", "Bytes of pieces in the chunk store", bytes, self.store_bytes.clone());
    }

    pub(crate) fn count_origin_error(&self, error: &OriginError) {
        let kind = match error {
            OriginError::NotFound { .. } => "not_found",
            OriginError::Unauthorized { .. } => "unauthorized",
            OriginError::Busy { .. } => "busy",
            OriginError::Changed { .. } => "changed",
            OriginError::NoRanges { .. } => "no_ranges",
            OriginError::Unavailable { .. } => "unavailable",
        };
        self.origin_errors.get_or_create(&KindLabel { kind }).inc();
    }

    pub(crate) fn count_throttled(&self, direction: &'static str, time: Duration) {
        self.throttled.get_or_create(&DirectionLabel { direction }).inc_by(time.as_secs_f64());
    }

    pub(crate) fn count_bytes(&self, source: Source, bytes: u64) {
        self.piece_bytes.get_or_create(&SourceLabel { source }).inc_by(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_board_reads() {
        let metrics = Metrics::default();
        let mut registry = Registry::with_prefix("lapwing");
        metrics.register(&mut registry);
        metrics.count_bytes(Source::peer, 7);
        metrics.served_bytes.inc_by(3);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("lapwing_piece_bytes_total{source=\"peer\"} 7"), "{text}");
        assert!(text.contains("lapwing_served_bytes_total 3"), "{text}");
    }
}
