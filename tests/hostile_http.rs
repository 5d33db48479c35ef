//! HTTP that means harm, towards the mirror, the proxy and the admin listener, and clients that do nothing: each gets an answer that it
//! deserves or is let go, nobody is sent anywhere, memory and descriptors stay bounded, and whoever asks honestly is served beside them.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

#[path = "hostile_http/idle.rs"]
mod idle;
#[path = "hostile_http/requests.rs"]
mod requests;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lapwing_evidence::Evidence;
use lapwing_lab::image::{self, Blob};
use lapwing_lab::{Host, Lapwing, Need, Site};
use lapwing_p2p::digest::Digest;

const NEEDS: [Need; 4] = [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("skopeo")];
/// Until an answer is whole, or its connection over.
const PATIENCE: Duration = Duration::from_secs(60);
const REPOSITORY: &str = "lab/noise";
const MIRROR: &str = "127.0.0.1:7080";
const PROXY: &str = "127.0.0.1:7084";
const ADMIN: &str = "127.0.0.1:7082";

/// A node whose every listener is open to clients on its machine, and a layer.
struct Rig {
    site: Site,
    host: Host,
    node: Lapwing,
    layer: Blob,
    bytes: Vec<u8>,
}

impl Rig {
    fn new(name: &str, seed: u64) -> Self {
        let site = Site::new(name, None).unwrap();
        let noise = image::noise(seed, &[1]).unwrap();
        site.registry.push(&noise.layout, &format!("{REPOSITORY}:1")).unwrap();
        let layer = noise.layout.layers[0].clone();
        let bytes = std::fs::read(noise.layout.blob_path(&layer)).unwrap();
        let host = site.network.host("node", None).unwrap();
        let settings = site.whole_settings().registry(&site.registry.name());
        let node = Lapwing::start(&host, settings.with("proxy", &format!("listen = {PROXY:?}"))).unwrap();
        Self { site, host, node, layer, bytes }
    }

    fn path(&self) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}?ns={}", self.layer.digest, self.site.registry.name())
    }

    /// What the node gives an honest client: right, whatever goes on beside it.
    fn fetch(&self) -> Vec<u8> {
        let answer = self.node.mirror_blob(&self.site.registry.name(), REPOSITORY, &self.layer.digest).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert_eq!(Digest::of(&answer.body).to_string(), self.layer.digest);
        answer.body
    }

    /// Serves the layer once before anything is wrong.
    fn begin(&self, evidence: &mut Evidence) {
        evidence.served_before(self.fetch().len() as u64);
    }

    /// The same while something is, or after it.
    fn goes_on(&self, evidence: &mut Evidence) {
        let begun = Instant::now();
        let body = self.fetch();
        evidence.ended(begun.elapsed(), true);
        assert!(evidence.compare(&self.bytes, &body));
    }

    fn pid(&mut self) -> u32 {
        self.node.process().pid()
    }
}

/// Bytes that the process holds in memory, and how many descriptors.
fn held(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = line.trim_end_matches("kB").trim().parse().unwrap();
    (kilobytes << 10, std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

/// Sends `bytes` and reads what comes until the connection ends; none if it does not within `patience`.
fn exchange(address: &str, bytes: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address.parse::<SocketAddr>().unwrap(), PATIENCE).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut sending = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        // Whoever refuses closes while it is still being told.
        scope.spawn(move || sending.write_all(bytes));
        let mut answer = Vec::new();
        let mut buffer = [0; 64 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Some(answer),
                Ok(length) => answer.extend_from_slice(&buffer[..length]),
                Err(error) => {
                    let late = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    let _ = stream.shutdown(Shutdown::Both);
                    return (!late).then_some(answer);
                }
            }
        }
    })
}
