//! Containers in a user namespace on lazily mounted layers: with ids mapped by the mount, which touches no file, and where containerd
//! takes the snapshotter for one that cannot, by its own copy with changed owners.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::{Machine, MachineOptions, Need, Site, image, require, wait};

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(90);
/// The namespace's root is this outside.
const ROOT: u32 = 100_000;
/// More than the greatest owner in the image.
const IDS: u32 = 3_000_000;

fn start(site: &Site, name: &str, remap_ids: bool, backend: &str) -> Machine {
    let settings = site.settings().patient();
    let settings = settings.with("lazy", &format!("backend = {backend:?}"));
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
    let seed = start(&site, "seed", true, "erofs");
    seed.containerd.pull(&name, "overlayfs").unwrap();
    let node = seed.lapwing.as_ref().unwrap();
    wait::until_true("both layers to be indexed", SOON, || node.log().unwrap().matches("built the index").count() == 2)
        .unwrap();
    for (remap_ids, backend) in [(true, "erofs"), (false, "erofs"), (true, "fuse"), (false, "fuse")] {
        let name_of = |how: &str| format!("{how}{backend}");
        let machine = start(&site, &name_of(if remap_ids { "mapped" } else { "copied" }), remap_ids, backend);
        machine.containerd.pull(&name, "lapwing").unwrap();
        let node = machine.lapwing.as_ref().unwrap();
        assert_eq!(node.metric("lapwing_snapshot_layers_claimed_total", "").unwrap(), 2.0, "both layers are lazy");
        let mapping = format!("0:{ROOT}:{IDS}");
        let options = ["--remap-labels", "--uidmap", &mapping, "--gidmap", &mapping];
        let script = "id -u && stat -c %u /bin/sh && touch /mine && stat -c %u /mine";
        let said = machine.containerd.run_with(&options, &name, "lapwing", "main", &["/bin/sh", "-c", script]).unwrap();
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0"], "remap-ids: {remap_ids}, {backend}");

        let list = format!("stat -c %u {}/snapshots/*/fs/bin/sh", node.root().display());
        let owners = machine.host.check("sh", &["-c", &list]).unwrap();
        let mut owners: Vec<u32> = owners.lines().map(|owner| owner.parse().unwrap()).collect();
        owners.sort_unstable();
        let expected: &[u32] = if remap_ids { &[0] } else { &[0, ROOT] };
        assert_eq!(owners, expected, "remap-ids: {remap_ids}, {backend}");
    }
}
