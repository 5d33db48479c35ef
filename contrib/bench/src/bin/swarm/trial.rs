//! One run of a scenario: all nodes pull, everything is counted.

use crate::bound::{self, Rates};
use crate::client::{self, Watch};
use crate::fault::Fault;
use crate::plain::{self, Plain};
use crate::process::{MachineTime, cpu_s, rss_max_mb};
use crate::progress;
use crate::report::{Row, trace_file};
use crate::scenario::{Scenario, Start};
use crate::stage::Stage;
use crate::trace::{LOOK, Trace};
use anyhow::{Context, Result};
use lapwing_lab::{Traffic, interrupt, wait};
use std::time::{Duration, Instant};

/// Counters of the nodes that tell what else they did.
const COUNTED: [&str; 6] = [
    "lapwing_hedges_total",
    "lapwing_origin_unleased_total",
    "lapwing_bad_pieces_total",
    "lapwing_unverifiable_pieces_total",
    "lapwing_bans_total",
    "lapwing_digest_mismatches_total",
];
const WARM_UP: Duration = Duration::from_secs(120);

/// One node's pull: seconds from the start of all until its last blob was there, or why not.
type Pulled = Result<f64>;

pub(crate) fn run(scenario: &'static Scenario) -> Result<Row> {
    let mut stage = Stage::set(scenario)?;
    progress(&format!("    {} nodes run; plain transfers on the same links", stage.nodes.len()));
    let plain = plain::measure(scenario, &stage)?;
    warm_up(scenario, &stage)?;
    let cpu_before: Vec<f64> = pids(&mut stage).into_iter().map(cpu_s).collect();
    let time_before = MachineTime::now()?;
    progress("    pulling");
    let pulling = pull_all(scenario, &mut stage)?;
    let free_cpu = MachineTime::now()?.free_since(time_before);
    let pids = pids(&mut stage);
    let cpu: f64 = pids.iter().zip(cpu_before).map(|(&pid, before)| (cpu_s(pid) - before).max(0.0)).sum();
    let rss_max_mb = pids.into_iter().map(rss_max_mb).fold(0.0, f64::max);
    let file = trace_file(scenario.name);
    pulling.trace.write(&file)?;
    let row = row(scenario, &stage, &plain, &pulling)?;
    Ok(Row { cpu_s_per_gb: cpu / (row.pulled_bytes as f64 / 1e9), rss_max_mb, free_cpu, ..row })
}

fn pids(stage: &mut Stage) -> Vec<u32> {
    stage.nodes.iter_mut().map(|node| node.lapwing.process().pid()).collect()
}

/// Lets the first nodes have everything, where the scenario says so.
fn warm_up(scenario: &Scenario, stage: &Stage) -> Result<()> {
    for node in stage.nodes.iter().take(scenario.warm()) {
        progress(&format!("    warming up {}", node.host.name()));
        for blob in &stage.blobs {
            let (address, path) = stage.at_mirror(blob);
            node.host.within(|| client::pull(address, &path, blob, None, &Watch::default()))?;
            wait::until_true("a node to have proved a blob", WARM_UP, || {
                let log = node.lapwing.log().unwrap_or_default();
                log.lines().any(|line| line.contains("matches its digest") && line.contains(&blob.digest))
            })?;
        }
    }
    Ok(())
}

/// What came of the pulls.
struct Pulling {
    /// Of each node that pulled; `None` for the others.
    pulled: Vec<Option<Pulled>>,
    starts_s: Vec<f64>,
    trace: Trace,
    border_before: Traffic,
}

fn pull_all(scenario: &Scenario, stage: &mut Stage) -> Result<Pulling> {
    let border_before = border(scenario, stage)?;
    let warm = scenario.warm();
    let pause = |number: usize| match scenario.start {
        Start::Every(pause) => pause * u32::try_from(number).unwrap_or(u32::MAX),
        Start::Together | Start::HalfWarm => Duration::ZERO,
    };
    let mean_rate = scenario.bytes() as f64 / bound::one_copy_seconds(scenario, Rates::nominal(scenario));
    let watches: Vec<Watch> = stage.nodes.iter().map(|_| Watch::default()).collect();
    let exempt = scenario.fault.exempt(scenario.nodes);
    let begun = Instant::now();
    let mut pulls = Vec::new();
    for (number, watch) in watches.into_iter().enumerate().skip(warm) {
        let pace = (scenario.streaming_reader && number == 0).then_some(2.0 * mean_rate);
        pulls.push((number, spawn_pull(stage, number, begun + pause(number), pace, watch)));
    }
    let mut trace = Trace::start(stage)?;
    let goal = scenario.bytes() * (scenario.nodes - warm) as u64;
    let mut struck = scenario.fault == Fault::None;
    let measured = |number: usize| Some(number) != exempt;
    while pulls.iter().any(|(number, pull)| measured(*number) && !pull.is_finished()) {
        interrupt::check()?;
        std::thread::sleep(LOOK);
        trace.look(stage)?;
        if !struck && trace.received_bytes() >= goal / 2 {
            struck = true;
            scenario.fault.strike(stage)?;
        }
    }
    if let Some(exempt) = exempt {
        // Its client waits for nothing any more.
        stage.nodes[exempt].lapwing.kill9()?;
    }
    let mut pulled: Vec<Option<Pulled>> = stage.nodes.iter().map(|_| None).collect();
    for (number, pull) in pulls {
        let result = pull.join().unwrap_or_else(|_| anyhow::bail!("a panic while pulling"));
        pulled[number] = Some(result.map(|ended| (ended - begun).as_secs_f64())).filter(|_| measured(number));
    }
    let starts_s = (0..scenario.nodes).map(|number| pause(number).as_secs_f64()).collect();
    Ok(Pulling { pulled, starts_s, trace, border_before })
}

