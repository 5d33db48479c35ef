//! One TCP connection of the piece wire: handshake, a task that reads, a task that writes.
//!
//! A piece is read, checked and stored before the next frame is read, so one connection holds at most one piece in
//! memory per direction. Control frames overtake pieces that wait to be sent.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Node;
use super::blob::{Blob, lock};
use crate::digest::Digest;
use crate::identity::{Identity, PeerId};
use crate::layout::{PieceIndex, PieceLayout};
use crate::limits::{MAX_BLOBS_PER_CONNECTION, MAX_QUEUED_FRAMES};
use crate::swarm::Event;
use crate::wire::handshake::{GREETING_LENGTH, Greeting, HandshakeError};
use crate::wire::{BlobNumber, Frame, HEADER_LENGTH, Header, WireError};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that says nothing for so long is gone: it should have sent a ping.
const SILENCE: Duration = Duration::from_secs(45);
const PING_AFTER: Duration = Duration::from_secs(15);
/// The body of a frame, once begun, must be here within that; so must what is written be taken.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("it was silent or slow for too long")]
    TimedOut,
    #[error("it proved to be {found}, expected {expected}")]
    SomebodyElse { found: PeerId, expected: PeerId },
    #[error("it connected to itself")]
    Oneself,
    #[error("it speaks of more than {MAX_BLOBS_PER_CONNECTION} blobs")]
    TooManyBlobs,
    #[error("it named blob number {0} without a hello")]
    UnknownBlob(u32),
}

/// A piece to be sent.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) digest: Digest,
    pub(super) number: BlobNumber,
    pub(super) piece: PieceIndex,
}

/// This node's end of a connection, as the rest of the node sees it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: u64,
    /// Who opened the connection.
    pub(super) initiator: PeerId,
    pub(super) closing: CancellationToken,
    frames: mpsc::Sender<Frame>,
    uploads: mpsc::UnboundedSender<Upload>,
    numbers: HashMap<Digest, BlobNumber>,
}

/// The other ends of a link's queues.
pub(super) struct Queues {
    frames: mpsc::Receiver<Frame>,
    /// Bounded by the scheduler's slots.
    uploads: mpsc::UnboundedReceiver<Upload>,
    closing: CancellationToken,
}

impl Link {
    pub(super) fn new(id: u64, initiator: PeerId, closing: CancellationToken) -> (Self, Queues) {
        let (frames, frames_out) = mpsc::channel(MAX_QUEUED_FRAMES);
        let (uploads, uploads_out) = mpsc::unbounded_channel();
        let queues = Queues { frames: frames_out, uploads: uploads_out, closing: closing.clone() };
        (Self { id, initiator, closing, frames, uploads, numbers: HashMap::new() }, queues)
    }

    /// Queues a frame. A peer that does not take its frames is dropped.
    pub(super) fn send(&self, frame: Frame) {
        if self.frames.try_send(frame).is_err() {
            self.closing.cancel();
        }
    }

    /// The number of a blob in this direction, given now if it has none.
    pub(super) fn assign(&mut self, digest: Digest) -> Option<BlobNumber> {
        let next = BlobNumber(self.numbers.len() as u32);
        if self.numbers.len() >= MAX_BLOBS_PER_CONNECTION && !self.numbers.contains_key(&digest) {
            return None;
        }
        Some(*self.numbers.entry(digest).or_insert(next))
    }

    pub(super) fn number(&self, digest: &Digest) -> Option<BlobNumber> {
        self.numbers.get(digest).copied()
    }

    /// Queues a piece; false if that blob was never spoken of.
    pub(super) fn upload(&self, digest: Digest, piece: PieceIndex) -> bool {
        let Some(number) = self.number(&digest) else { return false };
        self.uploads.send(Upload { digest, number, piece }).is_ok()
    }
}

