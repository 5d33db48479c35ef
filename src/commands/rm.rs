//! `lapwing rm`: takes blobs, or all blobs of an image, out of the node's chunk store.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use reqwest::{Method, StatusCode};

use super::daemon::{Daemon, Kind, in_path};
use super::table::size;
use crate::cli::Rm;
use crate::explain::view::PullState;
use crate::node::removal::Removed;
use crate::node::state::NodeState;

const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn run(arguments: &Rm) -> anyhow::Result<ExitCode> {
    let node = Daemon::at(Kind::Node, arguments.admin, Some(TIMEOUT))?;
    let (mut all, mut failed) = (Vec::new(), false);
    for name in &arguments.names {
        for digest in blobs_of(&node, name).await? {
            let request = node.request(Method::DELETE, &format!("/api/v1/blobs/{digest}"));
            match node.ask::<Removed>(request).await {
                Ok(removed) => all.push(removed),
                Err(error) => {
                    failed = true;
                    writeln!(std::io::stderr(), "lapwing: {error:#}")?;
                }
            }
        }
    }
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &all)?;
        writeln!(out)?;
    } else {
        for Removed { digest, removed, bytes } in &all {
            let what = if *removed { format!("removed, {}", size(*bytes)) } else { "was not here".to_owned() };
            writeln!(out, "{digest} {what}")?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A digest is a blob, or the manifest of an image that was pulled; a name is what was pulled by it, or seen in its repository.
async fn blobs_of(node: &Daemon, name: &str) -> anyhow::Result<Vec<String>> {
    let wanted = format!("/api/v1/pulls/{}?single=true", in_path(name));
    match node.try_ask::<PullState>(node.get(&wanted)).await? {
        Ok(pull) => {
            if pull.summary.name != name {
                writeln!(std::io::stderr(), "lapwing: {name} is {}", pull.summary.name)?;
            }
            return Ok(pull.blobs.into_iter().map(|blob| blob.digest).collect());
        }
        Err(refused) if refused.status == StatusCode::CONFLICT => anyhow::bail!("{}", refused.reason),
        Err(_) if name.parse::<Digest>().is_ok() => return Ok(vec![name.to_owned()]),
        Err(_) => {}
    }
    let state: NodeState = node.ask(node.get("/api/v1/state")).await?;
    let layers: Vec<_> =
        state.layers.into_iter().filter(|layer| layer.image == name).map(|layer| layer.digest).collect();
    anyhow::ensure!(
        !layers.is_empty(),
        "no pull of {name:?} is remembered since the node started, and no layer of a repository of that name is known; name the \
         digests of its layers, which `lapwing ls --json` lists"
    );
    Ok(layers)
}
