//! One worker, new and empty, pulls an image and starts it.

use crate::report::{Reads, Report, Row};
use crate::{Subject, foreign};
use anyhow::{Context, Result, anyhow, bail, ensure};
use lapwing_bench::status_mb;
use lapwing_lab::image::Layout;
use lapwing_lab::{LapwingSettings, Machine, MachineOptions, Mbit, Site, interrupt, lapwing_binary, wait};
use std::time::{Duration, Instant};

const REGISTRY: Mbit = Mbit(100);
/// Bytes of a part where layers are fetched in several at once.
const PART: u32 = 8 << 20;
const WORKER: Mbit = Mbit(400);
/// Longest time to be ready, and for what has to happen in between.
const LONGEST: Duration = Duration::from_secs(900);
/// Prints bytes and nanoseconds of reading the same files, by name, twice.
const READER: &str = "for pass in cold warm; do begun=$(date +%s%N); \
    find /usr/lib -xdev -type f | sort | head -n 3000 | xargs cat | wc -c; \
    echo $(($(date +%s%N) - begun)); done";
const POLL: Duration = Duration::from_millis(2);

/// How a worker comes to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    First,
    Whole,
    Lazy,
    Profile,
    Plain,
    /// Plain, each layer in parts at the same time (containerd 2.1).
    Parallel,
    /// containerd's own EROFS snapshotter.
    Erofs,
    /// stargz-snapshotter, with the image converted to eStargz.
    Stargz,
    /// soci-snapshotter, with the image converted to one that has a SOCI index.
    Soci,
}

/// All of them, in the order in which they come: each of Lapwing's finds what the one before left.
const WAYS: [Way; 9] =
    [Way::Plain, Way::Parallel, Way::Erofs, Way::Stargz, Way::Soci, Way::First, Way::Whole, Way::Lazy, Way::Profile];

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::First => "first_pull",
            Self::Whole => "whole",
            Self::Lazy => "lazy",
            Self::Profile => "lazy_profile",
            Self::Plain => "plain",
            Self::Parallel => "plain_parallel",
            Self::Erofs => "erofs",
            Self::Stargz => "stargz",
            Self::Soci => "soci",
        }
    }

    /// Whether it needs something that this machine may not have.
    const fn is_foreign(self) -> bool {
        matches!(self, Self::Erofs | Self::Stargz | Self::Soci)
    }

    const fn snapshotter(self) -> &'static str {
        match self {
            Self::First | Self::Whole | Self::Lazy | Self::Profile => "lapwing",
            Self::Plain | Self::Parallel => "overlayfs",
            Self::Erofs => "erofs",
            Self::Stargz => "stargz",
            Self::Soci => "soci",
        }
    }

    fn options(self, site: &Site) -> MachineOptions {
        let settings = LapwingSettings::node(&[site.tracker.tracker_address()])
            .with("lazy", "complete_after = \"0\"")
            .with("snapshotter", "resolve_timeout = \"5s\"");
        let options = match self {
            Self::Plain => MachineOptions::plain(),
            Self::Parallel => MachineOptions { layer_fetch_buffer: Some(PART), ..MachineOptions::plain() },
            Self::Erofs => MachineOptions { erofs: true, ..MachineOptions::plain() },
            Self::Stargz | Self::Soci => {
                MachineOptions { others: vec![foreign::proxy(self.name())], ..MachineOptions::plain() }
            }
            Self::Whole => MachineOptions::lapwing(settings.with("lazy", "enabled = false")),
            _ => MachineOptions::lapwing(settings),
        };
        MachineOptions { rate: Some(WORKER), ..options }
    }
}

