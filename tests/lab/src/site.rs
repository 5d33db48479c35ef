//! What most whole-system tests begin with: a network, a registry, and a tracker.

use crate::lab::Lab;
use crate::lapwing::{Lapwing, LapwingSettings};
use crate::machine::{Machine, MachineOptions};
use crate::network::{Mbit, Network};
use crate::registry::{Registry, RegistryOptions};
use anyhow::Result;

/// A network with a registry and a tracker, to which workers are added.
pub struct Site {
    /// The tracker, on the host `tracker`.
    pub tracker: Lapwing,
    /// The registry, on the host `registry`.
    pub registry: Registry,
    /// The network of all.
    pub network: Network,
}

impl Site {
    /// A site for the test `name`, whose registry is limited to `registry_rate`.
    pub fn new(name: &str, registry_rate: Option<Mbit>) -> Result<Self> {
        let network = Lab::new(name)?.network()?;
        let registry = Registry::start(&network.host("registry", registry_rate)?, RegistryOptions::default())?;
        let tracker = Lapwing::start(&network.host("tracker", None)?, LapwingSettings::tracker())?;
        Ok(Self { tracker, registry, network })
    }

    /// A node of this site that fetches nothing which nobody reads.
    pub fn settings(&self) -> LapwingSettings {
        LapwingSettings::node(&[self.tracker.tracker_address()]).with("lazy", "complete_after = \"0\"")
    }

    /// The same, without lazy mounts: every pull fetches every layer.
    pub fn whole_settings(&self) -> LapwingSettings {
        self.settings().with("lazy", "enabled = false")
    }

    /// A seed of this site on a host of its own, limited to `rate`.
    pub fn seed(&self, name: &str, rate: Option<Mbit>, settings: LapwingSettings) -> Result<Lapwing> {
        Lapwing::start(&self.network.host(name, rate)?, settings.registry(&self.registry.name()))
    }

    /// What a seed of this site is told.
    pub fn seed_settings(&self) -> LapwingSettings {
        LapwingSettings::seed(&[self.tracker.tracker_address()])
    }

    /// A worker with containerd 2.x and a node, limited to `rate`.
    pub fn worker(&self, name: &str, rate: Option<Mbit>, settings: LapwingSettings) -> Result<Machine> {
        let options = MachineOptions { rate, ..MachineOptions::lapwing(settings) };
        Machine::start(&self.network, name, &self.registry, options)
    }
}
