//! `make chaos`: the fault campaign. Twenty checks ([`campaign`]), each made of tests that also run in `make test` with few faults; here they
//! run with many, by a seed that repeats them, and what they saw is held to what the check asks for ([`verdict`]).
//!
//! [`programs`] builds and runs the tests; [`leaks`] looks whether anything is left on the machine; [`report`] writes `target/chaos.json`
//! and the table. Logs of the tests are in `target/chaos/`.

mod campaign;
mod leaks;
mod programs;
mod report;
mod verdict;

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use campaign::Check;
use clap::Parser;
use report::Report;

/// Runs the fault campaign, or some checks of it.
#[derive(Parser)]
struct Arguments {
    /// Numbers of checks; all without any.
    checks: Vec<u8>,
    /// What the faults are drawn from; the same seed injects the same ones.
    #[arg(long, env = "SEED", default_value_t = 1)]
    seed: u64,
    /// How much of the campaign: 1 for all of it, 0.1 for a tenth of the faults.
    #[arg(long, env = "SCALE", default_value_t = 1.0)]
    scale: f64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("make chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all checks that were asked for passed.
fn run(arguments: &Arguments) -> Result<bool> {
    ensure!(
        arguments.scale > 0.0 && arguments.scale <= 100.0,
        "SCALE={} is not between 0 and 100; 1 is the whole campaign",
        arguments.scale
    );
    let known = campaign::checks();
    let unknown = arguments.checks.iter().find(|&&number| known.iter().all(|check| check.number != number));
    if let Some(unknown) = unknown {
        bail!("there is no check {unknown}, but 1 to 20");
    }
    let is_asked = |check: &&&Check| arguments.checks.is_empty() || arguments.checks.contains(&check.number);
    let asked: Vec<&Check> = known.iter().filter(is_asked).copied().collect();
    let built = programs::build(&asked)?;
    let mut report = Report::new(arguments.seed, arguments.scale);
    for check in asked {
        eprintln!("{:2} {}", check.number, check.name);
        let before = leaks::Machine::look()?;
        let ended = programs::run(check, &built, arguments.seed, arguments.scale)?;
        let left = before.left_since()?;
        report.add(verdict::judge(check, arguments.scale, ended, left));
        // A campaign takes hours: what is known is worth having when it is ended early.
        report.write()?;
    }
    report.print();
    Ok(report.passed())
}
