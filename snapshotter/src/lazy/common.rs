//! What all lazy layers of a node share: the CPU that inflates them, the descriptors of their files, and who takes down what is read.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use tokio::sync::Semaphore;

use super::recorder::Recorder;
use crate::limits::MAX_OPEN_LAYER_FILES;

/// Shared by layers that are opened with the same value.
#[derive(Debug)]
pub struct Common {
    pub(super) inflations: Arc<Semaphore>,
    /// For spans that nobody waits for, who take one of `inflations` as well: one is left to those that somebody waits for.
    pub(super) patient: Arc<Semaphore>,
    pub(super) files: OpenFiles,
    pub(super) recorder: Recorder,
}

impl Common {
    /// At most `inflations` spans (one at least) are inflated at once.
    pub fn new(inflations: usize) -> Self {
        let inflations = inflations.max(1);
        Self {
            inflations: Arc::new(Semaphore::new(inflations)),
            patient: Arc::new(Semaphore::new((inflations - 1).max(1))),
            files: OpenFiles::new(MAX_OPEN_LAYER_FILES),
            recorder: Recorder::default(),
        }
    }

    /// Takes down what is read of these layers.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }
}

/// Tars and images that were used last, open: a machine has many more layers than are being read. One that is closed is
/// opened again when it is read again.
#[derive(Debug)]
pub(super) struct OpenFiles {
    open: Mutex<LruCache<u64, Arc<File>>>,
    next: AtomicU64,
}

impl OpenFiles {
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self { open: Mutex::new(LruCache::new(most)), next: AtomicU64::new(0) }
    }

    /// A number for a file, which it alone has: paths may be used again.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The file with this number, which is at `path`.
    pub(super) fn get(&self, number: u64, path: &Path) -> io::Result<Arc<File>> {
        if let Some(file) = self.lock().get(&number) {
            return Ok(Arc::clone(file));
        }
        // Two that come at once open it twice, and one of these is closed: no lock is held meanwhile.
        let file = Arc::new(File::options().read(true).write(true).open(path)?);
        self.lock().put(number, Arc::clone(&file));
        Ok(file)
    }

    /// Closes it, once nobody uses it.
    pub(super) fn close(&self, number: u64) {
        self.lock().pop(&number);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<u64, Arc<File>>> {
        // Every change is one step.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn the_least_recently_used_is_closed_and_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let files = OpenFiles::new(NonZeroUsize::new(2).unwrap());
        let places: Vec<_> = (0..3).map(|place| (files.number(), directory.path().join(place.to_string()))).collect();
        for (number, path) in &places {
            std::fs::write(path, number.to_string()).unwrap();
        }
        let get = |place: usize| files.get(places[place].0, &places[place].1).unwrap();
        let first = Arc::downgrade(&get(0));
        get(1);
        assert!(first.upgrade().is_some());
        get(2);
        assert!(first.upgrade().is_none(), "closed");
        let mut byte = [0];
        get(0).read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, *b"0");
        files.close(places[0].0);
        std::fs::remove_file(&places[0].1).unwrap();
        assert!(files.get(places[0].0, &places[0].1).is_err());
    }
}
