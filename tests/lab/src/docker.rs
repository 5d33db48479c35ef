//! dockerd with a containerd of its own on a host: the distribution's, without networks and firewall rules of its own.

use crate::host::Host;
use crate::process::{Process, check};
use crate::wait::{self, Poll};
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const START: Duration = Duration::from_secs(60);
/// Not what may lie before it on the PATH.
const CLIENT: &str = "/usr/bin/docker";
const SERVER: &str = "/usr/sbin/dockerd";

/// A running dockerd.
pub struct Docker {
    host: Host,
    process: Process,
}

impl Docker {
    /// Starts dockerd on `host` with the `daemon.json` at `config`, and waits until it answers. Sockets, state and its containerd's are under
    /// the host's own `/run`, its data in the host's directory, and `/etc/docker` is empty there.
    pub fn start(host: &Host, config: &Path, more: &[&str]) -> Result<Self> {
        // It keeps a key there, wherever its other files are.
        host.check("mount", &["-t", "tmpfs", "lab", "/etc/docker"])?;
        let mut command = host.command(SERVER);
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
