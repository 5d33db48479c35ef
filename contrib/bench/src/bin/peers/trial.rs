//! One system does the work once.

use crate::stage::{Stage, Worker};
use crate::system::{Daemon, System};
use crate::usage::{cpu_s, status_mb};
use crate::work::{Start, Work};
use anyhow::{Context, Result, ensure};
use lapwing_lab::check;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Daemons have so long to find each other before work begins, and are then called idle.
const SETTLE: Duration = Duration::from_secs(10);

/// The first to have an image is given so long to become a source.
const TELL: Duration = Duration::from_secs(20);

/// What was seen.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) bytes: u64,
    /// From the beginning of the first worker's fetch; of the others alone, when the first began before them.
    pub(crate) last_s: f64,
    pub(crate) p50_s: f64,
    pub(crate) bound_s: f64,
    pub(crate) efficiency: f64,
    /// Bytes on the registry's interface, headers included, by those of the image.
    pub(crate) registry_copies: f64,
    /// Of the system's own processes, containerd not among them, for each GB that workers received.
    pub(crate) cpu_s_per_gb: f64,
    /// Of the largest process on a worker.
    pub(crate) rss_idle_mb: f64,
    pub(crate) rss_max_mb: f64,
}

impl Run {
    pub(crate) fn summary(&self) -> String {
        format!(
            "last {:.2} s, half {:.2} s, {:.2} of the bound, {:.2} copies, {:.2} CPU s/GB, {:.0} MB idle, {:.0} MB at most",
            self.last_s,
            self.p50_s,
            self.efficiency,
            self.registry_copies,
            self.cpu_s_per_gb,
            self.rss_idle_mb,
            self.rss_max_mb
        )
    }
}

pub(crate) fn run(system: System, work: &Work) -> Result<Run> {
    let mut stage = Stage::set(system, work)?;
    std::thread::sleep(SETTLE);
    let pids: Vec<u32> =
        stage.workers.iter_mut().filter_map(|worker| worker.daemon.as_mut().map(Daemon::pid)).collect();
    let all: Vec<u32> = pids.iter().copied().chain(stage.shared.as_mut().map(Daemon::pid)).collect();
    let most = |name: &str| pids.iter().map(|pid| status_mb(*pid, name)).fold(0.0, f64::max);
    let used = || all.iter().map(|pid| cpu_s(*pid)).sum::<f64>();
    let (idle, cpu, sent) = (most("VmRSS"), used(), stage.registry.sent_bytes()?);

    let mut times = fetch_all(&stage, work)?;
    times.sort_by(f64::total_cmp);
    let last_s = times.last().copied().context("nobody fetched")?;
    let bound_s = work.bound_s(stage.bytes);
    let received = stage.bytes as f64 * work.workers as f64;
    Ok(Run {
        bytes: stage.bytes,
        last_s,
        p50_s: times[times.len() / 2],
        bound_s,
        efficiency: bound_s / last_s,
        registry_copies: (stage.registry.sent_bytes()? - sent) as f64 / stage.bytes as f64,
        cpu_s_per_gb: (used() - cpu) / (received / 1e9),
        rss_idle_mb: idle,
        rss_max_mb: most("VmHWM"),
    })
}

/// Seconds until each worker that counts had everything.
fn fetch_all(stage: &Stage, work: &Work) -> Result<Vec<f64>> {
    let (early, workers) = match work.start {
        Start::WithoutRegistry => stage.workers.split_at(1),
        Start::Together | Start::Every(_) => stage.workers.split_at(0),
    };
    for worker in early {
        fetch(stage, worker)?;
        // Whoever tells others only of what is whole has the time to do so.
        std::thread::sleep(TELL);
        stage.registry.host().set_link(false)?;
    }
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..)
            .zip(workers)
            .map(|(number, worker)| {
                scope.spawn(move || {
                    if let Start::Every(pause) = work.start {
                        std::thread::sleep(pause * number);
                    }
                    fetch(stage, worker)?;
                    anyhow::Ok(begun.elapsed().as_secs_f64())
                })
            })
            .collect();
        let joined =
            fetches.into_iter().map(|fetch| fetch.join().unwrap_or_else(|_| anyhow::bail!("a panic while fetching")));
        joined.collect()
    })
}

/// Fetches the image's content by containerd, and makes sure that containerd has it.
fn fetch(stage: &Stage, worker: &Worker) -> Result<()> {
    let mut ctr = worker.containerd.ctr()?;
    ctr.args(["content", "fetch", "--hosts-dir"]).arg(worker.containerd.hosts_dir()).arg(&stage.reference);
    let told = || worker.daemon.as_ref().map_or_else(String::new, Daemon::last_words);
    check(&mut ctr).with_context(|| format!("{} could not fetch; {}", worker.host.name(), told()))?;
    let content = check(worker.containerd.ctr()?.args(["content", "ls"]))?;
    let here: u64 = content.lines().filter_map(|line| line.split_whitespace().nth(1)).filter_map(size).sum();
    ensure!(here * 100 >= stage.bytes * 99, "{} has {here} bytes of {}: {content}", worker.host.name(), stage.bytes);
    Ok(())
}

/// A size as `ctr` prints it: `67.13MB`, `402B`.
fn size(text: &str) -> Option<u64> {
    let digits = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let scale = match &text[digits..] {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    Some((text[..digits].parse::<f64>().ok()? * scale) as u64)
}
