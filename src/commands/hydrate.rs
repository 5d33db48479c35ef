//! `lapwing hydrate`: the blobs of a lazily pulled image into containerd's content store.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::Hydrate;
use crate::config::ByteSize;
use crate::hydrate::{Hydrated, Wanted};

/// Waits as long as it takes: the image may be large, and the node ends it when this process does.
pub(crate) async fn run(arguments: &Hydrate) -> anyhow::Result<ExitCode> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{}/api/v1/hydrate", arguments.admin);
    let wanted = Wanted {
        image: arguments.image.clone(),
        namespace: arguments.namespace.clone(),
        platform: arguments.platform.clone(),
    };
    let answer = client.put(&url).json(&wanted).send().await.with_context(|| {
        format!("no node answers at {url}; is `lapwing node` running, and is this its admin.listen?")
    })?;
    if !answer.status().is_success() {
        let status = answer.status();
        let reason = answer.text().await.unwrap_or_default();
        anyhow::bail!("{}", if reason.trim().is_empty() { status.to_string() } else { reason.trim_end().to_owned() });
    }
    let done: Hydrated = answer.json().await.with_context(|| format!("{url} answered something else"))?;
    if arguments.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&done)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Hydrated { present, written, written_bytes } = done;
    let bytes = ByteSize(written_bytes);
    writeln!(std::io::stdout(), "{written} blobs ({bytes}) are in containerd now, {present} were there before")?;
    Ok(ExitCode::SUCCESS)
}
