//! A lazily mounted root filesystem, by EROFS or by FUSE alone, is the same as the one that containerd unpacks with overlayfs, in everything a container can see.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lapwing_evidence::{Evidence, count};
use lapwing_lab::image::{Entry, EntryKind, ImageConfig, Layout, LayoutWriter, TarWriter};
use lapwing_lab::tree::{self, Node};
use lapwing_lab::{Need, Site, image, require, wait};

#[path = "equality/generated.rs"]
mod generated;

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(180);

/// Compares both root filesystems of `layout`, but for the times of those of `undated`, and gives the lazy one.
fn lazy_equals_unpacked(name: &str, layout: &Layout, undated: &[&str]) -> BTreeMap<PathBuf, Node> {
    let mut evidence = Evidence::new(17, "layers whose directories, names and attributes are odd");
    let site = Site::new(name, None).unwrap();
    let reference = site.registry.push(layout, "lab/image:1").unwrap();
    let settings = site.settings().patient();
    let first = site.worker("first", None, settings.clone()).unwrap();
    first.containerd.pull(&reference, "overlayfs").unwrap();
    let mut unpacked = first.walk_image(&reference, "overlayfs").unwrap();
    let node = first.lapwing.as_ref().unwrap();
    // containerd held all of it against its digests.
    evidence.served_before(node.metric("lapwing_mirror_bytes_total", "").unwrap() as u64);
    let different: BTreeSet<_> = layout.layers.iter().map(|layer| &layer.digest).collect();
    wait::until_true("the layers to be indexed", SOON, || {
        node.log().unwrap().matches("built the index of a layer").count() == different.len()
    })
    .unwrap();

    let mut shown = BTreeMap::new();
    for backend in ["erofs", "fuse"] {
        let settings = settings.clone().with("lazy", &format!("backend = \"{backend}\""));
        let machine = site.worker(backend, None, settings).unwrap();
        evidence.operation(|| machine.containerd.pull(&reference, "lapwing")).unwrap();
        let node = machine.lapwing.as_ref().unwrap();
        let claimed = node.metric("lapwing_snapshot_layers_claimed_total", "").unwrap();
        assert_eq!(claimed, layout.layers.len() as f64, "every layer is lazy");
        shown = evidence.operation(|| machine.walk_image(&reference, "lapwing")).unwrap();
        // A directory that the uppermost tar with something in it does not name is as old as the unpacking, an accident of each pull; no
        // tar of these images names the root. Lazily it has the time that a lower layer gives it, else 1970.
        for path in [""].iter().chain(undated) {
            let path = Path::new(path);
            unpacked.get_mut(path).unwrap().mtime = shown[path].mtime;
        }
        let differences = tree::differences(&unpacked, &shown, 40);
        assert_eq!(differences, "", "left: overlayfs, right: lazily mounted by {backend}");
        evidence.served_after(shown.values().filter(|node| node.kind == "file").filter_map(|node| node.size).sum());
        let mounts = machine.host.run("cat", &["/proc/self/mountinfo"]).unwrap().stdout;
        let mounts = String::from_utf8(mounts).unwrap();
        let kind = if backend == "erofs" { " - erofs " } else { " - fuse.lapwing " };
        let of_snapshots = mounts.lines().filter(|line| line.contains("/snapshots/") && line.contains(kind));
        assert!(of_snapshots.count() >= layout.layers.len(), "mounted by {backend}");
    }
    evidence.faults("layers", layout.layers.len() as u64);
    evidence.faults("entries", shown.len() as u64);
    evidence.faults("entries with attributes", shown.values().filter(|node| !node.xattrs.is_empty()).count() as u64);
    let longest = shown.keys().filter_map(|path| path.file_name()).map(|name| name.len()).max();
    evidence.figure("longest name, bytes", longest.unwrap_or_default() as f64);
    let mut within = BTreeMap::<_, u32>::new();
    shown.keys().for_each(|path| *within.entry(path.parent()).or_default() += 1);
    evidence.figure("most names in one directory", f64::from(within.into_values().max().unwrap_or_default()));
    shown
}

