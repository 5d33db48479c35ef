//! `lapwing limits`: the speed limits of the node on this machine, shown and changed.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::Table;
use reqwest::{Client, RequestBuilder};

use crate::cli::Limits;
use crate::config::{ByteSize, LimitsTable};

const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(arguments: &Limits) -> anyhow::Result<ExitCode> {
    let url = format!("http://{}/api/v1/limits", arguments.admin);
    let client = Client::builder().no_proxy().timeout(TIMEOUT).build()?;
    let mut limits = ask(client.get(&url), &url).await?;
    if change(arguments, &mut limits) {
        limits = ask(client.put(&url).json(&limits), &url).await?;
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

async fn ask(request: RequestBuilder, url: &str) -> anyhow::Result<LimitsTable> {
    let answer = request.send().await.with_context(|| {
        format!("no node answers at {url}; is `lapwing node` running, and is this its admin.listen?")
    })?;
    let status = answer.status();
    if !status.is_success() {
        let text = answer.text().await.unwrap_or_default();
        anyhow::bail!("the node at {url} refused ({status}): {}", text.trim_end());
    }
    answer.json().await.with_context(|| format!("{url} answered something else than a node's limits"))
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
