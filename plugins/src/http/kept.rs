//! The metadata of URLs, in memory and on disk, so that a restarted node revalidates instead of starting anew.
//!
//! `<root>/urls/<hex>`: one JSON file each, named by a hash of the URL and the rights it was asked for with; neither can
//! be read from it. Files are replaced atomically. After a crash the last answers may be missing: they are asked for
//! again. Old metadata is never taken for new: its age counts from when it was answered.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapwing_p2p::digest::Digest;
use lru::LruCache;

use super::cache::{Metadata, Validator};
use crate::limits::{MAX_KEPT_FILE, MAX_KEPT_URLS};

/// What is known of URLs.
pub(crate) struct Kept {
    directory: PathBuf,
    known: Mutex<LruCache<Digest, Metadata>>,
    next_file: AtomicU64,
    /// Held while a file is written or removed, so that the disk follows what is known.
    turn: Mutex<()>,
}

impl Kept {
    /// Reads what a former process left in `directory`, which is made if need be. Files that make no sense are removed.
    pub(crate) fn load(directory: PathBuf) -> std::io::Result<Arc<Self>> {
        std::fs::create_dir_all(&directory)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let key = name.to_str().and_then(|name| format!("sha256:{name}").parse::<Digest>().ok());
            let small = entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_KEPT_FILE);
            let metadata = std::fs::read(entry.path()).ok().filter(|_| small);
            let metadata = metadata.and_then(|text| serde_json::from_slice::<Metadata>(&text).ok());
            match key.zip(metadata.filter(|metadata| metadata.validator().is_some())) {
                Some(found_one) => found.push(found_one),
                None => drop(std::fs::remove_file(entry.path())),
            }
        }
        found.sort_by_key(|(_, metadata)| metadata.answered());
        let capacity = NonZeroUsize::new(MAX_KEPT_URLS).unwrap_or(NonZeroUsize::MIN);
        let known = Mutex::new(LruCache::new(capacity));
        let kept = Self { directory, known, next_file: AtomicU64::new(0), turn: Mutex::default() };
        for (key, metadata) in found {
            if let Some((evicted, _)) = kept.known().push(key, metadata) {
                kept.remove_file(&evicted);
            }
        }
        Ok(Arc::new(kept))
    }

    fn known(&self) -> MutexGuard<'_, LruCache<Digest, Metadata>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &Digest) -> Option<Metadata> {
        self.known().get(key).cloned()
    }

    /// Keeps metadata; on disk in the background.
    pub(crate) fn put(self: &Arc<Self>, key: Digest, metadata: Metadata) {
        let evicted = self.known().push(key, metadata).filter(|(evicted, _)| *evicted != key);
        let kept = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if let Some((evicted, _)) = evicted {
                kept.settle_file(&evicted);
            }
            // What is known now, not what was put: a later change may have been written already.
            if let Err(error) = kept.write(&key) {
                tracing::warn!(%error, directory = %kept.directory.display(), "metadata of a URL is not kept over a restart");
            }
        });
    }

    /// The origin has another version than `validator`'s: what is known of that is forgotten.
    pub(crate) fn outdated(self: &Arc<Self>, key: &Digest, validator: &Validator) {
        let mut known = self.known();
        if known.peek(key).is_some_and(|metadata| metadata.validator().as_ref() == Some(validator)) {
            known.pop(key);
            drop(known);
            self.forget_file(*key);
        }
    }

    /// Forgets a URL.
    pub(crate) fn forget(self: &Arc<Self>, key: &Digest) {
        if self.known().pop(key).is_some() {
            self.forget_file(*key);
        }
    }

    fn forget_file(self: &Arc<Self>, key: Digest) {
        let kept = Arc::clone(self);
        tokio::task::spawn_blocking(move || kept.settle_file(&key));
    }

    /// Removes the file of what is not known any more.
    fn settle_file(&self, key: &Digest) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.known().contains(key) {
            self.remove_file(key);
        }
    }

    fn write(&self, key: &Digest) -> std::io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(metadata) = self.known().peek(key).cloned() else { return Ok(()) };
        // Not a digest: left behind by a crash, it is removed at the next start.
        let temporary = self.directory.join(format!("new-{}", self.next_file.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&temporary, serde_json::to_vec(&metadata)?)?;
        std::fs::rename(&temporary, self.directory.join(key.hex()))
    }

    fn remove_file(&self, key: &Digest) {
        // Not there is as good.
        let _ = std::fs::remove_file(self.directory.join(key.hex()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::HeaderMap;
    use http::header::ETAG;

    use super::*;

    fn metadata(tag: &str) -> Metadata {
        let mut headers = HeaderMap::new();
        headers.insert(ETAG, tag.parse().unwrap());
        let now = SystemTime::now();
        Metadata::admit(&HeaderMap::new(), false, &headers, Some(5), (now, now)).unwrap()
    }

    /// Runs what was begun in the background to its end.
    fn run(work: impl FnOnce()) {
        // One thread takes what is queued in order; what has not begun when a runtime ends is dropped.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            work();
            tokio::task::spawn_blocking(|| ()).await.unwrap();
        });
    }

    #[test]
    fn survives_a_restart_without_nonsense() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("urls");
        let key = |name: &str| Digest::of(name.as_bytes());
        run(|| {
            let kept = Kept::load(path.clone()).unwrap();
            kept.put(key("a"), metadata("\"1\""));
            kept.put(key("b"), metadata("\"1\""));
            kept.put(key("c"), metadata("\"1\""));
            kept.forget(&key("b"));
            let tag = |text: &str| Validator::ETag(text.to_owned());
            kept.outdated(&key("a"), &tag("\"0\""));
            kept.outdated(&key("c"), &tag("\"1\""));
        });
        let torn = key("torn").hex();
        for (name, text) in [("new-7", "{"), (torn.as_str(), "{\"length\":"), ("../x", ""), ("notes", "x")] {
            let _ = std::fs::write(path.join(name), text);
        }
        run(|| {
            let kept = Kept::load(path.clone()).unwrap();
            assert_eq!(kept.get(&key("a")).unwrap().validator(), metadata("\"1\"").validator());
            assert!(kept.get(&key("b")).is_none() && kept.get(&key("c")).is_none());
        });
        let left: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [std::ffi::OsString::from(key("a").hex())]);
    }

    #[test]
    fn their_number_is_bounded_on_disk_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        run(|| {
            let kept = Kept::load(path.clone()).unwrap();
            for number in 0..MAX_KEPT_URLS + 20 {
                kept.put(Digest::of(&number.to_be_bytes()), metadata("\"1\""));
            }
        });
        let left = std::fs::read_dir(&path).unwrap().count();
        assert!(left <= MAX_KEPT_URLS, "{left} files");
    }
}
