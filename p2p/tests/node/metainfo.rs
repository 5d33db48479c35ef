//! What a node that begins asks for first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, Statement, StatementKind};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::PieceLayout;
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::statement::PieceStatement;
use lapwing_p2p::verify::{Metainfo, StreamVerifier, piece_hash};
use lapwing_p2p::wire::{BlobNumber, Frame};
use tokio::net::{TcpListener, TcpStream};

use crate::raw;
use crate::support::{Tracker, content, start_with};

const LENGTH: usize = 4 << 20;

/// A node that got the blob from others and has proven it: its word on single pieces counts nowhere.
struct Holder {
    identity: Arc<Identity>,
    blobs: HashMap<Digest, Bytes>,
    /// What it was asked for, in order.
    asked: Mutex<Vec<Digest>>,
}

impl Holder {
    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = raw::accept(stream, &self.identity).await?;
        let (mut theirs, mut mine) = (HashMap::new(), HashMap::new());
        loop {
            match raw::receive(&mut stream).await? {
                Frame::Hello { blob, digest, layout, .. } if self.blobs.contains_key(&digest) => {
                    theirs.insert(blob, digest);
                    let number = BlobNumber(mine.len() as u32);
                    mine.insert(digest, (number, layout));
                    let have = Bitfield::full(layout.piece_count());
                    raw::send(&mut stream, &Frame::Hello { blob: number, digest, layout, have }).await?;
                }
                Frame::Request { blob, piece, .. } => {
                    let digest = theirs[&blob];
                    self.asked.lock().unwrap().push(digest);
                    let (blob, layout) = mine[&digest];
                    let range = layout.range(piece);
                    let bytes = self.blobs[&digest].slice(range.start as usize..range.end as usize);
                    let hash = piece_hash(&bytes);
                    let statement = PieceStatement::sign(&self.identity, &digest, layout.length(), piece, hash);
                    raw::send(&mut stream, &Frame::Piece { blob, piece, statement: Some(statement), bytes }).await?;
                }
                _ => {}
            }
        }
    }
}

fn metainfo(bytes: &Bytes) -> Metainfo {
    let layout = PieceLayout::new(bytes.len() as u64).unwrap();
    let mut verifier = StreamVerifier::new(Digest::of(bytes), layout);
    bytes.chunks(layout.piece_length() as usize).for_each(|piece| verifier.push_piece(piece));
    verifier.finish().unwrap()
}

/// Pieces of somebody whose word does not count wait for the metainfo, and it once waited for them: nothing came for seconds.
#[tokio::test(flavor = "multi_thread")]
async fn metainfo_is_asked_for_before_pieces_that_only_it_can_judge() {
    let tracker = Arc::new(Tracker::default());
    let bytes = content(LENGTH, 91);
    let digest = Digest::of(&bytes);
    let encoded = Bytes::from(metainfo(&bytes).encode());
    let object = Digest::of(&encoded);
    let identity = Arc::new(Identity::generate().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    tracker.register(identity.id(), listener.local_addr().unwrap());
    tracker.add_holder(digest, identity.id(), Holding::Complete);
    // Who fetched from the origin is known, and gone.
    tracker.add_lessee(digest, Identity::generate().unwrap().id());
    let length = encoded.len() as u64;
    tracker.vote(Statement { kind: StatementKind::Metainfo, subject: digest, object, length }, identity.id());
    let blobs = HashMap::from([(digest, bytes.clone()), (object, encoded)]);
    let holder = Arc::new(Holder { identity, blobs, asked: Mutex::default() });
    let serving = tokio::spawn({
        let holder = Arc::clone(&holder);
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                let holder = Arc::clone(&holder);
                tokio::spawn(async move { holder.serve(stream).await });
            }
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let (metrics, own) = (Arc::new(Metrics::default()), Arc::new(Identity::generate().unwrap()));
    let node = start_with(&tracker, directory.path(), own, Arc::clone(&metrics), |_| {}).await;
    let blob = node.open(digest, LENGTH as u64, None).unwrap();
    blob.verified().await.unwrap();
    assert_eq!(holder.asked.lock().unwrap().first(), Some(&object));
    assert_eq!(metrics.unverifiable_pieces.get(), 0);
    node.shutdown().await;
    serving.abort();
}
