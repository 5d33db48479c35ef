//! The blobs that a scheduler knows, by digest.
//!
//! Nearly every event is about the blob that the one before it was about, and looks it up a dozen times; so the place of
//! the last one is remembered, and only another one is looked for by its hash. Iteration is in the order of opening as far
//! as none was closed, and never in that of hashes: equal events give equal actions.

use std::cell::Cell;
use std::collections::HashMap;

use super::blob::BlobState;
use crate::digest::Digest;

#[derive(Debug, Default)]
pub(super) struct Blobs {
    places: HashMap<Digest, usize>,
    list: Vec<(Digest, BlobState)>,
    last: Cell<usize>,
}

impl Blobs {
    fn place(&self, digest: &Digest) -> Option<usize> {
        let last = self.last.get();
        if self.list.get(last).is_some_and(|(known, _)| known == digest) {
            return Some(last);
        }
        let place = *self.places.get(digest)?;
        self.last.set(place);
        Some(place)
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<&BlobState> {
        self.place(digest).map(|place| &self.list[place].1)
    }

    pub(super) fn get_mut(&mut self, digest: &Digest) -> Option<&mut BlobState> {
        self.place(digest).map(|place| &mut self.list[place].1)
    }

    /// Adds one unless it is there.
    pub(super) fn open(&mut self, digest: Digest, state: impl FnOnce() -> BlobState) {
        if self.place(&digest).is_none() {
            self.places.insert(digest, self.list.len());
            self.list.push((digest, state()));
        }
    }

    pub(super) fn remove(&mut self, digest: &Digest) -> Option<BlobState> {
        let place = self.places.remove(digest)?;
        let (_, removed) = self.list.swap_remove(place);
        if let Some((moved, _)) = self.list.get(place) {
            self.places.insert(*moved, place);
        }
        Some(removed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Digest, &BlobState)> + '_ {
        self.list.iter().map(|(digest, state)| (digest, state))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut BlobState> + '_ {
        self.list.iter_mut().map(|(_, state)| state)
    }

    /// The digests of all.
    pub(super) fn digests(&self) -> Vec<Digest> {
        self.list.iter().map(|(digest, _)| *digest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitfield::Bitfield;
    use crate::layout::PieceLayout;

    fn state(length: u64) -> BlobState {
        let layout = PieceLayout::new(length).unwrap();
        BlobState::new(layout, Bitfield::empty(layout.piece_count()), false)
    }

    /// The last one looked up, the one that takes a removed one's place, and one that was never there.
    #[test]
    fn a_blob_is_found_wherever_others_were_removed() {
        let mut blobs = Blobs::default();
        let digests: Vec<Digest> = (0_u8..4).map(|n| Digest::of(&[n])).collect();
        for (&digest, length) in digests.iter().zip(1..) {
            blobs.open(digest, || state(length));
            blobs.open(digest, || unreachable!("it is open"));
        }
        let length = |blobs: &Blobs, n: usize| blobs.get(&digests[n]).map(|blob| blob.layout.length());
        assert_eq!(length(&blobs, 1), Some(2));
        assert_eq!(blobs.remove(&digests[1]).map(|blob| blob.layout.length()), Some(2));
        assert_eq!(length(&blobs, 1), None);
        assert_eq!([0, 3, 2, 3].map(|n| length(&blobs, n)), [Some(1), Some(4), Some(3), Some(4)]);
        assert!(blobs.remove(&digests[3]).is_some() && blobs.remove(&digests[3]).is_none());
        assert_eq!([0, 2, 3].map(|n| length(&blobs, n)), [Some(1), Some(3), None]);
        assert_eq!(blobs.digests(), [digests[0], digests[2]]);
    }
}
