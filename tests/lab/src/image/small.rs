//! A few megabytes with everything odd that a layer may hold.

use super::layout::{ImageConfig, Layout, LayoutWriter};
use super::tar::{Entry, EntryKind, TarWriter};
use crate::cache::built_once;
use anyhow::{Context, Result};
use std::io::Write;

/// What the image prints when it is run as it is.
pub const SMALL_OUTPUT: &str = "lapwing small image: second layer";

/// `cap_net_bind_service=ep`, revision 2 (linux/capability.h, `struct vfs_cap_data`).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const APPLETS: [&str; 12] =
    ["sh", "cat", "echo", "ls", "sleep", "stat", "sha256sum", "id", "wget", "nc", "touch", "true"];
const DIRECTORIES: [(&str, u32); 9] = [
    ("bin", 0o755),
    ("etc", 0o755),
    ("tmp", 0o1777),
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("odd", 0o755),
    ("gone", 0o755),
    ("opaque", 0o755),
];
const MEBIBYTE: usize = 1 << 20;
const NOISE_BYTES: usize = 3 * MEBIBYTE;
/// Sizes around the block sizes of tar and of filesystems.
const EDGES: [(&str, usize); 6] = [
    ("odd/noise", NOISE_BYTES),
    ("odd/511", 511),
    ("odd/512", 512),
    ("odd/513", 513),
    ("odd/4096", 4096),
    ("odd/4097", 4097),
];

/// The static busybox of this machine.
pub(super) fn busybox() -> Result<Vec<u8>> {
    std::fs::read("/bin/busybox")
        .context("no /bin/busybox: contrib/setup/packages.sh installs the package busybox-static")
}

/// The small image: busybox, hard and symbolic links, extended attributes, devices, a pipe, setuid and sticky bits, names that are long or
/// not UTF-8, a file mostly of zeros, incompressible content, and a second layer with whiteouts and an opaque directory.
pub fn small() -> Result<Layout> {
    built("small", Names::Any)
}

/// The same without the name that is not UTF-8, for formats that cannot hold it.
pub fn small_in_utf8() -> Result<Layout> {
    built("small-utf8", Names::Utf8)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Any,
    Utf8,
}

fn built(name: &str, names: Names) -> Result<Layout> {
    let busybox = busybox()?;
    let sources: [&[u8]; 3] = [include_bytes!("small.rs"), include_bytes!("tar.rs"), include_bytes!("layout.rs")];
    let key = super::recipe_key(name, &[&[&busybox[..]], &sources[..]].concat());
    let dir = built_once("images", &key, |dir| {
        let mut image = LayoutWriter::new(dir)?;
        image.layer(|out| lower(out, &busybox, names))?;
        image.layer(upper)?;
        let config = ImageConfig {
            entrypoint: &["/bin/sh", "-c"],
            cmd: &["cat /etc/greeting"],
            env: &["PATH=/bin", "LAB=small"],
            working_dir: "/",
        };
        image.finish(&config).map(drop)
    })?;
    Layout::open(&dir)
}

fn lower(out: &mut dyn Write, busybox: &[u8], names: Names) -> Result<()> {
    let mut tar = TarWriter::new(out);
    for (dir, mode) in DIRECTORIES {
        tar.add(&Entry::new(format!("{dir}/").as_bytes(), EntryKind::Directory).mode(mode))?;
    }
    tar.add(&Entry::new(b"bin/busybox", EntryKind::File(busybox)).mode(0o755))?;
    for applet in APPLETS {
        let path = format!("bin/{applet}");
        tar.add(&Entry::new(path.as_bytes(), EntryKind::Hardlink(b"bin/busybox")).mode(0o755))?;
    }
    let passwd = b"root:x:0:0:root:/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n";
    tar.add(&Entry::new(b"etc/passwd", EntryKind::File(passwd)))?;
    tar.add(&Entry::new(b"etc/greeting", EntryKind::File(b"lapwing small image: first layer\n")))?;
    odd_names(&mut tar, names)?;
    odd_kinds(&mut tar)?;
    odd_attributes(&mut tar)?;
    contents(&mut tar)?;
    for name in ["gone/file", "gone/other", "opaque/old1", "opaque/old2", "etc/replaced"] {
        tar.add(&Entry::new(name.as_bytes(), EntryKind::File(b"of the first layer\n")))?;
    }
    tar.finish().map(drop)
}

