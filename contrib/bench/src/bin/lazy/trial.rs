//! One worker, new and empty, pulls an image and starts it.

use crate::Subject;
use crate::report::{Report, Row};
use anyhow::{Context, Result, ensure};
use lapwing_lab::{LapwingSettings, Machine, MachineOptions, Mbit, Site, interrupt, lapwing_binary, wait};
use std::time::{Duration, Instant};

const REGISTRY: Mbit = Mbit(100);
const WORKER: Mbit = Mbit(400);
/// Longest time to be ready, and for what has to happen in between.
const LONGEST: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(2);

/// How a worker comes to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    First,
    Whole,
    Lazy,
    Profile,
    Plain,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::First => "first_pull",
            Self::Whole => "whole",
            Self::Lazy => "lazy",
            Self::Profile => "lazy_profile",
            Self::Plain => "plain",
        }
    }

    fn options(self, site: &Site) -> MachineOptions {
        let settings = LapwingSettings::node(&[site.tracker.tracker_address()])
            .with("lazy", "complete_after = \"0\"")
            .with("snapshotter", "resolve_timeout = \"5s\"");
        let options = match self {
            Self::Plain => MachineOptions::plain(),
            Self::Whole => MachineOptions::lapwing(settings.with("lazy", "enabled = false")),
            _ => MachineOptions::lapwing(settings),
        };
        MachineOptions { rate: Some(WORKER), ..options }
    }
}

/// All ways to one image, in one cluster: the first pull makes the indexes, the first lazy start the profile.
pub(crate) fn measure(subject: &Subject, report: &mut Report) -> Result<()> {
    eprintln!("{}: {}", subject.name, subject.about);
    let layout = (subject.build)()?;
    let site = Site::new("bench-lazy", Some(REGISTRY))?;
    let reference = site.registry.push(&layout, &format!("{}:1", subject.name))?;
    let mut workers = Vec::new();
    for way in [Way::Plain, Way::First, Way::Whole, Way::Lazy, Way::Profile] {
        interrupt::check()?;
        let name = way.name().replace('_', "");
        let worker = Machine::start(&site.network, &name, &site.registry, way.options(&site))?;
        let mut row = start(subject, &worker, &reference, way)?;
        row.image_bytes = layout.compressed_bytes();
        match way {
            Way::First => logged(&worker, "built the index of a layer", layout.layers.len())?,
            Way::Lazy => {
                logged(&worker, "recorded what a container read", 1)?;
                row.read_bytes = Some(read_bytes(&worker, &reference)?);
            }
            _ => {}
        }
        eprintln!("    {}", row.summary());
        report.rows.push(row);
        if way == Way::Plain {
            // Serves nobody.
            continue;
        }
        workers.push(worker);
    }
    Ok(())
}

fn start(subject: &Subject, worker: &Machine, reference: &str, way: Way) -> Result<Row> {
    let snapshotter = if way == Way::Plain { "overlayfs" } else { "lapwing" };
    let output = worker.host.dir().join("start.output");
    let uri = format!("file://{}", output.display());
    let (received, begun) = (worker.host.received_bytes()?, Instant::now());
    worker.containerd.pull(reference, snapshotter)?;
    let pulled_s = begun.elapsed().as_secs_f64();
    let mut command = worker.containerd.run_command(&["--log-uri", &uri], reference, snapshotter, "start")?;
    let mut container = worker.host.spawn("start", &mut command)?;
    let until = |line: &str| -> Result<f64> {
        loop {
            let printed = std::fs::read_to_string(&output).unwrap_or_default();
            if printed.lines().any(|printed| printed.starts_with(line)) {
                return Ok(begun.elapsed().as_secs_f64());
            }
            ensure!(begun.elapsed() < LONGEST, "no {line:?} within {LONGEST:?}, but {printed:?}");
            interrupt::check()?;
            std::thread::sleep(POLL);
        }
    };
    let first_s = until(subject.first)?;
    let ready_s = until(subject.ready)?;
    let fetched_bytes = worker.host.received_bytes()? - received;
    container.wait(LONGEST)?;
    let metric = |name: &str| worker.lapwing.as_ref().map(|node| node.metric(name, "")).transpose();
    Ok(Row {
        image: subject.name,
        way: way.name(),
        image_bytes: 0,
        pulled_s,
        first_s,
        ready_s,
        fetched_bytes,
        fetched_bytes_in_all: worker.host.received_bytes()? - received,
        read_bytes: None,
        layers_lazy: metric("lapwing_snapshot_layers_claimed_total")?,
        layers_adopted: metric("lapwing_snapshot_layers_adopted_total")?,
        reads_that_waited: metric("lapwing_lazy_waited_reads_total")?,
        spans_prefetched: metric("lapwing_lazy_prefetched_spans_total")?,
        spans_prefetched_and_read: metric("lapwing_lazy_prefetch_hits_total")?,
    })
}

fn logged(worker: &Machine, what: &str, times: usize) -> Result<()> {
    let node = worker.lapwing.as_ref().context("a worker without Lapwing")?;
    wait::until_true(what, LONGEST, || node.log().is_ok_and(|log| log.matches(what).count() >= times))
}

/// Decompressed bytes that the profile of a start lists.
fn read_bytes(worker: &Machine, reference: &str) -> Result<u64> {
    let shown = worker.host.check(lapwing_binary()?, &["profile", "show", reference, "--json"])?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    shown["starts"][0]["bytes"].as_u64().context("no bytes in a profile")
}
