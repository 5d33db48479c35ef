//! `make bench-tracker`: a real `lapwing tracker` under the load of a large cluster: simulated nodes with 200 blobs each,
//! of which a few are everywhere and the others a long tail, over real gRPC from another process. Beside it, in the same
//! run, `redis-benchmark` with GETs without pipelining as the yardstick. Prints JSON.
//!
//! Two trackers over Redis, and over MariaDB, come after it with a tenth of the nodes: these tell the first what they hold,
//! and the finds go to the second, which was told nothing.
//!
//! Tracker and redis-server run on the first CPU, the load on the second, so that both have one core to themselves. All
//! figures are taken while the nodes send their heartbeats (each every 15 s), as a tracker never does without them.
//!
//! `tracker [NODES]`: 100,000 unless given.

mod calls;
mod crowd;
mod daemon;
mod drive;
mod shared;
mod yardstick;

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use self::crowd::Crowd;
use self::daemon::Tracker;
use self::drive::Load;

const NODES: u64 = 100_000;
/// As many clients as redis-benchmark has, each with a connection of its own and one question at a time.
const CLIENTS: usize = 50;
/// Trackers over a shared store have one node in so many.
const SHARED_SHARE: u64 = 10;
const PHASE: Duration = Duration::from_secs(10);
/// Nodes that join again after a restart spread over so long.
const REJOIN_WINDOW: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let nodes = match std::env::args().nth(1) {
        Some(nodes) => nodes.parse().with_context(|| format!("{nodes}: a number of nodes"))?,
        None => NODES,
    };
    let directory = tempfile::tempdir()?;
    let cpus = std::thread::available_parallelism()?.get();
    daemon::run_on(std::process::id(), if cpus > 1 { 1 } else { 0 })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let memory = runtime.block_on(measure(directory.path(), nodes))?;
    let shared = runtime.block_on(shared::measure(directory.path(), nodes / SHARED_SHARE));
    let redis = yardstick::redis(CLIENTS)?;
    let report = json!({
        "cpus": cpus,
        "memory": memory,
        "shared": shared,
        "redis": redis,
        "find_over_redis_get": ratio(&memory["find_per_s"], &redis["get_per_s"]),
        "p99_over_redis_get": ratio(&memory["find_p99_ms"], &redis["get_p99_ms"]),
    });
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?)
}

fn ratio(ours: &Value, theirs: &Value) -> Option<f64> {
    Some((ours.as_f64()? / theirs.as_f64()? * 1000.0).round() / 1000.0)
}

async fn measure(directory: &Path, nodes: u64) -> anyhow::Result<Value> {
    let mut tracker = Tracker::start(directory, "")?;
    let empty_mb = tracker.anonymous_mb()?;
    let crowd = Crowd::new(nodes);
    let joined = Load::connect(&tracker.address, CLIENTS).await?.join(&crowd, Duration::ZERO).await?;
    let (entries, rss_mb) = (joined.entries, tracker.anonymous_mb()?);
    eprintln!("{nodes} nodes with {entries} entries joined in {:.1} s", joined.took.as_secs_f64());

    let load = Load::connect(&tracker.address, CLIENTS).await?;
    let beats = load.beat(&crowd);
    let before = tracker.cpu_s()?;
    let found = load.closed(PHASE, |random| calls::find(&crowd, random)).await?;
    let find_cpu_s = tracker.cpu_s()? - before;
    let announced = load.closed(PHASE, |random| calls::announce(&crowd, random)).await?;
    let calm = load.paced(PHASE, 1000, |random| calls::find(&crowd, random)).await?;
    beats.abort();

    tracker.kill_and_start_again()?;
    let asking = Load::connect(&tracker.address, CLIENTS).await?;
    let joining = Load::connect(&tracker.address, CLIENTS).await?;
    let (rejoined, meanwhile) = tokio::join!(
        joining.join(&crowd, REJOIN_WINDOW),
        asking.paced(REJOIN_WINDOW, 1000, |random| calls::find(&crowd, random)),
    );
    let (rejoined, meanwhile) = (rejoined?, meanwhile?);
    Ok(json!({
        "store": "memory",
        "nodes": nodes,
        "entries": entries,
        "rss_mb": rss_mb.round(),
        "bytes_per_entry": ((rss_mb - empty_mb) * 1e7 / entries as f64).round() / 10.0,
        "join_s": round(joined.took.as_secs_f64()),
        "heartbeats_per_s": (nodes as f64 / crowd::HEARTBEAT.as_secs_f64()).round(),
        "find_per_s": found.per_s().round(),
        "find_p50_ms": found.quantile_ms(0.5),
        "find_p99_ms": found.quantile_ms(0.99),
        "find_holders_bytes": found.mean_bytes().round(),
        "find_and_beats_cpu": round(find_cpu_s / PHASE.as_secs_f64()),
        "announce_per_s": announced.per_s().round(),
        "at_1000_per_s": { "find_p50_ms": calm.quantile_ms(0.5), "find_p99_ms": calm.quantile_ms(0.99), "per_s": calm.per_s().round() },
        "rejoin_window_s": REJOIN_WINDOW.as_secs(),
        "rejoin_s": round(rejoined.took.as_secs_f64()),
        "rejoin_failed": rejoined.failed,
        "finds_meanwhile": { "per_s": meanwhile.per_s().round(), "failed": meanwhile.failed, "p50_ms": meanwhile.quantile_ms(0.5), "p99_ms": meanwhile.quantile_ms(0.99), "max_ms": meanwhile.quantile_ms(1.0) },
        "failed": found.failed + announced.failed + calm.failed + joined.failed,
    }))
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
