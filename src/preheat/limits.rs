//! Every bound on what preheating is asked for, and on what it keeps.

use std::time::Duration;

/// Jobs remembered, ended ones included; the oldest ended one goes first.
pub(crate) const MAX_JOBS: usize = 256;
/// Jobs that run at once.
pub(crate) const MAX_RUNNING: usize = 64;
/// Images of one job.
pub(crate) const MAX_IMAGES: usize = 64;
/// Platforms of one job.
pub(crate) const MAX_PLATFORMS: usize = 16;
/// Blobs of one job.
pub(crate) const MAX_BLOBS: usize = 4096;
/// Nodes that a job may name.
pub(crate) const MAX_NODES: u32 = 100_000;
/// Blobs of one job that are fetched at once.
pub(crate) const MAX_AT_ONCE: usize = 8;
/// The same of a job for nodes of the group: they fetch, and all of it is to be told with one sign of life.
pub(crate) const MAX_ORDERED_AT_ONCE: usize = 256;
/// Orders of others that are carried out at once.
pub(crate) const MAX_ORDERS_AT_ONCE: usize = 8;
/// Orders of others that wait or are under way; what is beyond is not taken on.
pub(crate) const MAX_ORDERS_WAITING: usize = 4096;
/// An order that no further node carries out within this time is given up, and a blob of which seeds get nothing more.
pub(crate) const ORDER_PATIENCE: Duration = Duration::from_secs(1800);
/// Longest name of an image, in bytes: registry, repository, tag and digest at their longest.
pub(crate) const MAX_NAME: usize = 259 + 255 + 128 + 71 + 3;
/// Longest body of a request to the job API, in bytes: [`MAX_IMAGES`] names of full length.
pub(crate) const MAX_REQUEST: usize = 64 * 1024;
/// Longest body of a notification, in bytes.
pub(crate) const MAX_NOTIFICATION: usize = 1 << 20;
/// Events in one notification that are looked at.
pub(crate) const MAX_EVENTS: usize = 1024;
/// Notifications that are being read at once; who comes then is told to come again.
pub(crate) const MAX_NOTIFICATIONS: usize = 32;
/// How long a notification may take to arrive.
pub(crate) const NOTIFICATION_TIME: Duration = Duration::from_secs(10);
/// Shortest and longest secret of a webhook, in bytes.
pub(crate) const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=1024;
/// Manifests of one image that are read.
pub(crate) const MAX_MANIFESTS: usize = 64;
/// How long a registry may take to describe an image.
pub(crate) const RESOLVE_TIME: Duration = Duration::from_secs(120);
/// A push whose manifest does not come within this time after its last blob is over.
pub(crate) const PUSH_PATIENCE: Duration = Duration::from_secs(600);
