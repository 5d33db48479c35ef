//! The network and its machines.

use crate::progress::Progress;
use anyhow::Result;
use lapwing_lab::image::{self, Layout};
use lapwing_lab::{
    Flavour, Lab, Lapwing, LapwingSettings, Machine, MachineOptions, Mbit, Network, Registry, RegistryOptions,
    interrupt,
};

/// Every link, both ways.
pub(crate) const LINK: Mbit = Mbit(200);
/// Workers that pull whole at the same moment.
pub(crate) const COLD: usize = 3;

/// Everything that runs. Dropping it ends all of it.
pub(crate) struct Stage {
    /// Plain containerd.
    pub(crate) plain: Machine,
    /// The workers of the cold swarm.
    pub(crate) cold: Vec<Machine>,
    /// The worker that starts lazily.
    pub(crate) lazy: Machine,
    pub(crate) _tracker: Lapwing,
    pub(crate) registry: Registry,
    pub(crate) image: Layout,
    /// The image's name at the registry.
    pub(crate) reference: String,
}

impl Stage {
    pub(crate) fn set(progress: &mut Progress) -> Result<Self> {
        let flavour = match lapwing_lab::tools_dir() {
            Ok(_) => Flavour::V2,
            Err(error) => {
                progress.step(&format!("no pinned containerd 2.x here: {error:#}"));
                Flavour::Debian
            }
        };
        progress.step(match flavour {
            Flavour::V2 => "containerd: the pinned 2.x",
            Flavour::V17 | Flavour::Debian => {
                "containerd: the distribution's own; its ctr fetches whole layers before it unpacks, so a lazy start cannot be shown"
            }
        });
        let image = image::real()?;
        let megabytes = image.compressed_bytes() as f64 / 1e6;
        progress.step(&format!(
            "image: Debian with Python libraries, {} layers, {megabytes:.0} MB compressed",
            image.layers.len()
        ));
        interrupt::check()?;
        let network = Lab::new("demo")?.limited_network(LINK)?;
        let registry = Registry::start(&network.host("registry", None)?, RegistryOptions::default())?;
        let reference = registry.push(&image, "demo/python:1")?;
        progress.step(&format!(
            "registry: {} holds {reference}; its link and all others do {} Mbit/s",
            registry.url(),
            LINK.0
        ));
        interrupt::check()?;
        let tracker = Lapwing::start(&network.host("tracker", None)?, LapwingSettings::tracker())?;
        let settings = LapwingSettings::node(&[tracker.tracker_address()]);
        let settings = LapwingSettings { log: std::env::var("LAPWING_LOG").unwrap_or(settings.log), ..settings };
        let worker =
            |name: &str, settings: Option<LapwingSettings>| worker(&network, name, &registry, flavour, settings);
        let plain = worker("plain", None)?;
        let mut cold = Vec::new();
        for number in 1..=COLD {
            cold.push(worker(&format!("cold{number}"), Some(settings.clone()))?);
        }
        // Otherwise the rest of the image would come in the background while the start is measured.
        let lazy = worker("lazy", Some(settings.with("lazy", "complete_after = \"0\"")))?;
        progress
            .step("workers: plain (containerd alone), cold1, cold2, cold3 and lazy (containerd with a Lapwing node)");
        Ok(Self { plain, cold, lazy, _tracker: tracker, registry, image, reference })
    }

    /// Workers with a Lapwing node.
    pub(crate) fn nodes(&self) -> usize {
        self.cold.len() + 1
    }
}

fn worker(
    network: &Network,
    name: &str,
    registry: &Registry,
    flavour: Flavour,
    lapwing: Option<LapwingSettings>,
) -> Result<Machine> {
    interrupt::check()?;
    let options = match lapwing {
        Some(settings) => MachineOptions::lapwing(settings),
        None => MachineOptions::plain(),
    };
    Machine::start(network, name, registry, MachineOptions { flavour, ..options })
}
