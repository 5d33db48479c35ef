//! What a check leaves on the machine: mounts, network namespaces, processes and files of laboratories.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// What laboratories have on this machine at one moment.
#[derive(Debug)]
pub(crate) struct Machine(BTreeSet<String>);

impl Machine {
    /// Looks now.
    pub(crate) fn look() -> Result<Self> {
        let mut found = BTreeSet::new();
        let lab = lab_root();
        let within = |path: &str| Path::new(path).starts_with(&lab) || path.contains("lapwing");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        found.extend(targets.filter(|path| within(path)).map(|path| format!("mount {path}")));
        for (directory, kind) in [(Path::new("/run/netns"), "namespace"), (&lab, "directory")] {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            found.extend(names.filter(|name| name.starts_with("lapwing-lab-")).map(|name| format!("{kind} {name}")));
        }
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Ok(program) = std::fs::read_link(entry.path().join("exe")) else { continue };
            if program
                .file_name()
                .is_some_and(|name| name.to_string_lossy().trim_end_matches(" (deleted)") == "lapwing")
            {
                found.insert(format!("process {} {}", entry.file_name().to_string_lossy(), program.display()));
            }
        }
        Ok(Self(found))
    }

    /// What is there now and was not then.
    pub(crate) fn left_since(&self) -> Result<Vec<String>> {
        Ok(Self::look()?.0.difference(&self.0).cloned().collect())
    }
}

fn lab_root() -> PathBuf {
    std::env::var_os("LAPWING_LAB_DIR").map_or_else(|| PathBuf::from("/var/tmp/lapwing-lab"), PathBuf::from)
}
