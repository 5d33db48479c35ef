//! A download in a process of its own, from peers and an origin of the test's process, over sockets.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::{Identity, PeerId};
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::metrics::{Metrics, Source, SourceLabel};
use lapwing_p2p::node::{Blob, Node, Priority};
use lapwing_p2p::origin::{ByteStream, Origin, OriginError};
use lapwing_p2p::store::{ChunkStore, StoreConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Handle, MemoryOrigin, Tracker, content, start_on, start_with};

const ROOT: &str = "LAPWING_TEST_DOWNLOAD_ROOT";
const LENGTH: &str = "LAPWING_TEST_DOWNLOAD_LENGTH";
/// `<id>@<address>` of each peer, with spaces in between.
const PEERS: &str = "LAPWING_TEST_DOWNLOAD_PEERS";
const ORIGIN: &str = "LAPWING_TEST_DOWNLOAD_ORIGIN";
/// Socket buffers are kept small, so that little is under way.
const SOCKET_BUFFER: usize = 64 << 10;
const CHUNK: usize = 32 << 10;
/// What a peer sends in a second, so that there is a middle to be killed in.
const PEER_RATE: u64 = 16 << 20;
/// Each of them has one of three runs of two pieces; the third run only the origin has.
const PEER_COUNT: u32 = 2;

/// Where the downloads come from: peers with a part each, for which they vouch, and an origin.
pub(crate) struct Sources {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    peers: Vec<Peer>,
    origin: SocketAddr,
    origin_sent: Arc<AtomicU64>,
}

struct Peer {
    node: Arc<Node>,
    metrics: Arc<Metrics>,
    /// Whoever closes an incomplete blob forgets who vouched for its pieces.
    _blob: Arc<Blob>,
    _directory: tempfile::TempDir,
}

impl Peer {
    /// A node that has fetched every run of two pieces whose number is `part` modulo three.
    async fn start(bytes: &Bytes, part: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ChunkStore::open(directory.path(), StoreConfig::default()).unwrap();
        let (metrics, tracker) = (Arc::new(Metrics::default()), Arc::new(Tracker::default()));
        let identity = Arc::new(Identity::generate().unwrap());
        let limited = |config: &mut lapwing_p2p::node::NodeConfig| config.limits.upload.node = PEER_RATE;
        let node = start_on(&tracker, store, identity, Arc::clone(&metrics), limited).await;
        let origin = Arc::new(Handle(MemoryOrigin::new(bytes.clone())));
        let blob = node.open(Digest::of(bytes), bytes.len() as u64, Some(origin)).unwrap();
        let layout = PieceLayout::new(bytes.len() as u64).unwrap();
        let mine = (0..layout.piece_count()).filter(|piece| piece / 2 % (PEER_COUNT + 1) == part);
        let reads = mine.map(|piece| blob.read(layout.range(PieceIndex(piece)), Priority::Bulk));
        futures_util::future::try_join_all(reads).await.unwrap();
        Self { node, metrics, _blob: blob, _directory: directory }
    }
}

/// Bytes of pieces that were sent so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) by_origin: u64,
    pub(crate) by_peers: Vec<u64>,
}

impl Sent {
    pub(crate) fn total(&self) -> u64 {
        self.by_origin + self.by_peers.iter().sum::<u64>()
    }
}

impl Sources {
    pub(crate) async fn start(length: usize) -> Self {
        let bytes = content(length, 42);
        let digest = Digest::of(&bytes);
        let mut peers = Vec::new();
        for part in 0..PEER_COUNT {
            peers.push(Peer::start(&bytes, part).await);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = listener.local_addr().unwrap();
        let origin_sent = Arc::new(AtomicU64::new(0));
        tokio::spawn(serve(listener, bytes.clone(), Arc::clone(&origin_sent)));
        Self { bytes, digest, peers, origin, origin_sent }
    }

    pub(crate) fn layout(&self) -> PieceLayout {
        PieceLayout::new(self.bytes.len() as u64).unwrap()
    }

    /// By whom what was sent, as the peers' metrics and the origin count it.
    pub(crate) fn sent(&self) -> Sent {
        let by_peers = self.peers.iter().map(|peer| peer.metrics.served_bytes.get()).collect();
        Sent { by_origin: self.origin_sent.load(Ordering::Relaxed), by_peers }
    }

    pub(crate) async fn stop(self) {
        for peer in self.peers {
            peer.node.shutdown().await;
        }
    }

    /// Starts a process that downloads the blob to `root`, with these variables besides.
    pub(crate) fn download(&self, root: &Path, variables: &[(&str, &str)]) -> Download {
        let peers = self.peers.iter().map(|peer| format!("{}@{} ", peer.node.id(), peer.node.local_addr()));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "download::downloader", "--nocapture", "--test-threads=1"])
            .env(ROOT, root)
            .env(LENGTH, self.bytes.len().to_string())
            .env(PEERS, peers.collect::<String>())
            .env(ORIGIN, self.origin.to_string())
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        // Heard all the time: a full pipe would stop it.
        Download { child, ear: std::thread::spawn(|| hear(output)) }
    }
}

