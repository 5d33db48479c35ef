//! Disk space of a snapshot's own files, as `du` counts it.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::graph::Usage;
use crate::privileged;

/// Unit of `st_blocks` (`stat(2)`).
const BLOCK_BYTES: u64 = 512;

/// Counts the files `root` of a snapshot, which may be of any owner and mode: allocated blocks, hard links once. What vanishes meanwhile is
/// not counted.
pub(crate) fn usage(root: &Path) -> io::Result<Usage> {
    match privileged::mounter() {
        Some(mounter) => mounter.usage(root),
        None => usage_here(root),
    }
}

/// [`usage`] with the rights of this process.
pub(crate) fn usage_here(root: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_owned()];
    count(&mut usage, &mut linked, &fs::symlink_metadata(root)?);
    while let Some(directory) = pending.pop() {
        let Some(entries) = unless_gone(fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let Some(entry) = unless_gone(entry)? else { continue };
            let Some(found) = unless_gone(entry.metadata())? else { continue };
            count(&mut usage, &mut linked, &found);
            if found.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(usage)
}

fn unless_gone<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn count(usage: &mut Usage, linked: &mut HashSet<(u64, u64)>, found: &Metadata) {
    let may_repeat = found.nlink() > 1 && !found.is_dir();
    if may_repeat && !linked.insert((found.dev(), found.ino())) {
        return;
    }
    usage.inodes += 1;
    usage.size_bytes += found.blocks() * BLOCK_BYTES;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_blocks_and_each_inode_once() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, vec![1; 100_000]).unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        let before = usage(root.path()).unwrap();
        assert_eq!(before.inodes, 3);
        assert!(before.size_bytes >= 100_000, "{before:?}");
        fs::hard_link(&file, root.path().join("d/again")).unwrap();
        std::os::unix::fs::symlink("/", root.path().join("link")).unwrap();
        let after = usage(root.path()).unwrap();
        assert_eq!(after.inodes, 4);
        let sparse = fs::File::create(root.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        assert!(usage(root.path()).unwrap().size_bytes < 1 << 20);
    }
}