#[test]
fn an_image_of_oddities_is_the_same_when_mounted_lazily() {
    const NAME: &str = "an_image_of_oddities_is_the_same_when_mounted_lazily";
    if !require(NAME, &NEEDS) {
        return;
    }
    let lazy = lazy_equals_unpacked(NAME, &image::small().unwrap(), &[]);
    // That the oddities were there to be compared.
    let node = |path: &str| lazy.get(Path::new(path)).unwrap_or_else(|| panic!("no {path}"));
    assert!(lazy.len() > 80, "{} files", lazy.len());
    assert_eq!(node("odd/capable").xattrs.keys().collect::<Vec<_>>(), ["security.capability"]);
    assert_eq!(node("odd/noted").xattrs["user.long"].len(), 1500);
    assert_eq!(node("odd/owned").mtime, (1_600_000_000, 123_456_789));
    assert_eq!((node("odd/high-ids").uid, node("odd/high-ids").gid), (2_000_000, 2_000_001));
    assert_eq!((node("bin/sh").links, node("odd/setuid").mode), (Some(13), 0o4755));
    assert_eq!((node("odd/pipe").kind, node("odd/null").kind, node("odd/block").kind), ("fifo", "char", "block"));
    assert!(!lazy.contains_key(Path::new("opaque/old1")), "an opaque directory hides what was below");
    assert!(!lazy.contains_key(Path::new("gone/file")), "a whiteout hides what was below");
}

/// Layers whose paths lead through what is a link, or a file, only in a layer below: containerd extracts into the upper directory alone and
/// makes directories of them, with what the link's target there looks like.
fn image_through_links(dir: &Path) -> Layout {
    const SECOND: (u64, u32) = (1_500_000_000, 500);
    let mut image = LayoutWriter::new(dir).unwrap();
    let layer = |image: &mut LayoutWriter, entries: &[Entry<'_>]| {
        let written = image.layer(|out| {
            let mut tar = TarWriter::new(out);
            entries.iter().try_for_each(|entry| tar.add(entry))?;
            tar.finish().map(drop)
        });
        written.unwrap();
    };
    let file = |path| Entry::new(path, EntryKind::File(b"content"));
    let directory = |path| Entry::new(path, EntryKind::Directory);
    let link = |path, target| Entry::new(path, EntryKind::Symlink(target));
    let owned = Entry {
        owner: (7, 8),
        mtime: SECOND,
        xattrs: &[("user.note", b"of usr/lib")],
        ..directory(b"usr/lib/").mode(0o751)
    };
    let links: [(&[u8], &[u8]); 7] = [
        (b"lib", b"usr/lib"),
        (b"absolute", b"/usr/lib"),
        (b"chain", b"lib"),
        (b"up", b"../../../usr"),
        (b"dangling", b"nowhere"),
        (b"named", b"usr/lib"),
        (b"usr/inner", b"../usr/lib"),
    ];
    let mut lowest = vec![directory(b"usr/"), owned, file(b"usr/lib/below"), file(b"plain")];
    lowest.extend(links.map(|(path, target)| link(path, target)));
    layer(&mut image, &lowest);
    // The same layer once more at the end, as builders leave empty ones.
    let twice = [directory(b"twice/"), file(b"twice/x")];
    layer(&mut image, &twice);
    let through: [&[u8]; 8] =
        [b"lib/x", b"lib/sub/deep", b"absolute/x", b"chain/x", b"up/lib/x", b"dangling/x", b"usr/inner/x", b"plain/x"];
    let mut upper: Vec<_> = through.map(file).into();
    upper.extend([directory(b"named/").mode(0o700), file(b"named/x")]);
    layer(&mut image, &upper);
    // A link and a path through it in one layer, over a directory, and a path through a directory over a link.
    layer(
        &mut image,
        &[file(b"lib/y"), link(b"usr/own", b"lib"), file(b"usr/own/y"), file(b"lib/sub/y"), file(b"named/y")],
    );
    layer(&mut image, &twice);
    image.finish(&ImageConfig { cmd: &["/bin/true"], working_dir: "/", ..ImageConfig::default() }).unwrap()
}

