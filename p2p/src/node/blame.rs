//! A blob is here whole and does not match its digest: what is fetched again, and whom the truth convicts. Pure.
//!
//! Somebody stated a wrong hash: a piece that does not match the statement that comes with it is not let in at all. What
//! this node fetched from the origin itself is believed until the end. So the doubt narrows in steps:
//!
//! 1. Of each other signer a few pieces are fetched again from the origin.
//! 2. All pieces of a signer whom the origin contradicts are.
//! 3. If that does not help, or nobody was contradicted, all pieces of others are.
//! 4. If there are none, all are, once more. If that ends the same, the origin serves something else.
//!
//! Only a blob that matches its digest convicts: of every piece that was here somebody's signature is kept, and is held
//! against the truth then. Who passed a piece on with the statement it came with is not to blame for it.

use std::collections::{BTreeMap, BTreeSet};

use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::MAX_EVIDENCE;
use crate::verify::Metainfo;

/// Pieces of each signer that are fetched again first.
const SAMPLES: usize = 2;
/// Times that a blob may come out wrong before it is given up, whatever the reason.
const MAX_ROUNDS: u32 = 8;

/// A piece that is here: its hash, and who stated it. Nobody, if it came before this process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) hash: [u8; 32],
    pub(super) signer: Option<PeerId>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Drop these and fetch them again; from the origin if there is one.
    Refetch(Vec<PieceIndex>),
    /// Drop everything: it cannot be had.
    GiveUp,
}

/// What is known of the wrong statements about one blob.
#[derive(Debug, Default)]
pub(super) struct Blame {
    /// What was stated of pieces that were dropped since.
    evidence: BTreeMap<(PieceIndex, PeerId), [u8; 32]>,
    rounds: u32,
    sampled: bool,
    /// Whether all of it came from the origin, and was wrong.
    origin_tried: bool,
}

impl Blame {
    /// The blob came out wrong. `held` are all its pieces in order, `me` is this node.
    pub(super) fn mismatched(&mut self, me: PeerId, held: &[Held], rng: &mut fastrand::Rng) -> Remedy {
        self.rounds += 1;
        let remedy = if self.rounds > MAX_ROUNDS { Remedy::GiveUp } else { self.remedy(me, held, rng) };
        match &remedy {
            Remedy::Refetch(pieces) => self.keep_evidence(me, held, pieces.iter().copied()),
            Remedy::GiveUp => {
                self.keep_evidence(me, held, (0..held.len() as u32).map(PieceIndex));
                // Who tries again later begins anew, with what was learned of others.
                (self.rounds, self.sampled, self.origin_tried) = (0, false, false);
            }
        }
        remedy
    }

    /// Whether it came out wrong before, since somebody last tried.
    pub(super) const fn is_first(&self) -> bool {
        self.rounds == 0
    }

    fn remedy(&mut self, me: PeerId, held: &[Held], rng: &mut fastrand::Rng) -> Remedy {
        let pieces = || (0_u32..).map(PieceIndex).zip(held);
        let of_others: Vec<(PieceIndex, Option<PeerId>)> =
            pieces().filter(|(_, held)| held.signer != Some(me)).map(|(piece, held)| (piece, held.signer)).collect();
        if of_others.is_empty() {
            return match std::mem::replace(&mut self.origin_tried, true) {
                true => Remedy::GiveUp,
                false => Remedy::Refetch(pieces().map(|(piece, _)| piece).collect()),
            };
        }
        let contradicted: BTreeSet<PeerId> = self.contradicted(me, held).collect();
        let suspect = |signer: &Option<PeerId>| signer.is_some_and(|signer| contradicted.contains(&signer));
        let suspicious: Vec<PieceIndex> =
            of_others.iter().filter(|(_, signer)| suspect(signer)).map(|(piece, _)| *piece).collect();
        if !suspicious.is_empty() {
            return Remedy::Refetch(suspicious);
        }
        let all = || Remedy::Refetch(of_others.iter().map(|(piece, _)| *piece).collect());
        if std::mem::replace(&mut self.sampled, true) {
            return all();
        }
        let samples = sample(&of_others, rng);
        // Fetching half of it to spare the other half is no gain.
        if samples.len() * 2 >= of_others.len() { all() } else { Remedy::Refetch(samples) }
    }

