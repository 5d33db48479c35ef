//! The nodes and blobs of one group.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, LeaseReply, Settlement, Statement, StatementKind};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::PieceLayout;

use super::blob::Blob;
use super::node::Node;
use super::slab::Slab;
use super::votes::Cast;
use super::{Caller, Refusal, Registration, Totals};
use crate::lease::{LeaseBook, Wanted};
use crate::limits::{
    MAX_BLOBS_PER_NODE, MAX_BOOKS, MAX_EXPIRED_PER_TICK, MAX_HOLDINGS, MAX_LENGTHS_PER_BLOB, MAX_NODES,
    MAX_STATEMENTS_PER_NODE,
};

/// One group. Nodes and blobs have small numbers here, which are used again; nothing refers to a number that is free.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) nodes: Slab<Node>,
    by_peer: HashMap<PeerId, u32>,
    pub(super) blobs: Slab<Blob>,
    by_digest: HashMap<Digest, u32>,
}

impl Group {
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
                node.place.clone_from(&caller.place);
                (node.port, node.seed) = (caller.port, caller.seed);
                return Ok((index, node.registration));
            }
            self.remove_node(totals, index);
        }
        if totals.nodes >= MAX_NODES {
            return Err(Refusal::Full { what: "nodes", limit: MAX_NODES });
        }
        let mut node = Node::new(caller.node, caller.instance, next, caller.place.clone(), caller.port);
        node.seed = caller.seed;
        node.heard(now);
        let index = self.nodes.insert(node);
        self.by_peer.insert(caller.node, index);
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
        self.withdraw_statements(node);
        self.state(node, statements, random)
    }

    pub(super) fn state(
        &mut self,
        node: u32,
        statements: &[Statement],
        random: &mut fastrand::Rng,
    ) -> Result<(), Refusal> {
        let Some(known) = self.nodes.get(node) else { return Ok(()) };
        if known.statements.len() + statements.len() > MAX_STATEMENTS_PER_NODE {
            return Err(Refusal::statements(known.peer));
        }
        for statement in statements {
            self.vote(node, statement, random);
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // One place calls it, with what it has just taken apart.
    pub(super) fn lease(
        &mut self,
        now: Duration,
        totals: &mut Totals,
        node: u32,
        digest: Digest,
        layout: PieceLayout,
        wanted: Wanted<'_>,
        id: u64,
    ) -> Result<LeaseReply, Refusal> {
        let Some(peer) = self.nodes.get(node).map(|node| node.peer) else { return Ok(LeaseReply::Exhausted) };
        if self.has_complete_holder(now, node, digest) {
            return Ok(LeaseReply::Exhausted);
        }
        let known = self.by_digest.get(&digest).and_then(|blob| self.blobs.get(*blob));
        let books = known.map_or(&[][..], |blob| &blob.books);
        if !books.iter().any(|book| book.layout() == layout) {
            if totals.books >= MAX_BOOKS {
                return Err(Refusal::books());
            }
            if books.len() >= MAX_LENGTHS_PER_BLOB {
                return Err(Refusal::lengths());
            }
            let blob = self.blob(digest);
            if let Some(blob) = self.blobs.get_mut(blob) {
                blob.books.push(LeaseBook::new(layout));
                totals.books += 1;
            }
        }
        let blob = self.blob(digest);
        if let Some(node) = self.nodes.get_mut(node) {
            node.books.insert(blob);
        }
        let book = self.blobs.get_mut(blob).and_then(|blob| blob.book(layout));
        let Some(book) = book else { return Ok(LeaseReply::Exhausted) };
        totals.expired_leases += book.expire(now);
        Ok(book.ask(now, peer, wanted, id))
    }

    pub(super) fn settle(&mut self, now: Duration, peer: PeerId, settlement: Settlement) -> Result<(), Refusal> {
        let blob = self.by_digest.get(&settlement.digest).copied();
        let Some(blob) = blob.and_then(|blob| self.blobs.get_mut(blob)) else { return Ok(()) };
        for book in &mut blob.books {
            book.settle(now, peer, settlement.lease, settlement.fetched)?;
        }
        Ok(())
    }

    pub(super) fn report(&mut self, now: Duration, node: u32, against: PeerId) {
        let Some(accused) = self.by_peer.get(&against).copied().filter(|accused| *accused != node) else { return };
        let Some(reporter) = self.nodes.get_mut(node) else { return };
        let counted = reporter.hold_grudge(now, against);
        let (by, address) = (reporter.peer, reporter.place.address);
        if let Some(accused) = self.nodes.get_mut(accused).filter(|_| counted) {
            accused.reported(now, by, address);
        }
    }

    pub(super) fn leave(&mut self, totals: &mut Totals, peer: PeerId, instance: u64) {
        let Some(index) = self.by_peer.get(&peer).copied() else { return };
        if self.nodes.get(index).is_some_and(|node| node.instance == instance) {
            self.remove_node(totals, index);
        }
    }

    pub(super) fn tick(&mut self, now: Duration, totals: &mut Totals) {
        let gone = self.nodes.iter().filter(|(_, node)| node.is_gone(now)).map(|(index, _)| index);
        for node in gone.take(MAX_EXPIRED_PER_TICK).collect::<Vec<_>>() {
            self.remove_node(totals, node);
        }
        let suspect = self.nodes.iter().filter(|(_, node)| node.is_suspect(now) && !node.books.is_empty());
        for node in suspect.map(|(index, _)| index).collect::<Vec<_>>() {
            self.forget_in_books(node);
        }
        self.tick_books(now, totals);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.len() == 0
    }

    pub(super) fn books(&self) -> usize {
        self.blobs.iter().map(|(_, blob)| blob.books.len()).sum()
    }

    pub(super) fn get(&self, digest: Digest) -> Option<&Blob> {
        self.by_digest.get(&digest).and_then(|blob| self.blobs.get(*blob))
    }

    fn tick_books(&mut self, now: Duration, totals: &mut Totals) {
        let mut emptied = Vec::new();
        for (index, blob) in self.blobs.iter_mut().filter(|(_, blob)| !blob.books.is_empty()) {
            for book in &mut blob.books {
                totals.expired_leases += book.expire(now);
                book.forget_inactive(now);
            }
            if blob.books.iter().any(|book| book.is_idle(now)) {
                totals.books -= blob.books.iter().filter(|book| book.is_idle(now)).count();
                blob.books.retain(|book| !book.is_idle(now));
                if blob.books.is_empty() {
                    emptied.push(index);
                }
            }
        }
        if !emptied.is_empty() {
            let emptied: HashSet<u32> = emptied.into_iter().collect();
            for (_, node) in self.nodes.iter_mut() {
                node.books.retain(|blob| !emptied.contains(blob));
            }
            for blob in emptied {
                self.drop_if_empty(blob);
            }
        }
    }

    fn has_complete_holder(&self, now: Duration, asker: u32, digest: Digest) -> bool {
        let (Some(blob), Some(asking)) = (self.get(digest), self.nodes.get(asker)) else { return false };
        blob.complete_holders().filter(|holder| *holder != asker).any(|holder| {
            self.nodes.get(holder).is_some_and(|holder| {
                holder.serves(now) && !holder.is_suspect(now) && !asking.has_grudge(now, holder.peer)
            })
        })
    }

    fn holds(&self, node: &Node, digest: Digest) -> bool {
        self.by_digest.get(&digest).is_some_and(|blob| node.blobs.contains(blob))
    }

    /// The number of a blob, which is made if need be; the caller puts something into it.
    fn blob(&mut self, digest: Digest) -> u32 {
        *self.by_digest.entry(digest).or_insert_with(|| self.blobs.insert(Blob::new(digest)))
    }

    fn hold(&mut self, totals: &mut Totals, node: u32, digest: Digest, holding: Option<Holding>) {
        if holding.is_none() && !self.by_digest.contains_key(&digest) {
            return;
        }
        let index = self.blob(digest);
        let (Some(blob), Some(node_state)) = (self.blobs.get_mut(index), self.nodes.get_mut(node)) else { return };
        totals.holdings = totals.holdings.saturating_add_signed(blob.hold(node, holding));
        if holding.is_some() {
            node_state.blobs.insert(index);
            return;
        }
        node_state.blobs.remove(&index);
        for book in &mut blob.books {
            book.forget(node_state.peer);
        }
        self.drop_if_empty(index);
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

    fn withdraw_statements(&mut self, node: u32) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        let statements: Vec<(u32, StatementKind)> = known.statements.drain().collect();
        for (index, kind) in statements {
            if let Some(blob) = self.blobs.get_mut(index) {
                blob.votes.withdraw(node, kind);
            }
            self.drop_if_empty(index);
        }
    }

    fn forget_in_books(&mut self, node: u32) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        let peer = known.peer;
        for index in std::mem::take(&mut known.books) {
            for book in self.blobs.get_mut(index).into_iter().flat_map(|blob| &mut blob.books) {
                book.forget(peer);
            }
        }
    }

    fn remove_node(&mut self, totals: &mut Totals, node: u32) {
        self.withdraw_statements(node);
        self.forget_in_books(node);
        let Some(removed) = self.nodes.remove(node) else { return };
        self.by_peer.remove(&removed.peer);
        totals.nodes -= 1;
        for index in removed.blobs {
            if let Some(blob) = self.blobs.get_mut(index) {
                totals.holdings = totals.holdings.saturating_add_signed(blob.hold(node, None));
            }
            self.drop_if_empty(index);
        }
    }

    fn drop_if_empty(&mut self, index: u32) {
        if self.blobs.get(index).is_some_and(Blob::is_empty)
            && let Some(blob) = self.blobs.remove(index)
        {
            self.by_digest.remove(&blob.digest);
        }
    }
}
