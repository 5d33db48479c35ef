//! Disks, processes, trackers, seeds, registries and clocks that fail.

use super::{Check, MIB, MINUTE, tests};

pub(super) const CHECKS: &[Check] = &[
    Check {
        number: 1,
        name: "kill -9 at every write point and at random moments",
        programs: &[
            tests("lapwing-p2p", "node", &["killed::"]),
            tests("lapwing-p2p", "store", &["crash::a_killed_writer", "crash::a_writer_killed"]),
        ],
        faults: 1000,
        traffic: 8 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 2,
        name: "writes lost and torn by power cuts, on simulated disks and on ext4",
        programs: &[
            tests("lapwing-p2p", "lib", &["store::simulated::power"]),
            tests("lapwing-p2p", "store", &["crash::a_power_cut"]),
        ],
        faults: 10_000,
        traffic: 8 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 3,
        name: "disk full, quota and I/O errors at every write",
        programs: &[
            tests("lapwing-p2p", "lib", &["store::simulated::refusal"]),
            tests("lapwing-p2p", "node", &["full::"]),
        ],
        faults: 1000,
        traffic: 8 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 7,
        name: "trackers killed, stopped and restarted under pulls",
        programs: &[tests("lapwing", "trackers", &["pulls_outlive"])],
        faults: 3,
        traffic: 8 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 8,
        name: "the only seed dies at 1, 50 and 99 %",
        programs: &[tests("lapwing", "seed", &["the_only_seed_dies_at"])],
        faults: 24,
        traffic: 8 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 9,
        name: "a registry that refuses, breaks off and lies",
        programs: &[tests("lapwing-plugins", "registry", &["hostile::"])],
        faults: 500,
        traffic: 2 * MIB,
        patience: MINUTE.saturating_mul(2),
    },
    Check {
        number: 10,
        name: "tokens that expire in the middle of a layer",
        programs: &[tests("lapwing", "tokens", &["lazy_reads_outlive", "a_token_that_is_taken_back"])],
        faults: 20,
        traffic: MIB,
        patience: MINUTE,
    },
    Check {
        number: 13,
        name: "clocks that jump by an hour and by ten years",
        programs: &[
            tests("lapwing", "clock", &["clocks_that_jump"]),
            tests("lapwing", "identity", &["clocks_that_jump"]),
        ],
        faults: 50,
        traffic: 8 * MIB,
        patience: MINUTE,
    },
];