fn odd_names<W: Write>(tar: &mut TarWriter<W>, names: Names) -> Result<()> {
    let long = format!("odd/{}", "long-name-".repeat(24));
    tar.add(&Entry::new(long.as_bytes(), EntryKind::File(b"a name of 240 bytes\n")))?;
    let deep = format!("odd/{}", "directory/".repeat(30));
    for end in deep.match_indices('/').map(|(at, _)| at + 1).skip(1) {
        tar.add(&Entry::new(&deep.as_bytes()[..end], EntryKind::Directory))?;
    }
    tar.add(&Entry::new(format!("{deep}file").as_bytes(), EntryKind::File(b"deep\n")))?;
    if names == Names::Any {
        tar.add(&Entry::new(b"odd/not-utf8-\xff\xfe", EntryKind::File(b"bytes\n")))?;
    }
    tar.add(&Entry::new("odd/\u{e9}t\u{e9} \u{2603}".as_bytes(), EntryKind::File(b"UTF-8\n")))?;
    tar.add(&Entry::new(b"odd/with space and \\ and \"", EntryKind::File(b"quoted\n")))
}

fn odd_kinds<W: Write>(tar: &mut TarWriter<W>) -> Result<()> {
    let target = "../".repeat(60) + "etc/greeting";
    tar.add(&Entry::new(b"odd/link", EntryKind::Symlink(b"../etc/greeting")))?;
    tar.add(&Entry::new(b"odd/long-link", EntryKind::Symlink(target.as_bytes())))?;
    tar.add(&Entry::new(b"odd/dangling", EntryKind::Symlink(b"/nowhere")))?;
    tar.add(&Entry::new(b"odd/null", EntryKind::CharDevice(1, 3)).mode(0o666))?;
    tar.add(&Entry::new(b"odd/block", EntryKind::BlockDevice(259, 70_000)).mode(0o660))?;
    tar.add(&Entry::new(b"odd/pipe", EntryKind::Fifo))?;
    tar.add(&Entry::new(b"odd/setuid", EntryKind::File(b"#!/bin/sh\n")).mode(0o4755))?;
    tar.add(&Entry::new(b"odd/setgid/", EntryKind::Directory).mode(0o2775))
}

fn odd_attributes<W: Write>(tar: &mut TarWriter<W>) -> Result<()> {
    let file = |path: &'static [u8], content: &'static [u8]| Entry::new(path, EntryKind::File(content));
    let mtime = (1_600_000_000, 123_456_789);
    tar.add(&Entry { owner: (1000, 100), mtime, ..file(b"odd/owned", b"of app\n").mode(0o640) })?;
    tar.add(&Entry { owner: (2_000_000, 2_000_001), ..file(b"odd/high-ids", b"") })?;
    tar.add(&Entry { mtime: (0, 0), ..file(b"odd/epoch", b"1970\n") })?;
    let capable = file(b"odd/capable", b"#!/bin/sh\n").mode(0o755);
    tar.add(&Entry { xattrs: &[("security.capability", &CAPABILITY)], ..capable })?;
    let long: &[u8] = &[b'v'; 1500];
    tar.add(&Entry { xattrs: &[("user.note", b"hello"), ("user.long", long)], ..file(b"odd/noted", b"x") })?;
    let dir = Entry::new(b"odd/noted-dir/", EntryKind::Directory);
    tar.add(&Entry { xattrs: &[("user.note", b"on a directory")], ..dir })
}

fn contents<W: Write>(tar: &mut TarWriter<W>) -> Result<()> {
    let mut zeros = vec![0; 8 * MEBIBYTE];
    zeros[3 * MEBIBYTE + 17] = 1;
    tar.add(&Entry::new(b"odd/mostly-zeros", EntryKind::File(&zeros)))?;
    tar.add(&Entry::new(b"odd/empty", EntryKind::File(b"")))?;
    // xorshift64: incompressible, and the same everywhere.
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut noise = Vec::with_capacity(NOISE_BYTES);
    while noise.len() < NOISE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    for (name, length) in EDGES {
        tar.add(&Entry::new(name.as_bytes(), EntryKind::File(&noise[..length])))?;
    }
    tar.add(&Entry::new(b"odd/noise-too", EntryKind::Hardlink(b"odd/noise")))
}

fn upper(out: &mut dyn Write) -> Result<()> {
    let mut tar = TarWriter::new(out);
    let greeting = format!("{SMALL_OUTPUT}\n");
    tar.add(&Entry::new(b"etc/", EntryKind::Directory))?;
    tar.add(&Entry::new(b"etc/greeting", EntryKind::File(greeting.as_bytes())))?;
    tar.add(&Entry::new(b"etc/replaced", EntryKind::Symlink(b"greeting")))?;
    tar.add(&Entry::new(b"gone/", EntryKind::Directory))?;
    tar.add(&Entry::new(b"gone/.wh.file", EntryKind::File(b"")))?;
    tar.add(&Entry::new(b"odd/", EntryKind::Directory))?;
    tar.add(&Entry::new(b"odd/.wh.setgid", EntryKind::File(b"")))?;
    tar.add(&Entry::new(b"opaque/", EntryKind::Directory).mode(0o750))?;
    tar.add(&Entry::new(b"opaque/.wh..wh..opq", EntryKind::File(b"")))?;
    tar.add(&Entry::new(b"opaque/new", EntryKind::File(b"of the second layer\n")))?;
    tar.finish().map(drop)
}
