use std::collections::BTreeMap;
use std::io::Write as _;

use proptest::prelude::*;

use super::reader::{Found, read};
use super::view::{Inode, View};
use super::{ErofsError, write_image};
use crate::tree::{Entry, Extent, Kind};

const TAR: u64 = 1 << 30;

fn entry(path: &str, kind: Kind) -> Entry {
    let (mode, xattrs) = (0o640, Vec::new());
    Entry { path: path.into(), kind, mode, uid: 1, gid: 2, mtime: 3, mtime_nanos: 4, xattrs }
}

fn file(path: &str, size: u64) -> Entry {
    let extents = if size == 0 { Vec::new() } else { vec![Extent { file_offset: 0, tar_offset: 512, length: size }] };
    entry(path, Kind::File { size, extents })
}

fn directory(path: &str) -> Entry {
    entry(path, Kind::Directory)
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(path, Kind::Symlink(target.into()))
}

fn hardlink(path: &str, target: &str) -> Entry {
    entry(path, Kind::Hardlink(target.into()))
}

fn written(entries: &[Entry]) -> Result<BTreeMap<String, Found>, ErofsError> {
    let image = write_image(entries, TAR, &[7; 32], &|_| None)?;
    assert_eq!(viewed(&image), read(&image), "the view shows what the kernel would");
    Ok(read(&image).into_iter().map(|(path, found)| (String::from_utf8(path).unwrap(), found)).collect())
}

/// What [`View`] makes of an image, found name by name and listed.
fn viewed(image: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    let view = View(&file);
    let root = view.superblock().unwrap().root;
    let (mut found, mut left) = (BTreeMap::new(), vec![(Vec::new(), root)]);
    while let Some((path, nid)) = left.pop() {
        let inode = view.inode(nid).unwrap();
        let kind = inode.mode & 0o170_000;
        if kind == 0o040_000 {
            let (names, all) = (listed(view, &inode, 1), listed(view, &inode, usize::MAX));
            assert_eq!(names, all, "a listing goes on where it stopped");
            for (name, child, child_kind) in all {
                assert_eq!(view.lookup(&inode, &name).unwrap(), Some(child));
                assert_eq!(view.lookup(&inode, &[&name[..], b"\x01"].concat()).unwrap(), None);
                assert_eq!(u32::from(child_kind) << 12, view.inode(child).unwrap().mode & 0o170_000);
                if name != b"." && name != b".." {
                    let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    left.push(([&path, separator, &name].concat(), child));
                }
            }
            assert_eq!(view.lookup(&inode, b"\xff\xff").unwrap(), None);
        }
        let (target, extents) = match kind {
            0o120_000 => (view.target(&inode).unwrap(), Vec::new()),
            0o100_000 => (Vec::new(), extents(view, &inode)),
            _ => (Vec::new(), Vec::new()),
        };
        let xattrs = view.xattrs(&inode).unwrap().into_iter().collect();
        let Inode { links, uid, gid, size, device, .. } = inode;
        let (mode, mtime) = (inode.mode as u16, (inode.mtime, inode.mtime_nanos));
        found.insert(path, Found { nid, mode, links, uid, gid, mtime, size, device, target, extents, xattrs });
    }
    found
}

fn listed(view: View<'_>, directory: &Inode, at_once: usize) -> Vec<(Vec<u8>, u64, u8)> {
    let (mut all, mut from) = (Vec::new(), 0);
    loop {
        let before = all.len();
        view.list(directory, from, |name| {
            let room = all.len() - before < at_once;
            if room {
                all.push((name.name.to_vec(), name.nid, name.kind));
                from = name.next;
            }
            room
        })
        .unwrap();
        if all.len() == before {
            return all;
        }
    }
}

/// Asked for in two parts, which must fit together.
fn extents(view: View<'_>, file: &Inode) -> Vec<Extent> {
    let (mut extents, mut file_offset) = (Vec::<Extent>::new(), 0);
    let middle = file.size / 3;
    for range in [0..middle, middle..file.size] {
        let stretches = if range.is_empty() { Vec::new() } else { view.stretches(file, range).unwrap() };
        for stretch in stretches {
            if let Some(tar_offset) = stretch.tar {
                match extents.last_mut() {
                    Some(last)
                        if last.file_offset + last.length == file_offset
                            && last.tar_offset + last.length == tar_offset =>
                    {
                        last.length += stretch.length;
                    }
                    _ => extents.push(Extent { file_offset, tar_offset, length: stretch.length }),
                }
            }
            file_offset += stretch.length;
        }
    }
    assert_eq!(file_offset, file.size);
    extents
}

