//! The three acts.

use crate::command::Running;
use crate::progress::{Links, Progress};
use crate::stage::Stage;
use crate::text_of;
use anyhow::{Context, Result, anyhow};
use lapwing_lab::image::MAIN_OUTPUT;
use lapwing_lab::{Machine, check, tree};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const INDEXES: Duration = Duration::from_secs(120);
/// How often the bytes of the cold swarm are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Differences that are shown.
const SHOWN: usize = 10;

/// What a worker did, in seconds and bytes on interfaces.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    /// Sent by the registry.
    pub(crate) registry_bytes: u64,
    /// Received by the workers in all.
    pub(crate) received_bytes: u64,
    /// Whether the containers printed what they should.
    pub(crate) output_right: bool,
}

/// The cold swarm.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cold {
    pub(crate) measured: Measured,
    /// Seconds of each worker.
    pub(crate) each_s: Vec<f64>,
    /// Seconds until the bytes had arrived at the last; the rest is unpacking.
    pub(crate) arrived_s: f64,
}

/// The lazy start, and what its root filesystem held when all of it was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lazy {
    pub(crate) measured: Measured,
    pub(crate) files_verified: usize,
    /// Differences from the baseline's root filesystem; empty when there are none.
    pub(crate) differences: String,
}

/// One worker pulls with plain containerd and runs the container.
pub(crate) fn baseline(stage: &Stage, progress: &mut Progress) -> Result<Measured> {
    progress
        .step("(a) baseline: plain containerd pulls from the registry, unpacks with overlayfs and runs the container");
    let measured = pull_and_run(stage, progress, &stage.plain, "overlayfs")?;
    progress.step(&format!("    first output after {:.2} s", measured.seconds));
    Ok(measured)
}

/// Three workers pull at the same moment, whole; then the indexes that they build are waited for.
pub(crate) fn cold(stage: &Stage, progress: &mut Progress) -> Result<Cold> {
    progress
        .step("(b) cold swarm: three workers pull whole through Lapwing at the same moment, unpacking with overlayfs");
    let links =
        Links { registry: stage.registry.host(), workers: stage.cold.iter().map(|worker| &worker.host).collect() };
    let before = counters(stage, &links)?;
    let mut pulls = Vec::new();
    for worker in &stage.cold {
        pulls.push(pull(stage, worker, "overlayfs")?);
    }
    let mut arrival = Arrival::start(&stage.cold, stage.image.compressed_bytes())?;
    progress.until(&links, String::new, || {
        arrival.look(&stage.cold)?;
        all(&mut pulls, Running::ended)
    })?;
    let each_s: Vec<f64> = pulls.iter().filter_map(Running::took).map(|took| took.as_secs_f64()).collect();
    let seconds = each_s.iter().copied().fold(0.0, f64::max);
    let arrived_s = arrival.arrived_s.unwrap_or(seconds);
    progress
        .step(&format!("    all bytes were there after {arrived_s:.2} s, unpacked on the last after {seconds:.2} s"));
    progress.step("    waiting for the indexes that they build and share");
    indexed(stage, progress, &links)?;
    // Later traffic of the same pulls counts as well.
    let after = counters(stage, &links)?;
    let mut output_right = true;
    for worker in &stage.cold {
        let mut run = run(stage, worker, "overlayfs")?;
        progress.until(&links, String::new, || run.ended())?;
        output_right &= run.output() == MAIN_OUTPUT;
    }
    progress.step("    every layer is indexed; the container runs on all three");
    let (registry_bytes, received_bytes) = (after.0 - before.0, after.1 - before.1);
    Ok(Cold { measured: Measured { seconds, registry_bytes, received_bytes, output_right }, each_s, arrived_s })
}

/// A fresh worker starts the container lazily; then all files are read and compared.
pub(crate) fn lazy(stage: &Stage, progress: &mut Progress) -> Result<Lazy> {
    progress.step("(c) lazy: a fresh worker starts the container from layers that are mounted and not pulled");
    progress.step("    (its background completion is off, lazy.complete_after = \"0\", so that only what the start reads is counted)");
    let measured = pull_and_run(stage, progress, &stage.lazy, "lapwing")?;
    let megabytes = measured.received_bytes as f64 / 1e6;
    progress.step(&format!("    first output after {:.2} s and {megabytes:.1} MB", measured.seconds));
    progress.step(
        "    reading every file of it, and comparing with the baseline's: content, mode, owner, times, links, xattrs",
    );
    let (files_verified, differences) = compare(stage, progress)?;
    progress.step(&format!("    {files_verified} files, directories and links are equal"));
    Ok(Lazy { measured, files_verified, differences })
}

/// From the pull command to the container's first output.
fn pull_and_run(stage: &Stage, progress: &Progress, worker: &Machine, snapshotter: &str) -> Result<Measured> {
    let links = Links { registry: stage.registry.host(), workers: vec![&worker.host] };
    let before = counters(stage, &links)?;
    let started = Instant::now();
    let mut pulling = pull(stage, worker, snapshotter)?;
    progress.until(&links, || "pulling".into(), || pulling.ended())?;
    progress.step(&format!("    pulled after {:.2} s", started.elapsed().as_secs_f64()));
    let mut container = run(stage, worker, snapshotter)?;
    progress.until(&links, || "starting".into(), || container.has_printed())?;
    let after = counters(stage, &links)?;
    let first = container.first_line().context("a line was printed")?;
    progress.until(&links, || "running".into(), || container.ended())?;
    Ok(Measured {
        seconds: first.duration_since(started).as_secs_f64(),
        registry_bytes: after.0 - before.0,
        received_bytes: after.1 - before.1,
        output_right: container.output() == MAIN_OUTPUT,
    })
}

