//! Who states what of one blob.

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Statement, StatementKind, Vote};

use crate::limits::{MAX_OBJECTS_PER_SUBJECT, MAX_VOTERS_PER_OBJECT};

#[derive(Debug)]
struct Candidate {
    kind: StatementKind,
    object: Digest,
    length: u64,
    /// Never empty; at most [`MAX_VOTERS_PER_OBJECT`].
    voters: Vec<u32>,
}

/// The objects stated of one subject, and by which nodes.
#[derive(Debug, Default)]
pub(super) struct Votes(Vec<Candidate>);

/// What became of a vote.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cast {
    /// It counts.
    Counted,
    /// It counts, and the lone vote of that node for another object had to go.
    Displaced(u32, StatementKind),
    /// So many agree already that one more is not kept.
    Enough,
    /// There are too many objects, each with several votes.
    Full,
}

impl Votes {
    /// Counts `node`'s vote. The caller has removed an earlier one of the same kind. `random` breaks ties.
    pub(super) fn cast(&mut self, node: u32, statement: &Statement, random: &mut fastrand::Rng) -> Cast {
        let same = |candidate: &&mut Candidate| {
            (candidate.kind, candidate.object, candidate.length) == (statement.kind, statement.object, statement.length)
        };
        if let Some(candidate) = self.0.iter_mut().find(same) {
            if candidate.voters.len() >= MAX_VOTERS_PER_OBJECT {
                return Cast::Enough;
            }
            candidate.voters.push(node);
            return Cast::Counted;
        }
        let (kind, object, length) = (statement.kind, statement.object, statement.length);
        let candidate = Candidate { kind, object, length, voters: vec![node] };
        if self.0.len() < MAX_OBJECTS_PER_SUBJECT {
            self.0.push(candidate);
            return Cast::Counted;
        }
        // Liars may fill the list, but what several nodes agree on stays, and whatever is new gets its chance.
        let lone: Vec<usize> = (0..self.0.len()).filter(|index| self.0[*index].voters.len() == 1).collect();
        let Some(index) = random.choice(&lone) else { return Cast::Full };
        let displaced = std::mem::replace(&mut self.0[*index], candidate);
        Cast::Displaced(displaced.voters[0], displaced.kind)
    }

    /// Takes `node`'s vote of this kind back.
    pub(super) fn withdraw(&mut self, node: u32, kind: StatementKind) {
        for candidate in self.0.iter_mut().filter(|candidate| candidate.kind == kind) {
            candidate.voters.retain(|voter| *voter != node);
        }
        self.0.retain(|candidate| !candidate.voters.is_empty());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The count, most votes first.
    pub(super) fn tally(&self, subject: Digest) -> Vec<Vote> {
        let mut votes: Vec<Vote> = self
            .0
            .iter()
            .map(|candidate| Vote {
                statement: Statement {
                    subject,
                    kind: candidate.kind,
                    object: candidate.object,
                    length: candidate.length,
                },
                nodes: candidate.voters.len() as u32,
            })
            .collect();
        votes.sort_by_key(|vote| std::cmp::Reverse(vote.nodes));
        votes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(object: u8) -> Statement {
        let digest = |byte| Digest::from_bytes([byte; 32]);
        Statement { subject: digest(0), kind: StatementKind::Metainfo, object: digest(object), length: 7 }
    }

    #[test]
    fn liars_cannot_displace_what_two_agree_on() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut votes = Votes::default();
        for node in [0, 1] {
            assert_eq!(votes.cast(node, &about(1), &mut random), Cast::Counted);
        }
        for liar in 2..200 {
            votes.cast(liar, &about(liar as u8 + 1), &mut random);
        }
        let tally = votes.tally(Digest::from_bytes([0; 32]));
        assert_eq!(tally.len(), MAX_OBJECTS_PER_SUBJECT);
        assert_eq!((tally[0].statement.object, tally[0].nodes), (about(1).object, 2));
    }

    #[test]
    fn voters_are_bounded() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut votes = Votes::default();
        for node in 0..1000 {
            votes.cast(node, &about(1), &mut random);
        }
        assert_eq!(votes.tally(about(1).subject)[0].nodes as usize, MAX_VOTERS_PER_OBJECT);
    }
}
