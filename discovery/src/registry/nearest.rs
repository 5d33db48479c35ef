//! What those ask who are no members: nobody is registered by asking.

use std::net::SocketAddr;
use std::time::Duration;

use lapwing_p2p::digest::Digest;

use super::nearness::{Place, distance};
use super::node::Node;
use super::{Caller, Registry};

impl Registry {
    /// The nodes of all groups whose names begin so, as they called.
    pub(crate) fn callers_in(&self, prefix: &str) -> Vec<Caller> {
        let groups = self.groups.iter().filter(|(name, _)| name.starts_with(prefix));
        let nodes = groups.flat_map(|(name, group)| group.nodes.iter().map(move |(_, node)| (name, node)));
        let caller = |(name, node): (&String, &Node)| Caller {
            node: node.peer,
            instance: node.instance,
            group: name.clone(),
            place: node.place.clone(),
            port: node.port,
            seed: node.seed,
            seed_port: node.seed_port,
            reached_at: node.place.address,
        };
        nodes.map(caller).collect()
    }

    /// At most `limit` nodes of `group` that hold `digest`, nearest to `from` first, in any order among equals.
    pub(crate) fn nearest(
        &mut self,
        now: Duration,
        group: &str,
        digest: Digest,
        from: &Place,
        limit: usize,
    ) -> Vec<SocketAddr> {
        let Some((group, blob)) = self.groups.get(group).and_then(|group| Some((group, group.get(digest)?))) else {
            return Vec::new();
        };
        let looked_at = group.holders_around(blob, from, &mut self.random);
        let nodes = looked_at.into_iter().filter_map(|index| group.nodes.get(index)).filter(|node| node.serves(now));
        let mut found: Vec<(u32, u32, SocketAddr)> =
            nodes.map(|node| (distance(from, &node.place), self.random.u32(..), node.address())).collect();
        if found.len() > limit {
            found.select_nth_unstable(limit);
            found.truncate(limit);
        }
        found.sort_unstable();
        found.into_iter().map(|(.., address)| address).collect()
    }
}
