//! A containerd of its own on a host: root and configuration in the host's directory, sockets and state under the host's `/run`, so that
//! `ctr`, `nerdctl` and `crictl` find it at their defaults.

mod config;
mod cri;

pub use config::{ContainerdOptions, Flavour, RegistryHosts, SnapshotterPlugin};

use crate::host::Host;
use crate::process::{Process, check};
use crate::tools;
use crate::wait::{self, Poll};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const START: Duration = Duration::from_secs(40);
const STOP: Duration = Duration::from_secs(20);
const SOCKET: &str = "/run/containerd/containerd.sock";

/// A running containerd.
pub struct Containerd {
    host: Host,
    options: ContainerdOptions,
    process: Process,
}

impl Containerd {
    /// Starts containerd on `host` and waits until it answers. A snapshotter that it is to use should be running.
    pub fn start(host: &Host, options: ContainerdOptions) -> Result<Self> {
        Self::configure(host, &options)?;
        Self::start_configured(host, options)
    }

    /// Writes the configuration, and gives its path.
    pub fn configure(host: &Host, options: &ContainerdOptions) -> Result<PathBuf> {
        config::write(host, options)?;
        Ok(config::file(host))
    }

    /// Starts containerd with what [`Self::configure`] wrote, and what was done to it since.
    pub fn start_configured(host: &Host, options: ContainerdOptions) -> Result<Self> {
        let process = launch(host, &options)?;
        Ok(Self { host: host.clone(), options, process })
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The process, to signal it or to see its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it, by SIGTERM, and starts it again; containers go on running.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop(STOP)?;
        self.process = launch(&self.host, &self.options)?;
        Ok(())
    }

    /// Its gRPC socket, as the test reaches it.
    pub fn socket(&self) -> PathBuf {
        self.host.path(SOCKET)
    }

    /// The directory with the hosts.toml files, as `--hosts-dir` takes it.
    pub fn hosts_dir(&self) -> PathBuf {
        config::hosts_dir(&self.host)
    }

    /// `ctr`, of the same version as containerd.
    pub fn ctr(&self) -> Result<Command> {
        program(&self.host, self.options.flavour, "ctr")
    }

    /// `nerdctl`, told where this containerd's registries and networks are; with Lapwing's snapshotter by the shipped `nerdctl.toml`, which
    /// makes it the default.
    pub fn nerdctl(&self) -> Result<Command> {
        let mut command = self.host.tool("nerdctl")?;
        let dir = self.host.dir();
        let mut settings = toml::Table::new();
        if self.options.snapshotter.is_some() {
            settings = toml::from_str(&config::contrib("nerdctl/nerdctl.toml")?)?;
        }
        settings.insert("hosts_dir".into(), vec![self.hosts_dir().display().to_string()].into());
        let file = dir.join("nerdctl.toml");
        std::fs::write(&file, toml::to_string(&settings)?)?;
        command.env("NERDCTL_TOML", file);
        command.arg(format!("--data-root={}", dir.join("nerdctl").display()));
        command.arg(format!("--cni-netconfpath={}", dir.join("nerdctl-cni").display())).arg("--cni-path=/usr/lib/cni");
        Ok(command)
    }

    /// `crictl` with the shipped `crictl.yaml`.
    pub fn crictl(&self) -> Result<Command> {
        let mut command = self.host.tool("crictl")?;
        command.arg("--config").arg(tools::repository().join("contrib/crictl/crictl.yaml")).arg("--timeout=120s");
        Ok(command)
    }

    /// Waits for containerd to reach Lapwing's snapshotter after that was away. It dials again only after a pause of up to 3 s (the back-off
    /// of its gRPC client), and until then gives the old refusal to whoever asks.
    pub fn wait_for_snapshotter(&self) -> Result<()> {
        wait::until("containerd to reach the snapshotter again", Duration::from_secs(120), || {
            let mut command = self.ctr()?;
            Ok(Poll::retry(check(command.args(["snapshots", "--snapshotter", "lapwing", "ls"]))))
        })?;
        Ok(())
    }

