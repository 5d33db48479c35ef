//! `lapwing config`: print the reference, or check a file.

use std::io::Write as _;
use std::process::ExitCode;

use crate::cli::Check;
use crate::config::{Config, REFERENCE};

pub(crate) fn run(arguments: &Check) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match &arguments.check {
        None => out.write_all(REFERENCE.as_bytes())?,
        Some(path) => {
            let config = Config::load(Some(path))?;
            // It may be meant for another machine.
            for missing in config.missing_files() {
                writeln!(std::io::stderr(), "lapwing: this machine lacks a file of {}: {missing}", path.display())?;
            }
            writeln!(out, "{}: usable", path.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
