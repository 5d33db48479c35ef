//! Which bytes of a blob are believed before the whole has proven itself.
//!
//! * The metainfo of the blob decides, where it is known. *Firm* is what this node made itself, and what a quorum of nodes
//!   agrees on: a piece that contradicts it is its sender's fault. What fewer state is
//!   *tentative*: pieces that match it are taken, but one that does not may as well be right, so nobody is charged for it,
//!   and when a few pieces that lessees signed, or one of the origin's own, contradict it, it is refuted.
//! * Without metainfo, a piece must come with the statement of a peer that discovery names as a lessee of the blob's origin.
//! * A blob of a single piece is its own proof.
//! * Where the blob has a name and no digest (a version of a URL), the same holds but for a single piece, and the whole is
//!   never proven: metainfo and statements are all there is. Bytes of the origin that contradict the metainfo then make
//!   this node drop what others gave.
//! * What this node fetched from the origin itself it believes until the whole digest says otherwise, and states.
//!
//! This node signs what it fetched itself and what it has proven, never what it was told: whose signature turns out false
//! is to blame.

use std::collections::{BTreeSet, HashMap};

use super::blame::Held;
use crate::digest::Digest;
use crate::identity::{Identity, PeerId};
use crate::layout::{PieceIndex, PieceLayout};
use crate::limits::MAX_LESSEES;
use crate::statement::PieceStatement;
use crate::verify::{Metainfo, piece_hash};

/// Pieces signed by lessees that refute tentative metainfo when they contradict it. No more than a peer that has given
/// nothing yet is asked for at once.
const REFUTING: usize = 2;

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

/// Metainfo that pieces are held against.
#[derive(Debug)]
struct Believed {
    id: Digest,
    metainfo: Metainfo,
    firm: bool,
    /// Pieces that lessees signed otherwise.
    contradicted: BTreeSet<PieceIndex>,
}

#[derive(Debug)]
pub(super) struct Trust {
    digest: Digest,
    layout: PieceLayout,
    metainfo: Option<Believed>,
    /// Metainfo that was contradicted.
    refuted: BTreeSet<Digest>,
    lessees: BTreeSet<PeerId>,
    /// Whose pieces metainfo called wrong when the whole did not match: their word counts no more until it is proven.
    suspects: BTreeSet<PeerId>,
    statements: HashMap<PieceIndex, PieceStatement>,
}

impl Trust {
    pub(super) fn new(digest: Digest, layout: PieceLayout) -> Self {
        let (refuted, lessees, suspects) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { digest, layout, metainfo: None, refuted, lessees, suspects, statements: HashMap::new() }
    }

    /// Whether a peer's piece may turn out good.
    pub(super) fn can_verify(&self) -> bool {
        self.needs_no_word() || !self.lessees.is_empty()
    }

    /// Whether pieces are checked without anybody's statement.
    pub(super) fn needs_no_word(&self) -> bool {
        self.metainfo.is_some() || self.proves_itself()
    }

    /// Whether the digest alone tells right from wrong. A name tells nothing of the bytes.
    fn proves_itself(&self) -> bool {
        self.layout.piece_count() <= 1 && !self.digest.is_name()
    }

    /// Takes the metainfo of this blob; false if it is of another, or was refuted.
    pub(super) fn set_metainfo(&mut self, metainfo: Metainfo, firm: bool) -> bool {
        let id = metainfo.id();
        let fits = metainfo.digest() == self.digest && metainfo.length() == self.layout.length();
        let accepted = fits && !self.refuted.contains(&id);
        if accepted {
            self.metainfo = Some(Believed { id, metainfo, firm, contradicted: BTreeSet::new() });
        }
        accepted
    }

    /// Takes the metainfo that this node made of the whole.
    pub(super) fn set_proven(&mut self, metainfo: Metainfo) {
        self.refuted.remove(&metainfo.id());
        self.suspects.clear();
        self.set_metainfo(metainfo, true);
    }

    /// Others agree on this metainfo by now.
    pub(super) fn confirm(&mut self, id: &Digest) {
        if let Some(believed) = self.metainfo.as_mut().filter(|believed| believed.id == *id) {
            believed.firm = true;
        }
    }

    fn refute(&mut self) {
        if let Some(believed) = self.metainfo.take() {
            tracing::warn!(digest = %self.digest, object = %believed.id, "metainfo is contradicted, not believed any more");
            self.refuted.insert(believed.id);
            self.suspects.clear();
        }
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
        if self.proves_itself() {
            return if Digest::of(bytes) == self.digest { Verdict::Good } else { Verdict::Bad };
        }
        let hash = piece_hash(bytes);
        let by_metainfo = self.metainfo.as_ref().map(|it| (it.metainfo.hash(piece) == Some(hash), it.firm));
        match by_metainfo {
            Some((true, _)) => Verdict::Good,
            Some((false, true)) => Verdict::Bad,
            Some((false, false)) => self.judge_against_tentative(piece, hash, statement),
            None => self.judge_by_statement(piece, hash, statement),
        }
    }

