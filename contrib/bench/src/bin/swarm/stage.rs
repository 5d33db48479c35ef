//! The network of one scenario and what runs on it.

use crate::content::Blob;
use crate::fault::Fault;
use crate::scenario::Scenario;
use anyhow::Result;
use lapwing_lab::{
    CorruptingPeer, Host, Lab, Lapwing, LapwingSettings, Mbit, Network, Rates, Registry, RegistryOptions, interrupt,
};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};

const REPOSITORY: &str = "bench";
const MIRROR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7080);

/// A node and its host.
pub(crate) struct Node {
    pub(crate) lapwing: Lapwing,
    pub(crate) host: Host,
}

/// Everything that runs. Dropping it ends all of it.
pub(crate) struct Stage {
    pub(crate) nodes: Vec<Node>,
    pub(crate) tracker: Lapwing,
    pub(crate) registry: Registry,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) network: Network,
    pub(crate) corrupting: Option<CorruptingPeer>,
}

impl Stage {
    /// Builds it; no node has anything yet.
    pub(crate) fn set(scenario: &Scenario) -> Result<Self> {
        let network = Lab::new("swarm")?.network()?;
        let far = scenario.border_mbit.map(|mbit| network.far_segment(Mbit(mbit))).transpose()?;
        let registry = Registry::start(
            &network.host("registry", Some(Mbit(scenario.registry_mbit)))?,
            RegistryOptions::default(),
        )?;
        let mut blobs = Vec::new();
        for (&mib, seed) in scenario.blobs_mib.iter().zip(1..) {
            interrupt::check()?;
            let blob = Blob::new(seed, mib << 20)?;
            registry.push_blob(REPOSITORY, &blob.digest, blob.length, blob.content())?;
            blobs.push(blob);
        }
        let mut at_tracker = LapwingSettings::tracker().with("origin", &format!("copies = {}", scenario.copies));
        if far.is_some() {
            at_tracker = at_tracker.with("origin", "zone = \"near\"");
        }
        let tracker = Lapwing::start(&network.host("tracker", None)?, at_tracker)?;
        let rates = Rates::of(Mbit(scenario.node_up_mbit), Mbit(scenario.node_down_mbit));
        let mut nodes = Vec::new();
        for number in 0..scenario.nodes {
            interrupt::check()?;
            let beyond = number >= scenario.nodes / 2;
            let segment = far.as_ref().filter(|_| beyond).unwrap_or(&network);
            let host = segment.host_at(&format!("n{number}"), rates)?;
            if scenario.fault == Fault::Crawling && number + 1 == scenario.nodes {
                host.set_rates(one_percent(scenario))?;
            }
            let zone = far.as_ref().map(|_| if beyond { "far" } else { "near" });
            let lapwing = Lapwing::start(&host, settings(&tracker, &registry, zone))?;
            nodes.push(Node { lapwing, host });
        }
        let corrupting = (scenario.fault == Fault::Corrupting).then(|| {
            let mut content = Vec::new();
            blobs.first().map(|blob| blob.content().read_to_end(&mut content)).transpose()?;
            CorruptingPeer::start(&network.host_at("corrupting", rates)?, &tracker.tracker_address(), content)
        });
        Ok(Self { corrupting: corrupting.transpose()?, nodes, tracker, registry, blobs, network })
    }

    /// Where a node's mirror gives the blob, for clients on its host.
    pub(crate) fn at_mirror(&self, blob: &Blob) -> (SocketAddr, String) {
        (MIRROR, format!("/v2/{REPOSITORY}/blobs/{}?ns={}", blob.digest, self.registry.name()))
    }

    /// Where the registry gives it.
    pub(crate) fn at_registry(&self, blob: &Blob) -> (SocketAddr, String) {
        (self.registry.address(), format!("/v2/{REPOSITORY}/blobs/{}", blob.digest))
    }
}

/// A node that only serves its mirror: no snapshots, no indexes.
fn settings(tracker: &Lapwing, registry: &Registry, zone: Option<&str>) -> LapwingSettings {
    let mut settings = LapwingSettings::node(&[tracker.tracker_address()])
        .registry(&registry.name())
        .with("snapshotter", "enabled = false")
        .with("lazy", "enabled = false")
        .with("lazy", "build_indexes = false");
    if let Some(zone) = zone {
        settings = settings.with("tracker", &format!("zone = {zone:?}"));
    }
    if let Ok(level) = std::env::var("LAPWING_LOG") {
        settings.log = level;
    }
    settings
}

fn one_percent(scenario: &Scenario) -> Rates {
    let of = |mbit: u32| Mbit((mbit / 100).max(1));
    Rates::of(of(scenario.node_up_mbit), of(scenario.node_down_mbit))
}
