//! What is fetched, by how many workers, and when.

use crate::stage::Props;
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
}

/// Rates of all work, in Mbit/s.
pub(crate) const REGISTRY: u32 = 100;
pub(crate) const UP: u32 = 200;
pub(crate) const DOWN: u32 = 400;

pub(crate) const ALL: [Work; 8] = [
    Work {
        name: "cold8",
        about: "8 workers begin together, one layer of 64 MiB",
        workers: 8,
        layers_mib: &[64],
        start: Start::Together,
        victim: None,
    },
    Work {
        name: "cold16",
        about: "16 workers begin together, one layer of 64 MiB",
        workers: 16,
        layers_mib: &[64],
        start: Start::Together,
        victim: None,
    },
    Work {
        name: "layers8",
        about: "8 workers begin together, eight layers of 8 MiB",
        workers: 8,
        layers_mib: &[8; 8],
        start: Start::Together,
        victim: None,
    },
    Work {
        name: "arrivals",
        about: "8 workers begin one a second, one layer of 64 MiB",
        workers: 8,
        layers_mib: &[64],
        start: Start::Every(Duration::from_secs(1)),
        victim: None,
    },
    Work {
        name: "outage",
        about: "the registry goes when the first of 4 workers has the image; then the others begin",
        workers: 4,
        layers_mib: &[64],
        start: Start::WithoutRegistry,
        victim: None,
    },
    Work {
        name: "update",
        about: "8 workers that have the version before begin together, five layers of 13 MiB, one of them new",
        workers: 8,
        layers_mib: &[13; 5],
        start: Start::Update,
        victim: None,
    },
    Work {
        name: "peer-dies",
        about: "cold8, and the first worker's part is killed when that has half; the others count",
        workers: 8,
        layers_mib: &[64],
        start: Start::Together,
        victim: Some(Victim::Peer),
    },
    Work {
        name: "shared-dies",
        about: "cold8, and what all share (tracker, scheduler, seed, origin) is killed when the first worker has half",
        workers: 8,
        layers_mib: &[64],
        start: Start::Together,
        victim: Some(Victim::Shared),
    },
];

impl Work {
    pub(crate) fn props(&self) -> Props {
        Props {
            workers: self.workers,
            layers_mib: self.layers_mib,
            has_before: self.start == Start::Update,
            is_private: false,
        }
    }

    /// Seconds in which nobody can do it: the fluid bound of Kumar and Ross (2006) for what is sent from when all but the last have begun.
    pub(crate) fn bound_s(&self, bytes: u64) -> f64 {
        let rate = |mbit: u32| f64::from(mbit) * 125_000.0;
        let (bytes, workers) = (bytes as f64, self.workers as f64);
        let one_down = bytes / rate(DOWN);
        match self.start {
            Start::Together | Start::Update => {
                (bytes / rate(REGISTRY)).max(one_down).max(workers * bytes / (rate(REGISTRY) + workers * rate(UP)))
            }
            Start::Every(pause) => (bytes / rate(REGISTRY)).max(pause.as_secs_f64() * (workers - 1.0) + one_down),
            // The others have each other, and the first.
            Start::WithoutRegistry => (bytes / rate(UP)).max(one_down),
        }
    }
}