/// Says who is who. Gives the other side's proven name.
pub(super) async fn shake_hands(stream: &mut TcpStream, identity: &Identity) -> Result<PeerId, ConnectionError> {
    let exchange = async {
        let nonce: [u8; 32] = nonce(identity);
        let sent = Greeting { peer: identity.id(), nonce };
        stream.write_all(&sent.encode()).await?;
        let mut bytes = [0; GREETING_LENGTH];
        stream.read_exact(&mut bytes).await?;
        let theirs = Greeting::decode(&bytes)?;
        if theirs.peer == identity.id() {
            return Err(ConnectionError::Oneself);
        }
        stream.write_all(&theirs.prove(identity)).await?;
        let mut proof = [0; 64];
        stream.read_exact(&mut proof).await?;
        theirs.check(&sent, &proof)?;
        Ok(theirs.peer)
    };
    timeout(HANDSHAKE_TIMEOUT, exchange).await.map_err(|_| ConnectionError::TimedOut)?
}

/// Bytes nobody can foresee.
fn nonce(identity: &Identity) -> [u8; 32] {
    let mut nonce = [0; 32];
    if aws_lc_rs::rand::fill(&mut nonce).is_err() {
        // A signature over the time cannot be foreseen either without the key.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let signature = identity.sign(&now.as_nanos().to_be_bytes());
        nonce.copy_from_slice(&signature[..32]);
    }
    nonce
}

/// Reads and writes until either ends, the peer says goodbye, or the node closes the link.
pub(super) async fn run(
    node: &Arc<Node>,
    stream: TcpStream,
    peer: PeerId,
    queues: Queues,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let closing = queues.closing.clone();
    let mut writer = node.tasks.spawn(Writer { node: Arc::clone(node), peer, write, queues }.run());
    let ended = tokio::select! {
        ended = Reader { node, peer, read, blobs: HashMap::new() }.run() => ended,
        () = closing.cancelled() => Ok(()),
        written = &mut writer => return written.unwrap_or(Ok(())),
    };
    closing.cancel();
    // The writer says goodbye and ends by itself, within its time-out.
    drop(writer);
    ended
}

struct Reader<'a> {
    node: &'a Arc<Node>,
    peer: PeerId,
    read: OwnedReadHalf,
    blobs: HashMap<BlobNumber, (Digest, PieceLayout)>,
}

impl Reader<'_> {
    async fn run(mut self) -> Result<(), ConnectionError> {
        loop {
            let frame = self.next_frame().await?;
            if frame == Frame::Bye {
                return Ok(());
            }
            self.take(frame).await?;
        }
    }

    async fn next_frame(&mut self) -> Result<Frame, ConnectionError> {
        let mut head = [0; HEADER_LENGTH];
        timeout(SILENCE, self.read.read_exact(&mut head)).await.map_err(|_| ConnectionError::TimedOut)??;
        let header = Header::decode(head)?;
        let mut body = vec![0; header.length()];
        timeout(FRAME_TIMEOUT, self.read.read_exact(&mut body)).await.map_err(|_| ConnectionError::TimedOut)??;
        Ok(Frame::decode(header, Bytes::from(body))?)
    }

    fn digest(&self, blob: BlobNumber) -> Result<Digest, ConnectionError> {
        self.blobs.get(&blob).map(|(digest, _)| *digest).ok_or(ConnectionError::UnknownBlob(blob.0))
    }

    async fn take(&mut self, frame: Frame) -> Result<(), ConnectionError> {
        let peer = self.peer;
        match frame {
            Frame::Hello { blob, digest, layout, have } => {
                if self.blobs.len() >= MAX_BLOBS_PER_CONNECTION && !self.blobs.contains_key(&blob) {
                    return Err(ConnectionError::TooManyBlobs);
                }
                self.blobs.insert(blob, (digest, layout));
                self.node.greeted(peer, digest, layout, have).await;
            }
            Frame::Have { blob, pieces } => {
                let digest = self.digest(blob)?;
                self.node.drive(Event::Have { peer, digest, pieces });
            }
            Frame::Request { blob, piece, urgent } => {
                let digest = self.digest(blob)?;
                self.node.drive(Event::Request { peer, digest, piece, urgent });
            }
            Frame::Cancel { blob, piece } => {
                let digest = self.digest(blob)?;
                self.node.drive(Event::Cancel { peer, digest, piece });
            }
            Frame::NotHere { digest, piece } => self.node.drive(Event::NotHere { peer, digest, piece }),
            Frame::Piece { blob, piece, statement, bytes } => {
                let digest = self.digest(blob)?;
                self.node.take_piece(peer, digest, piece, statement, bytes).await;
            }
            Frame::Ping | Frame::Bye => {}
        }
        Ok(())
    }
}

