//! The layer index against layers that other programs made.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use flate2::{Crc, FlushCompress, GzBuilder};
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Compression, Index, IndexBuilder, IndexError, SpanError};
use proptest::prelude::*;

#[path = "index/support.rs"]
mod support;

use support::{build, build_in, check_all_spans, command, gzip, noise, tar_of_programs, text, ustar};

/// A tar of 5 MiB with all sorts of contents.
fn mixed_tar() -> Vec<u8> {
    let repeated = text(200_000, 5).repeat(6);
    ustar(&[
        ("text", &text(1 << 20, 1)),
        ("noise", &noise(1 << 20, 2)),
        ("zeros", &vec![0; 1 << 20]),
        ("repeated", &repeated),
        ("empty", b""),
        ("small", b"lapwing"),
    ])
}

/// Builds and checks everything that must hold for any valid layer.
fn check(layer: &[u8], tar: &[u8]) -> Index {
    let index = build(layer).unwrap();
    check_all_spans(&index, layer, tar);
    let encoded = index.encode();
    let decoded = Index::decode(&encoded).unwrap();
    assert_eq!(decoded, index);
    assert_eq!(decoded.encode(), encoded);
    index
}

#[test]
fn every_span_of_a_real_layer_inflates_alone() {
    let tar = tar_of_programs(60 << 20);
    assert!(tar.len() > 50 << 20, "/usr/bin is too small for this test: {} bytes", tar.len());
    let layer = gzip(&tar, 6);
    let index = check(&layer, &tar);
    assert_eq!(index.compression(), Compression::Gzip);
    assert!(index.spans().len() > tar.len() >> 21);
    let length = index.encode().len();
    assert!(length * 100 < layer.len(), "index of {length} bytes for a layer of {}", layer.len());
}

#[test]
fn takes_every_level_of_three_implementations() {
    let tar = mixed_tar();
    for level in [0, 1, 3, 6, 9] {
        check(&gzip(&tar, level), &tar);
    }
    for level in ["-1", "-9"] {
        check(&command("gzip", &["-c", level], &tar), &tar);
    }
    for script in [
        "w=zlib.compressobj(9, 8, 31, 9, zlib.Z_FILTERED)\no.write(w.compress(d)+w.flush())",
        "w=zlib.compressobj(6, 8, 31, 1, zlib.Z_FIXED)\no.write(w.compress(d)+w.flush())",
        "w=zlib.compressobj(6, 8, 25, 8)\no.write(w.compress(d)+w.flush())",
        "w=zlib.compressobj(6, 8, 31, 9, zlib.Z_HUFFMAN_ONLY)\no.write(w.compress(d)+w.flush())",
    ] {
        let script = format!("import sys, zlib\nd=sys.stdin.buffer.read()\no=sys.stdout.buffer\n{script}");
        check(&command("python3", &["-c", &script], &tar), &tar);
    }
}

#[test]
fn takes_pigz_where_it_is_installed() {
    if std::process::Command::new("pigz").arg("--version").output().is_err() {
        eprintln!("pigz is not installed; only its form of output is tried, in the next test");
        return;
    }
    let tar = mixed_tar();
    for arguments in [&["-c", "-6"][..], &["-c", "-p", "4", "-b", "128"], &["-c", "-i"], &["-c", "-11", "-I", "1"]] {
        check(&command("pigz", arguments, &tar), &tar);
    }
}

#[test]
fn flushes_make_checkpoints_as_any_other_block() {
    let tar = mixed_tar();
    for flush in [FlushCompress::Sync, FlushCompress::Full, FlushCompress::Partial] {
        let mut deflate = flate2::Compress::new(Level::new(6), false);
        let mut layer = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        for part in tar.chunks(100_000) {
            layer.reserve(part.len() + 1000);
            deflate.compress_vec(part, &mut layer, flush).unwrap();
        }
        layer.reserve(1000);
        deflate.compress_vec(&[], &mut layer, FlushCompress::Finish).unwrap();
        let mut crc = Crc::new();
        crc.update(&tar);
        layer.extend_from_slice(&crc.sum().to_le_bytes());
        layer.extend_from_slice(&(tar.len() as u32).to_le_bytes());
        check(&layer, &tar);
    }
}

