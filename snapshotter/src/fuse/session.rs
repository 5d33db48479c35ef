//! The loop: threads read requests from the descriptor; reads that must wait become tasks.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::wire::{self, Request};
use super::{DataFile, DataFiles};
use crate::limits::{MAX_READ_BYTES, MAX_READS_IN_FLIGHT};

/// Larger than any request: nothing is ever written, and names end at 1024 bytes. The kernel demands 8 KiB.
const REQUEST_BUFFER: usize = 16 << 10;

/// Whether the kernel's INIT has been answered on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// A new connection.
    Pending,
    /// A connection taken over from a process that is dead: what it had not answered is asked for again.
    Done,
}

/// What becomes of a read that [`DataFiles`] answers with fewer bytes than asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// The reader gets EIO.
    Exact,
    /// The reader gets the short answer: only to find out what the kernel does with it.
    AsGiven,
}

/// A served FUSE connection.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    device: Arc<OwnedFd>,
    stop: OwnedFd,
    files: Arc<dyn DataFiles>,
    runtime: Handle,
    in_flight: Arc<Semaphore>,
    lengths: Lengths,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Session {
    /// Serves `device` until [`Session::stop`] or until the mount and everything that uses it is gone. Reads that must
    /// wait run on `runtime`.
    ///
    /// # Errors
    ///
    /// When threads or descriptors run out.
    pub fn start(
        device: OwnedFd,
        handshake: Handshake,
        lengths: Lengths,
        files: Arc<dyn DataFiles>,
        runtime: Handle,
    ) -> io::Result<Self> {
        // A descriptor from outside may block; with several readers and a stop signal it must not.
        rustix::fs::fcntl_setfl(&device, rustix::fs::fcntl_getfl(&device)? | rustix::fs::OFlags::NONBLOCK)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let in_flight = Arc::new(Semaphore::new(MAX_READS_IN_FLIGHT));
        let shared = Arc::new(Shared { device: Arc::new(device), stop, files, runtime, in_flight, lengths });
        if handshake == Handshake::Done {
            rustix::io::write(&shared.device, &wire::resend())?;
        }
        let count = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        let mut session = Self { shared: shared.clone(), threads: Vec::new() };
        for number in 0..count {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("fuse-{number}")).spawn(move || shared.serve());
            session.threads.push(thread?);
        }
        Ok(session)
    }

    /// Ends the threads; requests that are with tasks are still answered. Blocks for as long as one request takes that
    /// needs no waiting.
    pub fn stop(mut self) {
        self.signal();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the FUSE loop panicked");
            }
        }
    }

    fn signal(&self) {
        if let Err(error) = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the FUSE loop cannot be told to stop");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.signal();
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut buffer = vec![0; REQUEST_BUFFER];
        loop {
            match rustix::io::read(&self.device, &mut buffer) {
                Ok(length) => self.handle_guarded(&buffer[..length]),
                Err(Errno::AGAIN) => {
                    if !self.wait() {
                        return;
                    }
                }
                // The request was given up between its arrival and our read.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::NODEV) => return,
                Err(error) => {
                    tracing::error!(%error, "the FUSE loop ends: /dev/fuse cannot be read; lazy layers give EIO");
                    return;
                }
            }
        }
    }

    /// Waits for a request; false when told to stop.
    fn wait(&self) -> bool {
        let mut fds = [PollFd::new(&self.device, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => fds[1].revents().is_empty(),
            Err(error) => error == Errno::INTR,
        }
    }

    /// A panic costs one answer (EIO, by the drop of its [`Reply`]), never the thread.
    fn handle_guarded(&self, bytes: &[u8]) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.handle(bytes)));
        if outcome.is_err() {
            tracing::error!("a FUSE request made its handler panic");
        }
    }

    fn handle(&self, bytes: &[u8]) {
        let Some(request) = Request::parse(bytes) else {
            tracing::error!(length = bytes.len(), "a malformed FUSE request");
            return;
        };
        if matches!(request.opcode, wire::FORGET | wire::BATCH_FORGET | wire::INTERRUPT) {
            // Nothing is kept per node. An interrupted read goes on: EROFS would make an error of it.
            return;
        }
        let reply = Reply { device: self.device.clone(), unique: request.unique, answered: false };
        match request.opcode {
            wire::READ => self.read(&request, reply),
            opcode => match self.answer(opcode, &request) {
                Ok(body) => reply.send(&body),
                Err(errno) => reply.fail(errno),
            },
        }
    }

    /// Everything that needs no waiting.
    fn answer(&self, opcode: u32, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
        match opcode {
            wire::INIT => Ok(wire::init_out(request.body).ok_or(Errno::PROTO)?.to_vec()),
            wire::LOOKUP => {
                let name = request.name().filter(|_| request.nodeid == wire::ROOT).ok_or(Errno::NOENT)?;
                Ok(wire::entry_out(self.files.lookup(name).ok_or(Errno::NOENT)?))
            }
            wire::GETATTR if request.nodeid == wire::ROOT => Ok(wire::attr_out(None)),
            wire::GETATTR => Ok(wire::attr_out(Some(self.file(request.nodeid)?))),
            wire::OPEN => {
                const ACCESS_MODE: u32 = 3;
                self.file(request.nodeid)?;
                if request.open_flags().is_none_or(|flags| flags & ACCESS_MODE != 0) {
                    return Err(Errno::ROFS);
                }
                Ok(wire::open_out(true).to_vec())
            }
            wire::OPENDIR => Ok(wire::open_out(false).to_vec()),
            wire::READDIR => self.list(request),
            wire::STATFS => Ok(wire::statfs_out().to_vec()),
            wire::RELEASE | wire::RELEASEDIR | wire::FLUSH | wire::DESTROY => Ok(Vec::new()),
            _ => Err(Errno::NOSYS),
        }
    }

    fn file(&self, nodeid: u64) -> Result<DataFile, Errno> {
        self.files.get(nodeid).ok_or(Errno::STALE)
    }

    fn list(&self, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
        let (offset, size) = request.extent().ok_or(Errno::INVAL)?;
        let limit = size.min(MAX_READ_BYTES) as usize;
        let directories = [b".".to_vec(), b"..".to_vec()].into_iter().map(|name| (name, wire::ROOT, true));
        let files = self.files.list().into_iter().map(|(name, file)| (name, file.nodeid, false));
        let mut out = Vec::new();
        for (next, (name, ino, directory)) in (1..).zip(directories.chain(files)).skip(offset as usize) {
            if !wire::push_dirent(&mut out, limit, &name, ino, next, directory) {
                break;
            }
        }
        Ok(out)
    }

    fn read(&self, request: &Request<'_>, reply: Reply) {
        let (file, (offset, size)) = match (self.files.get(request.nodeid), request.extent()) {
            (Some(file), Some(extent)) => (file, extent),
            (None, _) => return reply.fail(Errno::STALE),
            (_, None) => return reply.fail(Errno::INVAL),
        };
        let end = file.size.min(offset.saturating_add(u64::from(size.min(MAX_READ_BYTES))));
        if offset >= end {
            return reply.send(&[]);
        }
        let (range, lengths) = (offset..end, self.lengths);
        if let Some(bytes) = self.files.read_cached(file.nodeid, range.clone()) {
            return reply.send_data(&bytes, end - offset, lengths);
        }
        let (read, in_flight) = (self.files.read(file.nodeid, range), self.in_flight.clone());
        self.runtime.spawn(async move {
            let _permit = in_flight.acquire_owned().await;
            match read.await {
                Ok(bytes) => reply.send_data(&bytes, end - offset, lengths),
                Err(errno) => reply.fail(errno),
            }
        });
    }
}

/// The duty to answer one request: dropped without an answer, it answers EIO.
struct Reply {
    device: Arc<OwnedFd>,
    unique: u64,
    answered: bool,
}

impl Reply {
    fn send_data(self, bytes: &Bytes, expected: u64, lengths: Lengths) {
        if lengths == Lengths::Exact && bytes.len() as u64 != expected {
            tracing::error!(expected, got = bytes.len(), "a read of a data file came up short");
            return self.fail(Errno::IO);
        }
        self.send(bytes);
    }

    fn send(mut self, body: &[u8]) {
        self.write(0, body);
    }

    fn fail(mut self, errno: Errno) {
        self.write(errno.raw_os_error(), &[]);
    }

    fn write(&mut self, errno: i32, body: &[u8]) {
        self.answered = true;
        let header = wire::out_header(body.len(), errno, self.unique);
        match rustix::io::writev(&self.device, &[IoSlice::new(&header), IoSlice::new(body)]) {
            // NOENT: the asker is gone. NODEV: the mount is.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => tracing::error!(%error, "an answer to the kernel was refused"),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.write(Errno::IO.raw_os_error(), &[]);
        }
    }
}
