//! Which objects derive from which blobs, remembered on disk.
//!
//! A journal, `<root>/derived`: a line saying what it is, then a line for each thing learnt (format: [`line`]), made durable
//! before [`Derived::remember`] returns. When most lines have been overtaken by later ones, or the file ends in the middle
//! of one, the next thing learnt replaces the whole file in one step. So each thing costs about a line, however many there
//! are, and the file is at most about twice as long as what is known. That is bounded, too: beyond
//! [`MAX_DERIVED_OBJECTS`] what was learnt first is forgotten.
//!
//! After a crash: what [`Derived::remember`] returned from is there; what it was in the middle of is there or not; a line
//! that is not whole is skipped. Losing the file costs questions to discovery, and that what this node has proven is
//! proven again. A file of a former version is read, and a line without a standing counts as accepted.

mod line;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::changes::{self, Appending};
use crate::digest::Digest;
use crate::discovery::{Statement, StatementKind};
use crate::failpoint;
use crate::limits::{MAX_DERIVED_FILE_LENGTH, MAX_DERIVED_OBJECTS, MAX_REFUTED_OBJECTS};

const FILE: &str = "derived";
/// Lines that may be superfluous whatever is known, so that a small file is not replaced all the time.
const SLACK_LINES: usize = 1024;

/// What this node makes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It derived the object from the verified subject itself, or proved it against that: it says so to others.
    Own,
    /// Others state it, and it proved usable. This node does not repeat it.
    Accepted,
    /// It is not what it was stated to be: not tried again.
    Refuted,
}

/// What is known of one object.
#[derive(Debug, Clone, Copy)]
struct Known {
    length: u64,
    standing: Standing,
    /// Grows with everything learnt.
    order: u64,
}

type Key = (StatementKind, Digest, Digest);

/// All that is known. No I/O.
#[derive(Debug, Default)]
struct Objects {
    known: BTreeMap<Key, Known>,
    refuted: usize,
    next_order: u64,
}

#[derive(Debug)]
pub(super) struct Derived {
    objects: Mutex<Objects>,
    /// Held while the file is written; taken before `objects`.
    journal: Mutex<Journal>,
}

/// The file.
#[derive(Debug)]
struct Journal {
    path: PathBuf,
    /// Open at its end, from the first line that is added on.
    file: Option<File>,
    lines: usize,
    /// Whether a line may be added: it is there, of this version, and every line is whole.
    sound: bool,
}

impl Derived {
    /// Reads what a former process left in `directory`; lines that make no sense are skipped.
    pub(super) fn load(directory: &Path) -> Self {
        let mut journal = Journal { path: directory.join(FILE), file: None, lines: 0, sound: false };
        let mut objects = Objects::default();
        match File::open(&journal.path) {
            Ok(file) => journal.sound = journal.read(file, &mut objects),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %journal.path.display(), %error, "what derives from stored blobs has to be learnt anew");
            }
        }
        Self { objects: Mutex::new(objects), journal: Mutex::new(journal) }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of that kind and subject: this node's own first, then what was learnt last.
    pub(super) fn get(&self, subject: Digest, kind: StatementKind) -> Vec<(Statement, Standing)> {
        let objects = self.objects();
        let range = (kind, subject, Digest::from_bytes([0; 32]))..=(kind, subject, Digest::from_bytes([0xff; 32]));
        let mut known: Vec<_> = objects.known.range(range).collect();
        known.sort_by_key(|(_, known)| (known.standing != Standing::Own, std::cmp::Reverse(known.order)));
        known.into_iter().map(statement).collect()
    }

    /// What this node may say in its own name: of each kind and subject what it said last.
    pub(super) fn own(&self) -> Vec<Statement> {
        let objects = self.objects();
        let own = objects.known.iter().filter(|(_, known)| known.standing == Standing::Own);
        let mut last = BTreeMap::new();
        for (key, known) in own {
            let said = last.entry((key.0, key.1)).or_insert((key, known));
            if said.1.order < known.order {
                *said = (key, known);
            }
        }
        last.into_values().map(|entry| statement(entry).0).collect()
    }

    /// Remembers what to make of an object, on disk too. What this node proved itself, no other's word changes.
    pub(super) fn remember(&self, statement: Statement, standing: Standing) -> io::Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let count = {
            let mut objects = self.objects();
            if !objects.learn(statement, standing) {
                return Ok(());
            }
            objects.known.len()
        };
        if journal.sound && journal.lines < 2 * count + SLACK_LINES {
            journal.add(&line::encode(&statement, standing))
        } else {
            let all = self.objects().in_order();
            journal.replace(&all)
        }
    }
}

