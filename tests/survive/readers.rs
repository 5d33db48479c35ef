//! Threads that read the files of running containers again and again, from the device each time, and hold them against their digests.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lapwing_lab::image::Noise;
use lapwing_lab::wait::{self, Poll};
use rustix::fs::Advice;
use sha2::{Digest as _, Sha256};

const DEADLINE: Duration = Duration::from_secs(120);
/// Readers in each container.
const THREADS: usize = 4;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Files that each thread has read.
    reads: Vec<AtomicU64>,
    failures: Mutex<Vec<String>>,
    /// Bytes of files that were right, and of files that were not.
    right: AtomicU64,
    wrong: AtomicU64,
    /// The longest that one call of read(2) or open(2) took.
    stall: Mutex<Duration>,
}

/// Running readers.
pub(crate) struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Threads for each container's root, which read all files of its image, each from elsewhere on.
    pub(crate) fn start(containers: &[(PathBuf, &Noise)]) -> Self {
        let reads = (0..containers.len() * THREADS).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { reads, ..Shared::default() });
        let readers = containers.iter().flat_map(|container| (0..THREADS).map(move |thread| (thread, container)));
        let threads = readers
            .enumerate()
            .map(|(number, (thread, (root, image)))| {
                let (shared, root, mut sums) = (shared.clone(), root.clone(), lines_of(image));
                let first = thread * sums.len() / THREADS;
                sums.rotate_left(first);
                std::thread::spawn(move || shared.read_all(&root, &sums, &shared.reads[number]))
            })
            .collect();
        Self { shared, threads }
    }

    /// Waits until each thread has read so many files more.
    pub(crate) fn wait_for_reads(&self, files: u64) {
        let before = self.reads();
        wait::until("every reader to get on", DEADLINE, || {
            let slowest = self.reads().iter().zip(&before).map(|(now, before)| now - before).min();
            Ok(if slowest >= Some(files) { Poll::Ready(()) } else { Poll::NotYet(format!("{slowest:?} of {files}")) })
        })
        .unwrap();
    }

    /// Waits until no thread gets on, because nobody answers.
    pub(crate) fn wait_until_stuck(&self) {
        let mut before = Vec::new();
        wait::until_true("readers to wait for the node", DEADLINE, || {
            std::thread::sleep(Duration::from_millis(300));
            self.reads() == std::mem::replace(&mut before, self.reads())
        })
        .unwrap();
    }

    fn reads(&self) -> Vec<u64> {
        self.shared.reads.iter().map(|reads| reads.load(Ordering::SeqCst)).collect()
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap().clone()
    }

    /// Bytes read so far that were right, and bytes that were not.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.shared.right.load(Ordering::SeqCst), self.shared.wrong.load(Ordering::SeqCst))
    }

    /// The longest stall since the last time that this was asked.
    pub(crate) fn take_stall(&self) -> Duration {
        std::mem::take(&mut *self.shared.stall.lock().unwrap())
    }

    /// Ends them; what failed.
    pub(crate) fn stop(mut self) -> Vec<String> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let ended = || self.threads.iter().all(JoinHandle::is_finished);
        wait::until_true("every reader to end", DEADLINE, ended).unwrap();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.failures()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// Digests and paths of an image's files.
fn lines_of(image: &Noise) -> Vec<(String, String)> {
    let lines = image.sums.lines().map(|line| line.split_once("  /").unwrap());
    lines.map(|(sum, path)| (sum.to_owned(), path.to_owned())).collect()
}

impl Shared {
    fn read_all(&self, root: &Path, sums: &[(String, String)], reads: &AtomicU64) {
        for (sum, path) in sums.iter().cycle() {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            match self.read(&root.join(path)) {
                Ok((found, bytes)) if found == *sum => {
                    self.right.fetch_add(bytes, Ordering::SeqCst);
                }
                Ok((found, bytes)) => {
                    self.wrong.fetch_add(bytes, Ordering::SeqCst);
                    self.failures.lock().unwrap().push(format!("{path}: {found} for {sum}"));
                }
                Err(error) => self.failures.lock().unwrap().push(format!("{path}: {error}")),
            }
            reads.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Digest and length.
    fn read(&self, path: &Path) -> std::io::Result<(String, u64)> {
        let mut file = self.timed(|| File::open(path))?;
        // Out of the page cache, so that the device is asked each time.
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        let (mut hash, mut buffer, mut bytes) = (Sha256::new(), vec![0; 128 << 10], 0);
        loop {
            match self.timed(|| file.read(&mut buffer))? {
                0 => break,
                length => {
                    hash.update(&buffer[..length]);
                    bytes += length as u64;
                }
            }
        }
        Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), bytes))
    }

    fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let outcome = call();
        let took = start.elapsed();
        let mut stall = self.stall.lock().unwrap();
        *stall = took.max(*stall);
        outcome
    }
}
