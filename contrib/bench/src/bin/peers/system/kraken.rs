//! Kraken: origin, tracker and build-index on one host for all, an agent on each worker.
//!
//! Its configurations extend those that it ships. Each part starts an nginx of its own, and has `/tmp` and `/etc/nginx` for itself here.

use super::{Daemon, start, write_config};
use crate::stage::Stage;
use crate::work::Links;
use anyhow::{Context, Result};
use lapwing_bench::programs;
use lapwing_lab::{BASIC_PASSWORD, BASIC_USER, Host, Process};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// What nginx is to find, where parts collide otherwise: `/tmp` of its own, and the file of types that all its configurations include.
const ALONE: &str = r#"set -e
mount -t tmpfs lab /tmp
mkdir -p /tmp/lab/upper /tmp/lab/work
cp /etc/hosts /tmp/lab/hosts
mount -t overlay -o lowerdir=/etc,upperdir=/tmp/lab/upper,workdir=/tmp/lab/work lab /etc
cat /tmp/lab/hosts >/etc/hosts
mkdir -p /etc/nginx
touch /etc/nginx/mime.types
exec "$@""#;

const AGENT_REGISTRY: u16 = 16000;
const AGENT_PEER: u16 = 16001;
const AGENT_SERVER: u16 = 16002;
const ORIGIN_PEER: u16 = 15001;
const ORIGIN: u16 = 15002;
const TRACKER: u16 = 15003;
const BUILD_INDEX: u16 = 15004;

pub(super) fn mirror() -> String {
    format!("http://127.0.0.1:{AGENT_REGISTRY}")
}

/// What all share, with a worker's link.
pub(super) fn shared(stage: &Stage) -> Result<Daemon> {
    let host = stage.network.host_at("origin", stage.links.of_worker())?;
    let at = |port: u16| json!({ "hosts": { "static": [format!("{}:{port}", host.address())] } });
    // Without TLS it does not log in, but for what it falls back to.
    let security = if stage.is_private {
        json!({ "basic": { "username": BASIC_USER, "password": BASIC_PASSWORD }, "enableHTTPFallback": true })
    } else {
        json!({ "tls": { "client": { "disabled": true } } })
    };
    let backend = |kind: &str| json!([{ "namespace": ".*", "backend": { kind: { "address": stage.registry.name(), "security": security } } }]);
    let dir = host.dir().join("kraken-origin");
    let origin = json!({
        "backends": backend("registry_blob"),
        "cluster": { "static": [format!("{}:{ORIGIN}", host.address())] },
        "hashring": { "max_replica": 2 },
        "localdb": { "source": dir.join("origin.db") },
        "castore": { "upload_dir": dir.join("upload"), "cache_dir": dir.join("cache") },
        "scheduler": bandwidth(stage.links),
    });
    let addresses = [
        format!("--blobserver-hostname={}", host.address()),
        format!("--blobserver-port={ORIGIN}"),
        format!("--peer-ip={}", host.address()),
        format!("--peer-port={ORIGIN_PEER}"),
    ];
    let origin = part(&host, "origin", origin, &addresses, ORIGIN)?;
    let tracker = json!({ "origin": at(ORIGIN) });
    let tracker = part(&host, "tracker", tracker, &[format!("--port={TRACKER}")], TRACKER)?;
    let dir = host.dir().join("kraken-build-index");
    let build_index = json!({
        "backends": backend("registry_tag"),
        "cluster": at(BUILD_INDEX),
        "origin": at(ORIGIN),
        "remotes": {},
        "tag_types": [{ "namespace": ".*", "type": "docker" }],
        "localdb": { "source": dir.join("index.db") },
        "store": { "upload_dir": dir.join("upload"), "cache_dir": dir.join("cache") },
    });
    let build_index = part(&host, "build-index", build_index, &[format!("--port={BUILD_INDEX}")], BUILD_INDEX)?;
    Ok(Daemon::Foreign { host, processes: vec![origin, tracker, build_index] })
}

pub(super) fn agent(stage: &Stage, host: &Host) -> Result<Daemon> {
    let shared = stage.shared.as_ref().context("no origin")?.host().address();
    let at = |port: u16| json!({ "hosts": { "static": [format!("{shared}:{port}")] } });
    let dir = host.dir().join("kraken-agent");
    let config = json!({
        "tracker": at(TRACKER),
        "build_index": at(BUILD_INDEX),
        "allowed_cidrs": [Ipv4Addr::LOCALHOST, host.address()],
        "store": { "download_dir": dir.join("download"), "cache_dir": dir.join("cache") },
        "scheduler": bandwidth(stage.links),
    });
    let addresses = [
        format!("--peer-ip={}", host.address()),
        format!("--peer-port={AGENT_PEER}"),
        format!("--agent-server-port={AGENT_SERVER}"),
        format!("--agent-registry-port={AGENT_REGISTRY}"),
    ];
    Ok(Daemon::Foreign {
        host: host.clone(),
        processes: vec![part(host, "agent", config, &addresses, AGENT_REGISTRY)?],
    })
}

/// Of the link, as it asks for.
fn bandwidth(link: Links) -> Value {
    let bits = |mbit: u32| u64::from(mbit) * 1_000_000;
    let limits =
        json!({ "enable": true, "egress_bits_per_sec": bits(link.up), "ingress_bits_per_sec": bits(link.down) });
    json!({ "conn": { "bandwidth": limits }, "torrentlog": { "disable": true } })
}

/// Starts one part, named as its program and its shipped configuration are.
fn part(host: &Host, name: &str, mut config: Value, args: &[String], port: u16) -> Result<Process> {
    let programs = programs("kraken")?;
    let nginx = std::env::var("LAPWING_NGINX").unwrap_or_else(|_| "/usr/sbin/nginx".to_owned());
    let dir = host.dir().join(format!("kraken-{name}"));
    std::fs::create_dir_all(&dir)?;
    let ours = json!({
        "extends": programs.join("config").join(name).join("base.yaml"),
        "zap": { "outputPaths": ["stdout"], "errorOutputPaths": ["stdout"] },
        "nginx": { "binary": nginx, "cache_dir": dir.join("nginx"), "log_dir": dir },
        "tls": { "server": { "disabled": true }, "client": { "disabled": true } },
    });
    if let (Value::Object(config), Value::Object(ours)) = (&mut config, ours) {
        config.extend(ours);
    }
    let config = write_config(host, &format!("kraken-{name}.yaml"), &config)?;
    let mut command = host.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(ALONE).arg(name);
    command.arg(programs.join(name)).arg(format!("--config={}", config.display())).args(args);
    start(host, &format!("kraken-{name}"), &mut command, port)
}
