//! Mounts of all mount namespaces: containers have theirs, in which what they run on stays when it is detached everywhere else.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use super::{Mount, parse};

/// The mounts of every namespace that a process is in, as far as `/proc` shows them. Processes may come and go meanwhile.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub(crate) fn mounts_of_all() -> io::Result<Vec<Mount>> {
    let (mut seen, mut found) = (HashSet::<PathBuf>::new(), Vec::new());
    for process in std::fs::read_dir("/proc")? {
        let process = process?.path();
        // Not a process, or one that has ended.
        let Ok(namespace) = std::fs::read_link(process.join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        if let Ok(table) = std::fs::read(process.join("mountinfo")) {
            found.extend(parse(&table));
            seen.insert(namespace);
        }
    }
    Ok(found)
}
