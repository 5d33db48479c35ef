//! Blobs in somebody else's files: followed, verified, announced and served in place, and withdrawn when they are gone.
//!
//! Three tasks: one talks to the [`ForeignStore`], one hashes what is new, a blob at a time, on a thread of the lowest
//! priority and within the rate that the operator allows, one looks for files that were removed. The last asks nobody but
//! the filesystem, by the directory's time of modification: whatever removes a file changes that, and a store that is down,
//! or says nothing of its garbage collection, does not matter.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::Node;
use super::blob::lock;
use crate::digest::Digest;
use crate::discovery::StatementKind;
use crate::foreign::{ForeignError, ForeignStore, Listing, News};
use crate::layout::PieceLayout;
use crate::limits::MAX_FOREIGN_BLOBS;
use crate::store::StoreError;
use crate::store::foreign::{ForeignFile, Ledger};
use crate::verify::Metainfo;

/// How long news that say only that something changed are gathered until there is a listing.
const SETTLE: Duration = Duration::from_secs(1);
/// How often the directory is looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// Two changes within so little may have given a directory the same time.
const CLOCK_STEP: Duration = Duration::from_millis(100);
/// Pauses after a foreign store did not answer, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Lowest priority of setpriority(2).
const LOWEST: i32 = 19;

/// How a foreign store is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignConfig {
    /// Most bytes hashed in a second; at least one.
    pub verify_bytes_per_second: u64,
    /// How long after one listing the next comes though nothing is said to have changed; a tenth more or less by lot.
    pub relist: Duration,
}

/// What is known of the foreign store.
pub(super) struct Following {
    config: ForeignConfig,
    ledger: Ledger,
    directory: Mutex<Option<Arc<Path>>>,
    queue: Mutex<Queue>,
    queued: Notify,
}

/// Blobs to be looked at, each once.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<Digest>,
    waiting: HashSet<Digest>,
}

impl Queue {
    fn replace(&mut self, digests: Vec<Digest>) {
        self.waiting = digests.iter().copied().collect();
        self.order = digests.into();
    }

    /// What just came is most likely what others want.
    fn add_first(&mut self, digest: Digest) {
        if self.waiting.len() < MAX_FOREIGN_BLOBS && self.waiting.insert(digest) {
            self.order.push_front(digest);
        }
    }

    fn next(&mut self) -> Option<Digest> {
        let digest = self.order.pop_front()?;
        self.waiting.remove(&digest);
        Some(digest)
    }
}

/// Spreads work evenly over time.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    next: std::time::Instant,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), next: std::time::Instant::now() }
    }

    /// Sleeps until so many bytes were due.
    fn wait(&mut self, bytes: u64) {
        let now = std::time::Instant::now();
        self.next = self.next.max(now) + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        std::thread::sleep(self.next - now);
    }
}

impl Node {
    /// Holds what is in `store` as long as it is there. Returns at once. For one store; a second one is not followed.
    pub fn follow_foreign(self: &Arc<Self>, store: Arc<dyn ForeignStore>, config: ForeignConfig) {
        let following = Arc::new(Following {
            config,
            ledger: Ledger::load(self.store.root()),
            directory: Mutex::default(),
            queue: Mutex::default(),
            queued: Notify::new(),
        });
        if self.foreign.set(Arc::clone(&following)).is_err() {
            return;
        }
        self.spawn(follow(Arc::clone(self), Arc::clone(&following), store));
        self.spawn(hold_queued(Arc::clone(self), Arc::clone(&following)));
        self.spawn(sweep(Arc::clone(self), following));
    }

    /// Takes up what is there, and lets go of what is not any more.
    fn take_listing(self: &Arc<Self>, following: &Following, listing: &Listing) {
        let directory: Arc<Path> = Arc::from(listing.directory.as_path());
        self.store.set_elsewhere(&directory, listing.blobs.clone());
        *lock(&following.directory) = Some(directory);
        let gone = self.store.foreign().into_iter().filter(|(digest, _)| !listing.blobs.contains(digest));
        for (digest, _) in gone {
            self.release_foreign(&digest);
        }
        if let Err(error) = following.ledger.retain(|digest| listing.blobs.contains(digest)) {
            tracing::warn!(%error, "the list of verified files is longer than it need be");
        }
        let lacking: Vec<_> = listing.blobs.iter().copied().filter(|digest| self.store.lacks(digest)).collect();
        if lacking.len() > MAX_FOREIGN_BLOBS {
            tracing::warn!(blobs = lacking.len(), MAX_FOREIGN_BLOBS, "more blobs than are held, the rest is left out");
        }
        lock(&following.queue).replace(lacking.into_iter().take(MAX_FOREIGN_BLOBS).collect());
        following.queued.notify_one();
    }

    /// The store has given up its own copy: there may be another one.
    pub(super) fn look_for_foreign(&self, digest: Digest) {
        let Some(following) = self.foreign.get() else { return };
        let there = lock(&following.directory).as_ref().is_some_and(|directory| directory.join(digest.hex()).exists());
        if there {
            lock(&following.queue).add_first(digest);
            following.queued.notify_one();
        }
    }

