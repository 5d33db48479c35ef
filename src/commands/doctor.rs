//! `lapwing doctor`: can this machine do what Lapwing needs? Each finding says what to mend.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::Table;
use lapwing_discovery::TrackerSource;
use rustix::fs::StatVfs;
use serde::Serialize;

use super::setup;
use crate::cli::Doctor;
use crate::config::{self, Config};
use crate::confinement;
use crate::membership;

const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Lapwing works, with something missing.
    Warn,
    /// Lapwing does not work until this is mended.
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
    }

    fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, found: found.into(), remedy: remedy.into() }
    }

    fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, found: found.into(), remedy: remedy.into() }
    }
}

pub(crate) fn run(arguments: &Doctor) -> anyhow::Result<ExitCode> {
    let usual = Some(Path::new(setup::LAPWING_CONFIG)).filter(|path| path.exists());
    let config = Config::load(arguments.config.as_deref().or(usual))?;
    let mut findings = vec![user(), kernel(), filesystem("overlay"), filesystem("erofs"), fuse_device()];
    findings.push(fuse_request_timeout());
    findings.push(confinement());
    findings.push(root_directory(&config.root));
    let containerd = containerd(&config);
    let relies_on_it = containerd.verdict == Verdict::Ok;
    findings.push(containerd);
    findings.extend(node(&config, relies_on_it));
    findings.extend(docker(&config));
    findings.extend(certificate(&config));
    findings.extend(trackers(&config.tracker)?);
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &findings)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", table(&findings))?;
    }
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(findings: &[Finding]) -> Table {
    let mut table = super::table::plain(["", "CHECK", "FOUND", "REMEDY"]);
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        table.add_row([verdict, finding.check, &finding.found, &finding.remedy]);
    }
    table
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        Finding::ok("user", "root")
    } else {
        Finding::fail("user", "not root", "run as root: mounting layers needs CAP_SYS_ADMIN")
    }
}

fn kernel() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    match version_of(&release) {
        Some((6, 12, 0 | 1)) => Finding::fail(
            "kernel",
            &release,
            "6.12.0 and 6.12.1 panic on file-backed EROFS mounts: use 6.12.2 or newer, or set lazy.backend = \"fuse\"",
        ),
        Some(version) if version < (6, 12, 0) => Finding::warn(
            "kernel",
            &release,
            "with 6.12.2 or newer the kernel itself shows lazy layers; until then FUSE does, more slowly",
        ),
        Some(_) => Finding::ok("kernel", &release),
        None => Finding::warn(
            "kernel",
            &release,
            "the version was not understood; from 6.12.2 on the kernel itself shows lazy layers",
        ),
    }
}

/// The running kernel's, if it is understood.
pub(super) fn kernel_version() -> Option<(u32, u32, u32)> {
    version_of(&rustix::system::uname().release().to_string_lossy())
}

fn version_of(release: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

fn filesystem(name: &'static str) -> Finding {
    let listed = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if listed.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        Finding::ok(name, "known to the kernel")
    } else if name == "erofs" {
        Finding::warn(name, "not loaded", "modprobe erofs; without it FUSE alone shows lazy layers, more slowly")
    } else {
        Finding::fail(name, "not loaded", format!("modprobe {name}"))
    }
}

fn fuse_device() -> Finding {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::ok("fuse", "/dev/fuse opens"),
        Err(error) => {
            Finding::warn("fuse", format!("/dev/fuse: {error}"), "modprobe fuse; without it layers are pulled whole")
        }
    }
}

/// With a request timeout the kernel aborts the FUSE connection while the daemon is being restarted.
fn fuse_request_timeout() -> Finding {
    let path = "/proc/sys/fs/fuse/default_request_timeout";
    match std::fs::read_to_string(path).map(|text| text.trim().to_owned()) {
        Ok(value) if value != "0" => Finding::warn(
            "fuse timeout",
            format!("fs.fuse.default_request_timeout = {value}"),
            "sysctl fs.fuse.default_request_timeout=0, or lazy mounts break when the daemon is down for that long",
        ),
        _ => Finding::ok("fuse timeout", "none"),
    }
}

/// Without Landlock a daemon that was taken over writes to whatever file is root's.
fn confinement() -> Finding {
    match confinement::landlock_version() {
        version @ 2.. => Finding::ok(
            "confinement",
            format!("Landlock {version}, seccomp: daemons write to their own directories alone"),
        ),
        _ => Finding::warn(
            "confinement",
            "no Landlock, or one before Linux 5.19: daemons have no rights, but write where root may",
            "use a newer kernel, with landlock among its security modules (lsm=), if that matters",
        ),
    }
}

fn root_directory(root: &Path) -> Finding {
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let kind = rustix::fs::statfs(existing).map(|found| found.f_type as u64);
    let free = rustix::fs::statvfs(existing).map(|found: StatVfs| found.f_bavail * found.f_frsize).unwrap_or(0);
    let found = format!("{} ({} GiB free)", root.display(), free >> 30);
    match kind {
        // Magic numbers of linux/magic.h.
        Ok(0x0102_1994) => Finding::fail(
            "root",
            format!("{found} on tmpfs"),
            "EROFS metadata cannot lie on tmpfs: choose a directory on ext4, xfs or btrfs",
        ),
        Ok(0x794c_7630) => {
            Finding::fail("root", format!("{found} on overlayfs"), "choose a directory on ext4, xfs or btrfs")
        }
        Err(error) => Finding::fail("root", format!("{found}: {error}"), "check the configuration key root"),
        Ok(_) if free < 5 << 30 => {
            Finding::warn("root", found, "less than 5 GiB free: set store.quota, or choose a larger filesystem")
        }
        Ok(_) => Finding::ok("root", found),
    }
}

