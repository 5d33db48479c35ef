//! The binary under test, as a process on a host.

use crate::containerd::SnapshotterPlugin;
use crate::host::Host;
use crate::http::Response;
use crate::process::Process;
use crate::wait::{self, Poll};
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const READY: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(20);
const ADMIN_PORT: u16 = 7082;
const MIRROR_PORT: u16 = 7080;
const PEER_PORT: u16 = 7081;
/// Where a tracker of the laboratory listens.
const TRACKER_PORT: u16 = 7070;
/// Where a seed of the laboratory is asked.
const SEED_PORT: u16 = 7083;
const SOCKET: &str = "/run/lapwing/snapshotter.sock";

/// What a node or tracker of the laboratory is told. [`LapwingSettings::toml`] is the one place that knows the configuration's keys.
#[derive(Debug, Clone)]
pub struct LapwingSettings {
    /// `node`, `tracker`, `seed` or `up`.
    pub command: &'static str,
    /// Trackers, as `host:port`.
    pub trackers: Vec<String>,
    /// Registries, as named in image references, that are reached by plain HTTP.
    pub registries: Vec<String>,
    /// Level of the log.
    pub log: String,
    /// Whether nodes speak TLS with each other.
    pub encrypted: bool,
    /// Further TOML lines by table, for example `("lazy", "enabled = false")`.
    pub extra: Vec<(&'static str, String)>,
}

impl LapwingSettings {
    /// A node with the given trackers.
    pub fn node(trackers: &[String]) -> Self {
        Self { trackers: trackers.to_vec(), ..Self::of("node") }
    }

    /// A seed with the given trackers.
    pub fn seed(trackers: &[String]) -> Self {
        Self { trackers: trackers.to_vec(), ..Self::of("seed") }
    }

    /// A tracker.
    pub fn tracker() -> Self {
        Self::of("tracker")
    }

    /// Tracker and node in one process.
    pub fn up() -> Self {
        Self::of("up")
    }

    fn of(command: &'static str) -> Self {
        Self {
            command,
            trackers: Vec::new(),
            registries: Vec::new(),
            log: "info".into(),
            encrypted: false,
            extra: Vec::new(),
        }
    }

    /// The same with a registry by plain HTTP.
    #[must_use]
    pub fn registry(mut self, name: &str) -> Self {
        self.registries.push(name.to_owned());
        self
    }

    /// The same with TLS between nodes.
    #[must_use]
    pub fn encrypted(mut self) -> Self {
        self.encrypted = true;
        self
    }

    /// The same with another line in a table of the configuration.
    #[must_use]
    pub fn with(mut self, table: &'static str, line: &str) -> Self {
        self.extra.push((table, line.to_owned()));
        self
    }

    /// The same with time enough for a layer to be found and mounted on a machine that does much else: for tests of what comes after that. How long it
    /// may take is `resolve_timeout`'s default in the others.
    #[must_use]
    pub fn patient(self) -> Self {
        self.with("snapshotter", "resolve_timeout = \"30s\"")
    }

    /// The configuration file for `host`.
    pub fn toml(&self, host: &Host) -> String {
        let mut tables = vec![
            ("log", format!("level = {:?}", self.log)),
            ("peer", format!("listen = \"{}:{PEER_PORT}\"\ninsecure = {}", host.address(), !self.encrypted)),
            (
                "tracker",
                format!(
                    "addresses = {:?}\nlisten = \"{}:{TRACKER_PORT}\"\ninsecure = true",
                    self.trackers,
                    host.address()
                ),
            ),
        ];
        if self.command == "seed" {
            tables.push(("seed", format!("listen = \"{}:{SEED_PORT}\"", host.address())));
        }
        for (table, line) in &self.extra {
            match tables.iter_mut().find(|(name, _)| name == table) {
                Some((_, lines)) => {
                    let _ = write!(lines, "\n{line}");
                }
                None => tables.push((table, line.clone())),
            }
        }
        let mut text = format!("root = {:?}\n", root(host));
        for (name, lines) in tables {
            let _ = write!(text, "\n[{name}]\n{lines}\n");
        }
        for name in &self.registries {
            let _ = write!(text, "\n[registries.hosts.{name:?}]\nplain_http = true\n");
        }
        text
    }
}

fn root(host: &Host) -> PathBuf {
    host.dir().join("lapwing")
}

/// The binary under test: `$LAPWING_BIN`, else the one that cargo built beside the running program.
pub fn lapwing_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LAPWING_BIN") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?;
    let near = program.ancestors().skip(1).take(2).map(|dir| dir.join("lapwing"));
    near.into_iter()
        .find(|path| path.is_file())
        .context("no lapwing binary beside the tests; build it (cargo build) or set LAPWING_BIN")
}