#[test]
fn a_damaged_image_is_an_error_to_the_view_and_never_a_panic() {
    let entries = [directory("a"), file("a/b", 5000), symlink("l", &"x".repeat(700)), directory("e")];
    let good = write_image(&entries, TAR, &[7; 32], &|_| None).unwrap();
    assert_ne!(good[1024 + 0x30..1024 + 0x40], [0; 16]);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0xFF;
        let mut image = tempfile::tempfile().unwrap();
        image.write_all(&bad).unwrap();
        let view = View(&image);
        assert_eq!(view.superblock().is_err(), (1024..1536).contains(&at), "byte {at}");
        look_at_all(view);
    }
}

/// Whatever comes of it.
fn look_at_all(view: View<'_>) {
    for nid in 0..80 {
        let Ok(inode) = view.inode(nid) else { continue };
        let _ = view.lookup(&inode, b"b");
        let _ = view.list(&inode, 0, |name| name.next < 10_000);
        // From the last blocks on that there can be.
        let _ = view.list(&inode, (1 << 63) - 512, |_| true);
        let _ = (view.target(&inode), view.xattrs(&inode));
        let _ = view.stretches(&inode, 0..inode.size.min(1 << 20));
        let _ = view.stretches(&inode, inode.size.saturating_sub(1 << 20)..inode.size);
    }
}

/// A directory of 2^64 - 1 bytes from the last block on led beyond what 64 bits count.
#[test]
fn numbers_at_the_edge_of_an_image_do_not_overflow() {
    let entries = [directory("a"), file("a/b", 5000), symlink("l", &"x".repeat(700)), directory("e")];
    let good = write_image(&entries, TAR, &[7; 32], &|_| None).unwrap();
    for at in (1536..good.len() - 16).step_by(4) {
        for (length, byte) in [(4, 0xff), (8, 0xff), (12, 0xff), (4, 0x7f), (8, 0x7f), (8, 0)] {
            let mut bad = good.clone();
            bad[at..at + length].fill(byte);
            // The inode's block as well: its size and its place together.
            for both in [false, true] {
                let mut bad = bad.clone();
                if both {
                    bad.get_mut(at + 8..at + 12).unwrap().fill(0xff);
                }
                let mut image = tempfile::tempfile().unwrap();
                image.write_all(&bad).unwrap();
                look_at_all(View(&image));
            }
        }
    }
}

fn paths(entries: &[Entry]) -> Vec<String> {
    written(entries).unwrap().into_keys().filter(|path| !path.is_empty()).collect()
}

