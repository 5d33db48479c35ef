//! Speed limits around sockets. What goes to and from peers the scheduler holds back itself; bytes of origins wait here.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::Node;
use super::blob::{Blob, lock};
use crate::metrics::Metrics;
use crate::rate::{Gate, Limits, Rates, Ticket};
use crate::swarm::Priority;

/// The gate that bytes of origins pass.
#[derive(Debug, Default)]
pub(super) struct OriginGate {
    gate: Mutex<Gate>,
    changed: Notify,
    /// What the counters of the metrics were told, in nanoseconds: upload, download, origin.
    told: [AtomicU64; 3],
}

/// Leaves the queue when the transfer that waits is given up.
struct Waiting<'a> {
    node: &'a Node,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.node.origin_gate.gate).leave(self.node.elapsed(), self.ticket);
    }
}

impl Node {
    /// The speed limits in force.
    pub fn limits(&self) -> Limits {
        let (upload, download) = lock(&self.inner).swarm.limits();
        Limits { upload, download, origin: lock(&self.origin_gate.gate).rates() }
    }

    /// Sets the speed limits, for what is under way too, until they are set again or the node ends.
    pub fn set_limits(&self, limits: Limits) {
        let now = self.elapsed();
        lock(&self.inner).swarm.set_limits(now, limits.upload, limits.download);
        lock(&self.origin_gate.gate).set(now, limits.origin);
        self.origin_gate.changed.notify_waiters();
        self.wake.notify_one();
    }

    /// Waits until `bytes` that an origin sent of these pieces may be taken in.
    pub(super) async fn admit_from_origin(self: &Arc<Self>, blob: &Blob, pieces: &Range<u32>, bytes: u64) {
        if lock(&self.origin_gate.gate).rates() == Rates::default() {
            return;
        }
        let priority = lock(&self.inner).swarm.urgency(&blob.digest, pieces).unwrap_or(Priority::Background);
        let ticket = lock(&self.origin_gate.gate).queue(priority, blob.digest, bytes);
        let waiting = Waiting { node: self, ticket };
        let (began, mut waited) = (std::time::Instant::now(), false);
        loop {
            let changed = self.origin_gate.changed.notified();
            let Err(wait) = lock(&self.origin_gate.gate).pass(self.elapsed(), waiting.ticket) else {
                if waited {
                    blob.timeline().held_back(began, std::time::Instant::now());
                }
                return;
            };
            waited = true;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    /// The limit is the whole node's: it held back every blob that wants something.
    fn take_down_limit(&self, time: Duration) {
        let now = std::time::Instant::now();
        let Some(began) = now.checked_sub(time) else { return };
        let active: Vec<_> = {
            let inner = lock(&self.inner);
            inner
                .blobs
                .iter()
                .filter(|(digest, _)| inner.swarm.is_active(digest))
                .map(|(_, blob)| Arc::clone(blob))
                .collect()
        };
        for blob in active {
            blob.timeline().held_back(began, now);
        }
    }

    /// Brings the counters of throttled time up to date.
    pub(super) fn count_throttled(&self) {
        let (upload, download) = lock(&self.inner).swarm.throttled();
        let origin = lock(&self.origin_gate.gate).throttled();
        let times = [("upload", upload), ("download", download), ("origin", origin)];
        for ((direction, time), told) in times.into_iter().zip(&self.origin_gate.told) {
            let more = count(&self.metrics, direction, time, told);
            if direction == "download" && !more.is_zero() {
                self.take_down_limit(more);
            }
        }
    }
}

/// Gives what was new.
fn count(metrics: &Metrics, direction: &'static str, time: Duration, told: &AtomicU64) -> Duration {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let before = told.swap(nanos, Ordering::Relaxed);
    let more = Duration::from_nanos(nanos.saturating_sub(before));
    if !more.is_zero() {
        metrics.count_throttled(direction, more);
    }
    more
}
