//! The laboratory itself, without Lapwing: real registries, both containerds and all three clients do their work in it.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use lapwing_lab::{
    Containerd, ContainerdOptions, Flavour, Host, Lab, Need, Registry, RegistryHosts, RegistryOptions, image, require,
    tree,
};
use std::time::Duration;

const NEEDS: [Need; 7] = [
    Need::Root,
    Need::Disk,
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("runc"),
    Need::Program("tc"),
    Need::Program("pigz"),
];
const END: Duration = Duration::from_secs(60);

struct Bench {
    registry: Registry,
    worker: Host,
    image: String,
    pause: String,
}

fn bench(name: &str) -> Bench {
    let network = Lab::new(name).unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let image = registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let pause = registry.push(&image::pause().unwrap(), "lab/pause:1").unwrap();
    Bench { registry, worker: network.host("worker", None).unwrap(), image, pause }
}

impl Bench {
    fn containerd(&self, flavour: Flavour) -> Containerd {
        let options = ContainerdOptions {
            flavour,
            registries: vec![RegistryHosts {
                name: self.registry.name(),
                url: self.registry.url(),
                mirrors: Vec::new(),
                headers: Vec::new(),
            }],
            pause: Some(self.pause.clone()),
            ..ContainerdOptions::default()
        };
        Containerd::start(&self.worker, options).unwrap()
    }
}

fn ctr_pulls_and_runs(flavour: Flavour, name: &str) {
    let bench = bench(name);
    let containerd = bench.containerd(flavour);
    let before = bench.registry.sent_bytes().unwrap();
    containerd.pull(&bench.image, "overlayfs").unwrap();
    let sent = bench.registry.sent_bytes().unwrap() - before;
    let size = image::small().unwrap().compressed_bytes();
    assert!(sent >= size && sent < size * 6 / 5, "{sent} bytes were sent for an image of {size}");
    let output = containerd.run(&bench.image, "overlayfs", "first", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
}

#[test]
fn containerd_2_pulls_and_runs_by_ctr() {
    if require("containerd_2_pulls_and_runs_by_ctr", &[&NEEDS[..], &[Need::Tools]].concat()) {
        ctr_pulls_and_runs(Flavour::V2, "ctr2");
    }
}

#[test]
fn debian_containerd_pulls_and_runs_by_ctr() {
    if require("debian_containerd_pulls_and_runs_by_ctr", &[&NEEDS[..], &[Need::Program("containerd")]].concat()) {
        ctr_pulls_and_runs(Flavour::Debian, "ctr1");
    }
}

fn cri_runs_a_pod(flavour: Flavour, name: &str) {
    let bench = bench(name);
    let containerd = bench.containerd(flavour);
    containerd.cri_pull(&bench.image).unwrap();
    let pod = containerd.cri_pod("one").unwrap();
    let container = containerd.cri_container("one", &pod, &bench.image, &[]).unwrap();
    assert_eq!(containerd.cri_output(&container, END).unwrap().trim(), image::SMALL_OUTPUT);
    containerd.cri_remove_pod(&pod).unwrap();
}

#[test]
fn containerd_2_runs_a_pod_by_crictl() {
    if require("containerd_2_runs_a_pod_by_crictl", &[&NEEDS[..], &[Need::Tools]].concat()) {
        cri_runs_a_pod(Flavour::V2, "cri2");
    }
}

#[test]
fn debian_containerd_runs_a_pod_by_crictl() {
    let needs = [Need::Tools, Need::Program("containerd")];
    if require("debian_containerd_runs_a_pod_by_crictl", &[&NEEDS[..], &needs].concat()) {
        cri_runs_a_pod(Flavour::Debian, "cri1");
    }
}

#[test]
fn nerdctl_pulls_and_runs() {
    if !require("nerdctl_pulls_and_runs", &[&NEEDS[..], &[Need::Tools]].concat()) {
        return;
    }
    let bench = bench("nerdctl");
    let containerd = bench.containerd(Flavour::V2);
    let run = |args: &[&str]| lapwing_lab::check(containerd.nerdctl().unwrap().args(args)).unwrap();
    run(&["pull", "--quiet", &bench.image]);
    assert_eq!(run(&["run", "--rm", "--net=none", &bench.image]).trim(), image::SMALL_OUTPUT);
}

/// Two hosts had one cgroup for containers of one name: now and then a container's end removed that of another that was just being made.
#[test]
fn containers_of_one_name_on_two_hosts_have_their_own_cgroups() {
    if !require("containers_of_one_name_on_two_hosts_have_their_own_cgroups", &[&NEEDS[..], &[Need::Tools]].concat()) {
        return;
    }
    let cgroups_of_the_container = || {
        let bench = bench("cgroups");
        let containerd = bench.containerd(Flavour::V2);
        containerd.pull(&bench.image, "overlayfs").unwrap();
        let mut run = containerd.run_command(&["--detach"], &bench.image, "overlayfs", "same").unwrap();
        lapwing_lab::check(run.args(["/bin/sleep", "1000"])).unwrap();
        let tasks = lapwing_lab::check(containerd.ctr().unwrap().args(["tasks", "list", "--quiet"])).unwrap();
        assert_eq!(tasks.trim(), "same");
        let pids = lapwing_lab::check(containerd.ctr().unwrap().args(["tasks", "ps", "same"])).unwrap();
        let pid = pids.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap().to_owned();
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroups.contains(&containerd.cgroup("same")), "{cgroups}");
        lapwing_lab::check(containerd.ctr().unwrap().args(["tasks", "rm", "--force", "same"])).unwrap();
        containerd.cgroup("same")
    };
    assert_ne!(cgroups_of_the_container(), cgroups_of_the_container());
}