fn containerd(config: &Config) -> Finding {
    let socket = &config.containerd.socket;
    if !socket.exists() {
        return Finding::warn(
            "containerd",
            format!("no {}", socket.display()),
            "start containerd, or ignore this for a tracker; containerd.socket says where it is",
        );
    }
    let found = |what: &str| format!("running, {what}");
    match setup::containerd_is(config) {
        Ok((version, files)) if files.is_empty() => {
            Finding::ok("containerd", found(&format!("{version}, set up for lapwing")))
        }
        Ok((version, files)) => {
            let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            Finding::warn(
                "containerd",
                found(&format!("{version}, not set up for lapwing: {}", files.join(", "))),
                "see `lapwing setup containerd --dry-run`, run it without --dry-run, and restart containerd",
            )
        }
        Err(error) => {
            Finding::warn("containerd", found(&error.to_string()), "see `lapwing setup containerd --dry-run`")
        }
    }
}

/// Only where there is a containerd. `relies_on_it`: whether that is set up for Lapwing.
fn node(config: &Config, relies_on_it: bool) -> Option<Finding> {
    let socket = &config.snapshotter.socket;
    if !config.snapshotter.enabled || !config.containerd.socket.exists() {
        return None;
    }
    let start = "systemctl start lapwing-node";
    Some(match UnixStream::connect(socket) {
        Ok(_) => Finding::ok("node", format!("answers at {}", socket.display())),
        Err(error) if relies_on_it => Finding::fail(
            "node",
            format!("{}: {error}", socket.display()),
            format!(
                "{start}: until then containerd neither pulls nor starts anything with the snapshotter lapwing; see its log if it does not start"
            ),
        ),
        Err(_) => Finding::warn("node", "not running", start),
    })
}

/// Only where there is a dockerd.
fn docker(config: &Config) -> Option<Finding> {
    let path = Path::new(setup::DOCKER_CONFIG);
    if !path.exists() && !Path::new("/usr/bin/dockerd").exists() {
        return None;
    }
    let remedy = "if dockerd is to pull from docker.io through lapwing: `lapwing setup docker`, and reload it";
    Some(match setup::docker_is(config) {
        Ok(true) => Finding::ok("docker", "lapwing is its first mirror"),
        Ok(false) => Finding::warn("docker", format!("lapwing is not the first mirror in {}", path.display()), remedy),
        Err(error) => Finding::warn("docker", error.to_string(), remedy),
    })
}

/// Every tracker that the configuration names, and every name that leads to none.
fn trackers(config: &config::Tracker) -> anyhow::Result<Vec<Finding>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let resolver = config.resolver().map_err(anyhow::Error::msg)?;
    let mut findings = Vec::new();
    for entry in &config.addresses {
        match runtime.block_on(TrackerSource::parse(entry)?.trackers(resolver)) {
            Ok(trackers) => findings.extend(trackers.iter().map(|address| tracker(address))),
            Err(error) => findings.push(Finding::warn(
                "tracker",
                error.to_string(),
                "check tracker.addresses and tracker.resolver; until then blobs come from the registries alone",
            )),
        }
    }
    Ok(findings)
}

/// Of a machine that is told where its certificate is.
fn certificate(config: &Config) -> Option<Finding> {
    if config.identity.directory.as_os_str().is_empty() {
        return None;
    }
    Some(match membership::inspect(config) {
        Ok((member, left)) if !left.is_zero() => {
            Finding::ok("certificate", format!("{member}, good for another {} h", left.as_secs() / 3600))
        }
        Ok((member, _)) => Finding::warn(
            "certificate",
            format!("{member} has run out"),
            "a running node renews it by way of a tracker (identity.issuer there); its log says why it could not; or join anew",
        ),
        Err(error) if config.identity.token_file().is_some() => {
            Finding::warn("certificate", format!("{error:#}"), "the node joins with identity.token_file when it starts")
        }
        Err(error) => Finding::fail("certificate", format!("{error:#}"), "join with a token (lapwing ca join)"),
    })
}

fn tracker(address: &str) -> Finding {
    let dialled = address
        .to_socket_addrs()
        .map_err(|error| error.to_string())
        .and_then(|mut found| found.next().ok_or_else(|| "no address".to_owned()))
        .and_then(|socket: SocketAddr| {
            TcpStream::connect_timeout(&socket, DIAL_TIMEOUT).map_err(|error| error.to_string())
        });
    match dialled {
        Ok(_) => Finding::ok("tracker", format!("{address} accepts connections")),
        Err(error) => Finding::warn(
            "tracker",
            format!("{address}: {error}"),
            "check tracker.addresses and the firewall; until then blobs come from the registries alone",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_kernel_releases() {
        assert_eq!(version_of("6.18.44-fc-v595"), Some((6, 18, 44)));
        assert_eq!(version_of("6.1.0-18-amd64"), Some((6, 1, 0)));
        assert_eq!(version_of("7.0"), Some((7, 0, 0)));
        assert_eq!(version_of("unknown"), None);
    }

    #[test]
    fn a_dead_tracker_is_named_with_a_remedy() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(tracker(&address).verdict, Verdict::Ok);
        drop(listener);
        let finding = tracker(&address);
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.found.contains(&address) && finding.remedy.contains("tracker.addresses"));
    }
}
