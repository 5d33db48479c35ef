//! One system does the work once.

use crate::stage::Stage;
use crate::system::{Daemon, System};
use crate::usage::{cpu_s, disk_bytes};
use crate::work::{Start, Victim, Work};
use anyhow::{Context, Result, bail, ensure};
use lapwing_bench::status_mb;
use lapwing_lab::wait;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::time::{Duration, Instant};

/// The first to have an image is given so long to become a source.
const TELL: Duration = Duration::from_secs(20);

/// A worker is given so long for half of an image.
const HALF: Duration = Duration::from_secs(300);

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
    pub(crate) cpu_s_per_gb: Option<f64>,
    /// Of all processes of the system on the worker that has most.
    pub(crate) rss_idle_mb: f64,
    pub(crate) rss_max_mb: f64,
    /// What the worker that grew most has more on disk, containerd and the system together, by what it fetched.
    pub(crate) disk_per_byte: f64,
}

impl Run {
    pub(crate) fn summary(&self) -> String {
        format!(
            "last {:.2} s, half {:.2} s, {:.2} of the bound, {:.2} copies, {} CPU s/GB, {:.0} MB idle, {:.0} MB at most",
            self.last_s,
            self.p50_s,
            self.efficiency,
            self.registry_copies,
            self.cpu_s_per_gb.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.2}")),
            self.rss_idle_mb,
            self.rss_max_mb
        )
    }
}

pub(crate) fn run(system: System, work: &Work) -> Result<Run> {
    let mut stage = Stage::set(system, &work.props())?;
    stage.settle();
    for worker in stage.before.iter().flat_map(|_| &stage.workers) {
        worker.fetch(&stage, stage.before.as_ref().context("no version before")?)?;
    }
    let processes = Processes::of(&mut stage);
    let disk_before = disk(&stage);
    let (idle, cpu, sent) = (processes.most_mb("VmRSS"), processes.cpu_s(), stage.registry.sent_bytes()?);

    let mut times = fetch_all(&stage, work, &processes)?;
    times.sort_by(f64::total_cmp);
    let last_s = times.last().copied().context("nobody fetched")?;
    let bytes = stage.bytes();
    let bound_s = work.bound_s(bytes);
    let received = bytes as f64 * work.workers as f64;
    Ok(Run {
        bytes,
        last_s,
        p50_s: times[times.len() / 2],
        bound_s,
        efficiency: bound_s / last_s,
        registry_copies: (stage.registry.sent_bytes()? - sent) as f64 / bytes as f64,
        // What is killed takes its time with it.
        cpu_s_per_gb: work.victim.is_none().then(|| (processes.cpu_s() - cpu) / (received / 1e9)),
        rss_idle_mb: idle,
        rss_max_mb: processes.most_mb("VmHWM"),
        disk_per_byte: disk_per_byte(&stage, &disk_before),
    })
}

fn disk_per_byte(stage: &Stage, before: &[u64]) -> f64 {
    let grown = disk(stage).into_iter().zip(before).map(|(after, before)| after.saturating_sub(*before));
    grown.max().unwrap_or(0) as f64 / stage.bytes() as f64
}

/// Bytes that each worker's directory takes on disk, where its containerd and its part of the system keep everything.
fn disk(stage: &Stage) -> Vec<u64> {
    stage.workers.iter().map(|worker| disk_bytes(worker.host.dir())).collect()
}

/// The system's own, containerd not among them.
struct Processes {
    workers: Vec<Vec<u32>>,
    shared: Vec<u32>,
}

impl Processes {
    fn of(stage: &mut Stage) -> Self {
        let daemons = stage.workers.iter_mut().filter_map(|worker| worker.daemon.as_mut());
        Self {
            workers: daemons.map(Daemon::pids).collect(),
            shared: stage.shared.as_mut().map(Daemon::pids).unwrap_or_default(),
        }
    }

    /// The most that a worker's have together.
    fn most_mb(&self, name: &str) -> f64 {
        let of_worker = |pids: &Vec<u32>| pids.iter().map(|pid| status_mb(*pid, name)).sum::<f64>();
        self.workers.iter().map(of_worker).fold(0.0, f64::max)
    }

    fn cpu_s(&self) -> f64 {
        self.workers.iter().flatten().chain(&self.shared).map(|pid| cpu_s(*pid)).sum()
    }

    fn kill(&self, victim: Victim) -> Result<()> {
        let pids = match victim {
            Victim::Peer => self.workers.first().context("nothing runs on the first worker")?,
            Victim::Shared => &self.shared,
        };
        ensure!(!pids.is_empty(), "there is nothing to kill");
        for pid in pids {
            let pid = Pid::from_raw(i32::try_from(*pid)?).context("no process")?;
            kill_process(pid, Signal::KILL).context("cannot kill it")?;
        }
        Ok(())
    }
}

/// Seconds until each worker that counts had everything.
fn fetch_all(stage: &Stage, work: &Work, processes: &Processes) -> Result<Vec<f64>> {
    let (early, workers) = match work.start {
        Start::WithoutRegistry => stage.workers.split_at(1),
        Start::Together | Start::Update | Start::Every(_) => stage.workers.split_at(0),
    };
    for worker in early {
        worker.fetch(stage, &stage.image)?;
        // Whoever tells others only of what is whole has the time to do so.
        std::thread::sleep(TELL);
        stage.registry.host().set_link(false)?;
    }
    let does_count = |number: u32| number > 0 || work.victim != Some(Victim::Peer);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let kill = work.victim.map(|victim| {
            scope.spawn(move || {
                half(stage)?;
                processes.kill(victim)
            })
        });
        let fetches: Vec<_> = (0..)
            .zip(workers)
            .map(|(number, worker)| {
                scope.spawn(move || {
                    if let Start::Every(pause) = work.start {
                        std::thread::sleep(pause * number);
                    }
                    let fetched = worker.fetch(stage, &stage.image).map(|()| begun.elapsed().as_secs_f64());
                    if does_count(number) { fetched.map(Some) } else { anyhow::Ok(None) }
                })
            })
            .collect();
        let joined = fetches.into_iter().map(|fetch| fetch.join().unwrap_or_else(|_| bail!("a panic while fetching")));
        let times = joined.collect::<Result<Vec<Option<f64>>>>()?;
        if let Some(kill) = kill {
            kill.join().unwrap_or_else(|_| bail!("a panic while killing"))?;
        }
        Ok(times.into_iter().flatten().collect())
    })
}

/// Waits until the first worker has received half of what it lacks.
fn half(stage: &Stage) -> Result<()> {
    let host = &stage.workers.first().context("no worker")?.host;
    let begun = host.received_bytes()?;
    let mut received = 0;
    wait::until_true("the first worker to have half", HALF, || {
        received = host.received_bytes().map_or(received, |now| now - begun);
        received * 2 >= stage.bytes()
    })
}
