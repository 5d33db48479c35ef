//! The work: images pulled lazily and whole, containers that read all of their files, removals.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use lapwing_lab::image::{self, Noise};
use lapwing_lab::{Machine, Site, check};
use serde::Serialize;

/// 160 MiB and their Busybox.
const IMAGES: u64 = 40;
const LAYERS: [usize; 3] = [1, 1, 2];
/// What a node keeps of images at once.
const KEPT: usize = 6;

/// The images that nodes pull.
pub(crate) struct Load(Vec<(String, Noise)>);

/// What was done.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) pulls: u64,
    pub(crate) containers: u64,
    /// Bytes that containers read, and that were right.
    pub(crate) bytes: u64,
    /// Containers that read something else.
    pub(crate) wrong: u64,
    pub(crate) failed: u64,
    /// The first errors.
    pub(crate) errors: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.pulls += other.pulls;
        self.containers += other.containers;
        self.bytes += other.bytes;
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.errors.extend(other.errors);
    }

    fn fail(&mut self, error: &anyhow::Error) {
        self.failed += 1;
        if self.errors.len() < 5 {
            eprintln!("{error:#}");
            self.errors.push(format!("{error:#}"));
        }
    }
}

impl Load {
    /// Builds the images and pushes them.
    pub(crate) fn new(site: &Site) -> Result<Self> {
        let push = |number: u64| -> Result<_> {
            let image = image::noise(2000 + number, &LAYERS)?;
            Ok((site.registry.push(&image.layout, &format!("soak:{number}"))?, image))
        };
        (0..IMAGES).map(push).collect::<Result<_>>().map(Self)
    }

    /// Works on one node until it is over. A pull that fails is counted, not the end.
    pub(crate) fn work(&self, worker: &Machine, seed: u64, over: &AtomicBool) -> Result<Tally> {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut tally, mut kept) = (Tally::default(), Vec::<&str>::new());
        while !over.load(Ordering::Relaxed) {
            let (reference, image) = &self.0[random.usize(..self.0.len())];
            // Whole, by the mirror alone, as containerd's own snapshotter pulls.
            let snapshotter = if random.u8(..4) == 0 { "overlayfs" } else { "lapwing" };
            match worker.containerd.pull(reference, snapshotter) {
                Ok(_) => tally.pulls += 1,
                Err(error) => tally.fail(&error.context(format!("pull of {reference}"))),
            }
            match worker.containerd.run(reference, snapshotter, &format!("soak{}", tally.containers), &[]) {
                Ok(sums) if sums == image.sums => tally.bytes += (image.sums.lines().count() as u64) << 20,
                Ok(sums) => {
                    eprintln!("{reference} read otherwise: {sums}");
                    tally.wrong += 1;
                }
                Err(error) => tally.fail(&error.context(format!("a container of {reference}"))),
            }
            tally.containers += 1;
            if !kept.contains(&reference.as_str()) {
                kept.push(reference);
            }
            if kept.len() > KEPT {
                let gone = kept.swap_remove(random.usize(..kept.len()));
                let mut ctr = worker.containerd.ctr()?;
                check(ctr.args(["images", "rm", "--sync", gone])).with_context(|| format!("removing {gone}"))?;
            }
        }
        Ok(tally)
    }
}
