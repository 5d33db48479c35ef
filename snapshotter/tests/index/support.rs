//! Layers to try and checks that all of them must pass.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};

use flate2::write::GzEncoder;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Index, IndexBuilder, IndexError};

/// Builds the index of `layer`, giving it `portion` bytes at a time.
pub(crate) fn build_in(layer: &[u8], portion: usize) -> Result<Index, IndexError> {
    let mut builder = IndexBuilder::new(Digest::of(layer), layer.len() as u64);
    for bytes in layer.chunks(portion) {
        builder.push(bytes)?;
    }
    builder.finish()
}

/// Builds the index of `layer` in portions as a network gives them.
pub(crate) fn build(layer: &[u8]) -> Result<Index, IndexError> {
    build_in(layer, 64 << 10)
}

/// Inflates every span alone, last first, and compares it with its part of the tar.
pub(crate) fn check_all_spans(index: &Index, layer: &[u8], tar: &[u8]) {
    assert_eq!(index.layer(), Digest::of(layer));
    assert_eq!(index.layer_length(), layer.len() as u64);
    assert_eq!(index.diff_id(), Digest::of(tar));
    assert_eq!(index.tar_length(), tar.len() as u64);
    let mut end = tar.len() as u64;
    for (number, span) in index.spans().iter().enumerate().rev() {
        assert_eq!(span.output.end, end);
        assert_eq!(index.span_at(span.output.start), Some(number));
        assert_eq!(index.span_at(span.output.end - 1), Some(number));
        let compressed = &layer[span.compressed.start as usize..span.compressed.end as usize];
        let output = index.inflate_span(number, compressed).unwrap();
        assert!(output == tar[span.output.start as usize..span.output.end as usize], "span {number}");
        end = span.output.start;
    }
    assert_eq!(end, 0);
    assert_eq!(index.span_at(tar.len() as u64), None);
}

/// Runs a program with `input` and gives what it writes.
pub(crate) fn command(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program} {arguments:?}");
    output.stdout
}

/// A tar by GNU tar of programs on this machine, at least `length` bytes if it has so many.
pub(crate) fn tar_of_programs(length: u64) -> Vec<u8> {
    let mut files: Vec<_> = std::fs::read_dir("/usr/bin").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut names = Vec::new();
    let mut total = 0;
    for file in files {
        let size = std::fs::symlink_metadata(&file).unwrap().len();
        if total < length && size < length / 4 {
            total += size;
            names.extend_from_slice(file.as_os_str().as_bytes());
            names.push(b'\n');
        }
    }
    command("tar", &["-c", "-P", "-T", "-"], &names)
}

/// One gzip member by zlib-rs.
pub(crate) fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress, always the same for a seed.
pub(crate) fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Bytes that compress as text does, with references near and far.
pub(crate) fn text(length: usize, seed: u64) -> Vec<u8> {
    let choices = noise(length / 4 + 1, seed);
    let words: Vec<String> = (0..256u64).map(|word| format!("{:x} ", word * word * 2_654_435 % 1_000_003)).collect();
    let mut bytes: Vec<u8> = choices.iter().flat_map(|choice| words[usize::from(*choice)].bytes()).collect();
    bytes.truncate(length);
    bytes
}

/// A ustar archive with one file for each of `files`.
pub(crate) fn ustar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, contents) in files {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(contents);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}
