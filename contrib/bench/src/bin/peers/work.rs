//! What is fetched, by how many workers, and when.

use std::time::Duration;

/// When workers begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Together,
    /// One after the other, with this pause.
    Every(Duration),
    /// The first alone; the others together when it has everything and the registry is gone.
    WithoutRegistry,
}

#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) workers: usize,
    /// The image's layers, of random bytes.
    pub(crate) layers_mib: &'static [usize],
    pub(crate) start: Start,
}

/// Rates of all work, in Mbit/s.
pub(crate) const REGISTRY: u32 = 100;
pub(crate) const UP: u32 = 200;
pub(crate) const DOWN: u32 = 400;

pub(crate) const ALL: [Work; 5] = [
    Work {
        name: "cold8",
        about: "8 workers begin together, one layer of 64 MiB",
        workers: 8,
        layers_mib: &[64],
        start: Start::Together,
    },
    Work {
        name: "cold16",
        about: "16 workers begin together, one layer of 64 MiB",
        workers: 16,
        layers_mib: &[64],
        start: Start::Together,
    },
    Work {
        name: "layers8",
        about: "8 workers begin together, eight layers of 8 MiB",
        workers: 8,
        layers_mib: &[8; 8],
        start: Start::Together,
    },
    Work {
        name: "arrivals",
        about: "8 workers begin one a second, one layer of 64 MiB",
        workers: 8,
        layers_mib: &[64],
        start: Start::Every(Duration::from_secs(1)),
    },
    Work {
        name: "outage",
        about: "the registry goes when the first of 4 workers has the image; then the others begin",
        workers: 4,
        layers_mib: &[64],
        start: Start::WithoutRegistry,
    },
];

impl Work {
    /// Seconds in which nobody can do it: the fluid bound of Kumar and Ross (2006) for what is sent from when all but the last have begun.
    pub(crate) fn bound_s(&self, bytes: u64) -> f64 {
        let rate = |mbit: u32| f64::from(mbit) * 125_000.0;
        let (bytes, workers) = (bytes as f64, self.workers as f64);
        let one_down = bytes / rate(DOWN);
        match self.start {
            Start::Together => {
                (bytes / rate(REGISTRY)).max(one_down).max(workers * bytes / (rate(REGISTRY) + workers * rate(UP)))
            }
            Start::Every(pause) => (bytes / rate(REGISTRY)).max(pause.as_secs_f64() * (workers - 1.0) + one_down),
            // The others have each other, and the first.
            Start::WithoutRegistry => (bytes / rate(UP)).max(one_down),
        }
    }
}
