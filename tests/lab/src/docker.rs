//! dockerd on a host, without networks and firewall rules of its own: the distribution's with a containerd of its own, or the pinned one with
//! one that runs there.

use crate::host::Host;
use crate::process::{Process, check};
use crate::tools;
use crate::wait::{self, Poll};
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const START: Duration = Duration::from_secs(60);
/// Not what may lie before it on the PATH.
const CLIENT: &str = "/usr/bin/docker";
const SERVER: &str = "/usr/sbin/dockerd";
/// What the client of Debian 12 speaks.
const OLD_API: &str = "1.41";

/// A running dockerd.
pub struct Docker {
    host: Host,
    process: Process,
}

impl Docker {
    /// Starts dockerd on `host` with the `daemon.json` at `config`, and waits until it answers. Sockets, state and its containerd's are under
    /// the host's own `/run`, its data in the host's directory, and `/etc/docker` is empty there.
    pub fn start(host: &Host, config: &Path, more: &[&str]) -> Result<Self> {
        Self::launch(host, host.command(SERVER), config, more)
    }

    /// Starts the pinned dockerd, which needs [`crate::Need::Dockerd`], with the containerd that runs on `host`.
    pub fn start_pinned(host: &Host, config: &Path) -> Result<Self> {
        let mut command = host.tool_of(&tools::dockerd_dir()?, "dockerd");
        // The distribution's client is older than what it would speak to.
        command.env("DOCKER_MIN_API_VERSION", OLD_API);
        Self::launch(host, command, config, &["--containerd=/run/containerd/containerd.sock"])
    }

    fn launch(host: &Host, mut command: Command, config: &Path, more: &[&str]) -> Result<Self> {
        // It keeps a key there, wherever its other files are.
        host.check("mount", &["-t", "tmpfs", "lab", "/etc/docker"])?;
        command.arg("--config-file").arg(config);
        command.arg("--data-root").arg(host.dir().join("docker"));
        command.args(["--exec-root=/run/docker", "--pidfile=/run/docker.pid", "--host=unix:///run/docker.sock"]);
        command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"]);
        let process = host.spawn("dockerd", command.args(more))?;
        let mut docker = Self { host: host.clone(), process };
        wait::until("dockerd to answer", START, || {
            docker.process.expect_running()?;
            Ok(Poll::retry(docker.run(&["version"])))
        })?;
        Ok(docker)
    }

    /// A `docker` that asks this dockerd.
    pub fn client(&self) -> Command {
        let mut command = self.host.command(CLIENT);
        command.env("DOCKER_CONFIG", self.host.dir().join("docker-client")).arg("--host=unix:///run/docker.sock");
        command
    }

    /// Runs `docker` to its end and gives what it printed.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        check(self.client().args(args))
    }

    /// The process, to signal it or to see its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