/// Pulls all blobs at once through one node's mirror, from `start` on, in threads of their own.
fn spawn_pull(
    stage: &Stage,
    number: usize,
    start: Instant,
    pace: Option<f64>,
    watch: Watch,
) -> std::thread::JoinHandle<Result<Instant>> {
    let host = stage.nodes[number].host.clone();
    let blobs: Vec<_> = stage.blobs.iter().map(|blob| (stage.at_mirror(blob), blob.clone())).collect();
    std::thread::spawn(move || {
        std::thread::sleep(start.saturating_duration_since(Instant::now()));
        std::thread::scope(|scope| {
            let (host, watch) = (&host, &watch);
            let mut pulls = Vec::new();
            for ((address, path), blob) in &blobs {
                pulls.push(scope.spawn(move || host.within(|| client::pull(*address, path, blob, pace, watch))));
            }
            for pull in pulls {
                pull.join().unwrap_or_else(|_| anyhow::bail!("a panic while pulling"))?;
            }
            anyhow::Ok(Instant::now())
        })
        .with_context(|| format!("the pull on {}", host.name()))
    })
}

/// What has crossed the border into the far zone.
fn border(scenario: &Scenario, stage: &Stage) -> Result<Traffic> {
    scenario.border_mbit.map_or(Ok(Traffic::default()), |_| Ok(stage.network.border_traffic()?.0))
}

fn row(scenario: &'static Scenario, stage: &Stage, plain: &Plain, pulling: &Pulling) -> Result<Row> {
    let mut times: Vec<f64> = pulling.pulled.iter().flatten().filter_map(|pull| pull.as_ref().ok().copied()).collect();
    times.sort_by(f64::total_cmp);
    let mut failures = Vec::new();
    for error in pulling.pulled.iter().flatten().filter_map(|pull| pull.as_ref().err()) {
        failures.push(format!("{error:#}"));
    }
    failures.iter().for_each(|failure| progress(&format!("    FAILED: {failure}")));
    let bytes = scenario.bytes() as f64;
    let last_s = times.last().copied().unwrap_or(f64::INFINITY);
    let nominal = Rates::nominal(scenario);
    let bound_s = bound::seconds(scenario, nominal);
    let share = plain.node_rate / nominal.up;
    let real = Rates { registry: plain.registry_rate, up: plain.node_rate, down: nominal.down * share };
    let mut counters = std::collections::BTreeMap::new();
    for name in COUNTED {
        let alive = stage.nodes.iter().filter_map(|node| node.lapwing.metric(name, "").ok());
        counters.insert(name.to_owned(), alive.sum());
    }
    for (name, counter) in [("tcp_timeouts", "TCPTimeouts"), ("tcp_retransmitted_segments", "RetransSegs")] {
        let registry = stage.registry.host().tcp_counter(counter)?;
        let mut nodes = 0;
        for node in &stage.nodes {
            nodes += node.host.tcp_counter(counter)?;
        }
        counters.insert(format!("{name}_registry"), registry as f64);
        counters.insert(format!("{name}_nodes"), nodes as f64);
    }
    if let Some(corrupting) = &stage.corrupting {
        counters.insert("corrupted_pieces_sent".to_owned(), corrupting.sent() as f64);
    }
    let border = border(scenario, stage)?.since(pulling.border_before);
    let border_copies = |crossed: u64| scenario.border_mbit.map(|_| crossed as f64 / bytes);
    let own: Vec<f64> = pulling
        .pulled
        .iter()
        .zip(&pulling.starts_s)
        .filter_map(|(pull, start)| Some(pull.as_ref()?.as_ref().ok()? - start))
        .collect();
    Ok(Row {
        name: scenario.name,
        nodes: scenario.nodes,
        blob_bytes: scenario.bytes(),
        blobs: scenario.blobs_mib.len(),
        registry_mbit: scenario.registry_mbit,
        node_up_mbit: scenario.node_up_mbit,
        node_down_mbit: scenario.node_down_mbit,
        first_s: times.first().copied().unwrap_or(f64::INFINITY),
        p50_s: times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY),
        last_s,
        mean_own_s: own.iter().sum::<f64>() / own.len().max(1) as f64,
        bound_s,
        bound_one_copy_s: bound::one_copy_seconds(scenario, nominal),
        efficiency: bound_s / last_s,
        efficiency_of_goodput: bound::seconds(scenario, real) / last_s,
        registry_copies: pulling.trace.registry_bytes() as f64 / bytes,
        received_copies: pulling.trace.received_bytes() as f64 / bytes,
        registry_first_byte_s: pulling.trace.registry_sent_s(100_000),
        registry_one_copy_s: pulling.trace.registry_sent_s(scenario.bytes() / 1000 * 999),
        border_copies: border_copies(border.payload()),
        border_copies_with_headers: border_copies(border.bytes),
        reader_s: scenario.streaming_reader.then(|| pulling.pulled.first()?.as_ref()?.as_ref().ok().copied()).flatten(),
        plain_last_s: plain.last_s,
        plain_measured: plain.measured,
        registry_goodput_mbit: plain.registry_rate * 8e-6,
        node_goodput_mbit: plain.node_rate * 8e-6,
        pulled_bytes: scenario.bytes() * times.len() as u64,
        failed_pulls: failures,
        counters,
        cpu_s_per_gb: 0.0,
        rss_max_mb: 0.0,
        free_cpu: 0.0,
        runs_efficiency: Vec::new(),
    })
}
