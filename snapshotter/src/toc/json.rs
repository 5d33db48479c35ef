//! The JSON of eStargz (stargz-snapshotter, `estargz/types.go`) and of zstd:chunked (containers/storage,
//! `pkg/chunked/internal/minimal/compression.go`), read entry by entry. Both go back to CRFS.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::limits::{MAX_ENTRIES, MAX_TABLE_BYTES, MAX_TOC_CHUNKS, MAX_TOC_XATTR_BYTES};
use crate::shown::brief;
use crate::tar::table_bytes;
use crate::tree::{Entry, Kind};

use super::listed::Listed;
use super::{PREFETCH_LANDMARK, TocError, is_hidden, malformed};

/// What stands for bytes that JSON cannot hold.
const REPLACED: char = '\u{fffd}';

/// A part of a file's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Where its member or frame begins in the layer.
    pub(super) member: u64,
    /// Output of the member before it.
    pub(super) skip: u64,
    /// Length in bytes.
    pub(super) length: u64,
    /// SHA-256.
    pub(super) digest: [u8; 32],
}

/// What a table says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Files have their size, and no extents yet.
    pub(super) entries: Vec<Entry>,
    /// The parts of the files that have any, by their place among the entries, ascending.
    pub(super) files: Vec<(usize, Vec<Part>)>,
    /// What lies before this byte of the layer is wanted at start-up.
    pub(super) landmark: Option<u64>,
}

/// Reads a table.
pub(super) fn parse(json: &[u8]) -> Result<Contents, TocError> {
    let mut reader = Reader::default();
    let mut source = serde_json::Deserializer::from_slice(json);
    let read = Table(&mut reader).deserialize(&mut source).and_then(|()| source.end());
    match (read, reader.refused.take()) {
        (_, Some(refused)) => Err(refused),
        (Err(error), None) => Err(malformed(error.to_string())),
        (Ok(()), None) => reader.finish(),
    }
}

/// An entry as it is written; zero and empty where it is left out. Other fields are ignored.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Written<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    size: i64,
    #[serde(borrow)]
    modtime: Option<Cow<'a, str>>,
    #[serde(borrow)]
    link_name: Cow<'a, str>,
    mode: i64,
    uid: i64,
    gid: i64,
    dev_major: i64,
    dev_minor: i64,
    xattrs: Attributes,
    #[serde(borrow)]
    digest: Cow<'a, str>,
    offset: i64,
    inner_offset: i64,
    chunk_offset: i64,
    chunk_size: i64,
    #[serde(borrow)]
    chunk_digest: Cow<'a, str>,
}

/// Extended attributes by name, values in base 64; null for none. An entry may not have more than fits into a tar's header: each costs
/// far more memory than it takes bytes in the table.
#[derive(Default)]
struct Attributes(BTreeMap<String, String>);

/// What an attribute costs beside its bytes, about.
const ATTRIBUTE_BYTES: usize = 64;

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: serde::Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        source.deserialize_any(Self::default())
    }
}

impl<'de> Visitor<'de> for Attributes {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("extended attributes")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        let mut left = MAX_TOC_XATTR_BYTES;
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            let cost = ATTRIBUTE_BYTES + name.len() + value.len();
            left = left.checked_sub(cost).ok_or_else(|| A::Error::custom("extended attributes without end"))?;
            self.0.insert(name, value);
        }
        Ok(self)
    }
}

/// A file whose parts are being listed.
struct File {
    /// Its place among the entries; none for what is hidden.
    entry: Option<usize>,
    size: u64,
    /// Digest of the whole, which may stand in for that of an only part.
    whole: Option<[u8; 32]>,
    listed: u64,
    parts: Vec<Part>,
}

#[derive(Default)]
struct Reader {
    contents: Contents,
    file: Option<File>,
    table_bytes: usize,
    parts: usize,
    /// Why the table is not used, if that is no fault of its syntax.
    refused: Option<TocError>,
}

impl Reader {
    fn take(&mut self, written: &Written<'_>) -> Result<(), TocError> {
        if written.kind == "chunk" {
            return self.take_part(written);
        }
        self.end_file()?;
        let Some(entry) = entry(written)? else { return Ok(()) };
        let hidden = is_hidden(&entry.path);
        if entry.path == PREFETCH_LANDMARK {
            self.contents.landmark = u64::try_from(written.offset).ok();
        }
        let size = match entry.kind {
            Kind::File { size, .. } => Some(size),
            _ => None,
        };
        let place = (!hidden).then_some(self.contents.entries.len());
        if !hidden {
            self.table_bytes += table_bytes(&entry);
            if self.contents.entries.len() >= MAX_ENTRIES || self.table_bytes > MAX_TABLE_BYTES {
                return Err(TocError::Unsupported(format!("more than {} entries", self.contents.entries.len())));
            }
            self.contents.entries.push(entry);
        }
        if let Some(size) = size.filter(|size| *size > 0) {
            let whole = sha256(&written.digest)?;
            self.file = Some(File { entry: place, size, whole, listed: 0, parts: Vec::new() });
            self.take_part(written)?;
        }
        Ok(())
    }