    /// Signers of pieces that the origin gave otherwise.
    fn contradicted(&self, me: PeerId, held: &[Held]) -> impl Iterator<Item = PeerId> {
        let otherwise = move |((piece, _), hash): &(&(PieceIndex, PeerId), &[u8; 32])| {
            held.get(piece.0 as usize).is_some_and(|held| held.signer == Some(me) && held.hash != **hash)
        };
        self.evidence.iter().filter(otherwise).map(|((_, signer), _)| *signer)
    }

    /// Remembers who stated what of pieces that are dropped now.
    pub(super) fn keep_evidence(&mut self, me: PeerId, held: &[Held], pieces: impl Iterator<Item = PieceIndex>) {
        for piece in pieces {
            let Some(&Held { hash, signer: Some(signer) }) = held.get(piece.0 as usize) else { continue };
            if signer != me && self.evidence.len() < MAX_EVIDENCE {
                self.evidence.insert((piece, signer), hash);
            }
        }
    }

    /// Who stated what `truth` contradicts, and of which pieces: of what was dropped, and of what is stated still.
    pub(super) fn guilty(
        &self,
        me: PeerId,
        truth: &Metainfo,
        stated: impl Iterator<Item = (PieceIndex, Held)>,
    ) -> BTreeMap<PeerId, BTreeSet<PieceIndex>> {
        let dropped = self.evidence.iter().map(|(&(piece, signer), &hash)| (piece, signer, hash));
        let stated = stated.filter_map(|(piece, held)| Some((piece, held.signer?, held.hash)));
        let mut guilty: BTreeMap<PeerId, BTreeSet<PieceIndex>> = BTreeMap::new();
        for (piece, signer, hash) in dropped.chain(stated) {
            if signer != me && truth.hash(piece) != Some(hash) {
                guilty.entry(signer).or_default().insert(piece);
            }
        }
        guilty
    }
}