fn pull(stage: &Stage, worker: &Machine, snapshotter: &str) -> Result<Running> {
    let mut command = worker.containerd.ctr()?;
    command.args(["images", "pull", "--snapshotter", snapshotter, "--hosts-dir"]).arg(worker.containerd.hosts_dir());
    command.arg(&stage.reference);
    let name = format!("the pull on {}", worker.host.name());
    Running::start(&name, &mut command, worker.host.dir().join("pull.err"))
}

fn run(stage: &Stage, worker: &Machine, snapshotter: &str) -> Result<Running> {
    let mut command = worker.containerd.run_command(&["--rm"], &stage.reference, snapshotter, "demo")?;
    let name = format!("the container on {}", worker.host.name());
    Running::start(&name, &mut command, worker.host.dir().join("run.err"))
}

/// Bytes sent by the registry, and received by the workers together.
fn counters(stage: &Stage, links: &Links<'_>) -> Result<(u64, u64)> {
    let mut received = 0;
    for worker in &links.workers {
        received += worker.received_bytes()?;
    }
    Ok((stage.registry.sent_bytes()?, received))
}

/// Watches for the moment when every worker has received as many bytes as the image has.
struct Arrival {
    started: Instant,
    looked: Instant,
    goals: Vec<u64>,
    arrived_s: Option<f64>,
}

impl Arrival {
    fn start(workers: &[Machine], image_bytes: u64) -> Result<Self> {
        let goals: Result<Vec<u64>> =
            workers.iter().map(|worker| Ok(worker.host.received_bytes()? + image_bytes)).collect();
        let now = Instant::now();
        Ok(Self { started: now, looked: now, goals: goals?, arrived_s: None })
    }

    fn look(&mut self, workers: &[Machine]) -> Result<()> {
        if self.arrived_s.is_some() || self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        for (worker, goal) in workers.iter().zip(&self.goals) {
            if worker.host.received_bytes()? < *goal {
                return Ok(());
            }
        }
        self.arrived_s = Some(self.started.elapsed().as_secs_f64());
        Ok(())
    }
}

fn all(running: &mut [Running], mut holds: impl FnMut(&mut Running) -> Result<bool>) -> Result<bool> {
    let mut every = true;
    for one in running {
        every &= holds(one)?;
    }
    Ok(every)
}

/// Waits until every layer has an index that some worker built.
fn indexed(stage: &Stage, progress: &Progress, links: &Links<'_>) -> Result<()> {
    let layers = stage.image.layers.len();
    let started = Instant::now();
    let built = || -> usize {
        let logs = stage.cold.iter().map(|worker| text_of(&worker.host.dir().join("lapwing.log")));
        let indexed: BTreeSet<String> = logs.flat_map(|log| layers_indexed(&log)).collect();
        indexed.len()
    };
    progress.until(
        links,
        || format!("{} of {layers} layers indexed", built()),
        || {
            if started.elapsed() > INDEXES {
                return Err(anyhow!("{} of {layers} layers were indexed in {INDEXES:?}", built()));
            }
            Ok(built() == layers)
        },
    )
}

/// The digests of the layers whose indexes a node says it has built.
fn layers_indexed(log: &str) -> Vec<String> {
    let lines = log.lines().filter(|line| line.contains("built the index of a layer"));
    let digest = |line: &str| line.split("digest=").nth(1)?.split_whitespace().next().map(str::to_owned);
    lines.filter_map(digest).collect()
}

/// Reads the root filesystems of both kinds whole; how many files are equal, and what is not.
fn compare(stage: &Stage, progress: &Progress) -> Result<(usize, String)> {
    let ours = mounted(stage, &stage.lazy, "lapwing")?;
    let theirs = mounted(stage, &stage.plain, "overlayfs")?;
    let links = Links { registry: stage.registry.host(), workers: vec![&stage.lazy.host] };
    let (mut ours, theirs) = std::thread::scope(|scope| -> Result<_> {
        let ours = scope.spawn(|| tree::digest_walk(&ours));
        let theirs = scope.spawn(|| tree::digest_walk(&theirs));
        progress.until(&links, || "reading".into(), || Ok(ours.is_finished() && theirs.is_finished()))?;
        let joined =
            |result: std::thread::Result<_>| result.unwrap_or_else(|_| Err(anyhow!("reading the files panicked")));
        Ok((joined(ours.join())?, joined(theirs.join())?))
    })?;
    // containerd skips a layer's entry for the root itself: there the time is the moment of unpacking, on each machine another.
    if let (Some(our_root), Some(their_root)) = (ours.get_mut(Path::new("")), theirs.get(Path::new(""))) {
        our_root.mtime = their_root.mtime;
    }
    let equal = ours.iter().filter(|(path, node)| theirs.get(*path) == Some(node)).count();
    Ok((equal, tree::differences(&theirs, &ours, SHOWN)))
}

/// The image's root filesystem, mounted read-only on the worker; the mount ends with the worker.
fn mounted(stage: &Stage, worker: &Machine, snapshotter: &str) -> Result<PathBuf> {
    let target = worker.host.dir().join("rootfs");
    std::fs::create_dir(&target)?;
    let mut command = worker.containerd.ctr()?;
    command.args(["images", "mount", "--snapshotter", snapshotter, &stage.reference]).arg(&target);
    check(&mut command).context("mounting the image to compare its files")?;
    Ok(worker.host.path(&target))
}