    fn judge_by_statement(&mut self, piece: PieceIndex, hash: [u8; 32], statement: Option<&PieceStatement>) -> Verdict {
        let Some(statement) = statement else { return Verdict::Unknown };
        if statement.hash != hash || !statement.is_genuine(&self.digest, self.layout.length(), piece) {
            return Verdict::Bad;
        }
        if !self.lessees.contains(&statement.signer) || self.suspects.contains(&statement.signer) {
            return Verdict::Unknown;
        }
        self.statements.insert(piece, *statement);
        Verdict::Good
    }

    /// Either the piece or the metainfo is wrong.
    fn judge_against_tentative(
        &mut self,
        piece: PieceIndex,
        hash: [u8; 32],
        statement: Option<&PieceStatement>,
    ) -> Verdict {
        let (believed, known) = (self.metainfo.take(), self.statements.get(&piece).copied());
        let verdict = self.judge_by_statement(piece, hash, statement);
        self.metainfo = believed;
        if verdict != Verdict::Good {
            return verdict;
        }
        let Some(believed) = self.metainfo.as_mut() else { return verdict };
        believed.contradicted.insert(piece);
        if believed.contradicted.len() >= REFUTING {
            self.refute();
            return Verdict::Good;
        }
        match known {
            Some(known) => self.statements.insert(piece, known),
            None => self.statements.remove(&piece),
        };
        Verdict::Unknown
    }

    /// Takes the hash of a piece that this node fetched from the origin, and states it. Metainfo that it contradicts is
    /// not believed any more, and false returned.
    pub(super) fn vouch(&mut self, identity: &Identity, piece: PieceIndex, hash: [u8; 32]) -> bool {
        let statement = PieceStatement::sign(identity, &self.digest, self.layout.length(), piece, hash);
        self.statements.insert(piece, statement);
        let agrees = self.metainfo.as_ref().is_none_or(|believed| believed.metainfo.hash(piece) == Some(hash));
        if !agrees {
            self.refute();
        }
        agrees
    }

    /// Who vouched for a piece that is here.
    pub(super) fn statement(&self, piece: PieceIndex) -> Option<PieceStatement> {
        self.statements.get(&piece).copied()
    }

    /// The pieces that were dropped have nobody's word any more.
    pub(super) fn forget(&mut self, pieces: &[PieceIndex]) {
        for piece in pieces {
            self.statements.remove(piece);
        }
    }

    /// The pieces of the whole blob, whose hashes these are, that metainfo calls wrong. None without metainfo; metainfo
    /// that finds nothing wrong with a blob that does not match its digest is refuted.
    pub(super) fn contradicted(&mut self, hashes: &[[u8; 32]]) -> Option<Vec<PieceIndex>> {
        let metainfo = &self.metainfo.as_ref()?.metainfo;
        let pieces = (0..).map(PieceIndex).zip(hashes);
        let wrong: Vec<PieceIndex> =
            pieces.filter(|(piece, hash)| metainfo.hash(*piece) != Some(**hash)).map(|(piece, _)| piece).collect();
        if wrong.is_empty() {
            self.refute();
            return None;
        }
        let signers = wrong.iter().filter_map(|piece| self.statements.get(piece)).map(|statement| statement.signer);
        self.suspects.extend(signers);
        Some(wrong)
    }

    /// Who stated the pieces that are here, whose hashes these are. A piece that is not what was stated when it came was
    /// spoilt here: nobody's.
    pub(super) fn held(&self, hashes: &[[u8; 32]]) -> Vec<Held> {
        let held = |(piece, &hash): (PieceIndex, &[u8; 32])| {
            let statement = self.statements.get(&piece).filter(|statement| statement.hash == hash);
            Held { hash, signer: statement.map(|statement| statement.signer) }
        };
        (0..).map(PieceIndex).zip(hashes).map(held).collect()
    }

