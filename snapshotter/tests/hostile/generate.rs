//! Inputs for the parsers: valid ones with changes, after which checksums, digests and lengths are made right again, so that the
//! parser gets beyond its first check.

use std::io::Read as _;

use lapwing_evidence::random::Random;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::erofs::write_image;
use lapwing_snapshotter::index::IndexBuilder;
use lapwing_snapshotter::profile::{EntryPoint, Profile, Read, Start};
use lapwing_snapshotter::tar::Scanner;
use lapwing_snapshotter::toc::Toc;
use serde_json::{Value, json};

use crate::support::{self, FORMATS, Format, Item};
use crate::tars::{self, frames, gzip, rich, seal_all};
use crate::write::{self, Ztoc};

/// Valid inputs.
pub(crate) struct Seeds {
    /// Tars.
    tars: Vec<Vec<u8>>,
    /// Layers, their tars, and their encoded indexes.
    pub(crate) indexed: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)>,
    images: Vec<Vec<u8>>,
    profile: Vec<u8>,
    ztocs: Vec<write::Made>,
    items: Vec<Item>,
}

impl Seeds {
    pub(crate) fn new() -> Self {
        let large = tars::tar(&[
            tars::file(b"text", &text(900_000)),
            tars::file(b"noise", &support::noise(700_000, 1)),
            tars::file(b"more", &text(900_000)),
            rich(),
        ]);
        let layers = [gzip(&large), frames(&large, 600_000), large.clone(), gzip(&rich())];
        let indexed = layers.into_iter().enumerate().map(|(number, layer)| {
            let mut builder = IndexBuilder::new(Digest::of(&layer), layer.len() as u64);
            builder.push(&layer).unwrap();
            let index = builder.finish().unwrap().encode();
            (layer, if number < 3 { large.clone() } else { rich() }, index)
        });
        Self {
            indexed: indexed.collect(),
            images: vec![image_of(&rich()), image_of(&crowded())],
            tars: vec![rich(), crowded()],
            profile: profile(),
            ztocs: vec![write::small(), write::made(false), write::made(true)],
            items: items(),
        }
    }

    /// A layer.
    pub(crate) fn layer(&self, random: &mut Random) -> Vec<u8> {
        let mut tar = random.pick(&self.tars).clone();
        if !random.one_in(4) {
            random.mutate(&mut tar, &self.tars[0]);
            if random.one_in(3) {
                shuffle(random, &mut tar);
            }
            seal_all(&mut tar);
        }
        match random.below(6) {
            0 | 1 => tar,
            2 => gzip(&tar),
            3 => frames(&tar, 1 + random.below(tar.len() + 1)),
            4 => {
                let mut layer = gzip(&tar);
                random.mutate(&mut layer, b"");
                reseal_gzip(&mut layer);
                layer
            }
            _ => {
                let at = random.below(tar.len() + 1);
                let mut layer = [gzip(&tar[..at]), gzip(&tar[at..])].concat();
                if random.one_in(2) {
                    layer = frames(&tar, 4000);
                    random.mutate(&mut layer, b"");
                }
                layer
            }
        }
    }

    /// An encoded index, and which of [`Seeds::indexed`] it is of.
    pub(crate) fn index(&self, random: &mut Random) -> (Vec<u8>, usize) {
        let which = random.below(self.indexed.len());
        let mut parts = Parts::of(&self.indexed[which].2);
        let foreign = &Parts::of(&self.indexed[(which + 1) % self.indexed.len()].2);
        let (part, other) = match random.below(8) {
            0 | 1 => (&mut parts.spans, &foreign.spans),
            2 => (&mut parts.windows, &foreign.windows),
            3 => (&mut parts.header, &foreign.header),
            _ => (&mut parts.table, &foreign.table),
        };
        match random.one_in(3) {
            true => random.mutate(part, other),
            false => random.nudge(part),
        }
        (parts.encode(!random.one_in(8)), which)
    }

