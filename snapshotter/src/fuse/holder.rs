//! A process that does nothing but keep the descriptor of a FUSE connection, so that the connection outlives the daemon.
//!
//! The daemon starts it ([`start`]) with the descriptor as its standard input, the listening socket as its standard
//! output, and the connection's record as its standard error: what a process can be given without a line of unsafe
//! code. It runs in a session of its own, reads no configuration, keeps no state, and ends when the connection does. It is not
//! replaced together with the daemon, so its protocol must never change under it:
//!
//! ```text
//! <root>/holder/socket (directory 0700; both sides want the other to be the same user)
//! holder -> whoever connects: "LWHOLD" | version (u16) = 1 | zeros (8), with two descriptors: connection, record
//! ```
//!
//! The connection is then left open by both: its end tells the daemon that the holder died. Nothing is ever sent to the
//! holder. There is one daemon to a root (it has the root's lock), and a holder to a connection; a holder whose
//! connection is dead may still be ending while the next one already has the socket's name.

use std::fs::{DirBuilder, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mm::MlockAllFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use super::{HolderProgram, is_connected};
use crate::privileged;

const HELLO: [u8; 16] = *b"LWHOLD\x01\0\0\0\0\0\0\0\0\0";
/// How often a holder looks whether its connection is still there. Waiting for that would wake it at every request.
const LOOK: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };
/// Daemons that are told of a holder's end; one is all there should be.
const MAX_CLIENTS: usize = 8;
/// How long a holder may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The descriptors that a holder gave.
#[derive(Debug)]
pub struct Held {
    /// The FUSE connection.
    pub device: OwnedFd,
    /// Its [`super::Record`].
    pub record: OwnedFd,
    /// Ends when the holder does.
    pub alive: UnixStream,
}

/// A holder that was started.
#[derive(Debug)]
pub struct Started {
    /// Its process.
    pub pid: u32,
    /// The same, if it is this process's child.
    pub child: Option<Child>,
}

/// Asks the holder of `root`; `None` when there is none.
///
/// # Errors
///
/// When what answers is no holder of a version that is known, or the system fails.
pub fn ask(root: &Path) -> io::Result<Option<Held>> {
    let Some(socket) = Place::of(root)? else { return Ok(None) };
    let stream = match UnixStream::connect(socket.path("socket")) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !is_same_user(&stream) {
        return Err(io::Error::other("the descriptor holder's socket belongs to another user"));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut hello = [0; HELLO.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut hello)];
    let received = match rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
        // It was killed a moment ago.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        received => received?,
    };
    let descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        // It was ending.
        return Ok(None);
    }
    match <[OwnedFd; 2]>::try_from(descriptors) {
        Ok([device, record]) if hello == HELLO => Ok(Some(Held { device, record, alive: stream })),
        _ => Err(io::Error::other("the descriptor holder speaks another version of its protocol")),
    }
}

/// Starts a holder for `root`, in place of one that is dead: `program`, which must call [`run`]. The mounter starts its own, whose
/// child that is then.
///
/// # Errors
///
/// When its socket cannot be made or the program not started.
pub fn start(root: &Path, program: &HolderProgram, device: OwnedFd, record: OwnedFd) -> io::Result<Started> {
    DirBuilder::new().recursive(true).mode(0o700).create(root.join("holder"))?;
    let place = Place::of(root)?.ok_or(io::ErrorKind::NotFound)?;
    let _ = std::fs::remove_file(place.path("socket.new"));
    let listener = UnixListener::bind(place.path("socket.new"))?;
    // Before it runs: a holder that nobody can reach would keep readers waiting for good. Who connects now waits for it.
    std::fs::rename(place.path("socket.new"), place.path("socket"))?;
    let listener = OwnedFd::from(listener);
    match privileged::mounter() {
        Some(mounter) => mounter.hold(&device, &listener, &record).map(|pid| Started { pid, child: None }),
        None => {
            let child = spawn(program, device, listener, record)?;
            Ok(Started { pid: child.id(), child: Some(child) })
        }
    }
}

/// Starts the program with the rights of this process.
pub(crate) fn spawn(program: &HolderProgram, device: OwnedFd, listener: OwnedFd, record: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new(&program.program);
    command.args(&program.arguments).arg0("lapwing").current_dir("/").env_clear();
    command.stdin(Stdio::from(device)).stdout(Stdio::from(listener)).stderr(Stdio::from(record));
    command.spawn()
}

/// `<root>/holder`, by a descriptor: a socket's path may have 107 bytes, and the root's path is the operator's.
struct Place(File);

impl Place {
    fn of(root: &Path) -> io::Result<Option<Self>> {
        match File::open(root.join("holder")) {
            Ok(directory) => Ok(Some(Self(directory))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

fn is_same_user(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

/// The holder's whole life, in a process that [`start`] made. Returns when the connection is gone. `give_up_rights` is called once they
/// are of no more use.
///
/// # Errors
///
/// When standard input and output are not what [`start`] gives.
pub fn run(give_up_rights: impl FnOnce()) -> io::Result<()> {
    let device = io::stdin().as_fd().try_clone_to_owned()?;
    let listener = UnixListener::from(io::stdout().as_fd().try_clone_to_owned()?);
    let record = io::stderr().as_fd().try_clone_to_owned()?;
    // Fails for anything but a socket, before anything is changed.
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    protect();
    give_up_rights();
    let mut clients: Vec<UnixStream> = Vec::new();
    while is_connected(device.as_fd()) {
        let mut fds = vec![PollFd::new(&listener, PollFlags::IN)];
        fds.extend(clients.iter().map(|client| PollFd::new(client, PollFlags::IN)));
        match rustix::event::poll(&mut fds, Some(&LOOK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ended = fds[1..].iter().map(|client| !client.revents().is_empty()).collect::<Vec<_>>().into_iter();
        clients.retain(|_| !ended.next().unwrap_or(false));
        if let Ok((client, _)) = listener.accept()
            && is_same_user(&client)
            && hand_over(&client, &device, &record).is_ok()
        {
            clients.truncate(MAX_CLIENTS - 1);
            clients.push(client);
        }
    }
    Ok(())
}

fn hand_over(client: &UnixStream, device: &OwnedFd, record: &OwnedFd) -> io::Result<()> {
    let descriptors = [device.as_fd(), record.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(client, &[IoSlice::new(&HELLO)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// As far as the machine allows: no terminal's or unit's signals, not chosen when memory runs out, never paged out. A
/// holder without all that is still better than none.
fn protect() {
    let _ = rustix::process::setsid();
    let _ = std::fs::write("/proc/self/comm", "lapwing-holder");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    // Of the program's megabytes only what was used: a few pages.
    let _ = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
}