#[test]
fn paths_through_links_of_lower_layers_are_the_same_when_mounted_lazily() {
    const NAME: &str = "paths_through_links_of_lower_layers_are_the_same_when_mounted_lazily";
    if !require(NAME, &NEEDS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let undated = [
        "absolute",
        "chain",
        "dangling",
        "lib",
        "lib/sub",
        "named",
        "plain",
        "up",
        "up/lib",
        "usr",
        "usr/inner",
        "usr/lib",
    ];
    let lazy = lazy_equals_unpacked("through-links", &image_through_links(dir.path()), &undated);
    let kind = |path: &str| lazy.get(Path::new(path)).map(|node| (node.kind, node.mode));
    for (path, expected) in [
        ("lib", Some(("directory", 0o751))),
        ("lib/x", Some(("file", 0o644))),
        ("lib/y", Some(("file", 0o644))),
        ("lib/below", None),
        ("usr/lib/x", None),
        ("usr/lib/below", Some(("file", 0o644))),
    ] {
        assert_eq!(kind(path), expected, "{path}");
    }
}

/// `LAPWING_TEST_LAYERS` says how many layers, 210 unless it is set; `LAPWING_TEST_SEED` which, and `LAPWING_TEST_CROWD` how many names one
/// directory has.
#[test]
fn generated_layers_are_the_same_when_mounted_lazily() {
    const NAME: &str = "generated_layers_are_the_same_when_mounted_lazily";
    /// containerd takes 128.
    const LAYERS_OF_AN_IMAGE: u64 = 105;
    if !require(NAME, &NEEDS) {
        return;
    }
    let number = |name, default| std::env::var(name).map_or(default, |text| text.parse::<u64>().unwrap());
    let crowd = number("LAPWING_TEST_CROWD", count(3000, 100_000).into());
    let seed = number("LAPWING_TEST_SEED", lapwing_evidence::seed());
    let images = number("LAPWING_TEST_LAYERS", count(210, 420).into()).div_ceil(LAYERS_OF_AN_IMAGE);
    for seed in seed..seed + images {
        let dir = tempfile::tempdir().unwrap();
        let layout = generated::image(dir.path(), seed, LAYERS_OF_AN_IMAGE as usize, crowd as usize);
        eprintln!("image {seed}: {} layers, {} KiB", layout.layers.len(), layout.compressed_bytes() >> 10);
        let lazy = lazy_equals_unpacked(&format!("generated-{seed}"), &layout, &[]);
        let of_kind = |kind: &str| lazy.values().filter(|node| node.kind == kind).count();
        let kinds = ["file", "directory", "symlink", "char", "block", "fifo"].map(|kind| (kind, of_kind(kind)));
        let linked = lazy.iter().filter(|(path, node)| node.same_as != **path).count();
        let with = |name: &str| lazy.values().filter(|node| node.xattrs.contains_key(name)).count();
        eprintln!(
            "{kinds:?}, {linked} second names, {} capabilities, {} notes",
            with("security.capability"),
            with("user.note")
        );
        assert!(kinds.iter().all(|(_, count)| *count > 50) && linked > 50, "the oddities are there");
        assert!(with("security.capability") > 20 && with("user.note") > 100, "and their attributes");
    }
}

#[test]
fn a_real_image_is_the_same_when_mounted_lazily() {
    const NAME: &str = "a_real_image_is_the_same_when_mounted_lazily";
    if !require(NAME, &[&NEEDS[..], &[Need::Program("mmdebstrap"), Need::Program("pigz")]].concat()) {
        return;
    }
    let lazy = lazy_equals_unpacked(NAME, &image::real().unwrap(), &[]);
    let bytes: u64 = lazy.values().filter(|node| node.kind == "file").filter_map(|node| node.size).sum();
    assert!(lazy.len() > 15_000 && bytes > 500_000_000, "{} files with {bytes} bytes were compared", lazy.len());
}
