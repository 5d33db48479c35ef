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
    /// `path+file:///<directory>#<name>@<version>`, without the name where the directory is called the same.
    package_id: Option<String>,
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds all tests of the workspace, as `make test` does and with the same features of what they share, and the binary that they start.
pub(crate) fn build(checks: &[&Check]) -> Result<Built> {
    let args = ["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"];
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let output = child.stdout.take().context("no output of cargo")?;
    let mut built = Built::new();
    for line in BufReader::new(output).lines() {
        built.extend(serde_json::from_str(&line?).ok().and_then(program));
    }
    let status = child.wait()?;
    ensure!(status.success(), "cargo {} ended with {status}", args.join(" "));
    for program in checks.iter().flat_map(|check| check.programs) {
        ensure!(built.contains_key(&program.key()), "the workspace has no test program {}", program.label());
    }
    Ok(built)
}

/// The test program that cargo tells of.
fn program(message: Message) -> Option<((String, String), Executable)> {
    let Message { reason, package_id, manifest_path, executable, target } = message;
    let (path, target, id) = (executable.filter(|_| reason == "compiler-artifact")?, target?, package_id?);
    let (directory, version) = id.rsplit_once('#')?;
    let package = version.split_once('@').map_or_else(|| directory.rsplit('/').next(), |(name, _)| Some(name))?;
    let target = if target.kind.iter().any(|kind| kind == "test") { target.name } else { "lib".to_owned() };
    Some(((package.to_owned(), target), Executable { path, directory: manifest_path?.parent()?.to_owned() }))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(id: &str, kind: &str, name: &str) -> Option<(String, String)> {
        let target = Target { name: name.into(), kind: vec![kind.into()] };
        let message = Message {
            reason: "compiler-artifact".into(),
            package_id: Some(id.into()),
            manifest_path: Some("/x/p2p/Cargo.toml".into()),
            executable: Some("/x/target/debug/deps/node-1".into()),
            target: Some(target),
        };
        program(message).map(|(key, _)| key)
    }

    #[test]
    fn programs_are_known_by_package_and_target() {
        let named = "path+file:///x/p2p#lapwing-p2p@0.1.0";
        assert_eq!(found(named, "test", "node"), Some(("lapwing-p2p".into(), "node".into())));
        assert_eq!(found(named, "lib", "lapwing_p2p"), Some(("lapwing-p2p".into(), "lib".into())));
        assert_eq!(found("path+file:///x/lapwing#0.1.0", "test", "get"), Some(("lapwing".into(), "get".into())));
    }
}
