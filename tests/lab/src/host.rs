//! A host: a network namespace on the bridge and a mount namespace, kept open by one idle process.
//!
//! `/run`, `/var/lib/cni` and `/etc/hosts` are the host's own, so containerd, Lapwing and the CNI plugins use their default paths there and
//! collide with nobody. Everything else is the machine's. What a process on the host mounts, only the host sees;
//! [`Host::path`] leads a test to it.

use crate::network::{Mbit, Network, NetworkInner, Rates};
use crate::process::{Process, check, output};
use crate::{http, sweep, tools};
use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

/// Makes the mounts of a host and then waits for the end of its standard input, that is of the test.
const HOLD: &str = r#"set -e
mkdir -p /var/lib/cni
mount -t tmpfs -o mode=755 lab /run
mount -t tmpfs -o mode=755 lab /var/lib/cni
mount --bind "$1" /etc/hosts
echo ready
exec cat"#;

/// A host of a [`Network`]. Clones are the same host; it ends, with all that runs on it, when the last clone and the last process
/// started on it are dropped.
#[derive(Clone)]
pub struct Host {
    pub(crate) inner: Arc<HostInner>,
}

pub(crate) struct HostInner {
    network: Arc<NetworkInner>,
    name: String,
    namespace: String,
    number: u32,
    address: Ipv4Addr,
    dir: PathBuf,
    holder: Option<Child>,
}

impl Host {
    pub(crate) fn start(network: &Network, name: &str, number: u32, address: Ipv4Addr, rates: Rates) -> Result<Self> {
        let segment = network.segment();
        let network = network.inner.clone();
        let namespace = format!("{}-{name}", network.lab.0.prefix);
        let dir = network.lab.dir().join(name);
        std::fs::create_dir(&dir).with_context(|| format!("two hosts called {name}?"))?;
        check(Command::new("ip").args(["netns", "add", &namespace]))?;
        let mut inner = HostInner { network, name: name.into(), namespace, number, address, dir, holder: None };
        inner.network.attach(segment, &inner.namespace, number, address, rates)?;
        let mut holder = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", inner.namespace))
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-c", HOLD, "hold"])
            .arg(inner.network.names_file())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start nsenter (util-linux)")?;
        let mut line = String::new();
        let stdout = holder.stdout.take();
        inner.holder = Some(holder);
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() != "ready" {
            bail!("the mounts of host {name} could not be made; are you root?");
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The name of its network namespace, which no other host on this machine has.
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// Its address on the network.
    pub fn address(&self) -> Ipv4Addr {
        self.inner.address
    }

    /// A directory of its own, on disk, at the same path for the test and for the host.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// How the test reaches `path` of this host, through what is mounted there.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let relative = path.as_ref().strip_prefix("/").unwrap_or(path.as_ref());
        Path::new("/proc").join(self.inner.holder_pid().to_string()).join("root").join(relative)
    }

    /// A command that will run on this host, started in `/`. The process that it makes is the program itself: its pid can be signalled.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.inner.holder_pid())).args(["--mount", "--net", "--wd=/", "--"]);
        command.arg(program.as_ref());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
        command
    }

    /// Runs a program to its end, whatever its status.
    pub fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> Result<Output> {
        output(self.command(program).args(args))
    }

    /// Runs a program to its end and gives what it printed; another status than 0 is an error.
    pub fn check(&self, program: impl AsRef<Path>, args: &[&str]) -> Result<String> {
        check(self.command(program).args(args))
    }

    /// Starts a long-running command made by [`Host::command`]; its log is `<dir>/<name>.log`.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        Process::start_on(Some(self.inner.clone()), name, command, &self.dir().join(format!("{name}.log")))
    }

    /// Runs `work` on a thread in this host's network namespace: sockets made there are the host's.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(Path::new("/run/netns").join(&self.inner.namespace))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("entering the network namespace")?;
                work()
            });
            thread.join().unwrap_or_else(|_| Err(anyhow!("a panic in the network namespace of {}", self.inner.name)))
        })
    }

    /// GET from a server that this host reaches.
    pub fn http_get(&self, address: SocketAddr, path: &str) -> Result<http::Response> {
        self.within(|| http::http_get(address, path, &[]))
    }

    /// Bytes sent to the network since the host started, link headers included.
    pub fn sent_bytes(&self) -> Result<u64> {
        self.counter(8)
    }

    /// Bytes received from the network since the host started, link headers included.
    pub fn received_bytes(&self) -> Result<u64> {
        self.counter(0)
    }

    /// A counter of this host's TCP as the kernel calls it, for example `TCPTimeouts` or `RetransSegs`.
    pub fn tcp_counter(&self, name: &str) -> Result<u64> {
        for file in ["netstat", "snmp"] {
            let text = std::fs::read_to_string(format!("/proc/{}/net/{file}", self.inner.holder_pid()))?;
            let lines: Vec<&str> = text.lines().collect();
            for [names, values] in lines.as_chunks().0 {
                let at = names.split_whitespace().position(|column| column == name);
                if let Some(value) = at.and_then(|at| values.split_whitespace().nth(at)) {
                    return value.parse().context("not a number");
                }
            }
        }
        bail!("TCP has no counter called {name}")
    }

    fn counter(&self, column: usize) -> Result<u64> {
        // The counters of the namespace that the holder is in: nobody has to enter it.
        let text = std::fs::read_to_string(format!("/proc/{}/net/dev", self.inner.holder_pid()))?;
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:")).context("no eth0")?;
        line.split_whitespace().nth(column).and_then(|value| value.parse().ok()).context("no such counter")
    }

    /// Pulls the cable, or puts it back.
    pub fn set_link(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        check(Command::new("ip").args(["-n", &self.inner.namespace, "link", "set", "eth0", state])).map(drop)
    }

    /// Changes the rate limit in both directions.
    pub fn set_rate(&self, rate: Mbit) -> Result<()> {
        self.set_rates(rate.into())
    }

    /// Changes the limits of the directions that `rates` names.
    pub fn set_rates(&self, rates: Rates) -> Result<()> {
        self.inner.network.set_rates(&self.inner.namespace, self.inner.number, rates)
    }

    /// `program` of the pinned tools.
    pub(crate) fn tool(&self, program: &str) -> Result<Command> {
        Ok(self.tool_of(&tools::tools_dir()?, program))
    }

    /// `program` of a directory with tools, which find each other there first.
    pub(crate) fn tool_of(&self, dir: &Path, program: &str) -> Command {
        let mut command = self.command(dir.join(program));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}:/usr/local/sbin:/usr/sbin:/sbin", dir.display()));
        command
    }
}

impl HostInner {
    fn holder_pid(&self) -> u32 {
        self.holder.as_ref().map_or(0, Child::id)
    }

    fn end(&mut self) -> Result<()> {
        let mut namespaces = sweep::Namespaces::default();
        if let Some(holder) = &self.holder {
            namespaces.add_those_of(holder.id());
        }
        let ended = sweep::end_all_in(&namespaces);
        if let Some(holder) = &mut self.holder {
            holder.wait()?;
        }
        ended.and(sweep::remove_namespace(&self.namespace))
    }
}

impl Drop for HostInner {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cleaning up host {}: {error:#}", self.name);
        }
    }
}
