//! What other benchmarks measure of the same code: they are run, and what they print is put into the report.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::{Command, Stdio};

/// The report of the benchmark of that name, which was built beside this one.
pub(crate) fn measure(name: &str) -> Result<Value> {
    eprintln!("{name}: as make bench-{name}");
    let program = std::env::current_exe()?.with_file_name(name);
    let run = Command::new(&program).stderr(Stdio::inherit()).output();
    let output = run.with_context(|| format!("{}: build it with cargo build --bins", program.display()))?;
    ensure!(output.status.success(), "{}: {}", program.display(), output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("what {} printed", program.display()))
}
