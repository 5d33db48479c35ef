//! The numbers, for a person and for a program.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// One line of `swarm.json`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) nodes: usize,
    /// Of all blobs together.
    pub(crate) blob_bytes: u64,
    pub(crate) blobs: usize,
    pub(crate) registry_mbit: u32,
    pub(crate) node_up_mbit: u32,
    pub(crate) node_down_mbit: u32,
    #[serde(serialize_with = "rounded")]
    pub(crate) first_s: f64,
    #[serde(serialize_with = "rounded")]
    pub(crate) p50_s: f64,
    #[serde(serialize_with = "rounded")]
    pub(crate) last_s: f64,
    /// Mean of the nodes' own times, each from its own start.
    #[serde(serialize_with = "rounded")]
    pub(crate) mean_own_s: f64,
    #[serde(serialize_with = "rounded")]
    pub(crate) bound_s: f64,
    /// The bound when the registry sends one copy only.
    #[serde(serialize_with = "rounded")]
    pub(crate) bound_one_copy_s: f64,
    /// By the nominal rates, of which headers take some 4.5 %.
    #[serde(serialize_with = "rounded")]
    pub(crate) efficiency: f64,
    /// By the rates at which plain transfers carry content over the same links, in the same run.
    #[serde(serialize_with = "rounded")]
    pub(crate) efficiency_of_goodput: f64,
    /// Bytes on the registry's interface.
    #[serde(serialize_with = "rounded")]
    pub(crate) registry_copies: f64,
    /// Bytes on the interfaces of all nodes: what is above their number was sent in vain, or is headers.
    #[serde(serialize_with = "rounded")]
    pub(crate) received_copies: f64,
    #[serde(serialize_with = "maybe_rounded")]
    pub(crate) registry_first_byte_s: Option<f64>,
    #[serde(serialize_with = "maybe_rounded")]
    pub(crate) registry_one_copy_s: Option<f64>,
    /// Bytes that crossed the border into the far zone, in the payload of TCP: retransmissions and the records of TLS count.
    #[serde(serialize_with = "maybe_rounded")]
    pub(crate) border_copies: Option<f64>,
    /// The same, and the headers of the bundles of segments that crossed.
    #[serde(serialize_with = "maybe_rounded")]
    pub(crate) border_copies_with_headers: Option<f64>,
    /// When the streaming reader had read the last byte.
    #[serde(serialize_with = "maybe_rounded")]
    pub(crate) reader_s: Option<f64>,
    #[serde(serialize_with = "rounded")]
    pub(crate) cpu_s_per_gb: f64,
    #[serde(serialize_with = "rounded")]
    pub(crate) rss_max_mb: f64,
    /// Share of the machine's CPU that nobody used, or only niced programs did.
    #[serde(serialize_with = "rounded")]
    pub(crate) free_cpu: f64,
    /// All nodes from the registry, without Lapwing.
    #[serde(serialize_with = "rounded")]
    pub(crate) plain_last_s: f64,
    /// Whether that was measured to its end; otherwise it follows from the rate of its first seconds.
    pub(crate) plain_measured: bool,
    #[serde(serialize_with = "rounded")]
    pub(crate) registry_goodput_mbit: f64,
    #[serde(serialize_with = "rounded")]
    pub(crate) node_goodput_mbit: f64,
    pub(crate) pulled_bytes: u64,
    pub(crate) failed_pulls: Vec<String>,
    /// Sums over the nodes that still run; those of TCP from the start of the hosts, plain transfers included.
    pub(crate) counters: BTreeMap<String, f64>,
    /// Of every run; the line is that of the median one.
    pub(crate) runs_efficiency: Vec<f64>,
}

fn rounded<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(thousandths(*value))
}

fn maybe_rounded<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(thousandths).serialize(serializer)
}

fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Row {
    pub(crate) fn summary(&self) -> String {
        format!(
            "last {:.2} s, median {:.2} s, bound {:.2} s: efficiency {:.3} ({:.3} of goodput), {:.3} copies, {:.2} CPU s/GB, {:.0} MB, free CPU {:.0} %; registry from {:.2} to {:.2} s; {:?}",
            self.last_s,
            self.p50_s,
            self.bound_s,
            self.efficiency,
            self.efficiency_of_goodput,
            self.registry_copies,
            self.cpu_s_per_gb,
            self.rss_max_mb,
            self.free_cpu * 100.0,
            self.registry_first_byte_s.unwrap_or(f64::NAN),
            self.registry_one_copy_s.unwrap_or(f64::NAN),
            self.counters.iter().filter(|(_, count)| **count > 0.0).collect::<Vec<_>>(),
        )
    }
}

/// What the machine is, for whoever compares.
#[derive(Debug, Serialize)]
struct Machine {
    cpus: usize,
    kernel: String,
    load_before: String,
}

/// `target/bench/swarm.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    scenarios: Vec<Row>,
}

impl Report {
    pub(crate) fn new() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let machine = Machine { cpus, kernel: text("/proc/sys/kernel/osrelease"), load_before: text("/proc/loadavg") };
        Self { machine, scenarios: Vec::new() }
    }

    /// Adds the median of some runs of one scenario.
    pub(crate) fn add(&mut self, mut runs: Vec<Row>) {
        runs.sort_by(|a, b| a.efficiency.total_cmp(&b.efficiency));
        let all: Vec<f64> = runs.iter().map(|run| thousandths(run.efficiency)).collect();
        if !runs.is_empty() {
            let median = runs.swap_remove((runs.len() - 1) / 2);
            self.scenarios.push(Row { runs_efficiency: all, ..median });
        }
    }

    pub(crate) fn all_pulled(&self) -> bool {
        self.scenarios.iter().all(|row| row.failed_pulls.is_empty())
    }

    pub(crate) fn print(&self) -> Result<()> {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        table.set_header([
            "scenario",
            "last s",
            "median s",
            "bound s",
            "efficiency",
            "of goodput",
            "copies",
            "CPU s/GB",
            "RSS MB",
            "plain s",
        ]);
        for row in &self.scenarios {
            let note = if row.plain_measured { "" } else { "~" };
            let failed = if row.failed_pulls.is_empty() { "" } else { " FAILED" };
            table.add_row([
                format!("{}{failed}", row.name),
                format!("{:.2}", row.last_s),
                format!("{:.2}", row.p50_s),
                format!("{:.2}", row.bound_s),
                format!("{:.3}", row.efficiency),
                format!("{:.3}", row.efficiency_of_goodput),
                format!("{:.3}", row.registry_copies),
                format!("{:.2}", row.cpu_s_per_gb),
                format!("{:.0}", row.rss_max_mb),
                format!("{note}{:.1}", row.plain_last_s),
            ]);
        }
        for column in 1..=9 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(std::io::stdout().lock(), "\n{table}\n(~: computed from the rate of the first seconds)")?;
        Ok(())
    }

    pub(crate) fn write(&self) -> Result<()> {
        let file = directory().join("swarm.json");
        let text = serde_json::to_string_pretty(self)? + "\n";
        make(&directory())?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

fn directory() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).join("target/bench")
}

fn make(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

/// Where a scenario's bytes per second are written.
pub(crate) fn trace_file(scenario: &str) -> PathBuf {
    let directory = directory().join("swarm-trace");
    // Writing the file says so if this failed.
    let _ = make(&directory);
    directory.join(format!("{scenario}.csv"))
}
