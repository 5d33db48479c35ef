//! What `lapwing nodes` and `lapwing find` have in common: how long a tracker is waited for, and how its nodes are shown.

use std::time::Duration;

use crate::tracker::view::MemberState;

/// A tracker answers from memory.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

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
