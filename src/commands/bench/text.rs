//! The figures for people. Pure but for the width of the terminal.

use std::fmt::Write as _;

use crate::bench::api::{RunState, RunView};
use crate::bench::figures::{BoundBy, Counted, Figures, NodeFigures, RateUsed};
use crate::commands::table::{plain, seconds, size};

/// One line, while it runs.
pub(super) fn progress(run: &RunView) -> String {
    let of = run.expected.max(u32::try_from(run.nodes.len()).unwrap_or(u32::MAX));
    let ended = run.nodes.iter().filter(|node| node.reports.iter().flatten().all(|report| report.has_ended())).count();
    match run.state {
        RunState::Resolving => "asking the registry for the image".to_owned(),
        RunState::Waiting => {
            let (heard, left) = (run.nodes.len(), run.begins_in_ms.div_ceil(1000));
            format!("{heard} of {of} nodes have heard of it; all begin in {left} s")
        }
        RunState::Running => format!("{ended} of {of} nodes are done"),
        RunState::Settling => "gathering what the nodes saw".to_owned(),
        _ => "the nodes remove what it brought".to_owned(),
    }
}

/// All of it; of the nodes the `slowest` ones, or all if that is 0, and those that were not measured.
pub(super) fn report(figures: &Figures, run: &RunView, slowest: usize) -> String {
    let mut out = String::new();
    let (bytes, blobs) = (size(figures.image_bytes), figures.blobs);
    let _ = writeln!(out, "{}: {bytes} in {blobs} blobs, to {} nodes", figures.image, figures.nodes);
    for line in exceptions(figures, run) {
        let _ = writeln!(out, "{line}");
    }
    if figures.measured == 0 {
        let _ = writeln!(out, "Nothing was measured.");
    } else {
        let _ = writeln!(out, "\n{}", measures(figures));
        for line in remarks(figures) {
            let _ = writeln!(out, "{line}");
        }
    }
    let is_shown = |node: &&NodeFigures| !matches!(node.counted, Counted::Held);
    let shown = if slowest == 0 { usize::MAX } else { slowest };
    let (measured, others): (Vec<_>, Vec<_>) =
        figures.node_figures.iter().filter(is_shown).partition(|node| node.counted == Counted::Measured);
    if !measured.is_empty() || !others.is_empty() {
        let mut table = plain(["NODE", "ZONE", "TIME", "REGISTRY", "NODES", "SENT", "MOST OF THE TIME LIMITED BY"]);
        for node in measured.into_iter().take(shown).chain(others.into_iter().take(shown)) {
            table.add_row(row(node));
        }
        let _ = writeln!(out, "\n{table}");
    }
    out
}

fn row(node: &NodeFigures) -> [String; 7] {
    let why = match node.counted {
        Counted::Measured | Counted::Held => node.limited_by.map_or("", |cause| cause.text()).to_owned(),
        Counted::Late => "not measured: it heard of it when the others had begun".to_owned(),
        Counted::Unfinished => "not measured: it was not done".to_owned(),
        Counted::Failed => format!("not measured: {}", node.error),
    };
    let time = if node.counted == Counted::Measured { seconds(node.seconds) } else { String::new() };
    let (origin, nodes) = (size(node.bytes_from_registry), size(node.bytes_from_nodes));
    [node.address.clone(), node.zone.clone(), time, origin, nodes, size(node.sent_bytes), why]
}