#[test]
fn takes_members_by_the_thousand_with_any_header() {
    let tar = mixed_tar();
    let mut layer = Vec::new();
    for (number, part) in tar.chunks(1500).enumerate() {
        let mut builder = GzBuilder::new();
        if number % 3 == 0 {
            builder = builder.filename("name").comment("comment").extra(noise(number % 700, 9));
        }
        let mut member = builder.write(Vec::new(), Level::new(6));
        member.write_all(part).unwrap();
        layer.extend_from_slice(&member.finish().unwrap());
        if number % 100 == 0 {
            layer.extend_from_slice(&gzip(b"", 6));
        }
    }
    let index = check(&layer, &tar);
    assert!(index.spans().len() >= 4);
    assert!(index.encode().len() < 4096, "checkpoints where members begin need no window");
}

#[test]
fn a_member_in_the_middle_of_a_span_and_of_a_window_is_right() {
    let tar = mixed_tar();
    for cut in [1, 511, 1 << 20, (1 << 20) + 10_000, (1 << 20) + 40_000, tar.len() - 1] {
        let layer = [gzip(&tar[..cut], 6), gzip(&tar[cut..], 9)].concat();
        check(&layer, &tar);
    }
}

#[test]
fn after_the_last_member_only_zeros_may_come() {
    let tar = ustar(&[("a", b"a")]);
    let layer = gzip(&tar, 6);
    let padded = [&layer[..], &[0; 3000]].concat();
    check(&padded, &tar);
    for tail in [&b"x"[..], b"\0\0x", &layer[..5], b"\x1f", b"\0\x1f\x8b\x08"] {
        let layer = [&layer[..], tail].concat();
        let error = build(&layer).unwrap_err();
        assert!(matches!(error, IndexError::BadGzip { .. } | IndexError::Truncated { .. }), "{tail:?}: {error}");
        assert_eq!(build_in(&layer, 1).unwrap_err(), error);
    }
}

#[test]
fn layers_without_files_have_an_index() {
    let index = check(b"", b"");
    assert_eq!((index.compression(), index.spans().len(), index.entries().len()), (Compression::None, 0, 0));
    let index = check(&gzip(b"", 6), b"");
    assert_eq!((index.compression(), index.spans().len()), (Compression::Gzip, 0));
    let index = check(&gzip(&[0; 1024], 6), &[0; 1024]);
    assert_eq!((index.spans().len(), index.entries().len()), (1, 0));
}

#[test]
fn portions_do_not_matter() {
    let tar = mixed_tar();
    let single = gzip(&tar, 6);
    let members: Vec<u8> = tar.chunks(700_000).flat_map(|part| gzip(part, 9)).collect();
    let frames: Vec<u8> = tar.chunks(300_000).flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect();
    for layer in [single, members, frames, tar] {
        let encoded = build_in(&layer, layer.len()).unwrap().encode();
        for portion in [7, 4096, 100_003] {
            assert_eq!(build_in(&layer, portion).unwrap().encode(), encoded, "portions of {portion}");
        }
    }
}

