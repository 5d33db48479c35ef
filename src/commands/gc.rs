//! `lapwing gc`: takes everything out of the node's chunk store that nothing uses.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::Method;

use super::daemon::{Daemon, Kind};
use super::table::{plain, short, size};
use crate::cli::Gc;
use crate::node::removal::Collected;

const TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) async fn run(arguments: &Gc) -> anyhow::Result<ExitCode> {
    let node = Daemon::at(Kind::Node, arguments.admin, Some(TIMEOUT))?;
    let method = if arguments.dry_run { Method::GET } else { Method::PUT };
    let collected: Collected = node.ask(node.request(method, "/api/v1/gc")).await?;
    for reason in &collected.failed {
        writeln!(std::io::stderr(), "lapwing: {reason}")?;
    }
    let code = if collected.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &collected)?;
        writeln!(out)?;
        return Ok(code);
    }
    if !collected.blobs.is_empty() {
        let mut table = plain(["BLOB", "SIZE"]);
        for blob in &collected.blobs {
            table.add_row([short(&blob.digest), size(blob.bytes)]);
        }
        writeln!(out, "{table}\n")?;
    }
    let Collected { done, blobs, bytes, pinned, in_use, .. } = &collected;
    let what = if *done { "removed" } else { "would be removed" };
    writeln!(out, "{} blobs {what}, {}; {in_use} in use and {pinned} pinned stay", blobs.len(), size(*bytes))?;
    Ok(code)
}
