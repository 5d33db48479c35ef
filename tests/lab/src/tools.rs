//! The container runtime tools: containerd 2.x and 1.7, ctr, nerdctl and crictl from the cache.

use crate::process::output;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The directory with containerd 2.x, its runc shim, ctr, nerdctl and crictl, built by `contrib/setup/tools.sh` if they are not there yet.
/// The error tells why they cannot be had.
pub fn tools_dir() -> Result<PathBuf> {
    static FOUND: Found = Found::new();
    once(&FOUND, find)
}

/// The directory with containerd 1.7, its runc shim and ctr, built by `contrib/setup/module.sh` if they are not there yet. The error tells
/// why they cannot be had.
pub(crate) fn containerd17_dir() -> Result<PathBuf> {
    static FOUND: Found = Found::new();
    once(&FOUND, || built_by("contrib/setup/module.sh", &["containerd17"]))
}

/// The directory with a dockerd that keeps images in containerd, likewise.
pub(crate) fn dockerd_dir() -> Result<PathBuf> {
    static FOUND: Found = Found::new();
    once(&FOUND, || built_by("contrib/setup/module.sh", &["dockerd"]))
}

/// `soci-ztoc`, which writes the table that soci-snapshotter's library makes of a layer, likewise.
pub fn soci_ztoc() -> Result<PathBuf> {
    static FOUND: Found = Found::new();
    once(&FOUND, || Ok(built_by("contrib/setup/module.sh", &["soci"])?.join("soci-ztoc")))
}

/// A program of one of the Go modules in `tests/tools`, built by `contrib/setup/module.sh` if it is not there yet.
pub fn module_tool(module: &str, program: &str) -> Result<PathBuf> {
    Ok(built_by("contrib/setup/module.sh", &[module])?.join(program))
}

/// What was found, or why not: once for all that ask.
type Found = OnceLock<Result<PathBuf, String>>;

fn once(found: &Found, find: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    found.get_or_init(|| find().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

/// The directory with the S3-compatible server, built by `contrib/setup/s3.sh` if it is not there yet. The error tells why it cannot be had.
pub(crate) fn s3_dir() -> Result<PathBuf> {
    static FOUND: Found = Found::new();
    once(&FOUND, || built_by("contrib/setup/s3.sh", &[]))
}

fn find() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("LAPWING_TOOLS") {
        return Ok(dir.into());
    }
    built_by("contrib/setup/tools.sh", &[])
}

/// Runs a script that prints the directory of what it has built.
fn built_by(script: &str, args: &[&str]) -> Result<PathBuf> {
    let result = output(Command::new(repository().join(script)).args(args))?;
    if !result.status.success() {
        bail!("{}", String::from_utf8_lossy(&result.stderr).trim());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&result.stdout).trim()))
}

/// The root of the source tree.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where `program` is found on the PATH, with the directories that only root's login shell has.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(program))
        .find(|file| file.is_file())
}
