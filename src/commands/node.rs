//! How the commands ask the node on this machine.

use std::time::Duration;

use anyhow::Context as _;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;

/// What stays as it is in a name that is part of a path.
const KEPT: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b':').remove(b'@').remove(b'.').remove(b'-').remove(b'_');

/// A name for the path of a URL.
pub(super) fn in_path(name: &str) -> String {
    utf8_percent_encode(name, &KEPT).to_string()
}

/// Asks the node's admin listener; what it refuses it says why.
pub(super) async fn ask<T: DeserializeOwned>(method: Method, url: &str, timeout: Duration) -> anyhow::Result<T> {
    match ask_for(method, url, timeout).await? {
        Ok(answer) => Ok(answer),
        Err(refused) if refused.reason.is_empty() => {
            anyhow::bail!("{url} answered {}; is it the admin.listen of a node of this version?", refused.status)
        }
        Err(refused) => anyhow::bail!("{}", refused.reason),
    }
}

/// What the node says in the place of an answer.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) reason: String,
}

/// The same for those who go on when they are refused.
pub(super) async fn ask_for<T: DeserializeOwned>(
    method: Method,
    url: &str,
    timeout: Duration,
) -> anyhow::Result<Result<T, Refused>> {
    let client = reqwest::Client::builder().no_proxy().timeout(timeout).build()?;
    let answer = client.request(method, url).send().await.with_context(|| {
        format!("no node answers at {url}; is `lapwing node` running, and is this its admin.listen?")
    })?;
    let status = answer.status();
    if !status.is_success() {
        let reason = answer.text().await.unwrap_or_default().trim_end().to_owned();
        return Ok(Err(Refused { status, reason }));
    }
    let read = answer.json().await;
    read.map(Ok).with_context(|| format!("{url} answered something else than was expected of a node"))
}
