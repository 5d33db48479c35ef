//! Containers in a user namespace on lazily mounted layers: with ids mapped by the mount, which touches no file, and where containerd
//! takes the snapshotter for one that cannot, by its own copy with changed owners.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::{Machine, MachineOptions, Need, Site, check, image, require, wait};

const NEEDS: [Need; 9] = [
    Need::Root,
    Need::Disk,
    Need::Fuse,
    Need::Erofs,
    Need::Tools,
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("runc"),
    Need::Program("tc"),
];
const SOON: Duration = Duration::from_secs(90);
/// The namespace's root is this outside.
const ROOT: u32 = 100_000;
/// More than the greatest owner in the image.
const IDS: u32 = 3_000_000;

fn start(site: &Site, name: &str, remap_ids: bool) -> Machine {
    let settings = site.settings().with("snapshotter", "resolve_timeout = \"30s\"");
    let options = MachineOptions { remap_ids, ..MachineOptions::lapwing(settings) };
    Machine::start(&site.network, name, &site.registry, options).unwrap()
}

#[test]
fn a_container_in_a_user_namespace_runs_on_lazy_layers() {
    const NAME: &str = "a_container_in_a_user_namespace_runs_on_lazy_layers";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let name = site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let seed = start(&site, "seed", true);
    seed.containerd.pull(&name, "overlayfs").unwrap();
    let node = seed.lapwing.as_ref().unwrap();
    wait::until_true("both layers to be indexed", SOON, || node.log().unwrap().matches("built the index").count() == 2)
        .unwrap();
    for remap_ids in [true, false] {
        let machine = start(&site, if remap_ids { "mapped" } else { "copied" }, remap_ids);
        machine.containerd.pull(&name, "lapwing").unwrap();
        let node = machine.lapwing.as_ref().unwrap();
        assert_eq!(node.metric("lapwing_snapshot_layers_claimed_total", "").unwrap(), 2.0, "both layers are lazy");
        let mapping = format!("0:{ROOT}:{IDS}");
        let flags = ["--rm", "--remap-labels", "--uidmap", &mapping, "--gidmap", &mapping];
        let mut command = machine.containerd.run_command(&flags, &name, "lapwing", "main").unwrap();
        let script = "id -u && stat -c %u /bin/sh && touch /mine && stat -c %u /mine";
        let said = check(command.args(["/bin/sh", "-c", script])).unwrap();
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0"], "remap-ids: {remap_ids}");

        let list = format!("stat -c %u {}/snapshots/*/fs/bin/sh", node.root().display());
        let owners = machine.host.check("sh", &["-c", &list]).unwrap();
        let mut owners: Vec<u32> = owners.lines().map(|owner| owner.parse().unwrap()).collect();
        owners.sort_unstable();
        let expected: &[u32] = if remap_ids { &[0] } else { &[0, ROOT] };
        assert_eq!(owners, expected, "remap-ids: {remap_ids}");
    }
}
