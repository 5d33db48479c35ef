//! How close a run came to the bound, worked out from what nodes told. Pure.
//!
//! The bound is the fluid one of Kumar and Ross ("Peer-Assisted File Distribution: The Minimum Distribution Time", 2006): no distribution is done
//! before the registry has sent each byte once, the slowest node has taken what it lacks, and all that nodes lack has been sent by the registry and
//! all nodes together. With a registry that sends one copy and no more, the nodes alone send the rest.
//!
//! Rates that nobody gave are those that were seen: at most what the links carry, so that the bound comes out too long, and the efficiency
//! too good. Which were given and which were seen is told with each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::api::RunView;
use super::report::{Report, Stage};
use crate::explain::Cause;

/// What the operator says of his links, in bytes per second.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Links {
    pub up: Option<f64>,
    pub down: Option<f64>,
    pub registry: Option<f64>,
}

/// How a node counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Counted {
    /// It lacked something, and got it.
    Measured,
    /// It had everything before: a source, not measured.
    Held,
    /// It could not have something.
    Failed,
    /// It heard of the run when the others had begun.
    Late,
    /// It had not come to an end when the run did.
    Unfinished,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeFigures {
    pub node: String,
    pub address: String,
    pub zone: String,
    pub counted: Counted,
    pub lacked_bytes: u64,
    pub held_bytes: u64,
    pub seconds: f64,
    pub bytes_from_registry: u64,
    pub bytes_from_nodes: u64,
    pub bytes_from_other_zones: u64,
    pub bytes_from_seeds: u64,
    pub sent_bytes: u64,
    /// The highest rates it was seen at, in Mbit/s.
    pub peak_down_mbit: f64,
    pub peak_up_mbit: f64,
    /// What limited it most.
    pub limited_by: Option<Cause>,
    pub error: String,
    /// Whether it has removed what the run brought.
    pub removed: bool,
}

/// A rate that the bound is made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct RateUsed {
    /// Of one node's link, or the registry's; the mean of those that were seen.
    pub mbit: f64,
    /// Given by the operator; else seen in this run.
    pub given: bool,
}

/// What the bound follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BoundBy {
    /// Each byte comes from the registry or a seed once.
    Registry,
    /// A node takes what it lacks.
    Down,
    /// Everybody sends all that is lacking.
    Swarm,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub image: String,
    pub image_bytes: u64,
    pub blobs: usize,
    /// Nodes that it was for; those below are parts of them.
    pub nodes: u32,
    pub measured: usize,
    pub held: usize,
    pub failed: usize,
    pub late: usize,
    pub unfinished: usize,
    /// Nodes that said nothing.
    pub silent: usize,
    /// What the measured ones lacked, all together.
    pub lacked_bytes: u64,
    pub median_seconds: Option<f64>,
    pub last_seconds: Option<f64>,
    pub bound_seconds: Option<f64>,
    pub bound_by: Option<BoundBy>,
    /// The bound if the registry and seeds send each byte once and no more.
    pub bound_one_copy_seconds: Option<f64>,
    /// Bound by time of the last node.
    pub efficiency: Option<f64>,
    pub registry: RateUsed,
    pub up: RateUsed,
    pub down: RateUsed,
    pub bytes_from_registry: u64,
    /// The same, as copies of what no node had before.
    pub registry_copies: Option<f64>,
    pub bytes_from_seeds: u64,
    pub bytes_from_nodes: u64,
    pub bytes_from_other_zones: u64,
    /// What limited the measured nodes, as a share of all their time, the greatest first.
    pub limited_by: Vec<(Cause, f64)>,
    /// The slowest first.
    pub node_figures: Vec<NodeFigures>,
}

const MBIT: f64 = 125_000.0;

