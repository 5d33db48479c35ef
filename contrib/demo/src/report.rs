//! The numbers, for a person and for a program, and whether they are good enough.

use crate::acts::{Cold, Lazy, Measured};
use crate::make_parent;
use crate::stage::{COLD, LINK, Stage};
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::io::Write as _;
use std::path::Path;

const MOST_COPIES: f64 = 1.15;
const LAZY_SHARE: f64 = 1.0 / 3.0;

/// `target/demo.json`.
#[derive(Debug, Serialize)]
struct Numbers {
    image_bytes: u64,
    nodes: usize,
    baseline_s: f64,
    cold_last_s: f64,
    cold_registry_copies: f64,
    lazy_first_output_s: f64,
    lazy_bytes_fetched: u64,
    lazy_files_verified: usize,
    ok: bool,
}

pub(crate) struct Report {
    numbers: Numbers,
    rows: Vec<[String; 6]>,
    notes: Vec<String>,
    /// What was not shown, with the numbers.
    failures: Vec<String>,
}

impl Report {
    pub(crate) fn new(stage: &Stage, baseline: &Measured, cold: &Cold, lazy: &Lazy) -> Self {
        let image_bytes = stage.image.compressed_bytes();
        let mut numbers = Numbers {
            image_bytes,
            nodes: stage.nodes(),
            baseline_s: thousandths(baseline.seconds),
            cold_last_s: thousandths(cold.measured.seconds),
            cold_registry_copies: thousandths(cold.measured.registry_bytes as f64 / image_bytes as f64),
            lazy_first_output_s: thousandths(lazy.measured.seconds),
            lazy_bytes_fetched: lazy.measured.received_bytes,
            lazy_files_verified: lazy.files_verified,
            ok: false,
        };
        let mut failures = failures(&numbers, lazy);
        for (name, measured) in [("baseline", baseline), ("cold swarm", &cold.measured), ("lazy start", &lazy.measured)]
        {
            if !measured.output_right {
                failures.push(format!("{name}: the container did not print what it should"));
            }
        }
        numbers.ok = failures.is_empty();
        let rows = vec![
            row("baseline: plain containerd, pull to first output", baseline, baseline, image_bytes),
            row("cold swarm: 3 workers pull whole, the last", &cold.measured, baseline, image_bytes),
            row("lazy start: pull to first output", &lazy.measured, baseline, image_bytes),
        ];
        let notes = notes(image_bytes, cold, lazy);
        Self { numbers, rows, notes, failures }
    }

    pub(crate) fn ok(&self) -> bool {
        self.numbers.ok
    }

    /// The table, and what failed.
    pub(crate) fn print(&self) -> Result<()> {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        table.set_header(["", "seconds", "of baseline", "from registry", "copies", "from peers"]).add_rows(&self.rows);
        for column in 1..=5 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{table}\n")?;
        for note in &self.notes {
            writeln!(out, "{note}")?;
        }
        for failure in &self.failures {
            writeln!(out, "FAILED: {failure}")?;
        }
        if self.numbers.ok {
            writeln!(out, "ok: everything was shown that should be")?;
        }
        Ok(())
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        make_parent(file)?;
        let text = serde_json::to_string_pretty(&self.numbers)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

fn failures(numbers: &Numbers, lazy: &Lazy) -> Vec<String> {
    let mut failures = Vec::new();
    let mut demand = |holds: bool, text: String| {
        if !holds {
            failures.push(text);
        }
    };
    let copies = numbers.cold_registry_copies;
    demand(copies <= MOST_COPIES, format!("cold swarm: the registry sent {copies} copies, more than {MOST_COPIES}"));
    let (lazy_s, baseline_s) = (numbers.lazy_first_output_s, numbers.baseline_s);
    demand(
        lazy_s <= baseline_s * LAZY_SHARE,
        format!("lazy start: {lazy_s} s to first output is more than a third of the baseline's {baseline_s} s"),
    );
    let (fetched, image) = (numbers.lazy_bytes_fetched, numbers.image_bytes);
    demand(
        fetched as f64 <= image as f64 * LAZY_SHARE,
        format!("lazy start: {fetched} bytes fetched is more than a third of the image's {image}"),
    );
    demand(
        lazy.differences.is_empty() && numbers.lazy_files_verified > 0,
        format!("lazy start: the root filesystems differ (left: overlayfs, right: lazy):\n{}", lazy.differences),
    );
    failures
}

fn row(name: &str, measured: &Measured, baseline: &Measured, image_bytes: u64) -> [String; 6] {
    let registry = measured.registry_bytes;
    [
        name.to_owned(),
        format!("{:.2}", measured.seconds),
        format!("{:.2}", measured.seconds / baseline.seconds),
        megabytes(registry),
        format!("{:.3}", registry as f64 / image_bytes as f64),
        megabytes(measured.received_bytes.saturating_sub(registry)),
    ]
}

fn notes(image_bytes: u64, cold: &Cold, lazy: &Lazy) -> Vec<String> {
    let bound = bound_s(image_bytes);
    let share = |seconds: f64| format!("{seconds:.1} s ({:.0} % efficient)", bound / seconds * 100.0);
    let each: Vec<String> = cold.each_s.iter().map(|seconds| format!("{seconds:.1}")).collect();
    let fetched = lazy.measured.received_bytes;
    vec![
        format!(
            "links of {} Mbit/s bound the cold swarm's transfer to {bound:.1} s = max(F/us, F/d, N*F/(us+N*ui))",
            LINK.0
        ),
        format!(
            "cold swarm: bytes at all three after {}, unpacked after {}",
            share(cold.arrived_s),
            share(cold.measured.seconds)
        ),
        format!("cold swarm: each {} s; all three unpack on this machine's {} cores", each.join(", "), cores()),
        format!("lazy start: {} of {} on its link", megabytes(fetched), megabytes(image_bytes)),
        format!("lazy start: then {} files, directories and links read and equal", lazy.files_verified),
    ]
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The least time in which one source and equal workers can spread a file: source's uplink, a worker's downlink, all uplinks together.
fn bound_s(image_bytes: u64) -> f64 {
    let link = f64::from(LINK.0) * 1e6 / 8.0;
    let file = image_bytes as f64;
    let workers = COLD as f64;
    (file / link).max(workers * file / (link + workers * link))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
