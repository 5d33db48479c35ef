//! Peers that give and take a byte now and then: they keep nobody from a blob, neither those who ask them nor those who ask beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lapwing_evidence::{Evidence, count, seed};
use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::node::{Node, NodeConfig, Priority};
use lapwing_p2p::statement::PieceStatement;
use lapwing_p2p::verify::piece_hash;
use lapwing_p2p::wire::{BlobNumber, Frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::raw;
use crate::support::{Handle, MemoryOrigin, Tracker, content, start};

const LENGTH: usize = 2 << 20;
const WHOLE: u64 = LENGTH as u64;
const PATIENCE: Duration = Duration::from_secs(60);
const BLOB: BlobNumber = BlobNumber(0);
/// How many are slow.
const SLOW: usize = 8;

/// A peer with all of the blob, the right bytes of it, and a second for each.
async fn slow_giver(tracker: &Arc<Tracker>, bytes: &Bytes, given: &Arc<AtomicU64>) {
    let digest = Digest::of(bytes);
    let identity = Arc::new(Identity::generate().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    tracker.register(identity.id(), listener.local_addr().unwrap());
    tracker.add_holder(digest, identity.id(), Holding::Complete);
    tracker.add_lessee(digest, identity.id());
    let (bytes, given) = (bytes.clone(), Arc::clone(given));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(drip(stream, Arc::clone(&identity), bytes.clone(), Arc::clone(&given)));
        }
    });
}

async fn drip(stream: TcpStream, identity: Arc<Identity>, bytes: Bytes, given: Arc<AtomicU64>) -> std::io::Result<()> {
    let (digest, layout) = (Digest::of(&bytes), PieceLayout::new(WHOLE).unwrap());
    let mut stream = raw::accept(stream, &identity).await?;
    let have = Bitfield::full(layout.piece_count());
    raw::send(&mut stream, &Frame::Hello { blob: BLOB, digest, layout, have }).await?;
    loop {
        let Frame::Request { piece, .. } = raw::receive(&mut stream).await? else { continue };
        let range = layout.range(piece);
        let right = bytes.slice(range.start as usize..range.end as usize);
        let statement = Some(PieceStatement::sign(&identity, &digest, WHOLE, piece, piece_hash(&right)));
        let mut out = BytesMut::new();
        Frame::Piece { blob: BLOB, piece, statement, bytes: right }.encode(&mut out);
        for byte in out {
            stream.write_u8(byte).await?;
            stream.flush().await?;
            given.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// A peer that asks for everything, and takes a byte a second of it.
async fn slow_taker(node: &Arc<Node>, digest: Digest, taken: Arc<AtomicU64>) {
    let identity = Arc::new(Identity::generate().unwrap());
    let (stream, channel) = match crate::INSECURE {
        true => (raw::Stream::Left(TcpStream::connect(node.local_addr()).await.unwrap()), Default::default()),
        false => raw::connect(&identity, node.id(), node.local_addr()).await,
    };
    let mut stream = raw::shake_hands(stream, &identity, &channel, &channel).await.unwrap();
    let layout = PieceLayout::new(WHOLE).unwrap();
    let have = Bitfield::empty(layout.piece_count());
    raw::send(&mut stream, &Frame::Hello { blob: BLOB, digest, layout, have }).await.unwrap();
    for piece in 0..layout.piece_count() {
        if raw::send(&mut stream, &Frame::Request { blob: BLOB, piece: PieceIndex(piece), urgent: false })
            .await
            .is_err()
        {
            return;
        }
    }
    tokio::spawn(async move {
        while stream.read_u8().await.is_ok() {
            taken.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_give_a_byte_a_second_are_left_for_others() {
    let mut evidence = Evidence::new(6, "peers that send, and peers that take, a byte a second");
    for round in 0..count(1, 20) {
        let tracker = Arc::new(Tracker::default());
        let bytes = content(LENGTH, seed().wrapping_mul(1000) + u64::from(round));
        let (digest, given) = (Digest::of(&bytes), Arc::new(AtomicU64::new(0)));
        for _ in 0..SLOW {
            slow_giver(&tracker, &bytes, &given).await;
        }
        let directory = tempfile::tempdir().unwrap();
        let node = start(&tracker, directory.path(), |config| config.read_deadline = PATIENCE).await;
        let origin = MemoryOrigin::new(bytes.clone());
        let blob = node.open(digest, WHOLE, Some(Arc::new(Handle(origin)))).unwrap();
        let begun = Instant::now();
        let read = blob.read(0..WHOLE, Priority::Bulk).await;
        evidence.ended(begun.elapsed(), read.is_ok());
        assert!(evidence.compare(&bytes, &read.unwrap()), "wrong bytes");
        evidence.faults("a byte a second", given.load(Ordering::Relaxed));
        node.shutdown().await;

        // Nobody else has it: that is said in time.
        let directory = tempfile::tempdir().unwrap();
        let impatient = |config: &mut NodeConfig| config.read_deadline = Duration::from_secs(2);
        let node = start(&tracker, directory.path(), impatient).await;
        tracker.forget(node.id());
        let alone = node.open(digest, WHOLE, None).unwrap();
        let begun = Instant::now();
        let read = tokio::time::timeout(PATIENCE, alone.read(0..WHOLE, Priority::Bulk)).await.unwrap();
        evidence.ended(begun.elapsed(), read.is_ok());
        assert!(read.is_err(), "at a byte a second");
        node.shutdown().await;
    }
    assert!(evidence.record().faults["a byte a second"] > 0, "nobody slow was asked");
    eprintln!("{:?}", evidence.record());
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_take_a_byte_a_second_keep_no_place_from_others() {
    let mut evidence = Evidence::new(6, "peers that take a byte a second of a node that others ask");
    for round in 0..count(1, 10) {
        let tracker = Arc::new(Tracker::default());
        let bytes = content(LENGTH, seed().wrapping_mul(2000) + u64::from(round));
        let digest = Digest::of(&bytes);
        let roots = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let holder = start(&tracker, roots[0].path(), |_| {}).await;
        let origin = Arc::new(Handle(MemoryOrigin::new(bytes.clone())));
        let held = holder.open(digest, WHOLE, Some(origin)).unwrap();
        held.verified().await.unwrap();
        evidence.served_before(held.read(0..WHOLE, Priority::Bulk).await.unwrap().len() as u64);
        while tracker.holding(&digest, &holder.id()) != Some(Holding::Complete) {
            tokio::task::yield_now().await;
        }
        let taken = Arc::new(AtomicU64::new(0));
        // As many as there are slots keep all of them, for as long as they may.
        for _ in 0..count(2, SLOW as u32) {
            slow_taker(&holder, digest, Arc::clone(&taken)).await;
        }
        while taken.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let node = start(&tracker, roots[1].path(), |config| config.read_deadline = PATIENCE).await;
        let blob = node.open(digest, WHOLE, None).unwrap();
        let begun = Instant::now();
        let read = blob.read(0..WHOLE, Priority::Bulk).await;
        evidence.ended(begun.elapsed(), read.is_ok());
        assert!(evidence.compare(&bytes, &read.unwrap()), "wrong bytes");
        evidence.faults("a byte a second", taken.load(Ordering::Relaxed));
        for node in [node, holder] {
            node.shutdown().await;
        }
    }
    eprintln!("{:?}", evidence.record());
}
