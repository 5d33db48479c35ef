//! Which seed fetches a blob: every node that knows the same seeds chooses the same one, and only the blobs of a seed that
//! is gone move to others.

use lapwing_p2p::digest::Digest;

use super::Seed;
use crate::rendezvous::rank;

/// The seeds in the order in which they are to be asked for `digest`.
pub fn order(digest: &Digest, seeds: &[Seed]) -> Vec<Seed> {
    rank(digest, seeds.to_vec(), |seed| seed.peer.as_bytes())
}

#[cfg(test)]
mod tests {
    use lapwing_p2p::identity::PeerId;

    use super::*;

    fn seeds(count: u8) -> Vec<Seed> {
        let seed = |number| Seed {
            peer: PeerId::from_bytes([number; 32]),
            address: [10, 0, 0, number].into(),
            piece_port: 7081,
            seed_port: 7083,
        };
        (0..count).map(seed).collect()
    }

    #[test]
    fn everybody_chooses_the_same_and_all_are_chosen() {
        let (all, mut shuffled) = (seeds(5), seeds(5));
        shuffled.reverse();
        let mut chosen = [0; 5];
        for number in 0..1000_u32 {
            let digest = Digest::of(&number.to_be_bytes());
            assert_eq!(order(&digest, &all), order(&digest, &shuffled));
            chosen[usize::from(order(&digest, &all)[0].peer.as_bytes()[0])] += 1;
        }
        assert!(chosen.iter().all(|count| (120..280).contains(count)), "{chosen:?}");
    }

    #[test]
    fn only_the_blobs_of_the_lost_seed_move() {
        let (all, left) = (seeds(5), seeds(4));
        for number in 0..1000_u32 {
            let digest = Digest::of(&number.to_be_bytes());
            let before = order(&digest, &all);
            let next = if before[0] == all[4] { before[1] } else { before[0] };
            assert_eq!(order(&digest, &left)[0], next);
        }
    }
}
