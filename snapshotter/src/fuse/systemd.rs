//! systemd's descriptor store (`FileDescriptorStoreMax=`): the service manager keeps descriptors while the service is
//! restarted, and passes them to the next process (sd_notify(3), sd_pid_notify_with_fds(3), sd_listen_fds(3)).
//!
//! A connection is two descriptors, `lapwing-fuse-<n>` and `lapwing-record-<n>`, `<n>` being the minor device number of
//! its mount. `FDPOLL=0`: otherwise PID 1 would wake at every request to the connection.

#![allow(unsafe_code, reason = "descriptors that are inherited by number have no safe constructor")]

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
const CONNECTION: &str = "lapwing-fuse-";
const RECORD: &str = "lapwing-record-";

/// Connections by the number of their mount: descriptor and record.
pub(super) type Stored = BTreeMap<String, (OwnedFd, OwnedFd)>;

/// Whether the service manager says that it keeps descriptors (`$FDSTORE`, systemd 254 and later).
pub(super) fn keeps_descriptors() -> bool {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    std::env::var_os("NOTIFY_SOCKET").is_some() && number("FDSTORE").is_some_and(|most| most >= 2)
}

/// The connections that the service manager passed to this process; at the first call only.
pub(super) fn passed() -> Stored {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| std::env::var(name).unwrap_or_default();
    if variable("LISTEN_PID") != std::process::id().to_string() || TAKEN.swap(true, Ordering::AcqRel) {
        return Stored::new();
    }
    let count: RawFd = variable("LISTEN_FDS").parse().unwrap_or(0);
    let names = variable("LISTEN_FDNAMES");
    let named: Vec<(String, OwnedFd)> = names
        .split(':')
        .zip(FIRST..FIRST.saturating_add(count))
        .filter(|(name, _)| name.starts_with("lapwing-"))
        .filter_map(|(name, number)| Some((name.to_owned(), take(number)?)))
        .collect();
    paired(named)
}

/// The descriptor with this number, if it is open; its children do not inherit it.
fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only looked at; what is not open is an error of fcntl(2).
    let there = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(there, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, it was passed to this process for this purpose (LISTEN_PID), and `passed` takes each number
    // once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

fn paired(named: Vec<(String, OwnedFd)>) -> Stored {
    let (mut connections, mut records) = (BTreeMap::new(), BTreeMap::new());
    for (name, descriptor) in named {
        if let Some(number) = name.strip_prefix(CONNECTION) {
            connections.insert(number.to_owned(), descriptor);
        } else if let Some(number) = name.strip_prefix(RECORD) {
            records.insert(number.to_owned(), descriptor);
        }
    }
    let pairs = connections.into_iter().map(|(number, connection)| {
        let record = records.remove(&number);
        (number, connection, record)
    });
    pairs.filter_map(|(number, connection, record)| Some((number, (connection, record?)))).collect()
}

/// Has the service manager keep a connection; one that it has already is not kept twice.
pub(super) fn store(number: &str, device: BorrowedFd<'_>, record: BorrowedFd<'_>) -> io::Result<()> {
    for (name, descriptor) in [(CONNECTION, device), (RECORD, record)] {
        notify(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}{number}"), &[descriptor])?;
    }
    Ok(())
}

/// Has it forget one.
pub(super) fn forget(number: &str) -> io::Result<()> {
    for name in [CONNECTION, RECORD] {
        notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}{number}"), &[])?;
    }
    Ok(())
}

fn notify(message: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let path = std::env::var_os("NOTIFY_SOCKET").ok_or(io::ErrorKind::NotFound)?;
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connection_with_its_record_counts() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let names = ["lapwing-fuse-7", "lapwing-record-8", "lapwing-record-9", "lapwing-fuse-9", "lapwing-other"];
        let found = paired(names.into_iter().map(|name| (name.to_owned(), open())).collect());
        assert_eq!(found.into_keys().collect::<Vec<_>>(), ["9"]);
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_not_taken() {
        assert!(take(1_000_000).is_none());
    }
}
