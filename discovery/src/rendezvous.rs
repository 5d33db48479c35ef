//! Rendezvous hashing (Thaler and Ravishankar 1998): everybody who knows the same candidates puts them in the same order for
//! a digest, and where one goes or comes, only what was or becomes its own moves.

use lapwing_p2p::digest::Digest;
use lapwing_p2p::verify::piece_hash;

/// The candidates in the order in which they are to be asked for `digest`; `key` names each of them.
pub(crate) fn rank<T>(digest: &Digest, mut candidates: Vec<T>, key: impl Fn(&T) -> &[u8]) -> Vec<T> {
    let weight = |candidate: &T| piece_hash(&[digest.as_bytes().as_slice(), key(candidate)].concat());
    candidates.sort_by_cached_key(|candidate| std::cmp::Reverse(weight(candidate)));
    candidates
}
