//! What a node does about a trial: waits for the beginning, fetches the blob, and tells how it goes until the trial is over.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapwing_p2p::discovery::{Order, Trial};
use lapwing_p2p::node::Node;
use lapwing_p2p::timeline::{Recorded, Track};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::rates::Peak;
use super::report::{MAX_CAUSES, Report, Stage};
use crate::explain;

/// How often it is told how a trial goes; its end is heard of with the answer.
pub(super) const TELL: Duration = Duration::from_secs(3);
/// The second word that a trial is over is asked for so soon: another tracker may answer that does not know it.
const ASSURE: Duration = Duration::from_millis(300);
const SAMPLE: Duration = Duration::from_millis(100);
/// Without an answer of any tracker for so long a trial is over.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest part in a trial.
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// How often a blob is tried to be removed that somebody still takes.
const REMOVALS: u32 = 5;

struct Part<'a> {
    node: &'a Arc<Node>,
    order: &'a Order,
    trial: Trial,
    report: Mutex<Report>,
    changed: Notify,
}

/// Carries out an order that is a trial: `bring` has the blob come here.
pub(crate) async fn take_part(
    node: &Arc<Node>,
    order: &Order,
    trial: Trial,
    places: &Semaphore,
    bring: impl Future<Output = Result<(), String>>,
) {
    let begins = Instant::now() + trial.begins_in;
    let held = held_bytes(node, order);
    let report = Report { held, late: trial.begins_in.is_zero(), ..Report::default() };
    let part = Part { node, order, trial, report: Mutex::new(report), changed: Notify::new() };
    tracing::info!(digest = %order.digest, held, begins_in = ?trial.begins_in, "taking part in a trial");
    let work = async {
        if held >= order.length {
            part.change(|report| report.stage = Stage::Done);
        } else {
            sleep_until(begins).await;
            part.fetch(begins, places, bring).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = work => {}
        () = part.sample(begins) => {}
        _ = timeout(LONGEST, part.tell()) => {}
    }
    if trial.remove && held == 0 {
        part.remove().await;
    }
}

/// A node that takes no part says so.
pub(crate) async fn decline(node: &Node, order: &Order, trial: Trial, reason: String) {
    let report = Report::failed(reason).encode();
    if let Err(error) = node.discovery().tell_trial(order.digest, trial.job, report).await {
        tracing::debug!(digest = %order.digest, %error, "nobody was told that this node takes no part in a trial");
    }
}

fn held_bytes(node: &Node, order: &Order) -> u64 {
    if node.store().is_verified(&order.digest) {
        return order.length;
    }
    node.store().get(&order.digest).map_or(0, |blob| blob.have_bytes().min(order.length))
}

impl Part<'_> {
    fn lock(&self) -> MutexGuard<'_, Report> {
        // Every change is of single fields that make sense by themselves.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    async fn fetch(&self, begins: Instant, places: &Semaphore, bring: impl Future<Output = Result<(), String>>) {
        let timeline = self.node.timelines().begin(&self.order.digest);
        // What is waited for is seen as a client's wait, without which a trial would look idle.
        let transfer = timeline.span(Track::Transfer);
        self.change(|report| report.stage = Stage::Fetching);
        // The semaphore is never closed.
        let place = places.acquire().await;
        let brought = bring.await;
        let took = begins.elapsed();
        drop((place, transfer));
        if let Err(error) = &brought {
            tracing::warn!(digest = %self.order.digest, error, "a trial fails here");
        }
        let recorded = timeline.recorded();
        self.change(|report| {
            report.took_ms = millis(took);
            fill(report, &recorded, begins, took);
            match brought {
                Ok(()) => report.stage = Stage::Done,
                Err(error) => (report.stage, report.error) = (Stage::Failed, error),
            }
        });
    }

    /// Watches the node's rates, for as long as it is asked to.
    async fn sample(&self, begins: Instant) {
        sleep_until(begins).await;
        let (_, sent_before) = self.node.moved_bytes();
        let (mut taken, mut given) = (Peak::default(), Peak::default());
        loop {
            let (at, (came, sent)) = (begins.elapsed(), self.node.moved_bytes());
            taken.note(at, came);
            given.note(at, sent);
            {
                let mut report = self.lock();
                report.sent = sent.saturating_sub(sent_before);
                (report.peak_in, report.peak_out) = (taken.rate(), given.rate());
            }
            sleep(SAMPLE).await;
        }
    }

    /// Tells how it goes until it is over.
    async fn tell(&self) {
        let (mut answered, mut assured) = (Instant::now(), false);
        loop {
            let pause = match self.tell_once().await {
                Ok(true) if assured => return,
                Ok(over) => {
                    (answered, assured) = (Instant::now(), over);
                    if over { ASSURE } else { TELL }
                }
                Err(()) if answered.elapsed() > PATIENCE => return,
                Err(()) => TELL,
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    async fn tell_once(&self) -> Result<bool, ()> {
        let (digest, report) = (self.order.digest, self.lock().encode());
        self.node.discovery().tell_trial(digest, self.trial.job, report).await.map_err(|error| {
            tracing::debug!(%digest, %error, "no tracker hears how a trial goes");
        })
    }

    /// Takes what came with the trial out of the store again.
    async fn remove(&self) {
        let digest = self.order.digest;
        for tried in 1..=REMOVALS {
            let node = Arc::clone(self.node);
            let removed = tokio::task::spawn_blocking(move || node.remove_from_peers(&digest)).await;
            match removed {
                Ok(Ok(_)) => {
                    self.change(|report| report.stage = Stage::Removed);
                    break;
                }
                Ok(Err(error)) if tried == REMOVALS => {
                    tracing::warn!(%digest, %error, "what a trial brought stays");
                    self.change(|report| report.error = format!("it stays: {error}"));
                }
                Ok(Err(_)) => sleep(TELL / 3 * tried).await,
                Err(_) => break,
            }
        }
        let _ = self.tell_once().await;
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Takes over where the bytes came from, and what limited them.
fn fill(report: &mut Report, recorded: &Recorded, begins: Instant, took: Duration) {
    let bytes = |track| recorded.lane(track).bytes;
    (report.from_origin, report.from_seeds) = (bytes(Track::Origin), bytes(Track::Seed));
    (report.from_near, report.from_far) = (bytes(Track::Near), bytes(Track::Far));
    // A timeline that is older than the trial is of a blob that was here in part.
    let offset = recorded.at.saturating_duration_since(begins.into_std());
    let sources = [Track::Origin, Track::Seed].map(|track| recorded.lane(track));
    let gave = || sources.into_iter().filter(|lane| lane.bytes > 0);
    report.source_from_ms = gave().filter_map(|lane| lane.first).min().map(|first| millis(offset + first));
    report.source_until_ms = gave().map(|lane| lane.last).max().map(|last| millis(offset + last));
    let limits = explain::limits_of(recorded, offset, took).into_iter().take(MAX_CAUSES);
    report.limited_by = limits.map(|share| (share.cause, (share.seconds * 1000.0) as u64)).collect();
}