/// A container of the small image looks the same whether its root filesystem is walked once or twice, and holds what the image builder wrote.
#[test]
fn a_root_filesystem_is_walked_from_outside() {
    if !require("a_root_filesystem_is_walked_from_outside", &[&NEEDS[..], &[Need::Tools]].concat()) {
        return;
    }
    let bench = bench("walk");
    let containerd = bench.containerd(Flavour::V2);
    containerd.pull(&bench.image, "overlayfs").unwrap();
    let mount = bench.worker.dir().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let target = mount.to_str().unwrap();
    lapwing_lab::check(containerd.ctr().unwrap().args(["images", "mount", &bench.image, target])).unwrap();
    assert_eq!(tree::digest_walk(&mount).unwrap().len(), 1, "the mount is to be seen on its host only");

    let found = tree::digest_walk(&bench.worker.path(&mount)).unwrap();
    let node = |path: &str| found.get(std::path::Path::new(path)).unwrap_or_else(|| panic!("no {path}"));
    assert!(found.len() > 80, "{} files", found.len());
    assert_eq!(node("odd/capable").xattrs.keys().collect::<Vec<_>>(), ["security.capability"]);
    assert_eq!(node("odd/setuid").mode, 0o4755);
    assert_eq!(node("odd/owned").mtime, (1_600_000_000, 123_456_789));
    assert_eq!((node("odd/high-ids").uid, node("odd/high-ids").gid), (2_000_000, 2_000_001));
    assert_eq!(node("odd/noise").content, node("odd/noise-too").content);
    assert_eq!(node("bin/sh").links, Some(13));
    assert_eq!((node("odd/pipe").kind, node("odd/null").kind, node("odd/block").kind), ("fifo", "char", "block"));
    assert_eq!(node("opaque").mode, 0o750);
    for gone in ["gone/file", "odd/setgid", "opaque/old1"] {
        assert!(!found.contains_key(std::path::Path::new(gone)), "{gone} was deleted by the second layer");
    }
    assert_eq!(tree::differences(&found, &tree::digest_walk(&bench.worker.path(&mount)).unwrap(), 9), "");
}
