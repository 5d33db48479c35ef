//! Single files, from a web server, by each system's download command: on one worker, and then on another.

use crate::stage::{Props, Stage};
use crate::system::System;
use crate::work::LINKS;
use anyhow::{Context, Result, ensure};
use lapwing_lab::{Host, Mbit, WebServer, check, interrupt};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// From a byte to a gigabyte.
const SIZES: [u64; 5] = [1, 10_000, 1_000_000, 100_000_000, 1_000_000_000];

const PROPS: Props = Props { workers: 2, layers_mib: &[1], has_before: false, is_private: false, links: LINKS };

/// The web server's host, which nodes are told of beforehand.
pub(crate) const WEB: &str = "web";

/// One file, and how long it took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Fetched {
    pub(crate) bytes: u64,
    /// Of the first worker; of the second, when the first had it.
    pub(crate) first_s: f64,
    pub(crate) second_s: f64,
    /// What the web server sent for both, headers included, by the file's size.
    pub(crate) copies: f64,
}

impl Fetched {
    pub(crate) fn summary(self) -> String {
        let Self { bytes, first_s, second_s, copies } = self;
        format!("{bytes} bytes: {first_s:.3} s, then {second_s:.3} s, {copies:.2} copies")
    }
}

/// Nothing for a system that has no such command.
pub(crate) fn fetch(system: System) -> Result<Vec<Fetched>> {
    let stage = Stage::set(system, &PROPS)?;
    let web = stage.network.host(WEB, Some(Mbit(LINKS.registry)))?;
    let root = web.dir().join("files");
    std::fs::create_dir_all(&root)?;
    let server = WebServer::start(&web, &root)?;
    stage.settle();
    let [first, second] = &stage.workers[..] else { anyhow::bail!("not two workers") };
    let mut fetched = Vec::new();
    for (seed, bytes) in (1..).zip(SIZES) {
        interrupt::check()?;
        let name = format!("file{bytes}");
        write(&root.join(&name), seed, bytes)?;
        let url = server.url(&name);
        let before = web.sent_bytes()?;
        let first_s = timed(system, &first.host, &url, bytes)?;
        let second_s = timed(system, &second.host, &url, bytes)?;
        let copies = (web.sent_bytes()? - before) as f64 / bytes as f64;
        fetched.push(Fetched { bytes, first_s, second_s, copies });
        std::fs::remove_file(root.join(&name))?;
    }
    Ok(fetched)
}

/// A file of noise.
fn write(file: &Path, seed: u64, bytes: u64) -> Result<()> {
    let mut content = vec![0; usize::try_from(bytes)?];
    fastrand::Rng::with_seed(seed).fill(&mut content);
    std::fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}

/// Seconds that it takes until the file is there; it is removed then.
fn timed(system: System, host: &Host, url: &str, bytes: u64) -> Result<f64> {
    let file = host.dir().join("fetched");
    let mut command = system.download(host, url, &file)?.context("it has no such command")?;
    let began = Instant::now();
    check(&mut command)?;
    let took = began.elapsed().as_secs_f64();
    ensure!(std::fs::metadata(&file)?.len() == bytes, "{url} did not come whole");
    std::fs::remove_file(&file)?;
    Ok(took)
}
