//! A peer that speaks the wire well and sends what it should not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{NodeConfig, Priority};
use lapwing_p2p::statement::PieceStatement;
use lapwing_p2p::verify::piece_hash;
use lapwing_p2p::wire::{BlobNumber, Frame, HEADER_LENGTH, Header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::raw;
use crate::support::{Handle, MemoryOrigin, Tracker, content, start, start_with};

pub(crate) const LENGTH: usize = 4 << 20;

/// How the bytes of a piece are spoilt.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spoil {
    OneBit,
    Truncated,
    Extended,
    AnotherPiece,
    /// Right bytes, called another piece.
    AnotherIndex,
    AnotherBlob,
    /// Right bytes, and a statement that its signer never made.
    ForgedStatement,
    /// Right bytes and a right statement.
    Nothing,
}

/// All ways in which bytes are spoilt under the index that was asked for.
pub(crate) const SPOILT: [Spoil; 6] =
    [Spoil::OneBit, Spoil::Truncated, Spoil::Extended, Spoil::AnotherPiece, Spoil::AnotherBlob, Spoil::ForgedStatement];

pub(crate) struct Liar {
    pub(crate) identity: Arc<Identity>,
    /// Whose statements it passes on; its own if none.
    signer: Option<Arc<Identity>>,
    digest: Digest,
    bytes: Bytes,
    spoil: Spoil,
    /// Whether its statements fit its bytes.
    states_its_lies: bool,
    pub(crate) sent: AtomicU64,
}

impl Liar {
    async fn listen(self: Arc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let liar = Arc::clone(&self);
            tokio::spawn(async move { liar.serve(stream).await });
        }
    }

    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = raw::accept(stream, &self.identity).await?;
        let layout = PieceLayout::new(LENGTH as u64).unwrap();
        let blob = BlobNumber(0);
        let have = Bitfield::full(layout.piece_count());
        send(&mut stream, &Frame::Hello { blob, digest: self.digest, layout, have }).await?;
        loop {
            let mut head = [0; HEADER_LENGTH];
            stream.read_exact(&mut head).await?;
            let header = Header::decode(head).unwrap();
            let mut body = vec![0; header.length()];
            stream.read_exact(&mut body).await?;
            if let Frame::Request { piece, .. } = Frame::decode(header, body.into()).unwrap() {
                self.sent.fetch_add(1, Ordering::Relaxed);
                send(&mut stream, &self.lie(layout, piece)).await?;
            }
        }
    }

    fn lie(&self, layout: PieceLayout, asked: PieceIndex) -> Frame {
        let piece = if matches!(self.spoil, Spoil::AnotherIndex) { PieceIndex(asked.0 ^ 1) } else { asked };
        let at = |piece| {
            let range = layout.range(piece);
            self.bytes[range.start as usize..range.end as usize].to_vec()
        };
        let right = at(piece);
        let mut bytes = right.clone();
        match self.spoil {
            Spoil::OneBit => bytes[77] ^= 4,
            Spoil::Truncated => drop(bytes.pop()),
            Spoil::Extended => bytes.push(0),
            Spoil::AnotherPiece => bytes = at(PieceIndex(piece.0 ^ 1)),
            Spoil::AnotherBlob => bytes = content(bytes.len(), 1_000_000 + u64::from(piece.0)).into(),
            // The bytes that were asked for, under the neighbour's name.
            Spoil::AnotherIndex => bytes = at(asked),
            Spoil::ForgedStatement | Spoil::Nothing => {}
        }
        let stated = if self.states_its_lies { piece_hash(&bytes) } else { piece_hash(&right) };
        let mut statement = PieceStatement::sign(
            self.signer.as_ref().unwrap_or(&self.identity),
            &self.digest,
            LENGTH as u64,
            piece,
            stated,
        );
        if matches!(self.spoil, Spoil::ForgedStatement) {
            let mut encoded = statement.encode();
            encoded[100] ^= 1;
            statement = PieceStatement::decode(&encoded);
        }
        Frame::Piece { blob: BlobNumber(0), piece, statement: Some(statement), bytes: bytes.into() }
    }
}

async fn send(stream: &mut raw::Stream, frame: &Frame) -> std::io::Result<()> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    stream.write_all(&out).await?;
    stream.flush().await
}

pub(crate) async fn liar(tracker: &Tracker, bytes: &Bytes, spoil: Spoil, states_its_lies: bool) -> Arc<Liar> {
    relay(tracker, bytes, spoil, states_its_lies, None).await
}

/// A liar that passes on statements of `signer`.
pub(crate) async fn relay(
    tracker: &Tracker,
    bytes: &Bytes,
    spoil: Spoil,
    states_its_lies: bool,
    signer: Option<Arc<Identity>>,
) -> Arc<Liar> {
    let identity = Arc::new(Identity::generate().unwrap());
    let digest = Digest::of(bytes);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tracker.register(identity.id(), address);
    let sent = AtomicU64::new(0);
    let liar = Arc::new(Liar { identity, signer, digest, bytes: bytes.clone(), spoil, states_its_lies, sent });
    tokio::spawn(Arc::clone(&liar).listen(listener));
    tracker.add_holder(digest, liar.identity.id(), Holding::Complete);
    liar
}

