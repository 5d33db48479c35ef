//! Profiles for tests.

use std::ops::Range;

use lapwing_p2p::digest::Digest;
use proptest::prelude::*;

use super::{EntryPoint, Profile, Read, Start};

/// Reads: when, of the layer with that number, where.
pub(super) fn reads(of: &[(u32, u8, Range<u64>)]) -> Vec<Read> {
    let read = |(at_ms, layer, range): &(u32, u8, Range<u64>)| Read {
        at_ms: *at_ms,
        layer: Digest::of(&[*layer]),
        range: range.clone(),
    };
    of.iter().map(read).collect()
}

/// A start of `sh`.
pub(super) fn start(recorded: u64, of: &[(u32, u8, Range<u64>)]) -> Start {
    let entry = EntryPoint { tag: 0x1234, program: "sh".into() };
    Start { entry, recorded, recordings: 1, reads: reads(of) }
}

/// A profile with that start.
pub(super) fn profile(of: &[(u32, u8, Range<u64>)]) -> Profile {
    Profile::new(Digest::of(b"image"), start(5, of))
}

/// Whatever can be recorded.
pub(super) fn any_profile() -> impl Strategy<Value = Profile> {
    let read = (0_u32..1000, 0_u8..5, 0_u64..1 << 39, 1_u64..1 << 32);
    let reads = prop::collection::vec(read, 0..30).prop_map(|mut reads| {
        reads.sort_by_key(|read| read.0);
        let reads: Vec<_> =
            reads.into_iter().map(|(at, layer, start, length)| (at, layer, start..start + length)).collect();
        super::tests_support::reads(&reads)
    });
    let start = (any::<u16>(), "[!-~]{0,64}", any::<u64>(), 1_u32.., reads).prop_map(
        |(tag, program, recorded, recordings, reads)| Start {
            entry: EntryPoint { tag, program },
            recorded,
            recordings,
            reads,
        },
    );
    (any::<[u8; 32]>(), prop::collection::vec(start, 1..5)).prop_map(|(chain, mut starts)| {
        starts.sort_by(|one, two| one.entry.cmp(&two.entry));
        starts.dedup_by(|one, two| one.entry == two.entry);
        Profile { chain: Digest::from_bytes(chain), starts }
    })
}