/// A running `lapwing`.
pub struct Lapwing {
    host: Host,
    settings: LapwingSettings,
    config: PathBuf,
    process: Process,
}

impl Lapwing {
    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Writes the configuration, starts the binary on `host`, and waits until it says that it is healthy.
    pub fn start(host: &Host, settings: LapwingSettings) -> Result<Self> {
        let config = host.dir().join("lapwing.toml");
        std::fs::write(&config, settings.toml(host))?;
        std::fs::create_dir_all(root(host))?;
        let process = launch(host, &settings, &config)?;
        let mut started = Self { host: host.clone(), settings, config, process };
        started.wait_ready()?;
        Ok(started)
    }

    /// Waits until `/healthz` answers 200; an error, with its log, when the process ends before.
    pub fn wait_ready(&mut self) -> Result<()> {
        let (host, process) = (&self.host, &mut self.process);
        wait::until("lapwing to be healthy", READY, || {
            process.expect_running()?;
            Ok(Poll::retry(get(host, "/healthz").and_then(|answer| {
                ensure!(answer.status == 200, "/healthz answered {}: {}", answer.status, answer.text());
                Ok(())
            })))
        })
    }

    /// SIGKILL.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// SIGTERM and the end.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.stop(STOP)?;
        if !status.success() {
            bail!("lapwing ended with {status} on SIGTERM:\n{}", self.process.log_tail());
        }
        Ok(())
    }

    /// Starts it again after [`Lapwing::kill9`] or [`Lapwing::stop`], with the same configuration and files.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill9()?;
        self.process = launch(&self.host, &self.settings, &self.config)?;
        self.wait_ready()
    }

    /// The same by another command, which must end as [`Lapwing::command`]: another program, another environment.
    pub fn restart_by(&mut self, mut command: Command) -> Result<()> {
        self.process.kill9()?;
        self.process = self.host.spawn("lapwing", &mut command)?;
        self.wait_ready()
    }

    /// What starts it, with `program` in the place of the binary under test.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = self.host.command(program);
        command.arg(self.settings.command).arg("--config").arg(&self.config);
        command
    }

    /// The process, to signal it or to see its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The log so far.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.process.log())?).into_owned())
    }

    /// Its root directory.
    pub fn root(&self) -> PathBuf {
        root(&self.host)
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// How other hosts reach the tracker in it.
    pub fn tracker_address(&self) -> String {
        format!("{}:{TRACKER_PORT}", self.host.address())
    }

    /// The URL of the mirror, for clients on the same host.
    pub fn mirror_url() -> String {
        format!("http://127.0.0.1:{MIRROR_PORT}")
    }

    /// What containerd on the same host is told of its snapshotter.
    pub fn snapshotter(host: &Host) -> SnapshotterPlugin {
        SnapshotterPlugin { socket: SOCKET.into(), root: root(host) }
    }

    /// GET from the admin listener.
    pub fn admin(&self, path: &str) -> Result<Response> {
        get(&self.host, path)
    }

    /// GET of a blob from the mirror, as a client on the same host asks for it. The body may be cut short: a mirror that cannot go on
    /// closes the connection.
    pub fn mirror_blob(&self, registry: &str, repository: &str, digest: &str) -> Result<Response> {
        let path = format!("/v2/{repository}/blobs/{digest}?ns={registry}");
        self.host.http_get(SocketAddr::from((Ipv4Addr::LOCALHOST, MIRROR_PORT)), &path)
    }

    /// The directory of a blob in the chunk store.
    pub fn blob_dir(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
        self.root().join("blobs").join(algorithm).join(hex.get(..2).unwrap_or_default()).join(hex)
    }

    /// Bytes of pieces taken in since the process started, from a `peer` or the `origin`.
    pub fn piece_bytes(&self, source: &str) -> Result<u64> {
        self.metric("lapwing_piece_bytes_total", &format!("source=\"{source}\"")).map(|bytes| bytes as u64)
    }

    /// The sum of a metric over its label sets whose text contains `labels`; 0 if it is not there.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let text = self.admin("/metrics")?.text();
        let values = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, set) = series.split_once('{').unwrap_or((series, ""));
            (found == name && set.contains(labels)).then(|| value.parse::<f64>().ok()).flatten()
        });
        Ok(values.sum())
    }
}

fn launch(host: &Host, settings: &LapwingSettings, config: &Path) -> Result<Process> {
    let mut command = host.command(lapwing_binary()?);
    host.spawn("lapwing", command.arg(settings.command).arg("--config").arg(config))
}

fn get(host: &Host, path: &str) -> Result<Response> {
    host.http_get(SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)), path)
}
