//! The bytes of a connection: how they are read, and how they are sent.
//!
//! In plaintext a piece goes from the page cache to the socket by sendfile(2), in chunks between which other
//! connections have their turn. A chunk that is not in the page cache is sent by a thread that may block. TLS takes
//! smaller chunks through memory.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::sendfile;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncWriteExt as _, BufReader, Interest, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

use crate::store::StoredBlob;

/// Most bytes that are sent in one go: some 50 us of an executor's thread.
const CHUNK: u64 = 256 << 10;
/// Bytes read from the file and given to TLS in one go: four records.
const TLS_CHUNK: usize = 64 << 10;
/// Room for a few control frames; the bytes of a piece pass it by.
const READ_AHEAD: usize = 4 << 10;

/// Bytes taken from the socket in one go beneath TLS, which by itself asks for 4 KiB at a time: four to a record.
const ENCRYPTED_AHEAD: usize = 32 << 10;

/// What TLS reads and writes.
pub(super) type Socket = BufReader<TcpStream>;
/// The half that is read.
pub(super) type Incoming = BufReader<Either<OwnedReadHalf, ReadHalf<TlsStream<Socket>>>>;

/// The half that is written.
pub(super) enum Outgoing {
    /// Shared with threads that send.
    Plaintext(Arc<OwnedWriteHalf>),
    Encrypted(WriteHalf<TlsStream<Socket>>),
}

pub(super) fn plaintext(stream: TcpStream) -> (Incoming, Outgoing) {
    let (read, write) = stream.into_split();
    (BufReader::with_capacity(READ_AHEAD, Either::Left(read)), Outgoing::Plaintext(Arc::new(write)))
}

pub(super) fn beneath_tls(stream: TcpStream) -> Socket {
    BufReader::with_capacity(ENCRYPTED_AHEAD, stream)
}

pub(super) fn encrypted(stream: TlsStream<Socket>) -> (Incoming, Outgoing) {
    let (read, write) = tokio::io::split(stream);
    (BufReader::with_capacity(READ_AHEAD, Either::Right(read)), Outgoing::Encrypted(write))
}

impl Outgoing {
    /// Sends all of `bytes`; `more` if others follow at once, so that they may share a packet.
    pub(super) async fn write(&mut self, bytes: &[u8], more: bool) -> io::Result<()> {
        match self {
            Self::Plaintext(write) => write_plaintext((**write).as_ref(), bytes, more).await,
            Self::Encrypted(write) => {
                write.write_all(bytes).await?;
                if more { Ok(()) } else { write.flush().await }
            }
        }
    }

    /// Sends bytes of the blob's file.
    pub(super) async fn send(&mut self, stored: &Arc<StoredBlob>, range: Range<u64>) -> io::Result<()> {
        match self {
            Self::Plaintext(write) => send_plaintext(write, stored, range).await,
            Self::Encrypted(write) => send_encrypted(write, stored, range).await,
        }
    }
}

async fn write_plaintext(stream: &TcpStream, mut bytes: &[u8], more: bool) -> io::Result<()> {
    let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
    while !bytes.is_empty() {
        let sent = stream.async_io(Interest::WRITABLE, || Ok(send(stream, bytes, flags)?)).await?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

async fn send_plaintext(write: &Arc<OwnedWriteHalf>, stored: &Arc<StoredBlob>, range: Range<u64>) -> io::Result<()> {
    let mut next = range.start;
    let mut cached = is_cached(stored, &range);
    while next < range.end {
        let chunk = next..range.end.min(next + CHUNK);
        let sent = if cached {
            send_chunk(write, stored, chunk)
        } else {
            let (write, stored) = (Arc::clone(write), Arc::clone(stored));
            let sending = tokio::task::spawn_blocking(move || send_chunk(&write, &stored, chunk));
            sending.await.map_err(io::Error::other)?
        };
        match sent {
            // The file is shorter than the blob: somebody cut it. What the frame announced cannot be sent.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(sent) => {
                next += sent as u64;
                tokio::task::coop::consume_budget().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                write.writable().await?;
                // That may have taken long.
                cached = is_cached(stored, &(next..range.end));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn send_encrypted(
    write: &mut WriteHalf<TlsStream<Socket>>,
    stored: &Arc<StoredBlob>,
    range: Range<u64>,
) -> io::Result<()> {
    let mut buffer = vec![0; TLS_CHUNK.min((range.end - range.start) as usize)];
    let mut next = range.start;
    while next < range.end {
        let length = buffer.len().min((range.end - next) as usize);
        if read_cached(stored, &mut buffer[..length], next) != length {
            let stored = Arc::clone(stored);
            let reading = tokio::task::spawn_blocking(move || {
                let read = stored.file().read_exact_at(&mut buffer[..length], next);
                read.map(|()| buffer)
            });
            buffer = reading.await.map_err(io::Error::other)??;
        }
        write.write_all(&buffer[..length]).await?;
        next += length as u64;
    }
    write.flush().await
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

/// Whether bytes can be sent without waiting for the disk, judged by their ends: read-ahead and eviction go by runs that
/// are not much shorter than a piece. When it is wrong one chunk's read holds up a thread of the executor.
fn is_cached(stored: &StoredBlob, range: &Range<u64>) -> bool {
    [range.start, range.end - 1].into_iter().all(|at| read_cached(stored, &mut [0], at) == 1)
}

/// Reads what is in the page cache of the beginning of `buffer`, and says how much that is.
fn read_cached(stored: &StoredBlob, buffer: &mut [u8], offset: u64) -> usize {
    let mut slices = [io::IoSliceMut::new(buffer)];
    // Not every filesystem can tell; then nothing counts as cached.
    preadv2(stored.file(), &mut slices, offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
}
