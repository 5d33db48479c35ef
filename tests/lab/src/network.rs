//! A bridge in a namespace of its own, and hosts around it.
//!
//! Nothing of a network is in the machine's own network namespace: no address, route or interface can collide, and no packet leaves.

use crate::host::Host;
use crate::lab::Lab;
use crate::process::check;
use crate::sweep;
use anyhow::{Context, Result, ensure};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// A rate in megabits (1,000,000 bits) a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mbit(pub u32);

impl Mbit {
    /// What `tc` is told: a token bucket of 10 ms, at least 128 KiB, so that segmentation offload's bundles pass.
    fn tbf(self) -> [String; 6] {
        let burst_bytes = (u64::from(self.0) * 1_000_000 / 8 / 100).max(128 << 10);
        [
            "rate".into(),
            format!("{}mbit", self.0),
            "burst".into(),
            burst_bytes.to_string(),
            "latency".into(),
            "50ms".into(),
        ]
    }
}

/// What passed an interface, as the kernel counts it: a bundle of segments that goes through whole is one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Link headers included.
    pub bytes: u64,
    /// Packets, or bundles.
    pub packets: u64,
}

impl Traffic {
    /// Ethernet, IPv4, and TCP with timestamps.
    const HEADERS: u64 = 14 + 20 + 32;

    /// What passed since an earlier look.
    pub const fn since(self, earlier: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(earlier.bytes), packets: self.packets.saturating_sub(earlier.packets) }
    }

    /// Bytes without headers, where all of it is TCP.
    pub const fn payload(self) -> u64 {
        self.bytes.saturating_sub(self.packets * Self::HEADERS)
    }
}

/// The limits of a host's link, each way by itself; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// What the host sends.
    pub up: Option<Mbit>,
    /// What it receives.
    pub down: Option<Mbit>,
}

impl Rates {
    /// Both ways limited, each to its own.
    pub const fn of(up: Mbit, down: Mbit) -> Self {
        Self { up: Some(up), down: Some(down) }
    }
}

impl From<Mbit> for Rates {
    fn from(both: Mbit) -> Self {
        Self::of(both, both)
    }
}

/// A network; hosts can be added at any time.
#[derive(Clone)]
pub struct Network {
    pub(crate) inner: Arc<NetworkInner>,
    default_rate: Option<Mbit>,
    /// The bridge, in the network's namespace, that new hosts are tied to.
    segment: &'static str,
}

/// Longest packet that is left for the network to cut up, in bytes. With the usual 64 KiB a full queue drops a connection's whole window at
/// once, after which it waits for its timer; between real machines single packets are dropped.
const SEGMENTATION_BYTES: &str = "16384";

/// The bridge of every network, and that of its far segment.
const NEAR: &str = "br0";
const FAR: &str = "br1";
/// The two ends of the border between them.
const BORDER: [&str; 2] = ["border0", "border1"];

pub(crate) struct NetworkInner {
    pub(crate) lab: Lab,
    /// Namespace of the bridges.
    bridge: String,
    hosts: AtomicU32,
    /// `/etc/hosts` of all hosts: one file, which each of them sees.
    names: Mutex<PathBuf>,
}

