//! One run, at the node that was asked: it gives the order, gathers what nodes tell, and says when it is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{DiscoveryError, Order, OrderRequest, OrderStand, Trial, TrialReport};
use lapwing_p2p::node::Node;
use lapwing_p2p::origin::Locator;
use lapwing_plugins::registry::Registries;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::api::{NewRun, RunBlob, RunNode, RunState, RunView};
use super::report::{Report, Stage};
use crate::preheat::jobs::BlobWant;
use crate::preheat::limits::RESOLVE_TIME;
use crate::preheat::{ImageName, resolve};

/// Most blobs of an image that is measured: as many trials as a tracker keeps.
const MAX_BLOBS: usize = 64;
const LOOK: Duration = Duration::from_millis(500);
/// How often the order is repeated.
const REPEAT: Duration = Duration::from_secs(5);
/// Without an answer of any tracker for so long the run has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long after the beginning nobody waits any more for nodes that have said nothing.
const SILENCE: Duration = Duration::from_secs(20);
/// Longer than between two words of a node: what it sent to the last one is told.
const SETTLE: Duration = Duration::from_secs(4);
/// How long it is waited for nodes to remove what was brought.
const REMOVING: Duration = Duration::from_secs(40);

/// See the module's documentation.
pub(super) struct Run {
    node: Arc<Node>,
    registries: Arc<Registries>,
    job: u64,
    new: NewRun,
    view: Mutex<RunView>,
    pub(super) stop: CancellationToken,
}

/// What trackers said last.
struct Answers {
    ordered: Option<Instant>,
    gathered: Instant,
    expected: u32,
}

impl Run {
    pub(super) fn new(node: Arc<Node>, registries: Arc<Registries>, new: NewRun) -> Self {
        let job = fastrand::u64(..);
        let view = RunView {
            id: format!("{job:016x}"),
            image: new.image.clone(),
            state: RunState::Resolving,
            error: String::new(),
            begins_in_ms: 0,
            remove: new.remove,
            expected: 0,
            timed_out: false,
            blobs: Vec::new(),
            nodes: Vec::new(),
        };
        Self { node, registries, job, new, view: Mutex::new(view), stop: CancellationToken::new() }
    }

