//! `make bench-wire`: a blob from one process to another over loopback, beside nginx with sendfile in the same run; and
//! the memory of a real node that pulls from 32 peers. Prints JSON; quote the ratios, since machines differ.
//!
//! Two comparisons for plaintext and for TLS 1.3, in turns, of which medians are given:
//!
//! * `wire`: who receives drops the bytes. A node against nginx, as senders. CPU is the sender's.
//! * `node`: who receives keeps them and checks the SHA-256. A whole node, which checks BLAKE3 as well and hashes while
//!   it receives, against a client of nginx that writes a file and hashes between reads. CPU is given for both sides.
//!
//! What is received goes to a tmpfs; what is sent is in the page cache.

mod client;
mod memory;
mod node;
mod web;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

const BLOB_BYTES: u64 = 1 << 30;
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["fill", root, bytes] => node::fill(Path::new(root), bytes.parse()?),
        ["seed", root, tracker, wire, nodes] => {
            node::seed(Path::new(root), tracker, Wire::parse(wire)?, nodes.parse()?)
        }
        ["pull", root, tracker, wire, digest, bytes] => {
            node::pull(Path::new(root), tracker, Wire::parse(wire)?, digest.parse()?, bytes.parse()?)
        }
        ["drain", address, peer, wire, digest, bytes] => {
            client::drain(address.parse()?, peer.parse()?, Wire::parse(wire)?, digest.parse()?, bytes.parse()?)
        }
        ["get", address, wire, sink] => client::get(address.parse()?, Wire::parse(wire)?, sink),
        [] => measure(),
        _ => bail!("usage: wire; everything else is for the processes that it starts"),
    }
}

/// What protects the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Plaintext,
    Tls,
}

impl Wire {
    fn parse(text: &str) -> anyhow::Result<Self> {
        match text {
            "plaintext" => Ok(Self::Plaintext),
            "tls" => Ok(Self::Tls),
            _ => bail!("{text}: neither plaintext nor tls"),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Tls => "tls",
        }
    }
}

/// A child process that says one line of JSON when it is ready, or when it is done.
struct Role {
    child: Child,
    // It ends when this is closed.
    _stdin: Option<ChildStdin>,
    said: Value,
}

impl Role {
    /// Starts this program in a role, and waits until it says something.
    fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("standard output is a pipe")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let said = serde_json::from_str(&line).with_context(|| format!("wire {arguments:?} said {line:?}"))?;
        Ok(Self { child, _stdin: stdin, said })
    }

    fn text(&self, key: &str) -> anyhow::Result<&str> {
        self.said[key].as_str().with_context(|| format!("{key} in {}", self.said))
    }

    fn number(&self, key: &str) -> anyhow::Result<f64> {
        self.said[key].as_f64().with_context(|| format!("{key} in {}", self.said))
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says one line of JSON to whoever started this process.
fn say(value: &Value) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{value}")?;
    Ok(stdout.flush()?)
}

/// Waits until whoever started this process closes its standard input.
fn wait_for_end() -> anyhow::Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// User and system time of a process so far.
fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no command in stat")?.1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every architecture that Linux runs containers on.
    Ok(Duration::from_millis(ticks * 10))
}

/// One transfer.
#[derive(Debug, Clone, Copy)]
struct Run {
    gbit_per_s: f64,
    sender_cpu_s_per_gb: f64,
    receiver_cpu_s_per_gb: f64,
}

