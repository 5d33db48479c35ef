//! Very large layers: mounted in less than a second, with little memory, and read right at any place by many at once.
//!
//! `LAPWING_TEST_LARGE_GB` says how large the layer is whose index is built, 2 unless it is set; `make test-long` takes 20.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, outside of test functions")]

#[path = "lazy/support.rs"]
#[allow(dead_code, reason = "shared with the tests of lazy layers")]
mod support;

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_evidence::{Evidence, count};
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Index, IndexBuilder};
use lapwing_snapshotter::lazy::{Backend, LazyMounts};
use lapwing_snapshotter::source::{LayerSource, SourceError, Urgency};
use sha2::{Digest as _, Sha256};
use support::{Scratch, noise, on_both_backends, options};
use tokio::sync::Mutex;

on_both_backends! { a_large_layer_mounts_at_once, a_sparse_file_of_100_gb_mounts_at_once }

/// One at a time: memory is that of the process.
static ALONE: Mutex<()> = Mutex::const_new(());
const READERS: u64 = 16;
const READS: u64 = 60;
/// Bytes read at each place.
const PLACE: usize = 5000;
/// What a mount may take, metadata included.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Resident memory that mounting and reading may add.
const MOST_MEMORY: u64 = 256 << 20;

/// Puts the bytes from there on into the slice.
type BytesAt = dyn Fn(u64, &mut [u8]) + Send + Sync;

/// A file of the layer: its length, which place to look at for a random number, and the bytes that it has anywhere.
struct Large {
    size: u64,
    place: fn(u64) -> u64,
    bytes_at: Box<BytesAt>,
}

/// Resident bytes by the line of that name in `/proc/self/status`.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', '\t', ' ']).split(' ').next().unwrap().parse::<u64>().unwrap() << 10
}

/// Mounts the layer and has many readers read its one file at random places.
async fn mount_and_read(
    backend: Backend,
    scratch: &Scratch,
    encoded: Vec<u8>,
    source: Arc<dyn LayerSource>,
    large: Large,
) {
    // SAFETY: malloc_trim(3) takes a number and only gives back what is free, which would not be counted when it is taken again.
    unsafe { libc::malloc_trim(0) };
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let mounts = LazyMounts::start(&scratch.path().join("root"), options(backend)).unwrap();
    let at = scratch.directory("mnt");
    // The fault is the layer itself: nothing is read before it.
    let mut evidence = Evidence::new(18, &format!("{backend:?}: a file of {} bytes", large.size));
    evidence.fault("a very large layer");
    let start = Instant::now();
    let index = Arc::new(Index::decode(&encoded).unwrap());
    drop(encoded);
    let digest = index.layer();
    mounts.add(index, source).await.unwrap();
    mounts.mount(&digest, &at, &[]).unwrap();
    let took = start.elapsed();
    let path = at.join("large");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), large.size);

    let (start, large) = (Instant::now(), Arc::new(large));
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let (path, large) = (path.clone(), large.clone());
            std::thread::spawn(move || read_at_random(&path, &large, reader))
        })
        .collect();
    let slowest = readers.into_iter().map(|reader| reader.join().unwrap()).max().unwrap();
    evidence.ended(slowest, true);
    evidence.served_after(READERS * READS * PLACE as u64);
    let (read, grown) = (start.elapsed(), status("VmHWM").saturating_sub(before));
    eprintln!(
        "{backend:?}: {:.1} GB mounted in {took:.2?}; {READERS} readers of {READS} places took {read:.2?}, the slowest read \
         {slowest:.2?}; {} MiB of memory",
        large.size as f64 / 1e9,
        grown >> 20
    );
    evidence.figure(&format!("{backend:?}: mount_ms of {} GB", large.size / 1_000_000_000), took.as_secs_f64() * 1e3);
    evidence.figure(&format!("{backend:?}: memory_mib of {} GB", large.size / 1_000_000_000), (grown >> 20) as f64);
    assert!(took < AT_ONCE, "{took:?} for a mount");
    assert!(grown < MOST_MEMORY, "{} MiB of memory", grown >> 20);
    mounts.unmount(&at).unwrap();
    mounts.shutdown().await;
}

