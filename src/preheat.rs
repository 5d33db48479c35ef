//! Preheating: blobs of images, and the indexes of their layers, where they will be wanted before anybody pulls.
//!
//! * [`jobs`]: what is asked for and how far it is, without I/O; `name`, `to`: what can be asked for
//! * `resolve`: the blobs of an image; [`machine`]: what this machine does about one of them
//! * `orders`: what other nodes are asked to do, and what they ask of this one
//! * [`api`], `openapi`: `/api/v1/preheat/` of the admin listener, behind `lapwing preheat`
//! * [`webhook`], `events`, `secret`: what registries tell of pushes
//!
//! This module is the shell around [`jobs::Jobs`]: it carries out what the jobs want done, each blob in a task of its own, and tells them what
//! became of it. Nothing that a request names is dialled: a registry must be listed in the configuration, and is then reached as always
//! (`plugins::registry`). Credentials are those of the machine that fetches, and travel nowhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{IndexStand, PreheatRequest, SeedRefusal, StatementKind};
use lapwing_p2p::node::Node;
use lapwing_plugins::registry::{Registries, RegistryName};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub(crate) mod api;
mod events;
pub(crate) mod jobs;
pub(crate) mod limits;
pub(crate) mod machine;
mod metrics;
mod name;
pub(crate) mod openapi;
mod orders;
pub(crate) mod resolve;
mod secret;
mod to;
pub(crate) mod webhook;

pub(crate) use name::ImageName;
pub(crate) use to::To;

use crate::admin::Admin;
use crate::bench;
use crate::config::Config;
use jobs::{Action, BlobWant, Event, Full, Job, JobId, JobState, Jobs, Pushed, Request};
use machine::{Machine, Wish, grant};
use metrics::PreheatMetrics;

/// How often it is looked how much of a blob is here.
const LOOK: Duration = Duration::from_millis(200);
/// How often pushes that fell silent are looked for.
const EXPIRE: Duration = Duration::from_secs(30);
/// Shortest and longest pause between two questions to a seed.
const ASK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long seeds may be out of reach before a blob is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the tracker may take to name an index that a seed has stated.
const INDEX_PATIENCE: Duration = Duration::from_secs(120);

/// See the module's documentation.
pub(crate) struct Preheat {
    this: Weak<Self>,
    machine: Arc<dyn Machine>,
    node: Arc<Node>,
    registries: Arc<Registries>,
    jobs: Mutex<Jobs>,
    /// Of those that run.
    aborts: Mutex<HashMap<JobId, CancellationToken>>,
    metrics: PreheatMetrics,
}

/// Why a job is not begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It could reach what it must not.
    #[error(
        "registry {0} is not listed; list it under registries.hosts in this machine's configuration to preheat from it"
    )]
    NotListed(RegistryName),
    /// There are enough.
    #[error(transparent)]
    Full(#[from] Full),
}

impl Preheat {
    /// Puts it together for a daemon: jobs at its admin listener, and webhooks where the configuration has them.
    pub(crate) async fn start(
        machine: Arc<dyn Machine>,
        node: &Arc<Node>,
        registries: &Arc<Registries>,
        config: &Config,
        admin: &mut Admin,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let metrics = PreheatMetrics::register(admin.lapwing());
        let preheat = Self::new(machine, Arc::clone(node), Arc::clone(registries), metrics);
        webhook::start(&config.preheat, registries, Arc::clone(&preheat), shutdown.clone()).await?;
        tokio::spawn(Arc::clone(&preheat).watch(shutdown.clone()));
        if !preheat.machine.is_seed() {
            let preheat = Arc::clone(&preheat);
            let stop = shutdown.clone();
            if config.preheat.accept {
                tokio::spawn(preheat.obey(stop));
            } else {
                tokio::spawn(async move { stop.run_until_cancelled_owned(preheat.decline()).await });
            }
        }
        let api = std::mem::take(&mut admin.api);
        admin.api = api.merge(bench::api::routes(node, registries)).merge(api::routes(preheat));
        Ok(())
    }