impl Figures {
    pub(crate) fn of(run: &RunView, links: Links) -> Self {
        let mut nodes: Vec<NodeFigures> = (0..run.nodes.len()).map(|place| node(run, place)).collect();
        let measured: Vec<usize> =
            (0..nodes.len()).filter(|&place| nodes[place].counted == Counted::Measured).collect();
        let sum = |part: fn(&NodeFigures) -> u64| nodes.iter().map(part).fold(0, u64::saturating_add);
        let lacked_bytes = measured.iter().map(|&place| nodes[place].lacked_bytes).sum();
        let cold = cold_bytes(run);
        let bytes_from_registry = sum(|node| node.bytes_from_registry);
        let registry = registry_rate(run, links);
        let bound = Bound {
            nodes: &nodes,
            measured: &measured,
            lacked: lacked_bytes as f64,
            cold: cold as f64,
            registry,
            links,
        };
        let (bound_seconds, bound_by) = bound.seconds().unzip();
        let bound_one_copy_seconds = bound.one_copy();
        let mean = |rate: fn(&NodeFigures) -> f64, of: &[usize]| {
            of.iter().map(|&place| rate(&nodes[place])).sum::<f64>() / of.len().max(1) as f64
        };
        let used = |given: Option<f64>, seen: f64| RateUsed {
            mbit: given.map_or(seen, |rate| rate / MBIT),
            given: given.is_some(),
        };
        let everybody: Vec<usize> = (0..nodes.len()).collect();
        let up = used(links.up, mean(|node| node.peak_up_mbit, &everybody));
        let down = used(links.down, mean(|node| node.peak_down_mbit, &measured));
        let mut times: Vec<f64> = measured.iter().map(|&place| nodes[place].seconds).collect();
        times.sort_by(f64::total_cmp);
        let last_seconds = times.last().copied();
        let count = |counted: Counted| nodes.iter().filter(|node| node.counted == counted).count();
        let figures = Self {
            image: run.image.clone(),
            image_bytes: run.blobs.iter().map(|blob| blob.length_bytes).sum(),
            blobs: run.blobs.len(),
            nodes: run.expected.max(u32::try_from(nodes.len()).unwrap_or(u32::MAX)),
            measured: measured.len(),
            held: count(Counted::Held),
            failed: count(Counted::Failed),
            late: count(Counted::Late),
            unfinished: count(Counted::Unfinished),
            silent: (run.expected as usize).saturating_sub(nodes.len()),
            lacked_bytes,
            // The lower one of two in the middle.
            median_seconds: times.get(times.len().saturating_sub(1) / 2).copied(),
            last_seconds,
            bound_seconds,
            bound_by,
            bound_one_copy_seconds,
            efficiency: bound_seconds
                .zip(last_seconds)
                .filter(|(_, last)| *last > 0.0)
                .map(|(bound, last)| bound / last),
            registry: used(links.registry, registry / MBIT),
            up,
            down,
            bytes_from_registry,
            registry_copies: (cold > 0).then(|| bytes_from_registry as f64 / cold as f64),
            bytes_from_seeds: sum(|node| node.bytes_from_seeds),
            bytes_from_nodes: sum(|node| node.bytes_from_nodes),
            bytes_from_other_zones: sum(|node| node.bytes_from_other_zones),
            limited_by: limits(run, &measured),
            node_figures: Vec::new(),
        };
        nodes.sort_by(|one, other| other.seconds.total_cmp(&one.seconds).then_with(|| one.address.cmp(&other.address)));
        Self { node_figures: nodes, ..figures }
    }

    /// Whether every node that it was for has been measured, or held it.
    pub(crate) const fn is_whole(&self) -> bool {
        self.failed + self.late + self.unfinished + self.silent == 0
    }
}

fn node(run: &RunView, place: usize) -> NodeFigures {
    let told = &run.nodes[place];
    let reports = || told.reports.iter().flatten();
    let sum = |part: fn(&Report) -> u64| reports().map(part).fold(0_u64, u64::saturating_add);
    let (mut lacked, mut held, mut seconds) = (0_u64, 0_u64, 0.0_f64);
    for (blob, report) in run.blobs.iter().zip(&told.reports) {
        let here = report.as_ref().map_or(0, |report| report.held.min(blob.length_bytes));
        held += here;
        lacked += blob.length_bytes - here;
        if here < blob.length_bytes {
            seconds = seconds.max(report.as_ref().map_or(0, |report| report.took_ms) as f64 / 1000.0);
        }
    }
    let failed = reports().find(|report| report.stage == Stage::Failed);
    let has_all =
        told.reports.iter().all(|report| matches!(report, Some(Report { stage: Stage::Done | Stage::Removed, .. })));
    let counted = match () {
        () if failed.is_some() => Counted::Failed,
        () if lacked == 0 => Counted::Held,
        () if !has_all => Counted::Unfinished,
        () if reports().any(|report| report.late && report.held == 0) => Counted::Late,
        () => Counted::Measured,
    };
    let mut causes: Vec<(Cause, f64)> = causes(reports()).into_iter().collect();
    causes.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let highest = |part: fn(&Report) -> u64| reports().map(part).max().unwrap_or_default();
    let error = reports().find(|report| !report.error.is_empty()).map(|report| report.error.clone());
    NodeFigures {
        node: told.node.clone(),
        address: told.address.to_string(),
        zone: told.zone.clone(),
        counted,
        lacked_bytes: lacked,
        held_bytes: held,
        seconds,
        bytes_from_registry: sum(|report| report.from_origin),
        bytes_from_nodes: sum(|report| report.from_near.saturating_add(report.from_far)),
        bytes_from_other_zones: sum(|report| report.from_far),
        bytes_from_seeds: sum(|report| report.from_seeds),
        // These are of the whole node, and told with each blob.
        sent_bytes: highest(|report| report.sent),
        peak_down_mbit: highest(|report| report.peak_in) as f64 / MBIT,
        peak_up_mbit: highest(|report| report.peak_out) as f64 / MBIT,
        limited_by: causes.first().map(|(cause, _)| *cause),
        error: error.unwrap_or_default(),
        removed: reports().any(|report| report.stage == Stage::Removed),
    }
}

