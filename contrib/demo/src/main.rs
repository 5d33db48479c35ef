//! The demonstration behind `make demo`: a real image on a network of limited links, pulled by plain containerd, by a cold swarm, and started lazily.
//!
//! [`stage`] builds the network and its machines, [`acts`] plays the three acts on it, [`report`] holds the numbers against what must be shown.
//! [`command`] runs what the acts run, [`progress`] tells how far they are. Everything made is a guard of
//! [`lapwing_lab`]: when `main` returns, for whatever reason, processes, namespaces, mounts and files are gone.

mod acts;
mod command;
mod progress;
mod report;
mod stage;

use anyhow::{Context, Result, ensure};
use lapwing_lab::{Need, interrupt};
use progress::Progress;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match play() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("make demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when everything was shown that must be.
fn play() -> Result<bool> {
    interrupt::watch("make demo")?;
    let missing = lapwing_lab::missing(&[
        Need::Root,
        Need::Disk,
        Need::Fuse,
        Need::Erofs,
        Need::Program("docker-registry"),
        Need::Program("skopeo"),
        Need::Program("runc"),
        Need::Program("tc"),
    ]);
    ensure!(missing.is_empty(), "this machine cannot do it: {}", missing.join("; "));
    let mut progress = Progress::start();
    let stage = stage::Stage::set(&mut progress)?;
    let baseline = acts::baseline(&stage, &mut progress)?;
    let cold = acts::cold(&stage, &mut progress)?;
    let lazy = acts::lazy(&stage, &mut progress)?;
    progress.step("done; cleaning up");
    let report = report::Report::new(&stage, &baseline, &cold, &lazy);
    drop(stage);
    report.print()?;
    report.write(&repository().join("target/demo.json"))?;
    Ok(report.ok())
}

fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Reads a file for a message; a missing one is an empty one.
fn text_of(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Makes the directory of a file.
fn make_parent(file: &Path) -> Result<()> {
    let parent = file.parent().context("a file stands in a directory")?;
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))
}
