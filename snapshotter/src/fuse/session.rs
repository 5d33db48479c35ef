//! The loop: threads read requests from the descriptor; reads that must wait become tasks.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::wire::{self, Dirent, Request};
use super::{DataFile, DataFiles, Purpose, TREE, Terms, Trees, trees};
use crate::limits::{MAX_READ_BYTES, MAX_READS_IN_FLIGHT};

/// Larger than any request: nothing is ever written, and names end at 1024 bytes. The kernel demands 8 KiB.
const REQUEST_BUFFER: usize = 16 << 10;
/// How long reads that were begun may take, where nobody can be asked for them again, before a process that ends fails them.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// The kernel sends INIT while it mounts.
const INIT_PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Whether the kernel's INIT has been answered on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// A new connection, and what for.
    Pending(Purpose),
    /// A connection taken over from a process that is dead, with what that one agreed on: what it had not answered is
    /// asked for again.
    Done(Terms),
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

/// The descriptor, as those see it who answer.
#[derive(Debug)]
struct Connection {
    device: OwnedFd,
    /// Whether the next process answers what fails here.
    left: AtomicBool,
}

struct Shared {
    connection: Arc<Connection>,
    terms: Terms,
    stop: OwnedFd,
    files: Arc<dyn DataFiles>,
    runtime: Handle,
    in_flight: Arc<Semaphore>,
    lengths: Lengths,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Session {
    /// Serves `device`, which is mounted, until [`Session::stop`] or until the mount and everything that uses it is gone.
    /// Reads that must wait run on `runtime`.
    ///
    /// # Errors
    ///
    /// When the kernel does not begin a new connection, or threads or descriptors run out.
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
        let connection = Arc::new(Connection { device, left: AtomicBool::new(false) });
        let terms = match handshake {
            Handshake::Pending(purpose) => negotiate(&connection, purpose)?,
            Handshake::Done(terms) => {
                ask_again(&connection)?;
                terms
            }
        };
        let shared = Arc::new(Shared { connection, terms, stop, files, runtime, in_flight, lengths });
        let count = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        let mut session = Self { shared: shared.clone(), threads: Vec::new() };
        for number in 0..count {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("fuse-{number}")).spawn(move || shared.serve());
            session.threads.push(thread?);
        }
        Ok(session)
    }

    /// What was agreed on with the kernel.
    pub fn terms(&self) -> Terms {
        self.shared.terms
    }

    /// Leaves the connection to the next process: what is not answered by now, or fails from now on, because this process
    /// is ending, stays without an answer until that one asks for it again.
    ///
    /// Where the kernel cannot ask again (before 6.9), what was taken is answered by this process, for as long as it may take
    /// to end.
    pub fn leave(self) {
        let in_flight = Arc::clone(&self.shared.in_flight);
        let resends = self.shared.terms.resends();
        self.shared.connection.left.store(resends, Ordering::Release);
        self.stop();
        let began = Instant::now();
        while !resends && in_flight.available_permits() < MAX_READS_IN_FLIGHT && began.elapsed() < LAST_ANSWERS {
            std::thread::sleep(LAST_ANSWERS / 100);
        }
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
            match rustix::io::read(&self.connection.device, &mut buffer) {
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
        let mut fds = [PollFd::new(&self.connection.device, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
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
        let reply = Reply::to(&self.connection, request.unique);
        let answer = match (request.opcode, self.trees_of(request.nodeid)) {
            (wire::READ, trees) => return self.read(&request, trees, reply),
            (opcode, Some(trees)) => trees::answer(trees, self.terms, opcode, &request),
            (opcode, None) => self.answer(opcode, &request),
        };
        match answer {
            Ok(body) => reply.send(&body),
            Err(errno) => reply.fail(errno),
        }
    }

    /// The trees, for a number of theirs.
    fn trees_of(&self, nodeid: u64) -> Option<&dyn Trees> {
        self.files.trees().filter(|_| nodeid & TREE != 0)
    }

    /// Everything that needs no waiting, but for what is in a tree.
    fn answer(&self, opcode: u32, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
        match opcode {
            wire::LOOKUP => {
                let name = request.name().filter(|_| request.nodeid == wire::ROOT).ok_or(Errno::NOENT)?;
                match (self.files.lookup(name), self.files.trees()) {
                    (Some(file), _) => Ok(wire::entry_out(file)),
                    (None, Some(trees)) => Ok(wire::node_out(Some(&trees.root(name)?))),
                    (None, None) => Err(Errno::NOENT),
                }
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
            wire::READDIR => self.list(request, false),
            wire::READDIRPLUS => self.list(request, true),
            // NOSYS would do for trees too.
            wire::GETXATTR => Err(Errno::NODATA),
            wire::LISTXATTR => {
                let (limit, _) = request.attribute().ok_or(Errno::INVAL)?;
                wire::attribute_out(limit, Vec::new()).ok_or(Errno::RANGE)
            }
            wire::STATFS => Ok(wire::statfs_out().to_vec()),
            wire::RELEASE | wire::RELEASEDIR | wire::FLUSH | wire::DESTROY => Ok(Vec::new()),
            _ => Err(Errno::NOSYS),
        }
    }

    fn file(&self, nodeid: u64) -> Result<DataFile, Errno> {
        self.files.get(nodeid).ok_or(Errno::STALE)
    }

    fn list(&self, request: &Request<'_>, plus: bool) -> Result<Vec<u8>, Errno> {
        let (offset, size) = request.extent().ok_or(Errno::INVAL)?;
        let limit = size.min(MAX_READ_BYTES) as usize;
        let directories = [b".".to_vec(), b"..".to_vec()].into_iter().map(|name| (name, wire::ROOT, 4));
        let files = self.files.list().into_iter().map(|(name, file)| (name, file.nodeid, 8));
        let mut out = Vec::new();
        for (next, (name, ino, kind)) in (1..).zip(directories.chain(files)).skip(offset as usize) {
            let entry = Dirent { name: &name, ino, next, kind };
            // Without attributes all the same: they are asked for where they are wanted.
            let fits = if plus { entry.push_plus(&mut out, limit, None) } else { entry.push(&mut out, limit) };
            if !fits {
                break;
            }
        }
        Ok(out)
    }

    fn read(&self, request: &Request<'_>, trees: Option<&dyn Trees>, reply: Reply) {
        let id = request.nodeid;
        let size = match trees {
            Some(trees) => trees.node(id).map(|node| node.size),
            None => self.file(id).map(|file| file.size),
        };
        let (size, (offset, length)) = match (size, request.extent()) {
            (Ok(size), Some(extent)) => (size, extent),
            (Err(errno), _) => return reply.fail(errno),
            (_, None) => return reply.fail(Errno::INVAL),
        };
        let end = size.min(offset.saturating_add(u64::from(length.min(MAX_READ_BYTES))));
        if offset >= end {
            return reply.send(&[]);
        }
        let (range, lengths) = (offset..end, self.lengths);
        let cached = match trees {
            Some(trees) => trees.read_cached(id, range.clone()),
            None => self.files.read_cached(id, range.clone()),
        };
        if let Some(bytes) = cached {
            return reply.send_data(&bytes, end - offset, lengths);
        }
        let read = match trees {
            Some(trees) => trees.read(id, range),
            None => self.files.read(id, range),
        };
        let in_flight = self.in_flight.clone();
        self.runtime.spawn(async move {
            let _permit = in_flight.acquire_owned().await;
            match read.await {
                Ok(bytes) => reply.send_data(&bytes, end - offset, lengths),
                Err(errno) => reply.fail(errno),
            }
        });
    }
}

/// Answers the kernel's INIT, the first request of a connection.
fn negotiate(connection: &Arc<Connection>, purpose: Purpose) -> io::Result<Terms> {
    let mut buffer = vec![0; REQUEST_BUFFER];
    let mut fds = [PollFd::new(&connection.device, PollFlags::IN)];
    if rustix::event::poll(&mut fds, Some(&INIT_PATIENCE))? == 0 {
        return Err(io::Error::other("the kernel does not begin the FUSE connection: is it mounted?"));
    }
    let length = rustix::io::read(&connection.device, &mut buffer)?;
    let request = Request::parse(&buffer[..length]).filter(|request| request.opcode == wire::INIT);
    let request = request.ok_or_else(|| io::Error::other("the kernel does not begin the FUSE connection with INIT"))?;
    let reply = Reply::to(connection, request.unique);
    let Some((answer, terms)) = wire::init_out(request.body, purpose) else {
        reply.fail(Errno::PROTO);
        return Err(io::Error::other("the kernel speaks another FUSE protocol than version 7"));
    };
    reply.send(&answer);
    Ok(terms)
}

/// Has the kernel send again what a former process had taken and not answered.
fn ask_again(connection: &Connection) -> io::Result<()> {
    match rustix::io::write(&connection.device, &wire::resend()) {
        Ok(_) => Ok(()),
        // Linux before 6.9; those mount no EROFS over files either.
        Err(Errno::INVAL) => {
            tracing::error!(
                "this kernel does not send again what the former process left unanswered: processes that wait for it can only be killed"
            );
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The duty to answer one request: dropped without an answer, it answers EIO, unless the connection was left to the next
/// process.
struct Reply {
    connection: Arc<Connection>,
    unique: u64,
    answered: bool,
}

impl Reply {
    fn to(connection: &Arc<Connection>, unique: u64) -> Self {
        Self { connection: connection.clone(), unique, answered: false }
    }

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
        if errno != 0 && self.connection.left.load(Ordering::Acquire) {
            return;
        }
        let header = wire::out_header(body.len(), errno, self.unique);
        match rustix::io::writev(&self.connection.device, &[IoSlice::new(&header), IoSlice::new(body)]) {
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
