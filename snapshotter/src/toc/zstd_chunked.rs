//! zstd:chunked: the JSON in a skippable frame (containers/storage, `pkg/chunked/internal/minimal`).

use lapwing_p2p::digest::Digest;

use super::{TocError, bounded_json, malformed};

/// The JSON out of what the skippable frame holds, once its digest was checked.
pub(super) fn json(stored: &[u8], expected: Digest, json_length: u64) -> Result<Vec<u8>, TocError> {
    let actual = Digest::of(stored);
    if actual != expected {
        return Err(TocError::Digest { expected, actual });
    }
    let length = bounded_json(json_length)?;
    let json = zstd::bulk::decompress(stored, length).map_err(|error| malformed(error.to_string()))?;
    if json.len() == length { Ok(json) } else { Err(malformed(format!("{} bytes for {length}", json.len()))) }
}
