//! The tracker's file for its next start: a [`Dump`](crate::registry::Dump), written about once a minute and at the end.
//!
//! After a crash the file of before is there, or the new one: it is replaced by renaming. It may name what is long gone;
//! the nodes put that right when they call.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Tracker;
use crate::limits::{DUMP_PERIOD, MAX_DUMP_AGE};
use crate::registry::{DumpError, Restored};

/// Where a tracker keeps what its next start begins with.
#[derive(Debug, Clone)]
pub struct Keeping {
    file: PathBuf,
}

impl Keeping {
    /// The file; its directory is made when it is written.
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Takes in what an earlier tracker left, unless it is too old. A file that cannot be used is no reason not to start:
    /// it is named in the log, and the nodes tell everything in any case. Blocks.
    pub fn restore(&self, tracker: &Tracker) {
        let path = self.file.display().to_string();
        let from = match File::open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                return tracing::warn!(path, %error, "what the last tracker knew cannot be read: nodes will tell");
            }
        };
        // Half of a damaged file is not wanted: it is taken in aside.
        let mut restored = tracker.registry().fresh();
        let outcome = restored.restore((tracker.clock)(), BufReader::with_capacity(1 << 20, from));
        match outcome {
            Ok(what) if age(&what) <= MAX_DUMP_AGE => {
                tracing::info!(
                    path,
                    nodes = what.nodes,
                    holdings = what.holdings,
                    "tracker goes on with what the last one knew"
                );
                *tracker.registry() = restored;
            }
            Ok(what) => {
                let age_s = age(&what).as_secs();
                tracing::info!(path, age_s, "what the last tracker knew is too old: nodes will tell");
            }
            Err(error) => log_unusable(&path, &error),
        }
    }

    /// Writes what the tracker knows now. Blocks; the tracker is locked for a moment at a time.
    pub fn write(&self, tracker: &Tracker) -> io::Result<()> {
        let directory = self.file.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let next = self.file.with_extension("next");
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&next)?);
        let (mut slice, mut more) = (Vec::new(), true);
        let mut dump = tracker.registry().begin_dump(now_s(), &mut slice);
        while more {
            more = tracker.registry().dump_some(&mut dump, &mut slice);
            file.write_all(&slice)?;
            slice.clear();
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&next, &self.file)?;
        File::open(directory)?.sync_all()
    }

    /// Writes from time to time, as long as it is polled.
    pub async fn keep(&self, tracker: &Tracker) {
        loop {
            tokio::time::sleep(DUMP_PERIOD.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
            self.write_aside(tracker).await;
        }
    }

    /// Writes in a thread of its own; a failure is said and tried again later.
    pub async fn write_aside(&self, tracker: &Tracker) {
        let (keeping, tracker) = (self.clone(), tracker.clone());
        let written = tokio::task::spawn_blocking(move || keeping.write(&tracker)).await;
        if let Ok(Err(error)) = written {
            let path = self.file.display().to_string();
            tracing::warn!(path, %error, "what the tracker knows is not kept for its next start; free space, or check the directory");
        }
    }
}

fn log_unusable(path: &str, error: &DumpError) {
    tracing::warn!(path, %error, "what the last tracker knew is of no use: nodes will tell");
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn age(restored: &Restored) -> Duration {
    Duration::from_secs(now_s().saturating_sub(restored.made_at_s))
}
