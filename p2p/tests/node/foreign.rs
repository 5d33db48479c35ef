//! What somebody else on a node's machine holds, as the swarm sees it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::foreign::{ForeignError, ForeignStore, Listing, News, NewsStream};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{ForeignConfig, Node, Priority};
use tokio::sync::mpsc;

use crate::support::{Tracker, content, start, start_with};

const CONFIG: ForeignConfig = ForeignConfig { verify_bytes_per_second: 1 << 40, relist: Duration::from_secs(3600) };

/// A directory whose files are listed, and that says what is added to it. With `names` it does not say which.
struct Directory {
    path: PathBuf,
    names: bool,
    listed: Mutex<HashSet<Digest>>,
    followers: Mutex<Vec<mpsc::UnboundedSender<Result<News, ForeignError>>>>,
    down: std::sync::atomic::AtomicBool,
}

impl Directory {
    fn new(path: PathBuf, names: bool) -> Arc<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let (listed, followers, down) = Default::default();
        Arc::new(Self { path, names, listed, followers, down })
    }

    fn add(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        std::fs::write(self.path.join("ingest"), bytes).unwrap();
        std::fs::rename(self.path.join("ingest"), self.path.join(digest.hex())).unwrap();
        self.listed.lock().unwrap().insert(digest);
        self.tell(&Ok(if self.names { News::Added(digest) } else { News::Changed }));
        digest
    }

    fn tell(&self, news: &Result<News, ForeignError>) {
        self.followers.lock().unwrap().retain(|follower| follower.send(news.clone()).is_ok());
    }

    fn remove(&self, digest: &Digest) {
        std::fs::remove_file(self.path.join(digest.hex())).unwrap();
        self.listed.lock().unwrap().remove(digest);
    }

    fn is_down(&self) -> bool {
        self.down.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn silence(&self, down: bool) {
        self.down.store(down, std::sync::atomic::Ordering::Relaxed);
        if down {
            self.followers.lock().unwrap().clear();
        }
    }

    fn error() -> ForeignError {
        ForeignError { store: "directory".to_owned(), reason: "switched off".to_owned() }
    }
}

impl ForeignStore for Directory {
    fn list(&self) -> BoxFuture<'_, Result<Listing, ForeignError>> {
        Box::pin(async {
            let blobs = self.listed.lock().unwrap().clone();
            if self.is_down() { Err(Self::error()) } else { Ok(Listing { directory: self.path.clone(), blobs }) }
        })
    }

    fn follow(&self) -> BoxFuture<'_, Result<NewsStream, ForeignError>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        Box::pin(async {
            if self.is_down() {
                return Err(Self::error());
            }
            self.followers.lock().unwrap().push(sender);
            let stream =
                futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
            Ok(Box::pin(stream) as NewsStream)
        })
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited a minute for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn announced(tracker: &Tracker, digest: &Digest, node: &Node) {
    until("a blob to be announced", || tracker.holding(digest, &node.id()) == Some(Holding::Complete)).await;
}

async fn withdrawn(tracker: &Tracker, digest: &Digest, node: &Node) {
    until("a blob to be withdrawn", || tracker.holding(digest, &node.id()).is_none()).await;
}

/// All of a blob, that no origin has, as another node gets it.
async fn read_by_another(tracker: &Arc<Tracker>, root: &Path, bytes: &Bytes) {
    let reader = start(tracker, root, |_| {}).await;
    let blob = reader.open(Digest::of(bytes), bytes.len() as u64, None).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.read(0..bytes.len() as u64, Priority::Fault).await.unwrap(), *bytes);
    drop(blob);
    reader.shutdown().await;
}

