//! Who was let in: a file to which lines are added.
//!
//! ```text
//! <seconds since the epoch> <peer id> <group> <roles> [revoked]
//! ```
//!
//! The last line of a node counts. A line that a crash cut short is passed over; its node shows its certificate instead.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lapwing_p2p::identity::PeerId;
use lapwing_p2p::membership::{Roles, is_group};

use super::AuthorityError;
use crate::limits::{LEDGER_PERIOD, MAX_LEDGER_BYTES};

/// What is known of somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its group.
    pub group: String,
    /// Its roles.
    pub roles: Roles,
    /// When it last got a certificate, within a day, or was revoked; since the Unix epoch.
    pub at: Duration,
    /// It gets none any more.
    pub revoked: bool,
}

#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    entries: HashMap<PeerId, Entry>,
    /// Bytes that have been read, or written from here.
    known: u64,
}

impl Ledger {
    pub(super) fn open(path: &Path) -> Result<Self, AuthorityError> {
        let mut ledger = Self { path: path.to_owned(), entries: HashMap::new(), known: u64::MAX };
        ledger.refresh()?;
        Ok(ledger)
    }

    /// Reads what another process has added.
    pub(super) fn refresh(&mut self) -> Result<(), AuthorityError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (self.entries, self.known) = (HashMap::new(), 0);
                return Ok(());
            }
            Err(error) => return Err(AuthorityError::io(&self.path)(error)),
        };
        let length = file.metadata().map_err(AuthorityError::io(&self.path))?.size();
        if length == self.known {
            return Ok(());
        }
        let mut entries = HashMap::new();
        let lines = BufReader::new(std::io::Read::take(file, MAX_LEDGER_BYTES)).split(b'\n');
        for line in lines {
            let line = line.map_err(AuthorityError::io(&self.path))?;
            if let Some((peer, entry)) = std::str::from_utf8(&line).ok().and_then(read) {
                entries.insert(peer, entry);
            }
        }
        (self.entries, self.known) = (entries, length);
        Ok(())
    }

    pub(super) fn get(&self, peer: &PeerId) -> Option<&Entry> {
        self.entries.get(peer)
    }

    pub(super) fn entries(&self) -> Vec<(PeerId, Entry)> {
        let mut entries: Vec<_> = self.entries.iter().map(|(peer, entry)| (*peer, entry.clone())).collect();
        entries.sort_by_key(|(peer, entry)| (std::cmp::Reverse(entry.at), *peer));
        entries
    }

    /// Notes a change; of renewals one a day.
    pub(super) fn note(&mut self, peer: PeerId, entry: Entry) -> Result<(), AuthorityError> {
        let is_news = self.get(&peer).is_none_or(|known| {
            let same = (&known.group, known.roles, known.revoked) == (&entry.group, entry.roles, entry.revoked);
            !same || entry.at.saturating_sub(known.at) >= LEDGER_PERIOD
        });
        if !is_news {
            return Ok(());
        }
        let line = line(&peer, &entry);
        let append = || {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
            // What a crash cut short must not swallow this line.
            let line = if file.metadata()?.size() > 0 { format!("\n{line}") } else { line };
            file.write_all(line.as_bytes())?;
            file.sync_data()?;
            file.metadata().map(|found| found.size())
        };
        // Another process may have added something as well: then the lengths differ, and all is read again.
        let length = append().map_err(AuthorityError::io(&self.path))?;
        self.known = if self.known == u64::MAX { 0 } else { length };
        self.entries.insert(peer, entry);
        Ok(())
    }
}

fn line(peer: &PeerId, entry: &Entry) -> String {
    let revoked = if entry.revoked { " revoked" } else { "" };
    format!("{} {peer} {} {}{revoked}", entry.at.as_secs(), entry.group, entry.roles)
}

fn read(line: &str) -> Option<(PeerId, Entry)> {
    let parts: Vec<&str> = line.split(' ').collect();
    let (at, peer, group, roles, revoked) = match parts[..] {
        [at, peer, group, roles] => (at, peer, group, roles, false),
        [at, peer, group, roles, "revoked"] => (at, peer, group, roles, true),
        _ => return None,
    };
    let group = Some(group).filter(|group| is_group(group))?.to_owned();
    let at = Duration::from_secs(at.parse().ok()?);
    Some((peer.parse().ok()?, Entry { group, roles: roles.parse().ok()?, at, revoked }))
}

#[cfg(test)]
mod tests {
    use lapwing_p2p::membership::Role;

    use super::*;

    fn entry(at: u64, revoked: bool) -> Entry {
        let roles = Roles::of([Role::Node, Role::Seed]);
        Entry { group: "team".to_owned(), roles, at: Duration::from_secs(at), revoked }
    }

    #[test]
    fn two_processes_see_what_the_other_notes_and_a_cut_line_costs_itself_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("members");
        let (mut one, mut two) = (Ledger::open(&path).unwrap(), Ledger::open(&path).unwrap());
        let [a, b, c] = [1, 2, 3].map(|byte| PeerId::from_bytes([byte; 32]));
        one.note(a, entry(100, false)).unwrap();
        one.note(a, entry(101, false)).unwrap();
        two.refresh().unwrap();
        assert_eq!(two.get(&a), Some(&entry(100, false)), "renewals are noted once a day");
        two.note(a, entry(102, true)).unwrap();
        one.refresh().unwrap();
        assert_eq!(one.get(&a), Some(&entry(102, true)));
        let cut = OpenOptions::new().append(true).open(&path).unwrap();
        (&cut).write_all(format!("\n500 {b} te").as_bytes()).unwrap();
        one.note(c, entry(600, false)).unwrap();
        let read = Ledger::open(&path).unwrap().entries();
        assert_eq!(read, [(c, entry(600, false)), (a, entry(102, true))]);
    }
}