#[test]
fn takes_zstd_by_frames() {
    let tar = mixed_tar();
    let skippable = [&b"\x5a\x2a\x4d\x18\x04\0\0\0"[..], b"toc!"].concat();
    let mut layer = skippable.clone();
    for part in tar.chunks(100_000) {
        layer.extend_from_slice(&zstd::bulk::compress(part, 3).unwrap());
    }
    layer.extend_from_slice(&skippable);
    let index = check(&layer, &tar);
    assert_eq!(index.compression(), Compression::Zstd);
    assert!(index.spans().len() >= 4);

    let small = zstd::bulk::compress(&tar, 3).unwrap();
    assert_eq!(check(&small, &tar).spans().len(), 1);
    for end in [3, 50, small.len() - 1] {
        let error = build(&small[..end]).unwrap_err();
        let is_named = matches!(error, IndexError::Truncated { .. } | IndexError::UnknownFormat { .. });
        assert!(is_named, "{end}: {error}");
    }

    let large = ustar(&[("noise", &noise(40 << 20, 4))]);
    let error = build(&zstd::bulk::compress(&large, 1).unwrap()).unwrap_err();
    assert!(matches!(&error, IndexError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("pulled whole"), "{error}");
}

#[test]
fn takes_plain_tars_and_nothing_else() {
    let tar = mixed_tar();
    let index = check(&tar, &tar);
    assert_eq!(index.compression(), Compression::None);
    assert_eq!(index.diff_id(), index.layer());
    for other in [&b"BZh91AY&SY"[..], b"\xfd7zXZ\0", b"x", b"<!doctype html>", &noise(4096, 3)] {
        let error = build(other).unwrap_err();
        let is_named = matches!(error, IndexError::UnknownFormat { .. } | IndexError::Truncated { .. });
        assert!(is_named, "{error}");
    }
}

#[test]
fn a_cut_layer_is_never_taken() {
    let tar = mixed_tar();
    for layer in [gzip(&tar, 6), tar.chunks(900_000).flat_map(|part| gzip(part, 6)).collect()] {
        for end in (0..layer.len()).step_by(4096).skip(1) {
            // Under the digest of the whole, and as a layer of its own whose digest is right.
            let mut builder = IndexBuilder::new(Digest::of(&layer), layer.len() as u64);
            builder.push(&layer[..end]).unwrap();
            assert!(matches!(builder.finish().unwrap_err(), IndexError::LengthMismatch { .. }));
            if end % (4096 * 16) == 0 {
                let error = build(&layer[..end]).unwrap_err();
                assert!(matches!(error, IndexError::Truncated { .. }), "cut at {end}: {error}");
            }
        }
    }
}

#[test]
fn a_changed_bit_is_never_taken() {
    let tar = ustar(&[("text", &text(1 << 20, 1)), ("noise", &noise(300_000, 2)), ("more", &text(1 << 20, 8))]);
    let layer = gzip(&tar, 6);
    for at in (0..layer.len()).step_by(layer.len() / 150).chain(layer.len() - 8..layer.len()) {
        let mut changed = layer.clone();
        changed[at] ^= 1 << (at % 8);
        let mut builder = IndexBuilder::new(Digest::of(&layer), layer.len() as u64);
        let result = builder.push(&changed).and_then(|()| builder.finish());
        assert!(result.is_err(), "bit of byte {at} under the old digest");
        // As a layer of its own it fails its CRC, unless the bit meant nothing (such as the time in the header).
        if let Ok(index) = build(&changed) {
            assert!(at < 10, "bit of byte {at}");
            check_all_spans(&index, &changed, &tar);
        }
    }
}

#[test]
fn length_and_crc_of_every_member_are_checked() {
    let tar = ustar(&[("a", &text(100_000, 3))]);
    let (one, two) = (gzip(&tar[..50_000], 6), gzip(&tar[50_000..], 6));
    for from_end in [1, 5] {
        let mut broken = one.clone();
        let at = broken.len() - from_end;
        broken[at] ^= 0x10;
        let error = build(&[broken, two.clone()].concat()).unwrap_err();
        assert!(matches!(error, IndexError::BadGzip { .. }), "{error}");
    }
}

#[test]
fn wrong_compressed_bytes_never_give_output() {
    let tar = mixed_tar();
    let layer = gzip(&tar, 6);
    let index = build(&layer).unwrap();
    let span = &index.spans()[1];
    let right = &layer[span.compressed.start as usize..span.compressed.end as usize];
    let mut changed = right.to_vec();
    changed[right.len() / 2] ^= 1;
    for wrong in [&changed[..], &right[1..], &right[..right.len() - 1], b""] {
        assert!(matches!(index.inflate_span(1, wrong), Err(SpanError::WrongInput { span: 1, .. })));
    }
    assert!(matches!(index.inflate_span(0, right), Err(SpanError::WrongInput { span: 0, .. })));
    let count = index.spans().len();
    assert!(matches!(index.inflate_span(count, right), Err(SpanError::NoSuchSpan { .. })));
}

#[test]
fn bombs_are_refused_early() {
    // Half a GiB of zeros: deflate shrinks it 1029 times, zstd far more.
    let tar = ustar(&[("zeros", &vec![0; 512 << 20])]);
    let deflated = gzip(&tar, 9);
    let frames: Vec<u8> = tar.chunks(8 << 20).flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect();
    for layer in [deflated, frames] {
        let error = build_in(&layer, 512).unwrap_err();
        assert!(matches!(error, IndexError::Bomb { ratio: 1000, .. }), "{error}");
    }
    // The same zeros in an ordinary layer are no bomb.
    let tar = ustar(&[("noise", &noise(1 << 20, 1)), ("zeros", &vec![0; 100 << 20])]);
    check(&gzip(&tar, 6), &tar);
}

#[test]
fn an_endless_block_is_left_to_whole_pulls() {
    // One deflate block of 70 MiB: fixed codes, all matches of 258 at distance 1, made with zlib's largest block buffer
    // replaced by hand: zeros in fixed codes are the literal 0 (8 bits 00110000), then matches (8 + 5 bits).
    let mut bits = BitWriter::default();
    bits.put(0b1, 1);
    bits.put(0b01, 2);
    bits.put_code(0b0011_0000, 8);
    for _ in 0..(70 << 20) / 258 {
        bits.put_code(0b1100_0101, 8);
        bits.put_code(0, 5);
    }
    let layer = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], &bits.bytes[..]].concat();
    // Incompressible members first keep the ratio low.
    let tar = ustar(&[("noise", &noise(1 << 20, 1))]);
    let layer = [gzip(&tar, 6), layer].concat();
    let error = build(&layer).unwrap_err();
    assert!(matches!(&error, IndexError::Unsupported { what, .. } if what.contains("64 MiB")), "{error}");
}