    /// A table of contents with the right digest, the bytes of it, and its layer.
    pub(crate) fn toc(&self, random: &mut Random) -> Option<(Toc, Vec<u8>, Vec<u8>)> {
        let format: Format = *random.pick(&FORMATS);
        let chunk = *random.pick(&[1 << 22, 70_000, 4096]);
        let made = support::make_with(format, &self.items, chunk, |mut table| {
            let in_text = random.one_in(4);
            if !in_text {
                for _ in 0..=random.below(3) {
                    change_json(random, &mut table);
                }
            }
            let mut bytes = serde_json::to_vec(&table).unwrap();
            if in_text {
                random.mutate(&mut bytes, b"\"entries\":[{\"name\":\"a\",\"type\":\"chunk\"}]");
            }
            bytes
        });
        let toc = made.toc().ok()?;
        let stored = made.stored(&toc).to_vec();
        Some((toc, stored, made.layer))
    }

    /// A zTOC with the right digest, and its layer.
    pub(crate) fn ztoc(&self, random: &mut Random) -> Option<(Toc, Vec<u8>, Vec<u8>)> {
        let any = random.one_in(4);
        let made = random.pick(if any { &self.ztocs } else { &self.ztocs[..1] });
        let mut ztoc = made.ztoc.clone();
        let mut bytes = match random.one_in(2) {
            true => {
                change_ztoc(random, &mut ztoc);
                ztoc.write()
            }
            false => ztoc.write(),
        };
        if random.one_in(2) {
            let other = bytes.clone();
            random.mutate(&mut bytes, &other);
        }
        let (digest, length) = (Digest::of(&made.layer), made.layer.len() as u64);
        let toc = Toc::ztoc(digest, length, Digest::of(&made.tar), Digest::of(&bytes), bytes.len() as u64).ok()?;
        Some((toc, bytes, made.layer.clone()))
    }

    /// An image.
    pub(crate) fn image(&self, random: &mut Random) -> Vec<u8> {
        let mut image = random.pick(&self.images).clone();
        random.mutate(&mut image, &self.images[0]);
        if random.one_in(2) {
            // Where inodes and their fields are.
            let at = 1536 + random.below(4096);
            let value = random.edge().to_le_bytes();
            let width = 1 << random.below(4);
            if let Some(field) = image.get_mut(at / width * width..).and_then(|rest| rest.get_mut(..width)) {
                field.copy_from_slice(&value[..width]);
            }
        }
        seal_image(&mut image);
        image
    }

    /// A profile.
    pub(crate) fn profile(&self, random: &mut Random) -> Vec<u8> {
        let mut profile = self.profile.clone();
        random.mutate(&mut profile, &self.profile);
        profile
    }
}

/// Bytes that compress as text does.
pub(crate) fn text(length: usize) -> Vec<u8> {
    let words = (0u64..).flat_map(|word| format!("{:x} ", word * word % 100_003).into_bytes());
    words.take(length).collect()
}

