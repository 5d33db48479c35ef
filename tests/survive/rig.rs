//! A worker with containers that run on lazily mounted layers, and the process that keeps its mounts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapwing_lab::image::Noise;
use lapwing_lab::wait::{self, Poll};
use lapwing_lab::{Lapwing, LapwingSettings, Machine, Need, Site, check};

pub(crate) const NEEDS: [Need; 7] = Need::LAZY_PULLS;
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// What a container does: it reads all there is, again and again, and says so when it fails or comes out otherwise.
const LOOP: &str = "right=$(sha256sum /data/*); while :; do \
    now=$(sha256sum /data/*) || echo FAILED; [ \"$now\" = \"$right\" ] || echo WRONG; echo round; done";

/// A site with images that a first node has indexed.
pub(crate) struct Rig {
    pub(crate) worker: Machine,
    pub(crate) images: Vec<(String, Noise)>,
    pub(crate) seed: Machine,
    pub(crate) site: Site,
}

impl Rig {
    pub(crate) fn new(
        name: &str,
        images: Vec<Noise>,
        settings: impl FnOnce(LapwingSettings) -> LapwingSettings,
    ) -> Self {
        let site = Site::new(name, None).unwrap();
        let push = |(number, image): (usize, Noise)| {
            (site.registry.push(&image.layout, &format!("noise{number}:1")).unwrap(), image)
        };
        let images: Vec<_> = images.into_iter().enumerate().map(push).collect();
        let seed = site.worker("seed", None, site.settings()).unwrap();
        for (reference, _) in &images {
            seed.containerd.pull(reference, "lapwing").unwrap();
        }
        let layers: usize = images.iter().map(|(_, image)| image.layout.layers.len()).sum();
        wait::until_true("the layers to be indexed", DEADLINE, || {
            seed.lapwing.as_ref().unwrap().log().unwrap().matches("built the index of a layer").count() >= layers
        })
        .unwrap();
        let settings = settings(site.settings().patient().with("lazy", "read_deadline = \"10s\""));
        let worker = site.worker("worker", None, settings).unwrap();
        Self { worker, images, seed, site }
    }

    pub(crate) fn node(&mut self) -> &mut Lapwing {
        self.worker.lapwing.as_mut().unwrap()
    }

    /// Pulls every image, all layers of which must be mounted lazily, and starts a container of each, called `c<number>`.
    pub(crate) fn pull_and_run(&mut self) {
        for (reference, image) in &self.images {
            let claimed = || {
                self.worker.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap()
                    as usize
            };
            let before = claimed();
            self.worker.containerd.pull(reference, "lapwing").unwrap();
            assert_eq!(claimed() - before, image.layout.layers.len(), "all layers of {reference} are lazy");
        }
        for number in 0..self.images.len() {
            self.run(number);
        }
    }

    fn run(&self, number: usize) {
        let (reference, _) = &self.images[number];
        let (name, log) = (container(number), format!("file://{}", self.log_of(number).display()));
        let options = ["--detach", "--log-uri", &log];
        let mut command = self.worker.containerd.run_command(&options, reference, "lapwing", &name).unwrap();
        check(command.args(["sh", "-c", LOOP])).unwrap();
    }

    fn log_of(&self, number: usize) -> PathBuf {
        self.worker.host.dir().join(format!("{}.output", container(number)))
    }

    /// The roots of the running containers, as the test reaches them.
    pub(crate) fn roots(&self) -> Vec<(PathBuf, &Noise)> {
        let images = self.images.iter().enumerate();
        images.map(|(number, (_, image))| (self.worker.rootfs(&container(number)), image)).collect()
    }

    /// Every container has read everything once more, and nothing ever failed or was wrong.
    pub(crate) fn assert_containers_read_right(&self) {
        let rounds = |number: usize| std::fs::read_to_string(self.log_of(number)).unwrap().matches("round").count();
        for number in 0..self.images.len() {
            let before = rounds(number);
            wait::until_true("a container to read everything again", DEADLINE, || rounds(number) > before + 1).unwrap();
            let said = std::fs::read_to_string(self.log_of(number)).unwrap();
            assert!(!said.contains("FAILED") && !said.contains("WRONG"), "{}: {said}", container(number));
        }
    }

    /// Ends the containers and takes them away, with their snapshots.
    pub(crate) fn remove_containers(&self) {
        for number in 0..self.images.len() {
            let ctr = |args: &[&str]| check(self.worker.containerd.ctr().unwrap().args(args));
            ctr(&["task", "rm", "--force", &container(number)]).unwrap();
            ctr(&["container", "rm", &container(number)]).unwrap();
        }
    }

    /// A new container on the snapshots that are there, without a pull, reads everything and ends.
    pub(crate) fn assert_new_container_runs(&self, name: &str) {
        // containerd dials a snapshotter that was away only after a pause of some seconds.
        let (reference, image) = &self.images[0];
        let output = wait::until("a new container to run", DEADLINE, || {
            Ok(Poll::retry(self.worker.containerd.run(reference, "lapwing", name, &[])))
        });
        assert_eq!(output.unwrap(), image.sums, "{name}");
    }

    /// The mount points of the worker below its root.
    pub(crate) fn mounts(&mut self) -> Vec<String> {
        let root = self.node().root();
        let table = self.worker.host.check("cat", &["/proc/self/mountinfo"]).unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let mut found: Vec<_> = points.filter(|point| Path::new(point).starts_with(&root)).map(str::to_owned).collect();
        found.sort();
        found
    }

    /// The process that keeps the worker's mounts, as the node's log last named it, unless it has ended.
    pub(crate) fn holder(&mut self) -> Option<u32> {
        let log = self.node().log().unwrap();
        let line = log.lines().rev().find(|line| line.contains("a descriptor holder keeps"))?;
        let pid = line.rsplit_once("pid=")?.1.trim().parse().ok()?;
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "lapwing-holder" && state_of(pid) != Some('Z')).then_some(pid)
    }

    pub(crate) fn kill_holder(&mut self) {
        let pid = self.holder().expect("a holder runs");
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

/// A process's state as proc_pid_stat(5) has it.
fn state_of(pid: u32) -> Option<char> {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.rsplit_once(')')?.1.trim_start().chars().next()
}

fn container(number: usize) -> String {
    format!("c{number}")
}
