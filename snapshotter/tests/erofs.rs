//! A mounted layer looks the same as the tar extracted by GNU tar, and behaves the same under overlayfs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, outside of test functions")]

#[path = "lazy/support.rs"]
#[allow(dead_code, reason = "shared with the tests of lazy layers")]
mod support;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use lapwing_snapshotter::lazy::{Backend, LazyMounts};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::mount::{MountFlags, mount};
use support::{Scratch, Source, noise, on_both_backends, options, pack};

on_both_backends! {
    a_mounted_layer_is_what_gnu_tar_extracts,
    whiteouts_and_opaque_directories_work_under_overlayfs,
    directories_that_only_lower_layers_describe_keep_their_attributes,
}

/// A tmpfs: takes attributes of any size, which ext4 does not.
fn memory(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.directory(name);
    mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"mode=0755,size=1g,nr_inodes=0").unwrap();
    path
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap_or_else(|error| panic!("{name}: {error}"));
}

fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap();
}

/// Everything that a layer may hold.
fn fill(root: &Path) {
    let mut deep = root.to_owned();
    for level in 0..60 {
        deep.push(format!("level-{level}"));
        std::fs::create_dir(&deep).unwrap();
    }
    std::fs::write(deep.join("bottom"), b"deep").unwrap();
    let crowd = root.join("crowd");
    std::fs::create_dir(&crowd).unwrap();
    for i in 0..10_000 {
        std::fs::write(crowd.join(format!("{i:x}-{}", "n".repeat(i % 40))), i.to_string()).unwrap();
    }
    fill_names(root);
    fill_files(root);
    fill_attributes(root);
    fill_specials(root);
}

fn fill_names(root: &Path) {
    let names = root.join("names");
    std::fs::create_dir(&names).unwrap();
    for name in [
        &b"!before-dot"[..],
        b"-x",
        b".-between",
        b".hidden",
        b"...",
        b"\xff\xfe\x80",
        b" ",
        b"a\nb",
        b"\\",
        &[b'L'; 255],
    ] {
        std::fs::write(names.join(OsStr::from_bytes(name)), name).unwrap();
    }
    for i in 0..30u8 {
        let mut name = vec![b'y'; 254];
        name.push(0x80 + i);
        std::fs::create_dir(names.join(OsStr::from_bytes(&name))).unwrap();
    }
}

fn fill_files(root: &Path) {
    let files = root.join("files");
    std::fs::create_dir(&files).unwrap();
    for size in [0, 1, 511, 512, 513, 4095, 4096, 4097, 100_000, 3_000_000] {
        std::fs::write(files.join(size.to_string()), noise(size, size as u64)).unwrap();
    }
    let sparse = std::fs::File::create(files.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    for (at, seed) in [(4096, 1), (1 << 20, 2), (30 << 20, 3)] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &noise(8192, seed), at).unwrap();
    }
    std::fs::File::create(files.join("hole")).unwrap().set_len(10 << 20).unwrap();
    for i in 0..5 {
        std::fs::hard_link(files.join("4097"), root.join(format!("link-{i}"))).unwrap();
    }
    for length in [1, 100, 300, 440, 449, 450, 511, 512, 513, 1500, 4095] {
        symlink("t".repeat(length), files.join(format!("symlink-{length}"))).unwrap();
    }
}

