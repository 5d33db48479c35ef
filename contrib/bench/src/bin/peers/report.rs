//! The numbers, for a person and for a program.

use crate::files::Fetched;
use crate::private::Answers;
use crate::system::System;
use crate::trial::Run;
use crate::work::{DOWN, REGISTRY, UP, Work};
use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;

const PATH: &str = "target/bench/peers.json";

/// All runs so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pulls: Vec<Pulls>,
    files: Vec<Files>,
    private: Vec<(System, Answers)>,
    failures: Vec<Failure>,
    left_out: Vec<(System, String)>,
}

/// One work by one system.
#[derive(Debug)]
struct Pulls {
    system: System,
    work: &'static Work,
    runs: Vec<Run>,
}

/// Files of one size by one system.
#[derive(Debug)]
struct Files {
    system: System,
    bytes: u64,
    runs: Vec<Fetched>,
}

#[derive(Debug)]
struct Failure {
    system: System,
    job: &'static str,
    why: String,
}

impl Report {
    pub(crate) fn left_out(&mut self, system: System, why: &anyhow::Error) {
        self.left_out.push((system, format!("{why:#}")));
    }

    pub(crate) fn is_left_out(&self, system: System) -> bool {
        self.left_out.iter().any(|(left_out, _)| *left_out == system)
    }

    pub(crate) fn add(&mut self, system: System, work: &'static Work, run: Run) {
        let is_same = |row: &Pulls| row.system == system && row.work.name == work.name;
        row(&mut self.pulls, is_same, || Pulls { system, work, runs: Vec::new() }).runs.push(run);
    }

    pub(crate) fn add_files(&mut self, system: System, fetched: &[Fetched]) {
        for &one in fetched {
            let is_same = |row: &Files| row.system == system && row.bytes == one.bytes;
            let fresh = || Files { system, bytes: one.bytes, runs: Vec::new() };
            row(&mut self.files, is_same, fresh).runs.push(one);
        }
    }

    pub(crate) fn add_answers(&mut self, system: System, answers: Answers) {
        self.private.push((system, answers));
    }

    pub(crate) fn failed(&mut self, system: System, job: &'static str, why: &anyhow::Error) {
        self.failures.push(Failure { system, job, why: format!("{why:#}") });
    }

    pub(crate) fn write(&self) -> Result<()> {
        let rates = json!({ "registry_mbit": REGISTRY, "worker_up_mbit": UP, "worker_down_mbit": DOWN });
        let versions: Vec<Value> =
            System::ALL.map(|system| json!({ "system": system.name(), "version": system.version() })).to_vec();
        let private = self.private.iter().map(|(system, told)| json!({ "system": system.name(), "answers": told }));
        let failures = self
            .failures
            .iter()
            .map(|Failure { system, job, why }| json!({ "system": system.name(), "work": job, "why": why }));
        let left_out = self.left_out.iter().map(|(system, why)| json!({ "system": system.name(), "why": why }));
        let report = json!({
            "machine": machine(),
            "rates": rates,
            "versions": versions,
            "pulls": self.pulls.iter().map(Pulls::json).collect::<Vec<_>>(),
            "files": self.files.iter().map(Files::json).collect::<Vec<_>>(),
            "private": private.collect::<Vec<_>>(),
            "failures": failures.collect::<Vec<_>>(),
            "left_out": left_out.collect::<Vec<_>>(),
        });
        std::fs::create_dir_all(Path::new(PATH).parent().context("no directory")?)?;
        std::fs::write(PATH, serde_json::to_vec_pretty(&report)?).with_context(|| format!("cannot write {PATH}"))
    }

    pub(crate) fn print(&self) {
        if !self.pulls.is_empty() {
            eprintln!("{}", self.pulls_table());
        }
        if !self.files.is_empty() {
            eprintln!("{}", self.files_table());
        }
        for (system, answers) in &self.private {
            eprintln!("{}: a private layer is {}", system.name(), answers.summary());
        }
        for Failure { system, job, why } in &self.failures {
            eprintln!("{} failed at {job}: {why}", system.name());
        }
        for (system, why) in &self.left_out {
            eprintln!("{} was left out: {why}", system.name());
        }
    }