/// Gives the time of the slowest read.
fn read_at_random(path: &Path, large: &Large, seed: u64) -> Duration {
    let file = File::open(path).unwrap();
    let (mut found, mut right) = (vec![0; PLACE], vec![0; PLACE]);
    let places = noise(READS as usize * 8, seed);
    let mut slowest = Duration::ZERO;
    for (number, place) in places.as_chunks::<8>().0.iter().enumerate() {
        let last = large.size - PLACE as u64;
        // The first reads go to the ends.
        let at = match number {
            0 => last,
            1 => 0,
            _ => (large.place)(u64::from_le_bytes(*place)) % last,
        };
        let start = Instant::now();
        file.read_exact_at(&mut found, at).unwrap();
        slowest = slowest.max(start.elapsed());
        (large.bytes_at)(at, &mut right);
        assert!(found == right, "{PLACE} bytes at {at}");
    }
    slowest
}

fn header(name: &str, flag: u8, size: u64) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..136].copy_from_slice(&[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
    header[136..147].copy_from_slice(b"13132027400");
    header[148..156].copy_from_slice(b"        ");
    header[156] = flag;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

fn member(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A gzip layer that is nowhere: a first member, then some members again and again, then a last one.
struct Repeated {
    first: Vec<u8>,
    cycle: Vec<u8>,
    /// Whole cycles.
    cycles: u64,
    last: Vec<u8>,
}

impl Repeated {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let cycles = (0..self.cycles).map(|_| self.cycle.as_slice());
        std::iter::once(self.first.as_slice()).chain(cycles).chain([self.last.as_slice()])
    }

    fn length(&self) -> u64 {
        (self.first.len() + self.last.len()) as u64 + self.cycles * self.cycle.len() as u64
    }

    fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let (mut bytes, mut at) = (Vec::new(), range.start);
        let first = self.first.len() as u64;
        let last = first + self.cycles * self.cycle.len() as u64;
        while at < range.end {
            let (part, from) = match at {
                at if at < first => (&self.first, at),
                at if at < last => (&self.cycle, (at - first) % self.cycle.len() as u64),
                at => (&self.last, at - last),
            };
            let length = (part.len() as u64 - from).min(range.end - at);
            bytes.extend_from_slice(&part[from as usize..(from + length) as usize]);
            at += length;
        }
        bytes
    }
}

impl LayerSource for Repeated {
    fn read(&self, range: Range<u64>, _: Urgency) -> BoxFuture<'_, Result<Bytes, SourceError>> {
        let bytes = self.bytes(range).into();
        Box::pin(async { Ok(bytes) })
    }
}

/// Text of which no two stretches are the same.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let words = (seed << 32..).flat_map(|word| format!("{:x}", word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes());
    let mut bytes: Vec<u8> = words.take(length / 16).collect();
    bytes = bytes.as_chunks::<32>().0.iter().flat_map(|part| part.repeat(16)).collect();
    bytes.resize(length, b'-');
    bytes
}

/// Builds the index of a layer while it is made.
fn index_of(layer: &Repeated, size: u64) -> Vec<u8> {
    let mut digest = Sha256::new();
    layer.parts().for_each(|part| digest.update(part));
    let digest = Digest::from_bytes(digest.finalize().into());
    let start = Instant::now();
    let mut builder = IndexBuilder::new(digest, layer.length());
    layer.parts().for_each(|part| builder.push(part).unwrap());
    let index = builder.finish().unwrap();
    let encoded = index.encode();
    eprintln!(
        "{:.1} GB in a layer of {} MiB: an index of {} spans and {} KiB in {:.1?}",
        size as f64 / 1e9,
        layer.length() >> 20,
        index.spans().len(),
        encoded.len() >> 10,
        start.elapsed()
    );
    encoded
}

