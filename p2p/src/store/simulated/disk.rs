//! What is on a disk for good, and what only the kernel has: a loss of power leaves any part of the latter.
//!
//! The rules are those of POSIX and no kinder: without a sync of the file each sector of 512 bytes of each write may be there or not,
//! in any order, and the length, too; without a sync of the directory each change of a name may be there or not, a rename as one. Half of the disks
//! keep names in order, as a file system with a journal does: of them a prefix is there, and a sync brings all that came before it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::changes::{Change, watched};

const SECTOR: usize = 512;
const ROOT: Id = 0;

/// A file or directory, whatever its names.
type Id = usize;
type Names = BTreeMap<String, Id>;

#[derive(Debug, Clone)]
pub(super) enum Edit {
    Write(u64, Vec<u8>),
    Resize(u64),
    Punch(Range<u64>),
}

#[derive(Debug, Clone)]
pub(super) enum Entry {
    Link(String, Id),
    Unlink(String),
    Rename(String, String),
}

/// One change, as it was recorded.
#[derive(Debug, Clone)]
pub(super) enum Op {
    MakeFile,
    MakeDirectory,
    Edit(Id, Edit),
    Name(Id, Entry),
    Sync(Id),
}

/// What was lost with the power.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Losses {
    pub(super) lost_writes: u64,
    pub(super) torn_writes: u64,
    pub(super) lost_names: u64,
}

#[derive(Debug)]
enum Node {
    File { durable: Vec<u8>, pending: Vec<Edit> },
    Directory { durable: Names, pending: Vec<(u64, Entry)> },
}

/// A disk and what the kernel has for it.
#[derive(Debug)]
pub(super) struct Model {
    nodes: Vec<Node>,
    /// Changes so far, and how many of them had been made when anything was last synced.
    changes: u64,
    last_sync: u64,
}

impl Model {
    /// An empty directory.
    pub(super) fn new() -> Self {
        let root = Node::Directory { durable: Names::new(), pending: Vec::new() };
        Self { nodes: vec![root], changes: 0, last_sync: 0 }
    }

    pub(super) fn apply(&mut self, op: &Op) {
        self.changes += 1;
        match op {
            Op::MakeFile => self.nodes.push(Node::File { durable: Vec::new(), pending: Vec::new() }),
            Op::MakeDirectory => self.nodes.push(Node::Directory { durable: Names::new(), pending: Vec::new() }),
            Op::Edit(id, edit) => {
                let Node::File { pending, .. } = &mut self.nodes[*id] else { panic!("{id} is no file") };
                pending.push(edit.clone());
            }
            Op::Name(id, entry) => {
                let Node::Directory { pending, .. } = &mut self.nodes[*id] else { panic!("{id} is no directory") };
                pending.push((self.changes, entry.clone()));
            }
            Op::Sync(id) => {
                self.last_sync = self.changes;
                match &mut self.nodes[*id] {
                    Node::File { durable, pending } => pending.drain(..).for_each(|edit| done(durable, &edit)),
                    Node::Directory { durable, pending } => {
                        pending.drain(..).for_each(|(_, entry)| renamed(durable, &entry));
                    }
                }
            }
        }
    }

    /// What the kernel shows.
    fn names(&self, id: Id) -> Names {
        let Node::Directory { durable, pending } = &self.nodes[id] else { panic!("{id} is no directory") };
        let mut names = durable.clone();
        pending.iter().for_each(|(_, entry)| renamed(&mut names, entry));
        names
    }

    /// The bytes that are there for good.
    pub(super) fn durable(&self, id: Id) -> &[u8] {
        let Node::File { durable, .. } = &self.nodes[id] else { panic!("{id} is no file") };
        durable
    }

    /// The kernel gives up on what it has of a file, as it does when a sync fails.
    pub(super) fn forget(&mut self, id: Id) {
        if let Node::File { pending, .. } = &mut self.nodes[id] {
            pending.clear();
        }
    }

    /// The power fails: what was pending is there from now on, or never was.
    pub(super) fn lose_power(&mut self, random: &mut fastrand::Rng) -> Losses {
        let mut losses = Losses::default();
        let in_order = random.bool();
        let until = random.u64(self.last_sync..=self.changes);
        for node in &mut self.nodes {
            match node {
                Node::File { durable, pending } => tear(durable, std::mem::take(pending), random, &mut losses),
                Node::Directory { durable, pending } => {
                    let share = [1, 128, 255][random.usize(0..3)];
                    for (number, entry) in pending.drain(..) {
                        let survives = if in_order { number <= until } else { random.u8(..) < share };
                        if survives {
                            renamed(durable, &entry);
                        } else {
                            losses.lost_names += 1;
                        }
                    }
                }
            }
        }
        losses
    }

