//! What the admin page shows of the registry.

use std::net::SocketAddr;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::PeerId;

use super::Registry;
use super::node::Node;
use crate::limits::MAX_SNAPSHOT_ROWS;

/// The tracker at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrackerSnapshot {
    /// Registered nodes, over all groups.
    pub nodes: usize,
    /// Blobs that somebody holds, states something of or fetches.
    pub blobs: usize,
    /// Pairs of a blob and a node that holds some or all of it.
    pub holders: usize,
    /// Groups.
    pub groups: usize,
    /// Origin leases under way.
    pub leases: usize,
    /// The nodes, at most [`MAX_SNAPSHOT_ROWS`].
    pub members: Vec<Member>,
    /// The blobs with the most leases, then with the most holders first, at most [`MAX_SNAPSHOT_ROWS`].
    pub swarms: Vec<SwarmSnapshot>,
}

/// A registered node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its group.
    pub group: String,
    /// Its key.
    pub peer: PeerId,
    /// Where its piece wire listens; port 0 if it serves nobody.
    pub address: SocketAddr,
    /// Its zone, or empty.
    pub zone: String,
    /// Its rack, or empty.
    pub rack: String,
    /// Blobs it announced.
    pub blobs: usize,
    /// Since it was last heard from.
    pub silence: Duration,
    /// Whether it is kept from answers because others reported it.
    pub set_aside: bool,
}

/// A blob that nodes hold or fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmSnapshot {
    /// Its group.
    pub group: String,
    /// The blob.
    pub digest: Digest,
    /// Nodes that hold some or all of it.
    pub holders: usize,
    /// Nodes that hold all of it.
    pub complete: u32,
    /// Origin leases under way.
    pub leases: usize,
    /// Pieces that live nodes fetched from the origin under leases.
    pub fetched: u32,
}

impl Registry {
    /// How many there are, without any rows: cheap enough for every tick.
    pub fn counts(&self) -> TrackerSnapshot {
        TrackerSnapshot {
            nodes: self.totals.nodes,
            blobs: self.groups.values().map(|group| group.blobs.len()).sum(),
            holders: self.totals.holdings,
            groups: self.groups.len(),
            ..TrackerSnapshot::default()
        }
    }

    /// The state at `now`.
    pub fn snapshot(&self, now: Duration) -> TrackerSnapshot {
        let mut snapshot = self.counts();
        for (name, group) in &self.groups {
            for (_, node) in group.nodes.iter().take(MAX_SNAPSHOT_ROWS - snapshot.members.len()) {
                snapshot.members.push(member(now, name, node));
            }
            for (_, blob) in group.blobs.iter() {
                let (holders, complete) = blob.holders.counts();
                let leases = blob.books.iter().map(|book| book.live()).sum();
                snapshot.leases += leases;
                let fetched = blob.books.iter().map(|book| book.fetched()).sum();
                let swarm =
                    SwarmSnapshot { group: name.clone(), digest: blob.digest, holders, complete, leases, fetched };
                snapshot.swarms.push(swarm);
                if snapshot.swarms.len() >= 2 * MAX_SNAPSHOT_ROWS {
                    keep_busiest(&mut snapshot.swarms);
                }
            }
        }
        keep_busiest(&mut snapshot.swarms);
        snapshot
    }
}

/// What is shown of a node.
pub(super) fn member(now: Duration, group: &str, node: &Node) -> Member {
    Member {
        group: group.to_owned(),
        peer: node.peer,
        address: node.address(),
        zone: node.place.zone.to_string(),
        rack: node.place.rack.to_string(),
        blobs: node.blobs.len(),
        silence: now.saturating_sub(node.last_seen),
        set_aside: node.is_set_aside(now),
    }
}

fn keep_busiest(swarms: &mut Vec<SwarmSnapshot>) {
    swarms.sort_by_key(|swarm| std::cmp::Reverse((swarm.leases, swarm.holders, swarm.digest)));
    swarms.truncate(MAX_SNAPSHOT_ROWS);
}
