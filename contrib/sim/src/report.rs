//! The figures of a run.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::scenario::Scenario;
use crate::world::{Measured, World};

/// Runs a scenario and measures it, also by the clock on the wall.
pub fn run(scenario: Scenario) -> Report {
    // Failing means a kernel that cannot forget the peak: then the figure is the peak of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let (began, cpu) = (Instant::now(), cpu_time());
    let measured = World::new(scenario.clone()).run();
    Report { scenario, measured, wall: began.elapsed(), cpu: cpu_time().saturating_sub(cpu) }
}

/// A run and its figures.
#[derive(Debug)]
pub struct Report {
    /// What was run.
    pub scenario: Scenario,
    /// What came out.
    pub measured: Measured,
    /// How long it took to simulate.
    pub wall: Duration,
    /// How long it had a processor meanwhile.
    pub cpu: Duration,
}

impl Report {
    /// The least time possible, over the time of the last node.
    pub fn efficiency(&self) -> f64 {
        self.scenario.bound_s() / self.measured.last_s
    }

    /// Bytes from the origin over those of one copy.
    pub fn copies(&self) -> f64 {
        self.measured.origin_bytes as f64 / self.scenario.bytes() as f64
    }

    /// Median time of the nodes from their start to their last piece, in seconds.
    pub fn median_s(&self) -> f64 {
        let done = &self.measured.done_s;
        done.get(done.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Bytes that came in vain, over all that came.
    pub fn wasted(&self) -> f64 {
        self.measured.wasted_bytes as f64 / self.measured.bytes.max(1) as f64
    }

    /// When a reader is done that streams in order at twice the swarm's mean rate, over the swarm's end: the worst of the
    /// recorded nodes.
    pub fn reader(&self) -> f64 {
        let last = self.measured.last_s;
        let end = |arrivals: &Vec<f64>| {
            let piece_s = last / 2.0 / arrivals.len() as f64;
            arrivals.iter().fold(0.0_f64, |read, &arrived| read.max(arrived) + piece_s)
        };
        self.measured.arrivals_s.iter().map(end).fold(0.0, f64::max) / last
    }

    /// One line of JSON.
    pub fn json(&self) -> Value {
        let (scenario, measured) = (&self.scenario, &self.measured);
        let (nodes, rates) = (scenario.nodes as f64, scenario.rates);
        let round = |value: f64| (value * 1e4).round() / 1e4;
        json!({
            "name": scenario.name,
            "nodes": scenario.nodes,
            "blobs": scenario.blobs.len(),
            "blob_bytes": scenario.bytes(),
            "registry_mbit": rates.origin,
            "node_up_mbit": rates.up,
            "node_down_mbit": rates.down,
            "deaths": scenario.deaths,
            "seed": scenario.seed,
            "bound_s": round(scenario.bound_s()),
            "last_s": round(measured.last_s),
            "p50_s": round(self.median_s()),
            "efficiency": round(self.efficiency()),
            "registry_copies": round(self.copies()),
            "reader_over_last": round(self.reader()),
            "border_copies": scenario.zone_link.map(|_| {
                measured.border_bytes.map(|bytes| round(bytes as f64 / scenario.bytes() as f64))
            }),
            "wasted": round(self.wasted()),
            "hedges": measured.hedges,
            "haves_per_s_and_node": round(measured.haves as f64 / nodes / measured.last_s.max(1e-9)),
            "invitations_per_s_and_node": round(measured.invitations as f64 / nodes / measured.last_s.max(1e-9)),
            "finds_per_s": round(measured.questions[0] as f64 / measured.last_s.max(1e-9)),
            "lease_questions_per_s": round(measured.questions[1] as f64 / measured.last_s.max(1e-9)),
            "bans": measured.bans,
            "unfinished": measured.unfinished,
            "events": measured.events,
            "wall_s": round(self.wall.as_secs_f64()),
            "cpu_s": round(self.cpu.as_secs_f64()),
            "us_per_event": round(self.cpu.as_secs_f64() * 1e6 / measured.events.max(1) as f64),
            "rss_max_mb": peak_mb(),
            "trace": format!("{:016x}", measured.trace),
        })
    }
}

/// Most memory that the process has had since [`run`] began, in MiB; none where the kernel does not say.
fn peak_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}

/// For how long this process has had a processor, to a hundredth of a second; zero where the kernel does not say. (proc(5):
/// `utime` and `stime`, fields 14 and 15, in hundredths of a second; the second field ends with the last parenthesis.)
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}
