//! `lapwing hydrate`: the blobs of a lazily pulled image into containerd's content store.

use std::io::Write as _;
use std::process::ExitCode;

use super::daemon::{Daemon, Kind};
use super::table::size;
use crate::cli::Hydrate;
use crate::hydrate::{Hydrated, Wanted};

/// Waits as long as it takes: the image may be large, and the node ends it when this process does.
pub(crate) async fn run(arguments: &Hydrate) -> anyhow::Result<ExitCode> {
    let node = Daemon::at(Kind::Node, arguments.admin, None)?;
    let wanted = Wanted {
        image: arguments.image.clone(),
        namespace: arguments.namespace.clone(),
        platform: arguments.platform.clone(),
    };
    let done: Hydrated = node.ask(node.put("/api/v1/hydrate").json(&wanted)).await?;
    if arguments.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&done)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Hydrated { present, written, written_bytes } = done;
    let bytes = size(written_bytes);
    writeln!(std::io::stdout(), "{written} blobs ({bytes}) are in containerd now, {present} were there before")?;
    Ok(ExitCode::SUCCESS)
}
