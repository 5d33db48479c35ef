//! The side of a connection that reads.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::asked::Asked;
use super::channel::Incoming;
use super::serving::Servings;
use super::{ConnectionError, FRAME_TIMEOUT, SILENCE};
use crate::digest::Digest;
use crate::identity::PeerId;
use crate::layout::PieceLayout;
use crate::limits::MAX_BLOBS_PER_CONNECTION;
use crate::node::Node;
use crate::swarm::Event;
use crate::trace::TraceContext;
use crate::wire::{BlobNumber, Frame, HEADER_LENGTH, Header, PieceHead, packing};

/// Frames up to this length share one buffer.
const SMALL_FRAME: usize = 4 << 10;
/// What nobody waits for any more is read in steps of this, and dropped.
const SKIP: usize = 4 << 10;

pub(super) struct Reader<'a> {
    node: &'a Arc<Node>,
    peer: PeerId,
    remote: IpAddr,
    read: Incoming,
    blobs: HashMap<BlobNumber, (Digest, PieceLayout)>,
    small: BytesMut,
    servings: Servings,
    asked: Asked,
    /// The last piece, which is checked and written while the next one is read.
    judging: Option<JoinHandle<()>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        node: &'a Arc<Node>,
        peer: PeerId,
        remote: IpAddr,
        read: Incoming,
        servings: Servings,
        asked: Asked,
    ) -> Self {
        Self { node, peer, remote, read, blobs: HashMap::new(), small: BytesMut::new(), servings, asked, judging: None }
    }

    /// Reads until the peer says goodbye, or something is wrong.
    pub(super) async fn run(mut self) -> Result<(), ConnectionError> {
        let ended = self.read_frames().await;
        // What came whole counts, also when it was the last.
        self.judged().await;
        ended
    }

    async fn read_frames(&mut self) -> Result<(), ConnectionError> {
        loop {
            let mut head = [0; HEADER_LENGTH];
            timeout(SILENCE, self.read.read_exact(&mut head)).await.map_err(|_| ConnectionError::TimedOut)??;
            let header = Header::decode(head)?;
            if header.is_piece() {
                self.take_piece(header).await?;
                continue;
            }
            let frame = self.control_frame(header).await?;
            if frame == Frame::Bye {
                return Ok(());
            }
            self.take(frame).await?;
        }
    }

    async fn control_frame(&mut self, header: Header) -> Result<Frame, ConnectionError> {
        let length = header.length();
        let mut body = if length <= SMALL_FRAME { std::mem::take(&mut self.small) } else { BytesMut::new() };
        body.resize(length, 0);
        self.read_exact(&mut body).await?;
        let read = body.split().freeze();
        if length <= SMALL_FRAME {
            self.small = body;
        }
        Ok(Frame::decode(header, read)?)
    }

    async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ConnectionError> {
        timeout(FRAME_TIMEOUT, self.read.read_exact(bytes)).await.map_err(|_| ConnectionError::TimedOut)??;
        Ok(())
    }

    /// Reads a piece to memory that is only held while it is read, checked and written.
    async fn take_piece(&mut self, header: Header) -> Result<(), ConnectionError> {
        let (node, peer) = (self.node, self.peer);
        let head = self.piece_head(header).await?;
        let length = header.piece_length(&head)?;
        let digest = self.digest(head.blob)?;
        let answers = self.asked.answers(digest, head.piece);
        let Some(blob) = node.expecting(peer, &digest, head.piece) else {
            if answers {
                return self.skip(length).await;
            }
            // What was asked for would not come either, and only its time-out would tell.
            node.metrics.bad_pieces.inc();
            node.drive(Event::Bad { peer, digest, piece: head.piece });
            return Err(ConnectionError::Unasked(head.piece.0, digest));
        };
        let bytes = if header.is_packed() {
            let range = blob.layout.range(head.piece);
            self.packed_piece(length, (range.end - range.start) as usize).await?
        } else {
            let mut buffer = node.buffers.take(length).await;
            self.read_exact(buffer.as_mut()).await?;
            Bytes::from_owner(buffer)
        };
        self.judged().await;
        let node = Arc::clone(node);
        self.judging = Some(self.node.tasks.spawn(async move {
            node.take_piece(peer, digest, head.piece, head.statement, bytes).await;
        }));
        Ok(())
    }

    /// Reads a packed piece, and unpacks it. One that is not what it should be becomes empty, which no piece is: whoever
    /// sent it is to blame.
    async fn packed_piece(&mut self, packed_length: usize, length: usize) -> Result<Bytes, ConnectionError> {
        // Of both at once: nobody holds the one and waits for the other.
        let mut buffer = self.node.buffers.take(length + packed_length).await;
        self.read_exact(&mut buffer.as_mut()[length..]).await?;
        let unpacking = tokio::task::spawn_blocking(move || {
            let (piece, packed) = buffer.as_mut().split_at_mut(length);
            packing::unpack(packed, piece).then(|| Bytes::from_owner(buffer).slice(..length))
        });
        Ok(unpacking.await.ok().flatten().unwrap_or_default())
    }

    async fn piece_head(&mut self, header: Header) -> Result<PieceHead, ConnectionError> {
        let mut bytes = [0; PieceHead::MAX_LENGTH];
        let (first, rest) = bytes.split_at_mut(PieceHead::MIN_LENGTH);
        if header.length() < first.len() {
            return Ok(PieceHead::decode(&first[..header.length()])?);
        }
        self.read_exact(first).await?;
        let mut start = [0; PieceHead::MIN_LENGTH];
        start.copy_from_slice(first);
        let length = PieceHead::length(&start)?;
        if header.length() >= length {
            self.read_exact(&mut rest[..length - PieceHead::MIN_LENGTH]).await?;
        }
        Ok(PieceHead::decode(&bytes[..length.min(header.length())])?)
    }

    async fn skip(&mut self, mut length: usize) -> Result<(), ConnectionError> {
        let mut dropped = [0; SKIP];
        while length > 0 {
            let step = length.min(SKIP);
            self.read_exact(&mut dropped[..step]).await?;
            length -= step;
        }
        Ok(())
    }

    /// Waits until the last piece is judged.
    async fn judged(&mut self) {
        if let Some(judging) = self.judging.take() {
            // Fails only when the process ends.
            let _ = judging.await;
        }
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
            Frame::Free { blob } => {
                let digest = self.digest(blob)?;
                self.node.drive(Event::Free { peer, digest });
            }
            Frame::NotHere { digest, piece } => self.node.drive(Event::NotHere { peer, digest, piece }),
            Frame::Here { port, group } => self.node.introduced(peer, self.remote, port, group),
            Frame::AskHolders { digest } => self.node.asked(peer, digest),
            Frame::Holders(telling) => self.node.told(peer, &telling),
            Frame::Traced { blob, trace, span } => {
                let digest = self.digest(blob)?;
                self.servings.traced(digest, TraceContext::from_ids(trace, span));
            }
            Frame::Piece { .. } | Frame::Packed { .. } | Frame::Ping | Frame::Bye => {}
        }
        Ok(())
    }
}