/// All ways to one image, in one cluster: the first pull makes the indexes, the first lazy start the profile. Another snapshotter that cannot be built or
/// started is named in the report.
pub(crate) fn measure(subject: &Subject, report: &mut Report) -> Result<()> {
    let layout = (subject.build)()?;
    let site = Site::new("bench-lazy", None)?;
    let reference = site.registry.push(&layout, &format!("{}:1", subject.name))?;
    // What cannot be converted leaves the ways out that need it.
    let estargz = foreign::estargz(&site, &reference);
    let soci = foreign::soci(&site, &layout, subject.name);
    site.registry.host().set_rate(REGISTRY)?;
    let cluster = Cluster { subject, site, layout, plain: reference, estargz, soci };
    let mut workers = Vec::new();
    for way in WAYS {
        interrupt::check()?;
        match cluster.measure(way) {
            Ok((worker, row)) => {
                eprintln!("    {}", row.summary());
                report.rows.push(row);
                // The others serve nobody.
                workers.extend(worker.lapwing.is_some().then_some(worker));
            }
            Err(error) if way.is_foreign() => {
                interrupt::check()?;
                eprintln!("    {}: {error:#}", way.name());
                let what = format!("{} (once, with {})", way.name(), subject.name);
                report.left_out.insert(what, format!("{error:#}"));
            }
            Err(error) => return Err(error.context(way.name())),
        }
    }
    Ok(())
}

/// The image in one registry, as each way takes it.
struct Cluster<'a> {
    subject: &'a Subject,
    layout: Layout,
    plain: String,
    estargz: Result<String>,
    soci: Result<String>,
    site: Site,
}

impl Cluster<'_> {
    fn measure(&self, way: Way) -> Result<(Machine, Row)> {
        let host = self.site.network.host(&way.name().replace('_', ""), Some(WORKER))?;
        let registry = &self.site.registry;
        let (reference, other) = match way {
            Way::Stargz => (converted(&self.estargz)?, Some(foreign::start(&host, way.name(), registry)?)),
            Way::Soci => (converted(&self.soci)?, Some(foreign::start(&host, way.name(), registry)?)),
            _ => (&self.plain, None),
        };
        let mut worker = Machine::start_on(&host, registry, way.options(&self.site))?;
        let mut row = start(self.subject, &mut worker, reference, way)?;
        row.image_bytes = self.layout.compressed_bytes();
        if let Some(process) = &other {
            row.rss_mb = Some(status_mb(process.pid(), "VmRSS"));
        }
        match way {
            Way::First => logged(&worker, "built the index of a layer", self.layout.layers.len())?,
            Way::Lazy => {
                logged(&worker, "recorded what a container read", 1)?;
                row.read_bytes = Some(read_bytes(&worker, reference)?);
            }
            _ => {}
        }
        row.reads = Some(read_files(&worker, reference, way)?);
        Ok((worker, row))
    }
}

fn converted(reference: &Result<String>) -> Result<&String> {
    reference.as_ref().map_err(|error| anyhow!("the image was not converted: {error:#}"))
}

fn start(subject: &Subject, worker: &mut Machine, reference: &str, way: Way) -> Result<Row> {
    let snapshotter = way.snapshotter();
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
    let rss_mb = worker.lapwing.as_mut().map(|node| status_mb(node.process().pid(), "VmRSS"));
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
        reads: None,
        rss_mb,
        layers_lazy: metric("lapwing_snapshot_layers_claimed_total")?,
        layers_adopted: metric("lapwing_snapshot_layers_adopted_total")?,
        reads_that_waited: metric("lapwing_lazy_waited_reads_total")?,
        spans_prefetched: metric("lapwing_lazy_prefetched_spans_total")?,
        spans_prefetched_and_read: metric("lapwing_lazy_prefetch_hits_total")?,
    })
}

/// Reads files in a container of its own, twice.
fn read_files(worker: &Machine, reference: &str, way: Way) -> Result<Reads> {
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the page cache")?;
    let output = worker.containerd.run(reference, way.snapshotter(), "reader", &["/bin/sh", "-c", READER])?;
    let numbers: Vec<f64> = output.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [bytes, cold, again, warm] = numbers[..] else { bail!("the reader printed {output:?}") };
    ensure!(bytes == again && bytes > 0.0, "the reader read {bytes} bytes, and then {again}");
    Ok(Reads { bytes: bytes as u64, cold_s: cold / 1e9, warm_s: warm / 1e9 })
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
