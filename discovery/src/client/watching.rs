//! Keeps the set of trackers in step with where they are named, without a restart.
//!
//! Names are resolved again every while, and a file is read when it changes. What cannot be resolved, or names nobody, keeps
//! the trackers that it named last: one warning tells of it, and one line that it is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::link::jittered;
use super::source::{SourceError, Stamp, TrackerSource};
use crate::limits::{MAX_TRACKERS, SOURCE_POLL};

/// One source and what it said last.
struct Watched {
    source: TrackerSource,
    trackers: Vec<String>,
    stamp: Option<Stamp>,
    due: Instant,
    failing: bool,
}

impl Watched {
    fn new(source: TrackerSource, now: Instant) -> Self {
        let trackers = match &source {
            TrackerSource::Address(address) => vec![address.clone()],
            _ => Vec::new(),
        };
        Self { source, trackers, stamp: None, due: now, failing: false }
    }

    const fn is_fixed(&self) -> bool {
        matches!(self.source, TrackerSource::Address(_))
    }

    /// Asks the source, if it is time or its file has changed.
    async fn look(&mut self, shared: &Shared) {
        if self.is_fixed() || self.due > Instant::now() {
            return;
        }
        let stamp = self.source.stamp().await;
        if stamp.is_none() || stamp != self.stamp || self.failing {
            let answer = self.source.trackers(shared.config.resolver).await;
            self.learn(answer);
            self.stamp = stamp;
        }
        // A file is looked at all the time, and a name that is not known yet soon again.
        let soon = matches!(self.source, TrackerSource::File(_)) || self.trackers.is_empty();
        let period = if soon { SOURCE_POLL.min(shared.config.refresh) } else { shared.config.refresh };
        self.due = Instant::now() + jittered(period);
    }

    fn learn(&mut self, answer: Result<Vec<String>, SourceError>) {
        match answer {
            Ok(trackers) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(source = %self.source, "trackers can be found there again");
                }
                self.trackers = trackers;
            }
            Err(error) if self.failing => tracing::debug!(source = %self.source, %error, "no trackers from there yet"),
            Err(error) => {
                let kept = self.trackers.len();
                tracing::warn!(source = %self.source, %error, kept, "no trackers from there: what it named last is kept");
                self.failing = true;
            }
        }
    }
}

/// All that the sources name, each once, as many as are used.
fn named(watched: &[Watched]) -> Vec<String> {
    let mut trackers: Vec<String> = Vec::new();
    for tracker in watched.iter().flat_map(|watched| &watched.trackers) {
        if !trackers.contains(tracker) {
            trackers.push(tracker.clone());
        }
    }
    if trackers.len() > MAX_TRACKERS {
        // All nodes must leave out the same ones.
        trackers.sort();
        trackers.truncate(MAX_TRACKERS);
    }
    trackers
}

/// Follows the sources for as long as it is polled.
pub(super) async fn watch(shared: Arc<Shared>, sources: Vec<TrackerSource>) {
    let start = Instant::now();
    let mut watched: Vec<Watched> = sources.into_iter().map(|source| Watched::new(source, start)).collect();
    let mut crowded = false;
    loop {
        for source in &mut watched {
            source.look(&shared).await;
        }
        let all: usize = watched.iter().map(|watched| watched.trackers.len()).sum();
        if all > MAX_TRACKERS && !crowded {
            tracing::warn!(
                named = all,
                used = MAX_TRACKERS,
                "more trackers are named than are used: the first by name are"
            );
        }
        crowded = all > MAX_TRACKERS;
        if let Err(error) = shared.use_trackers(&named(&watched)) {
            tracing::warn!(%error, "the trackers that are named now cannot be used: those before stay");
        }
        let next = watched.iter().filter(|watched| !watched.is_fixed()).map(|watched| watched.due).min();
        sleep_until(next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(trackers: &[&str]) -> Watched {
        let source = TrackerSource::Srv("_lapwing._tcp.example.org".to_owned());
        let mut watched = Watched::new(source, Instant::now());
        watched.learn(Ok(trackers.iter().map(|&tracker| tracker.to_owned()).collect()));
        watched
    }

    #[test]
    fn what_a_source_named_last_outlives_its_failure() {
        let mut watched = watched(&["a:1", "b:1"]);
        watched.learn(Err(SourceError::Empty("x".to_owned())));
        assert!(watched.failing);
        assert_eq!(named(&[watched]), ["a:1", "b:1"]);
    }

    #[test]
    fn each_tracker_is_used_once_and_all_nodes_leave_out_the_same() {
        assert_eq!(named(&[watched(&["b:1", "a:1"]), watched(&["a:1", "c:1"])]), ["b:1", "a:1", "c:1"]);
        let many: Vec<String> = (0..20).map(|number| format!("t{number:02}:1")).collect();
        let (front, back): (Vec<&str>, Vec<&str>) =
            (many.iter().map(String::as_str).collect(), many.iter().rev().map(String::as_str).collect());
        assert_eq!(named(&[watched(&front)]), named(&[watched(&back)]));
        assert_eq!(named(&[watched(&front)]).len(), MAX_TRACKERS);
    }
}
