//! A download in a process of its own, from a peer and an origin of the test's process, over sockets.

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
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, StatementKind};
use lapwing_p2p::identity::{Identity, PeerId};
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, Priority};
use lapwing_p2p::origin::{ByteStream, Origin, OriginError};
use lapwing_p2p::store::{ChunkStore, StoreConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Tracker, content, start_on, start_with};

const ROOT: &str = "LAPWING_TEST_DOWNLOAD_ROOT";
const LENGTH: &str = "LAPWING_TEST_DOWNLOAD_LENGTH";
const PEER: &str = "LAPWING_TEST_DOWNLOAD_PEER";
const PEER_ADDRESS: &str = "LAPWING_TEST_DOWNLOAD_PEER_ADDRESS";
const ORIGIN: &str = "LAPWING_TEST_DOWNLOAD_ORIGIN";
/// Socket buffers are kept small, so that little is under way.
const SOCKET_BUFFER: usize = 64 << 10;
const CHUNK: usize = 32 << 10;

/// Where the downloads come from: a peer with every other piece, and an origin.
pub(crate) struct Sources {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    peer: Arc<Node>,
    metrics: Arc<Metrics>,
    origin: SocketAddr,
    origin_sent: Arc<AtomicU64>,
    _directory: tempfile::TempDir,
}

impl Sources {
    pub(crate) async fn start(length: usize) -> Self {
        let bytes = content(length, 42);
        let digest = Digest::of(&bytes);
        let directory = tempfile::tempdir().unwrap();
        let store = ChunkStore::open(directory.path(), StoreConfig::default()).unwrap();
        let blob = store.open_blob(&digest, length as u64).unwrap();
        for piece in (0..blob.layout().piece_count()).step_by(2).map(PieceIndex) {
            blob.write_piece(piece, piece_of(&bytes, blob.layout(), piece)).unwrap();
        }
        blob.flush().unwrap();
        let metrics = Arc::new(Metrics::default());
        let identity = Arc::new(Identity::generate().unwrap());
        let tracker = Arc::new(Tracker::default());
        let peer = start_on(&tracker, store, identity, Arc::clone(&metrics), |_| {}).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = listener.local_addr().unwrap();
        let origin_sent = Arc::new(AtomicU64::new(0));
        tokio::spawn(serve(listener, bytes.clone(), Arc::clone(&origin_sent)));
        Self { bytes, digest, peer, metrics, origin, origin_sent, _directory: directory }
    }

    /// Bytes of pieces that were sent so far, by whomever.
    pub(crate) fn sent(&self) -> u64 {
        self.origin_sent.load(Ordering::Relaxed) + self.metrics.served_bytes.get()
    }

    pub(crate) async fn stop(self) {
        self.peer.shutdown().await;
    }

    /// Starts a process that downloads the blob to `root`, with these variables besides.
    pub(crate) fn download(&self, root: &Path, variables: &[(&str, &str)]) -> Download {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "download::downloader", "--nocapture", "--test-threads=1"])
            .env(ROOT, root)
            .env(LENGTH, self.bytes.len().to_string())
            .env(PEER, self.peer.id().to_string())
            .env(PEER_ADDRESS, self.peer.local_addr().to_string())
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
    let peer: PeerId = given(PEER).parse().unwrap();
    let tracker = Arc::new(Tracker::default());
    tracker.register(peer, given(PEER_ADDRESS).parse().unwrap());
    tracker.add_holder(digest, peer, Holding::Partial);
    tracker.add_lessee(digest, peer);
    let root = Path::new(&root);
    let identity = Arc::new(Identity::load_or_create(&root.join("key")).unwrap());
    let node = start_with(&tracker, root, identity, Arc::default(), |_| {}).await;
    let origin = Arc::new(TcpOrigin(given(ORIGIN).parse().unwrap()));
    let blob = node.open(digest, bytes.len() as u64, Some(origin)).unwrap();
    blob.want_all(Priority::Bulk);
    let stored = node.store().get(&digest).unwrap();
    let (mut shown, mut flushed) = (u32::MAX, stored.have().count());
    while !blob.is_verified() {
        let have = stored.have();
        if have.count() != shown {
            shown = have.count();
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
    while node.derived(digest, StatementKind::Metainfo).await.is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    say("complete");
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
    ear: JoinHandle<(BTreeSet<u32>, bool)>,
}

/// What it said before it ended.
pub(crate) struct Heard {
    pub(crate) seen: BTreeSet<u32>,
    pub(crate) complete: bool,
    pub(crate) status: ExitStatus,
}

impl Heard {
    pub(crate) fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }
}

impl Download {
    /// Kills it when `due`, unless it has ended by itself.
    pub(crate) async fn kill_when(mut self, due: impl Fn() -> bool + Send) -> Heard {
        while self.child.try_wait().unwrap().is_none() && !due() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.child.kill().unwrap();
        self.end().await
    }

    /// Waits until it ends.
    pub(crate) async fn end(mut self) -> Heard {
        let end = move || {
            let (seen, complete) = self.ear.join().unwrap();
            Heard { seen, complete, status: self.child.wait().unwrap() }
        };
        tokio::task::spawn_blocking(end).await.unwrap()
    }
}

/// The pieces that it named last, and whether it said that it was done.
fn hear(output: ChildStdout) -> (BTreeSet<u32>, bool) {
    let mut output = BufReader::new(output);
    let (mut seen, mut complete) = (BTreeSet::new(), false);
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        // A line cut off by the end of the process says nothing.
        let whole = line.ends_with('\n');
        let mut words = line.split_whitespace();
        match words.next() {
            Some("have") if whole => seen = words.map(|word| word.parse().unwrap()).collect(),
            Some("complete") => complete = true,
            _ => {}
        }
        line.clear();
    }
    (seen, complete)
}

/// Bytes of pieces of `sources`' blob in the store below `root`. Every piece that is marked is right.
pub(crate) fn stored_bytes(root: &Path, sources: &Sources, heard: &Heard) -> u64 {
    let store = ChunkStore::open(root, StoreConfig::default()).unwrap();
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
    if heard.complete {
        assert!(blob.is_verified());
        blob.verify().unwrap();
    }
    let total: u64 = store.list().iter().map(|blob| blob.have_bytes).sum();
    assert_eq!(store.used_bytes(), total);
    blob.have_bytes()
}

fn piece_of(bytes: &[u8], layout: PieceLayout, piece: PieceIndex) -> &[u8] {
    let range = layout.range(piece);
    &bytes[range.start as usize..range.end as usize]
}
