//! Where the time and the bytes of the last pulls went: `lapwing explain`, and the dashboard's picture.
//!
//! * [`pulls`]: which blobs are one pull of an image, as they pass the mirror
//! * [`merge`]: the timelines of an image's blobs on one axis
//! * [`limits`]: what limited it, from the merged cells alone
//! * [`view`]: the form in which it is told
//! * [`api`]: `GET /api/v1/pulls`
//!
//! What is taken down, and by whom, is in [`lapwing_p2p::timeline`]. All of it is in memory, and bounded: the newest pulls alone.

pub(crate) mod api;
mod limits;
mod merge;
mod pulls;
pub(crate) mod view;

pub(crate) use limits::{Cause, Share};
pub(crate) use pulls::Pulls;

use std::time::Duration;

use lapwing_p2p::timeline::Recorded;

/// What limited one blob's way here in a time of this length, the greatest part first; `offset` is when its timeline begins.
pub(crate) fn limits_of(recorded: &Recorded, offset: Duration, length: Duration) -> Vec<Share> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let merged = merge::Merged::of(&[(offset, recorded)], length);
    limits::limited_by(&merged, length.as_secs_f64(), cores)
}
