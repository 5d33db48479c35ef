//! Leases of a group's blobs, and what the failure of a node means for them.

use std::collections::HashSet;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{LeaseReply, LeaseRequest, Settlement};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::PieceLayout;

use super::group::Group;
use super::{Refusal, Totals};
use crate::lease::{Asker, LeaseBook};
use crate::limits::{MAX_BOOKS, MAX_COMPLETE_SCANNED, MAX_LENGTHS_PER_BLOB};

/// On which side of the border of the asker's zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nearness {
    Near,
    Far,
}

impl Group {
    pub(super) fn lease(
        &mut self,
        now: Duration,
        totals: &mut Totals,
        node: u32,
        request: &LeaseRequest,
        layout: PieceLayout,
        random: &mut fastrand::Rng,
    ) -> Result<LeaseReply, Refusal> {
        let spared = self.with_grudges(now, node, request);
        let request = spared.as_ref().unwrap_or(request);
        let far_only = match self.nearest_complete(now, node, request, random) {
            Some(Nearness::Near) => return Ok(LeaseReply::Exhausted),
            Some(Nearness::Far) => true,
            None => false,
        };
        let blob = self.open_book(totals, request.digest, layout)?;
        let Some(known) = self.nodes.get_mut(node) else { return Ok(LeaseReply::Exhausted) };
        known.books.insert(blob);
        self.leasing.insert(node);
        let site = self.sites.id(now, &request.site);
        let zone: &str = &known.place.zone;
        let may_fetch = !far_only && self.sites.is_on_side(site, zone);
        let asker = Asker { peer: known.peer, zone, seed: known.seed, site, may_fetch };
        let book = self.blobs.get_mut(blob).and_then(|blob| blob.book(layout));
        let Some(book) = book else { return Ok(LeaseReply::Exhausted) };
        totals.expired_leases += book.expire(now, &mut self.sites);
        Ok(book.ask(now, asker, request, totals.number(), &mut self.sites))
    }

    /// The request of a node that has reported peers and is not told of them: what those hold or fetched is of no use to it.
    fn with_grudges(&self, now: Duration, node: u32, request: &LeaseRequest) -> Option<LeaseRequest> {
        let asking = self.nodes.get(node).filter(|node| node.has_grudges())?;
        let is_held_against = |peer: &PeerId| {
            let accused = self.by_peer.get(peer).and_then(|accused| self.nodes.get(*accused));
            accused.is_some_and(|accused| asking.has_grudge(now, accused))
        };
        let mut request = request.clone();
        request.useless.extend(asking.accused().filter(is_held_against));
        Some(request)
    }

    /// The number of a blob that has a book for `layout`, which is made if need be.
    fn open_book(&mut self, totals: &mut Totals, digest: Digest, layout: PieceLayout) -> Result<u32, Refusal> {
        let known = self.by_digest.get(&digest).and_then(|blob| self.blobs.get(*blob));
        let books = known.map_or(&[][..], |blob| &blob.books);
        let is_new = !books.iter().any(|book| book.layout() == layout);
        if is_new && totals.books >= MAX_BOOKS {
            return Err(Refusal::books());
        }
        if is_new && books.len() >= MAX_LENGTHS_PER_BLOB {
            return Err(Refusal::lengths());
        }
        let index = self.blob(digest);
        if let Some(blob) = self.blobs.get_mut(index).filter(|_| is_new) {
            blob.books.push(LeaseBook::new(layout, &mut self.sites));
            self.leased.insert(index);
            totals.books += 1;
        }
        Ok(index)
    }

    pub(super) fn settle(&mut self, now: Duration, peer: PeerId, settlement: &Settlement) -> Result<(), Refusal> {
        let blob = self.by_digest.get(&settlement.digest).copied();
        let Some(blob) = blob.and_then(|blob| self.blobs.get_mut(blob)) else { return Ok(()) };
        for book in &mut blob.books {
            book.settle(now, peer, settlement, &mut self.sites)?;
        }
        Ok(())
    }

