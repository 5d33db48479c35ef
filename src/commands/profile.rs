//! `lapwing profile`: what containers of an image read when they start, shown, written to a file, and read from one.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::Table;
use lapwing_p2p::limits::MAX_PROFILE_LENGTH;
use lapwing_snapshotter::profile::Profile as Decoded;
use reqwest::{RequestBuilder, Response, StatusCode};

use super::daemon::{Daemon, Kind};
use super::table::plain;
use crate::cli::{Profile, ProfileExport, ProfileImport, ProfileShow};
use crate::config::ByteSize;
use crate::profiles::api::{ProfileState, StartState, Wanted};

/// Other nodes may have to be asked.
const TIMEOUT: Duration = Duration::from_secs(60);
const FILE: &str = "/api/v1/profile/file";

pub(crate) async fn run(command: &Profile) -> anyhow::Result<ExitCode> {
    match command {
        Profile::Show(arguments) => show(arguments).await,
        Profile::Export(arguments) => export(arguments).await,
        Profile::Import(arguments) => import(arguments).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

async fn show(arguments: &ProfileShow) -> anyhow::Result<()> {
    let wanted = Wanted { image: arguments.image.clone(), namespace: arguments.namespace.clone() };
    let node = node(arguments.admin)?;
    let state = json(ask(&node, node.get("/api/v1/profile").query(&wanted)).await?).await?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &state)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}\n\n{}\n\n{}", state.chain, starts(&state.starts), layers(&state))?;
    }
    Ok(())
}

async fn export(arguments: &ProfileExport) -> anyhow::Result<()> {
    let wanted = Wanted { image: arguments.image.clone(), namespace: arguments.namespace.clone() };
    let node = node(arguments.admin)?;
    let bytes = ask(&node, node.get(FILE).query(&wanted)).await?.bytes().await?;
    if arguments.output == Path::new("-") {
        return Ok(std::io::stdout().write_all(&bytes)?);
    }
    let path = arguments.output.display();
    std::fs::write(&arguments.output, &bytes).with_context(|| format!("{path} cannot be written"))
}

async fn import(arguments: &ProfileImport) -> anyhow::Result<()> {
    let path = arguments.file.display();
    let length = std::fs::metadata(&arguments.file).with_context(|| format!("{path} cannot be read"))?.len();
    anyhow::ensure!(length <= MAX_PROFILE_LENGTH, "{path}: {length} bytes are too long for a profile");
    let bytes = std::fs::read(&arguments.file).with_context(|| format!("{path} cannot be read"))?;
    Decoded::decode(&bytes).with_context(|| format!("{path}"))?;
    let node = node(arguments.admin)?;
    let state = json(ask(&node, node.put(FILE).body(bytes)).await?).await?;
    writeln!(std::io::stdout(), "{} has a profile of {} entry points now", state.chain, state.starts.len())?;
    Ok(())
}

fn node(admin: SocketAddr) -> anyhow::Result<Daemon> {
    Daemon::at(Kind::Node, admin, Some(TIMEOUT))
}

async fn ask(node: &Daemon, request: RequestBuilder) -> anyhow::Result<Response> {
    node.send(request).await?.map_err(|refused| match refused.status {
        StatusCode::NOT_FOUND => {
            anyhow::anyhow!("the node has no profiles: it mounts no layers lazily (`lapwing doctor` says why)")
        }
        _ => node.error(refused),
    })
}

async fn json(answer: Response) -> anyhow::Result<ProfileState> {
    answer.json().await.context("the node answered something else than a profile")
}

fn starts(starts: &[StartState]) -> Table {
    let mut table = plain(["PROGRAM", "ARGUMENTS", "READS", "BYTES", "LAST READ", "RECORDED", "TIMES", "FROM"]);
    for start in starts {
        let known = !start.program.is_empty();
        table.add_row([
            if known { start.program.clone() } else { "not known".to_owned() },
            if known { start.arguments.clone() } else { String::new() },
            start.reads.to_string(),
            ByteSize(start.bytes).to_string(),
            format!("{:.1} s", f64::from(start.last_ms) / 1000.0),
            date(start.recorded),
            start.recordings.to_string(),
            start.source.clone(),
        ]);
    }
    table
}

fn layers(state: &ProfileState) -> Table {
    let mut table = plain(["LAYER", "BYTES READ"]);
    for layer in &state.layers {
        let short = layer.digest.trim_start_matches("sha256:").chars().take(12).collect();
        table.add_row([short, ByteSize(layer.bytes).to_string()]);
    }
    table
}

fn date(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|unix| time::OffsetDateTime::from_unix_timestamp(unix).ok());
    time.map_or_else(String::new, |time| time.date().to_string())
}