    /// A file was not what it had been: it is hashed before it is believed again.
    pub(super) fn doubt_foreign(&self, digest: &Digest) {
        if let Some(following) = self.foreign.get() {
            following.ledger.doubt(digest);
        }
    }

    fn release_foreign(&self, digest: &Digest) {
        if self.store.release_foreign(digest) {
            tracing::info!(%digest, "a blob in a file of somebody else is gone, withdrawn");
        }
    }

    /// Looks at one blob's file, hashes it unless that was done, and holds it.
    async fn hold(self: &Arc<Self>, following: &Arc<Following>, digest: Digest, pace: Pace) -> Pace {
        let Some(directory) = lock(&following.directory).clone() else { return pace };
        if !self.store.lacks(&digest) || self.store.foreign_count() >= MAX_FOREIGN_BLOBS {
            return pace;
        }
        let (told, outcome) = oneshot::channel();
        let (node, ledger) = (Arc::clone(self), Arc::clone(following));
        // Of its own, since a thread keeps its priority.
        let thread = std::thread::Builder::new().name("lapwing-verify".to_owned()).spawn(move || {
            let mut pace = pace;
            let held = node.hold_blocking(&ledger.ledger, &directory, digest, &mut pace);
            let _ = told.send((held, pace));
        });
        let fresh = || Pace::new(following.config.verify_bytes_per_second);
        if let Err(error) = thread {
            tracing::warn!(%digest, %error, "no thread to verify a file of somebody else with; tried again later");
            return fresh();
        }
        let Ok((held, pace)) = outcome.await else { return fresh() };
        match held {
            Ok(Some(metainfo)) => self.held(digest, metainfo).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(%digest, %error, "a file of somebody else is not held"),
        }
        pace
    }

    /// None if it is not held after all.
    fn hold_blocking(
        &self,
        ledger: &Ledger,
        directory: &Arc<Path>,
        digest: Digest,
        pace: &mut Pace,
    ) -> Result<Option<Option<Metainfo>>, StoreError> {
        let file = ForeignFile::open(directory, digest)?;
        let metainfo = match ledger.judged(&digest, &file.stamp()) {
            Some(false) => return Ok(None),
            Some(true) if self.has_own_metainfo(&digest, file.layout()) => None,
            _ => Some(self.hash_foreign(ledger, &file, pace)?),
        };
        Ok(self.store.hold_foreign(file)?.then_some(metainfo))
    }

