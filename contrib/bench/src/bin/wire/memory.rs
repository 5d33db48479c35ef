//! Memory of a real `lapwing node` that pulls a blob from 32 peers: idle, at most, and afterwards.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::node::free_port;
use crate::{BLOB_BYTES, Blob, Role, Wire, text};

const PEERS: usize = 32;
const READY: Duration = Duration::from_secs(60);
/// A node that just started, and one that just pulled, is given so long to come to rest.
const REST: Duration = Duration::from_secs(10);
/// Blobs stay open for a minute after their last use.
const REST_AFTER: Duration = Duration::from_secs(90);

/// A running `lapwing`; it ends when dropped.
pub(crate) struct Lapwing {
    child: Child,
    /// Of the tracker, or of the mirror.
    pub(crate) address: String,
}

impl Lapwing {
    pub(crate) fn tracker(directory: &Path) -> anyhow::Result<Self> {
        let (listen, admin) = (free_port()?, free_port()?);
        let config = format!(
            "root = {:?}\n[log]\nlevel = \"error\"\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [tracker]\nlisten = \"127.0.0.1:{listen}\"\n",
            directory.join("tracker"),
        );
        Self::start("tracker", directory, &config, listen, admin)
    }

    fn node(directory: &Path, tracker: &str, registry: u16, wire: Wire) -> anyhow::Result<Self> {
        let (mirror, admin, peer) = (free_port()?, free_port()?, free_port()?);
        let config = format!(
            "root = {:?}\n[log]\nlevel = \"error\"\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [mirror]\nlisten = \"127.0.0.1:{mirror}\"\n[snapshotter]\nenabled = false\n\
             [peer]\nlisten = \"127.0.0.1:{peer}\"\ninsecure = {}\n\
             [tracker]\naddresses = [{tracker:?}]\ngroup = {:?}\n\
             [registries.hosts.\"127.0.0.1:{registry}\"]\nplain_http = true\n",
            directory.join("node"),
            wire == Wire::Plaintext,
            wire.name(),
        );
        Self::start("node", directory, &config, mirror, admin)
    }

    fn start(command: &str, directory: &Path, config: &str, listen: u16, admin: u16) -> anyhow::Result<Self> {
        let file = directory.join(format!("{command}.toml"));
        std::fs::write(&file, config)?;
        let program = lapwing_binary()?;
        let child = Command::new(&program)
            .args([command, "--config", &text(&file)])
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{}", program.display()))?;
        let mut started = Self { child, address: format!("127.0.0.1:{listen}") };
        let deadline = Instant::now() + READY;
        while !is_healthy(admin) {
            anyhow::ensure!(started.child.try_wait()?.is_none(), "lapwing {command} ended");
            anyhow::ensure!(Instant::now() < deadline, "lapwing {command} is not healthy");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(started)
    }

    /// A line of its status in MB: `VmRSS`, `VmHWM`.
    fn megabytes(&self, key: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| key.to_owned())?;
        let kilobytes: f64 = line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024.0 / 1e6)
    }
}

impl Drop for Lapwing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_healthy(admin: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, admin))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The optimised binary: `$LAPWING_BIN`, else the one beside this program.
fn lapwing_binary() -> anyhow::Result<PathBuf> {
    match std::env::var_os("LAPWING_BIN") {
        Some(path) => Ok(path.into()),
        None => Ok(std::env::current_exe()?.with_file_name("lapwing")),
    }
}

/// A registry that says that the blob exists and never gives it.
fn registry() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(&stream));
        }
    });
    Ok(port)
}

fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(request) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let head = match request.starts_with("HEAD") {
            true => format!("200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {BLOB_BYTES}"),
            false => "503 Service Unavailable\r\nContent-Length: 0".to_owned(),
        };
        write!(stream, "HTTP/1.1 {head}\r\n\r\n")?;
    }
    Ok(())
}

/// Gives each of the peers a store of its own with the same blob, without copying it.
fn multiply(root: &Path) -> anyhow::Result<()> {
    for number in 1..PEERS {
        let copy = root.join(number.to_string());
        // Not the directory as a whole: the file that a store locks must be its own.
        let blobs = copy.join("blobs");
        std::fs::create_dir_all(&blobs)?;
        let copied = Command::new("cp").args(["-al", &text(&root.join("0/blobs/sha256")), &text(&blobs)]).status()?;
        anyhow::ensure!(copied.success(), "cp: {copied}");
    }
    Ok(())
}

pub(crate) fn measure(sources: &Path, sinks: &Path, tracker: &str, blob: &Blob) -> anyhow::Result<Vec<Value>> {
    multiply(sources)?;
    let registry = registry()?;
    let mut results = Vec::new();
    for wire in [Wire::Plaintext, Wire::Tls] {
        let _seeds = Role::start(&["seed", &text(sources), tracker, wire.name(), &PEERS.to_string()])?;
        let node = Lapwing::node(sinks, tracker, registry, wire)?;
        std::thread::sleep(REST);
        let idle = node.megabytes("VmRSS")?;
        let started = Instant::now();
        pull(&node.address, registry, &blob.digest)?;
        let seconds = started.elapsed().as_secs_f64();
        let most = node.megabytes("VmHWM")?;
        std::thread::sleep(REST_AFTER);
        results.push(json!({
            "mode": wire.name(),
            "peers": PEERS,
            "idle_rss_mb": idle,
            "rss_max_mb": most,
            "rss_after_mb": node.megabytes("VmRSS")?,
            "seconds": seconds,
        }));
        drop(node);
        std::fs::remove_dir_all(sinks.join("node"))?;
    }
    Ok(results)
}

/// Lets the node pull the blob, as containerd does: through its mirror.
fn pull(mirror: &str, registry: u16, digest: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(mirror)?;
    write!(
        stream,
        "GET /v2/noise/blobs/{digest}?ns=127.0.0.1:{registry} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let received = std::io::copy(&mut stream, &mut std::io::sink())?;
    anyhow::ensure!(received > BLOB_BYTES, "the mirror gave {received} bytes");
    Ok(())
}
