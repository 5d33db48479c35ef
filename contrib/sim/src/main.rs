//! `make bench-sim`: runs scenarios and prints a JSON array of their figures.

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use lapwing_p2p::swarm::Policy;
use lapwing_sim::{report, scenario};

/// Runs the production scheduler and tracker in simulated time.
#[derive(Debug, Parser)]
struct Arguments {
    /// Scenarios to run, by name; none runs all of them.
    names: Vec<String>,
    /// Decides all that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only list the scenarios.
    #[arg(long)]
    list: bool,
    /// Of scenarios with a thousand nodes and more only this many, and of failing ones in proportion.
    #[arg(long)]
    nodes: Option<usize>,
    /// Say once a simulated second how far the nodes are.
    #[arg(long)]
    progress: bool,
    /// A number of the policy to vary, as name=value, where the name is that of the field and the value a whole number
    /// (milliseconds, bytes or pieces).
    #[arg(long = "vary")]
    varied: Vec<String>,
}

/// Sets one number of the policy.
fn vary(policy: &mut Policy, setting: &str) -> anyhow::Result<()> {
    let (name, value) = setting.split_once('=').with_context(|| format!("{setting:?} is not name=value"))?;
    let value: u32 = value.parse().with_context(|| format!("{value:?} is no whole number"))?;
    match name {
        "budget_pieces" => policy.budget_pieces = value,
        "budget_bytes" => policy.budget_bytes = value.into(),
        "window" => policy.window = value,
        "hedge_after" => policy.hedge_after = value,
        "have_batch" => policy.have_batch = Duration::from_millis(value.into()),
        "have_batch_of_many" => policy.have_batch_of_many = Duration::from_millis(value.into()),
        "pipeline" => policy.pipeline = value,
        "invitations" => policy.invitations = value,
        "overdraft" => policy.overdraft = value,
        "spread" => policy.spread = value,
        _ => anyhow::bail!("the policy has no number {name:?}"),
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the report goes to standard output")]
#[allow(clippy::print_stderr, reason = "progress goes to standard error")]
fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut chosen = scenario::all();
    if let Some(unknown) = arguments.names.iter().find(|name| !chosen.iter().any(|known| known.name == **name)) {
        anyhow::bail!("there is no scenario {unknown:?}; --list names them");
    }
    chosen.retain(|scenario| arguments.names.is_empty() || arguments.names.iter().any(|name| name == scenario.name));
    if arguments.list {
        chosen.iter().for_each(|scenario| println!("{}", scenario.name));
        return Ok(());
    }
    let mut reports = Vec::new();
    for mut scenario in chosen {
        scenario.seed = arguments.seed;
        scenario.progress = arguments.progress;
        arguments.varied.iter().try_for_each(|setting| vary(&mut scenario.policy, setting))?;
        if let Some(nodes) = arguments.nodes.filter(|_| scenario.nodes >= 1000) {
            scenario.deaths = scenario.deaths * nodes / scenario.nodes;
            scenario.nodes = nodes;
        }
        let report = report::run(scenario).json();
        eprintln!("{report}");
        reports.push(report);
    }
    println!("{}", serde_json::to_string_pretty(&reports)?);
    Ok(())
}
