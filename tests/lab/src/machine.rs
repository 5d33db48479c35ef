//! A worker: a host with a Lapwing node and a containerd that uses it.

use crate::containerd::{Containerd, ContainerdOptions, Flavour, RegistryHosts};
use crate::host::Host;
use crate::lapwing::{Lapwing, LapwingSettings};
use crate::network::{Mbit, Network};
use crate::process::check;
use crate::registry::Registry;
use crate::tree::{self, Node};
use anyhow::Result;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// How a worker is to be set up.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    /// Which containerd.
    pub flavour: Flavour,
    /// Limit of its link.
    pub rate: Option<Mbit>,
    /// Lapwing; `None` is a plain worker.
    pub lapwing: Option<LapwingSettings>,
    /// Whether CRI uses Lapwing's snapshotter.
    pub cri_lapwing: bool,
    /// CRI pulls by itself and not through the transfer service.
    pub cri_local_pull: bool,
    /// Bytes of the parts in which the transfer service fetches a layer, several at once; `None`: in one piece.
    pub layer_fetch_buffer: Option<u32>,
    /// Whether containerd tells Lapwing's snapshotter which layer a snapshot is of.
    pub annotations: bool,
    /// Whether containerd is told that the snapshotter maps ids (2.x).
    pub remap_ids: bool,
    /// Whether containerd asks Lapwing's mirror before the registry.
    pub mirror: bool,
    /// The image of CRI's sandbox containers.
    pub pause: Option<String>,
    /// Whether containerd's own EROFS snapshotter is set up, as `erofs`.
    pub erofs: bool,
    /// Other snapshotters: their names and sockets.
    pub others: Vec<(String, PathBuf)>,
}

impl MachineOptions {
    /// A worker with plain containerd 2.x and overlayfs.
    pub fn plain() -> Self {
        Self {
            flavour: Flavour::V2,
            rate: None,
            lapwing: None,
            cri_lapwing: false,
            cri_local_pull: false,
            layer_fetch_buffer: None,
            annotations: true,
            remap_ids: true,
            mirror: true,
            pause: None,
            erofs: false,
            others: Vec::new(),
        }
    }

    /// A worker whose containerd 2.x pulls through a Lapwing node and may use its snapshotter.
    pub fn lapwing(settings: LapwingSettings) -> Self {
        Self { lapwing: Some(settings), cri_lapwing: true, ..Self::plain() }
    }
}

/// A worker. Its parts are public, to be stopped and started by tests; they end containerd first.
pub struct Machine {
    /// containerd.
    pub containerd: Containerd,
    /// The node, unless the worker is a plain one.
    pub lapwing: Option<Lapwing>,
    /// The host of both.
    pub host: Host,
}

impl Machine {
    /// Mounts an image that was pulled here, and reads all of it. Once for each snapshotter.
    pub fn walk_image(&self, reference: &str, snapshotter: &str) -> Result<BTreeMap<PathBuf, Node>> {
        let mount = self.host.dir().join(format!("mount-{snapshotter}"));
        std::fs::create_dir(&mount)?;
        let mut command = self.containerd.ctr()?;
        check(command.args(["images", "mount", "--snapshotter", snapshotter, reference]).arg(&mount))?;
        tree::digest_walk(&self.host.path(&mount))
    }

    /// A new host called `name` on `network` with everything running. Images come from `registry`; Lapwing, where it is set up, is told of it
    /// and asked first.
    pub fn start(network: &Network, name: &str, registry: &Registry, options: MachineOptions) -> Result<Self> {
        Self::start_on(&network.host(name, options.rate)?, registry, options)
    }

    /// The same on a host that is there already and that nothing runs on; its limit stays as it is.
    pub fn start_on(host: &Host, registry: &Registry, options: MachineOptions) -> Result<Self> {
        let mut mirrors = Vec::new();
        let mut lapwing = None;
        if let Some(settings) = options.lapwing {
            mirrors.extend(options.mirror.then(Lapwing::mirror_url));
            lapwing = Some(Lapwing::start(host, settings.registry(&registry.name()))?);
        }
        let uses_lapwing = lapwing.is_some();
        let containerd = Containerd::start(
            host,
            ContainerdOptions {
                flavour: options.flavour,
                snapshotter: uses_lapwing.then(|| Lapwing::snapshotter(host)),
                registries: vec![RegistryHosts {
                    name: registry.name(),
                    url: registry.url(),
                    mirrors,
                    headers: Vec::new(),
                }],
                cri_snapshotter: if uses_lapwing && options.cri_lapwing { "lapwing" } else { "overlayfs" }.into(),
                cri_local_pull: options.cri_local_pull,
                layer_fetch_buffer: options.layer_fetch_buffer,
                annotations: options.annotations,
                remap_ids: options.remap_ids,
                pause: options.pause,
                erofs: options.erofs,
                others: options.others,
            },
        )?;
        Ok(Self { containerd, lapwing, host: host.clone() })
    }

    /// Where a container that `ctr` runs in the namespace `default` has its root filesystem, as the test reaches it.
    pub fn rootfs(&self, container: &str) -> PathBuf {
        self.host.path(format!("/run/containerd/io.containerd.runtime.v2.task/default/{container}/rootfs"))
    }

    /// The address of a port of this worker for others on the network.
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.host.address(), port))
    }
}