    /// Makes `directory` what the kernel shows.
    pub(super) fn build(&self, directory: &Path) {
        self.build_from(ROOT, directory);
    }

    fn build_from(&self, id: Id, directory: &Path) {
        std::fs::DirBuilder::new().mode(0o700).create(directory).unwrap();
        for (name, id) in self.names(id) {
            let path = directory.join(name);
            let Node::File { durable, pending } = &self.nodes[id] else {
                self.build_from(id, &path);
                continue;
            };
            let mut bytes = durable.clone();
            pending.iter().for_each(|edit| done(&mut bytes, edit));
            let mut options = std::fs::File::options();
            let mut file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
            io::Write::write_all(&mut file, &bytes).unwrap();
        }
    }
}

fn done(bytes: &mut Vec<u8>, edit: &Edit) {
    match edit {
        Edit::Write(offset, new) => {
            let end = *offset as usize + new.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[*offset as usize..end].copy_from_slice(new);
        }
        Edit::Resize(length) => bytes.resize(*length as usize, 0),
        Edit::Punch(range) => {
            let end = bytes.len().min(range.end as usize);
            bytes[(range.start as usize).min(end)..end].fill(0);
        }
    }
}

/// A change that an earlier one would have had to make possible is not there either.
fn renamed(names: &mut Names, entry: &Entry) {
    match entry {
        Entry::Link(name, id) => drop(names.insert(name.clone(), *id)),
        Entry::Unlink(name) => drop(names.remove(name)),
        Entry::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
    }
}

/// Some part of the edits: none, all, the first ones, or any.
fn tear(bytes: &mut Vec<u8>, pending: Vec<Edit>, random: &mut fastrand::Rng, losses: &mut Losses) {
    let kept = match random.u8(0..4) {
        0 => 0,
        1 => pending.len(),
        _ => random.usize(0..=pending.len()),
    };
    let any = random.u8(0..3) == 0;
    for (number, edit) in pending.into_iter().enumerate() {
        let whole = if any { random.bool() } else { number < kept };
        let torn = if any { random.bool() } else { number == kept };
        match edit {
            _ if whole => done(bytes, &edit),
            Edit::Write(offset, new) if torn => {
                losses.torn_writes += 1;
                write_sectors(bytes, offset as usize, &new, random);
            }
            _ => losses.lost_writes += 1,
        }
    }
}

fn write_sectors(bytes: &mut Vec<u8>, offset: usize, new: &[u8], random: &mut fastrand::Rng) {
    let length = bytes.len();
    bytes.resize(length.max(offset + new.len()), 0);
    let mut at = 0;
    while at < new.len() {
        let end = new.len().min(at + SECTOR - (offset + at) % SECTOR);
        if random.bool() {
            bytes[offset + at..offset + end].copy_from_slice(&new[at..end]);
        }
        at = end;
    }
    if random.bool() {
        bytes.truncate(length);
    }
}

/// Writes down the changes below a directory that was built from a model, and may forget to sync, or refuse.
pub(super) struct Recorder {
    root: PathBuf,
    paths: HashMap<PathBuf, Id>,
    inodes: HashMap<u64, Id>,
    next: Id,
    pub(super) ops: Vec<Op>,
    /// Syncs of these names are said to be done and are not.
    pub(super) lies_about: Option<&'static str>,
    pub(super) refuses: Option<super::refusal::Refusal>,
    /// Changes that were begun.
    pub(super) begun: u64,
    /// Whether one of them was refused.
    pub(super) has_refused: bool,
    /// The same, as far as it is needed while it is used.
    model: Option<Model>,
}

impl Recorder {
    pub(super) fn new(root: &Path, model: &Model) -> Self {
        let mut recorder = Self {
            root: root.to_owned(),
            paths: HashMap::new(),
            inodes: HashMap::new(),
            next: model.nodes.len(),
            ops: Vec::new(),
            lies_about: None,
            refuses: None,
            begun: 0,
            has_refused: false,
            model: None,
        };
        recorder.learn(model, ROOT, root);
        recorder
    }

    /// One that knows at each moment what is durable.
    pub(super) fn with_model(root: &Path, model: Model) -> Self {
        let recorder = Self::new(root, &model);
        Self { model: Some(model), ..recorder }
    }

