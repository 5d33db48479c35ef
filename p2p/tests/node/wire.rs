//! What others can do who sit on the wire, or speak it otherwise.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::PieceLayout;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, NodeConfig, Priority, Security};
use lapwing_p2p::wire::handshake::PLAINTEXT;
use lapwing_p2p::wire::{BlobNumber, Frame, packing};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::either::Either;

use crate::raw;
use crate::support::{Handle, MemoryOrigin, Tracker, content, start, start_with};

const LENGTH: usize = 3 << 20;

/// Passes everything on to `target`, and remembers it.
async fn relay(target: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let remembered = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(target).await else { continue };
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(carry(near_in, far_out, Arc::clone(&remembered)));
            tokio::spawn(carry(far_in, near_out, Arc::clone(&remembered)));
        }
    });
    (address, seen)
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    seen: Arc<Mutex<Vec<u8>>>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        seen.lock().unwrap().extend_from_slice(&buffer[..length]);
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// A node that has the blob, and its bytes.
async fn holder(tracker: &Arc<Tracker>, root: &std::path::Path, seed: u64) -> (Arc<Node>, Bytes) {
    let bytes = content(LENGTH, seed);
    (holder_of(tracker, root, &bytes).await, bytes)
}

async fn holder_of(tracker: &Arc<Tracker>, root: &std::path::Path, bytes: &Bytes) -> Arc<Node> {
    let node = start(tracker, root, |_| {}).await;
    let origin = Handle(MemoryOrigin::new(bytes.clone()));
    node.open(Digest::of(bytes), LENGTH as u64, Some(Arc::new(origin))).unwrap().verified().await.unwrap();
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn who_carries_the_packets_reads_pieces_only_in_plaintext() {
    let tracker = Arc::new(Tracker::default());
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, bytes) = holder(&tracker, one.path(), 31).await;
    let (address, seen) = relay(first.local_addr()).await;
    tracker.register(first.id(), address);
    let second = start(&tracker, two.path(), |_| {}).await;
    let blob = second.open(Digest::of(&bytes), LENGTH as u64, None).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.sources().bytes_from_peers, LENGTH as u64);
    let readable = {
        let seen = seen.lock().unwrap();
        assert!(seen.len() >= LENGTH, "the pieces went another way");
        // The first bytes of the second piece, somewhere in what passed.
        let sample = &bytes[64 << 10..][..32];
        seen.windows(sample.len()).any(|window| window == sample)
    };
    assert_eq!(readable, crate::INSECURE);
    second.shutdown().await;
    first.shutdown().await;
}

/// Discovery names one peer, and another answers at its address: it is asked for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_anothers_address_is_not_taken_for_it() {
    let tracker = Arc::new(Tracker::default());
    let [one, two, three] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (other, bytes) = holder(&tracker, one.path(), 32).await;
    let digest = Digest::of(&bytes);
    tracker.forget(other.id());
    let named = Identity::generate().unwrap().id();
    tracker.register(named, other.local_addr());
    tracker.add_holder(digest, named, Holding::Complete);
    let node = start(&tracker, two.path(), |config| config.read_deadline = Duration::from_secs(2)).await;
    let blob = node.open(digest, LENGTH as u64, None).unwrap();
    blob.read(0..LENGTH as u64, Priority::Bulk).await.unwrap_err();
    assert_eq!(blob.sources().bytes_from_peers, 0);
    // The same bytes come from the same node under its own name.
    tracker.register(other.id(), other.local_addr());
    tracker.add_holder(digest, other.id(), Holding::Complete);
    let again = start(&tracker, three.path(), |_| {}).await;
    again.open(digest, LENGTH as u64, None).unwrap().verified().await.unwrap();
    for node in [again, node, other] {
        node.shutdown().await;
    }
}

/// Nodes that are configured differently give each other nothing, and fall back to the origin.
#[tokio::test(flavor = "multi_thread")]
async fn plaintext_and_tls_do_not_mix() {
    let tracker = Arc::new(Tracker::default());
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, bytes) = holder(&tracker, one.path(), 33).await;
    let contrary =
        |config: &mut NodeConfig| config.security = if crate::INSECURE { Security::Keys } else { Security::Plaintext };
    let second = start(&tracker, two.path(), contrary).await;
    let origin = MemoryOrigin::new(bytes.clone());
    let blob = second.open(Digest::of(&bytes), LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.sources().bytes_from_peers, 0);
    assert_eq!(origin.copies(), 1.0);
    second.shutdown().await;
    first.shutdown().await;
}

/// The wire's handshake is bound to the connection below it, and to the name proven there.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_without_its_tls_connection_is_refused() {
    let tracker = Arc::new(Tracker::default());
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |config| config.security = Security::Keys).await;
    let (one, other) = (Arc::new(Identity::generate().unwrap()), Identity::generate().unwrap());
    let plain = TcpStream::connect(node.local_addr()).await.unwrap();
    let plain = raw::shake_hands(Either::Left(plain), &one, &PLAINTEXT, &PLAINTEXT).await;
    assert!(plain.is_err(), "a node that speaks TLS took plaintext");

    let dial = || raw::connect(&one, node.id(), node.local_addr());
    for (identity, bound) in [(&*one, false), (&other, true)] {
        let (stream, channel) = dial().await;
        let signed = if bound { channel } else { PLAINTEXT };
        let mut stream = raw::shake_hands(stream, identity, &signed, &channel).await.unwrap();
        let ended = stream.read(&mut [0]).await;
        assert!(!matches!(ended, Ok(1..)), "the node went on with an impostor");
    }
    let (stream, channel) = dial().await;
    let mut stream = raw::shake_hands(stream, &one, &channel, &channel).await.unwrap();
    let (digest, layout) = (Digest::of(b"unknown"), PieceLayout::new(7).unwrap());
    let hello = Frame::Hello { blob: BlobNumber(0), digest, layout, have: Bitfield::empty(1) };
    raw::send(&mut stream, &hello).await.unwrap();
    let answer = raw::receive(&mut stream).await.unwrap();
    assert_eq!(answer, Frame::NotHere { digest, piece: None }, "the node speaks on");
    node.shutdown().await;
}

