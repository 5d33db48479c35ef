//! The encoded form of a profile; see the module documentation of [`profile`](super) for the layout.

use lapwing_p2p::digest::Digest;
use lapwing_p2p::limits::MAX_PROFILE_LENGTH;

use super::{EntryPoint, Profile, ProfileError, Read, Start};
use crate::limits::{MAX_PROFILE_LAYERS, MAX_PROFILE_READS, MAX_PROFILE_STARTS, MAX_PROGRAM_BYTES, MAX_TAR_BYTES};

const MAGIC: &[u8; 8] = b"LAPWPROF";
const VERSION: u32 = 1;

/// The bytes not yet decoded.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], ProfileError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| wrong("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProfileError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(|| wrong("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, ProfileError> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, ProfileError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ProfileError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ProfileError> {
        self.array().map(u64::from_le_bytes)
    }
}

fn wrong(problem: &str) -> ProfileError {
    ProfileError(problem.to_owned())
}

impl Profile {
    /// The bytes that are shared. The profile is within the limits: those of [`Profile::absorb`] are.
    pub fn encode(&self) -> Vec<u8> {
        let mut layers: Vec<Digest> = Vec::new();
        let mut starts = Vec::new();
        for start in &self.starts {
            starts.extend_from_slice(&start.entry.tag.to_le_bytes());
            starts.extend_from_slice(&[start.entry.program.len() as u8, 0]);
            starts.extend_from_slice(&(start.reads.len() as u32).to_le_bytes());
            starts.extend_from_slice(&start.recorded.to_le_bytes());
            starts.extend_from_slice(&start.recordings.to_le_bytes());
            starts.extend_from_slice(start.entry.program.as_bytes());
            for read in &start.reads {
                let layer = layers.iter().position(|layer| *layer == read.layer).unwrap_or_else(|| {
                    layers.push(read.layer);
                    layers.len() - 1
                });
                starts.extend_from_slice(&read.at_ms.to_le_bytes());
                starts.extend_from_slice(&(layer as u32).to_le_bytes());
                starts.extend_from_slice(&read.range.start.to_le_bytes());
                starts.extend_from_slice(&((read.range.end - read.range.start) as u32).to_le_bytes());
            }
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(layers.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&(self.starts.len() as u16).to_le_bytes());
        bytes.extend_from_slice(self.chain.as_bytes());
        for layer in &layers {
            bytes.extend_from_slice(layer.as_bytes());
        }
        bytes.extend_from_slice(&starts);
        bytes
    }

    /// Reads an encoded profile from anywhere.
    ///
    /// # Errors
    ///
    /// When it is not what [`Self::encode`] writes, or beyond the limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProfileError> {
        if bytes.len() as u64 > MAX_PROFILE_LENGTH {
            return Err(ProfileError(format!("{} bytes, beyond {MAX_PROFILE_LENGTH}", bytes.len())));
        }
        let mut bytes = Bytes(bytes);
        if &bytes.array::<8>()? != MAGIC {
            return Err(wrong("it does not begin with LAPWPROF"));
        }
        let version = bytes.u32()?;
        if version != VERSION {
            return Err(ProfileError(format!("version {version}, only {VERSION} is known")));
        }
        let (layers, starts) = (usize::from(bytes.u16()?), usize::from(bytes.u16()?));
        if layers > MAX_PROFILE_LAYERS || !(1..=MAX_PROFILE_STARTS).contains(&starts) {
            return Err(ProfileError(format!("{starts} starts over {layers} layers")));
        }
        let chain = Digest::from_bytes(bytes.array()?);
        let layers = Layers::decode(&mut bytes, layers)?;
        let mut decoded = Decoding { layers, used: 0, reads: 0 };
        let mut profile = Self { chain, starts: Vec::with_capacity(starts) };
        for _ in 0..starts {
            let start = decoded.start(&mut bytes)?;
            if profile.starts.iter().any(|other| other.entry == start.entry) {
                return Err(wrong("two starts of one entry point"));
            }
            profile.starts.push(start);
        }
        if decoded.used != decoded.layers.0.len() {
            return Err(wrong("it names a layer that nobody reads"));
        }
        if !bytes.0.is_empty() {
            return Err(wrong("it goes on after its end"));
        }
        Ok(profile)
    }
}

/// The list of layers, each once.
struct Layers(Vec<Digest>);

impl Layers {
    fn decode(bytes: &mut Bytes<'_>, count: usize) -> Result<Self, ProfileError> {
        let mut layers = Vec::with_capacity(count);
        for _ in 0..count {
            let layer = Digest::from_bytes(bytes.array()?);
            if layers.contains(&layer) {
                return Err(wrong("it names a layer twice"));
            }
            layers.push(layer);
        }
        Ok(Self(layers))
    }
}

/// What was seen so far.
struct Decoding {
    layers: Layers,
    /// So many of the layers were read.
    used: usize,
    reads: usize,
}

