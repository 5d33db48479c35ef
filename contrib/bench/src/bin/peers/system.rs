//! The systems: how each is built, started and asked.

use crate::stage::Stage;
use anyhow::{Result, bail, ensure};
use lapwing_lab::wait::{self, Poll};
use lapwing_lab::{Host, Lapwing, LapwingSettings, Process};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const LONGEST: Duration = Duration::from_secs(60);
const SPEGEL_REGISTRY: u16 = 5000;
const SPEGEL_BOOTSTRAP: u16 = 5555;
const SPEGEL_ROUTER: u16 = 5001;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// containerd alone.
    Plain,
    Lapwing,
    Spegel,
}

/// What runs on a worker, or for all.
pub(crate) enum Daemon {
    Lapwing(Box<Lapwing>),
    Foreign(Process),
}

impl Daemon {
    pub(crate) fn pid(&mut self) -> u32 {
        match self {
            Self::Lapwing(lapwing) => lapwing.process().pid(),
            Self::Foreign(process) => process.pid(),
        }
    }

    fn log(&self) -> PathBuf {
        match self {
            Self::Lapwing(lapwing) => lapwing.host().dir().join("lapwing.log"),
            Self::Foreign(process) => process.log().to_owned(),
        }
    }

    /// The end of what it logged.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }
}

impl System {
    pub(crate) const ALL: [Self; 3] = [Self::Plain, Self::Spegel, Self::Lapwing];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Lapwing => "lapwing",
            Self::Spegel => "spegel",
        }
    }

    /// Which version is measured.
    pub(crate) const fn version(self) -> &'static str {
        match self {
            Self::Plain => "containerd 2.x as the tests pin it",
            Self::Lapwing => env!("CARGO_PKG_VERSION"),
            Self::Spegel => "0.7.3",
        }
    }

    /// Builds what is not built yet; an error says why it cannot be measured here.
    pub(crate) fn prepare(self) -> Result<()> {
        match self {
            Self::Plain | Self::Lapwing => Ok(()),
            Self::Spegel => programs("spegel").map(drop),
        }
    }

    /// What containerd on `host` asks before the registry.
    pub(crate) fn mirror(self, host: &Host) -> Option<String> {
        match self {
            Self::Plain => None,
            Self::Lapwing => Some(Lapwing::mirror_url()),
            // It leaves out loopback addresses.
            Self::Spegel => Some(format!("http://{}:{SPEGEL_REGISTRY}", host.address())),
        }
    }

    /// Starts what all workers share.
    pub(crate) fn start_shared(self, stage: &Stage) -> Result<Option<Daemon>> {
        match self {
            Self::Plain | Self::Spegel => Ok(None),
            Self::Lapwing => {
                let tracker = Lapwing::start(&stage.network.host("tracker", None)?, LapwingSettings::tracker())?;
                Ok(Some(Daemon::Lapwing(Box::new(tracker))))
            }
        }
    }

    /// Starts a worker's part, and waits until it answers.
    pub(crate) fn start(self, stage: &Stage, host: &Host) -> Result<Option<Daemon>> {
        match self {
            Self::Plain => Ok(None),
            Self::Lapwing => {
                let Some(Daemon::Lapwing(tracker)) = &stage.shared else { bail!("no tracker") };
                let settings = LapwingSettings::node(&[tracker.tracker_address()])
                    .registry(&stage.registry.name())
                    .with("lazy", "enabled = false")
                    .with("lazy", "build_indexes = false")
                    .with("outage", "max_stale = \"1h\"");
                Ok(Some(Daemon::Lapwing(Box::new(Lapwing::start(host, settings)?))))
            }
            Self::Spegel => spegel(stage, host).map(Some),
        }
    }
}

fn spegel(stage: &Stage, host: &Host) -> Result<Daemon> {
    let bootstrap = stage.workers.first().map_or(host, |first| &first.host).address();
    // As the laboratory sets containerd up.
    let content = host.dir().join("containerd/io.containerd.content.v1.content");
    let mut command = host.command(programs("spegel")?.join("spegel"));
    command
        .arg("registry")
        .args(["--containerd-sock", "/run/containerd/containerd.sock"])
        .args(["--containerd-namespace", "default"])
        .arg("--containerd-content-path")
        .arg(content)
        .args(["--registry-addr", &format!(":{SPEGEL_REGISTRY}")])
        .args(["--router-addr", &format!(":{SPEGEL_ROUTER}")])
        .args(["--bootstrap-kind", "http"])
        .args(["--http-bootstrap-addr", &format!(":{SPEGEL_BOOTSTRAP}")])
        .args(["--http-bootstrap-peer", &format!("http://{bootstrap}:{SPEGEL_BOOTSTRAP}")])
        .args(["--data-dir", &host.dir().join("spegel").display().to_string()]);
    let mut process = host.spawn("spegel", &mut command)?;
    let address = SocketAddr::from((host.address(), SPEGEL_REGISTRY));
    wait::until("Spegel to answer", LONGEST, || {
        process.expect_running()?;
        Ok(Poll::retry(host.http_get(address, "/healthz").map(drop)))
    })?;
    Ok(Daemon::Foreign(process))
}

/// The programs of another system, built once.
fn programs(name: &str) -> Result<PathBuf> {
    let script = Path::new("contrib/bench/peers/build.sh");
    ensure!(script.exists(), "{} is not here; run this in the project's directory", script.display());
    let built = Command::new(script).arg(name).stderr(Stdio::piped()).output()?;
    let told = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "{name} cannot be built here: {}", told.trim());
    Ok(PathBuf::from(String::from_utf8(built.stdout)?.trim()))
}
