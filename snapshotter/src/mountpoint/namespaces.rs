//! Mounts of all mount namespaces: containers have theirs, in which what they run on stays when it is detached everywhere else.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{Mount, parse};
use crate::privileged;

/// The mounts of every namespace that a process is in, and each process's view of them that has another root. Processes may come and go meanwhile.
///
/// # Errors
///
/// When `/proc` cannot be read, or does not show the mounts of all processes.
pub(crate) fn mounts_of_all() -> io::Result<Vec<Mount>> {
    let tables = match privileged::mounter() {
        Some(mounter) => mounter.tables(),
        None => tables_of_all(),
    };
    Ok(parse(&tables?))
}

/// The same as `/proc` has it, one table behind the other: of kinds that layers are mounted as, or that stand on layers.
///
/// # Errors
///
/// As for [`mounts_of_all`].
pub(crate) fn tables_of_all() -> io::Result<Vec<u8>> {
    let (mut seen, mut found) = (HashSet::<(PathBuf, PathBuf)>::new(), Vec::new());
    for process in std::fs::read_dir("/proc")? {
        let process = process?.path();
        let is_process = process.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        if !is_process {
            continue;
        }
        let link = |name: &str| unless_ended(&process, std::fs::read_link(process.join(name)));
        let (Some(namespace), Some(root)) = (link("ns/mnt")?, link("root")?) else { continue };
        if seen.contains(&(namespace.clone(), root.clone())) {
            continue;
        }
        if let Some(table) = unless_ended(&process, std::fs::read(process.join("mountinfo")))? {
            for line in table.split(|byte| *byte == b'\n').filter(|line| is_of_interest(line)) {
                found.extend_from_slice(line);
                found.push(b'\n');
            }
            seen.insert((namespace, root));
        }
    }
    Ok(found)
}

fn is_of_interest(line: &[u8]) -> bool {
    let mut fields = line.split(|byte| *byte == b' ').skip_while(|field| *field != b"-");
    fields.nth(1).is_some_and(|kind| [&b"erofs"[..], b"overlay", crate::fuse::KIND.as_bytes()].contains(&kind))
}

/// None of a process that is gone, or has nothing mounted any more.
fn unless_ended<T>(process: &Path, outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::SRCH | Errno::INVAL) => Ok(None),
            // Also what the kernel says of links of a process that has just been reaped.
            Some(Errno::ACCESS) if !process.exists() => Ok(None),
            // The first process may have more rights than any other; it is where the services are, whose mounts others tell.
            Some(Errno::ACCESS) if process.ends_with("1") => Ok(None),
            Some(Errno::ACCESS) => {
                let text = format!("{}: the node needs CAP_SYS_PTRACE to see what containers use", process.display());
                Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
            }
            _ => Err(error),
        },
    }
}
