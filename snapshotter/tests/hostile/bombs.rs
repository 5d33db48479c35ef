//! Small inputs that ask for much memory or time.

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::toc::{Announced, Toc};

use crate::Expect::{self, Exact, Harmless, NotExact, Refused};
use crate::generate::{Parts, Seeds, text};
use crate::judge::{self, Verdict};
use crate::tars::{file, frames, gzip, header, member, pax, record, special, tar};

/// Resident memory that a bomb may take, through all that is done with a layer: its index, its table of files, its image.
const MOST: u64 = 1 << 30;

/// A bomb, which is made only when its turn comes.
pub(crate) struct Bomb {
    pub(crate) name: &'static str,
    pub(crate) expect: Expect,
    /// Resident memory that it may take, in bytes.
    pub(crate) most: u64,
    /// Makes it, and gives what is measured.
    pub(crate) make: Box<dyn FnOnce(&Seeds) -> Explosion>,
}

type Explosion = Box<dyn FnOnce() -> Verdict>;

fn layer(name: &'static str, expect: Expect, make: impl FnOnce() -> Vec<u8> + 'static) -> Bomb {
    let make = |_: &Seeds| {
        let layer = make();
        let explode: Explosion = Box::new(move || judge::layer(&layer));
        explode
    };
    Bomb { name, expect, most: MOST, make: Box::new(make) }
}

fn index(name: &'static str, change: impl FnOnce(&mut Parts) + 'static) -> Bomb {
    let make = |seeds: &Seeds| {
        let (layer, tar, encoded) = seeds.indexed[0].clone();
        let mut parts = Parts::of(&encoded);
        change(&mut parts);
        let encoded = parts.encode(true);
        drop(parts);
        let explode: Explosion = Box::new(move || judge::index(&encoded, &layer, &tar));
        explode
    };
    Bomb { name, expect: NotExact, most: MOST, make: Box::new(make) }
}

fn json(name: &'static str, make: impl FnOnce() -> Vec<u8> + 'static) -> Bomb {
    let make = |_: &Seeds| {
        let json = make();
        let stored = zstd::bulk::compress(&json, 1).unwrap();
        let (length, json_length) = (stored.len() as u64, json.len() as u64);
        drop(json);
        let digest = Digest::of(&stored);
        let announced = Announced::ZstdChunked { digest, offset: 8, length, json_length };
        let explode: Explosion = Box::new(move || {
            let located = Toc::locate(Digest::of(b"l"), length + 100, Digest::of(b"d"), announced, b"");
            match located.and_then(|toc| toc.index(&stored)) {
                Ok(_) => Verdict::Exact,
                Err(error) => Verdict::Refused(error.to_string()),
            }
        });
        explode
    };
    Bomb { name, expect: NotExact, most: MOST, make: Box::new(make) }
}

/// Tars that list too much, or lead too far.
pub(crate) fn entries() -> Vec<Bomb> {
    vec![
        layer("1,100,000 entries", Refused, || {
            gzip(&tar(&(0..1_100_000u32).map(|i| special(format!("{i}").as_bytes(), b'5', b"")).collect::<Vec<_>>()))
        }),
        layer("150,000 entries in one directory", Exact, || {
            gzip(&tar(&(0..150_000u32).map(|i| special(format!("d/{i}"), b'6', b"")).collect::<Vec<_>>()))
        }),
        layer("45,000 attributes of one entry", Harmless, || gzip(&tar(&[attributes(45_000), file(b"a", b"x")]))),
        layer("paths through 255 links", Refused, || {
            // A link to the directory that it is in, by a long way.
            let mut members = vec![long_link(&b"./".repeat(2047)), special(b"k", b'2', b"t")];
            let through = |i: u32| pax(&[(b"path", format!("{}{i}", "k/".repeat(254)).as_bytes())]);
            members.extend((0..3000).map(|i| [through(i), special(b"x", b'6', b"")].concat()));
            gzip(&tar(&members))
        }),
        layer("deep paths that nobody describes", Refused, || {
            let deep = |i: u32| pax(&[(b"path", format!("{i}/{}x", "d/".repeat(2000)).as_bytes())]);
            gzip(&tar(&(0..5000).map(|i| [deep(i), special(b"x", b'6', b"")].concat()).collect::<Vec<_>>()))
        }),
    ]
}

