//! What is measured; each gives a rate, more of which is better.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::content::{Content, LARGE_BYTES};

const RANDOM_READS: usize = 20_000;
const RUNS: usize = 50;
/// What is warm is done again until so much time has passed.
const WARM: Duration = Duration::from_millis(500);
const PORTION: usize = 1 << 20;

type Work = fn(&Path, &Content) -> anyhow::Result<f64>;

/// One measurement.
pub(crate) struct Measurement {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    cold: bool,
    /// Does something, and says how much.
    work: Work,
}

impl Measurement {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        const MB: &str = "MB/s";
        let works: [(&str, &str, &str, Work); 6] = [
            ("sequential_cold", "sequential_warm", MB, sequential),
            ("random_4k_cold", "random_4k_warm", "reads/s", random),
            ("small_files_cold", "small_files_warm", "files/s", small_files),
            ("stat_cold", "stat_warm", "stats/s", stat),
            ("readdir_cold", "readdir_warm", "names/s", readdir),
            ("exec_cold", "exec_warm", "runs/s", exec),
        ];
        works.into_iter().flat_map(|(cold, warm, unit, work)| {
            [Self { name: cold, unit, cold: true, work }, Self { name: warm, unit, cold: false, work }]
        })
    }

    /// The rate on the tree at `root`. What is warm has just been read cold.
    pub(crate) fn take(&self, root: &Path, content: &Content) -> anyhow::Result<f64> {
        if self.cold {
            rustix::fs::sync();
            fs::write("/proc/sys/vm/drop_caches", "3").context("/proc/sys/vm/drop_caches: are you root?")?;
        } else {
            (self.work)(root, content)?;
        }
        let start = Instant::now();
        let mut done = (self.work)(root, content)?;
        while !self.cold && start.elapsed() < WARM {
            done += (self.work)(root, content)?;
        }
        Ok(done / start.elapsed().max(Duration::from_nanos(1)).as_secs_f64())
    }
}

fn sequential(root: &Path, content: &Content) -> anyhow::Result<f64> {
    let mut file = File::open(root.join(&content.large))?;
    let (mut buffer, mut total) = (vec![0; PORTION], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => total += length,
        }
    }
    anyhow::ensure!(total == LARGE_BYTES, "{total} bytes were read");
    Ok(total as f64 / 1e6)
}

fn random(root: &Path, content: &Content) -> anyhow::Result<f64> {
    let file = File::open(root.join(&content.large))?;
    let mut random = fastrand::Rng::with_seed(11);
    let mut buffer = [0; 4096];
    for _ in 0..RANDOM_READS {
        file.read_exact_at(&mut buffer, random.u64(..LARGE_BYTES as u64 / 4096) * 4096)?;
    }
    Ok(RANDOM_READS as f64)
}

fn small_files(root: &Path, content: &Content) -> anyhow::Result<f64> {
    let mut buffer = vec![0; 16 << 10];
    for path in &content.small {
        let mut file = File::open(root.join(path))?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(content.small.len() as f64)
}

fn stat(root: &Path, content: &Content) -> anyhow::Result<f64> {
    for path in &content.small {
        fs::symlink_metadata(root.join(path))?;
    }
    Ok(content.small.len() as f64)
}

fn readdir(root: &Path, content: &Content) -> anyhow::Result<f64> {
    let mut names = 0;
    for directory in &content.directories {
        for name in fs::read_dir(root.join(directory))? {
            name?;
            names += 1;
        }
    }
    anyhow::ensure!(names == content.small.len(), "{names} names");
    Ok(names as f64)
}

fn exec(root: &Path, content: &Content) -> anyhow::Result<f64> {
    for _ in 0..RUNS {
        anyhow::ensure!(Command::new(root.join(&content.program)).status()?.success(), "the program failed");
    }
    Ok(RUNS as f64)
}