#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    used: u32,
}

impl BitWriter {
    fn put(&mut self, value: u32, count: u32) {
        for at in 0..count {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((value >> at & 1) as u8) << (self.used % 8);
            self.used += 1;
        }
    }

    /// Huffman codes go in from the high bit.
    fn put_code(&mut self, code: u32, count: u32) {
        self.put(code.reverse_bits() >> (32 - count), count);
    }
}

#[test]
fn errors_are_final() {
    let mut builder = IndexBuilder::new(Digest::of(b""), 100);
    let error = builder.push(&[0x1f, 0x8b, 9, 9, 9, 9]).unwrap_err();
    assert!(matches!(error, IndexError::BadGzip { .. }));
    assert_eq!(builder.push(b"more").unwrap_err(), error);
    assert_eq!(builder.finish().unwrap_err(), error);
}

#[test]
#[ignore = "inflates 4.3 GiB: a minute"]
fn counts_beyond_4_gib() {
    const SIZE: u64 = (4 << 30) + (300 << 20);
    let part = text(32 << 20, 7);
    let mut tar = ustar(&[("big", b"")]);
    tar.truncate(512);
    tar[124..136].copy_from_slice(&[&[0x80, 0, 0, 0][..], &SIZE.to_be_bytes()].concat());
    tar[148..156].copy_from_slice(b"        ");
    let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
    tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    // One member, whose length field wraps. Not level 1, at which zlib-rs makes a single block of it.
    let mut encoder = GzEncoder::new(Vec::new(), Level::new(3));
    encoder.write_all(&tar).unwrap();
    for _ in 0..SIZE / part.len() as u64 {
        encoder.write_all(&part).unwrap();
    }
    encoder.write_all(&part[..(SIZE % part.len() as u64) as usize]).unwrap();
    let layer = encoder.finish().unwrap();
    let index = build(&layer).unwrap();
    assert_eq!(index.tar_length(), 512 + SIZE);
    for at in [512, (4 << 30) - 1, 4 << 30, (4 << 30) + (100 << 20), 511 + SIZE] {
        let number = index.span_at(at).unwrap();
        let span = &index.spans()[number];
        let compressed = &layer[span.compressed.start as usize..span.compressed.end as usize];
        let output = index.inflate_span(number, compressed).unwrap();
        let expected = part[((at - 512) % part.len() as u64) as usize];
        assert_eq!(output[(at - span.output.start) as usize], expected);
    }
    assert_eq!(Index::decode(&index.encode()).unwrap(), index);
}

