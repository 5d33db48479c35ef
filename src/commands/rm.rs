//! `lapwing rm`: takes blobs, or all blobs of an image, out of the node's chunk store.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use reqwest::Method;

use super::node::{ask, in_path};
use super::table::size;
use crate::cli::Rm;
use crate::explain::view::PullState;
use crate::node::removal::Removed;
use crate::node::state::NodeState;

const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn run(arguments: &Rm) -> anyhow::Result<ExitCode> {
    let (mut all, mut failed) = (Vec::new(), false);
    for name in &arguments.names {
        for digest in blobs_of(arguments, name).await? {
            let url = format!("http://{}/api/v1/blobs/{digest}", arguments.admin);
            match ask::<Removed>(Method::DELETE, &url, TIMEOUT).await {
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
async fn blobs_of(arguments: &Rm, name: &str) -> anyhow::Result<Vec<String>> {
    let url = format!("http://{}/api/v1", arguments.admin);
    let pull = ask::<PullState>(Method::GET, &format!("{url}/pulls/{}", in_path(name)), TIMEOUT).await;
    match pull {
        Ok(pull) => return Ok(pull.blobs.into_iter().map(|blob| blob.digest).collect()),
        Err(_) if name.parse::<Digest>().is_ok() => return Ok(vec![name.to_owned()]),
        Err(_) => {}
    }
    let state: NodeState = ask(Method::GET, &format!("{url}/state"), TIMEOUT).await?;
    let layers: Vec<_> =
        state.layers.into_iter().filter(|layer| layer.image == name).map(|layer| layer.digest).collect();
    anyhow::ensure!(
        !layers.is_empty(),
        "no pull of {name:?} is remembered since the node started, and no layer of a repository of that name is known; name the \
         digests of its layers, which `lapwing ls --json` lists"
    );
    Ok(layers)
}