impl Objects {
    /// Whether that is news.
    fn learn(&mut self, statement: Statement, standing: Standing) -> bool {
        let (key, length) = ((statement.kind, statement.subject, statement.object), statement.length);
        let before = self.known.get(&key).copied();
        let stays =
            |known: Known| known.standing == Standing::Own || (known.length, known.standing) == (length, standing);
        if before.is_some_and(stays) {
            return false;
        }
        self.known.insert(key, Known { length, standing, order: self.next_order });
        self.next_order += 1;
        let refuted = |standing: Option<Standing>| usize::from(standing == Some(Standing::Refuted));
        self.refuted += refuted(Some(standing));
        self.refuted -= refuted(before.map(|known| known.standing));
        self.forget_some();
        true
    }

    /// Liars can name objects without end, and blobs come and go: only so much is remembered.
    fn forget_some(&mut self) {
        if self.refuted > MAX_REFUTED_OBJECTS {
            let mut place = 0;
            self.known.retain(|_, known| {
                let refuted = known.standing == Standing::Refuted;
                place += usize::from(refuted);
                !refuted || place % 2 == 0
            });
            self.refuted /= 2;
        }
        if self.known.len() > MAX_DERIVED_OBJECTS {
            let mut orders: Vec<u64> = self.known.values().map(|known| known.order).collect();
            // So many at once that each costs little.
            let (_, &mut oldest_kept, _) = orders.select_nth_unstable(MAX_DERIVED_OBJECTS / 8);
            self.known.retain(|_, known| known.order >= oldest_kept);
            self.refuted = self.known.values().filter(|known| known.standing == Standing::Refuted).count();
        }
    }

    /// Everything, as it was learnt.
    fn in_order(&self) -> Vec<(Statement, Standing)> {
        let mut all: Vec<_> = self.known.iter().collect();
        all.sort_unstable_by_key(|(_, known)| known.order);
        all.into_iter().map(statement).collect()
    }
}

impl Journal {
    /// Learns what the file says; whether a line may be added to it.
    fn read(&mut self, file: File, objects: &mut Objects) -> bool {
        let (mut sound, mut version) = (true, None);
        let mut text = BufReader::new(file.take(MAX_DERIVED_FILE_LENGTH + 1));
        let mut bytes = Vec::new();
        let mut length = 0;
        loop {
            bytes.clear();
            match text.read_until(b'\n', &mut bytes) {
                Ok(0) => break,
                Ok(read) => length += read as u64,
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "the rest of what derives from stored blobs is lost");
                    return false;
                }
            }
            let Some(known) = version else {
                version = Some(line::version(&bytes));
                if version == Some(line::Version::Current) {
                    continue;
                }
                // Has to become one of this version.
                sound = false;
                self.learn(objects, &bytes, line::Version::Former);
                continue;
            };
            sound &= self.learn(objects, &bytes, known);
        }
        sound && version.is_some() && length <= MAX_DERIVED_FILE_LENGTH
    }

    /// Whether the line made sense.
    fn learn(&mut self, objects: &mut Objects, bytes: &[u8], version: line::Version) -> bool {
        self.lines += 1;
        let Some((statement, standing)) = line::decode(bytes, version) else { return false };
        objects.learn(statement, standing);
        true
    }

    /// Adds a line; durable on return. After a failure the file may end in the middle of it.
    fn add(&mut self, line: &str) -> io::Result<()> {
        let sound = std::mem::take(&mut self.sound);
        let file = match self.file.take() {
            Some(file) => file,
            None => OpenOptions::new().append(true).open(&self.path)?,
        };
        failpoint::reach_half("derived", || drop(changes::append(&file, &line.as_bytes()[..line.len() / 2])));
        changes::append(&file, line.as_bytes())?;
        failpoint::reach("derived.added");
        changes::sync_data(&file)?;
        failpoint::reach("derived.synced");
        (self.file, self.sound) = (Some(file), sound);
        self.lines += 1;
        Ok(())
    }

    /// Gives the file these lines in one step; durable on return.
    fn replace(&mut self, all: &[(Statement, Standing)]) -> io::Result<()> {
        (self.file, self.sound) = (None, false);
        let temporary = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = changes::open(&temporary, &options, true)?;
        failpoint::reach_step(FILE, "opened");
        let mut text = BufWriter::new(Appending(file));
        text.write_all(line::HEADER.as_bytes())?;
        for (statement, standing) in all {
            text.write_all(line::encode(statement, *standing).as_bytes())?;
        }
        let Appending(file) = text.into_inner().map_err(io::IntoInnerError::into_error)?;
        failpoint::reach_step(FILE, "written");
        changes::sync_all(&file)?;
        failpoint::reach_step(FILE, "rewritten");
        changes::rename(&temporary, &self.path)?;
        failpoint::reach_step(FILE, "renamed");
        if let Some(directory) = self.path.parent() {
            changes::sync_directory(directory)?;
        }
        failpoint::reach_step(FILE, "durable");
        (self.file, self.sound, self.lines) = (Some(file), true, all.len());
        Ok(())
    }
}

