//! Layers that GNU tar and gzip made, a source that counts, lies and hangs, and directories that lose their mounts.

use std::collections::HashSet;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Index, IndexBuilder};
use lapwing_snapshotter::lazy::{Backend, Options, probe, probe_trees};
use lapwing_snapshotter::source::{LayerSource, SourceError, Urgency};

/// A layer as a registry has it, its tar, and its index.
pub(crate) struct Layer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) tar: Vec<u8>,
    pub(crate) index: Arc<Index>,
}

/// Packs `directory` with GNU tar and gzip.
pub(crate) fn pack(directory: &Path) -> Layer {
    let arguments = ["--format=pax", "--sort=name", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-cSC"];
    let output = Command::new("tar").args(arguments).arg(directory).arg(".").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    layer_of(output.stdout)
}

/// The layer of a tar. (The fastest level of zlib-rs makes one deflate block of everything, thus one span.)
pub(crate) fn layer_of(tar: Vec<u8>) -> Layer {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(&tar).unwrap();
    let bytes = encoder.finish().unwrap();
    let mut builder = IndexBuilder::new(Digest::of(&bytes), bytes.len() as u64);
    for portion in bytes.chunks(64 << 10) {
        builder.push(portion).unwrap();
    }
    Layer { index: Arc::new(builder.finish().unwrap()), bytes, tar }
}

/// The compressed layer in memory.
#[derive(Default)]
pub(crate) struct Source {
    layer: Vec<u8>,
    reads: Mutex<Vec<(u64, Urgency)>>,
    pub(crate) corrupt: AtomicBool,
    pub(crate) refuse: AtomicBool,
    pub(crate) hang: AtomicBool,
    pub(crate) waiting: AtomicUsize,
    pub(crate) release: tokio::sync::Notify,
}

impl Source {
    pub(crate) fn of(layer: &Layer) -> Arc<Self> {
        Arc::new(Self { layer: layer.bytes.clone(), ..Self::default() })
    }

    /// Reads so far.
    pub(crate) fn reads(&self) -> usize {
        self.reads.lock().unwrap().len()
    }

    /// Different spans read so far.
    pub(crate) fn spans(&self) -> usize {
        self.reads.lock().unwrap().iter().map(|(start, _)| *start).collect::<HashSet<u64>>().len()
    }

    /// Reads so far of this urgency.
    pub(crate) fn urgent(&self, urgency: Urgency) -> usize {
        self.reads.lock().unwrap().iter().filter(|(_, other)| *other == urgency).count()
    }
}

impl LayerSource for Source {
    fn read(&self, range: Range<u64>, urgency: Urgency) -> BoxFuture<'_, Result<Bytes, SourceError>> {
        Box::pin(async move {
            self.reads.lock().unwrap().push((range.start, urgency));
            if self.hang.load(Ordering::SeqCst) {
                let released = self.release.notified();
                self.waiting.fetch_add(1, Ordering::SeqCst);
                released.await;
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
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A directory on a real filesystem (which /tmp may not be; images need one), free of mounts when it goes.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    /// `None`, said loudly, on a machine that cannot mount lazily.
    pub(crate) fn supported() -> Option<Self> {
        Self::on(Backend::Erofs)
    }

    /// The same for one way of mounting.
    pub(crate) fn on(backend: Backend) -> Option<Self> {
        let scratch = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let supported = match backend {
            Backend::Erofs => probe(scratch.path()).map(drop),
            Backend::Fuse => probe_trees(),
        };
        match supported {
            Ok(()) => Some(scratch),
            Err(reason) => {
                println!("SKIPPED: {reason}");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A new directory in it.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// The mounts below it.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(self.path())).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in self.mounts().iter().rev() {
            let _ = lapwing_snapshotter::mountpoint::detach(mount);
        }
    }
}

/// Layers are mounted that way.
pub(crate) fn options(backend: Backend) -> Options {
    Options { backend, ..Options::default() }
}

/// Tests that hold for both ways of mounting: functions of the [`Backend`], each of which becomes two tests.
macro_rules! on_both_backends {
    ($($name:ident),+ $(,)?) => {
        mod on_erofs {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(lapwing_snapshotter::lazy::Backend::Erofs).await;
            })+
        }
        mod on_fuse {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(lapwing_snapshotter::lazy::Backend::Fuse).await;
            })+
        }
    };
}
pub(crate) use on_both_backends;

/// Makes the kernel forget what it read.
pub(crate) fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Waits until `condition` holds; a minute is given up after.
pub(crate) async fn wait_for(mut condition: impl FnMut() -> bool) {
    let patience = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition() {
        assert!(tokio::time::Instant::now() < patience, "waited for a minute");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
