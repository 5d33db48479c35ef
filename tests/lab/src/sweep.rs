//! Finding and ending every process that runs in a namespace, with what it started, and removing what killed runs left behind.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::wait::{self, Poll};

const END: Duration = Duration::from_secs(20);
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// A process as /proc shows it.
struct Seen {
    parent: u32,
    zombie: bool,
    namespaces: [Option<PathBuf>; 2],
}

/// Namespaces, held open: the kernel gives the number of one that is gone to the next that is made, and that may be another test's.
#[derive(Default)]
pub(crate) struct Namespaces {
    names: BTreeSet<PathBuf>,
    _held: Vec<File>,
}

impl Namespaces {
    /// Adds the network and the mount namespace of a process, if it is still there.
    pub(crate) fn add_those_of(&mut self, pid: u32) {
        for kind in ["net", "mnt"] {
            let Ok(held) = File::open(format!("/proc/{pid}/ns/{kind}")) else { continue };
            self.names.extend(std::fs::read_link(format!("/proc/self/fd/{}", held.as_raw_fd())));
            self._held.push(held);
        }
    }
}

/// The identity of a namespace, as a link under /proc reads: `net:[4026531840]`.
fn namespace_of(pid: u32, kind: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()
}

fn processes() -> BTreeMap<u32, Seen> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name stands in parentheses and may hold any byte; the fields after it are plain.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        let zombie = fields.next()? == "Z";
        let parent = fields.next()?.parse().ok()?;
        Some((pid, Seen { parent, zombie, namespaces: [namespace_of(pid, "net"), namespace_of(pid, "mnt")] }))
    })
    .collect()
}

/// Ends, by SIGKILL, all processes in one of `namespaces` and all their descendants, and removes the control groups these were in.
/// Namespaces of the calling process itself are never taken.
pub(crate) fn end_all_in(namespaces: &Namespaces) -> Result<()> {
    let own = [namespace_of(std::process::id(), "net"), namespace_of(std::process::id(), "mnt")];
    let wanted: BTreeSet<&PathBuf> =
        namespaces.names.iter().filter(|name| !own.iter().flatten().any(|own| own == *name)).collect();
    let mut groups = BTreeSet::new();
    let result = wait::until("processes in a removed namespace to end", END, || {
        let seen = processes();
        let mut victims: BTreeSet<u32> = seen
            .iter()
            .filter(|(_, process)| process.namespaces.iter().flatten().any(|name| wanted.contains(name)))
            .map(|(pid, _)| *pid)
            .collect();
        loop {
            let children: Vec<u32> = seen
                .iter()
                .filter(|(pid, process)| victims.contains(&process.parent) && !victims.contains(*pid))
                .map(|(pid, _)| *pid)
                .collect();
            if children.is_empty() {
                break;
            }
            victims.extend(children);
        }
        victims.retain(|pid| !seen[pid].zombie);
        for pid in &victims {
            groups.extend(control_groups(*pid));
        }
        for pid in victims.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
            // Only a process that has just ended cannot be signalled.
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(if victims.is_empty() { Poll::Ready(()) } else { Poll::NotYet(format!("still there: {victims:?}")) })
    });
    let kept = control_groups(std::process::id());
    for group in groups.difference(&kept) {
        // Not empty when others share it, and then it is theirs.
        let _ = std::fs::remove_dir(group);
    }
    result
}

/// The control group directories of a process, in every hierarchy, without the roots.
fn control_groups(pid: u32) -> BTreeSet<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let relative = path.trim_start_matches('/');
        if relative.is_empty() || relative.starts_with("..") {
            continue;
        }
        let hierarchy = controllers.trim_start_matches("name=");
        for root in [Path::new(CGROUP_ROOT).join(hierarchy), Path::new(CGROUP_ROOT).join("unified"), CGROUP_ROOT.into()]
        {
            found.extend(Some(root.join(relative)).filter(|dir| dir.is_dir()));
        }
    }
    found
}

/// When a process started, in clock ticks since boot: with the pid it names a process for good.
pub(crate) fn started_at(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..].split_whitespace().nth(19)?.parse().ok()
}

/// Removes a named network namespace together with everything that runs in it or in the mount namespaces of those processes.
pub(crate) fn remove_namespace(name: &str) -> Result<()> {
    let file = Path::new("/run/netns").join(name);
    if !file.exists() {
        return Ok(());
    }
    let pids = crate::check(std::process::Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    let mut namespaces = Namespaces::default();
    for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        namespaces.add_those_of(pid);
    }
    end_all_in(&namespaces)?;
    crate::check(std::process::Command::new("ip").args(["netns", "delete", name]))
        .map(drop)
        .with_context(|| format!("removing the namespace {name}"))
}