    fn hash_foreign(&self, ledger: &Ledger, file: &ForeignFile, pace: &mut Pace) -> Result<Metainfo, StoreError> {
        // Best effort: the rate bounds it, too. Of this thread alone, as setpriority(2) says.
        let _ = rustix::process::setpriority_process(None, LOWEST);
        let (digest, stamp) = (file.digest(), file.stamp());
        let verified = file.verify(|bytes| {
            self.metrics.foreign_hashed_bytes.inc_by(bytes);
            pace.wait(bytes);
            !self.stopping.is_cancelled() && self.store.lacks(&digest)
        });
        match verified {
            Ok(metainfo) => {
                if let Err(error) = ledger.note(digest, stamp) {
                    tracing::warn!(%digest, %error, "it is hashed again after a restart");
                }
                Ok(metainfo)
            }
            Err(error @ StoreError::DigestMismatch { .. }) => {
                tracing::warn!(%digest, %error, "a file of somebody else does not match its digest, not held");
                ledger.refute(digest, stamp);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Says that a blob is held, and makes its metainfo known if it was just made.
    async fn held(self: &Arc<Self>, digest: Digest, metainfo: Option<Metainfo>) {
        tracing::debug!(%digest, "held in a file of somebody else");
        // First: who is told of the blob asks for its metainfo at once.
        if let Some(metainfo) = metainfo.filter(|metainfo| metainfo.layout().piece_count() > 1)
            && let Err(error) = self.publish(StatementKind::Metainfo, digest, metainfo.encode().into()).await
        {
            tracing::warn!(%digest, %error, "metainfo cannot be published");
        }
        if let Err(error) = self.announce_complete(digest).await {
            tracing::debug!(%digest, %error, "announcement failed");
        }
    }

    /// Metainfo that this node made of a blob, if it still has it.
    pub(super) fn own_metainfo(&self, digest: &Digest) -> Option<Metainfo> {
        let object = self.own_metainfo_object(digest)?;
        let stored = self.store.get(&object)?;
        let bytes = stored.read_at(0..stored.layout().length()).ok()?;
        Metainfo::decode(&bytes).ok().filter(|metainfo| metainfo.digest() == *digest)
    }

    /// Whether other nodes get the hashes of a blob's pieces from this one, if they need any.
    pub(super) fn has_own_metainfo(&self, digest: &Digest, layout: PieceLayout) -> bool {
        (layout.piece_count() <= 1 && !digest.is_name()) || self.own_metainfo_object(digest).is_some()
    }

    fn own_metainfo_object(&self, digest: &Digest) -> Option<Digest> {
        let known = self.derived.get(*digest, StatementKind::Metainfo).into_iter();
        let own = known.filter(|(_, standing)| *standing == super::derived::Standing::Own);
        own.map(|(statement, _)| statement.object).find(|object| self.store.is_verified(object))
    }

    fn count_foreign(&self) {
        let held = self.store.foreign();
        self.metrics.foreign_blobs.set(held.len() as i64);
        let bytes: u64 = held.iter().map(|(_, length)| length).sum();
        self.metrics.foreign_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// Listens to the store, and lists it: at first, whenever news call for it, and from time to time.
async fn follow(node: Arc<Node>, following: Arc<Following>, store: Arc<dyn ForeignStore>) {
    let mut pause = FIRST_PAUSE;
    let mut silent = false;
    loop {
        let mut listed = false;
        let Err(error) = session(&node, &following, &*store, &mut listed).await;
        if listed {
            (pause, silent) = (FIRST_PAUSE, false);
        }
        match silent {
            true => tracing::debug!(%error, "still no answer"),
            false => tracing::info!(%error, "blobs of somebody else are not followed; asked again until it answers"),
        }
        silent = true;
        tokio::time::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

async fn session(
    node: &Arc<Node>,
    following: &Following,
    store: &dyn ForeignStore,
    listed: &mut bool,
) -> Result<std::convert::Infallible, ForeignError> {
    let mut news = store.follow().await?;
    let mut list_at = Instant::now();
    loop {
        tokio::select! {
            next = news.next() => match next {
                Some(Ok(News::Added(digest))) => {
                    node.store.add_elsewhere(digest);
                    lock(&following.queue).add_first(digest);
                    following.queued.notify_one();
                }
                Some(Ok(News::Changed)) => list_at = list_at.min(Instant::now() + SETTLE),
                Some(Err(error)) => return Err(error),
                None => return Err(ForeignError { store: "foreign store".to_owned(), reason: "it says no more".to_owned() }),
            },
            () = tokio::time::sleep_until(list_at) => {
                let listing = store.list().await?;
                if !*listed {
                    let directory = listing.directory.display();
                    tracing::info!(blobs = listing.blobs.len(), %directory, "blobs in files of somebody else are held where they are");
                    *listed = true;
                }
                node.take_listing(following, &listing);
                list_at = Instant::now() + following.config.relist.mul_f64(0.9 + fastrand::f64() / 5.0);
            }
        }
    }
}

/// Looks at what is queued, one at a time.
async fn hold_queued(node: Arc<Node>, following: Arc<Following>) {
    let mut pace = Pace::new(following.config.verify_bytes_per_second);
    loop {
        let next = lock(&following.queue).next();
        match next {
            Some(digest) => pace = node.hold(&following, digest, pace).await,
            None => following.queued.notified().await,
        }
    }
}

/// Lets go of blobs whose files are gone.
async fn sweep(node: Arc<Node>, following: Arc<Following>) {
    let mut seen: Option<SystemTime> = None;
    let mut counted = None;
    loop {
        tokio::time::sleep(SWEEP).await;
        let version = node.store.foreign_version();
        if counted.replace(version) != Some(version) {
            node.count_foreign();
        }
        let Some(directory) = lock(&following.directory).clone() else { continue };
        if node.store.foreign_count() == 0 {
            continue;
        }
        let changed = std::fs::metadata(&directory).and_then(|found| found.modified()).ok();
        if changed.is_some() && changed == seen {
            continue;
        }
        // What changes in the same moment as this is looked at again.
        let now = SystemTime::now();
        let settled = changed.filter(|&changed| now.duration_since(changed).is_ok_and(|age| age > CLOCK_STEP));
        let looking = Arc::clone(&node);
        let lost = tokio::task::spawn_blocking(move || looking.store.lost_foreign()).await.unwrap_or_default();
        for digest in lost {
            node.release_foreign(&digest);
        }
        seen = settled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_last_is_looked_at_first_and_nothing_twice() {
        let mut queue = Queue::default();
        let digests: Vec<_> = (0_u8..4).map(|n| Digest::of(&[n])).collect();
        queue.replace(digests[..3].to_vec());
        queue.add_first(digests[3]);
        queue.add_first(digests[1]);
        let order: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(order, [digests[3], digests[0], digests[1], digests[2]]);
        queue.add_first(digests[1]);
        assert_eq!(queue.next(), Some(digests[1]), "what was looked at may come again");
    }

    #[test]
    fn a_pace_makes_up_for_no_time_that_is_over() {
        let mut pace = Pace::new(1 << 40);
        pace.next -= Duration::from_secs(5);
        pace.wait(1 << 20);
        assert!(pace.next > std::time::Instant::now() - Duration::from_secs(1), "{pace:?}");
    }
}
