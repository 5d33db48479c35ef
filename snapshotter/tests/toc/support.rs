//! Writes eStargz and zstd:chunked layers after their descriptions, with any lie in the table of contents.

use std::io::Write as _;
use std::ops::Range;

use bytes::Bytes;
use flate2::write::GzEncoder;
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::source::{LayerSource, SourceError, Urgency};
use lapwing_snapshotter::toc::{Announced, Toc, TocError};
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    EStargz,
    ZstdChunked,
}

pub(crate) const FORMATS: [Format; 2] = [Format::EStargz, Format::ZstdChunked];

/// An entry of the tar.
pub(crate) struct Item {
    pub(crate) name: String,
    flag: u8,
    link: String,
    pub(crate) content: Vec<u8>,
}

pub(crate) fn file(name: &str, content: &[u8]) -> Item {
    Item { name: name.into(), flag: b'0', link: String::new(), content: content.to_vec() }
}

pub(crate) fn directory(name: &str) -> Item {
    Item { flag: b'5', ..file(name, b"") }
}

pub(crate) fn link(flag: u8, name: &str, target: &str) -> Item {
    Item { flag, link: target.into(), ..file(name, b"") }
}

/// Bytes that do not compress, always the same for a seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; length];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// A layer with its table.
pub(crate) struct Made {
    pub(crate) layer: Vec<u8>,
    pub(crate) tar: Vec<u8>,
    pub(crate) announced: Announced,
}

impl Made {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.layer)
    }

    /// Finds the table as a node does.
    pub(crate) fn toc(&self) -> Result<Toc, TocError> {
        let length = self.layer.len() as u64;
        let footer = &self.layer[range(Toc::footer(&self.announced, length))];
        Toc::locate(self.digest(), length, Digest::of(&self.tar), self.announced, footer)
    }

    pub(crate) fn stored(&self, toc: &Toc) -> &[u8] {
        &self.layer[range(toc.range())]
    }
}

pub(crate) fn range(range: Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// Compresses what has been written since the last call into a member of its own.
struct Writer {
    format: Format,
    member: Vec<u8>,
    layer: Vec<u8>,
    tar: Vec<u8>,
}

impl Writer {
    fn write(&mut self, bytes: &[u8]) {
        self.member.extend_from_slice(bytes);
        self.tar.extend_from_slice(bytes);
    }

    fn close(&mut self) -> u64 {
        if !self.member.is_empty() {
            let member = std::mem::take(&mut self.member);
            self.layer.extend(match self.format {
                Format::EStargz => gzip(&member),
                Format::ZstdChunked => zstd::bulk::compress(&member, 3).unwrap(),
            });
        }
        self.layer.len() as u64
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn header(item: &Item) -> [u8; 512] {
    let mut header = [0; 512];
    header[..item.name.len()].copy_from_slice(item.name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0001750");
    header[116..123].copy_from_slice(b"0000144");
    header[124..135].copy_from_slice(format!("{:011o}", item.content.len()).as_bytes());
    header[136..147].copy_from_slice(format!("{:011o}", 1_500_000_000).as_bytes());
    header[148..156].copy_from_slice(b"        ");
    header[156] = item.flag;
    header[157..157 + item.link.len()].copy_from_slice(item.link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// Makes a layer whose files are cut into chunks of `chunk` bytes; `lie` may change the table before it is written.
pub(crate) fn make(format: Format, items: &[Item], chunk: usize, lie: impl FnOnce(&mut Value)) -> Made {
    make_with(format, items, chunk, |mut table| {
        lie(&mut table);
        serde_json::to_vec(&table).unwrap()
    })
}

/// The same with whatever bytes `write` makes of the table.
pub(crate) fn make_with(format: Format, items: &[Item], chunk: usize, write: impl FnOnce(Value) -> Vec<u8>) -> Made {
    let mut out = Writer { format, member: Vec::new(), layer: Vec::new(), tar: Vec::new() };
    let mut entries = Vec::new();
    for item in items {
        out.write(&header(item));
        let kind = match item.flag {
            b'0' => "reg",
            b'1' => "hardlink",
            b'2' => "symlink",
            _ => "dir",
        };
        let mut entry = json!({
            "name": item.name, "type": kind, "mode": 0o644, "uid": 1000, "gid": 100,
            "modtime": "2017-07-14T02:40:00Z", "NumLink": 0,
        });
        if !item.link.is_empty() {
            entry["linkName"] = item.link.clone().into();
        }
        if item.content.is_empty() {
            entries.push(entry);
            continue;
        }
        entry["size"] = item.content.len().into();
        entry["digest"] = sha256(&item.content).into();
        let several = item.content.len() > chunk;
        for (number, part) in item.content.chunks(chunk).enumerate() {
            entry["offset"] = out.close().into();
            if several || format == Format::EStargz {
                entry["chunkDigest"] = sha256(part).into();
            }
            if several {
                entry["chunkOffset"] = (number * chunk).into();
                let is_last = (number + 1) * chunk >= item.content.len();
                entry["chunkSize"] = if is_last { 0 } else { part.len() }.into();
            }
            out.write(part);
            entries.push(entry);
            entry = json!({ "name": item.name, "type": "chunk" });
        }
        let padding = item.content.len().next_multiple_of(512) - item.content.len();
        out.write(&vec![0; padding]);
    }
    finish(out, &write(json!({ "version": 1, "entries": entries })))
}

/// Writes the end of a layer, with any bytes for the table.
fn finish(mut out: Writer, json: &[u8]) -> Made {
    let announced = match out.format {
        Format::EStargz => {
            let offset = out.close();
            let item = file("stargz.index.json", json);
            out.write(&header(&item));
            out.write(json);
            out.write(&vec![0; json.len().next_multiple_of(512) - json.len() + 1024]);
            out.close();
            let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
            footer.extend(format!("{offset:016x}STARGZ").bytes());
            footer.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
            out.layer.extend(footer);
            Announced::EStargz { digest: Digest::of(json) }
        }
        Format::ZstdChunked => {
            out.write(&[0; 1024]);
            let offset = out.close() + 8;
            let stored = zstd::bulk::compress(json, 3).unwrap();
            let mut footer = [offset, stored.len() as u64, json.len() as u64, 1].map(u64::to_le_bytes).concat();
            footer.extend([0x47, 0x6e, 0x55, 0x6c, 0x49, 0x6e, 0x55, 0x78]);
            let (digest, length, json_length) = (Digest::of(&stored), stored.len() as u64, json.len() as u64);
            for frame in [stored, footer] {
                out.layer.extend([0x50, 0x2a, 0x4d, 0x18]);
                out.layer.extend((frame.len() as u32).to_le_bytes());
                out.layer.extend(frame);
            }
            Announced::ZstdChunked { digest, offset, length, json_length }
        }
    };
    Made { layer: out.layer, tar: out.tar, announced }
}

/// A layer with one small file and these bytes in the place of the table.
pub(crate) fn with_json(format: Format, json: &[u8]) -> Made {
    let mut out = Writer { format, member: Vec::new(), layer: Vec::new(), tar: Vec::new() };
    out.write(&header(&file("a", b"a")));
    out.close();
    out.write(b"a");
    out.write(&[0; 511]);
    finish(out, json)
}

/// A source that has the whole layer.
pub(crate) struct Whole(pub(crate) Bytes);

impl LayerSource for Whole {
    fn read(&self, bytes: Range<u64>, _: Urgency) -> BoxFuture<'_, Result<Bytes, SourceError>> {
        let part = self.0.slice(range(bytes));
        Box::pin(async { Ok(part) })
    }
}