struct Writer {
    node: Arc<Node>,
    peer: PeerId,
    write: OwnedWriteHalf,
    queues: Queues,
}

impl Writer {
    async fn run(mut self) -> Result<(), ConnectionError> {
        let mut out = BytesMut::new();
        loop {
            out.clear();
            tokio::select! {
                biased;
                () = self.queues.closing.cancelled() => {
                    Frame::Bye.encode(&mut out);
                    return self.write(&out).await;
                }
                frame = self.queues.frames.recv() => match frame {
                    Some(frame) => {
                        frame.encode(&mut out);
                        while let Ok(frame) = self.queues.frames.try_recv() {
                            frame.encode(&mut out);
                        }
                        self.write(&out).await?;
                    }
                    None => return Ok(()),
                },
                upload = self.queues.uploads.recv() => match upload {
                    Some(upload) => self.upload(&mut out, &upload).await?,
                    None => return Ok(()),
                },
                () = tokio::time::sleep(PING_AFTER) => {
                    Frame::Ping.encode(&mut out);
                    self.write(&out).await?;
                }
            }
        }
    }

    async fn upload(&mut self, out: &mut BytesMut, upload: &Upload) -> Result<(), ConnectionError> {
        let &Upload { digest, number, piece } = upload;
        let read = match self.node.open_blob(&digest) {
            Some(blob) => read_to_send(&self.node, blob, piece).await,
            None => None,
        };
        if let Some((statement, bytes)) = read {
            // The bytes follow the head from their own buffer; on a plaintext connection sendfile(2) could take them
            // from StoredBlob::file() instead.
            Frame::encode_piece_head(out, number, piece, statement.as_ref(), bytes.len());
            self.write(out).await?;
            self.write(&bytes).await?;
            self.node.metrics.served_bytes.inc_by(bytes.len() as u64);
        } else {
            Frame::NotHere { digest, piece: Some(piece) }.encode(out);
            self.write(out).await?;
        }
        self.node.drive(Event::Sent { peer: self.peer });
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        Ok(timeout(FRAME_TIMEOUT, self.write.write_all(bytes)).await.map_err(|_| ConnectionError::TimedOut)??)
    }
}

type ToSend = (Option<crate::statement::PieceStatement>, Bytes);

/// A piece and who vouches for it: whoever did when it came, or this node, which checked it then.
async fn read_to_send(node: &Arc<Node>, blob: Arc<Blob>, piece: PieceIndex) -> Option<ToSend> {
    let identity = Arc::clone(&node.config.identity);
    let read = tokio::task::spawn_blocking(move || {
        let bytes = blob.stored.read_piece(piece)?;
        if blob.layout.piece_count() == 1 {
            return Ok((None, bytes));
        }
        let statement = lock(&blob.trust).statement(piece).unwrap_or_else(|| {
            let hash = crate::verify::piece_hash(&bytes);
            crate::statement::PieceStatement::sign(&identity, &blob.digest, blob.layout.length(), piece, hash)
        });
        Ok::<_, crate::store::StoreError>((Some(statement), bytes))
    });
    match read.await.ok()? {
        Ok(read) => Some(read),
        Err(error) => {
            tracing::warn!(%error, piece = piece.0, "piece cannot be read for a peer");
            None
        }
    }
}
