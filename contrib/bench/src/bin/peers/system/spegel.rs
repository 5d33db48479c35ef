//! Spegel: on each worker one process, which finds the others by way of the first and serves what containerd has.

use super::{Daemon, LONGEST};
use crate::stage::Stage;
use anyhow::Result;
use lapwing_bench::programs;
use lapwing_lab::Host;
use lapwing_lab::wait::{self, Poll};
use std::net::SocketAddr;

const REGISTRY: u16 = 5000;
const BOOTSTRAP: u16 = 5555;
const ROUTER: u16 = 5001;

/// It leaves out loopback addresses.
pub(super) fn mirror(host: &Host) -> String {
    format!("http://{}:{REGISTRY}", host.address())
}

pub(super) fn node(stage: &Stage, host: &Host) -> Result<Daemon> {
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
        .args(["--registry-addr", &format!(":{REGISTRY}")])
        .args(["--router-addr", &format!(":{ROUTER}")])
        .args(["--bootstrap-kind", "http"])
        .args(["--http-bootstrap-addr", &format!(":{BOOTSTRAP}")])
        .args(["--http-bootstrap-peer", &format!("http://{bootstrap}:{BOOTSTRAP}")])
        .args(["--data-dir", &host.dir().join("spegel").display().to_string()]);
    let mut process = host.spawn("spegel", &mut command)?;
    let address = SocketAddr::from((host.address(), REGISTRY));
    wait::until("Spegel to answer", LONGEST, || {
        process.expect_running()?;
        Ok(Poll::retry(host.http_get(address, "/healthz").map(drop)))
    })?;
    Ok(Daemon::Foreign { host: host.clone(), processes: vec![process] })
}