    fn take_part(&mut self, written: &Written<'_>) -> Result<(), TocError> {
        let file = self.file.as_mut().ok_or_else(|| malformed("a chunk of no file"))?;
        let left = file.size - file.listed;
        let number = |value: i64| u64::try_from(value).map_err(|_| malformed("a negative number"));
        if number(written.chunk_offset)? != file.listed || left == 0 {
            return Err(malformed("chunks of a file that do not follow each other"));
        }
        let length = match number(written.chunk_size)? {
            0 => left,
            length => length,
        };
        if length > left {
            return Err(malformed("a chunk that is longer than its file"));
        }
        let of_whole = file.whole.filter(|_| file.listed == 0 && length == file.size);
        let digest = sha256(&written.chunk_digest)?.or(of_whole);
        let digest = digest.ok_or_else(|| TocError::Unsupported("a chunk without a digest".to_owned()))?;
        let (member, skip) = (number(written.offset)?, number(written.inner_offset)?);
        self.parts += 1;
        if self.parts > MAX_TOC_CHUNKS {
            return Err(TocError::Unsupported(format!("more than {MAX_TOC_CHUNKS} chunks")));
        }
        file.parts.push(Part { member, skip, length, digest });
        file.listed += length;
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), TocError> {
        let Some(file) = self.file.take() else { return Ok(()) };
        if file.listed != file.size {
            return Err(malformed("the chunks of a file are less than the file"));
        }
        if let Some(entry) = file.entry {
            self.contents.files.push((entry, file.parts));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Contents, TocError> {
        self.end_file()?;
        Ok(self.contents)
    }
}

/// The entry without the places of its bytes; none where containerd would ignore it.
fn entry(written: &Written<'_>) -> Result<Option<Entry>, TocError> {
    let attributes = written.xattrs.0.iter();
    let lossy = [&*written.name, &*written.link_name].iter().any(|text| text.contains(REPLACED))
        || attributes.clone().any(|(name, _)| name.contains(REPLACED));
    if lossy {
        return Err(TocError::Unsupported("a name that is not UTF-8, which JSON cannot hold".to_owned()));
    }
    let xattr = |(name, value): (&String, &String)| {
        let value = STANDARD.decode(value).map_err(|error| malformed(format!("attribute {name:?}: {error}")))?;
        Ok((name.clone().into_bytes(), value))
    };
    Listed {
        name: written.name.as_bytes(),
        kind: &written.kind,
        size: written.size,
        link: written.link_name.as_bytes(),
        mode: written.mode,
        uid: written.uid,
        gid: written.gid,
        device: (written.dev_major, written.dev_minor),
        modified: written.modtime.as_deref().unwrap_or_default(),
        xattrs: attributes.map(xattr).collect::<Result<_, TocError>>()?,
    }
    .entry()
}

/// The SHA-256 of a digest, or none for an empty one.
fn sha256(text: &str) -> Result<Option<[u8; 32]>, TocError> {
    if text.is_empty() {
        return Ok(None);
    }
    let digest: lapwing_p2p::digest::Digest =
        text.parse().map_err(|_| TocError::Unsupported(brief(format!("digest {text:?}, which is no SHA-256"))))?;
    Ok(Some(*digest.as_bytes()))
}

/// The object around the entries.
struct Table<'r>(&'r mut Reader);

impl<'de> DeserializeSeed<'de> for Table<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Table<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut has_entries) = (None, false);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &*key {
                "version" if version.is_none() => version = Some(map.next_value::<u64>()?),
                "entries" if !has_entries => {
                    has_entries = true;
                    map.next_value_seed(Entries(&mut *self.0))?;
                }
                "version" | "entries" => return Err(A::Error::custom(format!("{key} twice"))),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match version {
            Some(1) if has_entries => Ok(()),
            Some(1) => Err(A::Error::custom("no entries")),
            other => Err(A::Error::custom(format!("version {other:?}, only 1 is known"))),
        }
    }
}

/// The array of entries.
struct Entries<'r>(&'r mut Reader);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(written) = entries.next_element::<Written<'de>>()? {
            if let Err(refused) = self.0.take(&written) {
                self.0.refused = Some(refused);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
