//! The nodes and blobs of one group.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, Statement, StatementKind};
use lapwing_p2p::identity::PeerId;

use super::blob::Blob;
use super::nearness::Place;
use super::neighbours::Neighbours;
use super::node::{Node, Standing};
use super::orders::Orders;
use super::slab::Slab;
use super::votes::Cast;
use super::{Caller, Refusal, Registration, Totals};
use crate::lease::sites::{LeasePolicy, Sites};
use crate::limits::{
    MAX_BLOBS_PER_NODE, MAX_EXPIRED_HOLDINGS_PER_TICK, MAX_HOLDINGS, MAX_LABELS, MAX_NODES, MAX_STATEMENTS_PER_NODE,
    NODE_TTL,
};

/// One group. Nodes and blobs have small numbers here, which are used again; nothing refers to a number that is free.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) nodes: Slab<Node>,
    /// Of each node, under its number; of free numbers it means nothing.
    pub(super) standings: Vec<Standing>,
    pub(super) by_peer: HashMap<PeerId, u32, RandomState>,
    /// Those of the nodes that are seeds.
    pub(super) seeds: BTreeSet<u32>,
    pub(super) blobs: Slab<Blob>,
    pub(super) by_digest: HashMap<Digest, u32, RandomState>,
    pub(super) sites: Sites,
    pub(super) orders: Orders,
    pub(super) neighbours: Neighbours,
    /// Blobs with lease books, and nodes that these know: a tick looks at no others.
    pub(super) leased: BTreeSet<u32>,
    pub(super) leasing: BTreeSet<u32>,
    /// When to see whether a node has fallen silent: [`Node::due`].
    due: BTreeSet<(Duration, u32)>,
    /// Labels of zones and racks, which many nodes share.
    labels: HashSet<Arc<str>>,
}

impl Group {
    pub(super) fn new(policy: LeasePolicy) -> Self {
        Self { sites: Sites::new(policy), ..Self::default() }
    }

    /// Registers the caller under the number `next`, or finds its registration.
    pub(super) fn register(
        &mut self,
        now: Duration,
        totals: &mut Totals,
        caller: &Caller,
        next: Registration,
    ) -> Result<(u32, Registration), Refusal> {
        if let Some(index) = self.by_peer.get(&caller.node).copied()
            && let Some(node) = self.nodes.get_mut(index)
        {
            if node.instance == caller.instance && !node.is_gone(now) {
                node.heard(now);
                if node.place != caller.place {
                    self.neighbours.remove(index, &node.place);
                    node.place = share_labels(&mut self.labels, &caller.place);
                    self.neighbours.insert(index, &node.place);
                    self.standings[index as usize] = Standing::of(node);
                }
                (node.port, node.seed) = (caller.port, caller.seed);
                self.standings[index as usize].note(node);
                totals.registrations += u64::from(std::mem::take(&mut node.hearsay));
                let registration = node.registration;
                self.note_seed(index, caller.seed_port);
                return Ok((index, registration));
            }
            self.remove_node(totals, index);
        }
        if totals.nodes >= MAX_NODES {
            return Err(Refusal::Full { what: "nodes", limit: MAX_NODES });
        }
        let place = share_labels(&mut self.labels, &caller.place);
        let mut node = Node::new(caller.node, caller.instance, next, place, caller.port);
        node.seed = caller.seed;
        node.heard(now);
        node.due = now + NODE_TTL;
        let (standing, place) = (Standing::of(&node), node.place.clone());
        let index = self.nodes.insert(node);
        self.standings.resize(self.nodes.numbers(), standing);
        self.standings[index as usize] = standing;
        self.due.insert((now + NODE_TTL, index));
        self.neighbours.insert(index, &place);
        self.by_peer.insert(caller.node, index);
        self.note_seed(index, caller.seed_port);
        totals.nodes += 1;
        Ok((index, next))
    }

    pub(super) fn announce(
        &mut self,
        totals: &mut Totals,
        node: u32,
        holdings: &[(Digest, Option<Holding>)],
    ) -> Result<(), Refusal> {
        let Some(known) = self.nodes.get(node) else { return Ok(()) };
        // Counted before anything changes: a digest named twice, or known already, is counted once too often at worst.
        let added =
            holdings.iter().filter(|(digest, holding)| holding.is_some() && !self.holds(known, *digest)).count();
        if known.blobs.len() + added > MAX_BLOBS_PER_NODE {
            return Err(Refusal::blobs(known.peer));
        }
        if totals.holdings + added > MAX_HOLDINGS {
            return Err(Refusal::holdings());
        }
        for (digest, holding) in holdings {
            self.hold(totals, node, *digest, *holding);
        }
        Ok(())
    }

