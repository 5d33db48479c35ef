//! Two directory trees compared in everything that a container can see.

use crate::image::hex;
use anyhow::{Context, Result};
use rustix::fs::{lgetxattr, llistxattr};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

const READ_BYTES: usize = 1 << 20;
/// The most bytes that the kernel gives for a list of names or a value of extended attributes (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES: usize = 64 << 10;

/// What a file of a tree is like. Sizes and link counts of directories are left out: each filesystem has its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `file`, `directory`, `symlink`, `char`, `block`, `fifo` or `socket`.
    pub kind: &'static str,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Length of a file or of a link's target.
    pub size: Option<u64>,
    /// Number of names, of what is not a directory.
    pub links: Option<u64>,
    /// Device number of a device.
    pub device: u64,
    /// Extended attributes but overlayfs's own (`trusted.overlay.*`).
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// SHA-256 of a file's content, or a link's target.
    pub content: String,
    /// The first name, in order, of the same file; itself if it has no other.
    pub same_as: PathBuf,
}

/// All files under `root`, by path relative to it, each read to its end.
pub fn digest_walk(root: &Path) -> Result<BTreeMap<PathBuf, Node>> {
    let mut found = BTreeMap::new();
    let mut first_names = HashMap::new();
    visit(root, Path::new(""), &mut found, &mut first_names)?;
    Ok(found)
}

type FirstNames = HashMap<(u64, u64), PathBuf>;

fn visit(root: &Path, relative: &Path, found: &mut BTreeMap<PathBuf, Node>, first: &mut FirstNames) -> Result<()> {
    let path = root.join(relative);
    let metadata = std::fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
    let same_as = match metadata.is_dir() {
        true => relative.to_owned(),
        false => first.entry((metadata.dev(), metadata.ino())).or_insert_with(|| relative.to_owned()).clone(),
    };
    // A second name of a file that was read already is not read again.
    let content = match found.get(&same_as) {
        Some(known) => known.content.clone(),
        None => content_of(&path, &metadata).with_context(|| format!("reading {}", path.display()))?,
    };
    let node = describe(&path, &metadata, content, same_as).with_context(|| path.display().to_string())?;
    found.insert(relative.to_owned(), node);
    if metadata.is_dir() {
        let entries = std::fs::read_dir(&path).with_context(|| path.display().to_string())?;
        let mut names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>()?;
        names.sort();
        for name in names {
            visit(root, &relative.join(name), found, first)?;
        }
    }
    Ok(())
}

fn describe(path: &Path, metadata: &Metadata, content: String, same_as: PathBuf) -> Result<Node> {
    let kind = match metadata.file_type() {
        kind if kind.is_dir() => "directory",
        kind if kind.is_file() => "file",
        kind if kind.is_symlink() => "symlink",
        kind if kind.is_char_device() => "char",
        kind if kind.is_block_device() => "block",
        kind if kind.is_fifo() => "fifo",
        _ => "socket",
    };
    let sized = matches!(kind, "file" | "symlink");
    Ok(Node {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        size: sized.then_some(metadata.size()),
        links: (kind != "directory").then_some(metadata.nlink()),
        device: if matches!(kind, "char" | "block") { metadata.rdev() } else { 0 },
        xattrs: xattrs(path)?,
        content,
        same_as,
    })
}

fn content_of(path: &Path, metadata: &Metadata) -> Result<String> {
    if metadata.is_symlink() {
        return Ok(std::fs::read_link(path)?.as_os_str().as_bytes().escape_ascii().to_string());
    }
    if !metadata.is_file() {
        return Ok(String::new());
    }
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hash.update(&buffer[..length]);
        total += length as u64;
    }
    anyhow::ensure!(total == metadata.len(), "{total} bytes could be read of a file of {}", metadata.len());
    Ok(hex(&hash.finalize()))
}

fn xattrs(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut list = vec![0; XATTR_BYTES];
    let length = llistxattr(path, &mut list).context("listing extended attributes")?;
    let mut found = BTreeMap::new();
    for name in list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."))
    {
        let mut value = vec![0; XATTR_BYTES];
        let size = lgetxattr(path, CString::new(name)?, &mut value).context("reading an extended attribute")?;
        value.truncate(size);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Ok(found)
}

/// Every difference between two trees, a line each: the first `limit`, and how many there are beyond. Empty when they are the same.
pub fn differences(left: &BTreeMap<PathBuf, Node>, right: &BTreeMap<PathBuf, Node>, limit: usize) -> String {
    let mut lines = Vec::new();
    for (path, node) in left {
        match right.get(path) {
            None => lines.push(format!("only left:  {path:?} ({})", node.kind)),
            Some(other) if node != other => lines.push(format!("differs:    {path:?}: {}", what_differs(node, other))),
            Some(_) => {}
        }
    }
    lines.extend(
        right
            .iter()
            .filter(|(path, _)| !left.contains_key(*path))
            .map(|(path, node)| format!("only right: {path:?} ({})", node.kind)),
    );
    let beyond = lines.len().saturating_sub(limit);
    lines.truncate(limit);
    if beyond > 0 {
        lines.push(format!("and {beyond} more"));
    }
    lines.join("\n")
}

fn what_differs(left: &Node, right: &Node) -> String {
    let mut text = String::new();
    let mut field = |name: &str, left: &dyn std::fmt::Debug, right: &dyn std::fmt::Debug| {
        let (left, right) = (format!("{left:?}"), format!("{right:?}"));
        if left != right {
            let _ = write!(text, "{name} {left} != {right}; ");
        }
    };
    field("kind", &left.kind, &right.kind);
    field("mode", &format_args!("{:o}", left.mode), &format_args!("{:o}", right.mode));
    field("owner", &(left.uid, left.gid), &(right.uid, right.gid));
    field("mtime", &left.mtime, &right.mtime);
    field("size", &left.size, &right.size);
    field("links", &left.links, &right.links);
    field("device", &left.device, &right.device);
    field("xattrs", &left.xattrs, &right.xattrs);
    field("content", &left.content, &right.content);
    field("same file as", &left.same_as, &right.same_as);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn copies_are_the_same_until_anything_is_changed() {
        let root = std::env::temp_dir().join(format!("lapwing-lab-tree-{}", std::process::id()));
        let (left, right) = (root.join("left"), root.join("right"));
        std::fs::create_dir_all(left.join("d")).unwrap();
        std::fs::write(left.join("d/f"), "content").unwrap();
        std::fs::hard_link(left.join("d/f"), left.join("g")).unwrap();
        std::os::unix::fs::symlink("d/f", left.join("s")).unwrap();
        crate::check(std::process::Command::new("cp").arg("-a").arg(&left).arg(&right)).unwrap();
        let original = digest_walk(&left).unwrap();
        assert_eq!(original.len(), 5);
        assert_eq!(differences(&original, &digest_walk(&right).unwrap(), 9), "");

        std::fs::set_permissions(right.join("d/f"), std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(differences(&original, &digest_walk(&right).unwrap(), 9).contains("mode"));
        std::fs::remove_file(right.join("g")).unwrap();
        std::fs::copy(right.join("d/f"), right.join("g")).unwrap();
        let changed = differences(&original, &digest_walk(&right).unwrap(), 9);
        assert!(changed.contains("same file as") && changed.contains("links"), "{changed}");
        std::fs::remove_file(right.join("g")).unwrap();
        assert!(differences(&original, &digest_walk(&right).unwrap(), 9).contains("only left"));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
