//! Which seeds live.

use std::net::IpAddr;
use std::time::Duration;

use super::group::Group;
use super::reachable;
use crate::limits::MAX_SEEDS;
use crate::seed::Seed;

impl Group {
    /// The seeds that can be asked, for the node of number `asker`, which reached the tracker at `reached_at`: the same for
    /// every asker that has nothing against one of them.
    pub(super) fn live_seeds(&self, now: Duration, asker: u32, reached_at: IpAddr) -> Vec<Seed> {
        let Some(asking) = self.nodes.get(asker) else { return Vec::new() };
        let live = self.seeds.iter().filter(|index| **index != asker).filter_map(|index| {
            let node = self.nodes.get(*index)?;
            let serves = node.serves(now) && !node.is_suspect(now) && !asking.has_grudge(now, node);
            let address = reachable(node.address(), asking.place.address, reached_at).ip();
            serves.then_some(Seed { peer: node.peer, address, piece_port: node.port, seed_port: node.seed_port })
        });
        let mut live: Vec<Seed> = live.collect();
        // Of too many the same ones are named to all.
        live.sort_unstable_by_key(|seed| seed.peer);
        live.truncate(MAX_SEEDS);
        live
    }

    /// Notes whether a node is a seed.
    pub(super) fn note_seed(&mut self, index: u32, seed_port: u16) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        node.seed_port = seed_port;
        if seed_port == 0 {
            self.seeds.remove(&index);
        } else {
            self.seeds.insert(index);
        }
    }
}
