//! Spans that were fetched before anybody read them, because a profile, or the layer's maker, said that somebody would.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters of all lazy layers of a node; clones count together.
#[derive(Debug, Clone, Default)]
pub struct LazyMetrics {
    prefetched_spans: Counter,
    prefetched_bytes: Counter,
    prefetch_hits: Counter,
    waited_reads: Counter,
}

impl LazyMetrics {
    /// Registers `lazy_prefetched_spans_total`, `lazy_prefetched_bytes_total`, `lazy_prefetch_hits_total` and
    /// `lazy_waited_reads_total`.
    pub fn register(&self, registry: &mut Registry) {
        let spans = "Spans of lazy layers fetched because a profile or landmark names them, before anybody read them";
        registry.register("lazy_prefetched_spans", spans, self.prefetched_spans.clone());
        let bytes = "Compressed bytes of those spans";
        registry.register("lazy_prefetched_bytes", bytes, self.prefetched_bytes.clone());
        let hits = "Those spans that were read later";
        registry.register("lazy_prefetch_hits", hits, self.prefetch_hits.clone());
        let waited = "Reads of lazy layers that had to wait for bytes from the swarm";
        registry.register("lazy_waited_reads", waited, self.waited_reads.clone());
    }

    pub(super) fn count_prefetched(&self, compressed_bytes: u64) {
        self.prefetched_spans.inc();
        self.prefetched_bytes.inc_by(compressed_bytes);
    }

    pub(super) fn count_waited(&self) {
        self.waited_reads.inc();
    }

    pub(super) fn count_hit(&self) {
        self.prefetch_hits.inc();
    }
}

/// Which spans of a layer were fetched ahead and not read since: a bit for each, once there is one.
#[derive(Debug, Default)]
pub(super) struct Unread(OnceLock<Box<[AtomicU64]>>);

impl Unread {
    /// That span of `spans` is being fetched ahead.
    pub(super) fn set(&self, span: usize, spans: usize) {
        let words = self.0.get_or_init(|| (0..spans.div_ceil(64)).map(|_| AtomicU64::new(0)).collect());
        words[span / 64].fetch_or(1 << (span % 64), Ordering::Relaxed);
    }

    /// It is read, or was not fetched after all; whether it was in.
    pub(super) fn take(&self, span: usize) -> bool {
        let Some(words) = self.0.get() else { return false };
        let bit = 1 << (span % 64);
        // Looked at first: reads of what nobody fetched ahead write nothing.
        words[span / 64].load(Ordering::Relaxed) & bit != 0
            && words[span / 64].fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_span_is_taken_once() {
        let unread = Unread::default();
        assert!(!unread.take(3));
        unread.set(3, 130);
        unread.set(129, 130);
        assert!(!unread.take(2));
        assert!(unread.take(3) && !unread.take(3));
        assert!(unread.take(129) && !unread.take(129));
    }
}