async fn a_large_layer_mounts_at_once(backend: Backend) {
    /// Built once for both.
    static ENCODED: OnceLock<Vec<u8>> = OnceLock::new();
    const PART: usize = 4 << 20;
    const PARTS: usize = 4;
    let _alone = ALONE.lock().await;
    let Some(scratch) = Scratch::on(backend) else { return };
    let size = std::env::var("LAPWING_TEST_LARGE_GB").map_or(count(2, 20).into(), |text| text.parse::<u64>().unwrap())
        * 1_000_000_000;
    let parts: Vec<Vec<u8>> = (0..PARTS as u64).map(|seed| text(PART, seed)).collect();
    let cycle = (PARTS * PART) as u64;
    let size = size / cycle * cycle;
    let layer = Repeated {
        first: member(&header("large", b'0', size)),
        cycle: parts.iter().flat_map(|part| member(part)).collect(),
        cycles: size / cycle,
        last: member(&[0; 1024]),
    };
    let encoded = ENCODED.get_or_init(|| index_of(&layer, size)).clone();
    assert!(encoded.len() as u64 * 10 < layer.length(), "small");
    let bytes_at = move |at: u64, out: &mut [u8]| {
        for (byte, at) in out.iter_mut().zip(at..) {
            let at = (at % cycle) as usize;
            *byte = parts[at / PART][at % PART];
        }
    };
    let large = Large { size, place: |random| random, bytes_at: Box::new(bytes_at) };
    mount_and_read(backend, &scratch, encoded, Arc::new(layer), large).await;
}

async fn a_sparse_file_of_100_gb_mounts_at_once(backend: Backend) {
    const SIZE: u64 = 100_000_000_000;
    const STRETCH: u64 = 1 << 20;
    const EVERY: u64 = 5 << 30;
    let _alone = ALONE.lock().await;
    let Some(scratch) = Scratch::on(backend) else { return };
    let places: Vec<u64> = (0..SIZE / EVERY).map(|number| number * EVERY).collect();
    let contents: Vec<Vec<u8>> = (0..).zip(&places).map(|(seed, _)| noise(STRETCH as usize, seed)).collect();
    let mut map = format!("{}\n", places.len() + 1).into_bytes();
    places.iter().for_each(|at| map.extend(format!("{at}\n{STRETCH}\n").bytes()));
    map.extend(format!("{SIZE}\n0\n").bytes());
    map.resize(map.len().next_multiple_of(512), 0);
    let records = format!(
        "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.name=large\n36 GNU.sparse.realsize={SIZE}\n"
    );
    let mut tar = header("PaxHeaders/large", b'x', records.len() as u64).to_vec();
    tar.extend(records.bytes());
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar.extend(header("GNUSparseFile.0/large", b'0', map.len() as u64 + contents.len() as u64 * STRETCH));
    tar.extend(map);
    tar.extend(contents.concat());
    tar.resize(tar.len() + 1024, 0);
    let layer = support::layer_of(tar);
    let encoded = layer.index.encode();
    let source = support::Source::of(&layer);
    drop(layer);
    let bytes_at = move |at: u64, out: &mut [u8]| {
        for (byte, at) in out.iter_mut().zip(at..) {
            let within = (at % EVERY) as usize;
            *byte = contents.get((at / EVERY) as usize).and_then(|content| content.get(within)).copied().unwrap_or(0);
        }
    };
    // Half of the places are at the stretches of data and around their ends.
    let place = |random: u64| match random % 2 {
        0 => random / 2 % (SIZE / EVERY) * EVERY + random / 64 % (STRETCH + 10_000),
        _ => random,
    };
    let large = Large { size: SIZE, place, bytes_at: Box::new(bytes_at) };
    mount_and_read(backend, &scratch, encoded, source, large).await;
}