fn statement((&(kind, subject, object), known): (&Key, &Known)) -> (Statement, Standing) {
    (Statement { subject, kind, object, length: known.length }, known.standing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(subject: &[u8], object: &[u8]) -> Statement {
        Statement {
            subject: Digest::of(subject),
            kind: StatementKind::LayerIndex,
            object: Digest::of(object),
            length: 7,
        }
    }

    #[test]
    fn survives_a_restart_and_skips_nonsense() {
        let directory = tempfile::tempdir().unwrap();
        let (own, lie, foreign) = (index(b"subject", b"own"), index(b"subject", b"lie"), index(b"other", b"foreign"));
        let derived = Derived::load(directory.path());
        derived.remember(lie, Standing::Refuted).unwrap();
        derived.remember(foreign, Standing::Accepted).unwrap();
        derived.remember(own, Standing::Own).unwrap();
        let path = directory.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}nonsense\nlayer-index ../x y 3\n")).unwrap();
        let derived = Derived::load(directory.path());
        let known = derived.get(own.subject, StatementKind::LayerIndex);
        assert_eq!(known, [(own, Standing::Own), (lie, Standing::Refuted)]);
        assert_eq!(derived.get(foreign.subject, StatementKind::LayerIndex), [(foreign, Standing::Accepted)]);
        assert_eq!(derived.get(own.subject, StatementKind::Metainfo), []);
        assert_eq!(derived.own(), [own]);
        let later = index(b"subject", b"later");
        derived.remember(later, Standing::Own).unwrap();
        assert_eq!(derived.own(), [later], "what was said before is not said again");
    }

    #[test]
    fn what_was_learnt_last_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let derived = Derived::load(directory.path());
        let all: Vec<Statement> = (0..20_u8).map(|number| index(b"name", &[number])).collect();
        all.iter().for_each(|statement| derived.remember(*statement, Standing::Own).unwrap());
        let known = derived.get(all[0].subject, StatementKind::LayerIndex);
        assert!(known.iter().map(|(statement, _)| statement).eq(all.iter().rev()));
    }

    #[test]
    fn what_a_former_version_wrote_is_not_said_in_this_nodes_name() {
        let directory = tempfile::tempdir().unwrap();
        let statement = index(b"subject", b"object");
        let line = format!("layer-index {} {} 7\n", statement.subject, statement.object);
        std::fs::write(directory.path().join(FILE), line).unwrap();
        let derived = Derived::load(directory.path());
        assert_eq!(derived.get(statement.subject, statement.kind), [(statement, Standing::Accepted)]);
        assert_eq!(derived.own(), []);
    }

    #[test]
    fn what_was_proven_here_is_not_unsaid_and_what_was_refuted_may_be_proven() {
        let directory = tempfile::tempdir().unwrap();
        let derived = Derived::load(directory.path());
        let statement = index(b"subject", b"object");
        for (said, holds) in [
            (Standing::Accepted, Standing::Accepted),
            (Standing::Refuted, Standing::Refuted),
            (Standing::Own, Standing::Own),
            (Standing::Refuted, Standing::Own),
            (Standing::Accepted, Standing::Own),
        ] {
            derived.remember(statement, said).unwrap();
            assert_eq!(derived.get(statement.subject, statement.kind), [(statement, holds)]);
        }
    }

    #[test]
    fn liars_do_not_fill_the_file() {
        let mut objects = Objects::default();
        let own = index(b"subject", b"own");
        objects.learn(own, Standing::Own);
        for n in 0..3 * MAX_REFUTED_OBJECTS {
            objects.learn(index(b"subject", &n.to_be_bytes()), Standing::Refuted);
            assert!(objects.known.len() <= MAX_REFUTED_OBJECTS + 1);
            let refuted = objects.known.values().filter(|known| known.standing == Standing::Refuted).count();
            assert_eq!(objects.refuted, refuted);
        }
        assert!(objects.in_order().contains(&(own, Standing::Own)));
    }

    #[test]
    fn beyond_the_bound_what_was_learnt_first_is_forgotten() {
        let mut objects = Objects::default();
        for n in 0..=MAX_DERIVED_OBJECTS as u64 {
            objects.learn(Statement { length: n, ..index(b"subject", &n.to_be_bytes()) }, Standing::Own);
            assert!(objects.known.len() <= MAX_DERIVED_OBJECTS);
        }
        let left = objects.in_order();
        let first = left[0].0.length;
        assert!((1..=MAX_DERIVED_OBJECTS as u64 / 8).contains(&first), "{first}");
        assert!(left.iter().map(|(statement, _)| statement.length).eq(first..=MAX_DERIVED_OBJECTS as u64));
    }

    #[test]
    fn the_longest_file_is_read_again() {
        let lines = 2 * MAX_DERIVED_OBJECTS + SLACK_LINES + 1;
        let longest = Statement { length: u64::MAX, ..index(b"subject", b"object") };
        let line = line::encode(&longest, Standing::Accepted).len();
        assert!((line::HEADER.len() + lines * line) as u64 <= MAX_DERIVED_FILE_LENGTH);
    }

    #[test]
    fn a_file_cut_anywhere_keeps_what_was_whole_and_takes_more() {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = directory.path().join(FILE);
        let said: Vec<_> = (0..4_u8).map(|n| index(b"subject", &[n])).collect();
        let derived = Derived::load(directory.path());
        for statement in &said {
            derived.remember(*statement, Standing::Own).unwrap();
        }
        let text = std::fs::read(&path).unwrap();
        let line = line::encode(&said[0], Standing::Own).len();
        for cut in 0..=text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            let derived = Derived::load(directory.path());
            let whole = cut.saturating_sub(line::HEADER.len()) / line;
            let known = || derived.objects().in_order().into_iter().map(|(statement, _)| statement).collect::<Vec<_>>();
            assert_eq!(known(), said[..whole], "cut at {cut}");
            let more = index(b"subject", b"more");
            derived.remember(more, Standing::Refuted).unwrap();
            let again = Derived::load(directory.path());
            assert_eq!(again.objects().in_order().len(), whole + 1, "cut at {cut}");
            assert_eq!(again.get(more.subject, more.kind).last().unwrap(), &(more, Standing::Refuted));
        }
    }

    /// The whole file was written anew for each object, which made thousands of blobs take minutes.
    #[test]
    fn a_new_object_costs_a_line_and_not_the_file() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = directory.path().join(FILE);
        let mut derived = Derived::load(directory.path());
        let (mut inodes, count) = (std::collections::BTreeSet::new(), 5000_u32);
        for n in 0..count {
            if n == count / 2 {
                derived = Derived::load(directory.path());
            }
            derived.remember(index(b"subject", &n.to_be_bytes()), Standing::Own).unwrap();
            inodes.insert(std::fs::metadata(&path).unwrap().ino());
        }
        assert_eq!(inodes.len(), 1, "written anew");
        // What is overtaken does not stay.
        for n in 0..4 * count {
            let statement = Statement { length: u64::from(n) + 1, ..index(b"subject", b"changing") };
            derived.remember(statement, Standing::Accepted).unwrap();
        }
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 2 * (count as usize + 1) + SLACK_LINES + 1, "{lines} lines");
        assert_eq!(Derived::load(directory.path()).objects().known.len(), count as usize + 1);
    }

    #[test]
    fn what_could_not_be_written_is_written_with_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let derived = Derived::load(directory.path());
        derived.remember(index(b"subject", b"first"), Standing::Own).unwrap();
        // As when the disk is full in the middle of a line.
        derived.journal.lock().unwrap().file = Some(File::open("/dev/full").unwrap());
        assert!(derived.remember(index(b"subject", b"second"), Standing::Own).is_err());
        derived.remember(index(b"subject", b"third"), Standing::Own).unwrap();
        let written = Derived::load(directory.path()).objects().known.len();
        assert_eq!(written, 3, "{}", std::fs::read_to_string(&path).unwrap());
    }
}
