//! The simulated cluster: who its nodes are and what they hold, made anew from numbers whenever it is needed.

use std::time::Duration;

use lapwing_discovery::proto;

/// As nodes do by default.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(15);
const BLOBS_PER_NODE: u64 = 200;
/// Blobs that every node holds: what all containers of a cluster have in common.
const EVERYWHERE: u64 = 40;
/// Of the others, the first is a thousand times as popular as the thousandth.
const TAIL: f64 = 1e6;
/// One node in so many has each blob in part only.
const PARTIAL: u64 = 32;

pub(crate) struct Crowd {
    pub(crate) nodes: u64,
}

impl Crowd {
    pub(crate) const fn new(nodes: u64) -> Self {
        Self { nodes }
    }

    pub(crate) fn caller(&self, node: u64) -> proto::Caller {
        proto::Caller {
            node: bytes(node, 1),
            group: "default".to_owned(),
            piece_port: 7081,
            zone: format!("zone-{}", node % 3),
            rack: format!("rack-{}", node / 40),
            instance: node + 1,
            seed: false,
            seed_port: 0,
        }
    }

    /// What a node holds: the same each time.
    pub(crate) fn holdings(&self, node: u64) -> Vec<proto::Holding> {
        let mut random = fastrand::Rng::with_seed(node ^ 0x5eed);
        let tail = (EVERYWHERE..BLOBS_PER_NODE).map(|_| EVERYWHERE + rank(&mut random));
        let mut blobs: Vec<u64> = (0..EVERYWHERE).chain(tail).collect();
        blobs.sort_unstable();
        blobs.dedup();
        let state = |blob: u64| match (node + blob) % PARTIAL {
            0 => proto::HoldingState::Partial,
            _ => proto::HoldingState::Complete,
        };
        blobs.into_iter().map(|blob| proto::Holding { digest: digest(blob), state: state(blob).into() }).collect()
    }

    pub(crate) fn any(&self, random: &mut fastrand::Rng) -> u64 {
        random.u64(..self.nodes)
    }

    /// A blob that somebody asks for: one of those that all have, or one of the tail, as popular as it is held.
    pub(crate) fn wanted(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        digest(if random.u8(..5) == 0 { random.u64(..EVERYWHERE) } else { EVERYWHERE + rank(random) })
    }
}

fn rank(random: &mut fastrand::Rng) -> u64 {
    TAIL.powf(random.f64()) as u64
}

pub(crate) fn digest(blob: u64) -> Vec<u8> {
    bytes(blob, 2)
}

fn bytes(number: u64, kind: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ kind);
    let mut bytes = vec![0; 32];
    random.fill(&mut bytes);
    bytes
}
