//! The network of one trial and what runs on it.

use crate::system::{Daemon, System};
use crate::work::Links;
use anyhow::{Context, Result, ensure};
use lapwing_lab::image::{self, Layout};
use lapwing_lab::{
    BASIC_PASSWORD, BASIC_USER, Containerd, ContainerdOptions, Host, Lab, Mbit, Network, Registry, RegistryHosts,
    RegistryOptions, check, interrupt,
};
use std::collections::HashSet;
use std::time::Duration;

/// Daemons have so long to find each other before work begins.
const SETTLE: Duration = Duration::from_secs(10);

/// A host with a containerd and the system's part.
pub(crate) struct Worker {
    pub(crate) daemon: Option<Daemon>,
    pub(crate) containerd: Containerd,
    pub(crate) host: Host,
}

impl Worker {
    /// Fetches an image's content by containerd, and makes sure that containerd has it.
    pub(crate) fn fetch(&self, stage: &Stage, image: &Image) -> Result<()> {
        let mut ctr = self.containerd.ctr()?;
        ctr.args(["content", "fetch", "--hosts-dir"]).arg(self.containerd.hosts_dir());
        if stage.is_private {
            ctr.args(["--user", &format!("{BASIC_USER}:{BASIC_PASSWORD}")]);
        }
        let words = || {
            let all = self.daemon.iter().chain(&stage.shared).map(Daemon::last_words);
            all.collect::<Vec<_>>().join("; ")
        };
        let name = self.host.name();
        check(ctr.arg(&image.reference)).with_context(|| format!("{name} could not fetch; {}", words()))?;
        let content = check(self.containerd.ctr()?.args(["content", "ls", "--quiet"]))?;
        let digests: HashSet<&str> = content.lines().collect();
        let missing: Vec<&str> =
            image.layout.layers.iter().map(|layer| &*layer.digest).filter(|digest| !digests.contains(digest)).collect();
        ensure!(missing.is_empty(), "{name} has fetched the image, and not {missing:?}");
        Ok(())
    }
}

/// What there is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Props {
    pub(crate) workers: usize,
    /// The image's layers, of random bytes.
    pub(crate) layers_mib: &'static [usize],
    /// Another image, whose last layer alone is another.
    pub(crate) has_before: bool,
    /// The registry asks for a password.
    pub(crate) is_private: bool,
    pub(crate) links: Links,
}

/// An image in the registry.
pub(crate) struct Image {
    pub(crate) reference: String,
    pub(crate) layout: Layout,
}

/// Everything that runs. Dropping it ends all of it.
pub(crate) struct Stage {
    pub(crate) workers: Vec<Worker>,
    pub(crate) shared: Option<Daemon>,
    pub(crate) registry: Registry,
    pub(crate) is_private: bool,
    pub(crate) image: Image,
    /// What workers have of it before.
    pub(crate) before: Option<Image>,
    pub(crate) network: Network,
    pub(crate) links: Links,
}

impl Stage {
    /// Builds it; no worker has anything of the image yet.
    pub(crate) fn set(system: System, props: &Props) -> Result<Self> {
        let network = Lab::new("peers")?.network()?;
        let options = RegistryOptions { basic_auth: props.is_private, ..RegistryOptions::default() };
        let registry = Registry::start(&network.host("registry", None)?, options)?;
        let before = match (props.has_before, props.layers_mib) {
            (true, [same @ .., last]) => Some(push(system, &registry, "bench:0", &[same, &[last + 1]].concat())?),
            _ => None,
        };
        let image = push(system, &registry, "bench:1", props.layers_mib)?;
        let Props { is_private, links, .. } = *props;
        registry.host().set_rate(Mbit(links.registry))?;
        let mut stage = Self { workers: Vec::new(), shared: None, registry, is_private, image, before, network, links };
        stage.shared = system.start_shared(&stage)?;
        for number in 0..props.workers {
            interrupt::check()?;
            let worker = stage.worker(system, number)?;
            stage.workers.push(worker);
        }
        Ok(stage)
    }

    /// Lets daemons find each other; they are idle then.
    pub(crate) fn settle(&self) {
        std::thread::sleep(SETTLE);
    }

    /// What a worker lacks of the image: its layers, configuration and manifest as the registry sends them.
    pub(crate) fn bytes(&self) -> u64 {
        let has = |digest: &str| {
            self.before.iter().any(|before| before.layout.layers.iter().any(|layer| layer.digest == digest))
        };
        let known: u64 =
            self.image.layout.layers.iter().filter(|layer| has(&layer.digest)).map(|layer| layer.size).sum();
        self.image.layout.compressed_bytes() - known
    }

    fn worker(&self, system: System, number: usize) -> Result<Worker> {
        let host = self.network.host_at(&format!("n{number}"), self.links.of_worker())?;
        let hosts = RegistryHosts {
            name: self.registry.name(),
            url: self.registry.url(),
            mirrors: system.mirror(&host).into_iter().collect(),
            headers: system.header(self).into_iter().collect(),
        };
        let options = ContainerdOptions { registries: vec![hosts], ..ContainerdOptions::default() };
        let containerd = Containerd::start(&host, options)?;
        let daemon = system.start(self, &host)?;
        Ok(Worker { daemon, containerd, host })
    }
}

fn push(system: System, registry: &Registry, name: &str, layers_mib: &[usize]) -> Result<Image> {
    let layout = image::noise(7000, layers_mib)?.layout;
    let reference =
        if system.takes_oci() { registry.push(&layout, name)? } else { registry.push_as_docker(&layout, name)? };
    Ok(Image { reference, layout })
}
