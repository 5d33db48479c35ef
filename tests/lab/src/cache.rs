//! The cache outside the tree: what is slow to make and the same for every run.

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Where tools and images are kept: `$LAPWING_CACHE`, else `lapwing` in the user's cache directory.
pub fn cache_dir() -> PathBuf {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    given("LAPWING_CACHE")
        .or_else(|| given("XDG_CACHE_HOME").map(|dir| dir.join("lapwing")))
        .unwrap_or_else(|| given("HOME").unwrap_or_else(|| PathBuf::from("/root")).join(".cache/lapwing"))
}

/// The directory `<cache>/<kind>/<key>`, made by `build` the first time it is asked for.
///
/// `build` fills a directory of its own that is renamed when it is complete, so a killed build is never taken for a finished one; processes
/// that ask at once wait for the first.
pub(crate) fn built_once(kind: &str, key: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let parent = cache_dir().join(kind);
    let done = parent.join(key);
    if done.exists() {
        return Ok(done);
    }
    std::fs::create_dir_all(&parent)
        .with_context(|| format!("cannot make the cache directory {}", parent.display()))?;
    let lock = File::create(parent.join(format!("{key}.lock")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if done.exists() {
        return Ok(done);
    }
    let part = parent.join(format!("{key}.part"));
    if part.exists() {
        std::fs::remove_dir_all(&part)?;
    }
    std::fs::create_dir(&part)?;
    build(&part).with_context(|| format!("building {}", done.display()))?;
    std::fs::rename(&part, &done)?;
    Ok(done)
}
