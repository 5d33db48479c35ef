//! Peers, trackers, clients, images and registries that mean harm.

use std::time::Duration;

use super::{Check, MIB, MINUTE, tests};

const PEERS: &str = "lapwing-p2p";
const TRACKERS: &str = "lapwing-discovery";
const LAYERS: &str = "lapwing-snapshotter";
const REGISTRIES: &str = "lapwing-plugins";

pub(super) const CHECKS: &[Check] = &[
    Check {
        number: 4,
        name: "peers that flip a bit, truncate, extend, swap indexes, answer another blob, 1-100 % of them",
        programs: &[
            tests(PEERS, "node", &["spoilers::", "hostile::", "blame::"]),
            tests(PEERS, "wire", &[]),
            tests("lapwing", "corruption", &[]),
        ],
        faults: 1500,
        traffic: 4 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 5,
        name: "a lying tracker",
        programs: &[
            tests(TRACKERS, "lying", &["lying_tracker"]),
            tests(TRACKERS, "lib", &["client::answers"]),
            tests(PEERS, "node", &["exchange::lies"]),
        ],
        faults: 500,
        traffic: 16 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 6,
        name: "slow peers and clients in both roles, 10,000 idle connections",
        programs: &[tests(PEERS, "node", &["slow::"]), tests("lapwing", "hostile_http", &["idle::"])],
        faults: 10_000,
        traffic: 3 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 14,
        name: "truncated, garbage, multi-member gzip and zstd",
        programs: &[tests(LAYERS, "hostile", &["damaged_compression", "fuzz::layers"])],
        faults: 50_000,
        traffic: 4 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 15,
        name: "tar attacks",
        programs: &[tests(LAYERS, "hostile", &["attacks_by_tars"])],
        faults: 450,
        traffic: 4 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 16,
        name: "bombs, tables that lie, overlapping and overflowing offsets",
        programs: &[tests(
            LAYERS,
            "hostile",
            &["bombs_and_tables", "fuzz::indexes", "fuzz::tables", "fuzz::ztocs", "fuzz::images", "fuzz::profiles"],
        )],
        faults: 100_000,
        traffic: 4 * MIB,
        patience: MINUTE,
    },
    Check {
        number: 17,
        name: "directories, names and attributes at their limits",
        programs: &[tests("lapwing", "equality", &["oddities", "generated_layers"])],
        faults: 100_000,
        traffic: MIB,
        patience: Duration::from_secs(600),
    },
    Check {
        number: 19,
        name: "hostile HTTP: ranges, smuggling, floods of headers, redirects",
        programs: &[
            tests("lapwing", "hostile_http", &["requests::"]),
            tests(TRACKERS, "calls", &[]),
            tests(REGISTRIES, "registry", &["redirects::", "bodies::", "forward::"]),
        ],
        faults: 5000,
        traffic: MIB,
        patience: MINUTE,
    },
    Check {
        number: 20,
        name: "unauthorized access: other groups, forged and expired certificates, addresses within the network",
        programs: &[
            tests(TRACKERS, "hostile", &["another_group"]),
            tests(TRACKERS, "members", &[]),
            tests(
                PEERS,
                "node",
                &["other_groups", "another_group", "stranger", "anothers_address", "handshake_without"],
            ),
            tests(REGISTRIES, "registry", &["attacks::", "authorize::", "tokens::credentials", "rebinding::"]),
            tests(REGISTRIES, "urls", &["nobody_leads_inside"]),
            tests("lapwing", "private", &[]),
            tests("lapwing", "identity", &["stranger"]),
            tests("lapwing", "proxy", &["nobody_named"]),
        ],
        faults: 9000,
        traffic: MIB,
        patience: MINUTE,
    },
];