fn fill_attributes(root: &Path) {
    let dir = root.join("attributes");
    std::fs::create_dir(&dir).unwrap();
    for (i, value) in [vec![], b"v".to_vec(), noise(300, 1), noise(4096, 2), noise(60_000, 3)].iter().enumerate() {
        let path = dir.join(format!("valued-{i}"));
        std::fs::write(&path, b"x").unwrap();
        set_xattr(&path, "user.value", value);
        set_xattr(&path, "user.second.name", b"2");
    }
    set_xattr(&dir, "user.on-directory", b"yes");
    let capable = dir.join("capable");
    std::fs::write(&capable, b"x").unwrap();
    // cap_net_bind_service+ep, revision 2.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&capable, "security.capability", &capability);
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2711), ("sticky", 0o1644), ("none", 0)] {
        let path = dir.join(name);
        std::fs::write(&path, b"x").unwrap();
        std::os::unix::fs::chown(&path, Some(70_000), Some(3_000_000_000)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    for (seconds, nanos) in [(0, 1), (1, 123_456_789), (-5, 0), (-5, 500_000_000), (1 << 33, 7), (253_402_300_800, 0)] {
        let path = dir.join(format!("time-{seconds}-{nanos}"));
        std::fs::write(&path, b"x").unwrap();
        set_mtime(&path, seconds, nanos);
    }
}

fn fill_specials(root: &Path) {
    let dir = root.join("specials");
    std::fs::create_dir(&dir).unwrap();
    node(&dir.join("fifo"), FileType::Fifo, 0);
    node(&dir.join("null"), FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node(&dir.join("large"), FileType::BlockDevice, rustix::fs::makedev(0xABC, 0xF_1234));
    set_mtime(&dir.join("fifo"), 1_000_000, 5);
    symlink("dangling", dir.join("link")).unwrap();
    set_mtime(&dir.join("link"), 42, 42);
    set_mtime(&dir, 77, 7);
}

/// What is compared of a path.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    links: u64,
    device: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Vec<u8>,
    /// The first path with the same inode.
    same_as: PathBuf,
}

fn walk(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut seen, mut inodes) = (BTreeMap::new(), HashMap::new());
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let mut names: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap()).collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        for entry in names {
            let path = entry.path();
            let short = path.strip_prefix(root).unwrap().to_owned();
            let metadata = path.symlink_metadata().unwrap();
            assert_eq!(entry.file_type().unwrap(), metadata.file_type(), "d_type of {}", short.display());
            let same_as = inodes.entry(metadata.ino()).or_insert(short.clone()).clone();
            seen.insert(short, look(&path, &metadata, same_as));
            if metadata.is_dir() {
                pending.push(path);
            }
        }
    }
    seen
}

