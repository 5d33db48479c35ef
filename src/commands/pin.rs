//! `lapwing pin` and `lapwing unpin`: which blobs the node on this machine keeps whatever else needs room.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use crate::cli::Pin;
use crate::node::pins::PinState;

const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn run(arguments: &Pin, pin: bool) -> anyhow::Result<ExitCode> {
    let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
    let mut states = Vec::new();
    for digest in &arguments.digests {
        let url = format!("http://{}/api/v1/pins/{digest}", arguments.admin);
        let request = if pin { client.put(&url) } else { client.delete(&url) };
        let answer = request.send().await.with_context(|| {
            format!("no node answers at {url}; is `lapwing node` running, and is this its admin.listen?")
        })?;
        if !answer.status().is_success() {
            let status = answer.status();
            anyhow::bail!("{}", answer.text().await.unwrap_or_else(|_| status.to_string()).trim_end());
        }
        let state: PinState =
            answer.json().await.with_context(|| format!("{url} answered something else than a pin"))?;
        if !arguments.json {
            writeln!(std::io::stdout(), "{}", told(&state))?;
        }
        states.push(state);
    }
    if arguments.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&states)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn told(state: &PinState) -> String {
    let digest = &state.digest;
    match (state.pinned, state.changed, state.complete) {
        (true, _, true) => format!("{digest} is pinned"),
        (true, _, false) => format!("{digest} is pinned; it is not here yet, and will be kept once it has been pulled"),
        (false, true, _) => format!("{digest} is not pinned any more"),
        (false, false, _) => format!("{digest} was not pinned"),
    }
}
