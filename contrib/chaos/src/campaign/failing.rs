//! Disks, processes, trackers, seeds, registries and clocks that fail.

use super::{Check, MIB, MINUTE, tests};

pub(super) const CHECKS: &[Check] = &[Check {
    number: 1,
    name: "kill -9 at every write point and at random moments",
    programs: &[tests("lapwing-p2p", "node", &["killed::"]), tests("lapwing-p2p", "store", &["crash::"])],
    faults: 1000,
    traffic: 8 * MIB,
    patience: MINUTE,
}];
