//! `make soak`: pulls, starts and removals without an end, as many as a week of work brings, on nodes that are never restarted. What they
//! have of the machine must be as much in the end as it was when they had warmed up.
//!
//! [`load`] is the work; [`vitals`] what a process has of the machine, and whether that stays flat. The result is `target/soak.json`.

mod load;
mod vitals;

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lapwing_lab::{Lapwing, Machine, Need, Process, Site, interrupt};
use load::Load;
use serde_json::json;
use vitals::{Series, Vitals};

const NODES: usize = 3;
/// Half of what the images hold, so that blobs are evicted all the time.
const QUOTA: &str = "96MiB";
/// Moments at which everything is looked at.
const SAMPLES: u32 = 120;
const RESULT: &str = "target/soak.json";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("make soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything stayed flat and every byte was right.
fn run() -> Result<bool> {
    let minutes: f64 =
        std::env::args().nth(1).unwrap_or_else(|| "120".into()).parse().context("minutes, as a number")?;
    ensure!(minutes >= 1.0, "{minutes} minutes are too few: nothing warms up in less than one");
    let missing = lapwing_lab::missing(&Need::LAZY_PULLS);
    ensure!(missing.is_empty(), "this machine cannot do it: {}", missing.join("; "));
    interrupt::watch("make soak")?;

    let mut site = Site::new("soak", None)?;
    let mut seed = site.seed("seed", None, site.seed_settings().with("store", &format!("quota = {QUOTA:?}")))?;
    let load = Load::new(&site)?;
    let settings = || site.settings().with("store", &format!("quota = {QUOTA:?}"));
    let worker = |number: usize| site.worker(&format!("node{number}"), None, settings());
    let mut workers: Vec<Machine> = (0..NODES).map(worker).collect::<Result<_>>()?;
    let mut watched = vec![Watched::of("tracker", &mut site.tracker), Watched::of("seed", &mut seed)];
    for (number, worker) in workers.iter_mut().enumerate() {
        watched
            .push(Watched::of(&format!("node {number}"), worker.lapwing.as_mut().context("a worker without Lapwing")?));
    }

    let time = Duration::from_secs_f64(minutes * 60.0);
    let (end, over) = (Instant::now() + time, AtomicBool::new(false));
    let tally = std::thread::scope(|scope| -> Result<load::Tally> {
        let threads: Vec<_> = workers
            .iter()
            .enumerate()
            .map(|(number, worker)| {
                let (load, over) = (&load, &over);
                scope.spawn(move || load.work(worker, number as u64, over))
            })
            .collect();
        let mut sampling = Ok(());
        while Instant::now() < end && sampling.is_ok() && threads.iter().all(|thread| !thread.is_finished()) {
            std::thread::sleep(time / SAMPLES);
            sampling = interrupt::check().and_then(|()| watched.iter_mut().try_for_each(Watched::look));
        }
        over.store(true, Ordering::Relaxed);
        let mut tally = load::Tally::default();
        for thread in threads {
            tally.add(thread.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??);
        }
        sampling.map(|()| tally)
    })?;

    let mut grown = Vec::new();
    for watched in &watched {
        let verdicts = watched.series.verdicts();
        grown.extend(
            verdicts.iter().filter(|verdict| !verdict.is_flat).map(|verdict| format!("{}: {verdict}", watched.name)),
        );
        for verdict in &verdicts {
            eprintln!("{:>8} {verdict}", watched.name);
        }
    }
    let nodes: serde_json::Map<String, serde_json::Value> =
        watched.iter().map(|watched| (watched.name.clone(), json!(watched.series))).collect();
    let passed = grown.is_empty() && tally.wrong == 0 && tally.failed == 0;
    let result = json!({ "minutes": minutes, "passed": passed, "grown": grown, "work": tally, "processes": nodes });
    std::fs::create_dir_all("target")?;
    std::fs::write(RESULT, serde_json::to_vec_pretty(&result)?).with_context(|| format!("cannot write {RESULT}"))?;
    eprintln!(
        "{} pulls, {} containers, {:.1} GB read and right, {} wrong, {} failed; {}",
        tally.pulls,
        tally.containers,
        tally.bytes as f64 / 1e9,
        tally.wrong,
        tally.failed,
        if passed { "flat" } else { "NOT flat" }
    );
    Ok(passed)
}

/// A process, and what it had of the machine so far.
struct Watched {
    name: String,
    pid: u32,
    root: std::path::PathBuf,
    series: Series,
}

impl Watched {
    fn of(name: &str, lapwing: &mut Lapwing) -> Self {
        let root = lapwing.root();
        let pid = Process::pid(lapwing.process());
        Self { name: name.into(), pid, root, series: Series::default() }
    }

    fn look(&mut self) -> Result<()> {
        let now = Vitals::of(self.pid, Path::new(&self.root))
            .with_context(|| format!("{} is gone: look at its log", self.name))?;
        self.series.push(&now);
        Ok(())
    }
}
