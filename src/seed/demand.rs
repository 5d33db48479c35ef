//! What nodes ask for, and what the seed does about it: it asks the registry with its own credentials whether it may have
//! the blob, opens it at the node, and lets all of it come.
//!
//! Of one blob there is one fetch; who asks meanwhile joins it. A fetch goes on though its asker is gone, holds one of
//! `seed.fetches` places, and is written down until it ends. Nobody's credentials but the seed's own are used.
//!
//! With a storage (`seed.storage`) a blob that is there comes from there and needs no registry, and a fetch ends when the
//! blob is in the storage.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapwing_discovery::seed::{Fetcher, Refusal, Taken, Wanted};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::IndexStand;
use lapwing_p2p::layout::PieceLayout;
use lapwing_p2p::node::{Node, Priority, ReadError};
use lapwing_p2p::origin::Origin;
use lapwing_p2p::storage::SeedStorage as _;
use lapwing_p2p::trace;
use lapwing_plugins::registry::{Credential, Denied, Registries, RegistryName, RepositoryName};
use lapwing_plugins::storage::DiskStorage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use super::failures::Failures;
use super::indexing::Indexing;
use super::keeping::Keeping;
use super::ledger::Ledger;
use super::metrics::SeedMetrics;
use crate::preheat::machine::{Machine, Wish};

/// An asker is answered within this time, also while the registry has not said yet whether the seed may have the blob.
const ANSWER: Duration = Duration::from_millis(600);
/// How often a blob is tried again that does not come, and after which pause.
const TRIES: u32 = 3;
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// How long the seed's own wishes wait where it has enough to do.
const BUSY: Duration = Duration::from_millis(500);

/// The registry's word, once there is one.
type Admission = watch::Receiver<Option<Result<(), Refusal>>>;

/// How a fetch ended that did not succeed.
enum Ended {
    /// With the process.
    ShutDown,
    /// For this reason.
    GivenUp(String),
}

impl Ended {
    fn given_up(error: &dyn std::fmt::Display) -> Self {
        Self::GivenUp(error.to_string())
    }
}

#[derive(Clone)]
struct Job {
    length: u64,
    admission: Admission,
    ended: watch::Receiver<Option<Result<(), String>>>,
}

/// What tells those who wait for a fetch.
struct Tellers {
    admitted: watch::Sender<Option<Result<(), Refusal>>>,
    ended: watch::Sender<Option<Result<(), String>>>,
}

impl Job {
    fn new(length: u64) -> (Self, Tellers) {
        let ((admitted, admission), (ending, ended)) = (watch::channel(None), watch::channel(None));
        (Self { length, admission, ended }, Tellers { admitted, ended: ending })
    }
}

/// See the module's documentation.
pub(super) struct Demand {
    this: Weak<Self>,
    node: Arc<Node>,
    /// What is here whole.
    local: DiskStorage,
    /// None where the local disk is all there is.
    keeping: Option<Keeping>,
    registries: Arc<Registries>,
    ledger: Ledger,
    jobs: Mutex<HashMap<Digest, Job>>,
    /// Why fetches were given up that nobody waits for here.
    failures: Mutex<Failures>,
    places: Arc<Semaphore>,
    limit: usize,
    indexing: Indexing,
    metrics: SeedMetrics,
}

