//! What a test needs of the machine, and skipping by name where it is missing.

use crate::{lab, tools};
use std::io::Write;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, Signal};

/// Something that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root, for namespaces, mounts and containers.
    Root,
    /// FUSE: `/dev/fuse`.
    Fuse,
    /// EROFS mounts from plain files: a kernel of 6.12 or newer with EROFS.
    Erofs,
    /// A real disk filesystem for the laboratory's files; overlayfs and EROFS cannot stand on tmpfs or overlayfs.
    Disk,
    /// containerd 2.x, ctr, nerdctl and crictl (built by `contrib/setup/tools.sh`, which needs Go).
    Tools,
    /// containerd 1.7, its runc shim and ctr (built by `contrib/setup/module.sh`, which needs Go).
    Containerd17,
    /// A dockerd that keeps images in containerd (built by `contrib/setup/module.sh`, which needs Go).
    Dockerd,
    /// What writes SOCI's tables (built by `contrib/setup/module.sh`, which needs Go, a C compiler and zlib's headers).
    Soci,
    /// An S3-compatible server (built by `contrib/setup/s3.sh`, which needs Go).
    S3,
    /// A kernel that leaves core dumps of processes that crash. Lifts this process's limit of their size.
    CoreDumps,
    /// A program on the PATH.
    Program(&'static str),
}

impl Need {
    /// For lazy pulls by containerd from the laboratory's registry.
    pub const LAZY_PULLS: [Self; 7] = [
        Self::Root,
        Self::Disk,
        Self::Fuse,
        Self::Erofs,
        Self::Tools,
        Self::Program("docker-registry"),
        Self::Program("skopeo"),
    ];

    /// For containers that run on what was pulled so, on links of a given rate.
    pub const LAZY_STARTS: [Self; 9] = [
        Self::Root,
        Self::Disk,
        Self::Fuse,
        Self::Erofs,
        Self::Tools,
        Self::Program("docker-registry"),
        Self::Program("skopeo"),
        Self::Program("runc"),
        Self::Program("tc"),
    ];

    /// Why the need is not met, if it is not.
    fn missing(self) -> Option<String> {
        let filesystems = || std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        match self {
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "needs root".into()),
            Self::Fuse => (!Path::new("/dev/fuse").exists()).then(|| "needs FUSE: there is no /dev/fuse".into()),
            Self::Erofs if kernel() < (6, 12) => {
                Some("needs EROFS mounts from files: the kernel is older than 6.12".into())
            }
            Self::Erofs => {
                if !filesystems().contains("erofs") {
                    let _ = std::process::Command::new("modprobe").arg("erofs").status();
                }
                (!filesystems().contains("erofs")).then(|| "needs EROFS: the kernel has none".into())
            }
            Self::Disk => lab::disk_missing(),
            Self::Tools => tools::tools_dir().err().map(|error| format!("needs containerd 2.x: {error:#}")),
            Self::Containerd17 => {
                tools::containerd17_dir().err().map(|error| format!("needs containerd 1.7: {error:#}"))
            }
            Self::Dockerd => tools::dockerd_dir().err().map(|error| format!("needs a newer dockerd: {error:#}")),
            Self::Soci => tools::soci_ztoc().err().map(|error| format!("needs SOCI's library: {error:#}")),
            Self::S3 => tools::s3_dir().err().map(|error| format!("needs an S3-compatible server: {error:#}")),
            Self::CoreDumps => match dumps_core() {
                Ok(true) => None,
                Ok(false) => Some("needs core dumps: this kernel leaves none".into()),
                Err(error) => Some(format!("needs core dumps: {error}")),
            },
            Self::Program(name) => tools::on_path(name)
                .is_none()
                .then(|| format!("needs the program '{name}' (contrib/setup/packages.sh installs it)")),
        }
    }
}

fn dumps_core() -> std::io::Result<bool> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: None, maximum: None })?;
    let aside = std::env::temp_dir().join(format!("lapwing-core-{}", std::process::id()));
    std::fs::create_dir_all(&aside)?;
    let mut process = std::process::Command::new("sleep").arg("60").current_dir(&aside).spawn()?;
    rustix::process::kill_process(Pid::from_child(&process), Signal::ABORT)?;
    let status = process.wait();
    std::fs::remove_dir_all(&aside)?;
    Ok(status?.core_dumped())
}

fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What is missing of `needs`, and why, in words.
pub fn missing(needs: &[Need]) -> Vec<String> {
    needs.iter().filter_map(|need| need.missing()).collect()
}

/// True when everything is there. Otherwise says so past the test runner's capture, as `SKIPPED: <test>: <why>`, and the test should return.
///
/// # Panics
///
/// With `LAPWING_NO_SKIP=1` in the environment, when something is missing.
pub fn require(test: &str, needs: &[Need]) -> bool {
    let missing = missing(needs);
    if missing.is_empty() {
        return true;
    }
    let line = format!("SKIPPED: {test}: {}\n", missing.join("; "));
    assert!(std::env::var_os("LAPWING_NO_SKIP").is_none(), "{line}");
    // Written to the stream itself, not by eprintln!, which the test runner hides for tests that pass. A closed stream is nobody's loss.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("LAPWING_SKIP_LOG")
        && let Ok(mut file) = std::fs::File::options().create(true).append(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
    false
}
