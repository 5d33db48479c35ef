//! Which bytes of a blob are believed before the whole has proven itself.
//!
//! * The metainfo of the blob decides, where it is known.
//! * Before that, a piece must come with the statement of a peer that discovery names as a lessee of the blob's origin.
//! * A blob of a single piece is its own proof.
//! * What this node fetched from the origin itself it believes until the whole digest says otherwise, and states.

use std::collections::{BTreeSet, HashMap};

use crate::digest::Digest;
use crate::identity::{Identity, PeerId};
use crate::layout::{PieceIndex, PieceLayout};
use crate::limits::MAX_LESSEES;
use crate::statement::PieceStatement;
use crate::verify::{Metainfo, piece_hash};

/// What to make of a piece from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is what it should be.
    Good,
    /// It is not: its sender is to blame.
    Bad,
    /// Nobody trusted has said yet what it should be.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Trust {
    digest: Digest,
    layout: PieceLayout,
    metainfo: Option<Metainfo>,
    /// Metainfo that the origin's bytes contradicted.
    refuted: BTreeSet<Digest>,
    lessees: BTreeSet<PeerId>,
    statements: HashMap<PieceIndex, PieceStatement>,
}

impl Trust {
    pub(super) fn new(digest: Digest, layout: PieceLayout) -> Self {
        let (refuted, lessees) = (BTreeSet::new(), BTreeSet::new());
        Self { digest, layout, metainfo: None, refuted, lessees, statements: HashMap::new() }
    }

    /// Whether a peer's piece may turn out good.
    pub(super) fn can_verify(&self) -> bool {
        self.needs_no_word() || !self.lessees.is_empty()
    }

    /// Whether pieces are checked without anybody's statement.
    pub(super) fn needs_no_word(&self) -> bool {
        self.metainfo.is_some() || self.layout.piece_count() <= 1
    }

    /// Takes the metainfo of this blob; false if it is of another, or was refuted.
    pub(super) fn set_metainfo(&mut self, metainfo: Metainfo) -> bool {
        let fits = metainfo.digest() == self.digest && metainfo.length() == self.layout.length();
        let accepted = fits && !self.refuted.contains(&metainfo.id());
        if accepted {
            self.metainfo = Some(metainfo);
        }
        accepted
    }

    /// Whether this metainfo was contradicted before.
    pub(super) fn is_refuted(&self, id: &Digest) -> bool {
        self.refuted.contains(id)
    }

    /// Takes more peers whose statements count; whether any is new.
    pub(super) fn add_lessees(&mut self, lessees: &[PeerId]) -> bool {
        let before = self.lessees.len();
        self.lessees.extend(lessees.iter().take(MAX_LESSEES.saturating_sub(before)));
        self.lessees.len() > before
    }

    /// Judges a piece from a peer, and remembers who vouched for a good one.
    pub(super) fn judge(&mut self, piece: PieceIndex, bytes: &[u8], statement: Option<&PieceStatement>) -> Verdict {
        let range = self.layout.range(piece);
        if range.is_empty() || bytes.len() as u64 != range.end - range.start {
            return Verdict::Bad;
        }
        if self.layout.piece_count() == 1 {
            return if Digest::of(bytes) == self.digest { Verdict::Good } else { Verdict::Bad };
        }
        if let Some(metainfo) = &self.metainfo {
            return if metainfo.matches(piece, bytes) { Verdict::Good } else { Verdict::Bad };
        }
        let Some(statement) = statement else { return Verdict::Unknown };
        if statement.hash != piece_hash(bytes) || !statement.is_genuine(&self.digest, self.layout.length(), piece) {
            return Verdict::Bad;
        }
        if !self.lessees.contains(&statement.signer) {
            return Verdict::Unknown;
        }
        self.statements.insert(piece, *statement);
        Verdict::Good
    }

    /// Takes the hash of a piece that this node fetched from the origin, and states it. False if that contradicts the
    /// metainfo, which is not believed any more then.
    pub(super) fn vouch(&mut self, identity: &Identity, piece: PieceIndex, hash: [u8; 32]) -> bool {
        let statement = PieceStatement::sign(identity, &self.digest, self.layout.length(), piece, hash);
        self.statements.insert(piece, statement);
        match &self.metainfo {
            Some(metainfo) if metainfo.hash(piece) != Some(hash) => {
                self.refuted.insert(metainfo.id());
                self.metainfo = None;
                false
            }
            _ => true,
        }
    }