fn hashed(metrics: &Metrics) -> u64 {
    metrics.foreign_hashed_bytes.get()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_holds_is_announced_served_and_withdrawn() {
    let directory = tempfile::tempdir().unwrap();
    let tracker = Arc::new(Tracker::default());
    let theirs = Directory::new(directory.path().join("theirs"), true);
    let (before, later, small) = (content(3_000_000, 1), content(2_000_000, 2), content(500, 3));
    theirs.add(&before);
    let holder = start(&tracker, &directory.path().join("holder"), |_| {}).await;
    holder.follow_foreign(theirs.clone(), CONFIG);
    announced(&tracker, &Digest::of(&before), &holder).await;
    theirs.add(&later);
    theirs.add(&small);
    for (name, bytes) in [("one", &before), ("two", &later), ("three", &small)] {
        announced(&tracker, &Digest::of(bytes), &holder).await;
        read_by_another(&tracker, &directory.path().join(name), bytes).await;
    }
    // All that is in the store is the metainfo.
    assert!(holder.store().used_bytes() < 20_000, "{}", holder.store().used_bytes());
    let digest = Digest::of(&before);
    theirs.remove(&digest);
    withdrawn(&tracker, &digest, &holder).await;
    let path = directory.path().join("theirs");
    let open = || {
        let files =
            std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        files.filter(|file| file.starts_with(&path) && file.to_string_lossy().contains(&digest.hex())).count()
    };
    until("the space to be free", || open() == 0).await;
    assert!(tracker.holding(&Digest::of(&later), &holder.id()).is_some());
    holder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_verified_is_not_hashed_again() {
    let directory = tempfile::tempdir().unwrap();
    let tracker = Arc::new(Tracker::default());
    let theirs = Directory::new(directory.path().join("theirs"), false);
    let identity = Arc::new(Identity::generate().unwrap());
    let (one, two) = (content(3_000_000, 4), content(100, 5));
    let digests = [theirs.add(&one), theirs.add(&two)];
    for run in 0..3 {
        let metrics = Arc::new(Metrics::default());
        let root = directory.path().join("holder");
        let holder = start_with(&tracker, &root, Arc::clone(&identity), Arc::clone(&metrics), |_| {}).await;
        holder.follow_foreign(theirs.clone(), CONFIG);
        for digest in &digests {
            announced(&tracker, digest, &holder).await;
        }
        assert_eq!(hashed(&metrics), if run == 0 { 3_000_100 } else { 0 });
        // Another listing, which something new proves to have been taken in, hashes that and nothing else.
        let digest = theirs.add(&[run; 10]);
        announced(&tracker, &digest, &holder).await;
        assert_eq!(hashed(&metrics), if run == 0 { 3_000_110 } else { 10 });
        read_by_another(&tracker, &directory.path().join(format!("reader-{run}")), &one).await;
        holder.shutdown().await;
        for digest in digests {
            assert!(tracker.holding(&digest, &holder.id()).is_none());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_takes_nothing_with_it_and_is_listed_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let tracker = Arc::new(Tracker::default());
    let theirs = Directory::new(directory.path().join("theirs"), true);
    theirs.silence(true);
    let holder = start(&tracker, &directory.path().join("holder"), |_| {}).await;
    holder.follow_foreign(theirs.clone(), CONFIG);
    let one = theirs.add(&content(700_000, 6));
    theirs.silence(false);
    announced(&tracker, &one, &holder).await;

    theirs.silence(true);
    let two = theirs.add(&content(700_000, 7));
    let three = theirs.add(&content(700_000, 8));
    theirs.remove(&one);
    withdrawn(&tracker, &one, &holder).await;
    assert!(tracker.holding(&two, &holder.id()).is_none(), "nobody said so yet");
    theirs.silence(false);
    announced(&tracker, &two, &holder).await;
    announced(&tracker, &three, &holder).await;
    // What is not listed any more goes, whatever is in the directory.
    theirs.listed.lock().unwrap().remove(&two);
    theirs.tell(&Ok(News::Changed));
    withdrawn(&tracker, &two, &holder).await;
    assert!(tracker.holding(&three, &holder.id()).is_some());
    holder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_it_is_called_is_not_held() {
    let directory = tempfile::tempdir().unwrap();
    let tracker = Arc::new(Tracker::default());
    let theirs = Directory::new(directory.path().join("theirs"), true);
    let metrics = Arc::new(Metrics::default());
    let identity = Arc::new(Identity::generate().unwrap());
    let root = directory.path().join("holder");
    let holder = start_with(&tracker, &root, identity, Arc::clone(&metrics), |_| {}).await;
    holder.follow_foreign(theirs.clone(), CONFIG);
    let wrong = Digest::of(b"something else");
    std::fs::write(theirs.path.join(wrong.hex()), content(1000, 9)).unwrap();
    theirs.listed.lock().unwrap().insert(wrong);
    let absent = Digest::of(b"not there");
    theirs.listed.lock().unwrap().insert(absent);
    let right = theirs.add(&content(1000, 10));
    announced(&tracker, &right, &holder).await;
    // Each listing looks at it, and one was hashed.
    for n in 0..3 {
        theirs.tell(&Ok(News::Changed));
        let next = theirs.add(&[n; 7]);
        announced(&tracker, &next, &holder).await;
    }
    until("the wrong one to be hashed", || hashed(&metrics) >= 2021).await;
    assert_eq!(hashed(&metrics), 2021);
    assert!([wrong, absent].iter().all(|digest| tracker.holding(digest, &holder.id()).is_none()));
    assert!(!holder.store().is_verified(&wrong));
    holder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_evicts_is_held_where_somebody_else_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let tracker = Arc::new(Tracker::default());
    let theirs = Directory::new(directory.path().join("theirs"), true);
    let holder = start(&tracker, &directory.path().join("holder"), |_| {}).await;
    let (bytes, older) = (content(700_000, 11), content(700_000, 12));
    let digest = Digest::of(&bytes);
    holder.store().insert(&Digest::of(&older), &older).unwrap();
    holder.store().insert(&digest, &bytes).unwrap();
    holder.follow_foreign(theirs.clone(), CONFIG);
    theirs.add(&bytes);
    let probe = theirs.add(b"seen after it");
    announced(&tracker, &probe, &holder).await;
    until("both to be looked at", || holder.store().foreign_count() == 1).await;
    assert!(holder.store().get(&digest).is_some_and(|blob| !blob.is_foreign()));
    // A node that has just started may have made its metainfo by now, which goes as well as the blob.
    let is_own = || holder.store().get(&digest).is_some_and(|blob| !blob.is_foreign());
    let evicted = || {
        let there = is_own();
        there.then(|| holder.store().evict_some(1));
        !there
    };
    until("it to be evicted", evicted).await;
    assert!(holder.store().is_verified(&Digest::of(&older)), "what is here alone stays, though it is older");
    until("it to be held there", || holder.store().get(&digest).is_some_and(|blob| blob.is_foreign())).await;
    announced(&tracker, &digest, &holder).await;
    read_by_another(&tracker, &directory.path().join("reader"), &bytes).await;
    holder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_changed_under_its_stamp_is_found_out_and_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let tracker = Arc::new(Tracker::default());
    let theirs = Directory::new(directory.path().join("theirs"), true);
    let metrics = Arc::new(Metrics::default());
    let identity = Arc::new(Identity::generate().unwrap());
    let root = directory.path().join("holder");
    let holder = start_with(&tracker, &root, identity, Arc::clone(&metrics), |_| {}).await;
    holder.follow_foreign(theirs.clone(), CONFIG);
    let bytes = content(700_000, 12);
    let digest = theirs.add(&bytes);
    announced(&tracker, &digest, &holder).await;
    let path = theirs.path.join(digest.hex());
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut spoilt = bytes.to_vec();
    spoilt[200_000] ^= 1;
    std::fs::write(&path, &spoilt).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let blob = holder.open(digest, 700_000, None).unwrap();
    assert_eq!(blob.read(0..64 << 10, Priority::Fault).await.unwrap(), bytes[..64 << 10]);
    assert!(blob.read(192 << 10..256 << 10, Priority::Fault).await.is_err());
    drop(blob);
    withdrawn(&tracker, &digest, &holder).await;
    // A listing has it hashed again, and only once.
    let before = hashed(&metrics);
    theirs.tell(&Ok(News::Changed));
    until("it to be hashed again", || hashed(&metrics) >= before + 700_000).await;
    let probe = theirs.add(b"seen after it");
    announced(&tracker, &probe, &holder).await;
    withdrawn(&tracker, &digest, &holder).await;
    assert!(!holder.store().is_verified(&digest));
    assert_eq!(hashed(&metrics), before + 700_000 + 13);
    holder.shutdown().await;
}