impl Demand {
    pub(super) fn new(
        node: Arc<Node>,
        registries: Arc<Registries>,
        ledger: Ledger,
        limit: usize,
        keeping: Option<Keeping>,
        indexing: Indexing,
        metrics: SeedMetrics,
    ) -> Arc<Self> {
        let local = DiskStorage::new(Arc::clone(node.store()));
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            node,
            local,
            keeping,
            registries,
            ledger,
            jobs: Mutex::default(),
            failures: Mutex::default(),
            places: Arc::new(Semaphore::new(limit)),
            limit,
            indexing,
            metrics,
        })
    }

    /// Goes on with what a former process had taken on.
    pub(super) fn resume(&self) {
        for wanted in self.ledger.entries() {
            let Some(this) = self.this.upgrade() else { return };
            tracing::info!(digest = %wanted.digest, repo = wanted.locator.repository, "going on with this blob");
            let (job, tellers) = Job::new(wanted.length);
            if self.jobs().insert(wanted.digest, job).is_some() {
                continue;
            }
            tokio::spawn(async move {
                // Of more than there are places for the rest waits its turn; the semaphore is never closed.
                let Ok(place) = Arc::clone(&this.places).acquire_owned().await else { return };
                this.carry_out(wanted, tellers, place).await;
            });
        }
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<Digest, Job>> {
        // Single inserts and removals: nothing is left half done.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        // Likewise.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_on(&self, wanted: Wanted) -> Result<Taken, Refusal> {
        let registry = wanted.locator.namespace.parse::<RegistryName>();
        let registry = registry.map_err(|error| Refusal::NotListed(error.to_string()))?;
        if !self.registries.is_listed(&registry) {
            return Err(Refusal::NotListed(registry.to_string()));
        }
        match self.local.stat(wanted.digest).await.ok().flatten() {
            Some(length) if length == wanted.length => {
                if self.keeping.as_ref().is_some_and(|keeping| !keeping.is_known(&wanted.digest)) {
                    // It came before there was a storage. If there is no place now, there will be at the next request.
                    let _ = self.join_or_start(&wanted);
                }
                let index = if wanted.index { self.index_stand(&wanted) } else { IndexStand::NotAsked };
                return Ok(Taken { index, ..Taken::complete(length) });
            }
            Some(length) => return Err(wrong_length(&wanted, length)),
            None => {}
        }
        if wanted.follows
            && let Some(reason) = self.failures().take(&wanted.digest, Instant::now())
        {
            return Err(Refusal::NotThere(reason));
        }
        let mut admission = self.join_or_start(&wanted)?.admission;
        let word = match timeout(ANSWER, admission.wait_for(Option::is_some)).await {
            Ok(Ok(word)) => word.clone().unwrap_or(Ok(())),
            // The registry takes its time; the asker need not.
            Err(_) => return Ok(self.fetching(&wanted)),
            Ok(Err(_)) => return Err(Refusal::NotThere("the fetch ended abnormally".to_owned())),
        };
        if wanted.waited_for && word.is_ok() {
            // It may have been begun in the background.
            let opened = self.node.open(wanted.digest, wanted.length, None);
            opened.map_err(|error| Refusal::NotThere(error.to_string()))?.want_all(Priority::Bulk);
        }
        word.map(|()| self.fetching(&wanted))
    }

    fn fetching(&self, wanted: &Wanted) -> Taken {
        let have = self.node.store().get(&wanted.digest).map_or(0, |blob| blob.have_bytes());
        let index = if wanted.index { IndexStand::Building } else { IndexStand::NotAsked };
        Taken { have, index, ..Taken::FETCHING }
    }

    /// How it is with the index of a layer that is here; begins to build one that is missing.
    fn index_stand(&self, wanted: &Wanted) -> IndexStand {
        match self.node.open(wanted.digest, wanted.length, None) {
            Ok(blob) => self.indexing.stand(&blob),
            Err(error) => IndexStand::Impossible(error.to_string()),
        }
    }

    /// Fetches a blob in this seed's own interest, and waits until all of it is here.
    pub(super) async fn whole(&self, wanted: &Wanted) -> Result<(), String> {
        loop {
            if self.local.stat(wanted.digest).await.is_ok_and(|length| length == Some(wanted.length)) {
                return Ok(());
            }
            let mut job = match self.join_or_start(wanted) {
                Ok(job) => job,
                Err(Refusal::Busy(_)) => {
                    sleep(BUSY).await;
                    continue;
                }
                Err(refusal) => return Err(refusal.to_string()),
            };
            let ended = job.ended.wait_for(Option::is_some).await.map(|ended| ended.clone());
            return ended.ok().flatten().unwrap_or_else(|| Err("the seed is stopping".to_owned()));
        }
    }

    fn join_or_start(&self, wanted: &Wanted) -> Result<Job, Refusal> {
        let mut jobs = self.jobs();
        if let Some(job) = jobs.get(&wanted.digest) {
            return if job.length == wanted.length { Ok(job.clone()) } else { Err(wrong_length(wanted, job.length)) };
        }
        let (Ok(place), Some(this)) = (Arc::clone(&self.places).try_acquire_owned(), self.this.upgrade()) else {
            return Err(Refusal::Busy(self.limit));
        };
        let (job, tellers) = Job::new(wanted.length);
        jobs.insert(wanted.digest, job.clone());
        let wanted = wanted.clone();
        // Of several who ask for it the first one's trace has it.
        let context = trace::current();
        tokio::spawn(trace::within(context, async move { this.carry_out(wanted, tellers, place).await }));
        Ok(job)
    }

    /// One fetch from its beginning to its end.
    async fn carry_out(&self, wanted: Wanted, tellers: Tellers, place: OwnedSemaphorePermit) {
        let (digest, repo) = (wanted.digest, wanted.locator.repository.clone());
        self.metrics.fetches.inc();
        let begun = Instant::now();
        let outcome = match self.source(&wanted).await {
            Ok(origin) => {
                self.ledger.add(&wanted);
                match self.fetch(&wanted, origin, &tellers.admitted).await {
                    Ok(()) => Ok(()),
                    // Written down it stays: the next process goes on.
                    Err(Ended::ShutDown) => return,
                    Err(Ended::GivenUp(error)) => {
                        self.metrics.given_up.inc();
                        tracing::warn!(%digest, repo, error, "blob is given up until somebody asks for it again");
                        self.failures().note(digest, error.clone(), Instant::now());
                        Err(error)
                    }
                }
            }
            Err(refusal) => {
                tracing::info!(%digest, repo, %refusal, "blob is not fetched");
                let reason = refusal.to_string();
                if begun.elapsed() >= ANSWER {
                    // Who asked for it had been answered before.
                    self.failures().note(digest, reason.clone(), Instant::now());
                }
                tellers.admitted.send_replace(Some(Err(refusal)));
                Err(reason)
            }
        };
        self.ledger.remove(&digest);
        self.jobs().remove(&digest);
        self.metrics.fetches.dec();
        drop(place);
        tellers.ended.send_replace(Some(outcome));
    }

    /// Where the blob is to come from, unless the seed may not have it: none if it is here, the storage if it is there, else
    /// its registry, which is asked first whether the seed may have it.
    async fn source(&self, wanted: &Wanted) -> Result<Option<Arc<dyn Origin>>, Refusal> {
        if self.local.stat(wanted.digest).await.is_ok_and(|length| length == Some(wanted.length)) {
            return Ok(None);
        }
        let there = |error: &dyn std::fmt::Display| Refusal::NotThere(error.to_string());
        let registry: RegistryName = wanted.locator.namespace.parse().map_err(|error| there(&error))?;
        let repository: RepositoryName = wanted.locator.repository.parse().map_err(|error| there(&error))?;
        let credential = Credential::Configured;
        let origin = self
            .registries
            .origin(&registry, &repository, wanted.digest, wanted.length, credential.clone())
            .map_err(|error| there(&error))?;
        if let Some(keeping) = &self.keeping
            && keeping.has(wanted.digest, wanted.length).await
        {
            let layout = PieceLayout::new(wanted.length).map_err(|error| there(&error))?;
            return Ok(Some(keeping.before(wanted.digest, layout, Arc::new(origin))));
        }
        match self.registries.authorize(&registry, &repository, wanted.digest, &credential).await {
            Ok(grant) if grant.length == wanted.length => Ok(Some(Arc::new(origin))),
            Ok(grant) => Err(wrong_length(wanted, grant.length)),
            Err(denied @ Denied::Refused { .. }) => Err(Refusal::NotAllowed(denied.to_string())),
            Err(denied) => Err(there(&denied)),
        }
    }

    async fn fetch(
        &self,
        wanted: &Wanted,
        origin: Option<Arc<dyn Origin>>,
        admitted: &watch::Sender<Option<Result<(), Refusal>>>,
    ) -> Result<(), Ended> {
        let (digest, length) = (wanted.digest, wanted.length);
        let opened = self.node.open(digest, length, origin.clone());
        let blob = opened.map_err(|error| {
            admitted.send_replace(Some(Err(Refusal::NotThere(error.to_string()))));
            Ended::given_up(&error)
        })?;
        let _followed = blob.follow(trace::current());
        blob.want_all(if wanted.waited_for { Priority::Bulk } else { Priority::Background });
        admitted.send_replace(Some(Ok(())));
        self.indexing.as_it_comes(&blob);
        for tried in 1.. {
            match blob.completed().await {
                Ok(()) => break,
                Err(ReadError::ShutDown) => return Err(Ended::ShutDown),
                Err(error @ ReadError::DigestMismatch { .. }) => return Err(Ended::given_up(&error)),
                Err(error) if tried == TRIES => return Err(Ended::given_up(&error)),
                Err(error) => {
                    tracing::info!(%digest, %error, tried, "blob does not come: tried again");
                    sleep(TRY_AGAIN * tried).await;
                    // What the origin refused is asked anew.
                    let _ = self.node.open(digest, length, origin.clone());
                }
            }
        }
        match &self.keeping {
            Some(keeping) => {
                let missing = |error| Ended::GivenUp(format!("it is here, but not in the storage: {error}"));
                keeping.keep(&blob).await.map_err(missing)
            }
            None => Ok(()),
        }
    }
}

impl Fetcher for Demand {
    fn fetch(&self, wanted: Wanted) -> BoxFuture<'_, Result<Taken, Refusal>> {
        async move {
            let answer = self.take_on(wanted).await;
            self.metrics.count_request(&answer);
            answer
        }
        .boxed()
    }
}

/// What is preheated for seeds, at this one.
impl Machine for Demand {
    fn is_seed(&self) -> bool {
        true
    }

    fn fetch(&self, wish: Wish) -> BoxFuture<'_, Result<(), String>> {
        let (digest, length, locator) = (wish.digest, wish.length, wish.locator());
        let wanted = Wanted { digest, length, locator, waited_for: true, index: false, follows: false };
        async move { self.whole(&wanted).await }.boxed()
    }

    fn index(&self, wish: Wish) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let blob = self.node.open(wish.digest, wish.length, None).map_err(|error| error.to_string())?;
            self.indexing.ahead(&blob).await
        }
        .boxed()
    }
}

fn wrong_length(wanted: &Wanted, length: u64) -> Refusal {
    Refusal::NotThere(format!("{} has {length} bytes and not {}", wanted.digest, wanted.length))
}