    fn learn(&mut self, model: &Model, id: Id, path: &Path) {
        self.paths.insert(path.to_owned(), id);
        if let Node::File { .. } = model.nodes[id] {
            self.inodes.insert(inode(path), id);
            return;
        }
        for (name, id) in model.names(id) {
            self.learn(model, id, &path.join(name));
        }
    }

    fn parent(&self, path: &Path) -> Option<(Id, String)> {
        let id = *self.paths.get(path.parent()?)?;
        Some((id, path.file_name()?.to_str()?.to_owned()))
    }

    fn record(&mut self, op: Op) {
        if let Some(model) = &mut self.model {
            model.apply(&op);
        }
        self.ops.push(op);
    }

    fn make(&mut self, path: &Path, op: Op) {
        let Some((parent, name)) = self.parent(path) else { return };
        self.paths.insert(path.to_owned(), self.next);
        self.record(op);
        self.record(Op::Name(parent, Entry::Link(name, self.next)));
        self.next += 1;
    }

    fn file(&self, file: &std::fs::File) -> Option<Id> {
        self.inodes.get(&file.metadata().unwrap().ino()).copied()
    }

    /// What a sync of it is called: the file's name, or which directory it is.
    fn name(&self, id: Id) -> String {
        let path = self.paths.iter().find(|(_, known)| **known == id).map(|(path, _)| path);
        let Some(path) = path else { return "nothing".into() };
        let depth = path.strip_prefix(&self.root).map_or(0, |rest| rest.components().count());
        match depth {
            3 => "shard".into(),
            4 => "blob".into(),
            _ => path.file_name().unwrap().to_string_lossy().into_owned(),
        }
    }

    fn sync(&mut self, id: Option<Id>) {
        let Some(id) = id else { return };
        if self.lies_about.is_none_or(|name| name != self.name(id)) {
            self.record(Op::Sync(id));
        }
    }

    /// A sync fails: the kernel shows what the disk has.
    fn give_up(&mut self, file: &std::fs::File) {
        let (Some(id), Some(model)) = (self.file(file), &mut self.model) else { return };
        model.forget(id);
        let durable = model.durable(id);
        file.set_len(durable.len() as u64).unwrap();
        std::os::unix::fs::FileExt::write_all_at(file, durable, 0).unwrap();
    }
}

fn inode(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

impl watched::Disk for Recorder {
    fn before(&mut self, change: &Change<'_>) -> io::Result<()> {
        self.begun += 1;
        let Some(refusal) = &self.refuses else { return Ok(()) };
        let refused = refusal.of(self.begun);
        self.has_refused |= refused.is_err();
        if let (Err(_), Change::Sync(file)) = (&refused, change) {
            self.give_up(file);
        }
        refused
    }

    fn after(&mut self, change: &Change<'_>) {
        match change {
            Change::MakeDirectory(path) => self.make(path, Op::MakeDirectory),
            Change::Open { path, emptied } => {
                match self.paths.get(*path) {
                    Some(&id) if *emptied => self.record(Op::Edit(id, Edit::Resize(0))),
                    Some(_) => {}
                    None => self.make(path, Op::MakeFile),
                }
                if let Some(&id) = self.paths.get(*path) {
                    self.inodes.insert(inode(path), id);
                }
            }
            Change::Write { file, offset, bytes } => {
                if let Some(id) = self.file(file) {
                    self.record(Op::Edit(id, Edit::Write(*offset, bytes.to_vec())));
                }
            }
            Change::Resize { file, length } => {
                if let Some(id) = self.file(file) {
                    self.record(Op::Edit(id, Edit::Resize(*length)));
                }
            }
            Change::Punch { file, range } => {
                if let Some(id) = self.file(file) {
                    self.record(Op::Edit(id, Edit::Punch(range.clone())));
                }
            }
            Change::Sync(file) => self.sync(self.file(file)),
            Change::SyncDirectory(path) => self.sync(self.paths.get(*path).copied()),
            Change::Rename { from, to } => {
                let (Some((parent, from_name)), Some((other, to_name))) = (self.parent(from), self.parent(to)) else {
                    return;
                };
                assert_eq!(parent, other, "{} leaves its directory", from.display());
                if let Some(id) = self.paths.remove(*from) {
                    self.paths.insert(to.to_path_buf(), id);
                }
                self.record(Op::Name(parent, Entry::Rename(from_name, to_name)));
            }
            Change::Remove(path) | Change::RemoveDirectory(path) => {
                let Some((parent, name)) = self.parent(path) else { return };
                self.paths.retain(|known, _| !known.starts_with(path));
                self.record(Op::Name(parent, Entry::Unlink(name)));
            }
        }
    }
}
