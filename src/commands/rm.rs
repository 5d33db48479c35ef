//! `lapwing rm`: takes blobs, or all blobs of an image, out of the node's chunk store.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use reqwest::{Method, StatusCode};

use super::node::{ask, ask_for, in_path};
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
    let wanted = format!("{url}/pulls/{}?single=true", in_path(name));
    match ask_for::<PullState>(Method::GET, &wanted, TIMEOUT).await? {
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