/// Nodes that are not among the figures.
fn exceptions(figures: &Figures, run: &RunView) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |count: usize, what: &str| {
        if count > 0 {
            lines.push(format!("{count} {what}"));
        }
    };
    say(figures.held, "had all of it before: sources, and not measured");
    let in_part = figures.node_figures.iter().filter(|node| node.counted == Counted::Measured && node.held_bytes > 0);
    say(in_part.count(), "had a part of it before: what they lacked is measured");
    say(figures.failed, "could not have it");
    say(figures.late, "heard of it when the others had begun, and are not measured: give them longer with --start-in");
    let unfinished = if run.timed_out { "were not done in time (--timeout)" } else { "came to no end" };
    say(figures.unfinished, unfinished);
    say(figures.silent, "said nothing: they are gone, or run a version that cannot be measured");
    if run.remove {
        let left = figures.node_figures.iter().filter(|node| node.counted == Counted::Measured && !node.removed);
        say(left.count(), "have not said yet that they removed what it brought; they do within a minute of its end");
    }
    if figures.measured == 0 && figures.held > 0 {
        lines.push(
            "Choose an image that they do not have, or remove it there (lapwing rm) and in containerd.".to_owned(),
        );
    }
    lines
}

fn measures(figures: &Figures) -> comfy_table::Table {
    let mut table = plain(["", "", ""]);
    let time = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), precise);
    let mut add = |name: &str, value: String, remark: String| {
        table.add_row([name.to_owned(), value, remark]);
    };
    add("median node", time(figures.median_seconds), format!("of {} measured", figures.measured));
    add("last node", time(figures.last_seconds), String::new());
    add("bound", time(figures.bound_seconds), bound_by(figures.bound_by).to_owned());
    add(
        "with one copy",
        time(figures.bound_one_copy_seconds),
        "the bound if each byte leaves the registry once".to_owned(),
    );
    let efficiency = figures.efficiency.map_or_else(|| "-".to_owned(), |efficiency| format!("{efficiency:.3}"));
    let at_most = if is_seen(figures) { "at most, since rates were seen and not given" } else { "bound by last node" };
    add("efficiency", efficiency, at_most.to_owned());
    add("registry", rate(figures.registry), "seeds included".to_owned());
    add("up", rate(figures.up), "each node".to_owned());
    add("down", rate(figures.down), "each node".to_owned());
    let copies = figures.registry_copies.map(|copies| format!("{copies:.3} copies of what no node had"));
    add("from the registry", size(figures.bytes_from_registry), copies.unwrap_or_default());
    let far = format!("{} of them from other zones", size(figures.bytes_from_other_zones));
    add("from nodes", size(figures.bytes_from_nodes), far);
    if figures.bytes_from_seeds > 0 {
        add("from seeds", size(figures.bytes_from_seeds), String::new());
    }
    table
}

/// Which figures to take with a grain of salt, and what held the nodes up.
fn remarks(figures: &Figures) -> Vec<String> {
    let mut lines = Vec::new();
    let limits =
        figures.limited_by.iter().take(3).map(|(cause, share)| format!("{} ({:.0} %)", cause.text(), share * 100.0));
    let limits: Vec<String> = limits.collect();
    if !limits.is_empty() {
        lines.push(format!("\nWhat limited the nodes: {}.", limits.join("; ")));
    }
    let seen = [("--registry", figures.registry), ("--up", figures.up), ("--down", figures.down)];
    let missing: Vec<&str> = seen.iter().filter(|(_, rate)| !rate.given).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        lines.push(format!(
            "Rates that were seen in this run are at most what the links carry, so that the bound is too long; give {} to know it.",
            missing.join(", ")
        ));
    }
    lines
}

const fn is_seen(figures: &Figures) -> bool {
    !(figures.registry.given && figures.up.given && figures.down.given)
}

fn rate(rate: RateUsed) -> String {
    format!("{:.1} Mbit/s {}", rate.mbit, if rate.given { "(given)" } else { "(seen)" })
}

const fn bound_by(bound: Option<BoundBy>) -> &'static str {
    match bound {
        Some(BoundBy::Registry) => "set by the registry's link: each byte must leave it once",
        Some(BoundBy::Down) => "set by the nodes' links down",
        Some(BoundBy::Swarm) => "set by what registry and nodes can send together",
        None => "",
    }
}

/// A hundredth of a second matters here.
fn precise(seconds: f64) -> String {
    format!("{seconds:.2} s")
}