    /// What the accused holds under lease is free at once if it seems dead; what it fetched is only given up when it stays
    /// silent ([`Node::is_suspect`](super::node::Node::is_suspect)).
    pub(super) fn report(&mut self, now: Duration, node: u32, against: PeerId) {
        let Some(index) = self.by_peer.get(&against).copied().filter(|accused| *accused != node) else { return };
        let Some(registration) = self.nodes.get(index).map(|accused| accused.registration) else { return };
        let Some(reporter) = self.nodes.get_mut(node) else { return };
        let counted = reporter.hold_grudge(now, against, registration);
        let (by, address) = (reporter.peer, reporter.place.address);
        let Some(accused) = self.nodes.get_mut(index).filter(|_| counted) else { return };
        accused.reported(now, by, address);
        self.standings[index as usize].note(accused);
        if accused.is_suspect(now) {
            return self.forget_in_books(index);
        }
        if accused.may_be_dead(now) {
            for index in &accused.books {
                for book in self.blobs.get_mut(*index).into_iter().flat_map(|blob| &mut blob.books) {
                    book.steal(against, &mut self.sites);
                }
            }
        }
    }

    pub(super) fn tick_books(&mut self, now: Duration, totals: &mut Totals) {
        self.sites.tick(now);
        let mut emptied = HashSet::new();
        for index in self.leased.iter().copied() {
            let Some(blob) = self.blobs.get_mut(index) else { continue };
            for book in &mut blob.books {
                totals.expired_leases += book.expire(now, &mut self.sites);
                book.forget_inactive(now);
            }
            let before = blob.books.len();
            blob.books.retain(|book| !book.is_idle(now));
            totals.books -= before - blob.books.len();
            if blob.books.is_empty() {
                emptied.insert(index);
            }
        }
        if emptied.is_empty() {
            return;
        }
        let (nodes, idle) = (&mut self.nodes, |books: &HashSet<u32>| books.iter().all(|blob| emptied.contains(blob)));
        self.leasing.retain(|node| {
            let Some(node) = nodes.get_mut(*node) else { return false };
            let stays = !idle(&node.books);
            node.books.retain(|blob| !emptied.contains(blob));
            stays
        });
        for blob in emptied {
            self.leased.remove(&blob);
            self.drop_if_empty(blob);
        }
    }

    /// Where the nearest live node stands that holds all of the blob, and that the asker does not find useless.
    fn nearest_complete(
        &self,
        now: Duration,
        asker: u32,
        request: &LeaseRequest,
        random: &mut fastrand::Rng,
    ) -> Option<Nearness> {
        let (blob, asking) = (self.get(request.digest)?, self.nodes.get(asker)?);
        let complete = self.complete_around(blob, &asking.place, MAX_COMPLETE_SCANNED, random);
        let others = complete.filter(|holder| *holder != asker);
        let usable = others.filter(|&holder| {
            let known = || self.nodes.get(holder);
            self.standings[holder as usize].serves(now, known)
                && known().is_some_and(|holder| !holder.is_suspect(now) && !request.useless.contains(&holder.peer))
        });
        let (mut far, stand) = (None, &self.standings[asker as usize].stand);
        for holder in usable {
            if !stand.is_far(&self.standings[holder as usize].stand) {
                return Some(Nearness::Near);
            }
            far = Some(Nearness::Far);
        }
        far
    }

    pub(super) fn forget_in_books(&mut self, node: u32) {
        self.leasing.remove(&node);
        let Some(known) = self.nodes.get_mut(node) else { return };
        let peer = known.peer;
        for index in std::mem::take(&mut known.books) {
            for book in self.blobs.get_mut(index).into_iter().flat_map(|blob| &mut blob.books) {
                book.forget(peer, &mut self.sites);
            }
        }
    }
}
