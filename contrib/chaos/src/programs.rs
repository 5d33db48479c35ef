//! Test programs: built by cargo, run for a check, their evidence gathered.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use lapwing_evidence::{EVIDENCE, Record, SCALE, SEED};
use serde::Deserialize;

use crate::campaign::{Check, Program};

/// Executables by package and target.
pub(crate) type Built = HashMap<(String, String), Executable>;

/// A built test program.
#[derive(Debug)]
pub(crate) struct Executable {
    path: PathBuf,
    /// Where cargo would start it.
    directory: PathBuf,
}

/// How the programs of a check ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// What their tests saw.
    pub(crate) records: Vec<Record>,
    /// Programs that failed, with the last words of their logs.
    pub(crate) failures: Vec<String>,
    /// Tests that the machine cannot run, and why.
    pub(crate) skipped: Vec<String>,
    /// How long all of them took.
    pub(crate) seconds: f64,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds the test programs of `checks`, and the binary that they start.
pub(crate) fn build(checks: &[&Check]) -> Result<Built> {
    cargo(&["build", "--bin", "lapwing"], |_| ())?;
    let mut built = Built::new();
    for program in checks.iter().flat_map(|check| check.programs) {
        let key = program.key();
        if built.contains_key(&key) {
            continue;
        }
        let which: &[&str] = if program.target == "lib" { &["--lib"] } else { &["--test", program.target] };
        let args = [&["test", "--no-run", "--message-format=json", "--package", program.package], which].concat();
        let mut found = None;
        cargo(&args, |message| {
            let Message { executable: Some(path), manifest_path: Some(manifest), target: Some(target), .. } = message
            else {
                return;
            };
            if message.reason == "compiler-artifact" && (target.name == program.target || program.target == "lib") {
                found = manifest.parent().map(|directory| Executable { path, directory: directory.into() });
            }
        })?;
        built.insert(key, found.with_context(|| format!("cargo built no test program {}", program.label()))?);
    }
    Ok(built)
}

fn cargo(args: &[&str], mut hear: impl FnMut(Message)) -> Result<()> {
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let output = child.stdout.take().context("no output of cargo")?;
    for line in BufReader::new(output).lines() {
        if let Ok(message) = serde_json::from_str(&line?) {
            hear(message);
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "cargo {} ended with {status}", args.join(" "));
    Ok(())
}

/// Runs the programs of a check one after the other, and gathers what they saw.
pub(crate) fn run(check: &Check, built: &Built, seed: u64, scale: f64) -> Result<Ended> {
    let logs = Path::new("target/chaos");
    std::fs::create_dir_all(logs)?;
    let logs = logs.canonicalize()?;
    let start = std::time::Instant::now();
    let mut ended = Ended::default();
    for (number, program) in check.programs.iter().enumerate() {
        let Some(executable) = built.get(&program.key()) else { bail!("{} was not built", program.label()) };
        let file = |kind: &str| logs.join(format!("{:02}-{number}.{kind}", check.number));
        let (evidence, skipped, log) = (file("evidence"), file("skipped"), file("log"));
        for old in [&evidence, &skipped] {
            if old.exists() {
                std::fs::remove_file(old)?;
            }
        }
        let output = File::create(&log)?;
        let status = Command::new(&executable.path)
            .args(program.tests)
            .args(["--nocapture", "--test-threads=1"])
            .current_dir(&executable.directory)
            .env(EVIDENCE, &evidence)
            .env(SEED, seed.to_string())
            .env(SCALE, scale.to_string())
            .env("LAPWING_SKIP_LOG", &skipped)
            .stdin(Stdio::null())
            .stderr(output.try_clone()?)
            .stdout(output)
            .status()?;
        let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        if !status.success() {
            ended.failures.push(format!("{} ended with {status}: {}", program.label(), last_words(&text)));
        } else if text.contains("running 0 tests") {
            ended.failures.push(format!("{} has no test called {:?}", program.label(), program.tests));
        }
        for line in std::fs::read_to_string(&evidence).unwrap_or_default().lines() {
            ended.records.push(serde_json::from_str(line).with_context(|| format!("evidence of {}", program.label()))?);
        }
        ended.skipped.extend(std::fs::read_to_string(&skipped).unwrap_or_default().lines().map(str::to_owned));
    }
    ended.seconds = start.elapsed().as_secs_f64();
    Ok(ended)
}

/// What a failed test program said of it: each panic, the first line.
fn last_words(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let panics = lines.iter().enumerate().filter(|(_, line)| line.contains("panicked at"));
    let words: Vec<String> =
        panics.take(3).map(|(at, line)| format!("{line} {}", lines.get(at + 1).unwrap_or(&""))).collect();
    if words.is_empty() { lines.last().copied().unwrap_or_default().to_owned() } else { words.join("; ") }
}

impl Program {
    fn key(&self) -> (String, String) {
        (self.package.into(), self.target.into())
    }

    /// Package and target, for messages.
    pub(crate) fn label(&self) -> String {
        format!("{} ({})", self.package, self.target)
    }
}