/// Runs one receiver while the CPU of the sender is watched.
fn run(sender: u32, receiver: &[&str]) -> anyhow::Result<Run> {
    let before = cpu_of(sender)?;
    let done = Role::start(receiver)?;
    let sent = (cpu_of(sender)? - before).as_secs_f64();
    let gigabytes = BLOB_BYTES as f64 / 1e9;
    Ok(Run {
        gbit_per_s: gigabytes * 8.0 / done.number("seconds")?,
        sender_cpu_s_per_gb: sent / gigabytes,
        receiver_cpu_s_per_gb: done.number("cpu_s")? / gigabytes,
    })
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Lapwing's transfers beside the yardstick's.
fn compare(mode: &str, ours: &[Run], yardstick: &[Run]) -> Value {
    let speed = |runs: &[Run]| median(runs, |run| run.gbit_per_s);
    let sender = |runs: &[Run]| median(runs, |run| run.sender_cpu_s_per_gb);
    let receiver = |runs: &[Run]| median(runs, |run| run.receiver_cpu_s_per_gb);
    json!({
        "mode": mode,
        "gbit_per_s": speed(ours),
        "yardstick_gbit_per_s": speed(yardstick),
        "ratio": speed(ours) / speed(yardstick),
        "cpu_s_per_gb": sender(ours),
        "yardstick_cpu_s_per_gb": sender(yardstick),
        "cpu_ratio": sender(ours) / sender(yardstick),
        "receiver_cpu_s_per_gb": receiver(ours),
        "yardstick_receiver_cpu_s_per_gb": receiver(yardstick),
    })
}

fn measure() -> anyhow::Result<()> {
    let sources = tempfile::Builder::new().prefix("lapwing-wire").tempdir()?;
    let sinks = tempfile::Builder::new().prefix("lapwing-wire").tempdir_in("/dev/shm")?;
    let filled = Role::start(&["fill", &text(&sources.path().join("0")), &BLOB_BYTES.to_string()])?;
    let blob = Blob { digest: filled.text("digest")?.to_owned(), data: filled.text("data")?.into() };
    let tracker = memory::Lapwing::tracker(sources.path())?;
    let web = web::Nginx::start(sources.path(), &blob.data)?;
    let mut results = Vec::new();
    for wire in [Wire::Plaintext, Wire::Tls] {
        let root = text(sources.path());
        let seed = Role::start(&["seed", &root, &tracker.address, wire.name(), "1"])?;
        results.extend(transfers(wire, &seed, &web, &tracker.address, &blob, sinks.path())?);
    }
    let memory = memory::measure(sources.path(), sinks.path(), &tracker.address, &blob)?;
    let report = json!({ "blob_bytes": BLOB_BYTES, "rounds": ROUNDS, "transfers": results, "memory": memory });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

/// What is transferred.
struct Blob {
    digest: String,
    data: PathBuf,
}

/// Both comparisons, in turns.
fn transfers(
    wire: Wire,
    seed: &Role,
    web: &web::Nginx,
    tracker: &str,
    blob: &Blob,
    sinks: &Path,
) -> anyhow::Result<[Value; 2]> {
    let (bytes, name) = (BLOB_BYTES.to_string(), wire.name());
    let (address, peer) = (seed.text("address")?, seed.text("peer")?);
    let server = web.address(wire);
    let (file, root) = (sinks.join("file"), sinks.join("root"));
    let mut runs: [Vec<Run>; 4] = Default::default();
    for round in 0..=ROUNDS {
        let wire_yardstick = run(web.pid(), &["get", &server, name, "drop"])?;
        let wire_ours = run(seed.child.id(), &["drain", address, peer, name, &blob.digest, &bytes])?;
        let node_yardstick = run(web.pid(), &["get", &server, name, &text(&file)])?;
        std::fs::remove_file(&file)?;
        let node_ours = run(seed.child.id(), &["pull", &text(&root), tracker, name, &blob.digest, &bytes])?;
        std::fs::remove_dir_all(&root)?;
        // The first round only warms up.
        if round > 0 {
            for (runs, run) in runs.iter_mut().zip([wire_ours, wire_yardstick, node_ours, node_yardstick]) {
                runs.push(run);
            }
        }
    }
    let [wire_ours, wire_yardstick, node_ours, node_yardstick] = &runs;
    Ok([
        compare(&format!("{name}, wire"), wire_ours, wire_yardstick),
        compare(&format!("{name}, node"), node_ours, node_yardstick),
    ])
}

fn text(path: &Path) -> String {
    // All paths here are this program's own.
    path.to_string_lossy().into_owned()
}
