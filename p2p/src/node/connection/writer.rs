//! The side of a connection that writes: control frames first, then the pieces whose turn the scheduler says it is.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::time::timeout;

use super::channel::Outgoing;
use super::serving::Servings;
use super::{ConnectionError, FRAME_TIMEOUT, PING_AFTER, Queues, Upload};
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::node::Node;
use crate::node::blob::{Blob, lock};
use crate::statement::PieceStatement;
use crate::store::StoreError;
use crate::swarm::Event;
use crate::verify::piece_hash;
use crate::wire::{Frame, PieceHead, packing};

pub(super) struct Writer {
    pub(super) node: Arc<Node>,
    pub(super) peer: PeerId,
    /// Whether pieces may be sent packed.
    pub(super) packs: bool,
    pub(super) write: Outgoing,
    pub(super) queues: Queues,
    pub(super) servings: Servings,
}

impl Writer {
    pub(super) async fn run(mut self) -> Result<(), ConnectionError> {
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
                    Some(upload) => {
                        let closing = self.queues.closing.clone();
                        tokio::select! {
                            sent = self.upload(&mut out, &upload) => sent?,
                            // In the middle of a piece there is no room for a goodbye.
                            () = closing.cancelled() => return Ok(()),
                        }
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep(PING_AFTER) => {
                    self.servings.idle();
                    Frame::Ping.encode(&mut out);
                    self.write(&out).await?;
                }
            }
        }
    }

    async fn upload(&mut self, out: &mut BytesMut, upload: &Upload) -> Result<(), ConnectionError> {
        let &Upload { digest, number, piece } = upload;
        let offer = match self.node.open_blob(&digest) {
            Some(blob) => vouch(&self.node, &blob, piece).await.map(|statement| (blob, statement)),
            None => None,
        };
        if let Some((blob, statement)) = offer {
            let range = blob.layout.range(piece);
            let length = range.end - range.start;
            let head = PieceHead { blob: number, piece, statement };
            let packed = if self.packs { pack(&blob, piece).await } else { None };
            let sending = async {
                if let Some(packed) = &packed {
                    head.encode_packed(out, packed.len());
                    self.write.write(out, true).await?;
                    return self.write.write(packed, false).await;
                }
                head.encode(out, length as usize);
                self.write.write(out, true).await?;
                self.write.send(&blob.stored, range).await
            };
            timeout(FRAME_TIMEOUT, sending).await.map_err(|_| ConnectionError::TimedOut)??;
            self.node.metrics.served_bytes.inc_by(length);
            self.servings.sent(&digest, length);
        } else {
            Frame::NotHere { digest, piece: Some(piece) }.encode(out);
            self.write(out).await?;
        }
        self.node.drive(Event::Sent { peer: self.peer });
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        let writing = timeout(FRAME_TIMEOUT, self.write.write(bytes, false));
        Ok(writing.await.map_err(|_| ConnectionError::TimedOut)??)
    }
}

/// The piece packed, if pieces of this blob are worth it.
async fn pack(blob: &Arc<Blob>, piece: PieceIndex) -> Option<Vec<u8>> {
    if blob.packable.get() == Some(&false) {
        return None;
    }
    let blob = Arc::clone(blob);
    let packing = tokio::task::spawn_blocking(move || {
        let bytes = blob.stored.read_piece(piece).ok()?;
        let worth_it = blob.packable.get_or_init(|| {
            let beginning = blob.stored.read_at(0..blob.layout.length().min(8)).unwrap_or_default();
            let sample = &bytes[..bytes.len().min(packing::SAMPLE_LENGTH)];
            !packing::is_compressed(&beginning) && packing::is_worth_it(sample)
        });
        if *worth_it { packing::pack(&bytes) } else { None }
    });
    packing.await.ok()?
}

/// Who vouches for a piece: whoever did when it came, or this node, if it has proven the blob. Nobody, if metainfo of
/// others speaks for it, which the receiver has to have, too. None if it is not here, or nobody is left who vouches for
/// it: then it waits for the proof of the whole, since this node signs nothing that it does not know to be true.
///
/// What a former process left is held against its hash once; else the bytes are not checked again: that is for who
/// receives them.
async fn vouch(node: &Arc<Node>, blob: &Arc<Blob>, piece: PieceIndex) -> Option<Option<PieceStatement>> {
    if !blob.stored.has(piece) || !intact(node, blob, piece).await {
        return None;
    }
    if blob.layout.piece_count() == 1 && !blob.digest.is_name() {
        return Some(None);
    }
    let (known, by_metainfo) = {
        let mut trust = lock(&blob.trust);
        let proven = blob.is_verified();
        let known =
            if proven { trust.statement_of_proven(&node.config.identity, piece) } else { trust.statement(piece) };
        (known, trust.needs_no_word())
    };
    match known {
        Some(statement) => Some(Some(statement)),
        None if by_metainfo => Some(None),
        None if blob.is_verified() => state(node, Arc::clone(blob), piece).await.map(Some),
        None => None,
    }
}

/// States the hash of a piece of a proven blob whose hashes are not at hand.
async fn state(node: &Arc<Node>, blob: Arc<Blob>, piece: PieceIndex) -> Option<PieceStatement> {
    let identity = Arc::clone(&node.config.identity);
    let stated = tokio::task::spawn_blocking(move || {
        let hash = piece_hash(&blob.stored.read_piece(piece)?);
        let (digest, length) = (blob.digest, blob.layout.length());
        Ok::<_, StoreError>(PieceStatement::sign(&identity, &digest, length, piece, hash))
    });
    match stated.await.ok()? {
        Ok(statement) => Some(statement),
        Err(error) => {
            tracing::warn!(%error, piece = piece.0, "piece cannot be read for a peer");
            None
        }
    }
}

async fn intact(node: &Arc<Node>, blob: &Arc<Blob>, piece: PieceIndex) -> bool {
    if !lock(&blob.unchecked).get(piece) {
        return true;
    }
    let checking = Arc::clone(blob);
    let error = match tokio::task::spawn_blocking(move || checking.is_intact(piece)).await {
        Ok(Ok(true)) => return true,
        Ok(Ok(false)) => StoreError::Spoilt { digest: blob.digest, piece: piece.0 },
        Ok(Err(error)) => error,
        Err(_) => return false,
    };
    node.disk_failed(blob, piece, error).await;
    false
}
