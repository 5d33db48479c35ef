//! Profiles for tests.

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::profile::{EntryPoint, Profile, Read, Start};

/// A profile of a start that reads `bytes` of one layer.
pub(super) fn profile(image: &[u8], bytes: u64) -> Profile {
    let reads = vec![Read { at_ms: 1, layer: Digest::of(b"layer"), range: 0..bytes }];
    let entry = EntryPoint::of(&["/bin/sh", "-c", "true"]);
    Profile::new(Digest::of(image), Start { entry, recorded: 1_700_000_000, recordings: 1, reads })
}
