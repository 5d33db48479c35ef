//! The numbers, for a person and for a program.

use crate::files::Fetched;
use crate::private::Answers;
use crate::system::System;
use crate::trial::Run;
use crate::work::{ALL, LINKS, Work};
use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use lapwing_bench::Spread;
use lapwing_lab::lapwing_binary;
use lapwing_p2p::digest::Digest;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const PATH: &str = "target/bench/peers.json";

/// All runs so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// What was measured before on the same machine, of the same versions, and is not measured now.
    earlier: Earlier,
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

/// What stands in the file already, by the names of its lists.
#[derive(Debug, Default)]
struct Earlier(BTreeMap<&'static str, Vec<Value>>);

/// The lists of a report. Those of one work name it for all their rows.
const LISTS: [(&str, Option<&str>); 5] = [
    ("pulls", None),
    ("files", Some("files")),
    ("private", Some("private")),
    ("failures", None),
    ("left_out", Some("")),
];

impl Earlier {
    fn read() -> Self {
        let written = std::fs::read(PATH).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let is_alike = |report: &Value| report["machine"] == machine() && report["rates"] == rates();
        let Some(report) = written.filter(is_alike) else { return Self::default() };
        let (then, now) = (report["versions"].as_array().cloned().unwrap_or_default(), versions());
        let is_same = |row: &&Value| {
            let is_its = |version: &&Value| version["system"] == row["system"];
            now.iter().find(is_its) == then.iter().find(is_its)
        };
        let rows = |list: &str| report[list].as_array().into_iter().flatten().filter(is_same).cloned().collect();
        Self(LISTS.into_iter().map(|(list, _)| (list, rows(list))).collect())
    }

    /// The rows of now, and those of earlier of other work and other systems: by work, size and system as these are listed.
    fn beside(&self, now: Vec<(&'static str, Vec<Value>)>) -> Vec<(&'static str, Vec<Value>)> {
        let measured: Vec<(String, String)> =
            now.iter().flat_map(|(list, rows)| rows.iter().map(|row| of(list, row))).collect();
        let beside = |(list, rows): (&'static str, Vec<Value>)| {
            let is_kept = |row: &&Value| {
                let row = of(list, row);
                // It could not be built then.
                let is_settled = list == "left_out" && measured.iter().any(|(_, system)| *system == row.1);
                !measured.contains(&row) && !is_settled
            };
            let earlier = self.0.get(list).into_iter().flatten().filter(is_kept).cloned();
            let mut rows: Vec<Value> = earlier.chain(rows).collect();
            rows.sort_by_key(|row| {
                let work = ALL.iter().position(|work| row["work"] == work.name);
                (work, row["bytes"].as_u64(), System::ALL.iter().position(|system| row["system"] == system.name()))
            });
            (list, rows)
        };
        now.into_iter().map(beside).collect()
    }
}

/// Work and system of a row.
fn of(list: &str, row: &Value) -> (String, String) {
    let work = LISTS.iter().find(|(name, _)| *name == list).and_then(|(_, work)| *work);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (work.map_or_else(|| text(&row["work"]), str::to_owned), text(&row["system"]))
}

impl Report {
    /// A report that keeps what stands in the file of other work and other systems, if it is of this machine, and of the same version.
    pub(crate) fn beside_earlier() -> Self {
        Self { earlier: Earlier::read(), ..Self::default() }
    }

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
        let private = self.private.iter().map(|(system, told)| json!({ "system": system.name(), "answers": told }));
        let failures = self
            .failures
            .iter()
            .map(|Failure { system, job, why }| json!({ "system": system.name(), "work": job, "why": why }));
        let left_out = self.left_out.iter().map(|(system, why)| json!({ "system": system.name(), "why": why }));
        let now = vec![
            ("pulls", self.pulls.iter().map(Pulls::json).collect()),
            ("files", self.files.iter().map(Files::json).collect()),
            ("private", private.collect()),
            ("failures", failures.collect()),
            ("left_out", left_out.collect()),
        ];
        let mut report = json!({ "machine": machine(), "rates": rates(), "versions": versions() });
        for (list, rows) in self.earlier.beside(now) {
            report[list] = Value::Array(rows);
        }
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
            let of = |value: fn(&Run) -> Option<f64>| text_of(runs.iter().filter_map(value));
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
            let of = |value: fn(&Fetched) -> f64| text_of(runs.iter().map(value));
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

fn rates() -> Value {
    json!({ "registry_mbit": LINKS.registry, "worker_up_mbit": LINKS.up, "worker_down_mbit": LINKS.down })
}

/// Of Lapwing also which build: one version stands for many of its commits.
fn versions() -> Vec<Value> {
    let build = lapwing_binary()
        .ok()
        .and_then(|path| std::fs::read(path).ok())
        .map(|binary| Digest::of(&binary).hex()[..12].to_owned());
    let version = |system: System| match (system, &build) {
        (System::Lapwing, Some(build)) => format!("{} (build {build})", system.version()),
        _ => system.version().to_owned(),
    };
    System::ALL.map(|system| json!({ "system": system.name(), "version": version(system) })).to_vec()
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

fn text_of(values: impl Iterator<Item = f64>) -> String {
    let text = |Spread { median, least, most }: Spread| format!("{median:.2} ({least:.2}-{most:.2})");
    Spread::of(values).map_or_else(|| "-".to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(work: &str, system: &str, run: u32) -> Value {
        json!({ "work": work, "system": system, "run": run })
    }

    #[test]
    fn what_is_measured_anew_takes_the_place_of_earlier_and_the_rest_stays() {
        let left_out = |system: &str| json!({ "system": system, "why": "not built" });
        let earlier = Earlier(BTreeMap::from([
            ("pulls", vec![row("cold16", "lapwing", 1), row("cold8", "lapwing", 1), row("cold8", "spegel", 1)]),
            ("failures", vec![row("outage", "lapwing", 1), row("outage", "plain", 1)]),
            ("left_out", vec![left_out("piccolo"), left_out("lapwing")]),
        ]));
        let now = vec![
            ("pulls", vec![row("cold8", "lapwing", 2), row("outage", "lapwing", 2)]),
            ("failures", vec![]),
            ("left_out", vec![]),
        ];
        let [(_, pulls), (_, failures), (_, left)] = &earlier.beside(now)[..] else { panic!("three lists") };
        let of = |work: &str, system: &str| pulls.iter().find(|row| row["work"] == work && row["system"] == system);
        assert_eq!(of("cold8", "lapwing"), Some(&row("cold8", "lapwing", 2)));
        assert_eq!(of("cold8", "spegel"), Some(&row("cold8", "spegel", 1)));
        assert_eq!(of("cold16", "lapwing"), Some(&row("cold16", "lapwing", 1)));
        assert_eq!(pulls.len(), 4);
        assert_eq!(*failures, [row("outage", "plain", 1)], "it worked this time");
        assert_eq!(*left, [left_out("piccolo")], "the other was measured");
    }
}