    pub(super) fn view(&self) -> RunView {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, RunView> {
        // Each change is of single fields that make sense by themselves.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, state: RunState) {
        self.lock().state = state;
    }

    /// Until it has ended; the view says how.
    pub(super) async fn run(self: Arc<Self>) {
        let measured = self.stop.run_until_cancelled(self.measure()).await;
        let state = match &measured {
            Some(Ok(())) => RunState::Ended,
            Some(Err(_)) => RunState::Failed,
            None => RunState::Canceled,
        };
        let blobs = self.lock().blobs.clone();
        self.finish(&blobs).await;
        let mut view = self.lock();
        view.state = state;
        if let Some(Err(error)) = measured {
            tracing::warn!(run = view.id, error, "a measurement of the swarm has failed");
            view.error = error;
        }
    }

    async fn measure(&self) -> Result<(), String> {
        let blobs = self.resolve().await?;
        // One that knows no trials would have everybody fetch at once.
        for blob in &blobs {
            self.node.discovery().trial_reports(blob.digest, self.job).await.map_err(|error| {
                format!("no tracker can be asked for a measurement: {error}; trackers of this version can")
            })?;
        }
        let wait = Duration::from_secs(self.new.start_in_seconds);
        let begins = Instant::now() + wait;
        tracing::info!(run = format!("{:016x}", self.job), image = self.new.image, ?wait, "measuring the swarm");
        self.enter(RunState::Waiting);
        self.watch(&blobs, begins).await?;
        if Instant::now() >= begins {
            self.enter(RunState::Settling);
            sleep(SETTLE).await;
        }
        self.gather(&blobs).await.map_err(|error| error.to_string())
    }

    /// Orders and gathers until there is nothing more to wait for.
    async fn watch(&self, blobs: &[RunBlob], begins: Instant) -> Result<(), String> {
        let limit = begins + Duration::from_secs(self.new.timeout_seconds);
        let mut answers = Answers { ordered: None, gathered: Instant::now(), expected: 0 };
        loop {
            let now = Instant::now();
            self.ask(blobs, begins, &mut answers).await?;
            let without_silent = now >= begins + SILENCE;
            {
                let mut view = self.lock();
                view.expected = view.expected.max(answers.expected);
                let left = begins.saturating_duration_since(now);
                view.begins_in_ms = u64::try_from(left.as_millis()).unwrap_or_default();
                if left.is_zero() {
                    view.state = RunState::Running;
                }
            }
            if answers.expected == 0 && without_silent {
                return Err("the tracker knows no node of this group that could take part".to_owned());
            }
            if self.is_done(blobs.len(), answers.expected as usize, without_silent) {
                return Ok(());
            }
            if now >= limit {
                self.lock().timed_out = true;
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// Repeats the order when that is due, and takes over what was told.
    async fn ask(&self, blobs: &[RunBlob], begins: Instant, answers: &mut Answers) -> Result<(), String> {
        let now = Instant::now();
        if answers.ordered.is_none_or(|at| at + REPEAT <= now) {
            match try_join_all(blobs.iter().map(|blob| self.order(blob, begins, false))).await {
                Ok(stands) => {
                    answers.ordered = Some(now);
                    answers.expected = stands.iter().map(|stand| stand.nodes).max().unwrap_or_default();
                }
                Err(refused @ DiscoveryError::Refused { .. }) => return Err(refused.to_string()),
                Err(error) if answers.ordered.is_none_or(|at| at + PATIENCE < now) => return Err(error.to_string()),
                Err(error) => tracing::debug!(%error, "no tracker takes the order of a measurement now"),
            }
        }
        match self.gather(blobs).await {
            Ok(()) => answers.gathered = now,
            Err(error) if answers.gathered.elapsed() > PATIENCE => return Err(error.to_string()),
            Err(error) => tracing::debug!(%error, "no tracker tells of a measurement now"),
        }
        Ok(())
    }

    async fn resolve(&self) -> Result<Vec<RunBlob>, String> {
        let name: ImageName = self.new.image.parse()?;
        let asked = resolve::resolve(&self.registries, &name, &self.new.platform);
        let wants = timeout(RESOLVE_TIME, asked).await.map_err(|_| format!("{} does not answer", name.registry))??;
        let mut blobs: BTreeMap<Digest, RunBlob> = BTreeMap::new();
        for BlobWant { digest, length, .. } in wants {
            let length = length.ok_or_else(|| format!("{digest} has no length"))?;
            blobs.insert(digest, RunBlob { digest, length_bytes: length });
        }
        if blobs.len() > MAX_BLOBS {
            return Err(format!("{name} has {} blobs; a measurement takes one of at most {MAX_BLOBS}", blobs.len()));
        }
        let blobs: Vec<RunBlob> = blobs.into_values().collect();
        self.lock().blobs.clone_from(&blobs);
        Ok(blobs)
    }

    async fn order(&self, blob: &RunBlob, begins: Instant, over: bool) -> Result<OrderStand, DiscoveryError> {
        let name: ImageName = self.new.image.parse().expect("it was parsed before");
        let locator = Locator { namespace: name.registry.to_string(), repository: name.repo.to_string() };
        let begins_in = begins.saturating_duration_since(Instant::now());
        let trial = Some(Trial { job: self.job, begins_in, remove: self.new.remove });
        let order = Order { digest: blob.digest, length: blob.length_bytes, locator, index: false, trial };
        self.node.discovery().order(OrderRequest { order, job: self.job, nodes: self.new.nodes, over }).await
    }

    /// Takes over what nodes have told so far.
    async fn gather(&self, blobs: &[RunBlob]) -> Result<(), DiscoveryError> {
        let asked = blobs.iter().map(|blob| self.node.discovery().trial_reports(blob.digest, self.job));
        let told = try_join_all(asked).await?;
        let mut nodes: BTreeMap<_, RunNode> = BTreeMap::new();
        for (place, reports) in told.into_iter().enumerate() {
            for TrialReport { peer, address, zone, report } in reports {
                let Some(report) = Report::decode(&report) else { continue };
                let node = nodes.entry(peer).or_insert_with(|| RunNode {
                    node: peer.to_string(),
                    address,
                    zone,
                    reports: vec![None; blobs.len()],
                });
                node.reports[place] = Some(report);
            }
        }
        let mut view = self.lock();
        // A tracker that was started anew knows nothing of what was told before.
        let known: Vec<RunNode> =
            view.nodes.drain(..).filter(|node| nodes.values().all(|other| other.node != node.node)).collect();
        view.nodes = nodes.into_values().chain(known).collect();
        Ok(())
    }

    /// Whether all that are waited for have come to an end.
    fn is_done(&self, blobs: usize, expected: usize, without_silent: bool) -> bool {
        let view = self.lock();
        (0..blobs).all(|blob| {
            let reports = || view.nodes.iter().filter_map(|node| node.reports[blob].as_ref());
            let ended = reports().filter(|report| report.has_ended()).count();
            let awaited = if without_silent { expected.min(reports().count()) } else { expected };
            ended >= awaited && expected > 0
        })
    }

    /// Tells everybody that it is over, and waits for what is to be removed.
    async fn finish(&self, blobs: &[RunBlob]) {
        for told in join_all(blobs.iter().map(|blob| self.order(blob, Instant::now(), true))).await {
            if let Err(error) = told {
                tracing::debug!(%error, "nodes are not told that a measurement is over; they hear it in a minute");
            }
        }
        if !self.new.remove {
            return;
        }
        self.enter(RunState::Removing);
        let is_removed =
            |report: &Report| report.held > 0 || !report.error.is_empty() || !matches!(report.stage, Stage::Done);
        let begun = Instant::now();
        while begun.elapsed() < REMOVING {
            if self.gather(blobs).await.is_ok()
                && self.lock().nodes.iter().all(|node| node.reports.iter().flatten().all(is_removed))
            {
                break;
            }
            sleep(LOOK).await;
        }
    }
}
