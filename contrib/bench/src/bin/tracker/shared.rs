//! Trackers over a shared store: what nodes told one of them is asked of the other.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lapwing_lab::Database;
use serde_json::{Value, json};

use crate::crowd::Crowd;
use crate::daemon::Tracker;
use crate::drive::Load;
use crate::{CLIENTS, PHASE, calls, round};

/// The second tracker must find what the first was told within so long.
const WRITTEN: Duration = Duration::from_secs(600);
/// In a sample of so many questions.
const SAMPLE: usize = 200;
/// An answer that names nobody is shorter.
const NAMES_SOMEBODY: usize = 48;

/// Both stores; why not, for one that cannot be measured.
pub(crate) async fn measure(directory: &Path, nodes: u64) -> Vec<Value> {
    let mut measured = Vec::new();
    for store in ["redis", "mysql"] {
        let outcome = over(&directory.join(store), store, nodes).await;
        measured.push(outcome.unwrap_or_else(|error| json!({ "store": store, "missing": format!("{error:#}") })));
    }
    measured
}

async fn over(directory: &Path, store: &str, nodes: u64) -> anyhow::Result<Value> {
    std::fs::create_dir_all(directory)?;
    let (database, name) = match store {
        "redis" => (Database::redis(directory)?, "0"),
        _ => (Database::mariadb(directory)?, Database::NAMES[0]),
    };
    let url = database.url(name);
    let config = format!("[tracker.store]\nkind = {store:?}\nurls = [{url:?}]\n");
    let told = Tracker::start(&directory.join("told"), &config)?;
    let asked = Tracker::start(&directory.join("asked"), &config)?;
    let crowd = Crowd::new(nodes);
    let (telling, asking) =
        (Load::connect(&told.address, CLIENTS).await?, Load::connect(&asked.address, CLIENTS).await?);
    let joined = telling.join(&crowd, Duration::ZERO).await?;
    let beats = telling.beat(&crowd);
    let began = Instant::now();
    let mut random = fastrand::Rng::with_seed(7);
    while asking.share_longer_than(SAMPLE, NAMES_SOMEBODY, || calls::find_held(&crowd, &mut random)).await < 0.99 {
        anyhow::ensure!(
            began.elapsed() < WRITTEN,
            "after {WRITTEN:?} the second tracker does not find what the first was told"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let written_s = began.elapsed().as_secs_f64();
    let found = asking.closed(PHASE, |random| calls::find_held(&crowd, random)).await?;
    let calm = asking.paced(PHASE, 100, |random| calls::find_held(&crowd, random)).await?;
    let announced = telling.closed(PHASE, |random| calls::announce(&crowd, random)).await?;
    beats.abort();
    drop(database);
    Ok(json!({
        "store": store,
        "nodes": nodes,
        "entries": joined.entries,
        "join_s": round(joined.took.as_secs_f64()),
        "found_elsewhere_after_s": round(written_s),
        "rss_mb": asked.anonymous_mb().context("the second tracker")?.round(),
        "find_per_s": found.per_s().round(),
        "find_p50_ms": found.quantile_ms(0.5),
        "find_p99_ms": found.quantile_ms(0.99),
        "at_100_per_s": { "find_p50_ms": calm.quantile_ms(0.5), "find_p99_ms": calm.quantile_ms(0.99) },
        "announce_per_s": announced.per_s().round(),
        "failed": joined.failed + found.failed + calm.failed + announced.failed,
    }))
}
