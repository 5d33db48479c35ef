//! `make bench-peers`: the same work by Lapwing, by other systems, and by plain containerd, in one run and one network.
//!
//! Every worker has a containerd of its own, which fetches an image's content (`ctr content fetch`: unpacking is the same for all, and left out) by way of the
//! system's mirror on its host. [`work`] says what is fetched, by how many and when; [`files`] are single files by each system's download command; [`private`]
//! asks for a layer without the right to. [`system`] starts each system with what its documentation asks for at least; [`stage`] builds the network, [`trial`]
//! measures, [`report`] writes `target/bench/peers.json` and the table.
//!
//! A system that cannot be built or started here is named with the reason.

mod files;
mod private;
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
    let jobs: Vec<Job> = work::ALL.iter().map(Job::Pulls).chain([Job::Files, Job::Private]).collect();
    let systems = System::ALL.map(System::name);
    let works: Vec<&str> = jobs.iter().map(Job::name).collect();
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

    let mut report = Report::beside_earlier();
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
    'all: for job in jobs.iter().filter(|job| is_asked(&works, job.name())) {
        for number in 1..=repeat {
            for &system in chosen.iter().filter(|system| job.suits(**system)) {
                result = interrupt::check().and_then(|()| measure(system, job, number, &mut report));
                if result.is_err() {
                    break 'all;
                }
            }
            // It takes hours, and what was measured before something fails is worth having.
            report.write()?;
        }
    }
    report.write()?;
    report.print();
    result
}

/// What is asked of the systems.
enum Job {
    Pulls(&'static Work),
    Files,
    Private,
}

impl Job {
    const fn name(&self) -> &'static str {
        match self {
            Self::Pulls(work) => work.name,
            Self::Files => "files",
            Self::Private => "private",
        }
    }

    const fn about(&self) -> &'static str {
        match self {
            Self::Pulls(work) => work.about,
            Self::Files => {
                "files of a byte to a gigabyte by the system's download command, by one worker and then by another"
            }
            Self::Private => "a layer that one worker has pulled with a password, asked for without",
        }
    }

    const fn suits(&self, system: System) -> bool {
        match self {
            Self::Pulls(work) => system.can(work),
            Self::Files => system.can_download(),
            Self::Private => true,
        }
    }
}

/// A system that fails at the work is a result, and not the end.
fn measure(system: System, job: &Job, number: usize, report: &mut Report) -> Result<()> {
    eprintln!("{} ({number}): {}: {}", job.name(), system.name(), job.about());
    let measured = match job {
        Job::Pulls(work) => trial::run(system, work).map(|run| {
            eprintln!("    {}", run.summary());
            report.add(system, work, run);
        }),
        Job::Files => files::fetch(system).map(|fetched| {
            fetched.iter().for_each(|one| eprintln!("    {}", one.summary()));
            report.add_files(system, &fetched);
        }),
        Job::Private => private::ask(system).map(|answers| {
            eprintln!("    {}", answers.summary());
            report.add_answers(system, answers);
        }),
    };
    if let Err(error) = measured {
        interrupt::check()?;
        eprintln!("    {error:#}");
        report.failed(system, job.name(), &error);
    }
    Ok(())
}
