//! The numbers, for a person and for a program.

use crate::system::System;
use crate::trial::Run;
use crate::work::{DOWN, REGISTRY, UP, Work};
use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;

const PATH: &str = "target/bench/peers.json";

#[derive(Debug, Serialize)]
struct Row {
    system: &'static str,
    version: &'static str,
    work: &'static str,
    workers: usize,
    runs: Vec<Run>,
    failures: Vec<String>,
}

/// All runs so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    left_out: Vec<(System, String)>,
}

impl Report {
    pub(crate) fn left_out(&mut self, system: System, why: &anyhow::Error) {
        self.left_out.push((system, format!("{why:#}")));
    }

    pub(crate) fn is_left_out(&self, system: System) -> bool {
        self.left_out.iter().any(|(left_out, _)| *left_out == system)
    }

    pub(crate) fn add(&mut self, system: System, work: &Work, run: Run) {
        self.row(system, work).runs.push(run);
    }

    pub(crate) fn failed(&mut self, system: System, work: &Work, why: &anyhow::Error) {
        self.row(system, work).failures.push(format!("{why:#}"));
    }

    fn row(&mut self, system: System, work: &Work) -> &mut Row {
        let place = self.rows.iter().position(|row| row.system == system.name() && row.work == work.name);
        let place = place.unwrap_or_else(|| {
            let (name, version) = (system.name(), system.version());
            let row = Row {
                system: name,
                version,
                work: work.name,
                workers: work.workers,
                runs: Vec::new(),
                failures: Vec::new(),
            };
            self.rows.push(row);
            self.rows.len() - 1
        });
        &mut self.rows[place]
    }

    pub(crate) fn write(&self) -> Result<()> {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let left_out: Vec<Value> =
            self.left_out.iter().map(|(system, why)| json!({ "system": system.name(), "why": why })).collect();
        let rates = json!({ "registry_mbit": REGISTRY, "worker_up_mbit": UP, "worker_down_mbit": DOWN });
        let report = json!({ "rates": rates, "rows": rows, "left_out": left_out });
        std::fs::create_dir_all(Path::new(PATH).parent().context("no directory")?)?;
        std::fs::write(PATH, serde_json::to_vec_pretty(&report)?).with_context(|| format!("cannot write {PATH}"))
    }

    pub(crate) fn print(&self) {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        table.set_header([
            "work",
            "system",
            "last, s",
            "of the bound",
            "copies",
            "CPU s/GB",
            "MB idle",
            "MB at most",
            "runs",
        ]);
        for row in &self.rows {
            let of = |value: fn(&Run) -> f64| {
                Spread::of(&row.runs, value).map_or_else(|| "-".to_owned(), |spread| spread.text())
            };
            table.add_row([
                row.work.to_owned(),
                format!("{} {}", row.system, row.version),
                of(|run| run.last_s),
                of(|run| run.efficiency),
                of(|run| run.registry_copies),
                of(|run| run.cpu_s_per_gb),
                of(|run| run.rss_idle_mb),
                of(|run| run.rss_max_mb),
                format!("{} and {} failed", row.runs.len(), row.failures.len()),
            ]);
        }
        eprintln!("{table}");
        for (system, why) in &self.left_out {
            eprintln!("{} was left out: {why}", system.name());
        }
    }
}

impl Row {
    fn json(&self) -> Value {
        let of = |value: fn(&Run) -> f64| json!(Spread::of(&self.runs, value));
        json!({
            "system": self.system, "version": self.version, "work": self.work, "workers": self.workers,
            "last_s": of(|run| run.last_s), "efficiency": of(|run| run.efficiency),
            "registry_copies": of(|run| run.registry_copies), "cpu_s_per_gb": of(|run| run.cpu_s_per_gb),
            "rss_idle_mb": of(|run| run.rss_idle_mb), "rss_max_mb": of(|run| run.rss_max_mb),
            "runs": self.runs, "failures": self.failures,
        })
    }
}

/// Median and range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(runs: &[Run], value: fn(&Run) -> f64) -> Option<Self> {
        let mut values: Vec<f64> = runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        Some(Self { median: values[values.len() / 2], least, most })
    }

    fn text(self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.least, self.most)
    }
}