fn refused(entries: &[Entry]) -> String {
    match written(entries) {
        Err(ErofsError::Apply { reason, .. } | ErofsError::Unfit { reason, .. }) => reason.to_owned(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    assert_eq!(paths(&[directory("a"), file("a/b", 1), file("a", 2)]), ["a"]);
    assert_eq!(paths(&[file("a", 2), directory("a"), file("a/b", 1)]), ["a", "a/b"]);
    assert_eq!(written(&[file("a", 1), file("a", 9)]).unwrap()["a"].size, 9);
}

#[test]
fn what_replaces_a_directory_gets_its_time_as_containerd_sets_it() {
    let at = |mtime: i64, entry: Entry| Entry { mtime, ..entry };
    let found = written(&[at(10, directory("d")), at(20, file("d", 5)), at(30, file("e", 5))]).unwrap();
    assert_eq!((found["d"].mtime.0, found["e"].mtime.0), (10, 30));
    // Through a link in its place, to what that leads to.
    let found = written(&[at(10, directory("d")), at(20, symlink("d", "e")), at(30, file("e", 5))]).unwrap();
    assert_eq!((found["d"].mtime.0, found["e"].mtime.0), (20, 10));
    let found = written(&[at(10, directory("d")), at(20, directory("d"))]).unwrap();
    assert_eq!(found["d"].mtime.0, 20);
    assert!(refused(&[directory("d"), directory("d/e"), file("d", 5)]).contains("not a directory"));
    assert!(refused(&[directory("d/e"), directory("d"), file("d", 5), directory("d")]).contains("takes away"));
    assert!(refused(&[directory("d"), symlink("d", "nowhere")]).contains("takes away"));
}

#[test]
fn a_directory_over_a_directory_keeps_children_and_takes_attributes() {
    let mut first = directory("a");
    first.xattrs = vec![(b"user.kept".to_vec(), b"1".to_vec())];
    let mut second = directory("a");
    (second.mode, second.uid, second.mtime) = (0o2755, 9, 99);
    let found = written(&[first, file("a/b", 1), second]).unwrap();
    assert!(found.contains_key("a/b"));
    assert_eq!((found["a"].mode, found["a"].uid, found["a"].mtime), (0o042_755, 9, (99, 4)));
    assert_eq!(found["a"].xattrs.len(), 1);
}

#[test]
fn parents_are_made_and_symlinks_in_them_followed() {
    let found = written(&[file("x/y/z", 1)]).unwrap();
    assert_eq!((found["x/y"].mode, found["x/y"].uid, found["x/y"].links), (0o040_755, 0, 2));
    assert_eq!(paths(&[symlink("bin", "usr/bin"), file("bin/sh", 1)]), ["bin", "usr", "usr/bin", "usr/bin/sh"]);
    assert_eq!(paths(&[symlink("a", "/../b/./c"), file("a/d", 1)]), ["a", "b", "b/c", "b/c/d"]);
    assert!(refused(&[symlink("a", "b"), symlink("b", "a"), file("a/c", 1)]).contains("symbolic links"));
    assert!(refused(&[file("a", 1), file("a/b", 1)]).contains("not a directory"));
}

#[test]
fn hard_links_share_an_inode_and_its_last_attributes() {
    let mut original = file("a", 5);
    original.xattrs = vec![(b"security.capability".to_vec(), vec![1]), (b"user.kept".to_vec(), b"k".to_vec())];
    let mut link = hardlink("d/b", "a");
    link.mode = 0o4711;
    let found = written(&[original, directory("d"), link, hardlink("c", "d/b")]).unwrap();
    for name in ["a", "d/b", "c"] {
        assert_eq!((found[name].nid, found[name].links), (found["a"].nid, 3));
    }
    assert_eq!(found["a"].mode, 0o100_640, "the last link states the mode");
    assert_eq!(found["a"].xattrs.keys().collect::<Vec<_>>(), [b"user.kept"], "chown takes capabilities");
    let found = written(&[file("a", 5), hardlink("b", "a"), file("a", 7)]).unwrap();
    assert_eq!((found["a"].size, found["b"].size, found["b"].links), (7, 5, 1));
    assert!(refused(&[hardlink("b", "gone")]).contains("does not have"));
    assert!(refused(&[directory("a"), hardlink("b", "a")]).contains("directory"));
    assert!(refused(&[file("a", 1), hardlink("a", "a")]).contains("does not have"));
}

#[test]
fn whiteouts_become_devices_and_opaque_directories_attributes() {
    let found = written(&[directory("d"), file("d/.wh.gone", 0), file("o/.wh..wh..opq", 0)]).unwrap();
    assert_eq!((found["d/gone"].mode, found["d/gone"].device), (0o020_000, 0));
    assert_eq!(found["d"].xattrs[&b"trusted.overlay.origin"[..]], b"");
    assert_eq!(found["o"].xattrs[&b"trusted.overlay.opaque"[..]], b"y");
    assert_eq!(paths(&[file(".wh.a", 0), file("a", 1)]), ["a"]);
    for bad in [".wh.", ".wh..", ".wh..."] {
        assert!(refused(&[file(bad, 0)]).contains("whiteout"));
    }
    assert!(refused(&[file("a", 1), file(".wh.a", 0)]).contains("same layer"));
}

#[test]
fn what_containerd_drops_or_bounds_is_dropped_and_bounded() {
    let mut old = file("old", 0);
    old.mtime = -1;
    old.xattrs = [&b"trusted.overlay.opaque"[..], b"unknown.x", b"user.u", b"security.s"]
        .map(|name| (name.to_vec(), b"v".to_vec()))
        .to_vec();
    let mut link = symlink("link", "t");
    link.xattrs = vec![(b"user.u".to_vec(), b"v".to_vec())];
    let mut root = directory("");
    (root.mode, root.uid) = (0o700, 5);
    let found = written(&[root, old, link]).unwrap();
    assert_eq!(found["old"].mtime, (0, 0));
    assert_eq!(found["old"].xattrs.keys().collect::<Vec<_>>(), [&b"security.s"[..], b"user.u"]);
    assert_eq!((found["link"].mode, found["link"].xattrs.len()), (0o120_777, 0));
    assert_eq!((found[""].mode, found[""].uid, found[""].mtime), (0o040_755, 0, (3, 4)));
}

/// A root directory whose names do not fit behind its inode moves the inode, and the superblock must say where to.
#[test]
fn the_root_is_found_whatever_its_names_take() {
    for length in 1..=255 {
        let (one, other) = ("a".repeat(length), "b".repeat(256 - length));
        assert_eq!(paths(&[file(&one, 1), file(&other, 1)]), [one, other]);
        let (short, long) = ("c".repeat(length), "d".repeat(200));
        assert_eq!(paths(&[file(&short, 1), file(&long, 1)]), [short, long]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(refused(&[file(&"n".repeat(256), 0)]).contains("file name"));
    assert!(refused(&[file(&"d/".repeat(2048), 0)]).contains("4095"));
    assert!(refused(&[symlink("l", "")]).contains("target"));
    assert!(refused(&[symlink("l", &"t".repeat(4096))]).contains("target"));
    assert!(refused(&[entry("d", Kind::CharDevice { major: 4096, minor: 0 })]).contains("device number"));
    assert!(refused(&[file("beyond", TAR)]).contains("behind the end"));
    let mut long = file("x", 0);
    long.xattrs = vec![(b"user.long".to_vec(), vec![0; 65_536])];
    assert!(refused(&[long]).contains("65535"));
    let too_large = write_image(&[], 1 << 41, &[0; 32], &|_| None);
    assert!(matches!(too_large, Err(ErofsError::TooLarge { .. })));
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let name = prop_oneof!["[a-c]", "[!-.0-~]{1,12}", "x{250,255}"];
    let path = proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let kind = prop_oneof![
        4 => (1u64..(1 << 20), 0u64..1000).prop_map(|(size, block)| {
            Kind::File { size, extents: vec![Extent { file_offset: 0, tar_offset: block * 512, length: size }] }
        }),
        3 => Just(Kind::Directory),
        2 => proptest::collection::vec(b'a'..=b'z', 1..700).prop_map(Kind::Symlink),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
        1 => Just(Kind::Fifo),
    ];
    let xattrs = proptest::collection::vec(
        ("[a-z]{1,20}", proptest::collection::vec(any::<u8>(), 0..700))
            .prop_map(|(name, value)| (format!("security.{name}").into_bytes(), value)),
        0..3,
    );
    (path, kind, 0u16..0o10_000, any::<u32>(), any::<u32>(), 0i64..1 << 33, 0u32..1_000_000_000, xattrs).prop_map(
        |(path, kind, mode, uid, gid, mtime, mtime_nanos, xattrs)| Entry {
            path: path.into_bytes(),
            kind,
            mode,
            uid,
            gid,
            mtime,
            mtime_nanos,
            xattrs,
        },
    )
}

proptest! {
    /// The last entry of each path is what the image says, for every tree that can be applied.
    #[test]
    fn images_say_what_was_written(entries in proptest::collection::vec(any_entry(), 0..60)) {
        // Parents first and each path once, so that nothing replaces anything.
        let mut distinct: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        for entry in entries {
            let parents: Vec<Vec<u8>> = (0..entry.path.len()).filter(|&at| entry.path[at] == b'/').map(|at| entry.path[..at].to_vec()).collect();
            let fits = parents.iter().all(|path| distinct.get(path).is_none_or(|parent| parent.kind == Kind::Directory));
            let components = entry.path.split(|&byte| byte == b'/');
            let plain = components.clone().all(|name| name != b"." && name != b".." && !name.starts_with(b".wh."));
            let below = [entry.path.as_slice(), b"/"].concat();
            let has_children = distinct.keys().any(|path| path.starts_with(&below));
            if fits && plain && !has_children {
                distinct.insert(entry.path.clone(), entry);
            }
        }
        let entries: Vec<Entry> = distinct.into_values().collect();
        let image = write_image(&entries, TAR, &[1; 32], &|_| None).unwrap();
        prop_assert!(image == write_image(&entries, TAR, &[1; 32], &|_| None).unwrap());
        let found = read(&image);
        for entry in &entries {
            let found = &found[&entry.path];
            prop_assert_eq!((found.uid, found.gid, found.mtime), (entry.uid, entry.gid, (entry.mtime, entry.mtime_nanos)));
            let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = entry.xattrs.iter().cloned().collect();
            prop_assert_eq!(&found.xattrs, &xattrs);
            match &entry.kind {
                Kind::File { size, extents } => {
                    prop_assert_eq!((found.size, &found.extents), (*size, extents));
                    prop_assert_eq!(found.mode, 0o100_000 | entry.mode);
                }
                Kind::Symlink(target) => prop_assert_eq!(&found.target, target),
                Kind::BlockDevice { major, minor } => {
                    let rdev = (u64::from(found.device >> 8 & 0xFFF), u64::from(found.device & 0xFF | found.device >> 12 & 0xF_FF00));
                    prop_assert_eq!(rdev, (u64::from(*major), u64::from(*minor)));
                }
                _ => {}
            }
        }
    }
}