fn items() -> Vec<Item> {
    vec![
        support::directory("etc/"),
        support::file("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
        support::file("large", &support::noise(20_000, 1)),
        support::file("empty", b""),
        support::link(b'2', "symbolic", "../etc/passwd"),
        support::file(".prefetch.landmark", b"\x0f"),
        support::link(b'1', "hard", "large"),
        support::file("same1", b"one"),
        support::file("etc/.wh.gone", b""),
    ]
}

/// Many names, and links of every form.
fn crowded() -> Vec<u8> {
    let mut members: Vec<Vec<u8>> =
        (0..120).map(|i| tars::file(format!("d/{i}-{}", "n".repeat(i % 60)).as_bytes(), b"x")).collect();
    for length in [1usize, 300, 449, 512, 1500, 4095] {
        members.push(tars::pax(&[(b"linkpath", &vec![b't'; length]), (b"SCHILY.xattr.security.a", &vec![7; length])]));
        members.push(tars::special(format!("link-{length}").as_bytes(), b'2', b"t"));
    }
    tars::tar(&members)
}

fn image_of(tar: &[u8]) -> Vec<u8> {
    let mut scanner = Scanner::default();
    scanner.push(tar).unwrap();
    write_image(&scanner.finish().unwrap(), tar.len() as u64, &[7; 32], &|_| None).unwrap()
}

/// Makes the checksum of the superblock right.
fn seal_image(image: &mut [u8]) {
    if let Some(block) = image.get_mut(1024..1536) {
        block[4..8].fill(0);
        let sum = !crc32c::crc32c(block);
        block[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

fn profile() -> Vec<u8> {
    let start = |tag, program: &str, count: u64| Start {
        entry: EntryPoint { tag, program: program.to_owned() },
        recorded: 1_700_000_000,
        recordings: 3,
        reads: (0..count)
            .map(|i| Read { at_ms: i as u32 * 3, layer: Digest::of(&[i as u8 % 4]), range: i << 20..(i << 20) + 4096 })
            .collect(),
    };
    let mut profile = Profile::new(Digest::of(b"image"), start(1, "sh", 20));
    profile.starts.push(start(2, "python3", 9));
    profile.encode()
}

/// Moves, doubles or drops whole blocks.
fn shuffle(random: &mut Random, tar: &mut Vec<u8>) {
    let blocks = tar.len() / 512;
    if blocks < 2 {
        return;
    }
    let (from, to) = (random.below(blocks) * 512, random.below(blocks) * 512);
    let block = tar[from..from + 512].to_vec();
    match random.below(3) {
        0 => drop(tar.splice(to..to, block)),
        1 => drop(tar.drain(from..from + 512)),
        _ => tar[to..to + 512].copy_from_slice(&block),
    }
}

/// Makes CRC and length of a single member those of whatever its deflate stream gives, if it gives anything.
fn reseal_gzip(layer: &mut [u8]) {
    const HEADER: usize = 10;
    let Some(body) = layer.len().checked_sub(8).and_then(|end| layer.get(HEADER..end)) else { return };
    let mut output = Vec::new();
    if flate2::read::DeflateDecoder::new(body).take(32 << 20).read_to_end(&mut output).is_ok() {
        let mut crc = flate2::Crc::new();
        crc.update(&output);
        let end = layer.len();
        layer[end - 8..end - 4].copy_from_slice(&crc.sum().to_le_bytes());
        layer[end - 4..].copy_from_slice(&(output.len() as u32).to_le_bytes());
    }
}

/// The parts of an encoded index, the table decompressed.
pub(crate) struct Parts {
    pub(crate) header: Vec<u8>,
    pub(crate) spans: Vec<u8>,
    pub(crate) windows: Vec<u8>,
    pub(crate) table: Vec<u8>,
}

impl Parts {
    pub(crate) fn of(index: &[u8]) -> Self {
        let number = |at: usize| u32::from_le_bytes(index[at..at + 4].try_into().unwrap()) as usize;
        let (spans, windows, table) = (number(96) * 88, number(104), number(116));
        let (header, rest) = index.split_at(120);
        let (spans, rest) = rest.split_at(spans);
        let (windows, stored) = rest.split_at(windows);
        let table = zstd::bulk::decompress(stored, table).unwrap();
        Self { header: header.into(), spans: spans.into(), windows: windows.into(), table }
    }

    /// Puts them together; with `lengths` made right.
    pub(crate) fn encode(&self, lengths: bool) -> Vec<u8> {
        let stored = zstd::bulk::compress(&self.table, 3).unwrap();
        let mut header = self.header.clone();
        header.resize(120, 0);
        if lengths {
            header[96..100].copy_from_slice(&((self.spans.len() / 88) as u32).to_le_bytes());
            header[104..112].copy_from_slice(&(self.windows.len() as u64).to_le_bytes());
            header[112..116].copy_from_slice(&(stored.len() as u32).to_le_bytes());
            header[116..120].copy_from_slice(&(self.table.len() as u32).to_le_bytes());
        }
        [&header, &self.spans, &self.windows, &stored[..]].concat()
    }
}

fn change_json(random: &mut Random, table: &mut Value) {
    let entries = table["entries"].as_array_mut().unwrap();
    if random.one_in(12) {
        let key = *random.pick(&["version", "entries", "more"]);
        table[key] = any_json(random);
        if !table["entries"].is_array() {
            table["entries"] = json!([]);
        }
        return;
    }
    if entries.is_empty() {
        return;
    }
    let (at, to) = (random.below(entries.len()), random.below(entries.len()));
    match random.below(6) {
        0 => entries.swap(at, to),
        1 => drop(entries.remove(at)),
        2 => entries.insert(to, entries[at].clone()),
        _ => {
            const FIELDS: [&str; 19] = [
                "name",
                "type",
                "size",
                "modtime",
                "linkName",
                "mode",
                "uid",
                "gid",
                "devMajor",
                "devMinor",
                "xattrs",
                "digest",
                "offset",
                "innerOffset",
                "chunkOffset",
                "chunkSize",
                "chunkDigest",
                "offset",
                "size",
            ];
            let field = *random.pick(&FIELDS);
            let value = match random.one_in(3) {
                true => entries[to][field].clone(),
                false => any_json(random),
            };
            if let Some(entry) = entries[at].as_object_mut() {
                entry.insert(field.to_owned(), value);
            }
        }
    }
}

fn any_json(random: &mut Random) -> Value {
    const TEXTS: [&str; 16] = [
        "",
        "reg",
        "dir",
        "symlink",
        "hardlink",
        "char",
        "block",
        "fifo",
        "chunk",
        "../x",
        "/",
        "etc/passwd",
        "a\u{0}b",
        "\u{fffd}",
        "1999-12-31T23:59:60Z",
        "9999-12-31T23:59:59.999999999+14:00",
    ];
    match random.below(8) {
        0 => Value::Null,
        1 => json!(random.edge() as i64),
        2 => json!(random.edge()),
        3 => json!(1e300),
        4 => json!({ *random.pick(&TEXTS): *random.pick(&["YQ==", "not base64!", ""]) }),
        5 => json!([[], {}, 5]),
        6 => json!("n".repeat(random.below(50_000))),
        _ => json!(*random.pick(&TEXTS)),
    }
}

fn change_ztoc(random: &mut Random, ztoc: &mut Ztoc) {
    let edge = random.edge();
    let file = random.below(ztoc.files.len());
    let point = random.below(ztoc.checkpoints.len().max(1));
    match random.below(14) {
        0 => ztoc.layer_length = edge as i64,
        1 => ztoc.tar_length = edge as i64,
        2 => ztoc.files[file].offset = edge as i64,
        3 => ztoc.files[file].size = edge as i64,
        4 => ztoc.files[file].mode = edge as i64,
        5 => ztoc.files[file].uid = edge as u32,
        6 => random.mutate(&mut ztoc.files[file].name, b"../"),
        7 => ztoc.files[file].modified = format!("{edge}"),
        8 => ztoc.files[file].pax.push((b"SCHILY.xattr.user.a".to_vec(), vec![0; random.below(70_000)])),
        9 if ztoc.digests.len() > 1 => drop(ztoc.digests.pop()),
        10 => ztoc.digests.rotate_left(1),
        11 if !ztoc.checkpoints.is_empty() => ztoc.checkpoints[point].layer = edge,
        12 if !ztoc.checkpoints.is_empty() => ztoc.checkpoints[point].tar = edge,
        13 if !ztoc.checkpoints.is_empty() => ztoc.checkpoints[point].bits = edge as u8,
        _ => ztoc.files.push(ztoc.files[file].clone()),
    }
}
