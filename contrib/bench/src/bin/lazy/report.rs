//! The numbers, for a person and for a program.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use lapwing_bench::Spread;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// One start.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) image: &'static str,
    pub(crate) way: &'static str,
    pub(crate) image_bytes: u64,
    pub(crate) pulled_s: f64,
    pub(crate) first_s: f64,
    pub(crate) ready_s: f64,
    pub(crate) fetched_bytes: u64,
    pub(crate) fetched_bytes_in_all: u64,
    pub(crate) read_bytes: Option<u64>,
    pub(crate) rss_mb: Option<f64>,
    pub(crate) reads: Option<Reads>,
    pub(crate) layers_lazy: Option<f64>,
    pub(crate) layers_adopted: Option<f64>,
    pub(crate) reads_that_waited: Option<f64>,
    pub(crate) spans_prefetched: Option<f64>,
    pub(crate) spans_prefetched_and_read: Option<f64>,
}

/// The same files of an image read twice, one after the other.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Reads {
    pub(crate) bytes: u64,
    pub(crate) cold_s: f64,
    pub(crate) warm_s: f64,
}

impl Reads {
    fn cold_mb_s(self) -> f64 {
        self.bytes as f64 / 1e6 / self.cold_s
    }

    fn warm_mb_s(self) -> f64 {
        self.bytes as f64 / 1e6 / self.warm_s
    }
}

impl Row {
    pub(crate) fn summary(&self) -> String {
        let Self { way, pulled_s, first_s, ready_s, .. } = self;
        let mb = self.fetched_bytes as f64 / 1e6;
        format!("{way}: pulled {pulled_s:.2} s, first output {first_s:.2} s, ready {ready_s:.2} s, {mb:.1} MB")
    }
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// Other snapshotters that could not be built or started, and why.
    pub(crate) left_out: BTreeMap<String, String>,
    /// What was measured beside the starts, by its name.
    pub(crate) parts: BTreeMap<&'static str, Value>,
}

const LEGEND: [(&str, &str); 21] = [
    ("plain", "containerd's own pull from the registry into overlayfs"),
    ("plain_parallel", "the same, each layer in parts of 8 MiB, four at once"),
    ("erofs", "containerd's own EROFS snapshotter"),
    (
        "stargz",
        "stargz-snapshotter with its defaults; the image was converted to eStargz by nerdctl, without a trace of what it reads",
    ),
    ("soci", "soci-snapshotter with its defaults; the image was given a SOCI index, spans of 4 MiB"),
    (
        "first_pull",
        "Lapwing, the first node of the cluster with this image: no index yet; a layer whose index is built before containerd asks for it is lazy already (layers_lazy), others are mounted as they were fetched (layers_adopted)",
    ),
    ("whole", "Lapwing with lazy mounts off, layers from the first node and the registry, unpacked by containerd"),
    (
        "lazy",
        "layers mounted lazily, no profile yet: what is read is fetched when it is read, or ahead of a sequential reader",
    ),
    ("lazy_profile", "layers mounted lazily, what the profile of the start before lists is fetched from the pull on"),
    (
        "rows",
        "of each image and way the median, least and most of its runs (how many: runs); fetched_mb is fetched_bytes",
    ),
    ("cold_mb_s, warm_mb_s", "how quickly reads, below, were read first and again"),
    ("pulled_s", "seconds from the beginning of the pull to the end of the client's pull"),
    (
        "first_s, ready_s",
        "seconds from the beginning of the pull until the container printed its first line, and that it is ready",
    ),
    ("image_bytes", "compressed layers, configuration and manifest"),
    (
        "fetched_bytes",
        "on the worker's interface until it was ready, headers and the manifest included; ..._in_all: until the container ended",
    ),
    (
        "read_bytes",
        "what the start read of the layers' decompressed tars, of each span from the first to the last byte read",
    ),
    (
        "reads",
        "3,000 files of /usr/lib read one after the other by another container, when the first had ended and the page cache was dropped, and again",
    ),
    ("rss_mb", "resident memory of the snapshotter's process when the container had ended"),
    (
        "layers_lazy",
        "layers that containerd did not fetch, or not unpack, since their index was there when their turn came",
    ),
    ("layers_adopted", "layers that containerd fetched and did not unpack"),
    ("reads_that_waited", "reads of lazily mounted layers that had to wait for the swarm"),
];

