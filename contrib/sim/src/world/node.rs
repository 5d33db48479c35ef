//! One simulated node.

use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::swarm::Swarm;

use super::due::Part;
use crate::pipe::Pipe;

/// A node: the production scheduler, and what the simulation keeps of its links and its store.
pub(super) struct Node {
    pub(super) swarm: Swarm,
    pub(super) alive: bool,
    /// Sends wrong bytes.
    pub(super) corrupt: bool,
    /// Whether the run waits for it.
    pub(super) counts: bool,
    pub(super) up: Pipe<u32, Part>,
    pub(super) down_free_ns: u64,
    pub(super) links: Vec<u32>,
    /// By blob.
    pub(super) have: Vec<Bitfield>,
    pub(super) started_ns: u64,
    pub(super) done_ns: Option<u64>,
    /// By piece, all blobs one after the other; only of the first nodes.
    pub(super) arrivals_ns: Vec<u64>,
}

impl Node {
    pub(super) fn new(swarm: Swarm, up: Pipe<u32, Part>, have: Vec<Bitfield>) -> Self {
        Self {
            swarm,
            alive: true,
            corrupt: false,
            counts: true,
            up,
            down_free_ns: 0,
            links: Vec::new(),
            have,
            started_ns: 0,
            done_ns: None,
            arrivals_ns: Vec::new(),
        }
    }
}

/// The name of a node: random, so that no order of names means anything, and its number at the end.
pub(super) fn name(random: &mut fastrand::Rng, index: usize) -> PeerId {
    let mut name = [0; 32];
    random.fill(&mut name);
    name[28..].copy_from_slice(&(index as u32).to_be_bytes());
    PeerId::from_bytes(name)
}

/// The number in a node's name.
pub(super) fn index(peer: PeerId) -> u32 {
    let bytes = peer.as_bytes();
    u32::from_be_bytes([bytes[28], bytes[29], bytes[30], bytes[31]])
}
