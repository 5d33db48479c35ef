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
use lapwing_p2p::layout::PieceLayout;
use lapwing_p2p::node::{Blob, Node, Priority, ReadError};
use lapwing_p2p::origin::Origin;
use lapwing_p2p::storage::SeedStorage as _;
use lapwing_plugins::registry::{Credential, Denied, Registries, RegistryName, RepositoryName};
use lapwing_plugins::storage::DiskStorage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::keeping::Keeping;
use super::ledger::Ledger;
use super::metrics::SeedMetrics;
use crate::layers::build::Builder;

/// An asker is answered within this time, also while the registry has not said yet whether the seed may have the blob.
const ANSWER: Duration = Duration::from_millis(600);
/// How often a blob is tried again that does not come, and after which pause.
const TRIES: u32 = 3;
const TRY_AGAIN: Duration = Duration::from_secs(10);

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

struct Job {
    length: u64,
    admission: Admission,
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
    places: Arc<Semaphore>,
    limit: usize,
    /// None where this seed builds no indexes.
    builder: Option<Arc<Builder>>,
    metrics: SeedMetrics,
}

impl Demand {
    pub(super) fn new(
        node: Arc<Node>,
        registries: Arc<Registries>,
        ledger: Ledger,
        limit: usize,
        keeping: Option<Keeping>,
        builder: Option<Arc<Builder>>,
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
            places: Arc::new(Semaphore::new(limit)),
            limit,
            builder,
            metrics,
        })
    }

    /// Goes on with what a former process had taken on.
    pub(super) fn resume(&self) {
        for wanted in self.ledger.entries() {
            let Some(this) = self.this.upgrade() else { return };
            tracing::info!(digest = %wanted.digest, repo = wanted.locator.repository, "going on with this blob");
            let (admitted, admission) = watch::channel(None);
            let length = wanted.length;
            if self.jobs().insert(wanted.digest, Job { length, admission }).is_some() {
                continue;
            }
            tokio::spawn(async move {
                // Of more than there are places for the rest waits its turn; the semaphore is never closed.
                let Ok(place) = Arc::clone(&this.places).acquire_owned().await else { return };
                this.carry_out(wanted, admitted, place).await;
            });
        }
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<Digest, Job>> {
        // Single inserts and removals: nothing is left half done.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
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
                return Ok(Taken::Complete);
            }
            Some(length) => return Err(wrong_length(&wanted, length)),
            None => {}
        }
        let mut admission = self.join_or_start(&wanted)?;
        let word = match timeout(ANSWER, admission.wait_for(Option::is_some)).await {
            Ok(Ok(word)) => word.clone().unwrap_or(Ok(())),
            // The registry takes its time; the asker need not.
            Err(_) => return Ok(Taken::Fetching),
            Ok(Err(_)) => return Err(Refusal::NotThere("the fetch ended abnormally".to_owned())),
        };
        if wanted.waited_for && word.is_ok() {
            // It may have been begun in the background.
            let opened = self.node.open(wanted.digest, wanted.length, None);
            opened.map_err(|error| Refusal::NotThere(error.to_string()))?.want_all(Priority::Bulk);
        }
        word.map(|()| Taken::Fetching)
    }

    fn join_or_start(&self, wanted: &Wanted) -> Result<Admission, Refusal> {
        let mut jobs = self.jobs();
        if let Some(job) = jobs.get(&wanted.digest) {
            return if job.length == wanted.length {
                Ok(job.admission.clone())
            } else {
                Err(wrong_length(wanted, job.length))
            };
        }
        let (Ok(place), Some(this)) = (Arc::clone(&self.places).try_acquire_owned(), self.this.upgrade()) else {
            return Err(Refusal::Busy(self.limit));
        };
        let (admitted, admission) = watch::channel(None);
        jobs.insert(wanted.digest, Job { length: wanted.length, admission: admission.clone() });
        let wanted = wanted.clone();
        tokio::spawn(async move { this.carry_out(wanted, admitted, place).await });
        Ok(admission)
    }

    /// One fetch from its beginning to its end.
    async fn carry_out(
        &self,
        wanted: Wanted,
        admitted: watch::Sender<Option<Result<(), Refusal>>>,
        place: OwnedSemaphorePermit,
    ) {
        let (digest, repo) = (wanted.digest, wanted.locator.repository.clone());
        self.metrics.fetches.inc();
        match self.source(&wanted).await {
            Ok(origin) => {
                self.ledger.add(&wanted);
                match self.fetch(&wanted, origin, &admitted).await {
                    Ok(()) => {}
                    // Written down it stays: the next process goes on.
                    Err(Ended::ShutDown) => return,
                    Err(Ended::GivenUp(error)) => {
                        self.metrics.given_up.inc();
                        tracing::warn!(%digest, repo, error, "blob is given up until somebody asks for it again");
                    }
                }
            }
            Err(refusal) => {
                tracing::info!(%digest, repo, %refusal, "blob is not fetched");
                admitted.send_replace(Some(Err(refusal)));
            }
        }
        self.ledger.remove(&digest);
        self.jobs().remove(&digest);
        self.metrics.fetches.dec();
        drop(place);
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
        blob.want_all(if wanted.waited_for { Priority::Bulk } else { Priority::Background });
        admitted.send_replace(Some(Ok(())));
        self.index(&blob);
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

    /// Has the index of a layer built in the same pass: with a seed at work no node is the first to fetch it.
    fn index(&self, blob: &Arc<Blob>) {
        let Some(builder) = self.builder.clone() else { return };
        let blob = Arc::clone(blob);
        tokio::spawn(async move {
            let head = blob.read(0..blob.length().min(512), Priority::Bulk).await;
            if head.is_ok_and(|head| is_layer(&head)) {
                builder.layer_pulled(&blob);
            }
        });
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

fn wrong_length(wanted: &Wanted, length: u64) -> Refusal {
    Refusal::NotThere(format!("{} has {length} bytes and not {}", wanted.digest, wanted.length))
}

/// Whether a blob that begins so can be a layer: gzip (RFC 1952), zstd (RFC 8878), or a tar header (POSIX ustar).
fn is_layer(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
        || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || head.get(257..262) == Some(b"ustar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_told_by_its_first_bytes() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for head in [&[0x1f, 0x8b, 8][..], &[0x28, 0xb5, 0x2f, 0xfd], &tar] {
            assert!(is_layer(head));
        }
        for head in [&b"{\"architecture\":"[..], b"", &[0x1f]] {
            assert!(!is_layer(head));
        }
    }
}
