//! What the registry keeps of one blob.

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::layout::PieceLayout;

use super::votes::Votes;
use crate::lease::LeaseBook;

/// A node's number and whether it holds all of the blob, in four bytes: there may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(u32);

impl Entry {
    const fn new(node: u32, holding: Holding) -> Self {
        Self(node << 1 | matches!(holding, Holding::Complete) as u32)
    }

    const fn node(self) -> u32 {
        self.0 >> 1
    }

    const fn is_complete(self) -> bool {
        self.0 & 1 == 1
    }
}

/// One blob.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    /// By node.
    holders: Vec<Entry>,
    complete: u32,
    pub(super) votes: Votes,
    /// One for each length that is claimed.
    pub(super) books: Vec<LeaseBook>,
}

impl Blob {
    pub(super) fn new(digest: Digest) -> Self {
        Self { digest, holders: Vec::new(), complete: 0, votes: Votes::default(), books: Vec::new() }
    }

    /// Sets or withdraws what `node` holds; returns by how much the number of holdings changed.
    pub(super) fn hold(&mut self, node: u32, holding: Option<Holding>) -> isize {
        let at = self.holders.binary_search_by_key(&node, |entry| entry.node());
        if let Ok(at) = at
            && self.holders[at].is_complete()
        {
            self.complete -= 1;
        }
        self.complete += u32::from(holding == Some(Holding::Complete));
        match (at, holding) {
            (Ok(at), Some(holding)) => self.holders[at] = Entry::new(node, holding),
            (Ok(at), None) => {
                self.holders.remove(at);
                return -1;
            }
            (Err(at), Some(holding)) => {
                self.holders.insert(at, Entry::new(node, holding));
                return 1;
            }
            (Err(_), None) => {}
        }
        0
    }

    /// Nodes that hold some or all of it: at most `limit`, the stretch after the `skip`th, cyclic.
    pub(super) fn holders(&self, skip: usize, limit: usize) -> impl Iterator<Item = (u32, Holding)> + '_ {
        let (before, after) = self.holders.split_at(skip.min(self.holders.len()));
        after
            .iter()
            .chain(before)
            .take(limit)
            .map(|entry| (entry.node(), if entry.is_complete() { Holding::Complete } else { Holding::Partial }))
    }

    /// Nodes that hold all of it.
    pub(super) fn complete_holders(&self) -> impl Iterator<Item = u32> + '_ {
        let all = self.holders.iter().filter(|entry| entry.is_complete()).take(self.complete as usize);
        all.map(|entry| entry.node())
    }

    /// Number of holders, and how many of them hold all of it.
    pub(super) const fn counts(&self) -> (usize, u32) {
        (self.holders.len(), self.complete)
    }

    pub(super) fn book(&mut self, layout: PieceLayout) -> Option<&mut LeaseBook> {
        self.books.iter_mut().find(|book| book.layout() == layout)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.votes.is_empty() && self.books.is_empty()
    }
}
