//! `lapwing ls`: the blobs and layers of the node on this machine.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::Table;

use super::daemon::{Daemon, Kind};
use super::table::{plain, share, short, size};
use crate::cli::Query;
use crate::node::state::{BlobState, LayerState, NodeState};

const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(arguments: &Query) -> anyhow::Result<ExitCode> {
    let node = Daemon::at(Kind::Node, arguments.admin, Some(TIMEOUT))?;
    let state: NodeState = node.ask(node.get("/api/v1/state")).await?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &state)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}\n\n{}\n\n{}", layers(&state.layers), blobs(&state.blobs), totals(&state.blobs))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn layers(layers: &[LayerState]) -> Table {
    let mut table = plain(["LAYER", "IMAGE", "STATE", "FETCHED", "WHY"]);
    for layer in layers {
        table.add_row([
            short(&layer.digest),
            layer.image.clone(),
            layer.state.clone(),
            if layer.spans == 0 { String::new() } else { share(layer.spans_fetched as u64, layer.spans as u64) },
            layer.reason.clone(),
        ]);
    }
    table
}

fn blobs(blobs: &[BlobState]) -> Table {
    let mut table = plain(["BLOB", "SIZE", "HELD", "VERIFIED", "PEERS", "FROM PEERS", "FROM ORIGIN", "IN", "PINNED"]);
    for blob in blobs {
        table.add_row([
            short(&blob.digest),
            size(blob.length_bytes),
            share(blob.held_bytes, blob.length_bytes),
            if blob.verified { "yes" } else { "no" }.to_owned(),
            blob.peers.to_string(),
            size(blob.bytes_from_peers),
            size(blob.bytes_from_origin),
            if blob.in_containerd { "containerd" } else { "store" }.to_owned(),
            if blob.pinned { "yes" } else { "" }.to_owned(),
        ]);
    }
    table
}

fn totals(blobs: &[BlobState]) -> String {
    let (theirs, own): (Vec<_>, Vec<_>) = blobs.iter().partition(|blob| blob.in_containerd);
    let bytes = |blobs: &[&BlobState]| size(blobs.iter().map(|blob| blob.held_bytes).sum());
    let (own_bytes, their_bytes) = (bytes(&own), bytes(&theirs));
    format!(
        "{} blobs in the chunk store ({own_bytes}), {} in containerd's content store ({their_bytes})",
        own.len(),
        theirs.len()
    )
}
