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

pub(crate) use pulls::Pulls;
