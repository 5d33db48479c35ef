//! How it ended: exit codes, and what is printed of it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// What went wrong, by exit code: wget's, where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Other = 1,
    Usage = 2,
    File = 3,
    Network = 4,
    Credentials = 6,
    Protocol = 7,
    Status = 8,
    Content = 9,
}

/// A file that is not there in the end.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub fault: Fault,
    pub reason: String,
    /// Whether another try may bring it.
    pub again: bool,
}

impl Failed {
    pub(super) fn new(fault: Fault, reason: impl Into<String>) -> Self {
        Self { fault, reason: reason.into(), again: false }
    }

    pub(super) fn network(reason: impl Into<String>) -> Self {
        Self { fault: Fault::Network, reason: reason.into(), again: true }
    }

    /// Of a status that is neither 200 nor 206.
    pub(super) fn status(url: &str, status: u16) -> Self {
        let fault = match status {
            401 | 403 => Fault::Credentials,
            _ => Fault::Status,
        };
        let remedy = match status {
            401 => "; give credentials with --header",
            403 => "; these credentials, or none, are not enough",
            _ => "",
        };
        let again = matches!(status, 408 | 429 | 500 | 502..=504);
        Self { fault, reason: format!("{url}: the source answers HTTP {status}{remedy}"), again }
    }

    pub(super) fn file(path: &std::path::Path, error: impl fmt::Display) -> Self {
        Self::new(Fault::File, format!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// By which way the last bytes came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Via {
    Node,
    Source,
}

/// Bytes by where they were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Split {
    pub bytes_from_peers: u64,
    pub bytes_from_origin: u64,
    /// They were in the node's store already.
    pub bytes_from_disk: u64,
}

impl Split {
    /// Of `taken` bytes, when so many came to the node meanwhile: perhaps for others too.
    pub(super) fn of(taken: u64, from_peers: u64, from_origin: u64) -> Self {
        let bytes_from_peers = from_peers.min(taken);
        let bytes_from_origin = from_origin.min(taken - bytes_from_peers);
        Self { bytes_from_peers, bytes_from_origin, bytes_from_disk: taken - bytes_from_peers - bytes_from_origin }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            bytes_from_peers: self.bytes_from_peers + other.bytes_from_peers,
            bytes_from_origin: self.bytes_from_origin + other.bytes_from_origin,
            bytes_from_disk: self.bytes_from_disk + other.bytes_from_disk,
        }
    }
}

/// The line of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub url: String,
    /// None: standard output.
    pub file: Option<PathBuf>,
    pub ok: bool,
    /// What this file alone would give.
    pub exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Of the whole content.
    pub bytes: u64,
    /// Of those, what an earlier run had fetched.
    pub resumed_bytes: u64,
    #[serde(flatten)]
    pub split: Split,
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
    /// Whether it came out of the swarm.
    pub shared: bool,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_shared_because: Option<String>,
}

/// As people read it.
pub(super) fn size(bytes: u64) -> String {
    let scaled = |unit: u32| bytes as f64 / f64::from(unit);
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", scaled(1 << 10)),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", scaled(1 << 20)),
        _ => format!("{:.2} GiB", scaled(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_for_others_too_is_not_counted_twice() {
        let split =
            |peers, origin, disk| Split { bytes_from_peers: peers, bytes_from_origin: origin, bytes_from_disk: disk };
        assert_eq!(Split::of(10, 4, 3), split(4, 3, 3));
        assert_eq!(Split::of(10, 40, 3), split(10, 0, 0));
        assert_eq!(Split::of(10, 4, 30), split(4, 6, 0));
        assert_eq!(Split::of(0, 4, 30), split(0, 0, 0));
    }

    #[test]
    fn statuses_that_may_pass_are_tried_again() {
        for (status, fault, again) in [
            (401, Fault::Credentials, false),
            (403, Fault::Credentials, false),
            (404, Fault::Status, false),
            (429, Fault::Status, true),
            (501, Fault::Status, false),
            (503, Fault::Status, true),
        ] {
            let failed = Failed::status("u", status);
            assert_eq!((failed.fault, failed.again), (fault, again), "{status}");
        }
    }
}