    /// Pulls an image with `ctr` for `snapshotter`, and gives what `ctr` printed.
    pub fn pull(&self, reference: &str, snapshotter: &str) -> Result<String> {
        check(&mut self.pull_command(reference, snapshotter)?)
    }

    /// Begins a pull with `ctr`; what it prints is in the host's `pull.log`.
    pub fn start_pull(&self, reference: &str, snapshotter: &str) -> Result<Process> {
        self.host.spawn("pull", &mut self.pull_command(reference, snapshotter)?)
    }

    fn pull_command(&self, reference: &str, snapshotter: &str) -> Result<Command> {
        let mut command = self.ctr()?;
        command.args(["images", "pull", "--snapshotter", snapshotter, "--hosts-dir"]).arg(self.hosts_dir());
        command.arg(reference);
        Ok(command)
    }

    /// Runs a container of a pulled image to its end with `ctr`, and gives its output. No `args`: the image's own command.
    ///
    /// The output goes to a file: `ctr` gives up pipes that it has not opened yet when the container ends, and with them, now and then,
    /// all that a container printed.
    pub fn run(&self, reference: &str, snapshotter: &str, name: &str, args: &[&str]) -> Result<String> {
        self.run_with(&[], reference, snapshotter, name, args)
    }

    /// The same with more `options` for `ctr run`.
    pub fn run_with(
        &self,
        options: &[&str],
        reference: &str,
        snapshotter: &str,
        name: &str,
        args: &[&str],
    ) -> Result<String> {
        let file = self.host.dir().join(format!("{name}.output"));
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let uri = format!("file://{}", file.display());
        let options = [&["--rm", "--log-uri", &uri], options].concat();
        let ended = check(self.run_command(&options, reference, snapshotter, name)?.args(args));
        let output = std::fs::read_to_string(&file);
        ended.with_context(|| format!("it printed {output:?}"))?;
        Ok(output?)
    }

    /// A `ctr run` with `options`, to which the arguments of the container are still to be added.
    ///
    /// `ctr` puts a container into the cgroup `/<namespace>/<name>`, and cgroups are the machine's: of two hosts with a container of the same
    /// name, one would remove the other's cgroup under its feet.
    pub fn run_command(&self, options: &[&str], reference: &str, snapshotter: &str, name: &str) -> Result<Command> {
        let mut command = self.ctr()?;
        command.args(["run", "--snapshotter", snapshotter, "--cgroup", &self.cgroup(name)]).args(options);
        command.args([reference, name]);
        Ok(command)
    }

    /// The cgroup of a container of [`Self::run_command`].
    pub fn cgroup(&self, name: &str) -> String {
        format!("/{}-{name}", self.host.namespace())
    }
}

fn launch(host: &Host, options: &ContainerdOptions) -> Result<Process> {
    let mut command = program(host, options.flavour, "containerd")?;
    let mut process = host.spawn("containerd", command.arg("--config").arg(config::file(host)))?;
    wait::until("containerd to answer", START, || {
        process.expect_running()?;
        Ok(Poll::retry(check(program(host, options.flavour, "ctr")?.args(["--connect-timeout=2s", "version"]))))
    })?;
    Ok(process)
}

/// A program that comes with containerd. Of the distribution's, not one that lies before it on the PATH; of the pinned ones, those beside it come first
/// on the PATH, so that containerd finds its own shim.
fn program(host: &Host, flavour: Flavour, name: &str) -> Result<Command> {
    match flavour {
        Flavour::V2 => host.tool(name),
        Flavour::V17 => Ok(host.tool_of(&tools::containerd17_dir()?, name)),
        Flavour::Debian => {
            let packaged = Path::new("/usr/bin").join(name);
            let there = packaged.exists().then(|| host.command(&packaged));
            there.with_context(|| format!("no {} (contrib/setup/packages.sh installs it)", packaged.display()))
        }
    }
}
