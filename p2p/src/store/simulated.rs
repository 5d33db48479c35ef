//! The store on a disk that loses its power, or refuses what it is asked, at any change: ten thousand times in some minutes.
//!
//! [`disk`] keeps what reached the disk apart from what may be lost; [`promises`] what the store has promised; [`life`] is a process that
//! uses the store; [`power`] and [`refusal`] are the tests.

mod disk;
mod life;
mod power;
mod promises;
mod refusal;

use std::path::PathBuf;

use crate::digest::Digest;
use crate::layout::{PieceIndex, PieceLayout};

/// A blob of known bytes.
struct Reference {
    digest: Digest,
    bytes: Vec<u8>,
    layout: PieceLayout,
}

impl Reference {
    fn new(seed: u64, length: usize) -> Self {
        let mut bytes = vec![0; length];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        Self { digest: Digest::of(&bytes), layout: PieceLayout::new(length as u64).unwrap(), bytes }
    }

    /// One of several pieces, another, and one of a single piece.
    fn some() -> [Self; 3] {
        [Self::new(1, 330_000), Self::new(2, 270_001), Self::new(3, 5_000)]
    }

    fn piece(&self, piece: u32) -> &[u8] {
        let range = self.layout.range(PieceIndex(piece));
        &self.bytes[range.start as usize..range.end as usize]
    }
}

/// In memory where there is room for it: the disk is simulated.
fn directory() -> tempfile::TempDir {
    const SHARED: &str = "/dev/shm";
    let roomy = rustix::fs::statvfs(SHARED).is_ok_and(|stat| stat.f_bavail * stat.f_frsize >= 256 << 20);
    let base = if roomy { PathBuf::from(SHARED) } else { std::env::temp_dir() };
    tempfile::tempdir_in(base.canonicalize().unwrap()).unwrap()
}
