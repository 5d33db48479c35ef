//! The tar reader against archives of Python's tarfile and GNU tar.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::tar::Scanner;
use lapwing_snapshotter::tree::{Entry, Kind};

fn scan(tar: &[u8], portion: usize) -> Vec<Entry> {
    let mut scanner = Scanner::default();
    for bytes in tar.chunks(portion) {
        scanner.push(bytes).unwrap();
    }
    scanner.finish().unwrap()
}

fn contents(tar: &[u8], entry: &Entry) -> Vec<u8> {
    let Kind::File { size, extents } = &entry.kind else { panic!("{entry:?} is no file") };
    let mut bytes = vec![0; *size as usize];
    for extent in extents {
        let stored = &tar[extent.tar_offset as usize..][..extent.length as usize];
        bytes[extent.file_offset as usize..][..stored.len()].copy_from_slice(stored);
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The entry as `tar/make.py` writes it.
fn line(tar: &[u8], entry: &Entry) -> String {
    let (kind, link, device) = match &entry.kind {
        Kind::File { .. } => ("file", "".into(), String::new()),
        Kind::Directory => ("directory", "".into(), String::new()),
        Kind::Symlink(target) => ("symlink", hex(target), String::new()),
        Kind::Hardlink(target) => ("hardlink", hex(target), String::new()),
        Kind::CharDevice { major, minor } => ("char", "".into(), format!("{major},{minor}")),
        Kind::BlockDevice { major, minor } => ("block", "".into(), format!("{major},{minor}")),
        Kind::Fifo => ("fifo", "".into(), String::new()),
    };
    let hash = if kind == "file" { Digest::of(&contents(tar, entry)).hex() } else { String::new() };
    let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let xattrs: Vec<String> = entry.xattrs.iter().map(|(key, value)| format!("{}={}", name(key), hex(value))).collect();
    let mtime = format!("{}.{:02}", entry.mtime, entry.mtime_nanos / 10_000_000);
    let (path, mode, uid, gid) = (hex(&entry.path), entry.mode, entry.uid, entry.gid);
    format!("{path}|{kind}|{mode:o}|{uid}|{gid}|{mtime}|{link}|{device}|{hash}|{}", xattrs.join(","))
}

#[test]
fn reads_what_python_writes() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tar/make.py");
    for format in ["ustar", "gnu", "pax"] {
        let output = Command::new("python3").args([script, format]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let tar = output.stdout;
        let entries = scan(&tar, tar.len());
        let lines: Vec<String> = entries.iter().map(|entry| line(&tar, entry)).collect();
        let truth = String::from_utf8(output.stderr).unwrap();
        assert_eq!(lines, truth.lines().collect::<Vec<_>>(), "{format}");
        assert!(lines.len() > 20);
        for portion in [1, 511, 513] {
            assert_eq!(scan(&tar, portion), entries);
        }
    }
}

/// Files of all sorts; names short enough for every format.
fn make_tree(root: &Path) {
    let long = "d".repeat(60);
    fs::create_dir_all(root.join(&long).join("inner")).unwrap();
    fs::write(root.join("plain"), b"plain").unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("odd \n\t\\\"'*"), b"odd").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"raw-\xff\xfe")), b"raw").unwrap();
    fs::write(root.join(&long).join("inner").join("file"), vec![7; 100_000]).unwrap();
    fs::hard_link(root.join("plain"), root.join("second-name")).unwrap();
    std::os::unix::fs::symlink("../nowhere", root.join("link")).unwrap();
    assert!(Command::new("mkfifo").arg(root.join("pipe")).status().unwrap().success());
    for (name, stretches) in [("sparse-few", 3u64), ("sparse-many", 60), ("sparse-none", 0)] {
        let mut file = File::create(root.join(name)).unwrap();
        for stretch in 0..stretches {
            file.seek(SeekFrom::Start(stretch * 50_000 + 4096)).unwrap();
            file.write_all(&vec![stretch as u8 + 1; 5000]).unwrap();
        }
        file.set_len(stretches * 50_000 + 123_457).unwrap();
    }
}

/// Compares an archive with the tree and gives the number of names in it that are no directories.
fn check_against_tree(root: &Path, tar: &[u8], is_sparse: bool) -> usize {
    let mut seen: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for entry in scan(tar, 4096) {
        let path = root.join(std::ffi::OsStr::from_bytes(&entry.path));
        let truth = fs::symlink_metadata(&path).unwrap();
        assert_eq!(u32::from(entry.mode), truth.mode() & 0o7777, "{entry:?}");
        assert_eq!((entry.uid, entry.gid), (truth.uid(), truth.gid()), "{entry:?}");
        assert_eq!(entry.mtime, truth.mtime(), "{entry:?}");
        match &entry.kind {
            Kind::File { extents, .. } => {
                let bytes = contents(tar, &entry);
                assert!(bytes == fs::read(&path).unwrap(), "{entry:?}");
                if is_sparse && entry.path == b"sparse-many" {
                    assert_eq!(extents.len(), 60);
                }
                seen.insert(entry.path, bytes);
            }
            Kind::Hardlink(target) => {
                assert!(seen[target] == fs::read(&path).unwrap());
                seen.insert(entry.path, Vec::new());
            }
            Kind::Symlink(target) => {
                assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), target);
                seen.insert(entry.path, Vec::new());
            }
            Kind::Directory => assert!(truth.is_dir()),
            Kind::Fifo => drop(seen.insert(entry.path, Vec::new())),
            other => panic!("{other:?} was not made"),
        }
    }
    seen.len()
}

#[test]
fn reads_what_gnu_tar_writes() {
    let root = tempfile::tempdir().unwrap();
    make_tree(root.path());
    for arguments in [
        &["--format=v7"][..],
        &["--format=oldgnu"],
        &["--format=ustar"],
        &["--format=gnu"],
        &["--format=posix"],
        &["--format=gnu", "--sparse", "--hole-detection=raw"],
        &["--format=posix", "--sparse", "--sparse-version=0.0", "--hole-detection=raw"],
        &["--format=posix", "--sparse", "--sparse-version=0.1", "--hole-detection=raw"],
        &["--format=posix", "--sparse", "--sparse-version=1.0", "--hole-detection=raw"],
    ] {
        let output = Command::new("tar")
            .args(arguments)
            .args(["--numeric-owner", "-c", "-C"])
            .arg(root.path())
            .arg(".")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        // v7 has no pipes: GNU tar warns and leaves it out.
        let is_v7 = arguments == ["--format=v7"];
        assert!(output.status.success() || is_v7, "{arguments:?}: {errors}");
        let names = check_against_tree(root.path(), &output.stdout, arguments.contains(&"--sparse"));
        assert_eq!(names, if is_v7 { 10 } else { 11 }, "{arguments:?}");
    }
}
