//! Lazy layers end to end: EROFS over FUSE over a source that counts, lies and hangs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, outside of test functions")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::lazy::{LayerIndex, LazyMounts, Options, Proof, Span, probe};
use lapwing_snapshotter::source::{LayerSource, SourceError, Urgency};
use lapwing_snapshotter::tree::{Entry, Extent, Kind};

const SPAN: usize = 64 << 10;

/// A layer whose spans are compressed one by one.
struct TestIndex {
    tar: Vec<u8>,
    layer: Vec<u8>,
    spans: Vec<Span>,
    entries: Vec<Entry>,
    diff_id: Digest,
    digest: Digest,
}

impl TestIndex {
    /// Regular files with these contents, one after the other in the tar.
    fn of(files: &[(&str, Vec<u8>)]) -> Self {
        let (mut tar, mut entries) = (Vec::new(), Vec::new());
        for (name, content) in files {
            tar.resize(tar.len() + 512, b'h');
            let length = content.len() as u64;
            let extents = vec![Extent { file_offset: 0, tar_offset: tar.len() as u64, length }];
            entries.push(Entry {
                path: name.as_bytes().to_vec(),
                kind: Kind::File { size: length, extents },
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: 1,
                mtime_nanos: 0,
                xattrs: Vec::new(),
            });
            tar.extend(content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        // No whole block at the end: the device must be longer than the tar.
        tar.extend(b"odd");
        let (mut layer, mut spans) = (Vec::new(), Vec::new());
        for (number, chunk) in tar.chunks(SPAN).enumerate() {
            let start = layer.len() as u64;
            layer.extend(zstd::encode_all(chunk, 1).unwrap());
            let output = (number * SPAN) as u64;
            spans.push(Span { compressed: start..layer.len() as u64, output: output..output + chunk.len() as u64 });
        }
        let diff_id = Digest::of(&tar);
        let digest = Digest::of(&layer);
        Self { tar, layer, spans, entries, diff_id, digest }
    }
}

impl LayerIndex for TestIndex {
    fn layer(&self) -> Digest {
        self.digest
    }
    fn layer_length(&self) -> u64 {
        self.layer.len() as u64
    }
    fn diff_id(&self) -> Digest {
        self.diff_id
    }
    fn tar_length(&self) -> u64 {
        self.tar.len() as u64
    }
    fn spans(&self) -> &[Span] {
        &self.spans
    }
    fn entries(&self) -> &[Entry] {
        &self.entries
    }
    fn inflate_span(&self, span: usize, compressed: &[u8]) -> Result<Vec<u8>, String> {
        let bytes = zstd::decode_all(compressed).map_err(|error| error.to_string())?;
        let output = &self.spans[span].output;
        if bytes == self.tar[output.start as usize..output.end as usize] {
            Ok(bytes)
        } else {
            Err("wrong bytes".into())
        }
    }
}

/// The compressed layer in memory.
#[derive(Default)]
struct Source {
    layer: Vec<u8>,
    fetched: Mutex<Vec<(Range<u64>, Urgency)>>,
    corrupt: AtomicBool,
    refuse: AtomicBool,
    hang: AtomicBool,
    waiting: AtomicUsize,
    release: tokio::sync::Notify,
}

impl Source {
    fn of(index: &TestIndex) -> Arc<Self> {
        Arc::new(Self { layer: index.layer.clone(), ..Self::default() })
    }

    fn spans_fetched(&self) -> usize {
        let fetched = self.fetched.lock().unwrap();
        let spans: std::collections::HashSet<u64> = fetched.iter().map(|(range, _)| range.start).collect();
        spans.len()
    }
}

impl LayerSource for Source {
    fn read(&self, range: Range<u64>, urgency: Urgency) -> BoxFuture<'_, Result<Bytes, SourceError>> {
        Box::pin(async move {
            self.fetched.lock().unwrap().push((range.clone(), urgency));
            if self.hang.load(Ordering::SeqCst) {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                self.release.notified().await;
            }
            if self.refuse.load(Ordering::SeqCst) {
                return Err(SourceError("no peer and no origin".into()));
            }
            let mut bytes = self.layer[range.start as usize..range.end as usize].to_vec();
            if self.corrupt.load(Ordering::SeqCst) {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x55;
            }
            Ok(bytes.into())
        })
    }
}

/// Bytes that do not compress and differ everywhere.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A directory on a real filesystem (which /tmp may not be; images need one), free of mounts when it goes.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in mounts_below(self.path()) {
            let _ = lapwing_snapshotter::fuse::detach(Path::new(&mount));
        }
    }
}

fn scratch() -> Scratch {
    Scratch(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
}

/// Whether this machine can mount lazily; says loudly when it cannot.
fn supported(directory: &Path) -> bool {
    match probe(directory) {
        Ok(_) => true,
        Err(reason) => {
            println!("SKIPPED: {reason}");
            false
        }
    }
}

fn mount_point(directory: &Path) -> PathBuf {
    let at = directory.join("mnt");
    std::fs::create_dir_all(&at).unwrap();
    at
}

fn mounts_below(directory: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(directory)).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_touched_spans_are_fetched_and_all_bytes_are_right() {
    let directory = scratch();
    if !supported(directory.path()) {
        return;
    }
    let files: Vec<(String, Vec<u8>)> = (0..60).map(|i| (format!("file-{i}"), noise(i * 31_337, i as u64))).collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    let index = Arc::new(TestIndex::of(&files));
    let source = Source::of(&index);
    let mounts = LazyMounts::start(&directory.path().join("root"), Options::default()).unwrap();
    let layer = mounts.add(index.clone(), source.clone()).await.unwrap();
    let at = mount_point(directory.path());
    mounts.mount(&index.layer(), &at, &[]).unwrap();
    assert_eq!(source.spans_fetched(), 0, "a mount fetches nothing");

    assert_eq!(std::fs::read(at.join("file-1")).unwrap(), files[1].1);
    let touched = source.spans_fetched();
    assert!((1..=3).contains(&touched), "{touched} spans for one small file");
    assert_eq!(layer.progress().present, touched);

    for (name, content) in &files {
        assert!(std::fs::read(at.join(name)).unwrap() == *content, "{name}");
        assert_eq!(std::fs::metadata(at.join(name)).unwrap().len(), content.len() as u64);
    }
    let progress = layer.progress();
    layer.complete_all().await.unwrap();
    assert_eq!((layer.progress().present, layer.progress().proof), (progress.spans, Proof::Proved));
    assert_eq!(source.spans_fetched(), progress.spans, "the rest was fetched once");

    mounts.unmount(&at).unwrap();
    mounts.unmount(&at).unwrap();
    mounts.shutdown().await;
    assert_eq!(mounts_below(directory.path()), Vec::<String>::new());
}
