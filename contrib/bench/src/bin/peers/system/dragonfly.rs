//! Dragonfly as its composition for Docker has it: a scheduler and a seed peer on one host for all, dfdaemon on each worker, no manager.

use super::{Daemon, start, write_config};
use crate::stage::Stage;
use anyhow::{Context, Result};
use lapwing_bench::programs;
use lapwing_lab::{Host, Process};
use serde_json::json;
use std::net::Ipv4Addr;
use std::process::Command;

const SCHEDULER: u16 = 8002;
const PROXY: u16 = 4001;
const SOCKET: &str = "/run/dragonfly/dfdaemon.sock";

pub(super) fn mirror() -> String {
    format!("http://127.0.0.1:{PROXY}")
}

/// The scheduler, and the seed peer with a worker's link.
pub(super) fn shared(stage: &Stage) -> Result<Daemon> {
    let host = stage.network.host_at("seed", stage.links.of_worker())?;
    let dir = host.dir();
    let config = json!({
        "server": {
            "advertiseIP": host.address(), "listenIP": Ipv4Addr::UNSPECIFIED, "port": SCHEDULER, "logDir": dir.join("scheduler-log"),
            "pluginDir": dir.join("scheduler-plugins"), "dataDir": dir.join("scheduler-data"),
        },
        "scheduler": { "algorithm": "default", "backToSourceCount": 200 },
        "job": { "enable": false },
        "metrics": { "enable": true, "addr": ":8000" },
    });
    let dynamic = json!({
        "seedPeerClusterConfig": { "loadLimit": 2000 },
        "schedulerClusterConfig": { "candidateParentLimit": 3, "filterParentLimit": 15 },
        "schedulerClusterClientConfig": { "loadLimit": 200 },
    });
    let mut command = host.command(programs("dragonfly")?.join("scheduler"));
    command.arg("--config").arg(write_config(&host, "scheduler.yaml", &config)?);
    command.arg("--dynconfig").arg(write_config(&host, "scheduler-dynconfig.yaml", &dynamic)?);
    command.arg("--console");
    let scheduler = start(&host, "scheduler", &mut command, SCHEDULER)?;
    let seed = dfdaemon(stage, &host, host.address(), true)?;
    Ok(Daemon::Foreign { host, processes: vec![scheduler, seed] })
}

pub(super) fn node(stage: &Stage, host: &Host) -> Result<Daemon> {
    let scheduler = stage.shared.as_ref().context("no scheduler")?.host().address();
    Ok(Daemon::Foreign { host: host.clone(), processes: vec![dfdaemon(stage, host, scheduler, false)?] })
}

fn dfdaemon(stage: &Stage, host: &Host, scheduler: Ipv4Addr, is_seed: bool) -> Result<Process> {
    let dir = host.dir();
    let config = json!({
        "host": { "ip": host.address(), "hostname": host.name() },
        "server": { "pluginDir": dir.join("dfdaemon-plugins"), "cacheDir": dir.join("dfdaemon-cache") },
        "download": { "server": { "socketPath": SOCKET } },
        "seedPeer": { "enable": is_seed, "type": "super" },
        "dynconfig": { "refreshInterval": "1m" },
        "storage": { "dir": dir.join("dfdaemon"), "keep": true },
        "proxy": {
            "server": { "port": PROXY },
            "rules": [{ "regex": "blobs/sha256.*" }],
            "registryMirror": { "addr": stage.registry.url() },
        },
    });
    let dynamic = json!({ "scheduler": { "addrs": [format!("{scheduler}:{SCHEDULER}")] } });
    let mut command = host.command(programs("dragonfly")?.join("dfdaemon"));
    command.arg("--config").arg(write_config(host, "dfdaemon.yaml", &config)?);
    command.arg("--dynconfig").arg(write_config(host, "dfdaemon-dynconfig.yaml", &dynamic)?);
    command.arg("--log-dir").arg(dir.join("dfdaemon-log")).arg("--console");
    start(host, "dfdaemon", &mut command, PROXY)
}

/// What is left to name is the file and the URL.
pub(super) fn download(host: &Host) -> Result<Command> {
    let mut command = host.command(programs("dragonfly")?.join("dfget"));
    command.args(["--endpoint", SOCKET, "--output"]);
    Ok(command)
}