impl Decoding {
    fn start(&mut self, bytes: &mut Bytes<'_>) -> Result<Start, ProfileError> {
        let (tag, length, zero) = (bytes.u16()?, usize::from(bytes.byte()?), bytes.byte()?);
        let (reads, recorded, recordings) = (bytes.u32()? as usize, bytes.u64()?, bytes.u32()?);
        self.reads = self.reads.saturating_add(reads);
        if length > MAX_PROGRAM_BYTES || zero != 0 || recordings == 0 || self.reads > MAX_PROFILE_READS {
            return Err(ProfileError(format!("a start with {reads} reads and a name of {length} bytes")));
        }
        let program = bytes.take(length)?;
        if !program.iter().all(u8::is_ascii_graphic) {
            return Err(wrong("a program's name with strange characters"));
        }
        let program = String::from_utf8_lossy(program).into_owned();
        let mut start = Start { entry: EntryPoint { tag, program }, recorded, recordings, reads: Vec::new() };
        for _ in 0..reads {
            let read = self.read(bytes)?;
            if start.reads.last().is_some_and(|last| last.at_ms > read.at_ms) {
                return Err(wrong("reads that are not in the order of their times"));
            }
            start.reads.push(read);
        }
        Ok(start)
    }

    fn read(&mut self, bytes: &mut Bytes<'_>) -> Result<Read, ProfileError> {
        // The upper half of the number is what has to be zero.
        let (at_ms, layer, offset, length) = (bytes.u32()?, bytes.u32()? as usize, bytes.u64()?, bytes.u32()?);
        let known = self.layers.0.get(layer).copied();
        let (Some(digest), true) = (known, layer <= self.used) else {
            return Err(ProfileError(format!("a read of layer {layer}")));
        };
        self.used = self.used.max(layer + 1);
        match offset.checked_add(u64::from(length)) {
            Some(end) if length > 0 && end <= MAX_TAR_BYTES => Ok(Read { at_ms, layer: digest, range: offset..end }),
            _ => Err(ProfileError(format!("a read of {length} bytes at {offset}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests_support::{any_profile, profile};
    use super::*;

    proptest! {
        #[test]
        fn a_profile_survives_its_encoding(profile in any_profile()) {
            let bytes = profile.encode();
            prop_assert!(bytes.len() as u64 <= MAX_PROFILE_LENGTH);
            prop_assert_eq!(Profile::decode(&bytes), Ok(profile));
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Profile::decode(&bytes);
            let _ = Profile::decode(&[&profile(&[(0, 0, 0..1)]).encode()[..48], &bytes].concat());
        }

        #[test]
        fn what_is_read_is_written_the_same(
            profile in any_profile(), at in any::<prop::sample::Index>(), flip in 1_u8..,
        ) {
            let mut bytes = profile.encode();
            prop_assert!(Profile::decode(&bytes[..at.index(bytes.len())]).is_err(), "cut");
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(other) = Profile::decode(&bytes) {
                prop_assert_eq!(other.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_layout_is_the_one_that_is_documented() {
        let bytes = profile(&[(7, 1, 0x0102..0x0105)]).encode();
        assert_eq!(&bytes[..16], b"LAPWPROF\x01\0\0\0\x01\0\x01\0");
        assert_eq!(bytes[16..48], *Digest::of(b"image").as_bytes());
        assert_eq!(bytes[48..80], *Digest::of(&[1]).as_bytes());
        assert_eq!(&bytes[80..100], b"\x34\x12\x02\0\x01\0\0\0\x05\0\0\0\0\0\0\0\x01\0\0\0");
        assert_eq!(&bytes[100..], b"sh\x07\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\x03\0\0\0");
    }

    #[test]
    fn what_is_beyond_the_limits_is_refused() {
        let good = profile(&[(1, 0, 0..5), (1, 1, 5..9)]).encode();
        let refused = |at: usize, bytes: &[u8], problem: &str| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            let error = Profile::decode(&bad).unwrap_err().to_string();
            assert!(error.contains(problem), "{at}: {error}");
        };
        refused(0, b"x", "LAPWPROF");
        refused(8, &[2], "version 2");
        refused(12, &[1, 2], "513 layers");
        refused(14, &[17], "17 starts");
        refused(14, &[0], "0 starts");
        refused(80, Digest::of(&[0]).as_bytes(), "twice");
        refused(114, &[65], "65 bytes");
        refused(116, &[0xff, 0xff], "65535 reads");
        refused(128, &[0; 4], "a start with");
        refused(132, b"\x1b", "strange");
        refused(138, &[1], "layer 1");
        refused(140, &[1], "layer 65536");
        refused(149, &[0xff; 1], "bytes at");
        refused(150, &[0; 4], "0 bytes");
        refused(154, &[0], "order");
        assert!(Profile::decode(&[&good[..], b"x"].concat()).unwrap_err().to_string().contains("after its end"));
    }
}
