//! What is fetched, by how many workers, and when.

use crate::stage::Props;
use lapwing_lab::{Mbit, Rates};
use std::time::Duration;

/// When workers begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Together,
    /// One after the other, with this pause.
    Every(Duration),
    /// The first alone; the others together when it has everything and the registry is gone.
    WithoutRegistry,
    /// Together, and all have another version of the image, whose last layer is another.
    Update,
}

/// What is killed when the first worker has half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The system's part on the first worker, which then does not count.
    Peer,
    /// All that the workers share.
    Shared,
}

#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) workers: usize,
    /// The image's layers, of random bytes.
    pub(crate) layers_mib: &'static [usize],
    pub(crate) start: Start,
    pub(crate) victim: Option<Victim>,
    pub(crate) links: Links,
}

/// Rates, in Mbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Links {
    pub(crate) registry: u32,
    /// A worker's.
    pub(crate) up: u32,
    pub(crate) down: u32,
}

impl Links {
    pub(crate) fn of_worker(self) -> Rates {
        Rates::of(Mbit(self.up), Mbit(self.down))
    }
}

/// Those of all work that does not say otherwise.
pub(crate) const LINKS: Links = Links { registry: 100, up: 200, down: 400 };
/// With sixteen workers two cores cannot fill the others.
const HALF: Links = Links { registry: 50, up: 100, down: 200 };

pub(crate) const ALL: [Work; 10] = [
    Work {
        name: "cold8",
        about: "8 workers begin together, one layer of 64 MiB",
        workers: 8,
        layers_mib: &[64],
        start: Start::Together,
        victim: None,
        links: LINKS,
    },
    Work {
        name: "cold16",
        about: "16 workers begin together, one layer of 64 MiB",
        workers: 16,
        layers_mib: &[64],
        start: Start::Together,
        victim: None,
        links: LINKS,
    },
    Work {
        name: "cold16-half",
        about: "cold16, all links at half their rates",
        workers: 16,
        layers_mib: &[64],
        start: Start::Together,
        victim: None,
        links: HALF,
    },
    Work {
        name: "big8",
        about: "8 workers begin together, one layer of 256 MiB",
        workers: 8,
        layers_mib: &[256],
        start: Start::Together,
        victim: None,
        links: LINKS,
    },
    Work {
        name: "layers8",
        about: "8 workers begin together, eight layers of 8 MiB",
        workers: 8,
        layers_mib: &[8; 8],
        start: Start::Together,
        victim: None,
        links: LINKS,
    },
    Work {
        name: "arrivals",
        about: "8 workers begin one a second, one layer of 64 MiB",
        workers: 8,
        layers_mib: &[64],
        start: Start::Every(Duration::from_secs(1)),
        victim: None,
        links: LINKS,
    },
    Work {
        name: "outage",
        about: "the registry goes when the first of 4 workers has the image; then the others begin",
        workers: 4,
        layers_mib: &[64],
        start: Start::WithoutRegistry,
        victim: None,
        links: LINKS,
    },
    Work {
        name: "update",
        about: "8 workers that have the version before begin together, five layers of 13 MiB, one of them new",
        workers: 8,
        layers_mib: &[13; 5],
        start: Start::Update,
        victim: None,
        links: LINKS,
    },
    Work {
        name: "peer-dies",
        about: "cold8, and the first worker's part is killed when that has half; the others count",
        workers: 8,
        layers_mib: &[64],
        start: Start::Together,
        victim: Some(Victim::Peer),
        links: LINKS,
    },
    Work {
        name: "shared-dies",
        about: "cold8, and what all share (tracker, scheduler, seed, origin) is killed when the first worker has half",
        workers: 8,
        layers_mib: &[64],
        start: Start::Together,
        victim: Some(Victim::Shared),
        links: LINKS,
    },
];

impl Work {
    pub(crate) fn props(&self) -> Props {
        Props {
            workers: self.workers,
            layers_mib: self.layers_mib,
            has_before: self.start == Start::Update,
            is_private: false,
            links: self.links,
        }
    }

    /// Seconds in which nobody can do it: the fluid bound of Kumar and Ross (2006) for what is sent from when all but the last have begun.
    pub(crate) fn bound_s(&self, bytes: u64) -> f64 {
        let rate = |mbit: u32| f64::from(mbit) * 125_000.0;
        let (bytes, workers) = (bytes as f64, self.workers as f64);
        let Links { registry, up, down } = self.links;
        let one_down = bytes / rate(down);
        match self.start {
            Start::Together | Start::Update => {
                (bytes / rate(registry)).max(one_down).max(workers * bytes / (rate(registry) + workers * rate(up)))
            }
            Start::Every(pause) => (bytes / rate(registry)).max(pause.as_secs_f64() * (workers - 1.0) + one_down),
            // The others have each other, and the first.
            Start::WithoutRegistry => (bytes / rate(up)).max(one_down),
        }
    }
}
