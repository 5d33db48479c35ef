//! What the registry keeps of one blob.

use lapwing_p2p::digest::Digest;
use lapwing_p2p::layout::PieceLayout;

use super::holders::Holders;
use super::votes::Votes;
use crate::lease::LeaseBook;

/// One blob.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) holders: Holders,
    pub(super) votes: Votes,
    /// One for each length that is claimed.
    pub(super) books: Vec<LeaseBook>,
}

impl Blob {
    pub(super) fn new(digest: Digest) -> Self {
        Self { digest, holders: Holders::default(), votes: Votes::default(), books: Vec::new() }
    }

    pub(super) fn book(&mut self, layout: PieceLayout) -> Option<&mut LeaseBook> {
        self.books.iter_mut().find(|book| book.layout() == layout)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.votes.is_empty() && self.books.is_empty()
    }
}
