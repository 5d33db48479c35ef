//! The file tree that a layer's entries give when they are applied in order.
//!
//! The rules are those by which containerd extracts a layer into the upper directory of an overlay (its
//! `pkg/archive/tar.go` and `OverlayConvertWhiteout`), so that a lazily mounted layer and an extracted one look the same:
//! a later entry replaces an earlier one, a directory over a directory merges, parents are created, symbolic links in a
//! parent path are followed inside the layer, times before 1970 become 1970, `trusted.*` attributes are dropped, the
//! entry of the root itself is ignored but for its time. What containerd refuses is refused here.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::{ErofsError, xattr};
use crate::limits::{MAX_IMPLICIT_BYTES, MAX_LINKS_FOLLOWED, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_PATH_STEPS};
use crate::tree::{Entry, Extent, Kind};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Index of an inode in [`Tree::inodes`]; the root is 0.
pub(super) type InodeIndex = usize;

/// The root directory.
pub(super) const ROOT: InodeIndex = 0;

/// Owner, mode, time and extended attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-id and sticky (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch.
    pub mtime: i64,
    /// Nanoseconds of the modification time.
    pub mtime_nanos: u32,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Attributes of a directory that the layer needs and does not describe, from the layers below.
///
/// Called with its path; `None` when no lower layer has a directory there: then it gets 0755 root, as in containerd.
pub type Inherit<'a> = &'a dyn Fn(&[u8]) -> Option<Attributes>;

/// What an inode is.
#[derive(Debug)]
pub(super) enum Node<'a> {
    File { size: u64, extents: &'a [Extent] },
    Directory(BTreeMap<&'a [u8], InodeIndex>),
    Symlink(&'a [u8]),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

#[derive(Debug)]
pub(super) struct Inode<'a> {
    pub(super) attributes: Attributes,
    pub(super) node: Node<'a>,
    /// Names of a file; meaningless for a directory, which has one.
    pub(super) names: u32,
    /// Path of the entry that made it, for messages.
    pub(super) path: &'a [u8],
}

/// The applied layer. Inodes that lost all their names stay in the list, unreachable.
pub(super) struct Tree<'a> {
    pub(super) inodes: Vec<Inode<'a>>,
    implicit: Vec<Vec<u8>>,
    /// Memory that directories take which no entry describes.
    implicit_bytes: u64,
    /// Components of paths and of links' targets that were looked at.
    steps: Cell<u64>,
}

/// What a path may lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Directory,
    Anything,
}

/// Memory for one such directory beside its path, about.
const IMPLICIT_DIRECTORY_BYTES: u64 = 512;

/// One component of a resolved path; `None` where nothing is yet.
type Step<'a> = (&'a [u8], Option<InodeIndex>);

/// Paths of the directories that the layer needs and does not describe. Where the layers below have them, their
/// attributes come from there, and the image must be written with an [`Inherit`] that knows.
///
/// # Errors
///
/// When the entries cannot be applied.
pub fn implicit_directories(entries: &[Entry]) -> Result<Vec<Vec<u8>>, ErofsError> {
    Ok(Tree::apply(entries, &|_| None)?.implicit)
}

impl<'a> Tree<'a> {
    pub(super) fn apply(entries: &'a [Entry], inherit: Inherit<'_>) -> Result<Self, ErofsError> {
        let root = Inode { attributes: plain_directory(), node: Node::Directory(BTreeMap::new()), names: 1, path: b"" };
        let mut tree = Self { inodes: vec![root], implicit: Vec::new(), implicit_bytes: 0, steps: Cell::new(0) };
        for entry in entries {
            tree.apply_entry(entry, inherit)?;
        }
        for entry in entries.iter().filter(|entry| entry.kind == Kind::Directory && !entry.path.is_empty()) {
            tree.set_time_at_last(entry)?;
        }
        let inodes = &tree.inodes;
        let mut implicit = std::mem::take(&mut tree.implicit);
        implicit.retain(|path| described_nowhere(inodes, path));
        tree.implicit = implicit;
        Ok(tree)
    }

