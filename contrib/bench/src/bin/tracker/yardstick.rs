//! Redis: GETs without pipelining, as its own benchmark measures them.

use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::daemon::{free_port, wait_until_it_listens};

const GETS: u32 = 300_000;

/// GETs per second of a redis-server on the first CPU; why not, where there is none.
pub(crate) fn redis(clients: usize) -> anyhow::Result<Value> {
    let port = free_port()?.to_string();
    let server = Command::new("taskset")
        .args(["-c", "0", "redis-server", "--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .spawn();
    let mut server = server.context("taskset of util-linux")?;
    if let Err(error) = wait_until_it_listens(&mut server, &format!("127.0.0.1:{port}")) {
        return Ok(json!({ "missing": format!("redis-server: {error:#}; install redis-server") }));
    }
    let benchmark = Command::new("redis-benchmark")
        .args(["-p", &port, "-t", "get", "-n", &GETS.to_string(), "-c", &clients.to_string(), "--csv"])
        .output();
    let _ = server.kill();
    server.wait()?;
    parse(&String::from_utf8_lossy(&benchmark.context("redis-benchmark of redis-tools")?.stdout))
}

/// Two lines of comma-separated values, the first with their names.
fn parse(text: &str) -> anyhow::Result<Value> {
    let row = |line: &str| -> Vec<String> { line.split(',').map(|cell| cell.trim_matches('"').to_owned()).collect() };
    let rows: Vec<Vec<String>> = text.lines().map(row).collect();
    let [names, values] = &rows[..] else { anyhow::bail!("redis-benchmark said {text:?}") };
    let get = |name: &str| -> anyhow::Result<f64> {
        let at = names.iter().position(|known| known == name).with_context(|| format!("{name} in {text:?}"))?;
        Ok(values.get(at).context("a short row")?.parse()?)
    };
    Ok(json!({
        "get_per_s": get("rps")?.round(),
        "get_p50_ms": get("p50_latency_ms")?,
        "get_p99_ms": get("p99_latency_ms")?,
    }))
}
