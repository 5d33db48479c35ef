//! What a node tells of one blob of a trial. It travels as JSON that trackers do not read, and is not believed beyond its bounds.

use lapwing_p2p::limits::MAX_TRIAL_REPORT_BYTES;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::explain::Cause;

/// Causes that are told of, the greatest first.
pub(crate) const MAX_CAUSES: usize = 3;
/// Longest error that is told, in bytes.
const MAX_ERROR: usize = 300;

/// How far a node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// It waits for the beginning.
    #[default]
    Ready,
    /// It has begun.
    Fetching,
    /// All of it is there.
    Done,
    /// It cannot have it.
    Failed,
    /// It was there, and has been removed again.
    Removed,
}

/// One node and one blob. Times are from the common beginning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Report {
    /// How far it is.
    pub stage: Stage,
    /// It heard of the trial when the others had begun.
    pub late: bool,
    /// Bytes that were there before.
    pub held: u64,
    /// Until it was there and verified, or had failed.
    pub took_ms: u64,
    /// Bytes of the registry.
    pub from_origin: u64,
    /// Bytes of nodes of its zone.
    pub from_near: u64,
    /// Bytes of nodes of other zones.
    pub from_far: u64,
    /// Bytes of seeds.
    pub from_seeds: u64,
    /// When bytes of the registry or of seeds came first.
    pub source_from_ms: Option<u64>,
    /// And last.
    pub source_until_ms: Option<u64>,
    /// What the node sent to others since the beginning, whatever blob it was of.
    pub sent: u64,
    /// The highest rate that the node was seen to take in, whatever blob it was of, in bytes per second.
    pub peak_in: u64,
    /// And to send.
    pub peak_out: u64,
    /// What limited it, with milliseconds.
    pub limited_by: Vec<(Cause, u64)>,
    /// Why it failed, or stays although it was to be removed.
    pub error: String,
}

impl Report {
    pub(crate) const fn failed(error: String) -> Self {
        Self {
            stage: Stage::Failed,
            late: false,
            held: 0,
            took_ms: 0,
            from_origin: 0,
            from_near: 0,
            from_far: 0,
            from_seeds: 0,
            source_from_ms: None,
            source_until_ms: None,
            sent: 0,
            peak_in: 0,
            peak_out: 0,
            limited_by: Vec::new(),
            error,
        }
    }

    /// Whether nothing more will happen.
    pub(crate) const fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Failed | Stage::Removed)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let error = self.error.char_indices().map(|(at, c)| (at + c.len_utf8(), if c.is_control() { ' ' } else { c }));
        let mut short =
            Self { error: error.take_while(|(end, _)| *end <= MAX_ERROR).map(|(_, c)| c).collect(), ..self.clone() };
        short.limited_by.truncate(MAX_CAUSES);
        let bytes = serde_json::to_vec(&short).unwrap_or_default();
        // Quotation marks and the like take two bytes each.
        if bytes.len() <= MAX_TRIAL_REPORT_BYTES {
            return bytes;
        }
        serde_json::to_vec(&Self { error: "(its reason is too long to be told)".to_owned(), ..short })
            .unwrap_or_default()
    }

    /// `None` if it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut report: Self = serde_json::from_slice(bytes).ok()?;
        report.limited_by.truncate(MAX_CAUSES);
        report.error = report.error.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_happened_fits_into_a_report() {
        let most = u64::MAX;
        let causes = [Cause::RegistryAnswer, Cause::Decompression, Cause::Verification, Cause::Disk];
        let full = Report {
            stage: Stage::Fetching,
            late: true,
            source_from_ms: Some(most),
            source_until_ms: Some(most),
            limited_by: causes.map(|cause| (cause, most)).to_vec(),
            ..Report::failed("\"\n\\".repeat(500))
        };
        let numbers = Report { held: most, took_ms: most, from_origin: most, from_near: most, from_far: most, ..full };
        let full = Report { from_seeds: most, sent: most, peak_in: most, peak_out: most, ..numbers };
        let bytes = full.encode();
        assert!(bytes.len() <= MAX_TRIAL_REPORT_BYTES, "{}", bytes.len());
        let read = Report::decode(&bytes).unwrap();
        assert_eq!((read.stage, read.peak_out, read.limited_by.len()), (Stage::Fetching, most, MAX_CAUSES));
        assert!(!read.error.is_empty());
        let short = Report::failed("no credentials".to_owned());
        assert_eq!(Report::decode(&short.encode()), Some(short));
        assert_eq!(Report::decode(b"{\"stage\":\"asleep\"}"), None);
        assert_eq!(Report::decode(b"{}").unwrap().stage, Stage::Ready, "of another version");
    }
}