/// What compresses well crosses the wire compressed, if both sides want it.
#[tokio::test(flavor = "multi_thread")]
async fn compressible_pieces_travel_packed() {
    let tracker = Arc::new(Tracker::default());
    let [one, two, three] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let words: Vec<u8> = content(LENGTH / 4, 34).iter().flat_map(|byte| [b'a' + byte % 16, b' ', b'o', b'f']).collect();
    let bytes = Bytes::from(words);
    let digest = Digest::of(&bytes);
    let first = holder_of(&tracker, one.path(), &bytes).await;
    for (root, compression) in [(two.path(), true), (three.path(), false)] {
        let (address, seen) = relay(first.local_addr()).await;
        tracker.register(first.id(), address);
        // What is offered is what the receiver takes: it is the sender's setting that counts here.
        let node = start(&tracker, root, |config| config.compression = compression).await;
        let blob = node.open(digest, LENGTH as u64, None).unwrap();
        blob.verified().await.unwrap();
        assert_eq!(blob.read(0..LENGTH as u64, Priority::Bulk).await.unwrap(), bytes);
        assert_eq!(blob.sources().bytes_from_peers, LENGTH as u64);
        let crossed = seen.lock().unwrap().len();
        assert_eq!(crossed < LENGTH * 2 / 3, compression, "{crossed} bytes crossed the wire");
        node.shutdown().await;
    }
    first.shutdown().await;
}

/// A piece that unpacks to something else, or to more than any memory, is a bad piece like another.
#[tokio::test(flavor = "multi_thread")]
async fn what_unpacks_to_no_piece_is_blamed_on_its_sender() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 35);
    let (digest, layout) = (Digest::of(&bytes), PieceLayout::new(LENGTH as u64).unwrap());
    let identity = Arc::new(Identity::generate().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    tracker.register(identity.id(), listener.local_addr().unwrap());
    tracker.add_holder(digest, identity.id(), Holding::Complete);
    tracker.add_lessee(digest, identity.id());
    let bomb = packing::pack(&vec![0; 64 << 20]).unwrap();
    let serving = tokio::spawn(async move {
        let blob = BlobNumber(0);
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = raw::accept(stream, &identity).await else { continue };
            let hello = Frame::Hello { blob, digest, layout, have: Bitfield::full(layout.piece_count()) };
            let _ = raw::send(&mut stream, &hello).await;
            while let Ok(frame) = raw::receive(&mut stream).await {
                let Frame::Request { piece, .. } = frame else { continue };
                let packed = if piece.0 % 2 == 0 { bomb.clone().into() } else { Bytes::from_static(b"no frame") };
                let _ = raw::send(&mut stream, &Frame::Packed { blob, piece, statement: None, bytes: packed }).await;
            }
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let (metrics, own) = (Arc::new(Metrics::default()), Arc::new(Identity::generate().unwrap()));
    let node = start_with(&tracker, directory.path(), own, Arc::clone(&metrics), |_| {}).await;
    let origin = MemoryOrigin::new(bytes.clone());
    let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(origin)))).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.sources().bytes_from_peers, 0);
    assert_eq!((metrics.bad_pieces.get() >= 3, metrics.bans.get()), (true, 1));
    node.shutdown().await;
    serving.abort();
}

/// The names of the congestion controls at both ends of all connections to `port` of this machine.
fn congestion_controls(port: u16) -> Vec<String> {
    let filter = format!("( sport = :{port} or dport = :{port} )");
    let listed = std::process::Command::new("ss").args(["-tinOH", "state", "established", &filter]).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines().map(|line| line.split_whitespace().nth(4).unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_of_a_connection_use_the_congestion_control_that_is_configured() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(1000, 36);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Every kernel has it, and none has it for its default.
    let adjust = |config: &mut NodeConfig| config.congestion_control = "reno".into();
    let (first, second) = (start(&tracker, one.path(), adjust).await, start(&tracker, two.path(), adjust).await);
    let digest = Digest::of(&bytes);
    let origin = Arc::new(Handle(MemoryOrigin::new(bytes.clone())));
    first.open(digest, 1000, Some(origin)).unwrap().verified().await.unwrap();
    while tracker.holding(&digest, &first.id()) != Some(Holding::Complete) {
        tokio::task::yield_now().await;
    }
    assert_eq!(second.open(digest, 1000, None).unwrap().read(0..1000, Priority::Bulk).await.unwrap(), bytes);
    assert_eq!(congestion_controls(first.local_addr().port()), ["reno", "reno"]);
    first.shutdown().await;
    second.shutdown().await;
}
