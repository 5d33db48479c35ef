//! What an image's manifest says of a layer's own table of contents.

use std::fmt;
use std::str::FromStr;

use lapwing_p2p::digest::Digest;

use super::TocError;

/// SHA-256 of the JSON of an eStargz table. containerd also gives it to snapshotters, as a label.
pub const ESTARGZ_ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";
/// What the annotations of zstd:chunked begin with: those of containers/storage, and those of stargz-snapshotter.
const ZSTD_CHUNKED_PREFIXES: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];
/// The one type of table in zstd:chunked (`ManifestTypeCRFS`).
const CRFS: &str = "1";

/// That a layer has a table of contents, by the annotations of its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// eStargz.
    EStargz {
        /// SHA-256 of the JSON.
        digest: Digest,
    },
    /// zstd:chunked.
    ZstdChunked {
        /// SHA-256 of the compressed JSON.
        digest: Digest,
        /// Where it begins in the layer.
        offset: u64,
        /// Length of the compressed JSON in bytes.
        length: u64,
        /// Length of the JSON itself in bytes.
        json_length: u64,
    },
}

impl Announced {
    /// Reads the annotations of a layer's descriptor, given by name. zstd:chunked layers that stargz-snapshotter made also have
    /// the other format's annotation.
    pub fn of<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        ZSTD_CHUNKED_PREFIXES.iter().find_map(|prefix| zstd_chunked(prefix, &annotation)).or_else(|| {
            let digest = annotation(ESTARGZ_ANNOTATION)?.parse().ok()?;
            Some(Self::EStargz { digest })
        })
    }
}

fn zstd_chunked<'a>(prefix: &str, annotation: &impl Fn(&str) -> Option<&'a str>) -> Option<Announced> {
    let digest = annotation(&format!("{prefix}manifest-checksum"))?.parse().ok()?;
    let position = annotation(&format!("{prefix}manifest-position"))?;
    let mut numbers = position.split(':');
    let mut number = || numbers.next()?.parse::<u64>().ok();
    let (offset, length, json_length) = (number()?, number()?, number()?);
    let is_known = numbers.next() == Some(CRFS) && numbers.next().is_none();
    is_known.then_some(Announced::ZstdChunked { digest, offset, length, json_length })
}

impl fmt::Display for Announced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EStargz { digest } => write!(f, "estargz {digest}"),
            Self::ZstdChunked { digest, offset, length, json_length } => {
                write!(f, "zstd-chunked {digest} {offset} {length} {json_length}")
            }
        }
    }
}

impl FromStr for Announced {
    type Err = TocError;

    /// Reads what [`Display`](fmt::Display) wrote.
    fn from_str(text: &str) -> Result<Self, TocError> {
        let wrong = || TocError::Malformed(format!("{text:?} announces none"));
        let words: Vec<&str> = text.split(' ').collect();
        let digest = |word: &str| word.parse().map_err(|_| wrong());
        let number = |word: &str| word.parse().map_err(|_| wrong());
        match words.as_slice() {
            ["estargz", of_json] => Ok(Self::EStargz { digest: digest(of_json)? }),
            ["zstd-chunked", of_stored, offset, length, json_length] => Ok(Self::ZstdChunked {
                digest: digest(of_stored)?,
                offset: number(offset)?,
                length: number(length)?,
                json_length: number(json_length)?,
            }),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Option<Announced> {
        let annotations: HashMap<&str, &str> = annotations.iter().copied().collect();
        Announced::of(|name| annotations.get(name).copied())
    }

    #[test]
    fn reads_both_spellings_and_prefers_zstd_chunked() {
        let digest = Digest::of(b"toc");
        let text = digest.to_string();
        let estargz = (ESTARGZ_ANNOTATION, text.as_str());
        assert_eq!(of(&[estargz]), Some(Announced::EStargz { digest }));
        for prefix in ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."] {
            let (checksum, position) = (format!("{prefix}manifest-checksum"), format!("{prefix}manifest-position"));
            let found = of(&[estargz, (&checksum, &text), (&position, "10:20:30:1")]);
            let expected = Announced::ZstdChunked { digest, offset: 10, length: 20, json_length: 30 };
            assert_eq!(found, Some(expected));
            assert_eq!(expected.to_string().parse(), Ok(expected));
            for bad in ["10:20:30:2", "10:20:30", "10:20:30:1:1", "-1:20:30:1", "x", "18446744073709551616:1:1:1"] {
                assert_eq!(of(&[(&checksum, &text), (&position, bad)]), None, "{bad}");
            }
        }
        assert_eq!(of(&[(ESTARGZ_ANNOTATION, "sha512:00")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn what_was_written_is_read() {
        let announced = Announced::EStargz { digest: Digest::of(b"x") };
        assert_eq!(announced.to_string().parse(), Ok(announced));
        for bad in ["", "estargz", "estargz x", "zstd-chunked", "soci"] {
            assert!(bad.parse::<Announced>().is_err(), "{bad}");
        }
    }
}
