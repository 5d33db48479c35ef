//! `make bench-lazy`: how long a container of an image that is not on the machine takes to say its first word and to be ready, and how much is
//! fetched for that: with plain containerd, with stargz-snapshotter and soci-snapshotter and what their formats make of the image, with layers pulled whole out of the swarm, lazily with and without a profile, and at the first pull in
//! the cluster. In network namespaces, the registry's link at 100 Mbit/s and each worker's at 400 Mbit/s, both ways.
//!
//! [`trial`] lets one worker pull and start an image, [`foreign`] has the others' daemons and conversions; [`memory`] looks at a node with many lazy layers; [`parts`] has files read and an index built by
//! the programs for that; [`report`] writes `target/bench/lazy.json` and the table. Everything made is a guard of
//! [`lapwing_lab`]: processes, namespaces and files are gone when `main` returns, also after Ctrl-C.

mod foreign;
mod memory;
mod parts;
mod report;
mod trial;

use anyhow::{Result, ensure};
use lapwing_lab::image::{self, LEARNING_OUTPUTS, Layout, MAIN_OUTPUT, SERVICE_OUTPUTS};
use lapwing_lab::{Need, interrupt};
use report::Report;
use std::process::ExitCode;

/// An image, and what a container of it prints.
struct Subject {
    name: &'static str,
    about: &'static str,
    build: fn() -> Result<Layout>,
    /// Begins the first line.
    first: &'static str,
    /// Begins the line that says that it is ready.
    ready: &'static str,
}

const SUBJECTS: [Subject; 3] = [
    Subject {
        name: "python",
        about: "Debian, Python and its scientific libraries; a program that needs little of them, and is ready with its first line",
        build: image::real,
        first: MAIN_OUTPUT,
        ready: MAIN_OUTPUT,
    },
    Subject {
        name: "tomcat",
        about: "Debian, a Java runtime and Tomcat; prints a line, starts the server, and another when that serves",
        build: image::service,
        first: SERVICE_OUTPUTS[0],
        ready: SERVICE_OUTPUTS[1],
    },
    Subject {
        name: "tensorflow",
        about: "Debian, Python, numpy and TensorFlow; prints a line, imports both, computes, prints another",
        build: image::learning,
        first: LEARNING_OUTPUTS[0],
        ready: LEARNING_OUTPUTS[1],
    },
];

/// What is measured beside the starts.
const PARTS: [&str; 3] = ["memory", "files", "index"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make bench-lazy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let known: Vec<_> = SUBJECTS.iter().map(|subject| subject.name).chain(PARTS).collect();
    let unknown: Vec<_> = names.iter().filter(|name| !known.contains(&name.as_str())).collect();
    ensure!(unknown.is_empty(), "there is no {unknown:?}; there are {known:?}");
    let is_asked = |name: &str| names.is_empty() || names.iter().any(|asked| asked == name);
    let needs = [Need::Root, Need::Disk, Need::Fuse, Need::Erofs, Need::Tools];
    let programs = ["docker-registry", "skopeo", "runc", "tc", "mmdebstrap", "pigz"].map(Need::Program);
    let missing = lapwing_lab::missing(&[&needs[..], &programs[..]].concat());
    ensure!(missing.is_empty(), "this machine cannot do it: {}", missing.join("; "));
    interrupt::watch("make bench-lazy")?;
    let repeat = std::env::var("REPEAT").ok().and_then(|text| text.parse().ok()).unwrap_or(3).max(1);
    let mut report = Report::default();
    let mut result = Ok(());
    'all: for subject in SUBJECTS.iter().filter(|subject| is_asked(subject.name)) {
        for number in 1..=repeat {
            eprintln!("{} ({number} of {repeat}): {}", subject.name, subject.about);
            result = trial::measure(subject, &mut report);
            if result.is_err() {
                break 'all;
            }
            report.write()?;
        }
    }
    for part in PARTS.into_iter().filter(|part| is_asked(part)) {
        result = result.and_then(|()| {
            let measured = if part == "memory" { memory::measure() } else { parts::measure(part) };
            report.parts.insert(part, measured?);
            Ok(())
        });
    }
    // What was measured before something failed is worth having.
    report.write()?;
    report.print()?;
    result
}
