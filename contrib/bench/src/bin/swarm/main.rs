//! `make bench-swarm`: how close a swarm of real nodes comes to the bound, in network namespaces with limited links.
//!
//! [`scenario`] names the cases, [`stage`] builds each one's network and processes, [`trial`] lets all nodes pull and watches them, with the
//! [`fault`] of the case; [`client`] is who pulls. [`plain`] does the same without Lapwing, [`bound`] is what no swarm can beat, [`report`]
//! writes `target/bench/swarm.json` and the table. Everything made is a guard of [`lapwing_lab`]: processes, namespaces and files are gone when
//! `main` returns, also after Ctrl-C.

mod bound;
mod client;
mod content;
mod fault;
mod plain;
mod process;
mod report;
mod scenario;
mod stage;
mod trace;
mod trial;

use anyhow::{Result, ensure};
use lapwing_lab::{Need, interrupt};
use scenario::Scenario;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("make bench-swarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says on standard error how far it is.
fn progress(text: &str) {
    eprintln!("{text}");
}

/// True when every pull of every scenario succeeded.
fn run() -> Result<bool> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let scenarios = scenario::select(&names)?;
    let missing =
        lapwing_lab::missing(&[Need::Root, Need::Program("docker-registry"), Need::Program("tc"), Need::Program("ip")]);
    ensure!(missing.is_empty(), "this machine cannot do it: {}", missing.join("; "));
    interrupt::watch("make bench-swarm")?;
    let repeat = std::env::var("REPEAT").ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1);
    let mut report = report::Report::new();
    let mut result = Ok(());
    for scenario in scenarios {
        result = measure(scenario, repeat, &mut report);
        if result.is_err() {
            break;
        }
    }
    // What was measured before something failed is worth having.
    report.write()?;
    report.print()?;
    result.map(|()| report.all_pulled())
}

/// Runs one scenario so many times; the run with the median efficiency counts.
fn measure(scenario: &'static Scenario, repeat: usize, report: &mut report::Report) -> Result<()> {
    let mut rows = Vec::new();
    for number in 1..=repeat {
        interrupt::check()?;
        progress(&format!("{} ({number} of {repeat}): {}", scenario.name, scenario.about));
        let row = trial::run(scenario)?;
        progress(&format!("    {}", row.summary()));
        rows.push(row);
    }
    report.add(rows);
    Ok(())
}
