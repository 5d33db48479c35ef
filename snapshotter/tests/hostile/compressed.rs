//! Attacks by the compression of a layer.

use crate::Expect::{self, Exact, Harmless, Refused};
use crate::tars::{frames, gzip, rich};

type Attack = (String, Expect, Vec<u8>);

pub(crate) fn all() -> Vec<Attack> {
    [gzips(), gzip_headers(), deflate(), zstds()].concat()
}

fn gzips() -> Vec<Attack> {
    let tar = rich();
    let whole = gzip(&tar);
    let of = |name: &str, expect, layer: Vec<u8>| (format!("gzip: {name}"), expect, layer);
    let mut attacks = vec![
        of("zeros after it", Exact, [&whole[..], &[0; 5000]].concat()),
        of("garbage after it", Refused, [&whole[..], b"garbage"].concat()),
        of("garbage after zeros", Refused, [&whole[..], &[0; 9], b"garbage"].concat()),
        of("half a member after it", Refused, [&whole[..], &whole[..40]].concat()),
        of("a member of something else after it", Exact, [&whole[..], &gzip(b"garbage")].concat()),
        of("empty members around it", Exact, [&gzip(b"")[..], &whole, &gzip(b""), &gzip(b"")].concat()),
        of("zstd after it", Refused, [&whole[..], &frames(b"x", 1)].concat()),
        of("nothing in it", Exact, gzip(b"")),
        of("a gzip in it", Refused, gzip(&whole)),
        of("a member for each 100 bytes", Exact, tar.chunks(100).flat_map(gzip).collect()),
        of("two layers", Exact, [&whole[..], &whole].concat()),
    ];
    for part in 1..40 {
        attacks.push(of(&format!("cut, {part}/40"), Refused, whole[..whole.len() * part / 40].to_vec()));
    }
    for from_end in 1..=8 {
        let mut layer = whole.clone();
        let at = layer.len() - from_end;
        layer[at] ^= 0x10;
        attacks.push(of(&format!("wrong CRC or length, {from_end} from the end"), Refused, layer));
    }
    attacks
}

fn gzip_headers() -> Vec<Attack> {
    let whole = gzip(&rich());
    let with = |flags: u8, extra: &[u8]| [&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3], extra, &whole[10..]].concat();
    let hcrc = |right: bool| {
        let header = [0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 3];
        let mut crc = flate2::Crc::new();
        crc.update(&header);
        let sum = if right { crc.sum() as u16 } else { !crc.sum() as u16 };
        with(2, &sum.to_le_bytes())
    };
    let mut method = whole.clone();
    method[2] = 7;
    let of = |name: &str, expect, layer: Vec<u8>| (format!("gzip header: {name}"), expect, layer);
    vec![
        of("a name", Exact, with(8, b"name\0")),
        of("a name and a comment", Exact, with(8 | 16, b"name\0comment\0")),
        of("an extra field", Exact, with(4, b"\x05\0extra")),
        of("an extra field that swallows the rest", Refused, with(4, b"\xff\xff")),
        of("a name without end", Refused, [&[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3][..], &[b'n'; 100_000]].concat()),
        of("its own checksum", Exact, hcrc(true)),
        of("a wrong checksum of its own", Refused, hcrc(false)),
        of("reserved flags", Refused, with(0xe0, b"")),
        of("another method", Refused, method),
        of("the magic alone", Refused, vec![0x1f, 0x8b]),
    ]
}

/// Hand-made deflate streams in a member whose trailer nobody reaches.
fn deflate() -> Vec<Attack> {
    let member = |body: &[u8]| [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], body, &[0; 8]].concat();
    let of = |name: &str, body: &[u8]| (format!("deflate: {name}"), Refused, member(body));
    vec![
        of("an unknown block type", &[0b111]),
        of("a stored block whose length contradicts itself", &[1, 5, 0, 5, 0, 1, 2, 3, 4, 5]),
        of("a stored block longer than all", &[1, 0xff, 0xff, 0, 0, 1, 2, 3]),
        // Fixed codes, a match of length 3 at distance 1 before there is anything.
        of("a distance before the start", &[0b0000_0011, 0b0000_0010, 0, 0]),
        of("dynamic codes that are no tree", &[0b0000_0101, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        of("dynamic codes without end", &[0b0000_0101, 0, 0, 0]),
        of("blocks that never end", &[0, 0, 0, 0xff, 0xff].repeat(20_000)),
    ]
}

fn zstds() -> Vec<Attack> {
    let tar = rich();
    let whole = zstd::bulk::compress(&tar, 3).unwrap();
    let checked = {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        compressor.include_checksum(true).unwrap();
        compressor.compress(&tar).unwrap()
    };
    let skippable = |length: u32, body: &[u8]| [&[0x50, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), body].concat();
    let mut wrong_sum = checked.clone();
    *wrong_sum.last_mut().unwrap() ^= 1;
    // A frame header without a single segment: descriptor, then the window.
    let window = |byte: u8| [&[0x28, 0xb5, 0x2f, 0xfd, 0, byte][..], &[1, 0, 0]].concat();
    let raw = |descriptor: &[u8], blocks: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd], descriptor, blocks].concat();
    let of = |name: &str, expect, layer: Vec<u8>| (format!("zstd: {name}"), expect, layer);
    let mut attacks = vec![
        of("checked", Exact, checked),
        of("a wrong checksum", Refused, wrong_sum),
        of("skippable frames around it", Exact, [&skippable(3, b"abc")[..], &whole, &skippable(0, b"")].concat()),
        of("skippable frames alone", Exact, skippable(3, b"abc")),
        of("a skippable frame of 4 GiB", Refused, skippable(u32::MAX, b"abc")),
        of("garbage after it", Refused, [&whole[..], b"garbage"].concat()),
        of("zeros after it", Refused, [&whole[..], &[0; 100]].concat()),
        of("gzip after it", Refused, [&whole[..], &gzip(b"x")].concat()),
        of("a frame for each 100 bytes", Exact, frames(&tar, 100)),
        of("a window of 2^41 bytes", Refused, window(0xff)),
        of("a window of 2^31 bytes", Refused, window(21 << 3)),
        of("reserved bits", Refused, raw(&[0x08, 0x58], &[1, 0, 0])),
        of(
            "a dictionary that nobody has",
            Refused,
            raw(&[0x23, 7, 0, 0, 0, 5], &[0x29, 0, 0, b'a', b'a', b'a', b'a', b'a']),
        ),
        of("a reserved block", Refused, raw(&[0x20, 5], &[0x07, 0, 0])),
        of("less than its frame says", Refused, raw(&[0x20, 50], &[0x09, 0, 0, b'a'])),
        of("more than its frame says", Refused, raw(&[0x20, 1], &[0x29, 0, 0, b'a', b'a', b'a', b'a', b'a'])),
        of("a block beyond 128 KiB", Refused, raw(&[0, 0x58], &[0xff, 0xff, 0xff])),
        of("an older version", Refused, [&[0x27, 0xb5, 0x2f, 0xfd][..], &whole[4..]].concat()),
    ];
    for part in 1..40 {
        attacks.push(of(&format!("cut, {part}/40"), Refused, whole[..whole.len() * part / 40].to_vec()));
    }
    for part in 0..20 {
        let mut layer = whole.clone();
        let at = 5 + (layer.len() - 6) * part / 20;
        layer[at] ^= 1 << (part % 8);
        attacks.push(of(&format!("a changed bit, {part}/20"), Harmless, layer));
    }
    attacks
}
