//! Room: the quota with its watermarks, the free-space floor, and what is evicted for them.
//!
//! Whoever looks after the store ages it ([`ChunkStore::age`]) when it is [`ChunkStore::crowded`]: beyond the high
//! watermark, or close to the floor. A write evicts by itself only when it would go beyond the quota or the floor.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::error::StoreError;
use super::order::{Candidate, eviction_order, oldest};
use super::{BlobSummary, ChunkStore, Removal, StoreConfig, StoredBlob, lock};
use crate::digest::Digest;
use crate::discovery::Replicas;

/// For how long it is believed how many copies there are elsewhere: not long, since others evict, too.
const REPLICAS_FRESH: Duration = Duration::from_secs(60);

/// For how long a pass waits for space that its evictions freed and that the filesystem does not show yet.
const FREED_LATE: Duration = Duration::from_millis(250);

/// Limits, and the turn of those who evict.
#[derive(Debug)]
pub(super) struct Room {
    config: StoreConfig,
    turn: Mutex<()>,
    /// Use in bytes above which a write calls for ageing. Above the high watermark when the last pass found too little, so
    /// that not every write calls again.
    call_above: AtomicU64,
    crowded: Notify,
    replicas: Mutex<HashMap<Digest, (Replicas, Instant)>>,
}

/// When eviction starts, and when it ends.
#[derive(Debug, Clone, Copy)]
struct Marks {
    above: u64,
    down_to: u64,
}

impl Room {
    pub(super) fn new(config: StoreConfig) -> Self {
        let room = Self {
            config,
            turn: Mutex::new(()),
            call_above: AtomicU64::new(0),
            crowded: Notify::new(),
            replicas: Mutex::default(),
        };
        room.call_above.store(room.high(), Ordering::Relaxed);
        room
    }

    fn high(&self) -> u64 {
        self.config.quota_bytes.map_or(u64::MAX, |quota| percent(quota, self.config.high_watermark_percent))
    }

    fn low(&self) -> u64 {
        let mark = self.config.low_watermark_percent.min(self.config.high_watermark_percent);
        self.config.quota_bytes.map_or(u64::MAX, |quota| percent(quota, mark))
    }

    /// How far above the floor ageing begins; it ends twice as far.
    const fn floor_margin(&self) -> u64 {
        self.config.free_floor_bytes / 8
    }
}

const fn percent(quota: u64, percent: u8) -> u64 {
    quota / 100 * percent as u64 + quota % 100 * percent as u64 / 100
}