    pub(super) fn sync(
        &mut self,
        totals: &mut Totals,
        node: u32,
        holdings: &[(Digest, Holding)],
        statements: &[Statement],
        random: &mut fastrand::Rng,
    ) -> Result<(), Refusal> {
        let Some(known) = self.nodes.get(node) else { return Ok(()) };
        if holdings.len() > MAX_BLOBS_PER_NODE {
            return Err(Refusal::blobs(known.peer));
        }
        if statements.len() > MAX_STATEMENTS_PER_NODE {
            return Err(Refusal::statements(known.peer));
        }
        if totals.holdings - known.blobs.len() + holdings.len() > MAX_HOLDINGS {
            return Err(Refusal::holdings());
        }
        let listed: HashSet<Digest> = holdings.iter().map(|(digest, _)| *digest).collect();
        let blobs = known.blobs.iter().filter_map(|blob| self.blobs.get(*blob));
        let unlisted: Vec<Digest> = blobs.map(|blob| blob.digest).filter(|digest| !listed.contains(digest)).collect();
        for digest in unlisted {
            self.hold(totals, node, digest, None);
        }
        for (digest, holding) in holdings {
            self.hold(totals, node, *digest, Some(*holding));
        }
        self.withdraw_statements(node, |_| true);
        self.state(node, statements, random)
    }

    pub(super) fn state(
        &mut self,
        node: u32,
        statements: &[Statement],
        random: &mut fastrand::Rng,
    ) -> Result<(), Refusal> {
        if self.lacks_room(node, statements.len()) {
            self.withdraw_statements(node, StatementKind::is_passing);
        }
        if self.lacks_room(node, statements.len()) {
            return self.nodes.get(node).map_or(Ok(()), |known| Err(Refusal::statements(known.peer)));
        }
        for statement in statements {
            self.vote(node, statement, random);
        }
        Ok(())
    }

    pub(super) fn leave(&mut self, totals: &mut Totals, peer: PeerId, instance: u64) {
        let Some(index) = self.by_peer.get(&peer).copied() else { return };
        if self.nodes.get(index).is_some_and(|node| node.instance == instance) {
            self.remove_node(totals, index);
        }
    }

    /// Forgets what has expired; true if some of it is left for the next tick.
    pub(super) fn tick(&mut self, now: Duration, totals: &mut Totals) -> bool {
        let backlog = self.expire_nodes(now, totals);
        let suspect = |node: &u32| self.nodes.get(*node).is_some_and(|node| node.is_suspect(now));
        for node in self.leasing.iter().copied().filter(suspect).collect::<Vec<_>>() {
            self.forget_in_books(node);
        }
        self.tick_books(now, totals);
        self.orders.tick(now);
        backlog
    }

    /// Looks at nodes that may have fallen silent, and no others: each about once in [`NODE_TTL`].
    fn expire_nodes(&mut self, now: Duration, totals: &mut Totals) -> bool {
        let mut holdings = 0;
        while let Some((due, index)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            let Some(node) = self.nodes.get_mut(index).filter(|node| node.due == due) else {
                self.due.pop_first();
                continue;
            };
            if !node.is_gone(now) {
                node.due = node.last_seen + NODE_TTL;
                let again = (node.due, index);
                self.due.pop_first();
                self.due.insert(again);
                continue;
            }
            if holdings >= MAX_EXPIRED_HOLDINGS_PER_TICK {
                return true;
            }
            holdings += node.blobs.len() + 1;
            self.remove_node(totals, index);
        }
        false
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.len() == 0
    }

    pub(super) fn books(&self) -> usize {
        self.leased.iter().filter_map(|blob| self.blobs.get(*blob)).map(|blob| blob.books.len()).sum()
    }

    pub(super) fn get(&self, digest: Digest) -> Option<&Blob> {
        self.by_digest.get(&digest).and_then(|blob| self.blobs.get(*blob))
    }

    fn holds(&self, node: &Node, digest: Digest) -> bool {
        self.by_digest.get(&digest).is_some_and(|blob| node.blobs.contains(blob))
    }

    /// The number of a blob, which is made if need be; the caller puts something into it.
    pub(super) fn blob(&mut self, digest: Digest) -> u32 {
        *self.by_digest.entry(digest).or_insert_with(|| self.blobs.insert(Blob::new(digest)))
    }

