//! A bridge in a namespace of its own, and hosts around it.
//!
//! Nothing of a network is in the machine's own network namespace: no address, route or interface can collide, and no packet leaves.

use crate::host::Host;
use crate::lab::Lab;
use crate::process::check;
use crate::sweep;
use anyhow::{Result, ensure};
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

/// A network; hosts can be added at any time.
#[derive(Clone)]
pub struct Network {
    pub(crate) inner: Arc<NetworkInner>,
    default_rate: Option<Mbit>,
}

pub(crate) struct NetworkInner {
    pub(crate) lab: Lab,
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
        inner.ip(&["link", "add", "br0", "type", "bridge"])?;
        inner.ip(&["link", "set", "br0", "up"])?;
        Ok(Self { inner: Arc::new(inner), default_rate: None })
    }

    pub(crate) fn with_default_rate(self, rate: Mbit) -> Self {
        Self { default_rate: Some(rate), ..self }
    }

    /// A new host, known to all hosts of this network as `<name>.lab`. Sending and receiving are each limited to `rate`, else to the
    /// network's default, else not at all.
    pub fn host(&self, name: &str, rate: Option<Mbit>) -> Result<Host> {
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
        Host::start(self, name, number, address, rate.or(self.default_rate))
    }
}

impl NetworkInner {
    pub(crate) fn names_file(&self) -> PathBuf {
        self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        check(Command::new("ip").args(["-n", &self.bridge]).args(args)).map(drop)
    }

    /// Ties the namespace `host` to the bridge: `eth0` there, `v<number>` here.
    pub(crate) fn attach(&self, host: &str, number: u32, address: Ipv4Addr, rate: Option<Mbit>) -> Result<()> {
        let port = format!("v{number}");
        self.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", host])?;
        self.ip(&["link", "set", &port, "master", "br0", "up"])?;
        let inside = |args: &[&str]| check(Command::new("ip").args(["-n", host]).args(args)).map(drop);
        inside(&["link", "set", "lo", "up"])?;
        inside(&["address", "add", &format!("{address}/16"), "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        if let Some(rate) = rate {
            for (namespace, interface) in [(host, "eth0"), (self.bridge.as_str(), port.as_str())] {
                self.limit(namespace, interface, rate)?;
            }
        }
        Ok(())
    }

    fn limit(&self, namespace: &str, interface: &str, rate: Mbit) -> Result<()> {
        check(
            Command::new("tc")
                .args(["-n", namespace, "qdisc", "replace", "dev", interface, "root", "tbf"])
                .args(rate.tbf()),
        )
        .map(drop)
    }

    pub(crate) fn set_rate(&self, host: &str, number: u32, rate: Mbit) -> Result<()> {
        self.limit(host, "eth0", rate)?;
        self.limit(&self.bridge, &format!("v{number}"), rate)
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
