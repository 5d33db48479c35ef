//! Peers, trackers, clients, images and registries that mean harm.

use super::Check;

pub(super) const CHECKS: &[Check] = &[];
