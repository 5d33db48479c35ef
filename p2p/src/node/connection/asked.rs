//! Which pieces the other side of a connection may send, because it was asked for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::digest::Digest;
use crate::layout::PieceIndex;
use crate::limits::MAX_ASKED_PIECES;
use crate::node::blob::lock;

/// The pieces asked for on one connection that have not come over it, for who asks and who reads.
///
/// One that was asked for and cancelled may still come, once for each time. Beyond [`MAX_ASKED_PIECES`] of those anything may.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked(Arc<Mutex<HashMap<(Digest, PieceIndex), u32>>>);

impl Asked {
    /// A request is sent.
    pub(super) fn note(&self, digest: Digest, piece: PieceIndex) {
        let mut asked = lock(&self.0);
        if asked.len() < MAX_ASKED_PIECES || asked.contains_key(&(digest, piece)) {
            *asked.entry((digest, piece)).or_default() += 1;
        }
    }

    /// A piece comes: whether somebody may have asked for it.
    pub(super) fn answers(&self, digest: Digest, piece: PieceIndex) -> bool {
        let mut asked = lock(&self.0);
        let Some(times) = asked.get_mut(&(digest, piece)) else { return asked.len() >= MAX_ASKED_PIECES };
        *times = times.saturating_sub(1);
        // Once there were too many, it is not known any more what was asked for.
        if *times == 0 && asked.len() < MAX_ASKED_PIECES {
            asked.remove(&(digest, piece));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_comes_as_often_as_it_was_asked_for() {
        let (asked, digest) = (Asked::default(), Digest::of(b"blob"));
        for times in [1, 2] {
            for _ in 0..times {
                asked.note(digest, PieceIndex(7));
            }
            for _ in 0..times {
                assert!(asked.answers(digest, PieceIndex(7)));
            }
            assert!(!asked.answers(digest, PieceIndex(7)), "once more than it was asked for");
        }
        assert!(!asked.answers(digest, PieceIndex(6)));
        assert!(!asked.answers(Digest::of(b"another"), PieceIndex(7)));
        assert!(lock(&asked.0).is_empty());
    }

    #[test]
    fn who_was_asked_for_more_than_is_remembered_is_believed() {
        let (asked, digest) = (Asked::default(), Digest::of(b"blob"));
        for piece in 0..=MAX_ASKED_PIECES as u32 {
            asked.note(digest, PieceIndex(piece));
        }
        for piece in [MAX_ASKED_PIECES as u32, 3, 5] {
            assert!(asked.answers(digest, PieceIndex(piece)), "{piece}");
        }
        assert_eq!(lock(&asked.0).len(), MAX_ASKED_PIECES);
    }
}