/// Milliseconds by cause.
fn causes<'a>(reports: impl Iterator<Item = &'a Report>) -> BTreeMap<Cause, f64> {
    let mut causes = BTreeMap::new();
    for (cause, ms) in reports.flat_map(|report| &report.limited_by) {
        *causes.entry(*cause).or_default() += *ms as f64;
    }
    causes
}

fn limits(run: &RunView, measured: &[usize]) -> Vec<(Cause, f64)> {
    let causes = causes(measured.iter().flat_map(|&place| run.nodes[place].reports.iter().flatten()));
    let all: f64 = causes.values().sum();
    let mut shares: Vec<_> = causes.into_iter().map(|(cause, ms)| (cause, ms / all.max(1.0))).collect();
    shares.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    shares
}

/// Bytes of the image that no node had whole before.
fn cold_bytes(run: &RunView) -> u64 {
    let is_cold = |place: usize, length: u64| {
        !run.nodes.iter().filter_map(|node| node.reports[place].as_ref()).any(|report| report.held >= length)
    };
    let blobs = run.blobs.iter().map(|blob| blob.length_bytes).enumerate();
    blobs.filter(|(place, length)| is_cold(*place, *length)).map(|(_, length)| length).sum()
}

/// What the registry and the seeds gave while they gave anything, in bytes per second, unless it is given.
fn registry_rate(run: &RunView, links: Links) -> f64 {
    if let Some(given) = links.registry {
        return given;
    }
    let reports = || run.nodes.iter().flat_map(|node| node.reports.iter().flatten());
    let bytes: f64 = reports().map(|report| report.from_origin as f64 + report.from_seeds as f64).sum();
    let from = reports().filter_map(|report| report.source_from_ms).min();
    let until = reports().filter_map(|report| report.source_until_ms).max();
    let span = from.zip(until).map_or(0, |(from, until)| until.saturating_sub(from));
    if span == 0 { 0.0 } else { bytes * 1000.0 / span as f64 }
}

struct Bound<'a> {
    nodes: &'a [NodeFigures],
    measured: &'a [usize],
    lacked: f64,
    cold: f64,
    registry: f64,
    links: Links,
}

impl Bound<'_> {
    /// Of all nodes together, those that had everything before included.
    fn all_up(&self) -> f64 {
        self.nodes.iter().map(|node| self.links.up.unwrap_or(node.peak_up_mbit * MBIT)).sum()
    }

    fn seconds(&self) -> Option<(f64, BoundBy)> {
        let over = |bytes: f64, rate: f64| if bytes > 0.0 && rate > 0.0 { bytes / rate } else { 0.0 };
        let down = self.measured.iter().map(|&place| {
            let node = &self.nodes[place];
            over(node.lacked_bytes as f64, self.links.down.unwrap_or(node.peak_down_mbit * MBIT))
        });
        let parts = [
            (over(self.cold, self.registry), BoundBy::Registry),
            (down.fold(0.0, f64::max), BoundBy::Down),
            (over(self.lacked, self.registry + self.all_up()), BoundBy::Swarm),
        ];
        let greatest = parts.into_iter().max_by(|(one, _), (other, _)| one.total_cmp(other));
        greatest.filter(|(seconds, _)| *seconds > 0.0)
    }

    fn one_copy(&self) -> Option<f64> {
        let (bound, _) = self.seconds()?;
        let (rest, up) = (self.lacked - self.cold, self.all_up());
        Some(if up > 0.0 && rest > 0.0 { bound.max(rest / up) } else { bound })
    }
}

#[cfg(test)]
mod tests;
