//! `make bench-peers`: the same work by Lapwing, by other systems, and by plain containerd, in one run and one network.
//!
//! Every worker has a containerd of its own, which fetches an image's content (`ctr content fetch`: unpacking is the same for all, and left out) by way of the
//! system's mirror on its host. [`work`] says what is fetched, by how many and when; [`system`] starts each system with what its documentation asks for at
//! least; [`stage`] builds the network, [`trial`] measures, [`report`] writes `target/bench/peers.json` and the table.
//!
//! A system that cannot be built or started here is named with the reason.

mod report;
mod stage;
mod system;
mod trial;
mod usage;
mod work;

use anyhow::{Result, ensure};
use lapwing_lab::{Need, interrupt};
use report::Report;
use std::process::ExitCode;
use system::System;
use work::Work;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make bench-peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let is_asked = |all: &[&str], name: &str| {
        let narrowed = names.iter().any(|asked| all.contains(&asked.as_str()));
        !narrowed || names.iter().any(|asked| asked == name)
    };
    let (systems, works) = (System::ALL.map(System::name), work::ALL.each_ref().map(|work| work.name));
    let unknown: Vec<_> =
        names.iter().filter(|name| !systems.contains(&name.as_str()) && !works.contains(&name.as_str())).collect();
    ensure!(unknown.is_empty(), "there is no {unknown:?}; the systems are {systems:?}, the work is {works:?}");
    let needs = [
        Need::Root,
        Need::Disk,
        Need::Tools,
        Need::Program("docker-registry"),
        Need::Program("skopeo"),
        Need::Program("tc"),
    ];
    let missing = lapwing_lab::missing(&needs);
    ensure!(missing.is_empty(), "this machine cannot do it: {}", missing.join("; "));
    interrupt::watch("make bench-peers")?;
    let repeat = std::env::var("REPEAT").ok().and_then(|text| text.parse().ok()).unwrap_or(3).max(1);

    let mut report = Report::default();
    let asked: Vec<System> = System::ALL.into_iter().filter(|system| is_asked(&systems, system.name())).collect();
    for &system in &asked {
        if let Err(error) = system.prepare() {
            eprintln!("{}: {error:#}", system.name());
            report.left_out(system, &error);
        }
    }
    let chosen: Vec<System> = asked.into_iter().filter(|system| !report.is_left_out(*system)).collect();
    let mut result = Ok(());
    // All systems within each repetition, so that what else the machine does hits all of them alike.
    'all: for work in work::ALL.iter().filter(|work| is_asked(&works, work.name)) {
        for number in 1..=repeat {
            for &system in &chosen {
                result = interrupt::check().and_then(|()| measure(system, work, number, &mut report));
                if result.is_err() {
                    break 'all;
                }
            }
        }
    }
    // What was measured before something failed is worth having.
    report.write()?;
    report.print();
    result
}

/// A system that fails at the work is a result, and not the end.
fn measure(system: System, work: &'static Work, number: usize, report: &mut Report) -> Result<()> {
    eprintln!("{} ({number}): {}: {}", work.name, system.name(), work.about);
    match trial::run(system, work) {
        Ok(run) => {
            eprintln!("    {}", run.summary());
            report.add(system, work, run);
        }
        Err(error) => {
            interrupt::check()?;
            eprintln!("    {error:#}");
            report.failed(system, work, &error);
        }
    }
    Ok(())
}