/// What grows, or says that it is larger or elsewhere than it is.
pub(crate) fn all() -> Vec<Bomb> {
    vec![
        layer("zeros in gzip", Refused, || gzip(&tar(&[file(b"z", &vec![0; 96 << 20])]))),
        layer("zeros in zstd", Refused, || frames(&tar(&[file(b"z", &vec![0; 96 << 20])]), 8 << 20)),
        layer("zeros in gzip, many members", Refused, || gzip(&vec![0; 8 << 20]).repeat(12)),
        layer("one large zstd frame", Refused, || frames(&tar(&[file(b"t", &text(40 << 20))]), 1 << 30)),
        layer("a large window", Exact, || {
            let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
            compressor.window_log(27).unwrap();
            compressor.compress(&tar(&[file(b"t", &text(30 << 20))])).unwrap()
        }),
        layer("extended headers of 1 MiB that nobody uses", Harmless, || {
            gzip(&tar(&[attributes(45_000).repeat(40), file(b"a", b"x")]))
        }),
        layer("many small attributes", Harmless, || {
            let entry = |i: u32| [attributes(40_000), special(format!("{i}"), b'5', b"")].concat();
            gzip(&tar(&(0..150).map(entry).collect::<Vec<_>>()))
        }),
        layer("large attributes, nearly as many as are taken", Harmless, || large_attributes(3600)),
        layer("large attributes, more than are taken", Refused, || large_attributes(4300)),
        layer("maps of 100,000 stretches", Harmless, || gzip(&tar(&(0..3).map(many_stretches).collect::<Vec<_>>()))),
        index("a file table of 256 MiB of zeros", |parts| parts.table = vec![0; 256 << 20]),
        index("a file table of small attributes", |parts| {
            parts.table = table_of_attributes(5 << 20);
            parts.header[100..104].copy_from_slice(&5u32.to_le_bytes());
        }),
        index("a window of 1 GiB", |parts| {
            let window = zstd::stream::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 30), 19).unwrap();
            let length = u16::from_le_bytes([parts.spans[88 + 16], parts.spans[88 + 17]]) as usize;
            let window_length = u16::try_from(window.len()).unwrap();
            parts.windows.splice(..length, window);
            parts.spans[88 + 16..88 + 18].copy_from_slice(&window_length.to_le_bytes());
        }),
        json("200 MiB of blanks", || [&b"{"[..], &b" ".repeat(200 << 20)].concat()),
        json("200 MiB of brackets", || [&b"{\"x\":"[..], &b"[".repeat(200 << 20)].concat()),
        json("a name of 200 MiB", || {
            [&br#"{"version":1,"entries":[{"type":"dir","name":""#[..], &b"n".repeat(200 << 20), br#""}]}"#].concat()
        }),
        json("2,000,000 entries", || {
            let entry = br#"{"type":"dir","name":"a"},"#.repeat(2_000_000);
            [&br#"{"version":1,"entries":["#[..], &entry, br#"{}]}"#].concat()
        }),
        // A quarter of which is the table itself.
        Bomb {
            most: 128 << 20,
            ..json("4,000,000 attributes", || {
                let mut json = br#"{"version":1,"entries":[{"type":"dir","name":"a","xattrs":{"#.to_vec();
                for number in 0..4_000_000 {
                    json.extend(format!("\"{number:x}\":\"\",").bytes());
                }
                json.extend(br#""a":""}}]}"#);
                json
            })
        },
    ]
}

fn long_link(target: &[u8]) -> Vec<u8> {
    member(&header(b"././@LongLink", b'K', target.len() as u64 + 1, b""), &[target, b"\0"].concat())
}

/// An extended header with so many attributes, which all have names of their own.
fn attributes(count: u32) -> Vec<u8> {
    let body: Vec<u8> = (0..count).flat_map(|i| record(format!("SCHILY.xattr.{i:x}").as_bytes(), b"")).collect();
    assert!(body.len() <= 1 << 20);
    member(&header(b"PaxHeaders/x", b'x', body.len() as u64, b""), &body)
}

/// Layers whose entries have an attribute of nearly 64 KiB each.
fn large_attributes(count: u32) -> Vec<u8> {
    let entry = |i: u32| {
        let value = [&i.to_le_bytes()[..], &[b'v'; 65_531]].concat();
        [pax(&[(b"SCHILY.xattr.user.a", &value)]), special(format!("{i}"), b'5', b"")].concat()
    };
    // In parts, and not so well compressed that it is refused for that.
    let mut layer = Vec::new();
    for from in (0..count).step_by(100) {
        let part: Vec<Vec<u8>> = (from..count.min(from + 100)).map(entry).collect();
        layer.extend(gzip(&part.concat()));
    }
    layer.extend(gzip(&tar(&[file(b"noise", &crate::support::noise(300_000, 1))])));
    layer
}

fn many_stretches(number: u32) -> Vec<u8> {
    const COUNT: u64 = 100_000;
    let mut data = format!("{COUNT}\n").into_bytes();
    for stretch in 0..COUNT {
        data.extend(format!("{}\n512\n", stretch * 1024).bytes());
    }
    data.resize(data.len().next_multiple_of(512), 0);
    data.resize(data.len() + COUNT as usize * 512, 7);
    let records: [(&[u8], &[u8]); 3] =
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"400000000")];
    [pax(&records), file(format!("s{number}").as_bytes(), &data)].concat()
}

/// Records of five directories with so many attributes in all.
fn table_of_attributes(count: u32) -> Vec<u8> {
    let number = |value: u32| {
        let mut bytes = Vec::new();
        let mut left = value;
        while left >= 0x80 {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
        bytes
    };
    let mut table = Vec::new();
    for entry in 0..5u8 {
        // Kind, mode, owner, group, time, nanoseconds, shared path, path.
        table.extend([1, 0, 0, 0, 0, 0, 0, 1, b'a' + entry]);
        table.extend(number(count / 5));
        for name in 1..=count / 5 {
            let name: Vec<u8> = (0..4).map(|digit| 1 + (name >> (7 * digit) & 0x7f) as u8).collect();
            table.push(name.len() as u8);
            table.extend(name);
            table.push(0);
        }
    }
    table
}
