//! Which objects derive from which blobs, remembered on disk.
//!
//! One line each: `kind subject object length standing`. The file is replaced atomically; losing it costs questions to
//! discovery, and that what this node has proven is proven again. A line without a standing, of a former version, counts
//! as accepted.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;
use crate::discovery::{Statement, StatementKind};
use crate::limits::{MAX_DERIVED_FILE_LENGTH, MAX_REFUTED_OBJECTS};

const FILE: &str = "derived";

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

/// Kind, subject and object, to length and standing.
type Objects = BTreeMap<(StatementKind, Digest, Digest), (u64, Standing)>;

#[derive(Debug)]
pub(super) struct Derived {
    path: PathBuf,
    objects: Mutex<Objects>,
    /// Held while the file is written.
    turn: Mutex<()>,
}

impl Derived {
    /// Reads what a former process left in `directory`; lines that make no sense are skipped.
    pub(super) fn load(directory: &std::path::Path) -> Self {
        let path = directory.join(FILE);
        let small = std::fs::metadata(&path).is_ok_and(|meta| meta.len() <= MAX_DERIVED_FILE_LENGTH);
        let text = if small { std::fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        let objects = text.lines().filter_map(parse).map(|(s, standing)| (key(&s), (s.length, standing))).collect();
        Self { path, objects: Mutex::new(objects), turn: Mutex::new(()) }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of that kind and subject: this node's own first.
    pub(super) fn get(&self, subject: Digest, kind: StatementKind) -> Vec<(Statement, Standing)> {
        let objects = self.objects();
        let range = (kind, subject, Digest::from_bytes([0; 32]))..=(kind, subject, Digest::from_bytes([0xff; 32]));
        let mut known: Vec<_> = objects.range(range).map(statement).collect();
        known.sort_by_key(|(_, standing)| *standing != Standing::Own);
        known
    }

    /// What this node may say in its own name.
    pub(super) fn own(&self) -> Vec<Statement> {
        let objects = self.objects();
        let own = objects.iter().map(statement).filter(|(_, standing)| *standing == Standing::Own);
        own.map(|(statement, _)| statement).collect()
    }

    /// Remembers what to make of an object, on disk too. What this node proved itself, no other's word changes.
    pub(super) fn remember(&self, statement: Statement, standing: Standing) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let text = {
            let mut objects = self.objects();
            let known = objects.get(&key(&statement)).copied();
            if known == Some((statement.length, standing)) || known.is_some_and(|(_, known)| known == Standing::Own) {
                return Ok(());
            }
            objects.insert(key(&statement), (statement.length, standing));
            forget_some_refuted(&mut objects);
            objects.iter().fold(String::new(), |text, object| text + &line(object))
        };
        let temporary = self.path.with_extension("new");
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)
    }
}

/// Liars can name objects without end: only so many are remembered as refuted.
fn forget_some_refuted(objects: &mut Objects) {
    let refuted = |(_, standing): &(u64, Standing)| *standing == Standing::Refuted;
    if objects.values().filter(|object| refuted(object)).count() > MAX_REFUTED_OBJECTS {
        let mut place = 0;
        objects.retain(|_, object| {
            place += usize::from(refuted(object));
            !refuted(object) || place % 2 == 0
        });
    }
}

const fn key(statement: &Statement) -> (StatementKind, Digest, Digest) {
    (statement.kind, statement.subject, statement.object)
}

fn statement(
    (&(kind, subject, object), &(length, standing)): (&(StatementKind, Digest, Digest), &(u64, Standing)),
) -> (Statement, Standing) {
    (Statement { subject, kind, object, length }, standing)
}

const fn name(kind: StatementKind) -> &'static str {
    match kind {
        StatementKind::Metainfo => "metainfo",
        StatementKind::LayerIndex => "layer-index",
    }
}

fn line(object: (&(StatementKind, Digest, Digest), &(u64, Standing))) -> String {
    let (Statement { subject, kind, object, length }, standing) = statement(object);
    let standing = match standing {
        Standing::Own => "own",
        Standing::Accepted => "accepted",
        Standing::Refuted => "refuted",
    };
    format!("{} {subject} {object} {length} {standing}\n", name(kind))
}

fn parse(line: &str) -> Option<(Statement, Standing)> {
    let mut words = line.split(' ');
    let kind = match words.next()? {
        "metainfo" => StatementKind::Metainfo,
        "layer-index" => StatementKind::LayerIndex,
        _ => return None,
    };
    let mut digest = || Digest::from_own_hex(words.next()?.strip_prefix("sha256:")?);
    let (subject, object) = (digest()?, digest()?);
    let statement = Statement { subject, kind, object, length: words.next()?.parse().ok()? };
    let standing = match words.next() {
        Some("own") => Standing::Own,
        Some("accepted") | None => Standing::Accepted,
        Some("refuted") => Standing::Refuted,
        Some(_) => return None,
    };
    (statement.is_possible() && words.next().is_none()).then_some((statement, standing))
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
        std::fs::write(&path, format!("nonsense\n{text}layer-index ../x y 3\n")).unwrap();
        let derived = Derived::load(directory.path());
        let known = derived.get(own.subject, StatementKind::LayerIndex);
        assert_eq!(known, [(own, Standing::Own), (lie, Standing::Refuted)]);
        assert_eq!(derived.get(foreign.subject, StatementKind::LayerIndex), [(foreign, Standing::Accepted)]);
        assert_eq!(derived.get(own.subject, StatementKind::Metainfo), []);
        assert_eq!(derived.own(), [own]);
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
        let mut objects = Objects::new();
        let own = index(b"subject", b"own");
        objects.insert(key(&own), (7, Standing::Own));
        for n in 0..3 * MAX_REFUTED_OBJECTS {
            objects.insert(key(&index(b"subject", &n.to_be_bytes())), (7, Standing::Refuted));
            forget_some_refuted(&mut objects);
            assert!(objects.len() <= MAX_REFUTED_OBJECTS + 1);
        }
        assert!(objects.contains_key(&key(&own)));
    }
}