    fn new(
        machine: Arc<dyn Machine>,
        node: Arc<Node>,
        registries: Arc<Registries>,
        metrics: PreheatMetrics,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            machine,
            node,
            registries,
            jobs: Mutex::default(),
            aborts: Mutex::default(),
            metrics,
        })
    }

    /// Begins a job.
    pub(crate) fn create(&self, request: Request) -> Result<Job, Refused> {
        if let Some(image) = request.images.iter().find(|image| !self.registries.is_listed(&image.registry)) {
            return Err(Refused::NotListed(image.registry.clone()));
        }
        let id = JobId(fastrand::u64(..));
        let names: Vec<String> = request.images.iter().map(ImageName::to_string).collect();
        tracing::info!(job = %id, images = names.join(" "), to = %request.to, "preheating");
        let actions = self.jobs().create(id, request, SystemTime::now())?;
        self.carry_out(actions);
        Ok(self.get(id).expect("it has just been made"))
    }

    /// Goes on with, or begins, the job of a push.
    pub(crate) fn pushed(&self, pushed: Pushed, to: To, lazy_index: bool) -> Result<(), Full> {
        tracing::info!(?pushed, "a registry tells of a push");
        let actions = self.jobs().pushed(JobId(fastrand::u64(..)), pushed, to, lazy_index, SystemTime::now())?;
        self.carry_out(actions);
        Ok(())
    }

    /// Ends pushes that fell silent, until `shutdown`.
    pub(crate) async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(EXPIRE) => {}
            }
            self.jobs().expire(SystemTime::now());
            self.tidy();
        }
    }

    pub(crate) fn get(&self, id: JobId) -> Option<Job> {
        self.jobs().get(id).cloned()
    }

    /// All that are remembered, the latest first.
    pub(crate) fn list(&self) -> Vec<Job> {
        self.jobs().list().cloned().collect()
    }

    /// Stops a job: nothing more is begun for it. What is under way elsewhere comes to its end there.
    pub(crate) fn cancel(&self, id: JobId) -> Option<Job> {
        let actions = self.jobs().cancel(id, SystemTime::now())?;
        self.carry_out(actions);
        self.get(id)
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        // Each step of the jobs is whole when it returns, and none panics half way.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        let actions = self.jobs().on(event, SystemTime::now());
        self.carry_out(actions);
    }

    fn carry_out(&self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Resolve { job, image } => {
                    self.spawn(job, move |this| async move { this.resolve(job, image).await });
                }
                Action::Fetch { job, want } => self.spawn(job, move |this| async move { this.fetch(job, want).await }),
                Action::Abort { job } => {
                    if let Some(abort) = self.aborts().get(&job) {
                        abort.cancel();
                    }
                }
            }
        }
        self.tidy();
    }

    fn aborts(&self) -> MutexGuard<'_, HashMap<JobId, CancellationToken>> {
        // Single insertions and removals: nothing is left half done.
        self.aborts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what has ended.
    fn tidy(&self) {
        let jobs = self.jobs();
        self.metrics.running.set(i64::try_from(jobs.running()).unwrap_or(i64::MAX));
        self.aborts().retain(|id, _| match jobs.get(*id) {
            Some(job) if job.state == JobState::Running => true,
            Some(job) => {
                self.metrics.ended(job.state);
                tracing::info!(job = %id, state = ?job.state, blobs = job.blobs.len(), "preheating has ended");
                false
            }
            None => false,
        });
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, job: JobId, work: impl FnOnce(Arc<Self>) -> F) {
        let Some(this) = self.this.upgrade() else { return };
        let abort = {
            let jobs = self.jobs();
            // Whoever stopped it meanwhile has aborted what was there to abort.
            if jobs.get(job).is_none_or(|job| job.state != JobState::Running) {
                return;
            }
            self.aborts().entry(job).or_default().clone()
        };
        let work = work(this);
        tokio::spawn(async move { abort.run_until_cancelled_owned(work).await });
    }

    async fn resolve(&self, job: JobId, image: usize) {
        let Some(found) = self.get(job) else { return };
        let Some(name) = found.images.get(image).map(|image| image.name.clone()) else { return };
        let resolved = timeout(limits::RESOLVE_TIME, resolve::resolve(&self.registries, &name, &found.platforms)).await;
        let blobs = resolved.unwrap_or_else(|_| Err(format!("{} does not answer", name.registry)));
        if let Err(error) = &blobs {
            tracing::warn!(%job, image = %name, error, "an image is not preheated");
        }
        self.tell(Event::Resolved { job, image, blobs });
    }

    async fn fetch(&self, job: JobId, want: BlobWant) {
        let Some((to, index)) = self.get(job).map(|job| (job.to, job.lazy_index)) else { return };
        let digest = want.digest;
        let outcome = self.bring(job, want, to, index).await;
        self.metrics.blob(outcome.is_ok());
        if let Err(error) = &outcome {
            tracing::warn!(%job, %digest, error, "a blob is not preheated");
        }
        self.tell(Event::Fetched { job, digest, outcome });
    }

    async fn bring(&self, job: JobId, want: BlobWant, to: To, index: bool) -> Result<(), String> {
        let BlobWant { registry, repo, digest, length, is_layer } = want;
        let length = match length {
            Some(length) => length,
            None => grant(&self.registries, &registry, &repo, digest, None).await?,
        };
        let wish = Wish { registry, repo, digest, length };
        let index = index && is_layer != Some(false);
        match to {
            To::Seeds if !self.machine.is_seed() => self.by_seeds(job, &wish, index, is_layer.is_some()).await,
            To::Seeds | To::Here => self.here(job, wish, index).await,
            To::All | To::Nodes(_) => self.by_nodes(job, &wish, to, index, is_layer.is_some()).await,
        }
    }

    async fn here(&self, job: JobId, wish: Wish, index: bool) -> Result<(), String> {
        let Wish { digest, length, .. } = wish;
        let mut fetching = self.machine.fetch(wish.clone());
        loop {
            tokio::select! {
                fetched = &mut fetching => break fetched?,
                () = sleep(LOOK) => {
                    let have = self.node.store().get(&digest).map_or(0, |blob| blob.have_bytes());
                    self.tell(Event::Progress { job, digest, length, have });
                }
            }
        }
        self.tell(Event::Progress { job, digest, length, have: length });
        if index {
            self.tell(Event::Indexing { job, digest });
            self.machine.index(wish).await.map_err(|error| format!("it is here without an index: {error}"))?;
        }
        Ok(())
    }

    /// The seed that nodes will ask is asked again and again, until it has everything.
    /// `certain`: an index that is asked for must be known to others in the end; else only the seed can tell whether the blob is a layer.
    async fn by_seeds(&self, job: JobId, wish: &Wish, index: bool, certain: bool) -> Result<(), String> {
        let Wish { digest, length, .. } = *wish;
        let request = PreheatRequest { digest, length, locator: wish.locator(), index };
        let (mut pause, mut answered, mut moved) = (ASK.0, Instant::now(), Instant::now());
        // A fetch that begins anew is no step ahead.
        let mut best = (false, 0);
        loop {
            match self.node.discovery().preheat_seed(request.clone()).await {
                Ok(seed) => {
                    answered = Instant::now();
                    if (seed.complete, seed.have) > best {
                        best = (seed.complete, seed.have);
                        moved = answered;
                    }
                    self.tell(Event::Progress { job, digest, length, have: seed.have });
                    if seed.complete && index {
                        self.tell(Event::Indexing { job, digest });
                    }
                    match seed.index {
                        _ if !seed.complete => {}
                        _ if !index => return Ok(()),
                        IndexStand::Building => {}
                        IndexStand::Impossible(reason) => {
                            return Err(format!("seed {} has it without an index: {reason}", seed.peer));
                        }
                        IndexStand::There if !certain => return Ok(()),
                        IndexStand::There => return self.index_known(digest).await,
                        IndexStand::NotAsked => {
                            return self.index_known(digest).await.map_err(|error| {
                                format!("{error}; seed {} is too old to be asked for one", seed.peer)
                            });
                        }
                    }
                }
                Err(SeedRefusal::Refused(reason)) => return Err(reason),
                // It lives, and will have a place.
                Err(SeedRefusal::Busy(reason)) => {
                    answered = Instant::now();
                    tracing::debug!(%digest, reason, "the seeds have no place for a blob now");
                }
                Err(refusal) if answered.elapsed() > PATIENCE => {
                    return Err(format!("{refusal}; run a seed, or preheat to \"here\" or \"all\""));
                }
                Err(refusal) => tracing::debug!(%digest, %refusal, "no seed takes a blob now"),
            }
            if moved.elapsed() > limits::ORDER_PATIENCE {
                let (complete, have) = best;
                let what = if complete { "no index of it" } else { "no more" };
                return Err(format!("the seeds have {have} of {length} bytes, and {what} for long"));
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(ASK.1);
        }
    }

    /// Waits until this node, and so others, find the index that a seed has stated.
    async fn index_known(&self, digest: Digest) -> Result<(), String> {
        let (begun, mut pause) = (Instant::now(), ASK.0);
        while self.node.derived(digest, StatementKind::LayerIndex).await.is_none() {
            if begun.elapsed() > INDEX_PATIENCE {
                return Err("it is there, but nobody states an index of it".to_owned());
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(ASK.1);
        }
        Ok(())
    }
}
