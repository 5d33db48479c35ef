//! `lapwing nodes`: the nodes that a tracker knows.

use std::io::Write as _;
use std::process::ExitCode;

use comfy_table::Table;

use super::daemon::{Daemon, Kind};
use super::table::plain;
use super::tracker::{TIMEOUT, place, seconds, short};
use crate::cli::Nodes;
use crate::tracker::view::{NodesQuery, NodesState, TrackerState};

/// The rates that are worth a line.
const SHOWN_RATES: [(&str, &str); 4] =
    [("find", "finds"), ("announce", "announces"), ("lease", "leases"), ("heartbeat", "heartbeats")];

pub(crate) async fn run(arguments: &Nodes) -> anyhow::Result<ExitCode> {
    let tracker = Daemon::at(Kind::Tracker, arguments.admin, Some(TIMEOUT))?;
    let query = NodesQuery {
        group: arguments.group.clone(),
        zone: arguments.zone.clone(),
        skip: arguments.skip,
        limit: Some(arguments.limit),
    };
    let state: NodesState = tracker.ask(tracker.get("/api/v1/nodes").query(&query)).await?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &state)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{}\n\n{}", table(&state), totals(&state.tracker))?;
    let rest = state.total - (state.skipped + state.nodes.len()).min(state.total);
    if state.skipped > 0 || rest > 0 {
        writeln!(
            out,
            "{} of {} nodes shown, {} before them and {rest} after left out (--skip, --limit, --group, --zone)",
            state.nodes.len(),
            state.total,
            state.skipped
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(state: &NodesState) -> Table {
    let mut table = plain(["PEER", "ADDRESS", "ZONE", "GROUP", "BLOBS", "SILENCE", "STATE"]);
    for node in &state.nodes {
        table.add_row([
            short(&node.peer),
            node.address.clone(),
            place(node),
            node.group.clone(),
            node.blobs.to_string(),
            seconds(node.silence_seconds),
            node.state.clone(),
        ]);
    }
    table
}

fn totals(tracker: &TrackerState) -> String {
    let rate = |(method, name): (&str, &str)| {
        let rate = tracker.calls_per_second.get(method).copied().unwrap_or_default();
        format!("{rate:.1} {name}/s")
    };
    let TrackerState { nodes, blobs, holders, groups, .. } = tracker;
    let groups = groups.len();
    let rates = SHOWN_RATES.map(rate).join(", ");
    format!("{nodes} nodes in {groups} groups, {blobs} blobs, {holders} copies; {rates}")
}