/// All starts of one image by one way.
struct Starts<'a>(Vec<&'a Row>);

impl Starts<'_> {
    fn of(&self, value: fn(&Row) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.0.iter().filter_map(|row| value(row)))
    }

    fn median(&self, value: fn(&Row) -> Option<f64>) -> Option<f64> {
        Some(self.of(value)?.median)
    }

    fn json(&self) -> Value {
        json!({
            "image": self.0[0].image,
            "way": self.0[0].way,
            "runs": self.0.len(),
            "pulled_s": self.of(|row| Some(row.pulled_s)),
            "first_s": self.of(|row| Some(row.first_s)),
            "ready_s": self.of(|row| Some(row.ready_s)),
            "fetched_mb": self.of(|row| Some(row.fetched_bytes as f64 / 1e6)),
            "rss_mb": self.of(|row| row.rss_mb),
            "cold_mb_s": self.of(|row| row.reads.map(Reads::cold_mb_s)),
            "warm_mb_s": self.of(|row| row.reads.map(Reads::warm_mb_s)),
        })
    }
}

impl Report {
    /// By image and way, in the order in which they came first.
    fn starts(&self) -> Vec<Starts<'_>> {
        let mut all: Vec<Starts<'_>> = Vec::new();
        for row in &self.rows {
            match all.iter_mut().find(|starts| (starts.0[0].image, starts.0[0].way) == (row.image, row.way)) {
                Some(starts) => starts.0.push(row),
                None => all.push(Starts(vec![row])),
            }
        }
        all
    }

    /// `target/bench/lazy.json`.
    pub(crate) fn write(&self) -> Result<()> {
        let directory = Path::new("target/bench");
        std::fs::create_dir_all(directory).context("target/bench")?;
        let mut document = serde_json::json!({
            "what": "start of a container of an image that the machine does not have; registry 100 Mbit/s, each worker 400 Mbit/s; rows: median, least and most of all runs",
            "meaning": BTreeMap::from(LEGEND),
            "rows": self.starts().iter().map(Starts::json).collect::<Vec<_>>(),
            "runs": self.rows,
            "left_out": self.left_out,
        });
        for (name, part) in &self.parts {
            document[name] = part.clone();
        }
        std::fs::write(directory.join("lazy.json"), serde_json::to_string_pretty(&document)? + "\n")
            .context("target/bench/lazy.json")
    }

    pub(crate) fn print(&self) -> Result<()> {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([
            "IMAGE",
            "WAY",
            "PULLED S",
            "FIRST S",
            "OF PLAIN",
            "READY S",
            "OF PLAIN",
            "FETCHED MB",
            "RSS MB",
            "COLD MB/S",
            "WARM MB/S",
            "WAITED",
        ]);
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let all = self.starts();
        for starts in &all {
            let (image, way) = (starts.0[0].image, starts.0[0].way);
            let plain = all.iter().find(|other| other.0[0].image == image && other.0[0].way == "plain");
            let text = |value: fn(&Row) -> Option<f64>, digits: usize| {
                starts.median(value).map_or_else(String::new, |value| format!("{value:.digits$}"))
            };
            let share = |value: fn(&Row) -> Option<f64>| {
                let share = plain.and_then(|plain| Some(starts.median(value)? / plain.median(value)?));
                share.map_or_else(String::new, |share| format!("{share:.3}"))
            };
            table.add_row([
                image.to_owned(),
                way.to_owned(),
                text(|row| Some(row.pulled_s), 2),
                text(|row| Some(row.first_s), 2),
                share(|row| Some(row.first_s)),
                text(|row| Some(row.ready_s), 2),
                share(|row| Some(row.ready_s)),
                text(|row| Some(row.fetched_bytes as f64 / 1e6), 1),
                text(|row| row.rss_mb, 0),
                text(|row| row.reads.map(Reads::cold_mb_s), 1),
                text(|row| row.reads.map(Reads::warm_mb_s), 1),
                text(|row| row.reads_that_waited, 0),
            ]);
        }
        writeln!(std::io::stdout(), "{table}")?;
        for (name, why) in &self.left_out {
            writeln!(std::io::stdout(), "{name} was left out: {why}")?;
        }
        Ok(())
    }
}
