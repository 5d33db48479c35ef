//! Which foreign files were held against their digest: `<root>/foreign`, so that a restart does not read all of them again.
//!
//! One line a file: digest, device, inode, length, time of modification in nanoseconds, and a dot, without which a line that
//! a crash cut short might name another time. Lines are added without a sync: one that is lost costs a hash. The last line
//! of a digest counts; what became of no use goes when the file is written anew.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::super::error::StoreError;
use super::super::{disk, lock};
use super::Stamp;
use crate::changes;
use crate::digest::Digest;
use crate::failpoint;
use crate::limits::{MAX_FOREIGN_BLOBS, MAX_FOREIGN_LEDGER_LENGTH};

const FILE: &str = "foreign";
/// Lines beyond those of use that the file may have before it is written anew.
const SLACK_LINES: usize = 1024;

/// What was held against its digest, and what came out.
#[derive(Debug)]
pub struct Ledger {
    directory: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    verified: HashMap<Digest, Stamp>,
    /// Did not match, which is not written down.
    wrong: HashMap<Digest, Stamp>,
    lines: usize,
    file: Option<File>,
}

impl Ledger {
    /// Reads what a former process wrote in `directory`. What cannot be read has to be hashed again.
    pub fn load(directory: &Path) -> Self {
        let mut inner = Inner::default();
        match disk::read(&directory.join(FILE), MAX_FOREIGN_LEDGER_LENGTH) {
            Ok(bytes) => {
                for line in String::from_utf8_lossy(&bytes).lines() {
                    inner.lines += 1;
                    if let Some((digest, stamp)) = decode(line) {
                        inner.verified.insert(digest, stamp);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, "it is not known which foreign files were verified: they are hashed again");
            }
        }
        Self { directory: directory.to_owned(), inner: Mutex::new(inner) }
    }

    /// Whether a file of that digest and stamp matched it; none if it was not hashed.
    pub fn judged(&self, digest: &Digest, stamp: &Stamp) -> Option<bool> {
        let inner = lock(&self.inner);
        if inner.wrong.get(digest) == Some(stamp) {
            return Some(false);
        }
        (inner.verified.get(digest) == Some(stamp)).then_some(true)
    }

    /// It matched.
    pub fn note(&self, digest: Digest, stamp: Stamp) -> Result<(), StoreError> {
        let mut inner = lock(&self.inner);
        inner.wrong.remove(&digest);
        if inner.verified.insert(digest, stamp) == Some(stamp) {
            return Ok(());
        }
        let path = self.directory.join(FILE);
        let failed = |error| StoreError::io("write", &path, error);
        let file = match inner.file.take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                changes::open(&path, options.append(true).create(true).mode(0o600), false).map_err(failed)?
            }
        };
        // One that was cut short must not take this one with it.
        changes::append(&file, format!("\n{}", encode(&digest, &stamp)).as_bytes()).map_err(failed)?;
        failpoint::reach("foreign.noted");
        inner.file = Some(file);
        inner.lines += 2;
        Ok(())
    }

    /// It did not.
    pub fn refute(&self, digest: Digest, stamp: Stamp) {
        let mut inner = lock(&self.inner);
        inner.verified.remove(&digest);
        if inner.wrong.len() >= MAX_FOREIGN_BLOBS {
            inner.wrong.clear();
        }
        inner.wrong.insert(digest, stamp);
    }

    /// A file turned out spoilt: it is hashed before it is believed again.
    pub fn doubt(&self, digest: &Digest) {
        lock(&self.inner).verified.remove(digest);
    }

    /// Only these are still of use. Writes the file anew when most of it is not.
    pub fn retain(&self, of_use: impl Fn(&Digest) -> bool) -> Result<(), StoreError> {
        let mut inner = lock(&self.inner);
        inner.verified.retain(|digest, _| of_use(digest));
        inner.wrong.retain(|digest, _| of_use(digest));
        if inner.lines <= 4 * inner.verified.len() + SLACK_LINES {
            return Ok(());
        }
        let text = inner.verified.iter().fold(String::new(), |text, (digest, stamp)| text + &encode(digest, stamp));
        disk::replace(&self.directory, FILE, text.as_bytes())?;
        inner.lines = inner.verified.len();
        inner.file = None;
        Ok(())
    }
}

fn encode(digest: &Digest, stamp: &Stamp) -> String {
    let Stamp { device, inode, length, modified_ns } = stamp;
    let mut line = digest.to_string();
    // Into a String.
    let _ = writeln!(line, " {device} {inode} {length} {modified_ns} .");
    line
}

fn decode(line: &str) -> Option<(Digest, Stamp)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [digest, device, inode, length, modified_ns, "."] = fields[..] else { return None };
    let stamp = Stamp {
        device: device.parse().ok()?,
        inode: inode.parse().ok()?,
        length: length.parse().ok()?,
        modified_ns: modified_ns.parse().ok()?,
    };
    Some((digest.parse().ok()?, stamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { device: 1, inode: 2, length: 3, modified_ns: 1_700_000_000_123_456_789 };

    #[test]
    fn what_was_verified_is_known_after_a_restart_and_only_under_its_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let ledger = Ledger::load(directory.path());
        ledger.note(one, STAMP).unwrap();
        ledger.refute(two, STAMP);
        assert_eq!((ledger.judged(&one, &STAMP), ledger.judged(&two, &STAMP)), (Some(true), Some(false)));
        let ledger = Ledger::load(directory.path());
        assert_eq!((ledger.judged(&one, &STAMP), ledger.judged(&two, &STAMP)), (Some(true), None));
        assert_eq!(ledger.judged(&one, &Stamp { inode: 5, ..STAMP }), None);
        ledger.doubt(&one);
        assert_eq!(ledger.judged(&one, &STAMP), None);
    }

    #[test]
    fn a_file_cut_anywhere_never_says_what_was_not_noted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let digest = Digest::of(b"one");
        Ledger::load(directory.path()).note(digest, STAMP).unwrap();
        let text = std::fs::read(&path).unwrap();
        for cut in 0..text.len() - 1 {
            std::fs::write(&path, &text[..cut]).unwrap();
            let ledger = Ledger::load(directory.path());
            assert!(ledger.inner.lock().unwrap().verified.is_empty(), "cut at {cut}");
            let more = Digest::of(b"more");
            ledger.note(more, STAMP).unwrap();
            assert_eq!(Ledger::load(directory.path()).judged(&more, &STAMP), Some(true), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_of_no_use_goes() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::load(directory.path());
        let digests: Vec<_> = (0..SLACK_LINES as u32).map(|n| Digest::of(&n.to_be_bytes())).collect();
        for digest in &digests {
            ledger.note(*digest, STAMP).unwrap();
        }
        ledger.retain(|digest| *digest == digests[7]).unwrap();
        let length = std::fs::metadata(directory.path().join(FILE)).unwrap().len();
        assert!(length < 200, "{length} bytes are left");
        ledger.note(digests[8], STAMP).unwrap();
        let ledger = Ledger::load(directory.path());
        assert_eq!([7, 8, 9].map(|n| ledger.judged(&digests[n], &STAMP)), [Some(true), Some(true), None]);
    }
}