/// A few pieces of each signer, by lot.
fn sample(of_others: &[(PieceIndex, Option<PeerId>)], rng: &mut fastrand::Rng) -> Vec<PieceIndex> {
    let mut by_signer: BTreeMap<Option<PeerId>, Vec<PieceIndex>> = BTreeMap::new();
    for &(piece, signer) in of_others {
        by_signer.entry(signer).or_default().push(piece);
    }
    let mut samples: Vec<PieceIndex> = Vec::new();
    for mut pieces in by_signer.into_values() {
        rng.shuffle(&mut pieces);
        samples.extend(pieces.into_iter().take(SAMPLES));
    }
    samples.sort_unstable();
    samples
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    const COUNT: u32 = 64;

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    fn right(piece: u32) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&piece.to_be_bytes());
        hash
    }

    fn wrong(piece: u32) -> [u8; 32] {
        right(piece + 1000)
    }

    fn truth() -> Metainfo {
        let length = u64::from(COUNT) * (64 << 10);
        Metainfo::new(Digest::of(b"blob"), length, (0..COUNT).map(right).collect()).unwrap()
    }

    /// Plays the rounds: whoever `signs` a piece holds it, those in `lies` wrongly; what is dropped comes from the origin.
    /// Gives the convicted, and how many pieces the origin had to give.
    fn play(signs: impl Fn(u32) -> u8, lies: impl Fn(u32) -> bool) -> (BTreeMap<PeerId, BTreeSet<PieceIndex>>, usize) {
        let (me, mut rng) = (peer(0), fastrand::Rng::with_seed(3));
        let hash = |piece| if lies(piece) { wrong(piece) } else { right(piece) };
        let mut held: Vec<Held> =
            (0..COUNT).map(|piece| Held { hash: hash(piece), signer: Some(peer(signs(piece))) }).collect();
        let (mut blame, mut refetched) = (Blame::default(), 0);
        while (0_u32..).zip(&held).any(|(piece, held)| held.hash != right(piece)) {
            let Remedy::Refetch(pieces) = blame.mismatched(me, &held, &mut rng) else { panic!("given up") };
            refetched += pieces.len();
            for piece in pieces {
                held[piece.0 as usize] = Held { hash: right(piece.0), signer: Some(me) };
            }
        }
        let stated = (0..).map(PieceIndex).zip(held);
        (blame.guilty(me, &truth(), stated), refetched)
    }

    #[test]
    fn a_liar_among_honest_ones_is_convicted_of_its_lies_and_little_is_fetched_again() {
        // Pieces of the fourth are wrong, of the other three right.
        let (guilty, refetched) = play(|piece| 1 + (piece % 4) as u8, |piece| piece % 4 == 3);
        let lies: BTreeSet<PieceIndex> = (0..COUNT).filter(|piece| piece % 4 == 3).map(PieceIndex).collect();
        assert_eq!(guilty, BTreeMap::from([(peer(4), lies)]));
        assert_eq!(refetched, 4 * SAMPLES + (COUNT as usize / 4 - SAMPLES));
    }

    #[test]
    fn two_liars_are_convicted() {
        let (guilty, _) = play(|piece| 1 + (piece % 4) as u8, |piece| piece % 4 >= 2);
        assert_eq!(guilty.into_keys().collect::<Vec<_>>(), [peer(3), peer(4)]);
    }

    #[test]
    fn a_single_lie_is_found_though_no_sample_hits_it() {
        for lie in 0..COUNT {
            let (guilty, refetched) = play(|piece| 1 + (piece % 2) as u8, |piece| piece == lie);
            assert_eq!(guilty, BTreeMap::from([(peer(1 + (lie % 2) as u8), BTreeSet::from([PieceIndex(lie)]))]));
            assert!(refetched <= COUNT as usize, "{refetched}");
        }
    }

    #[test]
    fn when_all_is_of_one_liar_all_is_fetched_once() {
        let (guilty, refetched) = play(|_| 1, |_| true);
        assert_eq!(guilty[&peer(1)].len(), COUNT as usize);
        assert_eq!(refetched, COUNT as usize);
    }

    #[test]
    fn an_origin_that_is_wrong_twice_is_given_up_and_nobody_is_convicted() {
        let (me, mut rng) = (peer(0), fastrand::Rng::with_seed(3));
        let held: Vec<Held> = (0..COUNT).map(|piece| Held { hash: wrong(piece), signer: Some(me) }).collect();
        let mut blame = Blame::default();
        assert_eq!(
            blame.mismatched(me, &held, &mut rng),
            Remedy::Refetch((0..COUNT).map(PieceIndex).collect()),
            "a disk or a line may have been at fault"
        );
        assert_eq!(blame.mismatched(me, &held, &mut rng), Remedy::GiveUp);
        assert_eq!(blame.guilty(me, &truth(), std::iter::empty()), BTreeMap::new());
        assert!(matches!(blame.mismatched(me, &held, &mut rng), Remedy::Refetch(_)), "later it is tried again");
    }

    /// Bytes that all agree on, from an origin that serves something else: it ends, and who merely fetched them is let off.
    #[test]
    fn it_comes_to_an_end_whatever_comes() {
        let (me, mut rng) = (peer(0), fastrand::Rng::with_seed(3));
        let mut blame = Blame::default();
        let ended = (0..20).find(|round| {
            // Always others' bytes, always different ones.
            let held = |piece| Held { hash: wrong(piece + 100 * round), signer: Some(peer(1 + (piece % 8) as u8)) };
            let held: Vec<Held> = (0..COUNT).map(held).collect();
            blame.mismatched(me, &held, &mut rng) == Remedy::GiveUp
        });
        assert_eq!(ended, Some(MAX_ROUNDS));
    }
}
