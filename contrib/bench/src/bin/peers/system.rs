//! The systems: how each is built, started and asked.

mod dragonfly;
mod kraken;
mod lapwing;
mod spegel;

use crate::stage::Stage;
use crate::usage;
use crate::work::{Victim, Work};
use anyhow::{Context, Result, bail};
use lapwing_bench::programs;
use lapwing_lab::wait::{self, Poll};
use lapwing_lab::{Host, Lapwing, Process};
use serde_json::Value;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A daemon is given so long until it answers.
const LONGEST: Duration = Duration::from_secs(60);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// containerd alone.
    Plain,
    Lapwing,
    Spegel,
    Dragonfly,
    Kraken,
    Piccolo,
}

/// What runs on a worker, or for all.
pub(crate) enum Daemon {
    Lapwing(Box<Lapwing>),
    Foreign { host: Host, processes: Vec<Process> },
}

impl Daemon {
    /// Where it runs.
    pub(crate) fn host(&self) -> &Host {
        match self {
            Self::Lapwing(lapwing) => lapwing.host(),
            Self::Foreign { host, .. } => host,
        }
    }

    /// All its processes, and what they have started.
    pub(crate) fn pids(&mut self) -> Vec<u32> {
        let started: Vec<u32> = match self {
            Self::Lapwing(lapwing) => vec![lapwing.process().pid()],
            Self::Foreign { processes, .. } => processes.iter().map(Process::pid).collect(),
        };
        started.into_iter().flat_map(usage::tree).collect()
    }

    fn logs(&self) -> Vec<PathBuf> {
        match self {
            Self::Lapwing(lapwing) => vec![lapwing.host().dir().join("lapwing.log")],
            Self::Foreign { processes, .. } => processes.iter().map(|process| process.log().to_owned()).collect(),
        }
    }

    /// The end of what it logged.
    pub(crate) fn last_words(&self) -> String {
        let ends = self.logs().into_iter().map(|log| {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(3)..].join(" | ")
        });
        ends.collect::<Vec<_>>().join(" | ")
    }
}

impl System {
    pub(crate) const ALL: [Self; 6] =
        [Self::Plain, Self::Spegel, Self::Dragonfly, Self::Kraken, Self::Piccolo, Self::Lapwing];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Lapwing => "lapwing",
            Self::Spegel => "spegel",
            Self::Dragonfly => "dragonfly",
            Self::Kraken => "kraken",
            Self::Piccolo => "piccolo",
        }
    }

    /// Which version is measured, as `contrib/bench/peers/build.sh` pins it.
    pub(crate) const fn version(self) -> &'static str {
        match self {
            Self::Plain => "containerd 2.x as the tests pin it",
            Self::Lapwing => env!("CARGO_PKG_VERSION"),
            Self::Spegel => "0.7.3",
            Self::Dragonfly => "2.5.1, client 1.5.10",
            Self::Kraken => "0.1.27",
            Self::Piccolo => "0.0.36",
        }
    }

    /// Builds what is not built yet; an error says why it cannot be measured here.
    pub(crate) fn prepare(self) -> Result<()> {
        match self {
            Self::Plain | Self::Lapwing => Ok(()),
            Self::Spegel | Self::Dragonfly | Self::Kraken => programs(self.name()).map(drop),
            Self::Piccolo => {
                programs(self.name())?;
                bail!("it could not be built where this was written, so that nothing here starts it")
            }
        }
    }

    /// Whether there is something of it for `work` to kill.
    pub(crate) const fn can(self, work: &Work) -> bool {
        match work.victim {
            None => true,
            Some(Victim::Peer) => !matches!(self, Self::Plain),
            Some(Victim::Shared) => matches!(self, Self::Lapwing | Self::Dragonfly | Self::Kraken),
        }
    }

    /// Whether it fetches manifests as OCI describes them; Kraken asks a registry for Docker's alone.
    pub(crate) const fn takes_oci(self) -> bool {
        !matches!(self, Self::Kraken)
    }

    /// Whether it has a command that downloads a file.
    pub(crate) const fn can_download(self) -> bool {
        matches!(self, Self::Plain | Self::Lapwing | Self::Dragonfly)
    }

    /// What containerd on `host` asks before the registry.
    pub(crate) fn mirror(self, host: &Host) -> Option<String> {
        match self {
            Self::Plain | Self::Piccolo => None,
            Self::Lapwing => Some(Lapwing::mirror_url()),
            Self::Spegel => Some(spegel::mirror(host)),
            Self::Dragonfly => Some(dragonfly::mirror()),
            Self::Kraken => Some(kraken::mirror()),
        }
    }

    /// A header that containerd sends along.
    pub(crate) fn header(self, stage: &Stage) -> Option<(String, String)> {
        // What `ns=` names it takes to speak HTTPS.
        matches!(self, Self::Dragonfly).then(|| ("X-Dragonfly-Registry".to_owned(), stage.registry.url()))
    }

    /// What fetches a URL into a file on `host` by way of the system; nothing where there is no such command.
    pub(crate) fn download(self, host: &Host, url: &str, file: &Path) -> Result<Option<Command>> {
        let mut command = match self {
            Self::Plain => {
                let mut command = host.command("curl");
                command.args(["-sf", "-o"]);
                command
            }
            Self::Lapwing => lapwing::download(host)?,
            Self::Dragonfly => dragonfly::download(host)?,
            Self::Spegel | Self::Kraken | Self::Piccolo => return Ok(None),
        };
        command.arg(file).arg(url);
        Ok(Some(command))
    }

    /// Starts what all workers share.
    pub(crate) fn start_shared(self, stage: &Stage) -> Result<Option<Daemon>> {
        match self {
            Self::Plain | Self::Piccolo | Self::Spegel => Ok(None),
            Self::Lapwing => lapwing::tracker(stage).map(Some),
            Self::Dragonfly => dragonfly::shared(stage).map(Some),
            Self::Kraken => kraken::shared(stage).map(Some),
        }
    }

    /// Starts a worker's part, and waits until it answers.
    pub(crate) fn start(self, stage: &Stage, host: &Host) -> Result<Option<Daemon>> {
        match self {
            Self::Plain | Self::Piccolo => Ok(None),
            Self::Lapwing => lapwing::node(stage, host).map(Some),
            Self::Spegel => spegel::node(stage, host).map(Some),
            Self::Dragonfly => dragonfly::node(stage, host).map(Some),
            Self::Kraken => kraken::agent(stage, host).map(Some),
        }
    }
}

/// Starts a daemon that listens at `port`, and waits until it does.
fn start(host: &Host, name: &str, command: &mut Command, port: u16) -> Result<Process> {
    let mut process = host.spawn(name, command)?;
    let address = SocketAddr::from((host.address(), port));
    wait::until(&format!("{name} to listen at port {port}"), LONGEST, || {
        process.expect_running()?;
        let connected = host.within(|| TcpStream::connect(address).context("it does not"));
        Ok(Poll::retry(connected.map(drop)))
    })?;
    Ok(process)
}

/// Writes a configuration for `host`: JSON is YAML.
fn write_config(host: &Host, name: &str, config: &Value) -> Result<PathBuf> {
    let file = host.dir().join(name);
    std::fs::write(&file, serde_json::to_vec_pretty(config)?)?;
    Ok(file)
}
