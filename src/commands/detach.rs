//! `lapwing detach`: the end of mounts that outlive the node; and the process that makes them do so.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use lapwing_snapshotter::fuse::holder;
use lapwing_snapshotter::lazy::LazyMounts;

use crate::cli::Detach;
use crate::config::Config;
use crate::confinement;
use crate::memory;

/// What was done.
#[derive(serde::Serialize)]
struct Detached {
    mounts: usize,
    /// Whether containers still use layers that were mounted.
    in_use: bool,
}

pub(crate) fn run(arguments: &Detach) -> anyhow::Result<ExitCode> {
    let config = Config::load(arguments.config.as_deref())?;
    let (mounts, in_use) = LazyMounts::detach(&config.root)?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &Detached { mounts, in_use })?;
        writeln!(out)?;
        return Ok(if in_use { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    writeln!(out, "{mounts} mounts detached")?;
    if in_use {
        writeln!(
            out,
            "containers still use lazily mounted layers, and what they read of them waits for a node: stop them; the mounts then end by themselves"
        )?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs until the node's mounts are gone.
pub(crate) fn hold() -> anyhow::Result<ExitCode> {
    // Before the holder locks what it has: most of it is what the start of any command needs.
    memory::unmap_code();
    holder::run(confinement::give_up_all).context("this command is started by the node, for itself")?;
    Ok(ExitCode::SUCCESS)
}
