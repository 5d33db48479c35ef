//! The tracker's process.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

const READY: Duration = Duration::from_secs(60);
/// In which /proc counts time: fixed by the kernel's interface to programs.
const TICKS_PER_S: f64 = 100.0;

/// A running `lapwing tracker`, on the first CPU; it ends when dropped.
pub(crate) struct Tracker {
    child: Child,
    config: PathBuf,
    pub(crate) address: String,
}

impl Tracker {
    /// `more` is appended to its configuration.
    pub(crate) fn start(directory: &Path, more: &str) -> anyhow::Result<Self> {
        let (listen, admin) = (free_port()?, free_port()?);
        std::fs::create_dir_all(directory)?;
        let config = directory.join("tracker.toml");
        let text = format!(
            "root = {:?}\n[log]\nlevel = \"error\"\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [tracker]\nlisten = \"127.0.0.1:{listen}\"\n{more}",
            directory.join("tracker"),
        );
        std::fs::write(&config, text)?;
        let address = format!("127.0.0.1:{listen}");
        Ok(Self { child: spawn(&config, &address)?, config, address })
    }

    /// As if it had crashed.
    pub(crate) fn kill_and_start_again(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.config, &self.address)?;
        Ok(())
    }

    /// Its own memory, without that of its program, in MB.
    pub(crate) fn anonymous_mb(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
        let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024.0 / 1e6)
    }

    /// CPU seconds used so far.
    pub(crate) fn cpu_s(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat[stat.rfind(')').map_or(0, |at| at + 1)..].split_whitespace();
        Ok(fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_S)
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(config: &Path, address: &str) -> anyhow::Result<Child> {
    let program = match std::env::var_os("LAPWING_BIN") {
        Some(path) => path.into(),
        None => std::env::current_exe()?.with_file_name("lapwing"),
    };
    let mut child = Command::new("taskset")
        .args(["-c", "0"])
        .arg(&program)
        .args(["tracker", "--config"])
        .arg(config)
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("taskset of util-linux, or {}", program.display()))?;
    wait_until_it_listens(&mut child, address)?;
    Ok(child)
}

pub(crate) fn wait_until_it_listens(child: &mut Child, address: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    while TcpStream::connect(address).is_err() {
        anyhow::ensure!(child.try_wait()?.is_none(), "what should listen on {address} ended");
        anyhow::ensure!(Instant::now() < deadline, "nothing listens on {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Keeps the thread of that number, and what it starts, on one CPU.
pub(crate) fn run_on(process: u32, cpu: usize) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    Ok(sched_setaffinity(pid, &cpus)?)
}

pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
