//! The network of one trial and what runs on it.

use crate::system::{Daemon, System};
use crate::work::{DOWN, REGISTRY, UP, Work};
use anyhow::Result;
use lapwing_lab::image::{self, Layout};
use lapwing_lab::{
    Containerd, ContainerdOptions, Host, Lab, Mbit, Network, Rates, Registry, RegistryHosts, RegistryOptions, interrupt,
};

/// A host with a containerd and the system's part.
pub(crate) struct Worker {
    pub(crate) daemon: Option<Daemon>,
    pub(crate) containerd: Containerd,
    pub(crate) host: Host,
}

/// Everything that runs. Dropping it ends all of it.
pub(crate) struct Stage {
    pub(crate) workers: Vec<Worker>,
    pub(crate) shared: Option<Daemon>,
    pub(crate) registry: Registry,
    pub(crate) reference: String,
    /// Of all layers, as the registry sends them.
    pub(crate) bytes: u64,
    pub(crate) network: Network,
}

impl Stage {
    /// Builds it; no worker has anything of the image yet.
    pub(crate) fn set(system: System, work: &Work) -> Result<Self> {
        let network = Lab::new("peers")?.network()?;
        let registry = Registry::start(&network.host("registry", None)?, RegistryOptions::default())?;
        let layout: Layout = image::noise(7000, work.layers_mib)?.layout;
        let reference = registry.push(&layout, "bench:1")?;
        registry.host().set_rate(Mbit(REGISTRY))?;
        let mut stage =
            Self { workers: Vec::new(), shared: None, registry, reference, bytes: layout.compressed_bytes(), network };
        stage.shared = system.start_shared(&stage)?;
        for number in 0..work.workers {
            interrupt::check()?;
            let worker = stage.worker(system, number)?;
            stage.workers.push(worker);
        }
        Ok(stage)
    }

    fn worker(&self, system: System, number: usize) -> Result<Worker> {
        let host = self.network.host_at(&format!("n{number}"), Rates::of(Mbit(UP), Mbit(DOWN)))?;
        let hosts = RegistryHosts {
            name: self.registry.name(),
            url: self.registry.url(),
            mirrors: system.mirror(&host).into_iter().collect(),
        };
        let options = ContainerdOptions { registries: vec![hosts], ..ContainerdOptions::default() };
        let containerd = Containerd::start(&host, options)?;
        let daemon = system.start(self, &host)?;
        Ok(Worker { daemon, containerd, host })
    }
}
