//! Which objects derive from which blobs, remembered on disk.
//!
//! One line each: `kind subject object length`. The file is replaced atomically; losing it costs a question to
//! discovery.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::digest::Digest;
use crate::discovery::{Statement, StatementKind};
use crate::layout::PieceLayout;
use crate::limits::MAX_DERIVED_FILE_LENGTH;

const FILE: &str = "derived";

/// Kind and subject, to object and length.
type Objects = BTreeMap<(StatementKind, Digest), (Digest, u64)>;

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
        let objects = text.lines().filter_map(parse).map(|s| ((s.kind, s.subject), (s.object, s.length))).collect();
        Self { path, objects: Mutex::new(objects), turn: Mutex::new(()) }
    }

    pub(super) fn get(&self, subject: Digest, kind: StatementKind) -> Option<(Digest, u64)> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).get(&(kind, subject)).copied()
    }

    pub(super) fn all(&self) -> Vec<Statement> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let statement = |(&(kind, subject), &(object, length)): (&_, &_)| Statement { subject, kind, object, length };
        objects.iter().map(statement).collect()
    }

    /// Remembers an object, on disk too.
    pub(super) fn remember(&self, statement: Statement) -> io::Result<()> {
        let Statement { subject, kind, object, length } = statement;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = {
            let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
            objects.insert((kind, subject), (object, length))
        };
        if before == Some((object, length)) {
            return Ok(());
        }
        let mut text = String::new();
        for Statement { subject, kind, object, length } in self.all() {
            text += &format!("{} {subject} {object} {length}\n", name(kind));
        }
        let temporary = self.path.with_extension("new");
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)
    }
}

const fn name(kind: StatementKind) -> &'static str {
    match kind {
        StatementKind::Metainfo => "metainfo",
        StatementKind::LayerIndex => "layer-index",
    }
}

fn parse(line: &str) -> Option<Statement> {
    let mut words = line.split(' ');
    let kind = match words.next()? {
        "metainfo" => StatementKind::Metainfo,
        "layer-index" => StatementKind::LayerIndex,
        _ => return None,
    };
    let (subject, object) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let length = words.next()?.parse().ok().filter(|&length| PieceLayout::new(length).is_ok())?;
    words.next().is_none().then_some(Statement { subject, kind, object, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_restart_and_skips_nonsense() {
        let directory = tempfile::tempdir().unwrap();
        let statement = Statement {
            subject: Digest::of(b"subject"),
            kind: StatementKind::LayerIndex,
            object: Digest::of(b"object"),
            length: 7,
        };
        Derived::load(directory.path()).remember(statement).unwrap();
        let path = directory.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("nonsense\n{text}layer-index ../x y 3\n")).unwrap();
        let derived = Derived::load(directory.path());
        assert_eq!(derived.get(statement.subject, StatementKind::LayerIndex), Some((statement.object, 7)));
        assert_eq!(derived.get(statement.subject, StatementKind::Metainfo), None);
        assert_eq!(derived.all(), [statement]);
    }
}