    /// Every statement about pieces that are here.
    pub(super) fn stated(&self) -> impl Iterator<Item = (PieceIndex, Held)> + '_ {
        self.statements.iter().map(|(&piece, stated)| (piece, Held { hash: stated.hash, signer: Some(stated.signer) }))
    }

    /// The hash that a piece on this node's disk had when it came, as far as that is known.
    pub(super) fn expected(&self, piece: PieceIndex) -> Option<[u8; 32]> {
        let stated = || self.statements.get(&piece).map(|statement| statement.hash);
        let firm = self.metainfo.as_ref().filter(|believed| believed.firm);
        firm.and_then(|believed| believed.metainfo.hash(piece)).or_else(stated)
    }

    /// This node's statement of a piece of a blob that it has verified: the metainfo is of its own making then.
    pub(super) fn statement_of_proven(&mut self, identity: &Identity, piece: PieceIndex) -> Option<PieceStatement> {
        if let Some(statement) = self.statement(piece) {
            return Some(statement);
        }
        let hash = self.metainfo.as_ref()?.metainfo.hash(piece)?;
        let statement = PieceStatement::sign(identity, &self.digest, self.layout.length(), piece, hash);
        self.statements.insert(piece, statement);
        Some(statement)
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

    fn stated_of(identity: &Identity, digest: &Digest, at: u32, fill: u8) -> PieceStatement {
        PieceStatement::sign(identity, digest, LENGTH, PieceIndex(at), piece_hash(&piece(fill)))
    }

    fn stated(identity: &Identity, digest: &Digest, fill: u8) -> PieceStatement {
        stated_of(identity, digest, 0, fill)
    }

    fn all(digest: Digest, fill: u8) -> Metainfo {
        Metainfo::new(digest, LENGTH, vec![piece_hash(&piece(fill)); 5]).unwrap()
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
        trust.forget(&[PieceIndex(0)]);
        assert_eq!(trust.statement(PieceIndex(0)), None);
    }

    #[test]
    fn firm_metainfo_decides_until_the_origin_contradicts_it() {
        let me = Identity::generate().unwrap();
        let digest = Digest::of(b"blob");
        let mut trust = trust(digest);
        let metainfo = all(digest, 1);
        assert!(!trust.set_metainfo(all(Digest::of(b"other"), 0), true));
        assert!(trust.set_metainfo(metainfo.clone(), true));
        assert_eq!(trust.judge(PieceIndex(0), &piece(1), None), Verdict::Good);
        assert_eq!(trust.judge(PieceIndex(0), &piece(2), Some(&stated(&me, &digest, 2))), Verdict::Bad);
        assert!(!trust.vouch(&me, PieceIndex(0), piece_hash(&piece(3))));
        assert!(!trust.set_metainfo(metainfo.clone(), true), "refuted");
        trust.set_proven(metainfo);
        assert_eq!(
            trust.judge(PieceIndex(1), &piece(1), None),
            Verdict::Good,
            "what this node proved is right after all"
        );
    }

    /// One vote may be a lie: honest peers are not charged for contradicting it, and two of their pieces refute it.
    #[test]
    fn tentative_metainfo_charges_nobody_and_is_refuted_by_what_lessees_signed() {
        let (lessee, stranger) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let digest = Digest::of(b"blob");
        let mut trust = trust(digest);
        let lie = all(digest, 9);
        trust.add_lessees(&[lessee.id()]);
        assert!(trust.set_metainfo(lie.clone(), false));
        assert_eq!(trust.judge(PieceIndex(4), &piece(9)[..LENGTH as usize - (256 << 10)], None), Verdict::Unknown);
        assert_eq!(trust.judge(PieceIndex(0), &piece(9), None), Verdict::Good, "what matches is taken");
        assert_eq!(trust.judge(PieceIndex(1), &piece(1), None), Verdict::Unknown);
        assert_eq!(trust.judge(PieceIndex(1), &piece(2), Some(&stated_of(&lessee, &digest, 1, 1))), Verdict::Bad);
        for _ in 0..10 {
            let word = stated_of(&stranger, &digest, 1, 1);
            assert_eq!(trust.judge(PieceIndex(1), &piece(1), Some(&word)), Verdict::Unknown);
            let word = stated_of(&lessee, &digest, 1, 1);
            assert_eq!(trust.judge(PieceIndex(1), &piece(1), Some(&word)), Verdict::Unknown, "one piece is not enough");
        }
        assert_eq!(trust.statement(PieceIndex(1)), None, "it is not here");
        assert_eq!(trust.judge(PieceIndex(3), &piece(1), Some(&stated_of(&lessee, &digest, 3, 1))), Verdict::Good);
        assert!(trust.is_refuted(&lie.id()) && !trust.needs_no_word());
        assert_eq!(trust.judge(PieceIndex(1), &piece(1), Some(&stated_of(&lessee, &digest, 1, 1))), Verdict::Good);
    }

    #[test]
    fn metainfo_that_others_agree_on_becomes_firm() {
        let digest = Digest::of(b"blob");
        let mut trust = trust(digest);
        let metainfo = all(digest, 1);
        assert!(trust.set_metainfo(metainfo.clone(), false));
        assert_eq!(trust.judge(PieceIndex(0), &piece(2), None), Verdict::Unknown);
        trust.confirm(&Digest::of(b"another"));
        assert_eq!(trust.judge(PieceIndex(0), &piece(2), None), Verdict::Unknown);
        trust.confirm(&metainfo.id());
        assert_eq!(trust.judge(PieceIndex(0), &piece(2), None), Verdict::Bad);
    }

    #[test]
    fn metainfo_names_the_wrong_pieces_or_is_wrong_itself() {
        let digest = Digest::of(b"blob");
        let mut trust = trust(digest);
        let (right, wrong) = (piece_hash(&piece(1)), piece_hash(&piece(2)));
        assert_eq!(trust.contradicted(&[right; 5]), None);
        assert!(trust.set_metainfo(all(digest, 1), true));
        assert_eq!(trust.contradicted(&[right, right, wrong, right, right]), Some(vec![PieceIndex(2)]));
        assert_eq!(trust.contradicted(&[right; 5]), None, "it calls all of a wrong blob right");
        assert!(!trust.needs_no_word());
    }

    /// Else a liar could have right metainfo refuted by repeating its lies.
    #[test]
    fn whose_pieces_metainfo_called_wrong_cannot_refute_it() {
        let (liar, digest) = (Identity::generate().unwrap(), Digest::of(b"blob"));
        let mut trust = trust(digest);
        trust.add_lessees(&[liar.id()]);
        let lie = |at| stated_of(&liar, &digest, at, 2);
        assert_eq!(trust.judge(PieceIndex(0), &piece(2), Some(&lie(0))), Verdict::Good);
        assert!(trust.set_metainfo(all(digest, 1), false));
        let (right, wrong) = (piece_hash(&piece(1)), piece_hash(&piece(2)));
        assert_eq!(trust.contradicted(&[wrong, right, right, right, right]), Some(vec![PieceIndex(0)]));
        for at in 0..4 {
            assert_eq!(trust.judge(PieceIndex(at), &piece(2), Some(&lie(at))), Verdict::Unknown);
        }
        assert_eq!(trust.judge(PieceIndex(0), &piece(1), None), Verdict::Good);
    }

    /// What the disk made of a piece is not its signer's fault.
    #[test]
    fn a_piece_that_was_spoilt_here_is_nobodys() {
        let lessee = Identity::generate().unwrap();
        let digest = Digest::of(b"blob");
        let mut trust = trust(digest);
        trust.add_lessees(&[lessee.id()]);
        assert_eq!(trust.judge(PieceIndex(0), &piece(1), Some(&stated(&lessee, &digest, 1))), Verdict::Good);
        let hash = piece_hash(&piece(1));
        assert_eq!(trust.expected(PieceIndex(0)), Some(hash));
        assert_eq!(trust.expected(PieceIndex(1)), None, "nobody said what it should be");
        assert_eq!(trust.held(&[hash])[0].signer, Some(lessee.id()));
        assert_eq!(trust.held(&[piece_hash(&piece(2))])[0].signer, None);
    }

    #[test]
    fn a_single_piece_is_its_own_proof() {
        let mut trust = Trust::new(Digest::of(b"small"), PieceLayout::new(5).unwrap());
        assert_eq!(trust.judge(PieceIndex(0), b"small", None), Verdict::Good);
        assert_eq!(trust.judge(PieceIndex(0), b"smalL", None), Verdict::Bad);
        assert_eq!(trust.judge(PieceIndex(1), b"", None), Verdict::Bad);
    }

    #[test]
    fn a_name_is_no_proof() {
        let (lessee, name) = (Identity::generate().unwrap(), Digest::name(b"a version of a URL"));
        let mut trust = Trust::new(name, PieceLayout::new(5).unwrap());
        assert!(!trust.can_verify());
        assert_eq!(trust.judge(PieceIndex(0), b"bytes", None), Verdict::Unknown);
        let stated = PieceStatement::sign(&lessee, &name, 5, PieceIndex(0), piece_hash(b"bytes"));
        assert_eq!(trust.judge(PieceIndex(0), b"bytes", Some(&stated)), Verdict::Unknown);
        trust.add_lessees(&[lessee.id()]);
        assert_eq!(trust.judge(PieceIndex(0), b"bytez", Some(&stated)), Verdict::Bad);
        assert_eq!(trust.judge(PieceIndex(0), b"bytes", Some(&stated)), Verdict::Good);
        trust.set_metainfo(Metainfo::new(name, 5, vec![piece_hash(b"other")]).unwrap(), true);
        assert_eq!(trust.judge(PieceIndex(0), b"bytes", Some(&stated)), Verdict::Bad);
    }
}
