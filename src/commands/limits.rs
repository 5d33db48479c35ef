//! `lapwing limits`: the speed limits of the node on this machine, shown and changed.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::Table;

use super::daemon::{Daemon, Kind};
use crate::cli::Limits;
use crate::config::{ByteSize, LimitsTable};

const TIMEOUT: Duration = Duration::from_secs(5);
const PATH: &str = "/api/v1/limits";

pub(crate) async fn run(arguments: &Limits) -> anyhow::Result<ExitCode> {
    let node = Daemon::at(Kind::Node, arguments.admin, Some(TIMEOUT))?;
    let mut limits: LimitsTable = node.ask(node.get(PATH)).await?;
    if change(arguments, &mut limits) {
        limits = node.ask(node.put(PATH).json(&limits)).await?;
    }
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &limits)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", table(&limits))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes over what was given; whether anything was.
fn change(arguments: &Limits, limits: &mut LimitsTable) -> bool {
    let given: [(Option<ByteSize>, &mut ByteSize); 8] = [
        (arguments.upload, &mut limits.upload.node),
        (arguments.upload_per_blob, &mut limits.upload.per_blob),
        (arguments.upload_per_peer, &mut limits.upload.per_peer),
        (arguments.download, &mut limits.download.node),
        (arguments.download_per_blob, &mut limits.download.per_blob),
        (arguments.download_per_peer, &mut limits.download.per_peer),
        (arguments.origin, &mut limits.origin.node),
        (arguments.origin_per_blob, &mut limits.origin.per_blob),
    ];
    let mut changes = false;
    for (size, limit) in given {
        if let Some(size) = size {
            (*limit, changes) = (size, true);
        }
    }
    changes
}

fn table(limits: &LimitsTable) -> Table {
    let mut table = super::table::plain(["BYTES PER SECOND", "NODE", "PER BLOB", "PER PEER"]);
    let LimitsTable { upload, download, origin } = limits;
    for (direction, rates) in [("upload", upload), ("download", download)] {
        table.add_row([direction.to_owned(), size(rates.node), size(rates.per_blob), size(rates.per_peer)]);
    }
    table.add_row(["origin".to_owned(), size(origin.node), size(origin.per_blob), String::new()]);
    table
}

fn size(limit: ByteSize) -> String {
    if limit.0 == 0 { "no limit".to_owned() } else { limit.to_string() }
}