    /// The children of a directory; `None` for anything else.
    pub(super) fn children(&self, index: InodeIndex) -> Option<&BTreeMap<&'a [u8], InodeIndex>> {
        match &self.inodes[index].node {
            Node::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, index: InodeIndex) -> &mut BTreeMap<&'a [u8], InodeIndex> {
        match &mut self.inodes[index].node {
            Node::Directory(children) => children,
            _ => unreachable!("only directories are ever resolved as parents"),
        }
    }

    fn apply_entry(&mut self, entry: &'a Entry, inherit: Inherit<'_>) -> Result<(), ErofsError> {
        let path = entry.path.as_slice();
        if path.is_empty() {
            let (mtime, nanos) = bounded_time(entry);
            self.inodes[ROOT].attributes.mtime = mtime;
            self.inodes[ROOT].attributes.mtime_nanos = nanos;
            return Ok(());
        }
        if path.len() > MAX_PATH_BYTES {
            return Err(ErofsError::apply(path, "path longer than 4095 bytes"));
        }
        let (parent, name) = split(path);
        check_name(path, name)?;
        let directory = self.make_parents(path, parent, inherit)?;
        if name == OPAQUE {
            self.inodes[directory].attributes.xattrs.insert(xattr::OVERLAY_OPAQUE.to_vec(), b"y".to_vec());
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.add_whiteout(entry, directory, hidden);
        }
        self.add(entry, directory, name)
    }

    fn add_whiteout(&mut self, entry: &'a Entry, directory: InodeIndex, hidden: &'a [u8]) -> Result<(), ErofsError> {
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(ErofsError::apply(&entry.path, "a whiteout must name a file"));
        }
        if self.children_mut(directory).contains_key(hidden) {
            return Err(ErofsError::apply(&entry.path, "a whiteout of something that the same layer adds"));
        }
        let (mtime, mtime_nanos) = bounded_time(entry);
        let attributes =
            Attributes { mode: 0, uid: entry.uid, gid: entry.gid, mtime, mtime_nanos, xattrs: BTreeMap::new() };
        self.insert(directory, hidden, attributes, Node::Char { major: 0, minor: 0 }, &entry.path);
        // Without this mark overlayfs lists the names of whiteouts in a directory that no lower layer has.
        self.inodes[directory].attributes.xattrs.entry(xattr::OVERLAY_ORIGIN.to_vec()).or_default();
        Ok(())
    }

    fn add(&mut self, entry: &'a Entry, directory: InodeIndex, name: &'a [u8]) -> Result<(), ErofsError> {
        if let Some(&existing) = self.children_mut(directory).get(name) {
            if matches!(entry.kind, Kind::Directory) && self.children(existing).is_some() {
                return self.restate(existing, entry);
            }
            self.remove(directory, name);
        }
        let node = match &entry.kind {
            Kind::Hardlink(target) => return self.link(entry, directory, name, target),
            Kind::File { size, extents } => Node::File { size: *size, extents },
            Kind::Directory => Node::Directory(BTreeMap::new()),
            Kind::Symlink(target) => Node::Symlink(symlink_target(entry, target)?),
            Kind::CharDevice { major, minor } => Node::Char { major: *major, minor: *minor },
            Kind::BlockDevice { major, minor } => Node::Block { major: *major, minor: *minor },
            Kind::Fifo => Node::Fifo,
        };
        let attributes = attributes_of(entry, &node)?;
        self.insert(directory, name, attributes, node, &entry.path);
        Ok(())
    }

    fn insert(
        &mut self,
        directory: InodeIndex,
        name: &'a [u8],
        attributes: Attributes,
        node: Node<'a>,
        path: &'a [u8],
    ) -> InodeIndex {
        let index = self.inodes.len();
        self.inodes.push(Inode { attributes, node, names: 1, path });
        self.children_mut(directory).insert(name, index);
        index
    }

    /// Gives a file another name. As in containerd the entry's own owner, mode, time and attributes are applied to the
    /// shared inode; the change of owner also takes its capabilities, as chown(2) does.
    fn link(
        &mut self,
        entry: &'a Entry,
        directory: InodeIndex,
        name: &'a [u8],
        target: &'a [u8],
    ) -> Result<(), ErofsError> {
        let missing = || ErofsError::apply(&entry.path, "hard link to something that the layer does not have");
        let (parent, base) = split(target);
        let steps = self.resolve(&entry.path, parent)?;
        let holder = steps.last().map_or(Some(ROOT), |&(_, inode)| inode).ok_or_else(missing)?;
        let index = *self.children(holder).and_then(|children| children.get(base)).ok_or_else(missing)?;
        if self.children(index).is_some() {
            return Err(ErofsError::apply(&entry.path, "hard link to a directory"));
        }
        let inode = &mut self.inodes[index];
        inode.names += 1;
        inode.attributes.xattrs.remove(xattr::CAPABILITY);
        self.restate(index, entry)?;
        self.children_mut(directory).insert(name, index);
        Ok(())
    }

    /// Applies the attributes of `entry` to an inode that is there already.
    fn restate(&mut self, index: InodeIndex, entry: &'a Entry) -> Result<(), ErofsError> {
        let inode = &mut self.inodes[index];
        inode.path = &entry.path;
        let new = attributes_of(entry, &inode.node)?;
        let mut xattrs = std::mem::take(&mut inode.attributes.xattrs);
        xattrs.extend(new.xattrs);
        inode.attributes = Attributes { xattrs, ..new };
        Ok(())
    }

    /// containerd sets the times of directories when all is unpacked, by their names: what has come into the place of one by then, or
    /// what a link in its place leads to, gets its time, and where nothing is it fails.
    fn set_time_at_last(&mut self, entry: &'a Entry) -> Result<(), ErofsError> {
        let steps = self.resolve_to(&entry.path, &entry.path, Last::Anything)?;
        let found = steps.last().map_or(Some(ROOT), |&(_, inode)| inode);
        let found = found.ok_or_else(|| ErofsError::apply(&entry.path, "a directory that a later entry takes away"))?;
        let (mtime, mtime_nanos) = bounded_time(entry);
        let attributes = &mut self.inodes[found].attributes;
        (attributes.mtime, attributes.mtime_nanos) = (mtime, mtime_nanos);
        Ok(())
    }

    fn remove(&mut self, directory: InodeIndex, name: &[u8]) {
        let mut doomed: Vec<InodeIndex> = self.children_mut(directory).remove(name).into_iter().collect();
        while let Some(index) = doomed.pop() {
            let inode = &mut self.inodes[index];
            inode.names = inode.names.saturating_sub(1);
            if let Node::Directory(children) = &mut inode.node {
                doomed.extend(std::mem::take(children).into_values());
            }
        }
    }

    /// The directory at `parent`, made with its ancestors where they are missing.
    fn make_parents(
        &mut self,
        entry: &'a [u8],
        parent: &'a [u8],
        inherit: Inherit<'_>,
    ) -> Result<InodeIndex, ErofsError> {
        let steps = self.resolve(entry, parent)?;
        let mut current = ROOT;
        let mut path = Vec::new();
        for (name, inode) in steps {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            current = match inode {
                Some(inode) => inode,
                None => {
                    check_name(entry, name)?;
                    self.implicit_bytes += path.len() as u64 + IMPLICIT_DIRECTORY_BYTES;
                    let (size, limit) = (self.implicit_bytes, MAX_IMPLICIT_BYTES);
                    if size > limit {
                        let what = "the memory for directories that no entry describes";
                        return Err(ErofsError::TooLarge { what, size, limit });
                    }
                    let attributes = inherit(&path).unwrap_or_else(plain_directory);
                    self.implicit.push(path.clone());
                    self.insert(current, name, attributes, Node::Directory(BTreeMap::new()), IMPLICIT)
                }
            };
        }
        Ok(current)
    }

    /// Resolves a path of directories inside the layer, following symbolic links, as containerd's `fs.RootPath`.
    fn resolve(&self, entry: &[u8], path: &'a [u8]) -> Result<Vec<Step<'a>>, ErofsError> {
        self.resolve_to(entry, path, Last::Directory)
    }

    fn resolve_to(&self, entry: &[u8], path: &'a [u8], last: Last) -> Result<Vec<Step<'a>>, ErofsError> {
        let mut steps: Vec<Step<'a>> = Vec::new();
        let mut pending: Vec<&'a [u8]> = path.split(|&byte| byte == b'/').rev().collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            self.steps.set(self.steps.get() + 1);
            match name {
                b"" | b"." => continue,
                b".." => {
                    steps.pop();
                    continue;
                }
                _ => {}
            }
            let current = steps.last().map_or(Some(ROOT), |&(_, inode)| inode);
            let child = current.and_then(|inode| self.children(inode)).and_then(|children| children.get(name)).copied();
            match child.map(|child| &self.inodes[child].node) {
                None | Some(Node::Directory(_)) => steps.push((name, child)),
                Some(Node::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS_FOLLOWED {
                        return Err(ErofsError::apply(entry, "more than 255 symbolic links in its path"));
                    }
                    let (size, limit) = (self.steps.get(), MAX_PATH_STEPS);
                    if size > limit {
                        let what = "the number of steps through the symbolic links in its paths";
                        return Err(ErofsError::TooLarge { what, size, limit });
                    }
                    if target.first() == Some(&b'/') {
                        steps.clear();
                    }
                    pending.extend(target.split(|&byte| byte == b'/').rev());
                }
                Some(_) if last == Last::Anything && pending.is_empty() => steps.push((name, child)),
                Some(_) => return Err(ErofsError::apply(entry, "a parent is not a directory")),
            }
        }
        Ok(steps)
    }
}