    fn hold(&mut self, totals: &mut Totals, node: u32, digest: Digest, holding: Option<Holding>) {
        if holding.is_none() && !self.by_digest.contains_key(&digest) {
            return;
        }
        let (index, numbers) = (self.blob(digest), self.nodes.numbers());
        let (Some(blob), Some(node_state)) = (self.blobs.get_mut(index), self.nodes.get_mut(node)) else { return };
        totals.holdings = totals.holdings.saturating_add_signed(blob.holders.set(node, holding, numbers));
        if holding.is_some() {
            node_state.blobs.insert(index);
            return;
        }
        node_state.blobs.remove(&index);
        for book in &mut blob.books {
            book.forget(node_state.peer, &mut self.sites);
        }
        self.drop_if_empty(index);
    }

    /// The node itself has not called.
    pub(super) fn note_hearsay(&mut self, node: u32) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.hearsay = true;
        }
    }

    /// What nodes of this group are said to hold, of one blob.
    pub(super) fn restore_blob(
        &mut self,
        totals: &mut Totals,
        digest: Digest,
        holders: &[(u32, Holding)],
    ) -> Result<(), Refusal> {
        if totals.holdings + holders.len() > MAX_HOLDINGS {
            return Err(Refusal::holdings());
        }
        let (index, numbers) = (self.blob(digest), self.nodes.numbers());
        let Some(blob) = self.blobs.get_mut(index) else { return Ok(()) };
        for (node, holding) in holders {
            let Some(node_state) = self.nodes.get_mut(*node) else { continue };
            if node_state.blobs.len() >= MAX_BLOBS_PER_NODE {
                continue;
            }
            totals.holdings = totals.holdings.saturating_add_signed(blob.holders.set(*node, Some(*holding), numbers));
            node_state.blobs.insert(index);
        }
        self.drop_if_empty(index);
        Ok(())
    }

    fn vote(&mut self, node: u32, statement: &Statement, random: &mut fastrand::Rng) {
        let index = self.blob(statement.subject);
        let (Some(blob), Some(voter)) = (self.blobs.get_mut(index), self.nodes.get_mut(node)) else { return };
        if voter.statements.remove(&(index, statement.kind)) {
            blob.votes.withdraw(node, statement.kind);
        }
        match blob.votes.cast(node, statement, random) {
            Cast::Counted => {
                voter.statements.insert((index, statement.kind));
            }
            Cast::Displaced(other, kind) => {
                voter.statements.insert((index, statement.kind));
                if let Some(other) = self.nodes.get_mut(other) {
                    other.statements.remove(&(index, kind));
                }
            }
            Cast::Enough | Cast::Full => {}
        }
    }

    fn lacks_room(&self, node: u32, statements: usize) -> bool {
        self.nodes.get(node).is_some_and(|known| known.statements.len() + statements > MAX_STATEMENTS_PER_NODE)
    }

    fn withdraw_statements(&mut self, node: u32, which: impl Fn(StatementKind) -> bool) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        let statements: Vec<(u32, StatementKind)> = known.statements.extract_if(|(_, kind)| which(*kind)).collect();
        for (index, kind) in statements {
            if let Some(blob) = self.blobs.get_mut(index) {
                blob.votes.withdraw(node, kind);
            }
            self.drop_if_empty(index);
        }
    }

    fn remove_node(&mut self, totals: &mut Totals, node: u32) {
        self.withdraw_statements(node, |_| true);
        self.forget_in_books(node);
        let Some(removed) = self.nodes.remove(node) else { return };
        self.by_peer.remove(&removed.peer);
        self.seeds.remove(&node);
        self.due.remove(&(removed.due, node));
        self.neighbours.remove(node, &removed.place);
        let numbers = self.nodes.numbers();
        totals.nodes -= 1;
        for index in removed.blobs {
            if let Some(blob) = self.blobs.get_mut(index) {
                totals.holdings = totals.holdings.saturating_add_signed(blob.holders.set(node, None, numbers));
            }
            self.drop_if_empty(index);
        }
    }

    pub(super) fn drop_if_empty(&mut self, index: u32) {
        if self.blobs.get(index).is_some_and(Blob::is_empty)
            && let Some(blob) = self.blobs.remove(index)
        {
            self.by_digest.remove(&blob.digest);
        }
    }
}

/// The same place with labels that others have, too, so that comparing thousands of places touches no text. Labels that no
/// node has any more are forgotten when there are many.
fn share_labels(labels: &mut HashSet<Arc<str>>, place: &Place) -> Place {
    let mut share = |label: &Arc<str>| {
        if let Some(known) = labels.get(label) {
            return Arc::clone(known);
        }
        if labels.len() >= MAX_LABELS {
            labels.retain(|label| Arc::strong_count(label) > 1);
        }
        if labels.len() < MAX_LABELS {
            labels.insert(Arc::clone(label));
        }
        Arc::clone(label)
    };
    Place { zone: share(&place.zone), rack: share(&place.rack), address: place.address }
}
