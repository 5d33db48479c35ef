//! What this node holds and states, as its trackers are told.

use std::collections::HashMap;

use indexmap::IndexMap;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, Statement, StatementKind};

use crate::limits::MAX_STATEMENTS_PER_NODE;

/// Most statements that are told again. The rest of what a tracker takes of a node is for those that are told once.
const MAX_KEPT: usize = MAX_STATEMENTS_PER_NODE / 8 * 7;
/// So many of the oldest make room at a time: trackers forget them by a full listing, which should be rare.
const GIVE_WAY: usize = MAX_STATEMENTS_PER_NODE / 8;

#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) holdings: HashMap<Digest, Holding>,
    /// Oldest first.
    pub(super) statements: IndexMap<(StatementKind, Digest), Statement>,
}

/// What became of a statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It was made before.
    Known,
    /// It is new.
    New,
    /// It is new, and the oldest are made no more.
    OldestGaveWay,
}

impl Held {
    pub(super) fn note(&mut self, statement: Statement) -> Noted {
        let key = (statement.kind, statement.subject);
        match self.statements.get_mut(&key) {
            Some(known) if *known == statement => return Noted::Known,
            Some(known) => {
                *known = statement;
                return Noted::New;
            }
            None => {}
        }
        let full = self.statements.len() >= MAX_KEPT;
        if full {
            self.statements.drain(..GIVE_WAY);
        }
        self.statements.insert(key, statement);
        if full { Noted::OldestGaveWay } else { Noted::New }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(subject: usize, object: &str) -> Statement {
        let subject = Digest::of(&subject.to_le_bytes());
        Statement { subject, kind: StatementKind::LayerIndex, object: Digest::of(object.as_bytes()), length: 1 }
    }

    #[test]
    fn the_oldest_statements_give_way_to_new_ones() {
        let mut held = Held::default();
        for subject in 0..MAX_KEPT {
            assert_eq!(held.note(about(subject, "index")), Noted::New);
        }
        assert_eq!(held.note(about(0, "index")), Noted::Known);
        assert_eq!(held.note(about(1, "another index")), Noted::New, "a later one takes the place of an earlier one");
        assert_eq!(held.note(about(MAX_KEPT, "index")), Noted::OldestGaveWay);
        assert_eq!(held.note(about(MAX_KEPT + 1, "index")), Noted::New);
        assert_eq!(held.note(about(GIVE_WAY, "index")), Noted::Known, "younger ones stay");
        assert_eq!(held.note(about(GIVE_WAY - 1, "index")), Noted::New, "it was forgotten, and may be made again");
        assert!(held.statements.len() <= MAX_KEPT);
    }
}
