//! The tars of layers that this node reads as a whole for their index, kept until containerd would have them unpacked.
//!
//! Written in the pass that builds the index, so that nothing is inflated twice. Only where containerd has Lapwing's differ, since
//! elsewhere it unpacks the layer itself; and no more once many were written that nobody asked for, until somebody asks.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapwing_p2p::digest::Digest;
use lapwing_plugins::containerd::Containerd;
use lapwing_snapshotter::lazy::{LazyMounts, TarWriter, WholeTar};

/// For how long it is believed what differs containerd has.
const DIFFER_FRESH: Duration = Duration::from_secs(60);
/// How long a tar waits for somebody to ask for the layer: a large image's last layer is there minutes after the first.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Most tars that wait.
const MAX_KEPT: usize = 512;
/// After so many that nobody asked for, one after the other, none is written.
const MAX_UNUSED: u32 = 32;

/// See the module's documentation.
pub(crate) struct Tars {
    mounts: Arc<LazyMounts>,
    containerd: Containerd,
    /// Where the differ is.
    socket: PathBuf,
    /// Bytes that stay free on the disk.
    floor: u64,
    has_differ: tokio::sync::Mutex<Option<(Instant, bool)>>,
    kept: Mutex<HashMap<Digest, (Instant, WholeTar)>>,
    unused: AtomicU32,
}

impl Tars {
    pub(crate) fn new(mounts: Arc<LazyMounts>, containerd: Containerd, socket: PathBuf, floor: u64) -> Self {
        let (has_differ, kept) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { mounts, containerd, socket, floor, has_differ, kept, unused: AtomicU32::new(0) }
    }

    /// Takes the tar of a layer that is about to be read, if somebody would use it.
    pub(super) async fn writer(&self) -> Option<TarWriter> {
        if self.unused.load(Ordering::Relaxed) >= MAX_UNUSED || !self.has_differ().await {
            return None;
        }
        let unsupported = |error: &std::io::Error| tracing::debug!(%error, "tars are not written as layers come");
        self.mounts.tar_writer(self.floor).inspect_err(unsupported).ok()
    }

    async fn has_differ(&self) -> bool {
        let mut known = self.has_differ.lock().await;
        if let Some((at, has)) = *known
            && at.elapsed() < DIFFER_FRESH
        {
            return has;
        }
        let asked = self.containerd.has_differ(&self.socket).await;
        let has = asked.unwrap_or_else(|error| {
            tracing::debug!(%error, "it is not known whether containerd has Lapwing's differ");
            false
        });
        *known = Some((Instant::now(), has));
        has
    }

    /// Keeps one for [`Self::take`]. Its way to the disk begins now.
    pub(super) fn keep(&self, layer: Digest, tar: WholeTar) {
        self.forget_old();
        let mut kept = self.lock();
        if kept.len() >= MAX_KEPT {
            return;
        }
        let former = kept.insert(layer, (Instant::now(), tar.clone()));
        drop(kept);
        tokio::task::spawn_blocking(move || {
            drop(former);
            // A failure is met again, and told, by who takes it.
            let _ = tar.sync();
        });
    }

    /// Somebody would have layers mounted in the place of unpacking them.
    pub(super) fn asked(&self) {
        self.unused.store(0, Ordering::Relaxed);
    }

    pub(super) fn take(&self, layer: &Digest) -> Option<WholeTar> {
        self.lock().remove(layer).map(|(_, tar)| tar)
    }

    /// Gives up those that nobody asked for.
    pub(super) fn forget_old(&self) {
        let mut kept = self.lock();
        let old: Vec<_> = kept.extract_if(|_, (at, _)| at.elapsed() >= KEPT_FOR).collect();
        drop(kept);
        if old.is_empty() {
            return;
        }
        let unused = u32::try_from(old.len()).unwrap_or(u32::MAX);
        // It may be gigabytes that the filesystem has to free.
        tokio::task::spawn_blocking(move || drop(old));
        // Wraps after more layers than a machine sees.
        self.unused.fetch_add(unused, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, (Instant, WholeTar)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
