//! Profiles of images: what containers of an image read of its layers when they start, and in which order.
//!
//! A profile is a hint. It says nothing of what the bytes are; where it is wrong, somebody fetches what nobody reads, within
//! [`MAX_PREFETCH_SHARE`](crate::limits::MAX_PREFETCH_SHARE), and nothing else comes of it. It speaks of ranges of the layers'
//! decompressed tars, not of spans, so that it outlives an index that cuts otherwise.
//!
//! * [`merge`]: what two profiles have in common, and one made of several
//! * [`plan`]: which spans are to be fetched, in which order
//! * `codec`: the encoded form
//!
//! # Encoded form, version 1
//!
//! All integers little endian. There is one encoded form of each profile; whatever else is refused.
//!
//! ```text
//!   0   8  "LAPWPROF"
//!   8   4  version: 1
//!  12   2  number of layers, L, at most 512
//!  14   2  number of starts, S, 1 to 16
//!  16  32  the image's chain id: SHA-256, as in the OCI image specification
//!  48      L digests of layers, 32 bytes each (SHA-256, as the manifest has them), as they are first read, each once
//!          S starts, each of another entry point
//!            0   2  first two bytes of the SHA-256 of the arguments, each followed by a zero byte; 0 if they are not known
//!            2   1  length of the program's name, P, at most 64
//!            3   1  zero
//!            4   4  number of reads, R; over all starts at most 10,240
//!            8   8  when it was recorded last: seconds since 1970
//!           16   4  in how many recordings, at least 1
//!           20      P bytes of the program's name: the last part of the first argument, of the characters '!' to '~'; empty if not known
//!                   R reads of 20 bytes, in the order of their times
//!                     0   4  milliseconds since the start
//!                     4   2  layer: its number in the list
//!                     6   2  zero
//!                     8   8  offset in the decompressed tar; with the length at most 2^40
//!                    16   4  length in bytes, at least 1
//! ```

use std::ops::Range;

use lapwing_p2p::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::limits::MAX_PROGRAM_BYTES;

mod codec;
pub mod merge;
pub mod plan;
#[cfg(test)]
mod tests_support;

/// Why bytes are no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no profile of an image: {0}; `lapwing profile export` writes one")]
pub struct ProfileError(pub(crate) String);

/// What a container is started with, as far as profiles tell: enough to tell a few starts of one image apart, and not enough to
/// find out what secrets a command line had.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct EntryPoint {
    /// The first two bytes of a hash of all arguments.
    pub tag: u16,
    /// Name of the program, without its directory; printable ASCII.
    pub program: String,
}

impl EntryPoint {
    /// That of a process with these arguments, the program first.
    pub fn of<S: AsRef<str>>(arguments: &[S]) -> Self {
        let Some(first) = arguments.first() else { return Self::default() };
        let mut hasher = Sha256::new();
        for argument in arguments {
            hasher.update(argument.as_ref().as_bytes());
            hasher.update([0]);
        }
        let hash = hasher.finalize();
        let name = first.as_ref().rsplit('/').next().unwrap_or_default();
        let program = name.chars().filter(char::is_ascii_graphic).take(MAX_PROGRAM_BYTES).collect();
        Self { tag: u16::from_le_bytes([hash[0], hash[1]]), program }
    }

    /// Whether it is that of a container whose arguments are not known.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

/// A range of a layer that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// When, in milliseconds since the start.
    pub at_ms: u32,
    /// Digest of the layer.
    pub layer: Digest,
    /// Where in its decompressed tar.
    pub range: Range<u64>,
}

/// What was read at starts with one entry point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The entry point.
    pub entry: EntryPoint,
    /// When it was recorded last, in seconds since 1970.
    pub recorded: u64,
    /// In how many recordings.
    pub recordings: u32,
    /// In the order of their times.
    pub reads: Vec<Read>,
}

/// What containers of an image read when they start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Chain id of the image: that of its uppermost layer.
    pub chain: Digest,
    /// One for each entry point that was seen, at least one.
    pub starts: Vec<Start>,
}

impl Profile {
    /// A profile of one start.
    pub fn new(chain: Digest, start: Start) -> Self {
        Self { chain, starts: vec![start] }
    }

    /// Reads of all starts.
    pub fn reads(&self) -> impl Iterator<Item = &Read> {
        self.starts.iter().flat_map(|start| &start.reads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_points_are_told_apart_by_all_arguments_and_named_by_the_first() {
        let of = |arguments: &[&str]| EntryPoint::of(arguments);
        let one = of(&["/usr/bin/python3", "/app/main.py"]);
        assert_eq!(one.program, "python3");
        assert_ne!(one, of(&["/usr/bin/python3", "/app/full.py"]));
        assert_ne!(of(&["a", "bc"]), of(&["ab", "c"]));
        assert_eq!(of(&["\u{1b}[31m/x y\u{e9}"]).program, "xy", "nothing that a terminal would obey");
        assert_eq!(of(&[&"long".repeat(100)]).program.len(), MAX_PROGRAM_BYTES);
        assert!(of(&[]).is_unknown() && !one.is_unknown());
    }
}
