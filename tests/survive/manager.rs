//! A service manager as far as its descriptor store goes: sd_notify's datagrams in, inherited descriptors out.

#![allow(unsafe_code, reason = "a child gets descriptors of given numbers only by dup2 between fork and exec")]

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// No descriptor of a service's is given a number so high.
const ABOVE_INHERITED: i32 = 64;

/// systemd, as the process sees it.
pub(crate) struct ServiceManager {
    path: PathBuf,
    socket: UnixDatagram,
    /// What it keeps, by name.
    pub(crate) stored: BTreeMap<String, OwnedFd>,
}

impl ServiceManager {
    pub(crate) fn new(directory: &Path) -> Self {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { path, socket, stored: BTreeMap::new() }
    }

    /// Takes one message of the service and does what it says.
    pub(crate) fn receive(&mut self) -> String {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let received = rustix::net::recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        let message = String::from_utf8(buffer[..received.bytes].to_vec()).unwrap();
        let name = message.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap().to_owned();
        if message.lines().any(|line| line == "FDSTOREREMOVE=1") {
            self.stored.remove(&name);
        } else if message.lines().any(|line| line == "FDSTORE=1") {
            let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).expect("one descriptor a name");
            // Tests beside this one leave low numbers free at any time, and those are where a service wants what it inherits.
            let high = rustix::io::fcntl_dupfd_cloexec(&descriptor, ABOVE_INHERITED).unwrap();
            self.stored.insert(name, high);
        }
        message
    }

    /// The command of a service, `program` with `arguments` on a host, with what is stored. The host's way in is `enter`: it must keep
    /// descriptors and not fork.
    pub(crate) fn command(&self, mut enter: Command, program: &Path, arguments: &[&std::ffi::OsStr]) -> Command {
        // The process's own number is to be in LISTEN_PID, and only a shell knows it before the program starts.
        enter.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(program).args(arguments);
        enter.env("NOTIFY_SOCKET", &self.path).env("FDSTORE", "8");
        enter.env("LISTEN_FDS", self.stored.len().to_string());
        enter.env("LISTEN_FDNAMES", self.stored.keys().cloned().collect::<Vec<_>>().join(":"));
        let numbers: Vec<i32> = self.stored.values().map(|descriptor| descriptor.as_raw_fd()).collect();
        assert!(numbers.len() < 8 && numbers.iter().all(|number| *number >= ABOVE_INHERITED), "{numbers:?}");
        // SAFETY: dup2 may be called between fork and exec.
        unsafe {
            enter.pre_exec(move || {
                for (target, number) in (3..).zip(&numbers) {
                    if libc::dup2(*number, target) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        enter
    }
}
