//! Which trackers own a digest: the two that rendezvous hashing puts first. Pure.
//!
//! A node is registered with every tracker, and tells of a blob only its owners: each tracker of a cluster of many keeps its
//! share. Everybody who is configured with the same names, in whatever order, agrees on the owners, and on who comes
//! third when both are down. Where a tracker comes or goes, only what it owns or owned moves.

use lapwing_p2p::digest::Digest;

use crate::limits::OWNERS;
use crate::rendezvous::rank;

/// The names of the trackers in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ring {
    names: Vec<String>,
}

/// What a tracker is to be told of a digest when the set of trackers has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// It owns it now.
    Announce,
    /// It does no longer.
    Withdraw,
}

impl Ring {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self { names }
    }

    /// Places of all trackers in the list of names, in the order in which they are to be asked about `digest`: its owners
    /// first.
    pub(super) fn order(&self, digest: &Digest) -> Vec<usize> {
        let order = rank(digest, self.names.iter().enumerate().collect(), |(_, name)| name.as_bytes());
        order.into_iter().map(|(place, _)| place).collect()
    }

    /// Places of the owners of `digest`, the first one first.
    pub(super) fn owners(&self, digest: &Digest) -> Vec<usize> {
        let mut order = self.order(digest);
        order.truncate(OWNERS);
        order
    }

    /// Whether `name` owns `digest`.
    pub(super) fn owns(&self, name: &str, digest: &Digest) -> bool {
        self.owners(digest).iter().any(|&place| self.names[place] == name)
    }

    /// Which trackers are to be told what of `digest` once this set has taken the place of `former`. Those that are not in this
    /// set any more are named, too.
    pub(super) fn changes<'a>(&'a self, former: &'a Self, digest: &Digest) -> Vec<(&'a str, Move)> {
        let names = |ring: &'a Self| ring.owners(digest).into_iter().map(|place| ring.names[place].as_str());
        let (before, now): (Vec<_>, Vec<_>) = (names(former).collect(), names(self).collect());
        let gained = now.iter().filter(|name| !before.contains(name)).map(|name| (*name, Move::Announce));
        let lost = before.iter().filter(|name| !now.contains(name)).map(|name| (*name, Move::Withdraw));
        gained.chain(lost).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGESTS: u32 = 3000;

    fn ring(numbers: impl IntoIterator<Item = u8>) -> Ring {
        Ring::new(numbers.into_iter().map(|number| format!("tracker-{number}:7070")).collect())
    }

    fn digests() -> impl Iterator<Item = Digest> {
        (0..DIGESTS).map(|number| Digest::of(&number.to_be_bytes()))
    }

    fn owners(ring: &Ring, digest: &Digest) -> Vec<String> {
        ring.names.iter().filter(|name| ring.owns(name, digest)).cloned().collect()
    }

    #[test]
    fn every_digest_has_two_owners_and_all_trackers_have_their_share() {
        let ring = ring(0..6);
        let mut owned = [0_u32; 6];
        for digest in digests() {
            assert_eq!(owners(&ring, &digest).len(), 2);
            ring.order(&digest).into_iter().take(2).for_each(|place| owned[place] += 1);
        }
        assert_eq!(owned.iter().sum::<u32>(), 2 * DIGESTS);
        assert!(owned.iter().all(|count| (850..1150).contains(count)), "{owned:?}");
    }

    #[test]
    fn one_or_two_trackers_own_everything() {
        for count in 1..=2 {
            let ring = ring(0..count);
            assert!(digests().all(|digest| owners(&ring, &digest).len() == usize::from(count)));
        }
        assert!(!ring(0..2).owns("tracker-2:7070", &Digest::of(b"x")), "not one that is not in use");
    }

    #[test]
    fn all_nodes_agree_whatever_the_order_of_their_lists() {
        let (one, other) = (ring(0..5), ring((0..5).rev()));
        for digest in digests() {
            let named = |ring: &Ring| ring.order(&digest).into_iter().map(|place| ring.names[place].clone()).collect();
            let (first, second): (Vec<String>, Vec<String>) = (named(&one), named(&other));
            assert_eq!(first, second);
            assert!(first[..2].iter().all(|name| one.owns(name, &digest)));
        }
    }

    #[test]
    fn a_tracker_that_comes_or_goes_moves_only_its_own() {
        let (four, five) = (ring(0..4), ring(0..5));
        let mut moved = 0;
        for digest in digests() {
            let changes = five.changes(&four, &digest);
            assert!(matches!(changes.len(), 0 | 2), "one owner is replaced, or none");
            for &(name, change) in &changes {
                assert_eq!(name == "tracker-4:7070", change == Move::Announce);
                assert_eq!(
                    (five.owns(name, &digest), four.owns(name, &digest)),
                    match change {
                        Move::Announce => (true, false),
                        Move::Withdraw => (false, true),
                    }
                );
            }
            moved += changes.len() / 2;
            let mut back = four.changes(&five, &digest);
            back.reverse();
            let turned = |&(name, change)| match change {
                Move::Announce => (name, Move::Withdraw),
                Move::Withdraw => (name, Move::Announce),
            };
            assert_eq!(changes.iter().map(turned).collect::<Vec<_>>(), back);
        }
        let share = 2 * DIGESTS as usize / 5;
        assert!((share * 8 / 10..share * 12 / 10).contains(&moved), "{moved} of {} moved", 2 * DIGESTS);
    }
}
