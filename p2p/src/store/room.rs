//! Room: the quota, the free-space floor, and what is evicted for them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::error::StoreError;
use super::{ChunkStore, StoreConfig, disk, lock};
use crate::digest::Digest;

/// Percent of the quota above which eviction starts.
const HIGH_WATERMARK: u64 = 90;
/// Percent of the quota at which eviction ends.
const LOW_WATERMARK: u64 = 80;

/// Limits, and the turn of those who evict.
#[derive(Debug)]
pub(super) struct Room {
    config: StoreConfig,
    turn: Mutex<()>,
    /// Use in bytes above which a write starts eviction. Above the high watermark when the last pass found too little,
    /// so that not every write looks again.
    evict_above: AtomicU64,
}

impl Room {
    pub(super) fn new(config: StoreConfig) -> Self {
        let evict_above = config.quota_bytes.map_or(u64::MAX, |quota| percent(quota, HIGH_WATERMARK));
        Self { config, turn: Mutex::new(()), evict_above: AtomicU64::new(evict_above) }
    }
}

const fn percent(quota: u64, percent: u64) -> u64 {
    quota / 100 * percent + quota % 100 * percent / 100
}

impl ChunkStore {
    /// Sees to it that `bytes` more can be written, under the quota and above the free-space floor. Evicts the least
    /// recently used blobs that nobody has pinned: beyond 90 % of the quota until 80 % are left, and as many as the
    /// floor demands.
    pub fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.make_room_for(bytes, bytes)
    }

    /// Counts `bytes` as used and sees to it that they may be.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let used = self.root.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let made = if used > self.room.evict_above.load(Ordering::Relaxed) {
            self.make_room_for(0, bytes)
        } else {
            self.floor_kept(bytes).and_then(|kept| if kept { Ok(()) } else { self.make_room_for(0, bytes) })
        };
        made.inspect_err(|_| {
            self.root.used.fetch_sub(bytes, Ordering::Relaxed);
        })
    }

    /// Evicts at least `bytes` if possible; whether anything was.
    pub(super) fn evict_some(&self, bytes: u64) -> bool {
        let _turn = lock(&self.room.turn);
        let before = self.used_bytes();
        self.evict_until(|store| Ok(before.saturating_sub(store.used_bytes()) >= bytes)).is_ok()
            && self.used_bytes() < before
    }

    /// `uncounted` bytes are to come that are not in the used ones yet; `unwritten` bytes that are not on disk yet.
    fn make_room_for(&self, uncounted: u64, unwritten: u64) -> Result<(), StoreError> {
        let _turn = lock(&self.room.turn);
        self.keep_quota(uncounted)?;
        self.evict_until(|store| store.floor_kept(unwritten))?;
        if !self.floor_kept(unwritten)? {
            let floor = self.room.config.free_floor_bytes;
            return Err(self.no_space(format!(
                "with {unwritten} bytes more the filesystem would have less than {floor} bytes free; free space on it, \
                 or lower the free-space floor"
            )));
        }
        Ok(())
    }

    fn keep_quota(&self, uncounted: u64) -> Result<(), StoreError> {
        let Some(quota) = self.room.config.quota_bytes else { return Ok(()) };
        let (low, high) = (percent(quota, LOW_WATERMARK), percent(quota, HIGH_WATERMARK));
        let wanted = |store: &Self| store.used_bytes().saturating_add(uncounted);
        if wanted(self) <= high {
            return Ok(());
        }
        // What cannot succeed must not empty the cache.
        let evictable: u64 = self.list().iter().filter(|blob| !blob.pinned).map(|blob| blob.have_bytes).sum();
        if wanted(self).saturating_sub(evictable) <= quota {
            self.evict_until(|store| Ok(wanted(store) <= low))?;
        }
        let used = wanted(self);
        let again = if used <= low { high } else { used.saturating_add(quota / 100).clamp(high, quota) };
        self.room.evict_above.store(again, Ordering::Relaxed);
        if used > quota {
            return Err(self.no_space(format!(
                "{used} bytes are needed beside what is in use, with a quota of {quota}; raise the quota, or wait until \
                 mounts and downloads end"
            )));
        }
        Ok(())
    }

    fn no_space(&self, reason: String) -> StoreError {
        StoreError::NoSpace { path: self.root.path.display().to_string(), reason }
    }

    /// Whether the floor is kept when `bytes` more are written.
    fn floor_kept(&self, bytes: u64) -> Result<bool, StoreError> {
        let floor = self.room.config.free_floor_bytes;
        Ok(floor == 0 || disk::free_bytes(&self.root.path)? >= floor.saturating_add(bytes))
    }

    /// Evicts one blob after the other, least recently used first, until `enough` or nothing is left to evict.
    fn evict_until(&self, enough: impl Fn(&Self) -> Result<bool, StoreError>) -> Result<(), StoreError> {
        if enough(self)? {
            return Ok(());
        }
        for (_, digest) in self.eviction_order() {
            match self.remove(&digest) {
                Ok(removed) => tracing::info!(%digest, removed, "evicted"),
                Err(StoreError::InUse(_)) => {}
                Err(error) => tracing::warn!(%digest, %error, "not evicted"),
            }
            if enough(self)? {
                break;
            }
        }
        Ok(())
    }

    fn eviction_order(&self) -> Vec<(SystemTime, Digest)> {
        let unpinned = self.list().into_iter().filter(|blob| !blob.pinned && blob.have_bytes > 0);
        let mut order: Vec<_> = unpinned.map(|blob| (blob.last_use, blob.digest)).collect();
        order.sort_unstable();
        order
    }
}