impl Network {
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let bridge = format!("{}-bridge", lab.0.prefix);
        let names = lab.dir().join("hosts");
        std::fs::write(&names, "127.0.0.1 localhost\n")?;
        check(Command::new("ip").args(["netns", "add", &bridge]))?;
        let inner = NetworkInner { lab: lab.clone(), bridge, hosts: AtomicU32::new(0), names: Mutex::new(names) };
        inner.ip(&["link", "set", "lo", "up"])?;
        inner.add_bridge(NEAR)?;
        Ok(Self { inner: Arc::new(inner), default_rate: None, segment: NEAR })
    }

    /// A second segment of this network, over a border that carries `border` each way. Hosts that are added to what is returned are beyond
    /// it; all others stay on this side. There is at most one.
    pub fn far_segment(&self, border: Mbit) -> Result<Self> {
        let [near, far] = BORDER;
        self.inner.add_bridge(FAR)?;
        self.inner.ip(&["link", "add", near, "type", "veth", "peer", "name", far])?;
        self.inner.ip(&["link", "set", near, "master", NEAR, "up"])?;
        self.inner.ip(&["link", "set", far, "master", FAR, "up"])?;
        for end in BORDER {
            self.inner.limit(&self.inner.bridge, end, border)?;
        }
        Ok(Self { segment: FAR, ..self.clone() })
    }

    /// What crossed the border into the far segment and out of it.
    pub fn border_traffic(&self) -> Result<(Traffic, Traffic)> {
        let show = ["-n", &self.inner.bridge, "-j", "-s", "link", "show", "dev", BORDER[0]];
        let text = check(Command::new("ip").args(show))?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let counter = |way: &str, what: &str| links[0]["stats64"][way][what].as_u64().context("no such counter");
        let traffic = |way| anyhow::Ok(Traffic { bytes: counter(way, "bytes")?, packets: counter(way, "packets")? });
        Ok((traffic("tx")?, traffic("rx")?))
    }

    pub(crate) const fn segment(&self) -> &'static str {
        self.segment
    }

    pub(crate) fn with_default_rate(self, rate: Mbit) -> Self {
        Self { default_rate: Some(rate), ..self }
    }

    /// A new host, known to all hosts of this network as `<name>.lab`. Sending and receiving are each limited to `rate`, else to the
    /// network's default, else not at all.
    pub fn host(&self, name: &str, rate: Option<Mbit>) -> Result<Host> {
        self.host_at(name, rate.or(self.default_rate).map(Rates::from).unwrap_or_default())
    }

    /// The same with limits that differ by direction.
    pub fn host_at(&self, name: &str, rates: Rates) -> Result<Host> {
        ensure!(
            name.len() <= 32 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()),
            "a host name has up to 32 of a-z and 0-9: {name:?}"
        );
        let number = self.inner.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(number < 250 * 250, "a network holds 62,499 hosts");
        let [high, low] = [number / 250, number % 250 + 1].map(|part| u8::try_from(part).unwrap_or(u8::MAX));
        let address = Ipv4Addr::new(10, 88, high, low);
        {
            let names = self.inner.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let line = format!("{address} {name}.lab {name}\n");
            std::io::Write::write_all(&mut std::fs::File::options().append(true).open(&*names)?, line.as_bytes())?;
        }
        Host::start(self, name, number, address, rates)
    }
}

impl NetworkInner {
    pub(crate) fn names_file(&self) -> PathBuf {
        self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        check(Command::new("ip").args(["-n", &self.bridge]).args(args)).map(drop)
    }

    fn add_bridge(&self, name: &str) -> Result<()> {
        self.ip(&["link", "add", name, "type", "bridge"])?;
        self.ip(&["link", "set", name, "up"])
    }

    /// Ties the namespace `host` to the bridge `segment`: `eth0` there, `v<number>` here.
    pub(crate) fn attach(&self, segment: &str, host: &str, number: u32, address: Ipv4Addr, rates: Rates) -> Result<()> {
        let port = format!("v{number}");
        self.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", host])?;
        self.ip(&["link", "set", &port, "master", segment, "up"])?;
        let inside = |args: &[&str]| check(Command::new("ip").args(["-n", host]).args(args)).map(drop);
        inside(&["link", "set", "lo", "up"])?;
        inside(&["address", "add", &format!("{address}/16"), "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "gso_max_size", SEGMENTATION_BYTES])?;
        inside(&["link", "set", "eth0", "up"])?;
        self.set_rates(host, number, rates)
    }

    fn limit(&self, namespace: &str, interface: &str, rate: Mbit) -> Result<()> {
        check(
            Command::new("tc")
                .args(["-n", namespace, "qdisc", "replace", "dev", interface, "root", "tbf"])
                .args(rate.tbf()),
        )
        .map(drop)
    }

    /// Limits the directions that `rates` names, and leaves the others as they are.
    pub(crate) fn set_rates(&self, host: &str, number: u32, rates: Rates) -> Result<()> {
        if let Some(up) = rates.up {
            self.limit(host, "eth0", up)?;
        }
        if let Some(down) = rates.down {
            self.limit(&self.bridge, &format!("v{number}"), down)?;
        }
        Ok(())
    }
}

impl Drop for NetworkInner {
    fn drop(&mut self) {
        if Path::new("/run/netns").join(&self.bridge).exists()
            && let Err(error) = sweep::remove_namespace(&self.bridge)
        {
            eprintln!("{error:#}");
        }
    }
}
