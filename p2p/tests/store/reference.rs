//! Blobs whose every byte is known.

use lapwing_p2p::digest::Digest;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};

/// A blob of reproducible bytes, each piece another.
pub(crate) struct Reference {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) layout: PieceLayout,
}

impl Reference {
    pub(crate) fn new(seed: u64, length: usize) -> Self {
        let mut bytes = vec![0; length];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        Self { digest: Digest::of(&bytes), layout: PieceLayout::new(length as u64).unwrap(), bytes }
    }

    pub(crate) fn length(&self) -> u64 {
        self.layout.length()
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = PieceIndex> + use<> {
        (0..self.layout.piece_count()).map(PieceIndex)
    }

    pub(crate) fn piece(&self, piece: PieceIndex) -> &[u8] {
        let range = self.layout.range(piece);
        &self.bytes[range.start as usize..range.end as usize]
    }
}

/// Other choices in every run, and the seed to repeat one: `LAPWING_TEST_RANDOM=<seed>`.
pub(crate) fn random() -> fastrand::Rng {
    let seed = std::env::var("LAPWING_TEST_RANDOM").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("LAPWING_TEST_RANDOM={seed}");
    fastrand::Rng::with_seed(seed)
}
