//! Sees to it that somebody besides this process has the descriptor of the FUSE connection.
//!
//! [`former`] finds the connection that a former process left; [`Keeping::start`] gives the present one to a holder
//! ([`super::holder`]) and, where there is one, to systemd's descriptor store ([`super::systemd`]). A thread waits for the
//! holder's end, which the daemon survives, and starts another. Either keeper is enough; nothing saves the connection
//! when the daemon and all keepers are gone at one time.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use super::holder::{self, Held};
use super::{Record, RecordError, is_connected, systemd};

/// Pauses between attempts to start a holder.
const PAUSES: [Timespec; 3] = [
    Timespec { tv_sec: 0, tv_nsec: 100_000_000 },
    Timespec { tv_sec: 1, tv_nsec: 0 },
    Timespec { tv_sec: 10, tv_nsec: 0 },
];

/// The program that holds descriptors: it calls [`holder::run`].
#[derive(Debug, Clone)]
pub struct HolderProgram {
    /// The executable file.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// A living connection that a former process served.
#[derive(Debug)]
pub struct Former {
    /// The descriptor.
    pub device: OwnedFd,
    /// What is known of it.
    pub record: Result<Record, RecordError>,
    /// Who had it, for the log.
    pub keeper: &'static str,
}

/// The connection that a former process left, if somebody kept it and something still uses its mount.
pub fn former(root: &Path) -> Option<Former> {
    let mut found = None;
    for (number, (device, record)) in systemd::passed() {
        if is_connected(device.as_fd()) {
            found = Some((device, record, "systemd"));
        } else if let Err(error) = systemd::forget(&number) {
            tracing::debug!(%error, "systemd cannot be told to forget a dead FUSE connection");
        }
    }
    if found.is_none() {
        match holder::ask(root) {
            Ok(Some(Held { device, record, .. })) if is_connected(device.as_fd()) => {
                found = Some((device, record, "the descriptor holder"));
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "what holds the descriptor of the lazy mounts cannot be used"),
        }
    }
    let (device, record, keeper) = found?;
    Some(Former { device, record: Record::from_descriptor(record), keeper })
}

/// The watch over a connection's keepers. Dropping it leaves them as they are.
#[derive(Debug)]
pub struct Keeping {
    by_systemd: bool,
    by_holder: Arc<AtomicBool>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Keeping {
    /// Has the connection kept, by a holder where a program for it is given, and by systemd where it offers that. When it
    /// returns, whoever can keep it does.
    ///
    /// # Errors
    ///
    /// When descriptors or threads run out; a keeper that cannot be had is only logged.
    pub fn start(root: &Path, program: Option<HolderProgram>, device: &OwnedFd, record: &Record) -> io::Result<Self> {
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let by_systemd = store(device, record)?;
        let mut keeping = Self { by_systemd, by_holder: Arc::default(), stop, thread: None };
        let Some(program) = program else { return Ok(keeping) };
        let mut watch = Watch {
            root: root.to_owned(),
            program,
            device: device.try_clone()?,
            connection: *record,
            record: record.to_descriptor()?,
            stop: keeping.stop.try_clone()?,
            is_held: keeping.by_holder.clone(),
            child: None,
        };
        let first = watch.held().inspect_err(|error| tracing::error!(%error, "no descriptor holder can be started"));
        let thread = std::thread::Builder::new().name("fuse-keeping".to_owned());
        keeping.thread = Some(thread.spawn(move || watch.run(first.ok()))?);
        Ok(keeping)
    }

    /// Whether somebody besides this process has the connection, as far as can be told.
    pub fn is_kept(&self) -> bool {
        self.by_systemd || self.by_holder.load(Ordering::Acquire)
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.stop, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the watch over the descriptor holder cannot be told to stop");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the watch over the descriptor holder panicked");
        }
    }
}

/// Gives the connection to systemd, if it takes descriptors; whether it says so.
fn store(device: &OwnedFd, record: &Record) -> io::Result<bool> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Ok(false);
    }
    let number = record.device.1.to_string();
    match systemd::store(&number, device.as_fd(), record.to_descriptor()?.as_fd()) {
        Ok(()) => Ok(systemd::keeps_descriptors()),
        Err(error) => {
            tracing::warn!(%error, "systemd cannot be given the descriptor of the lazy mounts");
            Ok(false)
        }
    }
}

/// The thread that waits for a holder's end.
struct Watch {
    root: PathBuf,
    program: HolderProgram,
    device: OwnedFd,
    connection: Record,
    record: OwnedFd,
    stop: OwnedFd,
    is_held: Arc<AtomicBool>,
    /// The holder, if this process started it.
    child: Option<Child>,
}

impl Watch {
    fn run(&mut self, mut held: Option<Held>) {
        let mut failures = 0;
        loop {
            let stopped = match held.take() {
                Some(held) => self.wait(Some(&held), None),
                None => self.wait(None, Some(&PAUSES[PAUSES.len().min(failures + 1) - 1])),
            };
            if stopped || !is_connected(self.device.as_fd()) {
                return;
            }
            self.is_held.store(false, Ordering::Release);
            if let Some(mut child) = self.child.take() {
                let ended = child.wait();
                tracing::warn!(pid = child.id(), ?ended, "the descriptor holder ended; another one is started");
            } else if failures == 0 {
                tracing::warn!("the descriptor holder ended; another one is started");
            }
            match self.held() {
                Ok(new) => (held, failures) = (Some(new), 0),
                Err(error) => {
                    failures += 1;
                    tracing::error!(%error, "no descriptor holder can be started: lazy mounts would not survive this process");
                }
            }
        }
    }

    /// Waits for the holder's end, or for `pause`; true when told to stop.
    fn wait(&self, held: Option<&Held>, pause: Option<&Timespec>) -> bool {
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        fds.extend(held.map(|held| PollFd::new(&held.alive, PollFlags::IN)));
        loop {
            match rustix::event::poll(&mut fds, pause) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return true,
                Ok(_) => return !fds[0].revents().is_empty(),
            }
        }
    }

    fn held(&mut self) -> io::Result<Held> {
        let held = self.find_or_start();
        self.is_held.store(held.is_ok(), Ordering::Release);
        held
    }

    /// The holder of this very connection that is there, or a new one.
    fn find_or_start(&mut self) -> io::Result<Held> {
        if let Ok(Some(held)) = holder::ask(&self.root)
            && is_connected(held.device.as_fd())
            && Record::from_descriptor(held.record.try_clone()?).is_ok_and(|record| record == self.connection)
        {
            return Ok(held);
        }
        let (device, record) = (self.device.try_clone()?, self.record.try_clone()?);
        let mut started = holder::start(&self.root, &self.program, device, record)?;
        match holder::ask(&self.root) {
            Ok(Some(held)) => {
                tracing::info!(pid = started.pid, "a descriptor holder keeps the lazy mounts while no node runs");
                self.child = started.child;
                Ok(held)
            }
            other => {
                let ended = started.child.as_mut().map(|child| {
                    let _ = child.kill();
                    child.wait()
                });
                Err(other.err().unwrap_or_else(|| io::Error::other(format!("the holder ended at once: {ended:?}"))))
            }
        }
    }
}
