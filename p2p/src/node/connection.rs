//! One TCP connection of the piece wire: handshake, a task that reads, a task that writes.
//!
//! A piece is checked and stored while the next one is read: a connection holds at most two pieces in memory, out of
//! the node's [`buffers`](super::buffers), and none that it sends. Control frames overtake pieces that wait to be sent.

mod asked;
mod channel;
mod greeting;
mod reader;
mod serving;
mod writer;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::digest::Digest;
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::{MAX_BLOBS_PER_CONNECTION, MAX_QUEUED_FRAMES};
use crate::wire::handshake::HandshakeError;
use crate::wire::{BlobNumber, Frame, WireError};

use asked::Asked;
pub(super) use greeting::{Channel, accept, control_congestion, dial};
use reader::Reader;
use serving::Servings;
use writer::Writer;

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
    #[error("TLS: {0}; set peer.insecure alike on all nodes")]
    Tls(io::Error),
    #[error("TLS: {0}")]
    Nameless(#[from] rustls::Error),
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
    #[error("it sent piece {0} of {1}, which nobody had asked for")]
    Unasked(u32, Digest),
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
    /// Whether the other side takes contexts of traces.
    pub(super) takes_traces: bool,
    frames: mpsc::Sender<Frame>,
    uploads: mpsc::UnboundedSender<Upload>,
    numbers: HashMap<Digest, BlobNumber>,
    asked: Asked,
}

/// The other ends of a link's queues.
pub(super) struct Queues {
    asked: Asked,
    frames: mpsc::Receiver<Frame>,
    /// Bounded by the scheduler's slots.
    uploads: mpsc::UnboundedReceiver<Upload>,
    closing: CancellationToken,
}

impl Link {
    pub(super) fn new(id: u64, initiator: PeerId, takes_traces: bool, closing: CancellationToken) -> (Self, Queues) {
        let (frames, frames_out) = mpsc::channel(MAX_QUEUED_FRAMES);
        let (uploads, uploads_out) = mpsc::unbounded_channel();
        let asked = Asked::default();
        let queues =
            Queues { asked: asked.clone(), frames: frames_out, uploads: uploads_out, closing: closing.clone() };
        (Self { id, initiator, closing, takes_traces, frames, uploads, numbers: HashMap::new(), asked }, queues)
    }

    /// Queues a frame. A peer that does not take its frames is dropped.
    pub(super) fn send(&self, frame: Frame) {
        if self.frames.try_send(frame).is_err() {
            self.closing.cancel();
        }
    }

    /// Queues a request, if that blob was spoken of.
    pub(super) fn request(&self, digest: Digest, piece: PieceIndex, urgent: bool) {
        if let Some(blob) = self.number(&digest) {
            self.asked.note(digest, piece);
            self.send(Frame::Request { blob, piece, urgent });
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

/// Reads and writes until either ends, the peer says goodbye or is no member any more, or the node closes the link.
pub(super) async fn run(node: &Arc<Node>, channel: Channel, queues: Queues) -> Result<(), ConnectionError> {
    let Channel { peer, remote, packs, lasts, read, write, .. } = channel;
    let packs = packs && node.config.compression;
    let closing = queues.closing.clone();
    let (servings, asked) = (Servings::of(peer), queues.asked.clone());
    let writing = Writer { node: Arc::clone(node), peer, packs, write, queues, servings: servings.clone() };
    let mut writer = node.tasks.spawn(writing.run());
    let ended = tokio::select! {
        ended = Reader::new(node, peer, remote, read, servings, asked).run() => ended,
        () = closing.cancelled() => Ok(()),
        // Who has another certificate by now opens another connection.
        () = after(lasts) => Ok(()),
        written = &mut writer => return written.unwrap_or(Ok(())),
    };
    closing.cancel();
    // The writer says goodbye and ends by itself, within its time-out.
    drop(writer);
    ended
}

/// Ends after `time`, or never.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