    /// Who vouched for a piece that is here.
    pub(super) fn statement(&self, piece: PieceIndex) -> Option<PieceStatement> {
        self.statements.get(&piece).copied()
    }

    /// This node's statement of a piece of a blob that it has verified: the metainfo is of its own making then.
    pub(super) fn statement_of_proven(&mut self, identity: &Identity, piece: PieceIndex) -> Option<PieceStatement> {
        if let Some(statement) = self.statement(piece) {
            return Some(statement);
        }
        let hash = self.metainfo.as_ref()?.hash(piece)?;
        let statement = PieceStatement::sign(identity, &self.digest, self.layout.length(), piece, hash);
        self.statements.insert(piece, statement);
        Some(statement)
    }

    /// The peers that stated what `truth` contradicts, and of which piece.
    pub(super) fn liars(&self, truth: &Metainfo) -> Vec<(PeerId, PieceIndex)> {
        let wrong = |(piece, statement): &(&PieceIndex, &PieceStatement)| truth.hash(**piece) != Some(statement.hash);
        self.statements.iter().filter(wrong).map(|(piece, statement)| (statement.signer, *piece)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: u64 = 300 << 10;

    fn piece(fill: u8) -> Vec<u8> {
        vec![fill; 64 << 10]
    }

    fn trust(digest: Digest) -> Trust {
        Trust::new(digest, PieceLayout::new(LENGTH).unwrap())
    }

    fn stated(identity: &Identity, digest: &Digest, fill: u8) -> PieceStatement {
        PieceStatement::sign(identity, digest, LENGTH, PieceIndex(0), piece_hash(&piece(fill)))
    }

    #[test]
    fn only_a_lessee_is_believed() {
        let (lessee, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let digest = Digest::of(b"blob");
        let mut trust = trust(digest);
        trust.add_lessees(&[lessee.id()]);
        assert_eq!(trust.judge(PieceIndex(0), &piece(1), None), Verdict::Unknown);
        assert_eq!(trust.judge(PieceIndex(0), &piece(1), Some(&stated(&other, &digest, 1))), Verdict::Unknown);
        assert_eq!(trust.judge(PieceIndex(0), &piece(2), Some(&stated(&lessee, &digest, 1))), Verdict::Bad);
        assert_eq!(trust.judge(PieceIndex(1), &piece(1), Some(&stated(&lessee, &digest, 1))), Verdict::Bad);
        assert_eq!(trust.judge(PieceIndex(0), &piece(1)[1..], Some(&stated(&lessee, &digest, 1))), Verdict::Bad);
        assert_eq!(trust.judge(PieceIndex(0), &piece(1), Some(&stated(&lessee, &digest, 1))), Verdict::Good);
        assert_eq!(trust.statement(PieceIndex(0)).unwrap().signer, lessee.id());
    }

    #[test]
    fn metainfo_decides_until_the_origin_contradicts_it() {
        let me = Identity::generate().unwrap();
        let digest = Digest::of(b"blob");
        let mut trust = trust(digest);
        let metainfo = Metainfo::new(digest, LENGTH, vec![piece_hash(&piece(1)); 5]).unwrap();
        assert!(!trust.set_metainfo(Metainfo::new(Digest::of(b"other"), LENGTH, vec![[0; 32]; 5]).unwrap()));
        assert!(trust.set_metainfo(metainfo.clone()));
        assert_eq!(trust.judge(PieceIndex(0), &piece(1), None), Verdict::Good);
        assert_eq!(trust.judge(PieceIndex(0), &piece(2), Some(&stated(&me, &digest, 2))), Verdict::Bad);
        assert!(!trust.vouch(&me, PieceIndex(0), piece_hash(&piece(3))));
        assert!(!trust.set_metainfo(metainfo.clone()));
        assert_eq!(trust.liars(&metainfo), [(me.id(), PieceIndex(0))]);
    }

    #[test]
    fn a_single_piece_is_its_own_proof() {
        let mut trust = Trust::new(Digest::of(b"small"), PieceLayout::new(5).unwrap());
        assert_eq!(trust.judge(PieceIndex(0), b"small", None), Verdict::Good);
        assert_eq!(trust.judge(PieceIndex(0), b"smalL", None), Verdict::Bad);
        assert_eq!(trust.judge(PieceIndex(1), b"", None), Verdict::Bad);
    }
}
