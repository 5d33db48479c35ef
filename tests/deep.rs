//! An image of as many layers as containerd takes starts lazily: each of them is claimed and mounted, and what upper layers change of lower
//! ones is changed.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::image::{Entry, EntryKind, ImageConfig, Layout, LayoutWriter, TarWriter};
use lapwing_lab::{LapwingSettings, Machine, Need, Site, check, require, wait};

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(240);
const LAYERS: usize = 128;

/// Each layer has a file of its own, changes the one that all have, and takes away what the layer below it added.
fn image(dir: &std::path::Path) -> Layout {
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let mut image = LayoutWriter::new(dir).unwrap();
    for number in 0..LAYERS {
        let written = image.layer(|out| {
            let mut tar = TarWriter::new(out);
            if number == 0 {
                for directory in ["bin/", "dev/", "proc/", "sys/", "data/", "gone/"] {
                    tar.add(&Entry::new(directory.as_bytes(), EntryKind::Directory))?;
                }
                tar.add(&Entry::new(b"bin/busybox", EntryKind::File(&busybox)).mode(0o755))?;
                for applet in ["sh", "cat", "sha256sum", "ls"] {
                    let path = format!("bin/{applet}");
                    tar.add(&Entry::new(path.as_bytes(), EntryKind::Hardlink(b"bin/busybox")).mode(0o755))?;
                }
            } else {
                let below = format!("gone/.wh.{:03}", number - 1);
                tar.add(&Entry::new(below.as_bytes(), EntryKind::File(b"")))?;
            }
            let content = format!("layer {number}\n");
            for path in [format!("data/{number:03}"), "top".to_owned(), format!("gone/{number:03}")] {
                tar.add(&Entry::new(path.as_bytes(), EntryKind::File(content.as_bytes())))?;
            }
            tar.finish().map(drop)
        });
        written.unwrap();
    }
    let config = ImageConfig {
        entrypoint: &["/bin/sh", "-c"],
        cmd: &["cat /data/* /top; ls /gone"],
        env: &["PATH=/bin"],
        working_dir: "/",
    };
    image.finish(&config).unwrap()
}

/// What a container of it prints.
fn expected() -> String {
    let last = LAYERS - 1;
    let files: String = (0..LAYERS).map(|number| format!("layer {number}\n")).collect();
    format!("{files}layer {last}\n{last:03}\n")
}

fn settings(site: &Site) -> LapwingSettings {
    site.settings().patient()
}

fn layer_mounts(machine: &Machine) -> usize {
    let mounts = machine.host.check("cat", &["/proc/mounts"]).unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(2) == Some("erofs")).count()
}

#[test]
fn an_image_of_128_layers_starts_lazily() {
    const NAME: &str = "an_image_of_128_layers_starts_lazily";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let reference = site.registry.push(&image(directory.path()), "lab/deep:1").unwrap();
    let whole = site.worker("whole", None, settings(&site)).unwrap();
    whole.containerd.pull(&reference, "overlayfs").unwrap();
    wait::until_true("the layers to be indexed", SOON, || {
        whole.lapwing.as_ref().unwrap().log().unwrap().matches("built the index of a layer").count() >= LAYERS
    })
    .unwrap();
    assert_eq!(whole.containerd.run(&reference, "overlayfs", "main", &[]).unwrap(), expected());

    let mut lazy = site.worker("lazy", None, settings(&site)).unwrap();
    lazy.containerd.pull(&reference, "lapwing").unwrap();
    let claimed = lazy.lapwing.as_ref().unwrap().metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
    assert_eq!((claimed as usize, layer_mounts(&lazy)), (LAYERS, LAYERS));
    assert_eq!(lazy.containerd.run(&reference, "lapwing", "main", &[]).unwrap(), expected());
    lazy.lapwing.as_mut().unwrap().restart().unwrap();
    lazy.containerd.wait_for_snapshotter().unwrap();
    assert_eq!(lazy.containerd.run(&reference, "lapwing", "again", &[]).unwrap(), expected());

    check(lazy.containerd.ctr().unwrap().args(["images", "rm", "--sync", &reference])).unwrap();
    wait::until_true("the layers to be unmounted", SOON, || layer_mounts(&lazy) == 0).unwrap();
}