/// A lessee that sends other bytes than it states, in each way, beside an honest node: banned after three, and not one
/// of its bytes is read.
#[tokio::test(flavor = "multi_thread")]
async fn spoilt_pieces_are_never_read_and_their_sender_is_banned() {
    for spoil in SPOILT {
        let tracker = Arc::new(Tracker::default());
        let bytes = content(LENGTH, 21);
        let digest = Digest::of(&bytes);
        let liar = liar(&tracker, &bytes, spoil, false).await;
        tracker.add_lessee(digest, liar.identity.id());
        let origin = MemoryOrigin::new(bytes.clone());
        let directory = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::default());
        let identity = Arc::new(Identity::generate().unwrap());
        let node = start_with(&tracker, directory.path(), identity, Arc::clone(&metrics), |_| {}).await;
        let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
        blob.want_all(Priority::Bulk);
        assert_eq!(blob.read(0..LENGTH as u64, Priority::Fault).await.unwrap(), bytes, "{spoil:?}");
        blob.verified().await.unwrap();
        assert_eq!(blob.sources().bytes_from_peers, 0, "{spoil:?}");
        assert_eq!(metrics.bans.get(), 1, "{spoil:?}");
        assert!(metrics.bad_pieces.get() >= 3, "{spoil:?}");
        assert!(liar.sent.load(Ordering::Relaxed) < 20, "{spoil:?}: asked on and on");
        assert_eq!(metrics.digest_mismatches.get(), 0);
        node.shutdown().await;
    }
}

/// A peer that no tracker calls a lessee vouches for wrong bytes: they are neither read nor passed on.
#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_a_stranger_counts_nothing() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 22);
    let digest = Digest::of(&bytes);
    liar(&tracker, &bytes, Spoil::OneBit, true).await;
    let origin = MemoryOrigin::new(bytes.clone());
    let directory = tempfile::tempdir().unwrap();
    let node = start(&tracker, directory.path(), |_| {}).await;
    let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.want_all(Priority::Bulk);
    assert_eq!(blob.read(0..LENGTH as u64, Priority::Fault).await.unwrap(), bytes);
    assert_eq!(blob.sources().bytes_from_peers, 0);
    node.shutdown().await;
}

/// The worst: a lessee that lies consistently. The digest of the whole tells, the blob is fetched anew, and the
/// statements say who it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_lying_lessee_is_found_out_by_the_whole_digest() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 23);
    let digest = Digest::of(&bytes);
    let liar = liar(&tracker, &bytes, Spoil::OneBit, true).await;
    tracker.add_lessee(digest, liar.identity.id());
    let origin = MemoryOrigin::new(bytes.clone());
    let directory = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::default());
    let identity = Arc::new(Identity::generate().unwrap());
    let node = start_with(&tracker, directory.path(), identity, Arc::clone(&metrics), |_| {}).await;
    let blob = node.open(digest, LENGTH as u64, Some(Arc::new(Handle(Arc::clone(&origin))))).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(blob.read(0..LENGTH as u64, Priority::Bulk).await.unwrap(), bytes);
    assert!(metrics.digest_mismatches.get() >= 1);
    assert_eq!(metrics.bans.get(), 1, "its signatures convict it");
    assert_eq!(origin.copies(), 1.0);
    node.shutdown().await;
}

/// With nobody else to ask, what a liar sends is neither on disk nor given to another node.
#[tokio::test(flavor = "multi_thread")]
async fn spoilt_pieces_are_never_kept_or_passed_on() {
    for spoil in SPOILT {
        let tracker = Arc::new(Tracker::default());
        let bytes = content(LENGTH, 24);
        let digest = Digest::of(&bytes);
        let liar = liar(&tracker, &bytes, spoil, false).await;
        tracker.add_lessee(digest, liar.identity.id());
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut nodes = Vec::new();
        for directory in &directories {
            let (metrics, identity) = (Arc::new(Metrics::default()), Arc::new(Identity::generate().unwrap()));
            let impatient = |config: &mut NodeConfig| config.read_deadline = Duration::from_secs(1);
            let node = start_with(&tracker, directory.path(), identity, Arc::clone(&metrics), impatient).await;
            // The second could ask the first, too.
            tracker.add_holder(digest, node.id(), Holding::Partial);
            let blob = node.open(digest, LENGTH as u64, None).unwrap();
            // One second may be too short to ask anybody.
            for _ in 0..60 {
                blob.read(0..LENGTH as u64, Priority::Bulk).await.unwrap_err();
                if metrics.bad_pieces.get() >= 1 {
                    break;
                }
            }
            assert!(metrics.bad_pieces.get() >= 1, "{spoil:?}: the liar was never asked");
            assert_eq!(node.store().get(&digest).unwrap().have_bytes(), 0, "{spoil:?}: kept");
            nodes.push((node, metrics));
        }
        for (node, metrics) in nodes {
            assert_eq!(metrics.served_bytes.get(), 0, "{spoil:?}: passed on");
            node.shutdown().await;
        }
    }
}