/// Path that marks directories no entry describes.
const IMPLICIT: &[u8] = b"(implied)";

/// Whether the directory at `path` still stands and was never described by an entry of its own.
fn described_nowhere(inodes: &[Inode<'_>], path: &[u8]) -> bool {
    let mut current = ROOT;
    for name in path.split(|&byte| byte == b'/') {
        match &inodes[current].node {
            Node::Directory(children) => match children.get(name) {
                Some(&child) => current = child,
                None => return false,
            },
            _ => return false,
        }
    }
    inodes[current].path == IMPLICIT
}

fn plain_directory() -> Attributes {
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 0, mtime_nanos: 0, xattrs: BTreeMap::new() }
}

fn attributes_of(entry: &Entry, node: &Node<'_>) -> Result<Attributes, ErofsError> {
    let (mtime, mtime_nanos) = bounded_time(entry);
    let mode = if matches!(node, Node::Symlink(_)) { 0o777 } else { entry.mode & 0o7777 };
    let xattrs = xattr::kept(entry, node)?;
    Ok(Attributes { mode, uid: entry.uid, gid: entry.gid, mtime, mtime_nanos, xattrs })
}

/// The time that containerd gives a file: what does not fit into positive signed nanoseconds becomes the epoch.
fn bounded_time(entry: &Entry) -> (i64, u32) {
    const MAX: (i64, u32) = (i64::MAX / 1_000_000_000, (i64::MAX % 1_000_000_000) as u32);
    let time = (entry.mtime, entry.mtime_nanos);
    if time.0 < 0 || time > MAX || time.1 >= 1_000_000_000 { (0, 0) } else { time }
}

fn symlink_target<'a>(entry: &Entry, target: &'a [u8]) -> Result<&'a [u8], ErofsError> {
    if target.is_empty() || target.len() > MAX_PATH_BYTES || target.contains(&0) {
        return Err(ErofsError::apply(&entry.path, "a symbolic link's target must have 1 to 4095 bytes and no NUL"));
    }
    Ok(target)
}

fn check_name(path: &[u8], name: &[u8]) -> Result<(), ErofsError> {
    let bad = name.is_empty() || name.len() > MAX_NAME_BYTES || name == b"." || name == b".." || name.contains(&0);
    if bad { Err(ErofsError::apply(path, "a file name must have 1 to 255 bytes and no NUL")) } else { Ok(()) }
}

/// Parent and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