async fn serve(listener: TcpListener, bytes: Bytes, sent: Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (bytes, sent) = (bytes.clone(), Arc::clone(&sent));
        tokio::spawn(async move {
            // Whoever is killed breaks the connection.
            let _ = answer(stream, &bytes, &sent).await;
        });
    }
}

async fn answer(mut stream: TcpStream, bytes: &[u8], sent: &AtomicU64) -> std::io::Result<()> {
    rustix::net::sockopt::set_socket_send_buffer_size(&stream, SOCKET_BUFFER)?;
    let (start, end) = (stream.read_u64().await?, stream.read_u64().await?);
    for chunk in bytes[start as usize..end as usize].chunks(CHUNK) {
        // As fast as a link of some 250 Mbit/s, so that there is a middle to be killed in.
        tokio::time::sleep(Duration::from_millis(1)).await;
        stream.write_all(chunk).await?;
        sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

struct TcpOrigin(SocketAddr);

impl Origin for TcpOrigin {
    fn fetch(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>> {
        let failed =
            |error: std::io::Error| OriginError::Unavailable { origin: "test".to_owned(), reason: error.to_string() };
        let address = self.0;
        Box::pin(async move {
            let connect = async {
                let mut stream = TcpStream::connect(address).await?;
                rustix::net::sockopt::set_socket_recv_buffer_size(&stream, SOCKET_BUFFER)?;
                stream.write_u64(range.start).await?;
                stream.write_u64(range.end).await?;
                Ok(stream)
            };
            let stream = connect.await.map_err(failed)?;
            let body = futures_util::stream::unfold(Some(stream), |stream| async move {
                let mut stream = stream?;
                let mut chunk = vec![0; CHUNK];
                match stream.read(&mut chunk).await {
                    Ok(0) => None,
                    Ok(length) => {
                        chunk.truncate(length);
                        Some((Ok(Bytes::from(chunk)), Some(stream)))
                    }
                    Err(error) => Some((Err(error), None)),
                }
            });
            Ok(Box::pin(body) as ByteStream)
        })
    }

    fn describe(&self) -> String {
        "test".to_owned()
    }
}

/// Not a test of its own: the process that is killed. Says on standard output which pieces it has seen.
#[tokio::test(flavor = "multi_thread")]
async fn downloader() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let given = |name: &str| std::env::var(name).unwrap();
    let bytes = content(given(LENGTH).parse().unwrap(), 42);
    let digest = Digest::of(&bytes);
    let tracker = Arc::new(Tracker::default());
    for (peer, address) in given(PEERS).split_whitespace().map(|peer| peer.split_once('@').unwrap()) {
        let peer: PeerId = peer.parse().unwrap();
        tracker.register(peer, address.parse().unwrap());
        tracker.add_holder(digest, peer, Holding::Partial);
        tracker.add_lessee(digest, peer);
    }
    let root = Path::new(&root);
    let identity = Arc::new(Identity::load_or_create(&root.join("key")).unwrap());
    let metrics = Arc::new(Metrics::default());
    let node = start_with(&tracker, root, identity, Arc::clone(&metrics), |_| {}).await;
    let origin = Arc::new(TcpOrigin(given(ORIGIN).parse().unwrap()));
    let blob = node.open(digest, bytes.len() as u64, Some(origin)).unwrap();
    blob.want_all(Priority::Bulk);
    let stored = node.store().get(&digest).unwrap();
    let (mut shown, mut flushed) = (u32::MAX, stored.have().count());
    while !blob.is_verified() {
        let have = stored.have();
        if have.count() != shown {
            shown = have.count();
            say(&format!("hedges {}", metrics.hedges.get()));
            say(&format!("have {}", have.iter().map(|piece| format!("{} ", piece.0)).collect::<String>()));
        }
        if shown >= flushed + have.len() / 5 {
            // More often than by the clock, so that a short download has flushes in its middle.
            flushed = shown;
            let stored = Arc::clone(&stored);
            tokio::task::spawn_blocking(move || stored.flush().unwrap()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Stated after it was remembered on disk.
    while tracker.stated(&digest).is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let taken = |source| metrics.piece_bytes.get_or_create(&SourceLabel { source }).get();
    say(&format!("complete {} {} {}", taken(Source::peer), taken(Source::origin), metrics.hedges.get()));
    std::process::exit(0);
}

/// In one write, so that a line is whole or not there.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// A downloading process.
pub(crate) struct Download {
    child: Child,
    ear: JoinHandle<Said>,
}

/// What it said before it ended.
#[derive(Default)]
struct Said {
    seen: BTreeSet<u32>,
    hedges: u64,
    /// Bytes that it took in from peers and from the origin, by its own metrics, once it was done.
    complete: Option<(u64, u64)>,
}

/// The same, and how it ended.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) seen: BTreeSet<u32>,
    pub(crate) hedges: u64,
    pub(crate) complete: Option<(u64, u64)>,
    pub(crate) status: ExitStatus,
    /// Whether bytes came within the last moment before it was killed.
    pub(crate) moving: bool,
}

impl Heard {
    pub(crate) fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }
}

/// Bytes that came so long ago do not count as moving.
const MOMENT: Duration = Duration::from_millis(20);

impl Download {
    /// Kills it when `due`, which is told how much was `sent` and for how long it has run, unless it has ended by itself.
    pub(crate) async fn kill_when(
        mut self,
        sent: impl Fn() -> u64 + Send,
        due: impl Fn(u64, Duration) -> bool + Send,
    ) -> Heard {
        let begun = Instant::now();
        let (mut last, mut moved) = (sent(), None);
        while self.child.try_wait().unwrap().is_none() {
            let now = sent();
            if now != last {
                (last, moved) = (now, Some(Instant::now()));
            }
            if due(now, begun.elapsed()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let moving = moved.is_some_and(|moved| moved.elapsed() < MOMENT);
        self.child.kill().unwrap();
        Heard { moving, ..self.end().await }
    }

    /// Waits until it ends.
    pub(crate) async fn end(mut self) -> Heard {
        let end = move || {
            let Said { seen, hedges, complete } = self.ear.join().unwrap();
            Heard { seen, hedges, complete, status: self.child.wait().unwrap(), moving: false }
        };
        tokio::task::spawn_blocking(end).await.unwrap()
    }
}

fn hear(output: ChildStdout) -> Said {
    let mut output = BufReader::new(output);
    let mut said = Said::default();
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        // A line cut off by the end of the process says nothing.
        if line.ends_with('\n') {
            let mut words = line.split_whitespace();
            let event = words.next();
            let mut numbers = words.map(|word| word.parse::<u64>());
            match event {
                Some("have") => said.seen = numbers.map(|piece| piece.unwrap() as u32).collect(),
                Some("hedges") => said.hedges = numbers.next().unwrap().unwrap(),
                Some("complete") => {
                    let mut next = || numbers.next().unwrap().unwrap();
                    said.complete = Some((next(), next()));
                    said.hedges = next();
                }
                _ => {}
            }
        }
        line.clear();
    }
    said
}

/// Bytes of pieces of `sources`' blob in the store below `root`. Every piece that is marked is right. Looks at a copy: what
/// a start has to mend is left to the next downloader, so that it is killed at that, too.
pub(crate) fn stored_bytes(root: &Path, sources: &Sources, heard: &Heard) -> u64 {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(root, copy.path());
    let store = ChunkStore::open(copy.path(), StoreConfig::default()).unwrap();
    let Some(blob) = store.get(&sources.digest) else {
        assert!(heard.seen.is_empty(), "seen and lost: {:?}", heard.seen);
        return 0;
    };
    let have: BTreeSet<u32> = blob.have().iter().map(|piece| piece.0).collect();
    for piece in blob.have().iter() {
        let right = piece_of(&sources.bytes, blob.layout(), piece);
        assert!(blob.read_piece(piece).unwrap() == right, "{piece:?} is marked and wrong");
    }
    let lost: Vec<_> = heard.seen.difference(&have).collect();
    assert!(lost.is_empty(), "seen and lost: {lost:?}");
    assert!(!blob.is_verified() || blob.is_complete());
    if heard.complete.is_some() {
        assert!(blob.is_verified());
        blob.verify().unwrap();
    }
    let total: u64 = store.list().iter().map(|blob| blob.have_bytes).sum();
    assert_eq!(store.used_bytes(), total);
    blob.have_bytes()
}

/// Copies a directory of files and directories.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_tree(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn piece_of(bytes: &[u8], layout: PieceLayout, piece: PieceIndex) -> &[u8] {
    let range = layout.range(piece);
    &bytes[range.start as usize..range.end as usize]
}
