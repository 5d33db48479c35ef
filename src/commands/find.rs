//! `lapwing find`: who has a blob, as a tracker knows it.

use std::io::Write as _;
use std::process::ExitCode;

use super::daemon::{Daemon, Kind};
use super::table::plain;
use super::tracker::{TIMEOUT, place, seconds, short};
use crate::cli::Find;
use crate::tracker::view::{BlobHolders, HoldersQuery};

pub(crate) async fn run(arguments: &Find) -> anyhow::Result<ExitCode> {
    let tracker = Daemon::at(Kind::Tracker, arguments.admin, Some(TIMEOUT))?;
    let query = HoldersQuery {
        group: arguments.group.clone(),
        zone: arguments.zone.clone(),
        rack: arguments.rack.clone(),
        near: arguments.near,
        limit: Some(arguments.limit),
    };
    let found: Vec<BlobHolders> =
        tracker.ask(tracker.get(&format!("/api/v1/holders/{}", arguments.digest)).query(&query)).await?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &found)?;
        writeln!(out)?;
    } else if found.is_empty() {
        writeln!(out, "no node holds {}", arguments.digest)?;
    } else {
        for blob in &found {
            write(&mut out, blob)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write(out: &mut impl std::io::Write, blob: &BlobHolders) -> std::io::Result<()> {
    let BlobHolders { group, total, complete, .. } = blob;
    writeln!(out, "group {group}: {total} nodes hold some or all of it, {complete} all of it")?;
    let mut table = plain(["PEER", "ADDRESS", "ZONE", "HOLDS", "SILENCE", "STATE"]);
    for holder in &blob.holders {
        let state = if holder.serves { &holder.node.state } else { "not named" };
        table.add_row([
            short(&holder.node.peer),
            holder.node.address.clone(),
            place(&holder.node),
            if holder.complete { "all" } else { "a part" }.to_owned(),
            seconds(holder.node.silence_seconds),
            state.to_owned(),
        ]);
    }
    writeln!(out, "{table}")?;
    if *total > blob.holders.len() {
        writeln!(out, "{} more left out (--limit)", total - blob.holders.len())?;
    }
    if !blob.leases.is_empty() {
        let mut table = plain(["LEASED TO", "ADDRESS", "PIECES", "FOR"]);
        for lease in &blob.leases {
            let pieces = match lease.pieces {
                0 | 1 => lease.first_piece.to_string(),
                count => format!("{}-{}", lease.first_piece, lease.first_piece + count - 1),
            };
            table.add_row([short(&lease.peer), lease.address.clone(), pieces, format!("{:.1} s", lease.age_seconds)]);
        }
        writeln!(out, "{table}")?;
    }
    writeln!(out)
}
