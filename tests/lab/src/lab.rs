//! One test's names and files.

use crate::network::{Mbit, Network};
use crate::sweep;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

/// All network namespaces of laboratories begin like this; then come pid and start time of the process, and a number.
const PREFIX: &str = "lapwing-lab-";
static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEPT: Once = Once::new();

/// A laboratory: the names and the directory that one test uses. Removed when the last thing made in it is dropped.
#[derive(Clone)]
pub struct Lab(pub(crate) Arc<LabInner>);

pub(crate) struct LabInner {
    pub(crate) prefix: String,
    pub(crate) dir: PathBuf,
}

impl Lab {
    /// An empty laboratory for the test `name`. The first one in a process removes what dead runs left on the machine.
    pub fn new(name: &str) -> Result<Self> {
        SWEPT.call_once(sweep_dead_runs);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}-{number}", own_prefix());
        let dir = lab_root().join(format!("{prefix}-{name}"));
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("cannot make {}; set LAPWING_LAB_DIR to a directory on a disk", dir.display()))?;
        Ok(Self(Arc::new(LabInner { prefix, dir })))
    }

    /// A directory on a disk filesystem for the test's own files.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A network, without hosts so far.
    pub fn network(&self) -> Result<Network> {
        Network::new(self)
    }

    /// A network whose hosts are limited to `rate` unless they say otherwise.
    pub fn limited_network(&self, rate: Mbit) -> Result<Network> {
        Network::new(self).map(|network| network.with_default_rate(rate))
    }
}

impl Drop for LabInner {
    fn drop(&mut self) {
        if std::env::var_os("LAPWING_LAB_KEEP").is_some() {
            eprintln!("kept {}", self.dir.display());
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

fn lab_root() -> PathBuf {
    std::env::var_os("LAPWING_LAB_DIR").map_or_else(|| PathBuf::from("/var/tmp/lapwing-lab"), PathBuf::from)
}

fn own_prefix() -> String {
    let pid = std::process::id();
    format!("{PREFIX}{pid}-{:x}", sweep::started_at(pid).unwrap_or(0))
}

/// Why the laboratory's directory will not do, if so.
pub(crate) fn disk_missing() -> Option<String> {
    const TMPFS: u32 = 0x0102_1994;
    const OVERLAY: u32 = 0x794c_7630;
    let root = lab_root();
    std::fs::create_dir_all(&root).ok();
    match rustix::fs::statfs(&root).map(|fs| u32::try_from(fs.f_type)) {
        Ok(Ok(TMPFS | OVERLAY)) => {
            Some(format!("needs a disk: {} is on tmpfs or overlayfs; set LAPWING_LAB_DIR", root.display()))
        }
        Ok(_) => None,
        Err(error) => Some(format!("needs a directory: {}: {error}; set LAPWING_LAB_DIR", root.display())),
    }
}

/// Removes namespaces, processes and files of laboratories whose process is gone.
fn sweep_dead_runs() {
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_dead(name)).collect()
    };
    for name in names(Path::new("/run/netns")) {
        eprintln!("removing the namespace {name} of an earlier run");
        if let Err(error) = sweep::remove_namespace(&name) {
            eprintln!("{error:#}");
        }
    }
    for name in names(&lab_root()) {
        if let Err(error) = std::fs::remove_dir_all(lab_root().join(&name)) {
            eprintln!("cannot remove {name} of an earlier run: {error}");
        }
    }
}

/// Whether `name` is a laboratory's and the process that made it has ended.
fn is_dead(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let mut parts = rest.split('-');
    let (Some(pid), Some(start)) = (parts.next().and_then(|pid| pid.parse().ok()), parts.next()) else { return false };
    sweep::started_at(pid).is_none_or(|now| format!("{now:x}") != start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_and_foreign_names_are_not_swept() {
        assert!(!is_dead(&format!("{}-3-w1", own_prefix())));
        assert!(!is_dead("lapwing"));
        assert!(!is_dead("lapwing-lab-x-1-2"));
    }

    #[test]
    fn a_process_that_ended_or_whose_pid_was_given_again_is_dead() {
        assert!(is_dead("lapwing-lab-999999999-1f-0-w1"));
        assert!(is_dead(&format!("{PREFIX}{}-0-0-w1", std::process::id())));
    }
}
