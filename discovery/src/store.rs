//! What several trackers keep together: which node was heard when, and which blobs it holds.
//!
//! A tracker thinks with its own [`Registry`](crate::registry::Registry). With a shared store it also writes down what
//! nodes tell it, and learns from there what they told other trackers ([`server`](crate::server)): so a tracker that has
//! just started answers at once, and nodes may talk to any of them. Statements, reports and leases are not shared: of one
//! blob, clients ask the same tracker.
//!
//! Everything here is soft: it can be written again from what trackers know, and they from what nodes announce. Times are
//! those of the trackers' clocks, since the Unix epoch, which must agree to within seconds.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;

use crate::registry::{Caller, Place};
use crate::wire::check_label;

mod record;

pub use self::record::milliseconds;

/// A node as a store keeps it. [`to_bytes`](Self::to_bytes) is its form there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its key.
    pub peer: PeerId,
    /// Drawn when its process started: what another instance held is not held any more.
    pub instance: u64,
    /// When a tracker last heard from it, since the Unix epoch.
    pub seen: Duration,
    /// Where it stands.
    pub place: Place,
    /// Port of its piece wire; 0 if it serves nobody.
    pub port: u16,
    /// Whether it keeps blobs for others.
    pub seed: bool,
    /// Port of its seed service; 0 if it is no seed.
    pub seed_port: u16,
}

impl NodeRecord {
    /// What is kept of a caller that was heard at `seen`.
    pub fn new(caller: &Caller, seen: Duration) -> Self {
        Self {
            peer: caller.node,
            instance: caller.instance,
            seen,
            place: caller.place.clone(),
            port: caller.port,
            seed: caller.seed,
            seed_port: caller.seed_port,
        }
    }

    /// The node as if it called; `reached_at` is nobody's.
    pub(crate) fn caller(&self, group: &str) -> Caller {
        Caller {
            node: self.peer,
            instance: self.instance,
            group: group.to_owned(),
            place: self.place.clone(),
            port: self.port,
            seed: self.seed,
            seed_port: self.seed_port,
            reached_at: IpAddr::from([0, 0, 0, 0]),
        }
    }

    /// Whether a tracker could have written it.
    fn is_possible(&self) -> bool {
        check_label("zone", &self.place.zone).is_ok() && check_label("rack", &self.place.rack).is_ok()
    }
}

/// News of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Its group.
    pub group: String,
    /// What is known of it. An older record than the store's does not replace that.
    pub node: NodeRecord,
    /// What it holds; `None` withdraws. No digest twice.
    pub holdings: Vec<(Digest, Option<Holding>)>,
    /// Whether it holds nothing else. Such an update is left out if the store's record of the node is newer.
    pub whole: bool,
}

/// A node that holds a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHolder {
    /// Who.
    pub node: NodeRecord,
    /// What.
    pub holding: Holding,
}

/// Who holds a blob.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredHolders {
    /// In no order.
    pub holders: Vec<StoredHolder>,
    /// Whether there may be more.
    pub truncated: bool,
}

/// The store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or refuses.
    #[error("the tracker's store {store} failed: {reason}; check that it runs and that tracker.store names it rightly")]
    Failed {
        /// Which, without secrets.
        store: String,
        /// What happened.
        reason: String,
    },
    /// It did not answer in time.
    #[error("the tracker's store did not answer in time; check that it runs and is not overloaded")]
    Late,
    /// What was written to it before is gone. It works again from the next call on.
    #[error("the tracker's store {store} has lost what was in it; what this tracker knows is written again")]
    Lost {
        /// Which, without secrets.
        store: String,
    },
}

/// A store that trackers share.
///
/// Contract:
/// * Calls may be made at any time, from several trackers at once. Each ends by itself within seconds, and connects again
///   by itself after a failure.
/// * Groups share nothing.
/// * A node counts for as long as its record was seen within `ttl` before `now`, and a holding as long as its node has the
///   instance under which it was written.
/// * What a call wrote is seen by every call that begins after it, through whichever tracker.
/// * A store that finds that it was emptied says [`StoreError::Lost`], once to each tracker.
pub trait HolderStore: Send + Sync + 'static {
    /// Writes news of nodes, one after the other. Returns the places, in no order, of those among `updates` whose nodes it did not know: if
    /// they were written before, they have been forgotten meanwhile, and what they held with them.
    fn write<'a>(&'a self, updates: &'a [Update]) -> BoxFuture<'a, Result<Vec<usize>, StoreError>>;

    /// Forgets these instances of nodes and what they hold; a node that has another instance by now stays.
    fn forget<'a>(&'a self, group: &'a str, nodes: &'a [(PeerId, u64)]) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The holders of each of `digests`, in their order, at most `limit` of each; of more than that, which ones is left to
    /// chance or the store.
    fn find<'a>(
        &'a self,
        group: &'a str,
        digests: &'a [Digest],
        limit: usize,
        alive_since: Duration,
    ) -> BoxFuture<'a, Result<Vec<StoredHolders>, StoreError>>;

    /// The seeds of a group, at most `limit`.
    fn seeds<'a>(
        &'a self,
        group: &'a str,
        limit: usize,
        alive_since: Duration,
    ) -> BoxFuture<'a, Result<Vec<NodeRecord>, StoreError>>;

    /// Forgets some of the nodes last seen before `alive_since`, in all groups, and says how many.
    fn expire(&self, alive_since: Duration) -> BoxFuture<'_, Result<usize, StoreError>>;
}
