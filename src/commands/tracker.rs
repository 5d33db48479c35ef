//! What `lapwing nodes` and `lapwing find` have in common: how a tracker is asked, and how its nodes are shown.

use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) use super::table::plain;
use crate::tracker::view::MemberState;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the tracker's admin listener.
pub(super) async fn ask<T: DeserializeOwned>(url: &str, query: &impl Serialize) -> anyhow::Result<T> {
    let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
    let answer = client.get(url).query(query).send().await.with_context(|| {
        format!(
            "no tracker answers at {url}; is `lapwing tracker` (or `lapwing up`) running, and is this its admin.listen? \
             Run this on the tracker's machine, or name its address with --admin"
        )
    })?;
    let status = answer.status();
    if status == reqwest::StatusCode::NOT_FOUND {
        anyhow::bail!("what runs at {url} is no tracker; name the admin.listen of one with --admin");
    }
    if !status.is_success() {
        let text = answer.text().await.unwrap_or_default();
        anyhow::bail!("the tracker at {url} refused ({status}): {}", text.trim_end());
    }
    answer.json().await.with_context(|| format!("{url} answered something else than a tracker's state"))
}

pub(super) fn short(peer: &str) -> String {
    peer.chars().take(12).collect()
}

/// Zone and rack in one word.
pub(super) fn place(node: &MemberState) -> String {
    match (node.zone.as_str(), node.rack.as_str()) {
        ("", "") => "-".to_owned(),
        (zone, "") => zone.to_owned(),
        (zone, rack) => format!("{zone}/{rack}"),
    }
}

pub(super) fn seconds(seconds: u64) -> String {
    format!("{seconds} s")
}