/// A small valid index of each compression, and its layer.
fn small_indexes() -> Vec<(Vec<u8>, Vec<u8>)> {
    let tar = ustar(&[("text", &text(1_200_000, 1)), ("more", &text(1_000_000, 2)), ("a/b", b"c")]);
    let frames: Vec<u8> = tar.chunks(600_000).flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect();
    let layers = [gzip(&tar, 6), frames, tar];
    layers.into_iter().map(|layer| (build(&layer).unwrap().encode(), layer)).collect()
}

#[test]
fn a_cut_or_longer_index_is_refused() {
    for (encoded, _) in small_indexes() {
        for end in 0..encoded.len() {
            assert!(matches!(Index::decode(&encoded[..end]), Err(IndexError::Malformed(_))), "cut at {end}");
        }
        assert!(Index::decode(&[&encoded[..], b"x"].concat()).is_err());
    }
}

#[test]
fn a_changed_index_never_gives_wrong_bytes() {
    for (encoded, layer) in small_indexes() {
        let original = Index::decode(&encoded).unwrap();
        let mut taken = 0;
        for at in 0..encoded.len() {
            let mut changed = encoded.clone();
            changed[at] ^= 1 << (at % 8);
            let Ok(index) = Index::decode(&changed) else { continue };
            taken += 1;
            for (number, span) in index.spans().iter().enumerate() {
                let bytes = layer.get(span.compressed.start as usize..span.compressed.end as usize);
                let Ok(output) = index.inflate_span(number, bytes.unwrap_or_default()) else { continue };
                let truth = &original.spans()[number];
                assert_eq!(Some(blake3::hash(&output).as_bytes()), truth.output_hash(), "byte {at}, span {number}");
            }
        }
        assert!(taken > 64, "changed digests decode: only inflating can tell");
    }
}

/// Numbers at the edge in every field of header and span records.
#[test]
fn impossible_numbers_are_refused() {
    for (encoded, _) in small_indexes() {
        let spans = u32::from_le_bytes(encoded[96..100].try_into().unwrap()) as usize;
        let fields = [8, 88, 92, 96, 100, 104, 108, 112, 116].map(|at| (at, 4));
        let records = (0..spans).flat_map(|span| {
            [(0, 4), (4, 4), (8, 4), (12, 4), (19, 2)].map(|(at, length)| (120 + span * 88 + at, length))
        });
        for (at, length) in fields.into_iter().chain(records) {
            for value in [0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX] {
                let mut changed = encoded.clone();
                changed[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
                if changed != encoded {
                    let result = Index::decode(&changed);
                    // Only the length of the last span's compressed bytes has nothing that it must agree with.
                    let is_last_length = at == 120 + (spans - 1) * 88 + 8 && encoded[12] != 0 && value == 1;
                    assert!(result.is_err() || is_last_length, "{value} at {at}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1000), has_magic in any::<bool>()) {
        let start: &[u8] = if has_magic { b"LAPWINDX\x01\0\0\0\x01\0\0\0" } else { b"" };
        prop_assert!(Index::decode(&[start, &bytes].concat()).is_err());
    }

    #[test]
    fn arbitrary_layers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1000), format in 0usize..4) {
        let start: &[u8] = [&b""[..], b"\x1f\x8b\x08\0\0\0\0\0\0\x03", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"][format];
        let layer = [start, &bytes].concat();
        prop_assert_eq!(build(&layer).is_ok(), build_in(&layer, 1).is_ok());
    }
}