fn look(path: &Path, metadata: &std::fs::Metadata, same_as: PathBuf) -> Seen {
    let kind = metadata.file_type();
    let content = if kind.is_file() {
        blake3::hash(&std::fs::read(path).unwrap()).as_bytes().to_vec()
    } else if kind.is_symlink() {
        std::fs::read_link(path).unwrap().into_os_string().into_vec()
    } else {
        Vec::new()
    };
    let special = kind.is_char_device() || kind.is_block_device();
    Seen {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        size: if kind.is_dir() { 0 } else { metadata.len() },
        links: metadata.nlink(),
        device: if special { metadata.rdev() } else { 0 },
        xattrs: xattrs(path),
        content,
        same_as,
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let names = buffer[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut buffer = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, CString::new(name).unwrap().as_c_str(), &mut buffer[..]).unwrap();
        buffer.truncate(length);
        buffer
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Mounts the layer that `directory` packs into, over the FUSE device.
async fn mount_packed(mounts: &Arc<LazyMounts>, directory: &Path, at: &Path, lowers: &[PathBuf]) {
    let layer = pack(directory);
    let source = Source::of(&layer);
    mounts.add(layer.index.clone(), source).await.unwrap();
    mounts.mount(&layer.index.layer(), at, lowers).unwrap();
}

async fn a_mounted_layer_is_what_gnu_tar_extracts(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (source, extracted) = (memory(&scratch, "source"), memory(&scratch, "extracted"));
    fill(&source);
    let layer = pack(&source);
    std::fs::write(scratch.path().join("tar"), &layer.tar).unwrap();
    let arguments = ["--xattrs", "--xattrs-include=*", "--same-owner", "--numeric-owner", "-xpf"];
    let tar = Command::new("tar").args(arguments).arg(scratch.path().join("tar")).arg("-C").arg(&extracted).output();
    assert!(tar.as_ref().unwrap().status.success(), "{}", String::from_utf8_lossy(&tar.unwrap().stderr));

    let mounts = LazyMounts::start(&scratch.path().join("root"), options(backend)).unwrap();
    let lazy = mounts.add(layer.index.clone(), Source::of(&layer)).await.unwrap();
    let at = scratch.directory("mnt");
    mounts.mount(&layer.index.layer(), &at, &[]).unwrap();

    let mut expected = walk(&extracted);
    for seen in expected.values_mut() {
        // containerd gives such times the epoch (`boundTime`), and so must we.
        if seen.mtime.0 < 0 || seen.mtime.0 >= i64::MAX / 1_000_000_000 {
            seen.mtime = (0, 0);
        }
    }
    let found = walk(&at);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (path, expected) in &expected {
        assert_eq!(&found[path], expected, "{}", path.display());
    }
    assert!(found.len() > 10_100);
    assert_eq!(std::fs::symlink_metadata(at.join("no such name")).unwrap_err().kind(), std::io::ErrorKind::NotFound);

    lazy.complete_all().await.unwrap();
    let local = scratch.directory("local");
    mounts.mount(&layer.index.layer(), &local, &[]).unwrap();
    assert!(walk(&local) == found, "the same from the local file");
    mounts.unmount(&local).unwrap();
    mounts.unmount(&at).unwrap();
    mounts.shutdown().await;
}

async fn whiteouts_and_opaque_directories_work_under_overlayfs(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (lower, upper) = (scratch.directory("lower"), scratch.directory("upper"));
    for path in ["kept/a", "removed/a", "opaque/old", "half/gone", "half/stays"] {
        std::fs::create_dir_all(lower.join(path).parent().unwrap()).unwrap();
        std::fs::write(lower.join(path), path).unwrap();
    }
    for path in [".wh.removed", "opaque/.wh..wh..opq", "opaque/new", "half/.wh.gone", "alone/.wh.never"] {
        std::fs::create_dir_all(upper.join(path).parent().unwrap()).unwrap();
        std::fs::write(upper.join(path), "").unwrap();
    }
    let mounts = LazyMounts::start(&scratch.path().join("root"), options(backend)).unwrap();
    let (below, above) = (scratch.directory("below"), scratch.directory("above"));
    mount_packed(&mounts, &lower, &below, &[]).await;
    mount_packed(&mounts, &upper, &above, std::slice::from_ref(&below)).await;
    let merged = scratch.directory("merged");
    let (writes, work) = (scratch.directory("writes"), scratch.directory("work"));
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={}",
        above.display(),
        below.display(),
        writes.display(),
        work.display()
    );
    mount("overlay", &merged, "overlay", MountFlags::empty(), CString::new(options).unwrap().as_c_str()).unwrap();

    let paths: Vec<_> = walk(&merged).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["alone", "half", "half/stays", "kept", "kept/a", "opaque", "opaque/new"]);
    assert!(!merged.join("removed").exists() && !merged.join("opaque/old").exists());
    std::fs::write(merged.join("half/gone"), b"again").unwrap();
    std::fs::write(merged.join("kept/a"), b"changed").unwrap();
    std::fs::remove_file(merged.join("half/stays")).unwrap();
    assert_eq!(std::fs::read(merged.join("half/gone")).unwrap(), b"again");
    assert_eq!(std::fs::read(below.join("kept/a")).unwrap(), b"kept/a");
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::empty()).unwrap();
    mounts.shutdown().await;
}