impl ChunkStore {
    /// Sees to it that `bytes` more can be written, under the quota and above the free-space floor. Evicts the least
    /// recently used blobs that nobody has pinned: beyond the high watermark until the low one is reached, and as many
    /// as the floor demands.
    pub fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.make_room_for(bytes, bytes, Marks { above: self.room.high(), down_to: self.room.low() })
    }

    /// Evicts down to the low watermark when the high one is exceeded, and as much again as lies between floor and the
    /// mark above it. False if what nobody needs is not enough for that.
    pub fn age(&self) -> Result<bool, StoreError> {
        let _turn = lock(&self.room.turn);
        self.keep_quota(0, Marks { above: self.room.high(), down_to: self.room.low() })?;
        let margin = self.room.floor_margin();
        if !self.floor_kept(margin)? {
            self.evict_to_floor(2 * margin)?;
        }
        Ok(self.used_bytes() <= self.room.high() && self.floor_kept(margin)?)
    }

    /// Waits until it is time to [`Self::age`].
    pub async fn crowded(&self) {
        self.room.crowded.notified().await;
    }

    /// Counts `bytes` as used and sees to it that they may be.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let used = self.root.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > self.room.call_above.load(Ordering::Relaxed) {
            self.room.crowded.notify_one();
        }
        let quota = self.room.config.quota_bytes.unwrap_or(u64::MAX);
        let marks = Marks { above: quota, down_to: self.room.high() };
        let made = match self.is_free(bytes) {
            Ok(true) if used <= quota => Ok(()),
            Ok(_) => self.make_room_for(0, bytes, marks),
            Err(error) => Err(error),
        };
        made.inspect_err(|_| {
            self.root.used.fetch_sub(bytes, Ordering::Relaxed);
        })
    }

    /// Whether `bytes` more leave the floor alone; calls for ageing when it comes close.
    fn is_free(&self, bytes: u64) -> Result<bool, StoreError> {
        let floor = self.room.config.free_floor_bytes;
        if floor == 0 {
            return Ok(true);
        }
        let left = self.root.free_bytes()?.saturating_sub(bytes);
        if left < floor + self.room.floor_margin() {
            self.room.crowded.notify_one();
        }
        Ok(left >= floor)
    }

    /// Evicts at least `bytes` if possible; whether anything was. Returns when the filesystem shows it, if it does soon.
    pub fn evict_some(&self, bytes: u64) -> bool {
        let _turn = lock(&self.room.turn);
        let before = self.used_bytes();
        let Ok(free) = self.root.free_bytes() else { return false };
        let evicted = self.evict_until(|store| Ok(before.saturating_sub(store.used_bytes()) >= bytes));
        let freed = before.saturating_sub(self.used_bytes());
        let shown = || self.wait_for_space(free.saturating_add(freed.min(bytes)), &mut { FREED_LATE });
        evicted.is_ok() && freed > 0 && shown().is_ok()
    }

    /// Evicts so many blobs if possible, whatever they hold.
    pub(super) fn evict_blobs(&self, count: usize) {
        let _turn = lock(&self.room.turn);
        for candidate in eviction_order(self.candidates(0), 0).into_iter().take(count) {
            self.evict(&candidate);
        }
    }

    /// `uncounted` bytes are to come that are not in the used ones yet; `unwritten` bytes that are not on disk yet.
    fn make_room_for(&self, uncounted: u64, unwritten: u64, marks: Marks) -> Result<(), StoreError> {
        let _turn = lock(&self.room.turn);
        self.keep_quota(uncounted, marks)?;
        let used = self.used_bytes().saturating_add(uncounted);
        if let Some(quota) = self.room.config.quota_bytes.filter(|&quota| used > quota) {
            return Err(self.no_space(format!(
                "{used} bytes are needed beside what is in use, with a quota of {quota}; raise the quota, or wait until \
                 mounts and downloads end"
            )));
        }
        self.evict_to_floor(unwritten)?;
        if !self.floor_kept(unwritten)? {
            let floor = self.room.config.free_floor_bytes;
            return Err(self.no_space(format!(
                "with {unwritten} bytes more the filesystem would have less than {floor} bytes free; free space on it, \
                 or lower the free-space floor"
            )));
        }
        Ok(())
    }

    fn keep_quota(&self, uncounted: u64, marks: Marks) -> Result<(), StoreError> {
        let Some(quota) = self.room.config.quota_bytes else { return Ok(()) };
        let wanted = |store: &Self| store.used_bytes().saturating_add(uncounted);
        if wanted(self) <= marks.above {
            return Ok(());
        }
        // What cannot succeed must not empty the cache.
        let evictable: u64 = self.candidates(1).iter().map(|candidate| candidate.bytes).sum();
        if wanted(self).saturating_sub(evictable) <= quota {
            self.evict_until(|store| Ok(wanted(store) <= marks.down_to))?;
        }
        let (used, high) = (wanted(self), self.room.high());
        let again = if used <= high { high } else { used.saturating_add(quota / 100).clamp(high, quota) };
        self.room.call_above.store(again, Ordering::Relaxed);
        Ok(())
    }

    fn no_space(&self, reason: String) -> StoreError {
        StoreError::NoSpace { path: self.root.path.display().to_string(), reason }
    }

    /// Whether the floor is kept when `bytes` more are written.
    fn floor_kept(&self, bytes: u64) -> Result<bool, StoreError> {
        let floor = self.room.config.free_floor_bytes;
        Ok(floor == 0 || self.root.free_bytes()? >= floor.saturating_add(bytes))
    }

    /// Evicts one blob after the other until `enough` or nothing is left to evict. The caller has the turn to evict.
    fn evict_until(&self, enough: impl Fn(&Self) -> Result<bool, StoreError>) -> Result<(), StoreError> {
        if enough(self)? {
            return Ok(());
        }
        let needed = self.used_bytes().saturating_sub(self.room.low());
        for candidate in eviction_order(self.candidates(1), needed) {
            self.evict(&candidate);
            if enough(self)? {
                break;
            }
        }
        Ok(())
    }

    /// Waits until so many bytes are free, while `patience` lasts. Space may come back a moment after the blob is gone: XFS
    /// frees in the background, and a process that is just being started has a copy of every descriptor.
    fn wait_for_space(&self, free: u64, patience: &mut Duration) -> Result<(), StoreError> {
        while self.root.free_bytes()? < free && !patience.is_zero() {
            let pause = Duration::from_millis(1).min(*patience);
            std::thread::sleep(pause);
            *patience -= pause;
        }
        Ok(())
    }

    /// Evicts one blob after the other until `bytes` more leave the floor alone, or nothing is left to evict. Waits for
    /// the space of each, since what else is evicted meanwhile is lost for nothing. The caller has the turn to evict.
    fn evict_to_floor(&self, bytes: u64) -> Result<(), StoreError> {
        if self.floor_kept(bytes)? {
            return Ok(());
        }
        let needed = self.used_bytes().saturating_sub(self.room.low());
        let enough = self.room.config.free_floor_bytes.saturating_add(bytes);
        let mut patience = FREED_LATE;
        for candidate in eviction_order(self.candidates(1), needed) {
            let expected = self.root.free_bytes()?.saturating_add(candidate.bytes);
            if !self.evict(&candidate) {
                continue;
            }
            self.wait_for_space(expected.min(enough), &mut patience)?;
            if self.floor_kept(bytes)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether it is gone now.
    fn evict(&self, candidate: &Candidate) -> bool {
        let digest = candidate.digest;
        match self.discard(&digest, Removal::Evicted) {
            Ok(evicted) => {
                tracing::info!(%digest, bytes = candidate.bytes, "evicted");
                return evicted;
            }
            Err(StoreError::InUse(_) | StoreError::Pinned(_)) => {}
            Err(error) => tracing::warn!(%digest, %error, "not evicted"),
        }
        false
    }

    /// The blobs that nobody uses and no operator pinned, with the bytes of their pieces.
    pub fn removable(&self) -> Vec<(Digest, u64)> {
        self.candidates(0).into_iter().map(|candidate| (candidate.digest, candidate.bytes)).collect()
    }

    /// What [`Self::removable`] would give if the one pin that the caller has on each of these were gone.
    pub fn removable_without(&self, pinned: &[Arc<StoredBlob>]) -> Vec<(Digest, u64)> {
        let mut removable = self.removable();
        let known: HashSet<Digest> = removable.iter().map(|(digest, _)| *digest).collect();
        for blob in pinned {
            let digest = blob.digest();
            let kept = self.pins.is_pinned(&digest) || self.pins.is_held(&digest);
            let kept = kept || self.summary(&digest).is_none_or(|blob| blob.foreign);
            if !kept && !known.contains(&digest) && !blob.is_removed() {
                removable.extend(blob.bytes_if_pinned_once().map(|bytes| (digest, bytes)));
            }
        }
        removable
    }

    /// The blobs that nobody needs and that hold at least so many bytes.
    fn candidates(&self, least_bytes: u64) -> Vec<Candidate> {
        let unneeded =
            |blob: &BlobSummary| !blob.in_use && !blob.pinned && !blob.foreign && blob.have_bytes >= least_bytes;
        let blobs = self.list().into_iter().filter(unneeded);
        let blobs: Vec<_> = blobs.map(|blob| (self.is_elsewhere(&blob), blob)).collect();
        let now = Instant::now();
        let mut known = lock(&self.room.replicas);
        known.retain(|_, (_, since)| now.duration_since(*since) < REPLICAS_FRESH);
        let candidate = |(elsewhere, blob): (bool, BlobSummary)| Candidate {
            digest: blob.digest,
            last_use: blob.last_use,
            bytes: blob.have_bytes,
            replicas: known.get(&blob.digest).map(|(replicas, _)| *replicas).filter(|_| blob.verified),
            elsewhere,
        };
        blobs.into_iter().map(candidate).collect()
    }

    /// The complete blobs that are next to be evicted, of which it would be good to know how many copies there are
    /// elsewhere: at most `limit`, least recently used first. None while there is nothing to evict for.
    pub fn unweighed(&self, limit: usize) -> Result<Vec<Digest>, StoreError> {
        let near = |mark: u64| self.used_bytes() > mark - mark / 20;
        if !near(self.room.high()) && self.floor_kept(3 * self.room.floor_margin())? {
            return Ok(Vec::new());
        }
        let mut candidates = self.candidates(1);
        candidates.retain(|candidate| !candidate.elsewhere);
        candidates.sort_unstable_by_key(|candidate| (candidate.last_use, candidate.digest));
        let old = oldest(&candidates, self.used_bytes().saturating_sub(self.room.low()));
        let unknown = candidates[..old].iter().filter(|candidate| candidate.replicas.is_none());
        let verified = |digest: &Digest| self.is_verified(digest);
        Ok(unknown.map(|candidate| candidate.digest).filter(verified).take(limit).collect())
    }

    /// Takes note of how many complete copies other nodes have. Believed for a minute.
    pub fn weigh(&self, replicas: impl IntoIterator<Item = (Digest, Replicas)>) {
        let now = Instant::now();
        lock(&self.room.replicas).extend(replicas.into_iter().map(|(digest, count)| (digest, (count, now))));
    }
}
