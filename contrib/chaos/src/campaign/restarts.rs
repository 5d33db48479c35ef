//! Daemons that end and come back under work, and sizes that wear them out.

use super::Check;

pub(super) const CHECKS: &[Check] = &[];