async fn directories_that_only_lower_layers_describe_keep_their_attributes(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let lower = scratch.directory("lower");
    let tmp = lower.join("var/tmp");
    std::fs::create_dir_all(&tmp).unwrap();
    std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(&tmp, Some(12), Some(34)).unwrap();
    set_xattr(&tmp, "user.label", b"inherited");
    set_mtime(&tmp, 1234, 5);
    symlink("var/tmp", lower.join("tmp")).unwrap();
    let upper = scratch.directory("upper");
    std::fs::create_dir_all(upper.join("var/tmp/new")).unwrap();
    std::fs::write(upper.join("var/tmp/new/file"), b"x").unwrap();
    // Only the file: its parents are nowhere in the tar.
    let arguments = ["--format=pax", "-cC"];
    let tar = Command::new("tar").args(arguments).arg(&upper).arg("var/tmp/new/file").output().unwrap().stdout;
    let layer = support::layer_of(tar);
    let mounts = LazyMounts::start(&scratch.path().join("root"), options(backend)).unwrap();
    mounts.add(layer.index.clone(), Source::of(&layer)).await.unwrap();
    let (alone, over) = (scratch.directory("alone"), scratch.directory("over"));
    mounts.mount(&layer.index.layer(), &alone, &[]).unwrap();
    mounts.mount(&layer.index.layer(), &over, &[scratch.directory("empty"), lower.clone()]).unwrap();

    let (plain, inherited) = (walk(&alone), walk(&over));
    let path = Path::new("var/tmp");
    assert_eq!((plain[path].mode, plain[path].owner), (0o040_755, (0, 0)));
    let expected = look(&tmp, &tmp.symlink_metadata().unwrap(), path.to_owned());
    assert_eq!(inherited[path], Seen { links: 3, ..expected });
    assert_eq!(
        (inherited[Path::new("var/tmp/new")].mode, inherited[Path::new("var/tmp/new")].owner),
        (0o040_755, (0, 0))
    );
    assert_eq!(std::fs::read(over.join("var/tmp/new/file")).unwrap(), b"x");
    mounts.shutdown().await;
}

/// The sizes that the kernel reads ahead in EROFS mounts, in KiB.
fn read_ahead_of_mounts() -> Vec<String> {
    let all = std::fs::read_dir("/sys/class/bdi").unwrap().flatten();
    let mounts = all.filter(|bdi| bdi.file_name().as_encoded_bytes().starts_with(b"erofs-"));
    mounts.filter_map(|bdi| std::fs::read_to_string(bdi.path().join("read_ahead_kb")).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_layer_is_read_ahead_as_its_disk_is() {
    /// As nothing else on the machine has it.
    const KIB: &str = "1236\n";
    let Some(scratch) = Scratch::supported() else { return };
    let (disk, image) = (scratch.directory("disk"), scratch.path().join("image"));
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
    run(Command::new("mount").args(["-o", "loop"]).args([&image, &disk]));
    let device = std::fs::metadata(&disk).unwrap().dev();
    let bdi = format!("/sys/class/bdi/{}:{}/read_ahead_kb", rustix::fs::major(device), rustix::fs::minor(device));
    let before = std::fs::read_to_string(&bdi).unwrap();
    std::fs::write(&bdi, KIB).unwrap();
    let files = scratch.directory("files");
    std::fs::write(files.join("file"), noise(3 << 20, 5)).unwrap();
    let layer = pack(&files);
    let digest = layer.index.layer();
    let mounts = LazyMounts::start(&disk.join("root"), options(Backend::Erofs)).unwrap();
    let mut lazy = mounts.add(layer.index.clone(), Source::of(&layer)).await.unwrap();
    let at = scratch.directory("mnt");
    // Where another process makes a mount at the same moment, it is not told whose is whose.
    let mut read_ahead = Vec::new();
    for _ in 0..10 {
        mounts.mount(&digest, &at, &[]).unwrap();
        assert!(!read_ahead_of_mounts().iter().any(|kib| kib == KIB), "what is not here is not read ahead so far");
        lazy.complete_all().await.unwrap();
        mounts.completed(&digest);
        read_ahead = read_ahead_of_mounts();
        mounts.unmount(&at).unwrap();
        if read_ahead.iter().any(|kib| kib == KIB) {
            break;
        }
        mounts.remove(&digest).unwrap();
        lazy = mounts.add(layer.index.clone(), Source::of(&layer)).await.unwrap();
    }
    mounts.shutdown().await;
    std::fs::write(&bdi, before).unwrap();
    assert_eq!(read_ahead.iter().filter(|kib| *kib == KIB).count(), 1, "{read_ahead:?}");
}
