//! Daemons that end and come back under work, and sizes that wear them out.

use std::time::Duration;

use super::{Check, MIB, tests};

pub(super) const CHECKS: &[Check] = &[
    Check {
        number: 11,
        name: "the daemon killed and upgraded under 100 lazy mounts",
        programs: &[tests("lapwing", "survive", &["readers_go_on"])],
        faults: 40,
        traffic: 4 * MIB,
        patience: Duration::from_secs(15),
    },
    Check {
        number: 12,
        name: "containerd and the daemon killed under pulls, both orders",
        programs: &[tests("lapwing", "killed", &["killed_under_pulls"])],
        faults: 150,
        traffic: 16 * MIB,
        patience: Duration::from_secs(120),
    },
    Check {
        number: 18,
        name: "a sparse file of 100 GB and a layer of 20 GB, 16 random readers",
        programs: &[tests("lapwing-snapshotter", "large", &["mounts_at_once"])],
        faults: 4,
        // The fault is the layer: nothing is served before it.
        traffic: 0,
        patience: Duration::from_secs(30),
    },
];