    fn pulls_table(&self) -> Table {
        let mut table = table(&[
            "work",
            "system",
            "last, s",
            "of the bound",
            "copies",
            "CPU s/GB",
            "MB idle",
            "MB at most",
            "disk",
            "runs",
        ]);
        for Pulls { system, work, runs } in &self.pulls {
            let of = |value: fn(&Run) -> Option<f64>| Spread::text_of(runs.iter().filter_map(value));
            table.add_row([
                work.name.to_owned(),
                system.name().to_owned(),
                of(|run| Some(run.last_s)),
                of(|run| Some(run.efficiency)),
                of(|run| Some(run.registry_copies)),
                of(|run| run.cpu_s_per_gb),
                of(|run| Some(run.rss_idle_mb)),
                of(|run| Some(run.rss_max_mb)),
                of(|run| Some(run.disk_per_byte)),
                runs.len().to_string(),
            ]);
        }
        table
    }

    fn files_table(&self) -> Table {
        let mut table = table(&["bytes", "system", "first, s", "second, s", "copies", "runs"]);
        for Files { system, bytes, runs } in &self.files {
            let of = |value: fn(&Fetched) -> f64| Spread::text_of(runs.iter().map(value));
            table.add_row([
                bytes.to_string(),
                system.name().to_owned(),
                of(|one| one.first_s),
                of(|one| one.second_s),
                of(|one| one.copies),
                runs.len().to_string(),
            ]);
        }
        table
    }
}

impl Pulls {
    fn json(&self) -> Value {
        let Self { system, work, runs } = self;
        let of = |value: fn(&Run) -> Option<f64>| json!(Spread::of(runs.iter().filter_map(value)));
        json!({
            "system": system.name(), "work": work.name, "about": work.about, "workers": work.workers,
            "last_s": of(|run| Some(run.last_s)), "p50_s": of(|run| Some(run.p50_s)),
            "efficiency": of(|run| Some(run.efficiency)),
            "registry_copies": of(|run| Some(run.registry_copies)), "cpu_s_per_gb": of(|run| run.cpu_s_per_gb),
            "rss_idle_mb": of(|run| Some(run.rss_idle_mb)), "rss_max_mb": of(|run| Some(run.rss_max_mb)),
            "disk_per_byte": of(|run| Some(run.disk_per_byte)),
            "runs": runs,
        })
    }
}

impl Files {
    fn json(&self) -> Value {
        let Self { system, bytes, runs } = self;
        let of = |value: fn(&Fetched) -> f64| json!(Spread::of(runs.iter().map(value)));
        json!({
            "system": system.name(), "bytes": bytes,
            "first_s": of(|one| one.first_s), "second_s": of(|one| one.second_s), "copies": of(|one| one.copies),
            "runs": runs,
        })
    }
}

/// The row that is the same, or a fresh one at the end.
fn row<Row>(rows: &mut Vec<Row>, is_same: impl Fn(&Row) -> bool, fresh: impl FnOnce() -> Row) -> &mut Row {
    let place = rows.iter().position(is_same).unwrap_or_else(|| {
        rows.push(fresh());
        rows.len() - 1
    });
    &mut rows[place]
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(head);
    table
}

/// What the figures hang on.
fn machine() -> Value {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processor": model,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_kb": read("/proc/meminfo").lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()),
    })
}

/// Median and range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        Some(Self { median: values[values.len() / 2], least, most })
    }

    fn text_of(values: impl Iterator<Item = f64>) -> String {
        let text = |Self { median, least, most }: Self| format!("{median:.2} ({least:.2}-{most:.2})");
        Self::of(values).map_or_else(|| "-".to_owned(), text)
    }
}
