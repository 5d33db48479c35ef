//! The process that keeps what mounting needs, for the node that starts it.
#![allow(unsafe_code, reason = "descriptors that this process inherited have no owner to ask")]

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;
use lapwing_snapshotter::fuse::HolderProgram;
use lapwing_snapshotter::lazy;
use lapwing_snapshotter::privileged::{self, Mounter};
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;
use rustix::thread::CapabilitySet;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{capabilities, syscalls};
use crate::cli::{HOLD_COMMAND, MOUNTER_COMMAND};
use crate::config::Config;
use crate::memory;

/// What the mounter needs, as far as the node had it:
///
/// * `CAP_SYS_ADMIN`: mounts
/// * `CAP_DAC_OVERRIDE`, `CAP_FOWNER`: what containers wrote, of whatever owner and mode, is counted and deleted; directories of lower layers
///   are looked at
/// * `CAP_CHOWN`: snapshots for user namespaces
/// * `CAP_SYS_PTRACE`: mounts of all namespaces, without which no layer is known to be unused
/// * `CAP_SYS_RESOURCE`, `CAP_IPC_LOCK`: the holder, which it starts, is not chosen when memory runs out, and not paged out
const NEEDED: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::IPC_LOCK);

/// Starts the mounter of this process and has everything that needs rights go to it. A node without any rights has none to keep, and needs no
/// mounter.
pub(super) fn start(config: &Config) -> anyhow::Result<()> {
    if !rustix::thread::capabilities(None)?.effective.intersects(NEEDED) {
        tracing::warn!("started without the capabilities that mounting needs: what needs them will fail");
        return Ok(());
    }
    if config.lazy.enabled {
        lazy::load_filesystems();
    }
    keep_descriptors_from_children()?;
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // The running program, though an upgrade may have put another in its place.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("lapwing").arg(MOUNTER_COMMAND).arg(&config.root).args(config.lazy.holder.then_some(HOLD_COMMAND));
    command.current_dir("/").env_clear().stdin(Stdio::from(theirs));
    let child = command.spawn().context("the process that mounts cannot be started")?;
    drop(command);
    let mounter = Mounter::new(&config.root, ours).context("the process that mounts does not answer")?;
    privileged::use_mounter(mounter);
    tracing::debug!(pid = child.id(), "a process of its own keeps the rights that mounting needs");
    Ok(())
}

/// Those of the service manager would be open in the mounter, too: a connection would live as long as it.
fn keep_descriptors_from_children() -> anyhow::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let Some(number) = number.filter(|number| *number > 2) else { continue };
        // SAFETY: only looked at; what is not open any more, as the listing itself, is an error of fcntl(2).
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Fails when the mounter of this process ends before it is told to stop.
pub(crate) async fn watch(shutdown: CancellationToken) -> anyhow::Result<()> {
    let Some(mounter) = privileged::mounter() else {
        shutdown.cancelled().await;
        return Ok(());
    };
    let (sender, ended) = oneshot::channel::<()>();
    let waiting = move || {
        mounter.wait_for_end();
        drop(sender);
    };
    std::thread::Builder::new().name("mounter-watch".to_owned()).spawn(waiting)?;
    tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        _ = ended => anyhow::bail!(
            "the process that has the rights to mount (lapwing-mounter) ended: nothing can be mounted without it; start the node anew"
        ),
    }
}

/// Whether this process was started as a mounter.
pub(crate) fn is_meant() -> bool {
    std::env::args_os().nth(1).is_some_and(|command| command == MOUNTER_COMMAND)
}

/// The mounter's whole life.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(2);
    let root = PathBuf::from(arguments.next().context("this command is started by the node, for itself")?);
    let holds = arguments.next().is_some_and(|argument| argument == OsStr::new(HOLD_COMMAND));
    let socket: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_type(&socket).context("this command is started by the node, for itself")?;
    // A terminal's signals are for the node; its end is this one's, whatever it is doing.
    let _ = rustix::process::setsid();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"lapwing-mounter")?;
    capabilities::keep(NEEDED)?;
    rustix::thread::set_no_new_privs(true)?;
    // Where that is forbidden the node says so for itself.
    let _ = syscalls::refuse(syscalls::Role::Mounter);
    // No rules of Landlock: under them nothing can be mounted, and no other process looked at.
    memory::unmap_code();
    let holder =
        holds.then(|| HolderProgram { program: "/proc/self/exe".into(), arguments: vec![HOLD_COMMAND.to_owned()] });
    privileged::serve(&root, holder, &socket)?;
    Ok(ExitCode::SUCCESS)
}
