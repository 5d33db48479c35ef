//! The bytes of a connection: how they are read, and how they are sent.
//!
//! In plaintext a piece goes from the page cache to the socket by sendfile(2), in chunks between which other
//! connections have their turn. A chunk that is not in the page cache is sent by a thread that may block.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::sendfile;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use rustix::net::{SendFlags, send};
use tokio::io::{BufReader, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::store::StoredBlob;

/// Most bytes that are sent in one go: some 50 us of an executor's thread.
const CHUNK: u64 = 256 << 10;
/// Room for a few control frames; the bytes of a piece pass it by.
const READ_AHEAD: usize = 4 << 10;

pub(in crate::node) type Incoming = BufReader<OwnedReadHalf>;

/// The sending half of a connection.
pub(in crate::node) struct Outgoing(Arc<OwnedWriteHalf>);

/// Takes a connection whose handshake is done.
pub(in crate::node) fn split(stream: TcpStream) -> io::Result<(Incoming, Outgoing)> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    Ok((BufReader::with_capacity(READ_AHEAD, read), Outgoing(Arc::new(write))))
}

impl Outgoing {
    /// Sends all of `bytes`; `more` if others follow at once, so that they may share a packet.
    pub(super) async fn write(&mut self, mut bytes: &[u8], more: bool) -> io::Result<()> {
        let stream: &TcpStream = (*self.0).as_ref();
        let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
        while !bytes.is_empty() {
            let sent = stream.async_io(Interest::WRITABLE, || Ok(send(stream, bytes, flags)?)).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Sends bytes of the blob's file.
    pub(super) async fn send(&mut self, stored: &Arc<StoredBlob>, range: Range<u64>) -> io::Result<()> {
        let mut next = range.start;
        while next < range.end {
            self.0.writable().await?;
            let chunk = next..range.end.min(next + CHUNK);
            let sent = if is_cached(stored, &chunk) {
                send_chunk(&self.0, stored, chunk)
            } else {
                let (write, stored) = (Arc::clone(&self.0), Arc::clone(stored));
                let sending = tokio::task::spawn_blocking(move || send_chunk(&write, &stored, chunk));
                sending.await.map_err(io::Error::other)?
            };
            match sent {
                // The file is shorter than the blob: somebody cut it. What the frame announced cannot be sent.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(sent) => next += sent as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Sends as much of the chunk as the socket takes now. Blocks while it is read from the disk.
fn send_chunk(write: &OwnedWriteHalf, stored: &StoredBlob, chunk: Range<u64>) -> io::Result<usize> {
    let stream: &TcpStream = write.as_ref();
    let (mut offset, count) = (chunk.start, (chunk.end - chunk.start) as usize);
    stream.try_io(Interest::WRITABLE, || {
        loop {
            match sendfile(stream, stored.file(), Some(&mut offset), count) {
                Err(Errno::INTR) => {}
                sent => return Ok(sent?),
            }
        }
    })
}

/// Whether a chunk can be sent without waiting for the disk, judged by its ends: read-ahead and eviction go by far
/// longer runs. When it is wrong one chunk's read holds up a thread of the executor.
fn is_cached(stored: &StoredBlob, chunk: &Range<u64>) -> bool {
    let mut byte = [0];
    [chunk.start, chunk.end - 1].into_iter().all(|at| {
        let mut slices = [io::IoSliceMut::new(&mut byte)];
        preadv2(stored.file(), &mut slices, at, ReadWriteFlags::NOWAIT) == Ok(1)
    })
}
