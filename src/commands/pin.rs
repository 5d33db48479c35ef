//! `lapwing pin` and `lapwing unpin`: which blobs the node on this machine keeps whatever else needs room.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::Method;

use super::daemon::{Daemon, Kind};
use crate::cli::Pin;
use crate::node::pins::PinState;

const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn run(arguments: &Pin, pin: bool) -> anyhow::Result<ExitCode> {
    let node = Daemon::at(Kind::Node, arguments.admin, Some(TIMEOUT))?;
    let mut states = Vec::new();
    for digest in &arguments.digests {
        let method = if pin { Method::PUT } else { Method::DELETE };
        let state: PinState = node.ask(node.request(method, &format!("/api/v1/pins/{digest}"))).await?;
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
